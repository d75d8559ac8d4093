"""The parts of networks: sub-pixel convolution, and batch normalisation over processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from fluence.models import build
from fluence.models.layers import ConvUnit, SubpixelConv, SyncedBatchNorm2d
from fluence.study import DenseLatent, VaeModel

SHARES = (slice(0, 5), slice(5, 8))  # unequal on purpose


def test_icnr_starts_as_nearest_neighbour_upsampling():
    torch.manual_seed(0)
    layer = SubpixelConv(6, 5, bias=True)
    x = torch.randn(2, 6, 4, 3)
    out = layer(x)
    assert out.shape == (2, 5, 8, 6)
    one_of_each = nn.functional.conv2d(x, layer.conv.weight[::4], layer.conv.bias[::4], padding=1)
    nearest = one_of_each.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(out, nearest)
    assert out.std() > 0


def test_he_initialisation_keeps_the_variance_of_a_deep_network():
    torch.manual_seed(0)
    units = nn.Sequential(*(ConvUnit(64, 64, stride=1, pool=False, norm="none") for _ in range(13)))
    x = torch.randn(4, 64, 16, 16)
    ratio = units(x).square().mean() / x.square().mean()
    assert 0.1 < ratio < 10


def test_every_decoder_of_a_fresh_model_starts_without_chequerboard():
    model = build(VaeModel(kind="vae", width=1 / 8), 64, 0).eval()
    image = model(torch.rand(2, 3, 64, 64)).reconstruction
    blocks = image.reshape(2, 3, 32, 2, 32, 2)
    assert torch.equal(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks))


def test_one_process_uses_torchs_batch_norm():
    x = torch.randn(4, 3, 5, 5)
    ours, theirs = SyncedBatchNorm2d(3), nn.BatchNorm2d(3)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)


def _case(images: torch.Tensor, count: int) -> dict:
    """What comes of a share of `count` images in a batch norm alone and in a model with it, in float64."""
    settings = VaeModel(kind="vae", width=1 / 16, norm="batch", latent=DenseLatent(kind="dense", size=4))
    model = build(settings, 32, 0).double()
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
