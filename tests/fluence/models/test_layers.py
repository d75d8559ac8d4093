"""The parts of networks: convolutions, activations, and batch normalisation over processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fluence.architectures import ConvLayer
from fluence.models import build
from fluence.models.layers import ACTIVATIONS, ConvUnit, LocalWinnerTakesAll, Style
from fluence.models.norms import SyncedBatchNorm2d
from fluence.study import DenseLatent, VaeModel

SHARES = (slice(0, 5), slice(5, 8))  # unequal on purpose


def layer(stride: int = 1) -> ConvLayer:
    return ConvLayer("conv", 64, stride=stride)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("separable_px", [None, 5])
def test_he_initialisation_keeps_the_mean_square_of_a_deep_network(activation, separable_px):
    torch.manual_seed(0)
    style = Style(separable_px=separable_px, activation=activation)
    units = nn.Sequential(*(ConvUnit(64, 64, layer(), style) for _ in range(13)))
    x = torch.randn(4, 64, 16, 16)
    ratio = units(x).square().mean() / x.square().mean()
    assert (0.1 if separable_px is None else 0.01) < ratio < 10  # large filters see more of the zeros outside the map


@pytest.mark.parametrize("kernel_px", [3, 5, 7, 9, 11])
@pytest.mark.parametrize("stride", [1, 2])
def test_separable_convolution_is_two_convolutions_written_out(kernel_px, stride):
    """And 4 · k² + 4 · 6 weights and 6 biases: its filters see one channel each."""
    torch.manual_seed(0)
    unit = ConvUnit(4, 6, layer(stride), Style(separable_px=kernel_px))
    x = torch.randn(2, 4, 12, 12)
    filtered = torch.cat(
        [
            nn.functional.conv2d(x[:, c : c + 1], unit.conv.depthwise.weight[c : c + 1], None, stride, kernel_px // 2)
            for c in range(4)
        ],
        dim=1,
    )
    expected = torch.einsum("oi,bihw->bohw", unit.conv.pointwise.weight[:, :, 0, 0], filtered)
    torch.testing.assert_close(unit(x), expected.relu(), rtol=1e-4, atol=1e-5)
    assert unit(x).shape == (2, 6, 12 // stride, 12 // stride)
    assert sum(p.numel() for p in unit.parameters()) == 4 * kernel_px**2 + 4 * 6 + 6


# ── Local winner-takes-all ───────────────────────────────────────────────────────────────────────────────────────


def winners_written_out(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    for channel in range(0, x.shape[1], 2):
        for index in torch.cartesian_prod(*(torch.arange(n) for n in (x.shape[0], *x.shape[2:]))).tolist():
            a, b = (index[0], channel, *index[1:]), (index[0], channel + 1, *index[1:])
            winner = a if x[a] >= x[b] else b
            out[winner] = x[winner]
    return out


def test_of_two_channels_the_larger_passes():
    x = torch.tensor([3.0, 1.0, -2.0, -1.0, 5.0, 5.0])[None, :, None, None]
    assert LocalWinnerTakesAll()(x).flatten().tolist() == [3, 0, 0, -1, 5, 0]  # of equal ones the first


@given(st.integers(0, 2**31), st.sampled_from([2, 4, 8]))
@settings(max_examples=20, deadline=None)
def test_winners_are_those_of_a_loop(seed, channels):
    x = torch.randn(2, channels, 3, 2, generator=torch.Generator().manual_seed(seed)).round(decimals=0)
    assert torch.equal(LocalWinnerTakesAll()(x), winners_written_out(x))


def test_gradients_reach_winners_alone():
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    passed = LocalWinnerTakesAll()(x)
    (gradient,) = torch.autograd.grad(passed.sum(), x)
    assert torch.equal(gradient, (passed != 0).double())
    assert torch.autograd.gradcheck(LocalWinnerTakesAll(), x)


def test_a_value_that_is_not_a_number_does_not_get_lost_by_losing():
    for values in ([float("nan"), 1.0], [1.0, float("nan")]):
        assert LocalWinnerTakesAll()(torch.tensor(values)[None, :, None, None]).isnan().any()


# ── Batch normalisation over processes ───────────────────────────────────────────────────────────────────────────


def test_one_process_uses_torchs_batch_norm():
    x = torch.randn(4, 3, 5, 5)
    ours, theirs = SyncedBatchNorm2d(3), nn.BatchNorm2d(3)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)


def _case(images: torch.Tensor, count: int) -> dict:
    """What comes of a share of `count` images in a batch norm alone and in a model with it, in float64."""
    narrow = VaeModel(kind="vae", width=1 / 16, norm="batch", latent=DenseLatent(kind="dense", size=4))
    model = build(narrow, 32, 0).double()
    bn = SyncedBatchNorm2d(3).double()
    nn.init.uniform_(bn.weight, generator=torch.Generator().manual_seed(0))
    x = images.clone().requires_grad_()
    scaled = bn(x * torch.arange(1, 4, dtype=x.dtype)[:, None, None] + 100)
    loss = (scaled**3).sum() / count + ((model(x).reconstruction - images) ** 2).sum() / count
    loss.backward()
    gradients = {name: p.grad for name, p in (*bn.named_parameters(), *model.named_parameters()) if p.grad is not None}
    return {"scaled": scaled.detach(), "x": x.grad, "gradients": gradients,
            "buffers": dict(bn.named_buffers()) | dict(model.named_buffers())}  # fmt: skip


def _worker(rank: int, folder: str, images: torch.Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(SHARES))
    found = _case(images[SHARES[rank]], len(images))
    for gradient in found["gradients"].values():
        dist.all_reduce(gradient)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def one_and_two_processes(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("gloo"))
    images = torch.rand(8, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.multiprocessing.spawn(_worker, (folder, images), nprocs=len(SHARES))
    ranks = [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(len(SHARES))]
    return _case(images, len(images)), ranks


def test_synced_batch_norm_forward(one_and_two_processes):
    one, ranks = one_and_two_processes
    torch.testing.assert_close(torch.cat([rank["scaled"] for rank in ranks]), one["scaled"])


def test_synced_batch_norm_gradients(one_and_two_processes):
    one, ranks = one_and_two_processes
    torch.testing.assert_close(torch.cat([rank["x"] for rank in ranks]), one["x"])
    assert one["gradients"]
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"], one["gradients"])


def test_synced_batch_norm_running_statistics(one_and_two_processes):
    one, ranks = one_and_two_processes
    assert any("running_var" in name for name in one["buffers"])
    for rank in ranks:
        torch.testing.assert_close(rank["buffers"], one["buffers"])
