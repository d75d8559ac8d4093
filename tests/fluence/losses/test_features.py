"""Feature networks compute what their authors' do, stay as they are, and are never random by accident."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from fluence.errors import ArtifactError, StudyError
from fluence.losses import Objective
from fluence.losses.features import BUILDERS, IMAGENET_MEAN, IMAGENET_SD, DfcDistance, FrozenNetwork, dfc_distance
from fluence.losses.networks import check_perceptual_losses, layer_names
from fluence.study import DfcLoss, Features, VaeModel

SIZE_PX = 32


def images(number: int = 2, seed: int = 0, size_px: int = SIZE_PX, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(number, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loss(layers: Sequence[str] | None = None, **network: Any) -> DfcLoss:
    return DfcLoss.model_validate({"loss": "dfc", "layers": layers, "network": network})


class Tiny(FrozenNetwork):
    """Two layers: the image, and a convolution of it with batch normalisation."""

    layers = default_layers = ("pixels", "edges")

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.edges = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Softplus())
        self.freeze()

    def forward(self, x: Tensor, layers: Sequence[str]) -> tuple[Tensor, ...]:
        return tuple(x if name == "pixels" else self.edges(x) for name in layers)


# ── The distance ─────────────────────────────────────────────────────────────────────────────────────────────────


def slow_dfc(features: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """Hou et al. 2017, section 3.2, number by number: Σ_l 1/(2 C W H) Σ_c Σ_w Σ_h (Φ(x) − Φ(x̄))²."""
    totals = []
    for image in range(len(features[0][0])):
        total = 0.0
        for found, wanted in features:
            channels, height, width = found.shape[1:]
            squares = 0.0
            for c in range(channels):
                for h in range(height):
                    for w in range(width):
                        squares += float(found[image, c, h, w] - wanted[image, c, h, w]) ** 2
            total += squares / (2 * channels * width * height)
        totals.append(total)
    return totals


def test_against_the_paper_number_by_number():
    network = Tiny().double()
    x, y = images(size_px=5, dtype=torch.float64), images(seed=1, size_px=5, dtype=torch.float64)
    expected = slow_dfc(list(zip(network(x, network.layers), network(y, network.layers), strict=True)))
    assert DfcDistance(network, network.layers)(x, y).tolist() == pytest.approx(expected, rel=1e-12)


def test_by_hand():
    """Differences of ½ everywhere in image 0, of 1 in one of 12 numbers in image 1: ½ · ¼ and ½ · 1/12."""
    x, y = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    x[0] += 0.5
    y[1, 2, 0, 1] = 1
    assert DfcDistance(Tiny(), ("pixels",))(x, y).tolist() == pytest.approx([1 / 8, 1 / 24])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_is_a_symmetric_positive_sum_over_layers(seed):
    network, x, y = Tiny(), images(seed=seed, size_px=6), images(seed=seed + 1, size_px=6)
    distance = {name: DfcDistance(network, (name,)) for name in network.layers}
    both = DfcDistance(network, network.layers)
    assert both(x, x).tolist() == [0, 0]
    assert (both(x, y) > 0).all()
    torch.testing.assert_close(both(x, y), both(y, x))
    torch.testing.assert_close(both(x, y), distance["pixels"](x, y) + distance["edges"](x, y))


def test_gradient_in_float64():
    network = Tiny().double()
    x = images(1, size_px=4, dtype=torch.float64).requires_grad_()
    y = images(1, seed=1, size_px=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: DfcDistance(network, network.layers)(x, y), (x,))


def test_the_originals_are_constants():
    x, y = images().requires_grad_(), images(seed=1).requires_grad_()
    DfcDistance(Tiny(), ("edges",))(x, y).sum().backward()
    assert x.grad.abs().sum() > 0
    assert y.grad is None


# ── VGG ──────────────────────────────────────────────────────────────────────────────────────────────────────────

STEPS_TO_RELU3_1 = 12


@pytest.fixture(scope="module")
def their_vgg() -> nn.Sequential:
    """torchvision's VGG19, up to relu3_1, which VGG16 begins with, too."""
    torch.manual_seed(1)
    return nn.Sequential(*list(make_layers(cfgs["E"]))[:STEPS_TO_RELU3_1]).eval()


def save(path: Path, state: dict[str, Any]) -> str:
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="module")
def vgg_file(their_vgg, tmp_path_factory) -> str:
    state = {f"features.{name}": value for name, value in their_vgg.state_dict().items()}
    return save(tmp_path_factory.mktemp("weights") / "vgg.pth", state | {"classifier.0.weight": torch.zeros(2, 2)})


def theirs(vgg: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    """The three default layers: outputs of steps 1, 6 and 11."""
    values = {}
    for number, step in enumerate(vgg):
        x = step(x.clone())  # torchvision's ReLUs work in place
        values[number] = x.clone()
    return {"relu1_1": values[1], "relu2_1": values[6], "relu3_1": values[11]}


@pytest.mark.parametrize("kind", ["vgg16", "vgg19"])
def test_vgg_is_torchvisions_behind_the_scaling_of_imagenet(kind, their_vgg, vgg_file):
    distance = dfc_distance(loss(kind=kind, weights=vgg_file), {})
    x = images()
    scaled = (x - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_SD).view(3, 1, 1)
    expected = theirs(their_vgg, scaled)
    assert distance.layers == tuple(expected)
    for found, wanted in zip(distance.network(x, distance.layers), expected.values(), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("layout", ["conv1_1", "features", "module.conv1_1"])
def test_vggface_sees_0_to_255_less_its_mean(layout, their_vgg, tmp_path):
    names = {0: "conv1_1", 2: "conv1_2", 5: "conv2_1", 7: "conv2_2", 10: "conv3_1"}
    state = {}
    for number, name in names.items():
        prefix = f"features.{number}" if layout == "features" else layout.replace("conv1_1", name)
        state |= {f"{prefix}.{part}": getattr(their_vgg[number], part) for part in ("weight", "bias")}
    path = save(tmp_path / "vgg_face_dag.pth", state | {"fc6.weight": torch.zeros(2, 2)})
    distance = dfc_distance(loss(kind="vggface", weights=path), {})
    x = images()
    expected = theirs(their_vgg, 255 * x - torch.tensor([129.1863, 104.7624, 93.5940]).view(3, 1, 1))
    for found, wanted in zip(distance.network(x, distance.layers), expected.values(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_layers_of_vgg19_can_be_chosen():
    """VAE-345 of Hou et al. 2017; VGG19 has a fourth convolution in its third block."""
    assert [name for name in layer_names("vgg19") if name.startswith("relu3")] == [f"relu3_{i}" for i in range(1, 5)]
    assert "relu3_4" not in layer_names("vgg16")
    distance = dfc_distance(loss(["relu3_1", "relu4_1", "relu5_1"], kind="vgg19", weights="random"), {})
    shapes = [tuple(value.shape[1:]) for value in distance.network(images(1), distance.layers)]
    assert shapes == [(256, 8, 8), (512, 4, 4), (512, 2, 2)]


def test_a_layer_that_does_not_exist():
    with pytest.raises(
        StudyError, match=r"vgg16_random has no layer 'relu3_4'; did you mean 'relu3_\d'\? Allowed: relu"
    ):
        dfc_distance(loss(["relu3_4"], kind="vgg16", weights="random"), {})


def test_a_file_of_another_network(tmp_path):
    path = save(tmp_path / "other.pth", {"conv1_1.weight": torch.zeros(96, 3, 7, 7)})
    with pytest.raises(ArtifactError, match=r"other\.pth holds no vggface: conv1_1\.weight.*is with the shape \(96, 3"):
        dfc_distance(loss(kind="vggface", weights=path), {})


# ── AttGAN ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Block(nn.Module):
    """A layer of the PyTorch port: `layers.0` convolves, `layers.1` normalises."""

    def __init__(self, before: int, after: int, bias: bool = False) -> None:
        super().__init__()
        conv = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=bias)
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(after), nn.LeakyReLU())


class Port(nn.Module):
    """The port's generator, narrow: an encoder whose statistics have moved, and a decoder that looks like it."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        channels = (3, 4, 8, 16, 32, 64)
        pairs = list(itertools.pairwise(channels))
        self.enc_layers = nn.ModuleList(Block(before, after, bias) for before, after in pairs)
        self.dec_layers = nn.ModuleList(nn.ConvTranspose2d(after, before, 4) for before, after in reversed(pairs))
        for block in self.enc_layers:
            norm = block.layers[1]
            for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                values.uniform_(0.5, 1.5)

    def encode(self, x: Tensor, slope: float) -> list[Tensor]:
        values = []
        for block in self.enc_layers:
            x = nn.functional.leaky_relu(block.layers[1](block.layers[0](x)), slope)
            values.append(x)
        return values


@pytest.fixture
def port() -> Port:
    torch.manual_seed(4)
    return Port().eval()


@pytest.mark.parametrize(("slope", "expected"), [(None, 0.01), (0.2, 0.2)])
def test_attgan_as_the_port_saves_it(port, slope, expected, tmp_path):
    state = {"G": port.state_dict(), "D": {"conv.0.weight": torch.zeros(4, 3, 4, 4)}, "optim_G": {"state": {}}}
    path = save(tmp_path / "weights.199.pth", state)
    distance = dfc_distance(loss(kind="attgan", weights=path, slope=slope), {})
    x = images(dtype=torch.float32)
    for found, wanted in zip(distance.network(x, distance.layers), port.encode(2 * x - 1, expected), strict=True):
        torch.testing.assert_close(found, wanted)
    assert distance.layers == ("conv1", "conv2", "conv3", "conv4", "conv5")


def test_attgan_by_order_and_shape_whatever_the_names(tmp_path):
    torch.manual_seed(5)
    port = Port(bias=True).eval()
    state = {f"encoder.{name.replace('layers', 'part')}": v for name, v in port.enc_layers.state_dict().items()}
    distance = dfc_distance(loss(kind="attgan", weights=save(tmp_path / "mine.pth", state)), {})
    x = images()
    for found, wanted in zip(distance.network(x, distance.layers), port.encode(2 * x - 1, 0.2), strict=True):
        torch.testing.assert_close(found, wanted)


def without(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: without(state, "enc_layers.0"), "holds no first convolution of an encoder"),
        (
            lambda state: state | {f"D.{name}": value for name, value in state.items()},
            "holds 2 first convolutions of an encoder",
        ),
        (lambda state: without(state, "running_mean"), r"enc_layers\.0\.layers\.0\.weight is not followed by a batch"),
        (lambda state: without(state, "enc_layers.2"), r"conv3, .*has the shape .*should take the 8 channels"),
        (lambda state: without(without(state, "enc_layers.4"), "dec"), "holds 4 convolutions of AttGAN's encoder"),
        (lambda state: {"weights": [1, 2]}, "holds no state dict"),
    ],
)
def test_a_file_that_holds_no_attgan(change, words, port, tmp_path):
    path = save(tmp_path / "other.pth", change(port.state_dict()))
    with pytest.raises(ArtifactError, match=rf"other\.pth.*{words}"):
        dfc_distance(loss(kind="attgan", weights=path), {})


def test_statistics_do_not_drift(port, tmp_path):
    """Mistake: feature network of a DFC loss back in train mode, its BatchNorm drifting."""
    path = save(tmp_path / "weights.pth", port.state_dict())
    model = VaeModel.model_validate({"kind": "vae", "reconstruction": [loss(kind="attgan", weights=path)]})
    objective = Objective(model)
    network = next(module for module in objective.modules() if isinstance(module, FrozenNetwork))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    first = network(images(), network.layers)
    objective.train()
    assert not any(module.training for module in network.modules())
    assert all(map(torch.equal, network(images(), network.layers), first))
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert not any(parameter.requires_grad for parameter in objective.parameters())


# ── Every kind ───────────────────────────────────────────────────────────────────────────────────────────────────

RANDOM = {kind: {"kind": kind, "weights": "random"} for kind in ("vgg16", "vgg19", "vggface", "attgan")}


def test_every_kind_of_the_schema_has_a_builder():
    schema = TypeAdapter(Features).json_schema()
    assert set(BUILDERS) == set(schema["discriminator"]["mapping"]) == {*RANDOM, "model"}


@pytest.mark.parametrize("kind", RANDOM)
def test_random_weights_are_named_and_the_same_every_time(kind):
    settings = VaeModel.model_validate({"kind": "vae", "reconstruction": [{"loss": "dfc", "network": RANDOM[kind]}]})
    torch.manual_seed(9)
    state = torch.get_rng_state()
    objective, again = Objective(settings), Objective(settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert f"reconstruction/dfc_{kind}_random" in objective._terms
    values = again.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in objective.state_dict().items())


@pytest.mark.parametrize("kind", RANDOM)
def test_images_that_are_too_small_are_refused_and_no_others(kind):
    settings = VaeModel.model_validate({"kind": "vae", "reconstruction": [{"loss": "dfc", "network": RANDOM[kind]}]})
    smallest_px = 32 if kind == "attgan" else 4
    check_perceptual_losses(settings, smallest_px)
    distance = dfc_distance(settings.reconstruction[0], {})
    x = images(size_px=smallest_px)
    assert distance(x, 1 - x).isfinite().all()
    with pytest.raises(StudyError, match=rf"DFC \({kind}\) needs images of at least {smallest_px} × {smallest_px} px"):
        distance(x[..., 1:], x[..., 1:])
    with pytest.raises(StudyError, match=rf"data\.image_size_px: DFC \({kind}\) needs"):
        check_perceptual_losses(settings, smallest_px - 1)


@pytest.mark.parametrize(
    "network", [{"kind": "vgg19"}, {"kind": "vggface", "weights": "face.pth"}, {"kind": "attgan", "weights": "gan.pth"}]
)
def test_missing_weights_are_an_error_and_never_random(network, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=rf"DFC \({network['kind']}\).*(not in|there is no weights file)"):
        dfc_distance(loss(**network), {})


def test_a_trained_model_has_to_be_given():
    settings = loss(kind="model", model="plain", group="a-female")
    with pytest.raises(StudyError, match="trained model plain-a-female is not at hand; there are: plain-all"):
        dfc_distance(settings, {"plain-all": Tiny()})
    assert dfc_distance(settings, {"plain-a-female": Tiny()}).layers == ("pixels", "edges")
    with pytest.raises(StudyError, match="has no layer 'edge'; did you mean 'edges'"):
        dfc_distance(loss(["edge"], kind="model", model="plain"), {"plain-all": Tiny()})
