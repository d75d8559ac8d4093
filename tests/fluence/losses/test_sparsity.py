"""Constraints on activations, on gates and on the number of channels."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from fluence.errors import StudyError
from fluence.losses import Objective
from fluence.losses.sparsity import HIGH, LOW, SQUASH, clamped_fraction, kl_sparsity, l1_norm
from fluence.models import build, record
from tests.fluence.models.every_model import model

RHOS = st.floats(0.01, 0.99)
MEANS = hnp.arrays("float64", (2, 3), elements=st.floats(0.01, 0.99))


def slow_kl(means: np.ndarray, rho: float) -> float:
    """Unit by unit, by the formula."""
    total = 0.0
    for mean in means.ravel():
        total += rho * math.log(rho / mean) + (1 - rho) * math.log((1 - rho) / (1 - mean))
    return total


def seen_by(settings_of_model, seed: int = 0):
    """The objective of a model, and its output, images and recorded values for four images."""
    network, objective = build(settings_of_model, 32, seed), Objective(settings_of_model)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    with record(network, objective.layers, "post") as recorder:
        output = network(images)
    return network, objective, output, images, recorder.values


# ── KL ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(MEANS, RHOS)
@settings(deadline=None)  # torch is slow at its first call
def test_kl_against_the_formula(means, rho):
    assert kl_sparsity(torch.from_numpy(means), rho).item() == pytest.approx(slow_kl(means, rho), rel=1e-9, abs=1e-12)


@given(MEANS, RHOS)
@settings(deadline=None)
def test_kl_is_never_negative_and_zero_where_every_unit_has_the_mean_that_is_wanted(means, rho):
    assert kl_sparsity(torch.from_numpy(means), rho).item() >= -1e-12
    assert kl_sparsity(torch.full((4,), rho, dtype=torch.float64), rho).item() == pytest.approx(0, abs=1e-12)


def test_kl_worked_by_hand():
    """ρ = ¼, ρ̂ = ½ twice: 2 (¼ ln ½ + ¾ ln 1.5)."""
    expected = 2 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert kl_sparsity(torch.full((2,), 0.5).double(), 0.25).item() == pytest.approx(expected, rel=1e-12)


def test_kl_gradcheck():
    means = torch.tensor([0.02, 0.3, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kl_sparsity(x, 0.05), (means,))


@pytest.mark.parametrize("rho", [0.05, 1e-6])
def test_silent_and_saturated_units_are_finite_and_counted(rho):
    means = torch.tensor([0.0, LOW * rho / 2, rho, 1 - 2 * HIGH, 1.0], requires_grad=True)
    value = kl_sparsity(means, rho)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(means.grad).all()
    assert means.grad.min() >= -1.001 / LOW
    assert clamped_fraction(means, rho).item() == pytest.approx(3 / 5)
    # Only the logarithm is limited: a silent unit still has the pull of the other addend, and a saturated one of ρ.
    assert means.grad[0].item() == pytest.approx(1 - rho, rel=1e-4)
    assert means.grad[4].item() == pytest.approx(-rho, rel=1e-4)


def test_a_large_activation_is_pulled_down_by_the_rational_squash_without_saturating():
    """ReLU activations exceed 1: without a squash the logarithm of 1 − ρ̂ has no value."""
    x = torch.tensor([[1e-3, 1.0, 1e4]], requires_grad=True)
    kl_sparsity(SQUASH["rational"](x).mean(0), 0.05).backward()
    assert x.grad[0, 0] < 0 < x.grad[0, 2] < x.grad[0, 1]


@pytest.mark.parametrize(
    ("squash", "expected"),
    [
        ("rational", [0.75, 0.0, 2 / 3]),
        ("exponential", [1 - math.exp(-3), 0.0, 1 - math.exp(-2)]),
        ("sigmoid", [1 / (1 + math.exp(3)), 0.5, 1 / (1 + math.exp(-2))]),
    ],
)
def test_squashes_worked_by_hand(squash, expected):
    found = SQUASH[squash](torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    tiny = SQUASH[squash](torch.tensor([1e-7])) - (0.5 if squash == "sigmoid" else 0)
    assert tiny.item() == pytest.approx(
        0 if squash == "sigmoid" else 1e-7, rel=1e-5, abs=1e-7 if squash == "sigmoid" else 0
    )


@pytest.mark.parametrize("squash", SQUASH)
def test_the_kl_term_constrains_each_unit_by_its_mean_over_the_batch(squash):
    """Mistake: one mean for the whole layer, which a few silent units bring down for all."""
    chosen = model(sparsity=[{"penalty": "kl", "squash": squash, "layers": ["conv3", "mu"], "rho": 0.1, "weight": 7}])
    _, objective, output, images, values = seen_by(chosen)
    total, terms = objective(output, images, values)
    without, _ = Objective(model())(output, images)
    added = torch.zeros(())
    for layer in ("conv3", "mu"):
        means = SQUASH[squash](values[layer].detach()).mean(0)
        torch.testing.assert_close(terms[f"sparsity/kl/{layer}"], kl_sparsity(means, 0.1).expand(4))
        torch.testing.assert_close(terms[f"sparsity/clamped/{layer}"], clamped_fraction(means, 0.1).expand(4))
        added = added + 7 * kl_sparsity(means, 0.1)
    torch.testing.assert_close(total.detach(), (without + added).detach())


# ── L1 and L0 ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_l1_worked_by_hand_and_for_each_image_alone():
    values = torch.tensor([[[1.0, -2.0], [0.0, 3.0]], [[0.0, 0.0], [0.5, 0.0]]])
    assert l1_norm(values).tolist() == [6.0, 0.5]
    assert l1_norm(values[:0]).shape == (0,)


def test_the_l1_terms_are_added_with_their_weight():
    chosen = model(sparsity=[{"penalty": "l1", "layers": "all but conv1", "weight": 0.25}])
    _, objective, output, images, values = seen_by(chosen)
    total, terms = objective(output, images, values)
    without, _ = Objective(model())(output, images)
    names = ("conv2", "conv3", "conv4", "conv5", "mu")
    assert set(objective.layers) == set(names)
    expected = {name: torch.stack([image.abs().sum() for image in values[name]]) for name in names}
    for name in names:
        torch.testing.assert_close(terms[f"sparsity/l1/{name}"], expected[name].detach())
    torch.testing.assert_close(total, without + 0.25 * sum(expected.values()))


def test_the_expected_number_of_channels_is_a_term_with_a_gradient():
    chosen = model(sparsity=[{"penalty": "l0", "layers": ["conv2", "conv4"], "weight": 3}])
    network, objective, output, images, values = seen_by(chosen)
    total, terms = objective(output, images, values)
    without, _ = Objective(model())(output, images)
    gates = network.encoder.l0_gates
    assert list(gates) == ["conv2", "conv4"]
    for name, each in gates.items():
        torch.testing.assert_close(terms[f"sparsity/l0/{name}"], each.expected_open().detach().expand(4))
    torch.testing.assert_close(total, without + 3 * sum(each.expected_open() for each in gates.values()))
    penalty = (total - without).mean()
    penalty.backward()
    assert all((each.log_alpha.grad > 0).all() for each in gates.values())


def test_strong_l0_closes_channels_and_a_weak_one_keeps_them():
    def num_open(weight: float) -> float:
        chosen = model(sparsity=[{"penalty": "l0", "layers": ["conv3"], "weight": weight}])
        network, objective = build(chosen, 32, 0), Objective(chosen)
        images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            objective(network(images), images)[0].mean().backward()
            optimizer.step()
        return float((network.encoder.conv3.gates.l0(None) > 0).sum())

    assert num_open(1e4) == 0
    assert num_open(1e-4) == 8


# ── Gates of attention ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "gates"), [("cbam", "places"), ("sigmoid", "channels")])
def test_the_attention_penalty_is_of_the_gates_after_their_sigmoid_and_is_added(kind, gates):
    """Mistakes: attention penalty before the sigmoid, or computed and never added."""
    chosen = model(attention={"kind": kind, "layers": ["conv2", "conv4"], "weight": 5})
    _, objective, output, images, values = seen_by(chosen)
    total, terms = objective(output, images, values)
    without, _ = Objective(model())(output, images)
    l1 = {layer: values[f"{layer}.{gates}"].abs().flatten(1).sum(1) for layer in ("conv2", "conv4")}
    for layer, expected in l1.items():
        numbers = values[f"{layer}.{gates}"]
        assert ((numbers > 0) & (numbers < 1)).all()
        torch.testing.assert_close(terms[f"attention/l1/{layer}"], expected.detach())
    torch.testing.assert_close(total, without + 5 * sum(l1.values()))


def test_the_attention_penalty_lowers_the_gates():
    chosen = model(attention={"kind": "sigmoid", "layers": ["conv2"], "weight": 1e3})
    network, objective, output, images, values = seen_by(chosen)
    objective(output, images, values)[0].mean().backward()
    assert (network.encoder.conv2.gates.channels.wide.bias.grad > 0).all()


def test_a_softmax_has_no_penalty_and_a_penalty_without_weight_is_only_logged():
    assert Objective(model(attention={"kind": "softmax", "layers": "everywhere"})).layers == ()
    chosen = model(attention={"kind": "sigmoid", "layers": ["conv2"], "weight": 0})
    _, objective, output, images, values = seen_by(chosen)
    total, terms = objective(output, images, values)
    assert terms["attention/l1/conv2"].min() > 0
    assert torch.equal(total, Objective(model())(output, images)[0])


# ── What a study may say ─────────────────────────────────────────────────────────────────────────────────────────


def test_words_choose_layers_and_none_is_no_term():
    def layers(words: object) -> set[str]:
        return set(Objective(model(sparsity=[{"penalty": "kl", "layers": words}])).layers)

    assert layers("everywhere") == {"conv1", "conv2", "conv3", "conv4", "conv5", "mu"}
    assert layers("all but conv1 and the means") == {"conv2", "conv3", "conv4", "conv5"}
    assert layers([1, "mu", 3]) == {"conv1", "conv3", "mu"}
    assert layers("none") == set()


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(StudyError, match="no layer 'conv9'"):
        Objective(model(sparsity=[{"penalty": "l1", "layers": ["conv9"]}]))
