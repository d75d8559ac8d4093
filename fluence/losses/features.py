"""Frozen networks whose features are compared, one builder for each kind, and the loss that compares them.

A feature network takes images [B, 3, H, W] in [0, 1] and names of its layers, and returns their values [B, C, h, w].
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluence.errors import ArtifactError, StudyError
from fluence.losses.networks import (
    VGG_BLOCKS,
    VGG_CHANNELS,
    check_feature_layers,
    check_image_for,
    default_layers,
    layer_names,
    network_name,
    smallest_px,
)
from fluence.store.pretrained import find_weights
from fluence.study import AttganFeatures, DfcLoss, FaceFeatures, ModelFeatures, VggFeatures

RANDOM_SEED = 0
"""Seed of networks with random weights: they are the same in every training."""

IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in [0, 1]: what torchvision's weights were trained with."""
VGGFACE_MEAN = (129.1863, 104.7624, 93.5940)
"""Of RGB in [0, 255]: what `vgg_face_dag` subtracts."""
ATTGAN_SLOPE, PORT_SLOPE = 0.2, 0.01
"""Slope of AttGAN's leaky ReLU below 0: He et al. 2019, and of its PyTorch port, whose layers are `enc_layers.*`."""
_PORT_PREFIX = "enc_layers.0.layers.0."

State = dict[str, Tensor]


class FrozenNetwork(nn.Module):
    """A network that learns nothing: eval mode for ever, so that no statistics drift, and no gradient of its weights.

    Attributes:
        layers: names of the layers whose values it can return, in the order of the forward pass.
        default_layers: those that are compared where a study names none.
    """

    layers: tuple[str, ...] = ()
    default_layers: tuple[str, ...] = ()

    def freeze(self) -> None:
        """To be called once, when everything is in place."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Stays in eval mode, whatever is asked for."""
        return super().train(False)


class ConvFeatures(FrozenNetwork):
    """A chain of convolutions behind the scaling of images that it was trained with."""

    factor: Tensor
    mean: Tensor
    sd: Tensor

    def __init__(
        self,
        steps: OrderedDict[str, nn.Module],
        kind: str,
        *,
        factor: float,
        mean: Sequence[float],
        sd: Sequence[float],
    ) -> None:
        """`steps` by name; what they see is (factor · image − mean) / sd, channel by channel."""
        super().__init__()
        self.kind, self.layers, self.default_layers = kind, layer_names(kind), default_layers(kind)
        self.steps = nn.Sequential(steps)
        self.register_buffer("factor", torch.tensor(factor))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("sd", torch.tensor(sd).view(3, 1, 1))
        self.freeze()

    def forward(self, images: Tensor, layers: Sequence[str]) -> tuple[Tensor, ...]:
        """Goes no further than the last layer asked for.

        Raises:
            StudyError: the images are too small for it.
        """
        check_image_for(f"DFC ({self.kind})", min(images.shape[-2:]), max(map(smallest_px, layers)))
        x, values = (self.factor * images - self.mean) / self.sd, {}
        for name, step in self.steps.named_children():
            x = step(x)
            if name in layers:
                values[name] = x
            if len(values) == len(layers):
                break
        return tuple(values[name] for name in layers)


class DfcDistance(nn.Module):
    """Half the mean squared difference of the features in a layer, summed over layers: [B, 3, H, W] twice → [B].

    Source: Hou et al. 2017, section 3.2.
    """

    def __init__(self, network: FrozenNetwork, layers: Sequence[str]) -> None:
        super().__init__()
        self.network, self.layers = network, tuple(layers)

    def forward(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        """Images in [0, 1] → [B], at least 0. The features of the originals are constants."""
        with torch.no_grad():
            wanted = self.network(original, self.layers)
        found = self.network(reconstruction, self.layers)
        distances = [(a - b).square().flatten(1).mean(1) for a, b in zip(found, wanted, strict=True)]
        return 0.5 * torch.stack(distances).sum(0)


def dfc_distance(loss: DfcLoss, trained: Mapping[str, nn.Module]) -> DfcDistance:
    """The distance that a study's DFC loss means.

    Args:
        loss: its settings.
        trained: models of the same study, frozen, by `ModelFeatures.label`.

    Raises:
        StudyError: weights are missing, or the network has no such layer.
        ArtifactError: a weights file is damaged, or holds another network.
    """
    network = BUILDERS[loss.network.kind](loss, trained)
    check_feature_layers(loss, network.layers)
    return DfcDistance(network, loss.layers or network.default_layers)


# ── Kinds of network ─────────────────────────────────────────────────────────────────────────────────────────────


def _trained_model(loss: DfcLoss, trained: Mapping[str, nn.Module]) -> FrozenNetwork:
    network = loss.network
    found = trained.get(network.label) if isinstance(network, ModelFeatures) else None
    if not isinstance(found, FrozenNetwork):
        raise StudyError(
            f"models.*.reconstruction: the trained model {network_name(network)} is not at hand; there are: "
            f"{', '.join(trained) or 'none'}"
        )
    return found


def _imagenet_vgg(loss: DfcLoss, trained: Mapping[str, nn.Module]) -> FrozenNetwork:
    return _vgg(loss, factor=1.0, mean=IMAGENET_MEAN, sd=IMAGENET_SD)


def _vggface(loss: DfcLoss, trained: Mapping[str, nn.Module]) -> FrozenNetwork:
    return _vgg(loss, factor=255.0, mean=VGGFACE_MEAN, sd=(1.0, 1.0, 1.0))


def _vgg(loss: DfcLoss, *, factor: float, mean: Sequence[float], sd: Sequence[float]) -> FrozenNetwork:
    """The convolutions of a VGG, up to the last layer that is compared."""
    network = loss.network
    if not isinstance(network, VggFeatures | FaceFeatures):
        raise TypeError(f"{network.kind} is no VGG")
    path = find_weights(network.kind, network.weights, f"DFC ({network.kind})")
    check_feature_layers(loss, layer_names(network.kind))
    steps = _vgg_steps(network.kind, loss.layers or default_layers(network.kind))
    if path is not None:
        _fill_vgg(steps, _read_state(path), path, network.kind)
    return ConvFeatures(steps, network.kind, factor=factor, mean=mean, sd=sd)


def _vgg_steps(kind: str, layers: Sequence[str]) -> OrderedDict[str, nn.Module]:
    """conv1_1, relu1_1, …, pool1, conv2_1, … with random weights."""
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    channels, left = 3, set(layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        for i, num in enumerate(VGG_BLOCKS[kind], 1):
            for j in range(1, num + 1):
                steps[f"conv{i}_{j}"] = _conv(channels, VGG_CHANNELS[i - 1], 3, padding=1)
                steps[f"relu{i}_{j}"] = nn.ReLU()
                channels = VGG_CHANNELS[i - 1]
                left.discard(f"relu{i}_{j}")
                if not left:
                    return steps
            steps[f"pool{i}"] = nn.MaxPool2d(2)
    return steps


def _conv(in_channels: int, out_channels: int, kernel_px: int, **settings: Any) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_px, **settings)
    nn.init.kaiming_normal_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _fill_vgg(steps: Mapping[str, nn.Module], state: State, path: Path, kind: str) -> None:
    """Weights by the names `conv1_1.weight` …, or by torchvision's, whose `features.N` counts every step from 0."""
    for number, (name, step) in enumerate(steps.items()):
        if not isinstance(step, nn.Conv2d):
            continue
        prefix = name if f"{name}.weight" in state else f"features.{number}"
        for part, parameter in step.named_parameters():
            value = state.get(f"{prefix}.{part}")
            if value is None or value.shape != parameter.shape:
                found = f"with the shape {tuple(value.shape)}" if value is not None else "missing"
                raise ArtifactError(
                    f"{path} holds no {kind}: {name}.{part}, or torchvision's features.{number}.{part}, should have "
                    f"the shape {tuple(parameter.shape)} and is {found}; the file's names begin with: {_begin(state)}"
                )
            parameter.data.copy_(value)


def _attgan(loss: DfcLoss, trained: Mapping[str, nn.Module]) -> FrozenNetwork:
    """AttGAN's encoder: 4 × 4 convolutions of stride 2, each with batch normalisation and a leaky ReLU."""
    network = loss.network
    if not isinstance(network, AttganFeatures):
        raise TypeError(f"{network.kind} is no AttGAN")
    path = find_weights("attgan", network.weights, "DFC (attgan)")
    state = _read_state(path) if path else {}
    blocks = list(_attgan_blocks(state, path)) if path else list(_random_attgan())
    slope = PORT_SLOPE if any(name.startswith(_PORT_PREFIX) for name in state) else ATTGAN_SLOPE
    slope = slope if network.slope is None else network.slope
    layers = zip(layer_names("attgan"), blocks, strict=True)
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    for name, block in layers:
        steps[name] = nn.Sequential(*block, nn.LeakyReLU(slope))
    return ConvFeatures(steps, "attgan", factor=2.0, mean=(1.0, 1.0, 1.0), sd=(1.0, 1.0, 1.0))


def _random_attgan() -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        channels = (3, 64, 128, 256, 512, 1024)
        for before, after in itertools.pairwise(channels):
            yield _conv(before, after, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(after)


def _attgan_blocks(state: State, path: Path) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The five convolutions with their normalisations, found by order and shape, whatever their names.

    The first is the one that takes three channels and is followed by one that takes what it gives; and so on. Behind
    each stand the four statistics of its normalisation. A decoder may follow.
    """
    names = list(state)
    convs = [number for number, name in enumerate(names) if state[name].ndim == 4]
    shapes = [tuple(state[names[number]].shape) for number in convs]
    starts = [at for at, (a, b) in enumerate(itertools.pairwise(shapes)) if (*a[1:], *b[1:]) == (3, 4, 4, a[0], 4, 4)]
    if len(starts) != 1:
        what = "no first convolution" if not starts else f"{len(starts)} first convolutions"
        raise ArtifactError(
            f"{path} holds {what} of an encoder (weights of the shape [C, 3, 4, 4], then [D, C, 4, 4]); save the state "
            f"dict of AttGAN's generator or encoder alone; its names begin with: {_begin(state)}"
        )
    convs = convs[starts[0] :]
    channels = 3
    for layer, start, end in zip(layer_names("attgan"), convs, [*convs[1:], len(names)], strict=False):
        weight, behind = state[names[start]], {name: state[name] for name in names[start + 1 : end]}
        if weight.shape[1:] != (channels, 4, 4):
            raise ArtifactError(f"{path}: {layer}, {names[start]}, has the shape {list(weight.shape)}; it should take "
                                f"the {channels} channels of the layer before with 4 × 4 filters")  # fmt: skip
        channels = len(weight)
        yield _attgan_block(names[start], weight, behind, path)
    if len(convs) < len(layer_names("attgan")):
        raise ArtifactError(f"{path} holds {len(convs)} convolutions of AttGAN's encoder; it has five")


def _attgan_block(name: str, weight: Tensor, behind: State, path: Path) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution, with a bias if it has one of its own, and the first batch normalisation behind it."""
    owners = [other.removesuffix(".running_mean") for other in behind if other.endswith(".running_mean")]
    parts = [f"{owner}.{part}" for owner in owners[:1] for part in ("weight", "bias", "running_mean", "running_var")]
    if not parts or any(part not in behind or behind[part].shape != weight.shape[:1] for part in parts):
        raise ArtifactError(
            f"{path}: {name} is not followed by a batch normalisation with weight, bias, running_mean and running_var "
            f"of {len(weight)} channels; what follows: {_begin(behind)}"
        )
    norm = nn.BatchNorm2d(len(weight))
    norm.load_state_dict({part.rpartition(".")[2]: behind[part] for part in parts}, strict=False)
    bias = behind.get(name.removesuffix("weight") + "bias")
    conv = nn.Conv2d(weight.shape[1], len(weight), 4, stride=2, padding=1, bias=bias is not None)
    conv.load_state_dict({"weight": weight} | ({"bias": bias} if bias is not None else {}))
    return conv, norm


BUILDERS: dict[str, Callable[[DfcLoss, Mapping[str, nn.Module]], FrozenNetwork]] = {
    "vgg16": _imagenet_vgg,
    "vgg19": _imagenet_vgg,
    "vggface": _vggface,
    "attgan": _attgan,
    "model": _trained_model,
}
"""What makes the network of each kind."""


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_state(path: Path) -> State:
    """A state dict, also one that lies under `state_dict` or `G`, or that DataParallel has prefixed with `module.`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ArtifactError(
            f"{path} cannot be read as a state dict ({type(error).__name__}: {str(error).partition(chr(10))[0]}); it "
            f"has to be what `torch.save(network.state_dict(), path)` writes"
        ) from error
    for key in ("state_dict", "G"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ArtifactError(f"{path} holds no state dict, which maps names to tensors")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _begin(state: State) -> str:
    return ", ".join(list(state)[:4]) or "none"
