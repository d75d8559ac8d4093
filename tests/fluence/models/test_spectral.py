"""Spectral normalisation: beside PyTorch's own, by its property, and through everything that a training does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from fluence.models import build, record
from fluence.models.layers import SpectralNorm, power_iterations_rest, spectral_norm
from fluence.training.distributed import first_pass_undone
from tests.fluence.models.every_model import model as settings_of

LAYERS = {
    "conv": lambda: nn.Conv2d(5, 7, 3),
    "depthwise": lambda: nn.Conv2d(6, 6, 5, groups=6),
    "transposed": lambda: nn.ConvTranspose2d(5, 7, 4),
    "linear": lambda: nn.Linear(9, 4),
}


@pytest.fixture(params=LAYERS)
def layer(request) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[request.param]()


def constrained(layer: nn.Module) -> nn.Module:
    spectral_norm(layer)
    return layer


def as_matrix(layer: nn.Module) -> torch.Tensor:
    """One row for each output, of the weight that is used."""
    weight = layer.weight.detach()
    return (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).flatten(1)


def constrained_layers(network: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in network.named_modules() if parametrize.is_parametrized(module)}


def power_method(matrix: torch.Tensor, v: torch.Tensor, steps: int) -> torch.Tensor:
    """σ, one multiplication after the other."""
    for _ in range(steps):
        u = matrix @ v
        u = u / u.norm()
        v = matrix.T @ u
        v = v / v.norm()
    return u @ matrix @ v


def test_it_is_what_pytorch_computes(layer):
    theirs, ours = parametrizations.spectral_norm(copy.deepcopy(layer)), constrained(copy.deepcopy(layer))
    reference, norm = theirs.parametrizations.weight[0], ours.parametrizations.weight[0]
    norm.u.copy_(reference._u)
    norm.v.copy_(reference._v)
    for _ in range(3):
        a, b = theirs.weight, ours.weight
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-7)
    mask = torch.randn(a.shape)
    gradients = [torch.autograd.grad((w * mask).sum(), o.parametrizations.weight.original)[0]
                 for w, o in ((a, theirs), (b, ours))]  # fmt: skip
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_it_is_the_power_method_written_out(layer):
    matrix = as_matrix(layer)
    start = constrained(layer).parametrizations.weight[0].v.clone()
    sigma = power_method(matrix, start, 4)
    for _ in range(4):
        weight = as_matrix(layer)
    torch.testing.assert_close(weight, matrix / sigma, rtol=1e-5, atol=1e-6)


def test_a_matrix_by_hand():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))  # singular values 3 and 1
    torch.testing.assert_close(constrained(layer).weight, torch.tensor([[1.0, 0.0], [0.0, 1 / 3]]))


@pytest.mark.parametrize(
    "settings",
    [{}, {"upsampling": "transposed", "residual": True}, {"separable": {"parts": ["encoder", "decoder"]}},
     {"architecture": "alexnet-10", "latent": {"kind": "dense", "size": 5}}],
    ids=str,
)  # fmt: skip
def test_after_some_passes_the_largest_singular_value_of_every_layer_is_one(settings):
    network = build(settings_of(norm="spectral", **settings), 32, 0)
    images = torch.rand(2, 3, 32, 32)
    for _ in range(60):
        with torch.no_grad():
            network(images)
    network.eval()
    layers = constrained_layers(network)
    convolutions = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    others = {n for n, m in network.named_modules() if isinstance(m, convolutions)} - set(layers)
    assert {name.removesuffix(".1") for name in others} == {"head.logvar"}  # it starts from zeros, and tanh limits it
    for name, layer in layers.items():
        assert torch.linalg.matrix_norm(as_matrix(layer), 2).item() == pytest.approx(1, abs=0.02), name


def test_each_part_can_have_its_own():
    def where(**norm: str) -> set[str]:
        layers = constrained_layers(build(settings_of(norm=norm, latent={"kind": "dense", "size": 5}), 32, 0))
        return {name.split(".")[0] for name in layers}

    assert where(encoder="spectral") == {"encoder"}
    assert where(latent="spectral") == {"head"}
    assert where(decoder="spectral", encoder="batch") == {"decoder"}
    assert where() == set()


def test_one_pass_is_one_iteration_also_when_layers_are_recorded():
    plain, recorded = (build(settings_of(norm="spectral"), 32, 0) for _ in range(2))
    images = torch.rand(2, 3, 32, 32)
    before = copy.deepcopy(plain.state_dict())
    plain(images)
    with record(recorded, "encoder", "pre"):
        recorded(images)
    after = plain.state_dict()
    assert all(torch.equal(value, recorded.state_dict()[name]) for name, value in after.items())
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in after if name.endswith((".u", ".v"))}


def test_eval_mode_moves_nothing(layer):
    constrained(layer).eval()
    before = copy.deepcopy(layer.state_dict())
    first, second = layer.weight, layer.weight
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_second_pass_at_other_weights_can_leave_the_vectors_alone(layer):
    """Mistake: what belongs to one step moves in both passes of sharpness-aware minimisation."""
    constrained(layer)
    norm, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    _ = layer.weight
    u, v = norm.u.clone(), norm.v.clone()
    with torch.no_grad():
        original.add_(0.1 * torch.randn_like(original))
    with power_iterations_rest(layer):
        weight = layer.weight
    assert torch.equal(norm.u, u)
    assert torch.equal(norm.v, v)
    matrix = original.detach().movedim(norm.output_dim, 0).flatten(1)
    torch.testing.assert_close(weight, original / (u @ matrix @ v))
    _ = layer.weight
    assert not torch.equal(norm.u, u)


def test_the_pass_before_training_is_taken_back():
    network = build(settings_of(norm="spectral"), 32, 0)
    before = copy.deepcopy(network.state_dict())
    with first_pass_undone(network):
        network(torch.rand(2, 3, 32, 32)).reconstruction.sum().backward()
        assert not torch.equal(network.encoder.conv1.conv.parametrizations.weight[0].u,
                               before["encoder.conv1.conv.parametrizations.weight.0.u"])  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_two_passes_before_one_backward_pass(layer):
    constrained(layer)
    first, second = layer.weight, layer.weight
    (first.square().sum() - second.sum()).backward()
    assert layer.parametrizations.weight.original.grad.abs().sum() > 0


def test_zeros_stay_zeros():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    weight = constrained(layer).weight
    assert torch.equal(weight, torch.zeros(2, 3))


def test_gradient_beside_differences():
    torch.manual_seed(0)
    norm = SpectralNorm(torch.randn(3, 4, dtype=torch.float64), output_dim=0).eval()
    assert torch.autograd.gradcheck(norm, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))


def test_mixed_precision_does_not_reach_the_constraint():
    exact, mixed = (build(settings_of(norm="spectral"), 32, 0) for _ in range(2))
    images = torch.rand(2, 3, 32, 32)
    exact(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed(images)
    assert all(torch.equal(value, mixed.state_dict()[name]) for name, value in exact.state_dict().items())
