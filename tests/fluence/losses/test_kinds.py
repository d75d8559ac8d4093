"""The terms of single kinds of model: order along attributes, and the use of a codebook."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from pydantic import TypeAdapter

from fluence.losses import Objective, kl_to_standard_normal, kl_to_tilted, l2
from fluence.losses.latent import attribute_disorder, perplexity
from fluence.models import build
from fluence.study import Model

NAN = math.nan
NUMBERS = st.floats(-4, 4)


def slow_disorder(unit: list[float], attribute: list[float], delta: float) -> float:
    found = []
    for z_i, a_i in zip(unit, attribute, strict=True):
        for z_j, a_j in zip(unit, attribute, strict=True):
            if not (math.isnan(a_i) or math.isnan(a_j)):
                sign = (a_i > a_j) - (a_i < a_j)
                found.append(abs(math.tanh(delta * (z_i - z_j)) - sign))
    return sum(found) / len(found) if found else 0.0


def disorder(unit: list[float], attribute: list[float], delta: float = 1.0) -> float:
    unit, attribute = (torch.tensor(values, dtype=torch.float64) for values in (unit, attribute))
    return attribute_disorder(unit, attribute, delta).item()


def test_disorder_by_hand():
    """Two images: of the four pairs two count, 1 − tanh(δ d) each, or 1 + tanh(δ d) against the order."""
    assert disorder([0.0, 1.0], [5.0, 9.0]) == pytest.approx((1 - math.tanh(1)) / 2)
    assert disorder([0.0, 1.0], [9.0, 5.0]) == pytest.approx((1 + math.tanh(1)) / 2)
    assert disorder([0.0, 1.0], [5.0, 9.0], delta=10.0) == pytest.approx((1 - math.tanh(10)) / 2)
    assert disorder([0.0, 1.0], [5.0, 5.0]) == pytest.approx(math.tanh(1) / 2)  # equal attributes want equal z


@given(hnp.arrays("float64", 6, elements=NUMBERS), hnp.arrays("float64", 6, elements=NUMBERS | st.just(NAN)))
@settings(deadline=None)  # torch is slow at its first call
def test_disorder_against_a_slow_loop_and_its_symmetries(unit, attribute):
    found = disorder(unit.tolist(), attribute.tolist(), 2.0)
    assert found == pytest.approx(slow_disorder(unit.tolist(), attribute.tolist(), 2.0), abs=1e-12)
    assert 0 <= found <= 2
    assert disorder((-unit).tolist(), (-attribute).tolist(), 2.0) == pytest.approx(found, abs=1e-12)
    assert disorder(unit.tolist(), (2 * attribute).tolist(), 2.0) == pytest.approx(found, abs=1e-12)  # order alone
    backwards = disorder(unit[::-1].tolist(), attribute[::-1].tolist(), 2.0)
    assert backwards == pytest.approx(found, abs=1e-12)


def test_images_without_a_value_take_no_part():
    assert disorder([0.0, 7.0, 1.0], [5.0, NAN, 9.0]) == pytest.approx(disorder([0.0, 1.0], [5.0, 9.0]))
    assert disorder([0.0, 7.0], [NAN, NAN]) == 0
    unit = torch.tensor([0.0, 7.0, 1.0], requires_grad=True)
    attribute_disorder(unit, torch.tensor([5.0, NAN, 9.0]), 1.0).backward()
    assert unit.grad[1] == 0
    assert unit.grad[0] > 0 > unit.grad[2]  # descent lowers the first and raises the last


def test_disorder_gradcheck():
    unit = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    attribute = torch.tensor([3.0, 1.0, NAN, 2.0, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: attribute_disorder(z, attribute, 1.5), (unit,))


def test_perplexity_by_hand():
    assert perplexity(torch.tensor([0.0, 5.0, 0.0])).item() == pytest.approx(1)
    assert perplexity(torch.tensor([2.0, 2.0, 0.0, 2.0, 2.0])).item() == pytest.approx(4)
    assert perplexity(torch.tensor([1.0, 3.0])).item() == pytest.approx(4 / 3**0.75)


# ── In the objective ─────────────────────────────────────────────────────────────────────────────────────────────


def terms_of(settings: dict, attributes: torch.Tensor | None = None):
    """A tiny network of a kind, its output for four images, and the weighted loss with its terms."""
    model = TypeAdapter(Model).validate_python({"width": 1 / 16, "latent": {"kind": "conv", "channels": 3}} | settings)
    network = build(model, 32, 0)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    output = network(images, torch.randn(4, *network.noise_shape, generator=torch.Generator().manual_seed(1)))
    objective = Objective(model)
    return objective, output, l2(output.reconstruction, images), objective(output, images, {}, attributes, kl_scale=0.5)


def test_plain_autoencoder_has_its_reconstruction_alone():
    _, _, reconstruction, (total, terms) = terms_of({"kind": "ae"})
    assert list(terms) == ["reconstruction/l2", "loss"]
    torch.testing.assert_close(total, reconstruction)


def test_tilted_prior_warms_up_under_the_name_of_the_other():
    _, output, reconstruction, (total, terms) = terms_of(
        {"kind": "vae", "prior": {"kind": "tilted", "tau": 6}, "kl_weight": 3}
    )
    assert list(terms) == ["reconstruction/l2", "kl", "loss"]
    torch.testing.assert_close(terms["kl"], kl_to_tilted(output.mu, 6.0).detach())
    torch.testing.assert_close(total, reconstruction + 0.5 * 3 * kl_to_tilted(output.mu, 6.0))


def test_quantised_terms_have_their_weights_and_perplexity_has_none():
    _, output, reconstruction, (total, terms) = terms_of({"kind": "vq-vae", "codebook_size": 5, "commitment_weight": 2})
    assert list(terms) == ["reconstruction/l2", "codebook", "commitment", "perplexity", "loss"]
    torch.testing.assert_close(total, reconstruction + output.extras["codebook"] + 2 * output.extras["commitment"])
    used = output.extras["chosen"].sum(0)
    assert terms["perplexity"].tolist() == pytest.approx([perplexity(used).item()] * 4)


def test_attributes_are_followed_by_z_and_counted_once():
    """The paper orders z as the decoder sees it, not its mean; every image carries the mean over all pairs."""
    settings = {
        "kind": "ar-vae",
        "attributes": [{"column": "age", "unit": 2, "weight": 4, "delta": 0.5}, {"column": "light", "unit": 0}],
    }
    values = torch.tensor([[30.0, 0.1], [NAN, 0.4], [20.0, 0.2], [50.0, 0.2]])
    objective, output, reconstruction, (total, terms) = terms_of(settings, values)
    assert objective.columns == ("age", "light")
    assert list(terms) == ["reconstruction/l2", "kl", "attribute/age", "attribute/light", "loss"]
    z = output.z.detach().flatten(1)
    age = slow_disorder(z[:, 2].tolist(), values[:, 0].tolist(), 0.5)
    light = slow_disorder(z[:, 0].tolist(), values[:, 1].tolist(), 1.0)
    assert terms["attribute/age"].tolist() == pytest.approx([age] * 4)
    assert terms["attribute/light"].tolist() == pytest.approx([light] * 4)
    kl = kl_to_standard_normal(output.mu, output.logvar)
    torch.testing.assert_close(total, reconstruction + 0.5 * kl + 4 * age + 10 * light)
    of_means = slow_disorder(output.mu.detach().flatten(1)[:, 2].tolist(), values[:, 0].tolist(), 0.5)
    assert abs(of_means - age) > 1e-3
