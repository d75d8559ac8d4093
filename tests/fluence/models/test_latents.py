"""What the heads of single kinds of model do; what all have in common is in test_contract.py."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from fluence.architectures import code_size
from fluence.errors import StudyError
from fluence.models import build
from fluence.models.latents import QuantisingHead, UnitVarianceHead, nearest
from fluence.study import ConvLatent, VqVaeModel
from tests.fluence.models.every_model import EVERY_MODEL, model

MAP = (6, 2, 2)


def quantiser(codebook_size: int = 8, channels: int = 3) -> QuantisingHead:
    torch.manual_seed(0)
    latent = ConvLatent(channels=channels)
    return QuantisingHead(VqVaeModel(kind="vq-vae", latent=latent, codebook_size=codebook_size), MAP)


def last_maps(count: int = 4) -> torch.Tensor:
    return torch.randn(count, *MAP, generator=torch.Generator().manual_seed(1))


# ── VQ-VAE ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nearest_by_hand():
    entries = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [-1.0, 0.0]])
    values = torch.tensor([[0.1, 0.0], [2.0, 4.0], [-0.6, 0.0], [-0.5, 0.0]])
    assert nearest(values, entries).tolist() == [0, 1, 3, 0]  # a tie goes to the first


@given(
    hnp.arrays("float64", (7, 3), elements=st.floats(-9, 9)), hnp.arrays("float64", (5, 3), elements=st.floats(-9, 9))
)
@settings(deadline=None)  # torch is slow at its first call
def test_no_entry_is_nearer_than_the_nearest(values, entries):
    slow = ((values[:, None] - entries) ** 2).sum(-1)
    chosen = nearest(torch.from_numpy(values), torch.from_numpy(entries)).numpy()
    assert (slow[range(7), chosen] <= slow.min(1) + 1e-9).all()


def test_quantised_code_and_its_terms_are_those_of_a_slow_loop():
    head, maps = quantiser(), last_maps()
    mu, z, logvar, extras = head(maps, None)
    codebook = head.codebook.detach()
    assert logvar is None
    for image in range(4):
        squares, counts = 0.0, torch.zeros(8)
        for row in range(2):
            for column in range(2):
                value = mu[image, :, row, column].detach()
                distances = [float((value - entry).square().sum()) for entry in codebook]
                best = min(range(8), key=distances.__getitem__)
                assert torch.equal(z[image, :, row, column], codebook[best])
                squares, counts[best] = squares + distances[best], counts[best] + 1
        assert extras["codebook"][image].item() == pytest.approx(squares, rel=1e-5)
        assert extras["commitment"][image].item() == pytest.approx(squares, rel=1e-5)
        assert torch.equal(extras["chosen"][image], counts)


def test_each_term_moves_what_it_is_for():
    """‖sg[μ] − e‖² moves the entries to the mean of the values that chose them, ‖μ − sg[e]‖² the encoder to e."""
    head, maps = quantiser(), last_maps()
    mu, z, _, extras = head(maps, None)
    mu.retain_grad()
    extras["codebook"].sum().backward(retain_graph=True)
    counts, chosen = extras["chosen"].sum(0), nearest(mu.movedim(1, -1), head.codebook)
    for number, entry in enumerate(head.codebook.detach()):
        own = mu.movedim(1, -1)[chosen == number].detach()
        torch.testing.assert_close(head.codebook.grad[number], 2 * (len(own) * entry - own.sum(0)))
        assert (counts[number] > 0) == bool(head.codebook.grad[number].abs().sum() > 0)
    assert 0 < (counts > 0).sum() < 8  # some entries were chosen, some were not: these have gradient zero
    assert mu.grad is None
    head.zero_grad()
    extras["commitment"].sum().backward()
    torch.testing.assert_close(mu.grad, 2 * (mu - z).detach())
    assert head.codebook.grad is None


def test_gradient_passes_the_quantisation_straight_through():
    head = quantiser()
    mu, z, _, _ = head(last_maps(), None)
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad((z * weights).sum(), mu, retain_graph=True)
    assert torch.equal(found, weights)
    (found,) = torch.autograd.grad((z * weights).sum(), head.codebook, allow_unused=True)
    assert found is None


def test_half_precision_does_not_blur_the_distances():
    """Entries that bfloat16 cannot tell apart, which keeps 8 bits: 1 and 1 + 2⁻¹²."""
    head = quantiser(codebook_size=2, channels=1).requires_grad_(False)
    head.codebook.copy_(torch.tensor([[1.0], [1.0 + 2**-12]]))
    for parameter in head.mean.parameters():
        parameter.zero_()
    head.mean.bias += 1 + 2**-7  # a bfloat16 number
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mu, z, _, extras = head(last_maps().bfloat16(), None)
    assert {x.dtype for x in (mu, z, *extras.values())} == {torch.float32}
    assert extras["chosen"].tolist() == [[0, 4]] * 4


@pytest.mark.parametrize("name", ["small-conv", "tilted", "ar-vae", "ae", "vq-vae"])
def test_an_empty_share_of_a_batch_passes(name):
    """The last batch of validation may have fewer images than there are processes."""
    network = build(EVERY_MODEL[name], 32, 0).eval()
    assert network(torch.empty(0, 3, 32, 32)).z.shape == (0, *network.latent_shape)


# ── Tilted prior ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_sd_is_one_with_a_tilted_prior():
    torch.manual_seed(0)
    head = UnitVarianceHead(ConvLatent(channels=3), MAP)
    noise = torch.randn(4, *head.noise_shape)
    code = head(last_maps(), noise)
    torch.testing.assert_close(code.z - code.mu, noise)
    assert torch.equal(head(last_maps(), None).z, code.mu)


# ── Units of an AR-VAE ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["small-conv", "small-dense", "vq-vae", "ae-dense-l0"])
def test_code_size_is_that_of_the_network(name):
    network = build(EVERY_MODEL[name], 64, 0)
    assert code_size(EVERY_MODEL[name], 64) == torch.zeros(network.latent_shape).numel()


def test_a_unit_that_the_code_has_not_is_refused():
    attributes = [{"column": "age", "unit": 12}]
    last = model(kind="ar-vae", latent={"kind": "conv", "channels": 13}, attributes=attributes)
    assert build(last, 32, 0).latent_shape == (13, 1, 1)
    short = model(kind="ar-vae", latent={"kind": "conv", "channels": 3}, attributes=attributes)
    with pytest.raises(StudyError, match=r"attributes: unit 12 .*'age'.* 64 px the code has 12 units.* 0 to 11$"):
        build(short, 64, 0)
