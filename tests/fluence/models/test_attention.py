"""Gates: what they compute, that half precision does not break them, and where they stand."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from fluence.architectures import (
    attended_layers,
    constrained_layers,
    defeated_constraints,
    recordable_names,
)
from fluence.errors import StudyError
from fluence.models import build, record
from fluence.models.attention import GAMMA, OPEN, ZETA, ChannelGates, HardConcreteGates, PlaceGates, softmax_gates
from fluence.models.norms import SyncedBatchNorm2d
from tests.fluence.models.every_model import model

KINDS = ("cbam", "sigmoid", "softmax")


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gated(kind: str, layers: object = "everywhere", **settings: object):
    return build(model(attention={"kind": kind, "layers": layers, **settings}), 32, 0)


# ── Channels ─────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def slow_logits(gates: ChannelGates, image: torch.Tensor) -> torch.Tensor:
    """One image [C, H, W] through the perceptron twice, number by number."""
    total = torch.zeros(len(image), dtype=image.dtype)
    for pooled in ([channel.mean() for channel in image], [channel.max() for channel in image]):
        hidden = []
        for weights, bias in zip(gates.narrow.weight, gates.narrow.bias, strict=True):
            hidden.append(max(0.0, float(bias + sum(w * p for w, p in zip(weights, pooled, strict=True)))))
        for c, (weights, bias) in enumerate(zip(gates.wide.weight, gates.wide.bias, strict=True)):
            total[c] += float(bias + sum(w * h for w, h in zip(weights, hidden, strict=True)))
    return total


@pytest.fixture
def perceptron() -> ChannelGates:
    torch.manual_seed(0)
    gates = ChannelGates(8, 4, torch.sigmoid).double()
    for parameter in gates.parameters():
        nn.init.normal_(parameter)
    return gates


def test_channel_gates_against_a_slow_reference(perceptron):
    x = maps(3, 8, 5, 4)
    expected = torch.stack([1 / (1 + (-slow_logits(perceptron, image)).exp()) for image in x])
    torch.testing.assert_close(perceptron(x), expected)
    assert perceptron.narrow.weight.shape == (2, 8)


@pytest.mark.parametrize(("channels", "reduction", "narrow"), [(64, 16, 4), (40, 16, 2), (8, 16, 1), (5, 1, 5)])
def test_the_perceptron_is_narrow_and_starts_alive(channels, reduction, narrow):
    for seed in range(20):
        torch.manual_seed(seed)
        gates = ChannelGates(channels, reduction, torch.sigmoid)
        assert gates.narrow.out_features == narrow
        gates(maps(4, channels, 3, 3).float()).sum().backward()
        assert gates.narrow.weight.grad.abs().sum() > 0


def test_channel_gates_have_the_gradient_of_their_formula(perceptron):
    x = maps(2, 8, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(perceptron, (x,))


# ── Softmax ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_softmax_gates_worked_by_hand():
    """Logits ln 1, ln 2, ln 5 at t = 1: 3 · (1, 2, 5)/8; at t = ½ the weights are squared."""
    logits = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log()
    torch.testing.assert_close(softmax_gates(logits, 1.0), torch.tensor([[3.0, 6.0, 15.0]]).double() / 8)
    torch.testing.assert_close(softmax_gates(logits, 0.5), torch.tensor([[3.0, 12.0, 75.0]]).double() / 30)


@given(hnp.arrays("float64", (2, 6), elements=st.floats(-50, 50)), st.floats(0.05, 20))
@settings(deadline=None)  # torch is slow at its first call
def test_softmax_gates_keep_the_scale_and_forget_a_common_offset(values, temperature):
    logits = torch.from_numpy(values)
    gates = softmax_gates(logits, temperature)
    torch.testing.assert_close(gates.mean(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(softmax_gates(logits + 7, temperature), gates, rtol=1e-6, atol=1e-9)
    assert (gates[logits.argsort(1)[:, -1:].eq(torch.arange(6))] >= 1 - 1e-9).all()


def test_temperature_makes_gates_alike_or_one_sided():
    logits = torch.tensor([[0.0, 1.0, 3.0]])
    torch.testing.assert_close(softmax_gates(logits, 1e6), torch.ones(1, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(softmax_gates(logits, 1e-3), torch.tensor([[0.0, 0.0, 3.0]]))


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_extreme_logits_give_gates_and_gradients_that_are_finite(temperature):
    """Mistake: gates that overflow in half precision, after which every number is NaN."""
    logits = torch.tensor([[1e30, -1e30, 0.0], [-1e38, -1e38, -1e38], [3e38, -3e37, 1.0]], requires_grad=True)
    gates = softmax_gates(logits, temperature)
    (gates * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.isfinite(gates).all()
    assert torch.isfinite(logits.grad).all()
    torch.testing.assert_close(gates[1], torch.ones(3))


# ── Places ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_place_gates_against_a_slow_reference():
    torch.manual_seed(0)
    gates = PlaceGates().double()
    nn.init.normal_(gates.norm.weight)
    x = maps(2, 3, 4, 5)
    found = gates(x)
    kernel = gates.conv.weight[0]  # [2, 7, 7]: for the largest value, for the mean
    pooled = torch.stack([torch.stack([image.amax(0), image.mean(0)]) for image in x])
    raw = torch.zeros(2, 1, 4, 5, dtype=torch.float64)
    for b, i, j, di, dj in torch.cartesian_prod(*(torch.arange(n) for n in (2, 4, 5, 7, 7))).tolist():
        row, column = i + di - 3, j + dj - 3
        if 0 <= row < 4 and 0 <= column < 5:
            raw[b, 0, i, j] += (kernel[:, di, dj] * pooled[b, :, row, column]).sum()
    raw = (raw - raw.mean()) / (raw.var(correction=0) + gates.norm.eps).sqrt()
    torch.testing.assert_close(found, torch.sigmoid(raw * gates.norm.weight + gates.norm.bias))
    assert isinstance(gates.norm, SyncedBatchNorm2d)


# ── Half precision ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_of_half_precision_are_computed_in_float32(kind, dtype):
    """Mistake: sums and softmax in half precision. The mean of 4,096 values of 60,000 is 60,000, their sum infinite."""
    unit = gated(kind, layers=["conv1"]).encoder.conv1
    x = torch.full((2, 4, 64, 64), 60000.0).to(dtype)
    x[:, 1] = 0
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gates = unit.gates.channels(x)
    exact = unit.gates.channels(x.detach().float())
    assert gates.dtype == torch.float32
    torch.testing.assert_close(gates, exact)
    small = unit.gates((x / 60000).to(dtype))
    assert small.dtype == dtype
    small.float().sum().backward()
    assert torch.isfinite(small).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_with_extreme_weights_stays_finite(kind):
    """Mistake: many configurations of the predecessors went NaN."""
    network = gated(kind, reduction=1)
    for name, parameter in network.named_parameters():
        if ".gates.channels.wide" in name:
            nn.init.normal_(parameter, std=1e4, generator=torch.Generator().manual_seed(0))
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(images)
    output.reconstruction.sum().backward()
    assert torch.isfinite(output.reconstruction).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


# ── Where they stand ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_gates_multiply_what_a_layer_passes_on_without_a_residual(kind):
    """CBAM's places see what its channels let through; nothing is added."""
    network = gated(kind).eval()
    unit, x = network.encoder.conv2, torch.rand(2, 4, 8, 8)
    with torch.no_grad():
        activity = unit.activation(unit.norm(unit.conv(x)))
        expected = activity * unit.gates.channels(activity)[:, :, None, None]
        if kind == "cbam":
            expected = expected * unit.gates.places(expected)
        torch.testing.assert_close(unit(x), expected)


def test_the_recorded_layer_is_gated_and_its_gates_are_what_multiplied_it():
    network = gated("cbam", layers=["conv3"]).eval()
    images = torch.rand(3, 3, 32, 32)
    with record(network, "encoder", "post") as after, torch.no_grad():
        network(images)
    with record(network, "encoder", "pre") as before, torch.no_grad():
        network(images)
    gates = after.values["conv3.channels"][:, :, None, None] * after.values["conv3.places"]
    torch.testing.assert_close(after.values["conv3"], before.values["conv3"].relu() * gates)
    assert torch.equal(after.values["conv3.places"], before.values["conv3.places"])
    shapes = {info.name: info.shape for info in network.recordable if info.kind == "gate"}
    assert shapes == {"conv3.channels": (8,), "conv3.places": (1, 4, 4)}
    assert [info.name for info in network.recordable][2:5] == ["conv3", "conv3.channels", "conv3.places"]


@pytest.mark.parametrize("kind", KINDS)
def test_gates_of_a_fresh_network_are_open(kind):
    network = gated(kind).eval()
    with record(network, "encoder", "post") as recorder, torch.no_grad():
        network(torch.rand(4, 3, 32, 32))
    start = 1.0 if kind == "softmax" else OPEN
    for name, value in recorder.values.items():
        if name.endswith(".channels"):
            torch.testing.assert_close(value, torch.full_like(value, start), rtol=0.2, atol=0)


def test_gates_on_no_layer_change_nothing():
    plain, other = build(model(), 32, 0).state_dict(), gated("cbam", layers="none").state_dict()
    assert plain.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in plain.items())


# ── Hard concrete gates ──────────────────────────────────────────────────────────────────────────────────────────


def test_hard_concrete_gates_against_the_paper():
    """Louizos et al. 2018, eq. 10 and 11, from uniform numbers."""
    gates = HardConcreteGates(4, temperature=2 / 3).double()
    nn.init.normal_(gates.log_alpha, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u = torch.distributions.Normal(0.0, 1.0).cdf(noise)
    s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + gates.log_alpha) / (2 / 3))
    torch.testing.assert_close(gates(noise), torch.clamp(s * 1.2 - 0.1, 0, 1))


def test_deterministic_gate_worked_by_hand():
    """log α = ln 9: σ = .9, stretched to .98. log α = ∓10: 0 and 1 exactly."""
    gates = HardConcreteGates(3, temperature=0.5)
    gates.log_alpha.data = torch.tensor([math.log(9), -10.0, 10.0])
    torch.testing.assert_close(gates(None), torch.tensor([[0.98, 0.0, 1.0]]))
    assert gates(None)[0, 1:].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("temperature", [0.2, 2 / 3, 0.9])
def test_expected_number_of_open_channels_is_what_sampling_gives(temperature):
    gates = HardConcreteGates(5, temperature)
    gates.log_alpha.data = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0])
    noise = torch.randn(100_000, 5, generator=torch.Generator().manual_seed(0))
    share_open = (gates(noise) > 0).float().mean(0)
    by_hand = [1 / (1 + math.exp(temperature * math.log(-GAMMA / ZETA) - a)) for a in gates.log_alpha.tolist()]
    torch.testing.assert_close(share_open, torch.tensor(by_hand), rtol=0, atol=0.01)
    assert gates.expected_open().item() == pytest.approx(sum(by_hand), rel=1e-5)


def test_hard_concrete_gates_start_open_and_survive_extreme_noise():
    gates = HardConcreteGates(64, 2 / 3)
    assert torch.allclose(gates.log_alpha.sigmoid(), torch.tensor(OPEN))
    noise = torch.tensor([-40.0, -8.0, 0.0, 8.0, 40.0])[:, None].expand(5, 64)
    found = gates(noise)
    found.sum().backward()
    assert found[:, 0].tolist()[::4] == [0.0, 1.0]
    assert torch.isfinite(gates.log_alpha.grad).all()


def test_l0_gates_draw_for_each_image_in_training_and_not_in_eval():
    network = build(model(sparsity=[{"penalty": "l0", "layers": ["conv2"]}]), 32, 0)
    latent = math.prod(network.latent_shape)
    assert network.noise_shape == (latent + 4,)
    images = torch.rand(1, 3, 32, 32).expand(4, -1, -1, -1)
    noise = torch.zeros(4, latent + 4)
    noise[1:, latent:] = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    noise[0, latent] = -9  # closes the first channel of the first image
    with record(network, ["conv2"], "post") as recorder, torch.no_grad():
        network(images, noise)
        values = recorder.take()["conv2"]
        network.eval()(images, noise)
        in_eval = recorder.take()["conv2"]
        ungated = network.encoder.conv2.activation(network.encoder.conv2.conv(network.encoder.conv1(2 * images - 1)))
    l0 = network.encoder.conv2.gates.l0
    torch.testing.assert_close(values, ungated * l0(noise[:, latent:])[:, :, None, None])
    assert not values[0, 0].any()
    torch.testing.assert_close(in_eval, ungated * 0.98)


# ── What a study may say ─────────────────────────────────────────────────────────────────────────────────────────


def test_words_leave_the_code_out_and_its_name_is_refused():
    everywhere = model(attention={"kind": "softmax", "layers": "everywhere"})
    assert attended_layers(everywhere) == ("conv1", "conv2", "conv3", "conv4", "conv5")
    for layers in (["mu"], [2, 6]):
        with pytest.raises(
            StudyError, match=r"models\.\*\.attention: the code \(mu\) has no gates; choose among conv1"
        ):
            gated("sigmoid", layers=layers)
    with pytest.raises(StudyError, match=r"models\.\*\.sparsity: the code \(mu\) has no gates"):
        build(model(sparsity=[{"penalty": "l0", "layers": ["conv1", "mu"]}]), 32, 0)


def test_the_short_form_names_layers_by_their_numbers():
    settings = model(architecture="vgg16-5", attention="57-5.0")
    assert attended_layers(settings) == ("conv3_1", "conv3_3")
    assert settings.attention.temperature == 5.0
    assert [name for name in recordable_names(settings) if "." in name] == ["conv3_1.channels", "conv3_3.channels"]


def test_a_layer_is_constrained_once_by_each_penalty():
    twice = [{"penalty": "kl", "layers": ["conv1"]}, {"penalty": "kl", "layers": "everywhere", "rho": 0.1}]
    with pytest.raises(StudyError, match=r"models\.\*\.sparsity: two kl constraints hold for conv1"):
        build(model(sparsity=twice), 32, 0)
    both = model(sparsity=[{"penalty": "kl", "layers": ["conv1"]}, {"penalty": "l1", "layers": [1, 2]}])
    assert [(each.penalty, name) for each, name in constrained_layers(both)] == [
        ("kl", "conv1"), ("l1", "conv1"), ("l1", "conv2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("norm", "penalty", "layers", "defeated"),
    [
        ("instance", "kl", ["conv2", "mu"], ("conv2",)),
        ("instance", "kl", ["mu"], ()),
        ("instance", "l1", ["conv2"], ()),
        ("batch", "kl", ["conv2"], ()),
        ({"decoder": "instance"}, "kl", ["conv2"], ()),
    ],
)
def test_instance_norm_defeats_a_kl_constraint(norm, penalty, layers, defeated):
    settings = model(norm=norm, sparsity=[{"penalty": penalty, "layers": layers}])
    assert defeated_constraints(settings) == defeated
