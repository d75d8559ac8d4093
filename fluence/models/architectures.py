"""What the architectures consist of: names, channels and strides, as plain tables without torch.

`fluence check` reads them on machines that have no time for torch; `fluence.models.encoders` and
`fluence.models.decoders` build networks from them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from fluence.errors import StudyError
from fluence.study import (
    ArVaeModel,
    CbamAttention,
    ConvLatent,
    KlSparsity,
    L0Sparsity,
    Layers,
    Model,
    Sparsity,
)

LATENT_LAYER = "mu"
"""Name under which the means of the latent distribution are recorded."""

CHANNELS, PLACES = "channels", "places"
"""What the names of a layer's attention gates end with."""


@dataclass(frozen=True)
class ConvLayer:
    """One 3 × 3 convolution of an encoder, and its ReLU.

    Attributes:
        name: the name under which the layer is recorded.
        channels: number of output channels at width 1.
        stride: 2 halves the map.
        pool: whether a 2 × 2 max-pooling follows the ReLU. What is recorded is the map before it.
    """

    name: str
    channels: int
    stride: int = 1
    pool: bool = False


@dataclass(frozen=True)
class Architecture:
    """An encoder, and the output channels of each layer of the decoder but the last, which has three."""

    encoder: tuple[ConvLayer, ...]
    decoder: tuple[int, ...]

    @property
    def reduction(self) -> int:
        """By how much the encoder reduces the side of an image: its strides and poolings multiplied."""
        factor = 1
        for layer in self.encoder:
            factor *= layer.stride * (2 if layer.pool else 1)
        return factor

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of all layers that can be recorded, in the order of the forward pass."""
        return (*(layer.name for layer in self.encoder), LATENT_LAYER)


def _vgg(blocks: Sequence[Sequence[int]]) -> tuple[ConvLayer, ...]:
    return tuple(
        ConvLayer(f"conv{i}_{j}", channels, pool=j == len(block))
        for i, block in enumerate(blocks, start=1)
        for j, channels in enumerate(block, start=1)
    )


SMALL = tuple(ConvLayer(f"conv{i}", channels, stride=2) for i, channels in enumerate((32, 64, 128, 256, 256), start=1))
"""Five convolutions that each halve the map."""

VGG16 = _vgg([[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3])
"""Configuration D. Source: Simonyan & Zisserman 2015, table 1, without the classifier."""

ARCHITECTURES = {
    "small": Architecture(encoder=SMALL, decoder=(256, 128, 64, 32)),
    "vgg16-5": Architecture(encoder=VGG16, decoder=(512, 256, 128, 64)),
}


def scaled(channels: int, width: float) -> int:
    """Number of channels at a width multiplier: a multiple of 4, and at least 4."""
    return max(4, 4 * round(channels * width / 4))


def check_image_size(architecture: str, image_size_px: int, norm: str = "none") -> None:
    """Refuse an image size that the encoder's halvings do not divide, or that leaves nothing to normalise.

    Raises:
        StudyError: naming the nearest sizes that are allowed.
    """
    step = ARCHITECTURES[architecture].reduction
    if image_size_px % step or image_size_px < step:
        below = image_size_px // step * step
        nearest = " or ".join(str(size) for size in (below, below + step) if size)
        raise StudyError(
            f"data.image_size_px: {image_size_px} is not a multiple of {step}, by which the encoder of "
            f"{architecture!r} reduces the image; the nearest allowed: {nearest}"
        )
    if norm == "instance" and image_size_px == step:
        raise StudyError(
            f"models.*.norm: with images of {image_size_px} px the last map of {architecture!r} is a single "
            f"position, of which instance normalisation leaves nothing; use norm `none` or `batch`, or "
            f"data.image_size_px of at least {2 * step}"
        )


def code_size(model: Model, image_size_px: int) -> int:
    """How many numbers the code of one image has; the image size is one that the encoder divides."""
    if not isinstance(model.latent, ConvLatent):
        return model.latent.size
    return model.latent.channels * (image_size_px // ARCHITECTURES[model.architecture].reduction) ** 2


def check_units(model: Model, image_size_px: int) -> None:
    """Refuse latent units that are to follow an attribute and that the code has not.

    Raises:
        StudyError: naming the units that there are.
    """
    size = code_size(model, image_size_px)
    for attribute in model.attributes if isinstance(model, ArVaeModel) else ():
        if attribute.unit >= size:
            raise StudyError(
                f"models.*.attributes: unit {attribute.unit} is to follow {attribute.column!r}, but with images of "
                f"{image_size_px} px the code has {size} units; allowed: 0 to {size - 1}"
            )


def choose_layers(architecture: str, layers: Layers) -> tuple[str, ...]:
    """Names of the layers that a study means by words, names or numbers (from 1; the last is the code), in order.

    `conv1` in words is the first convolution, whatever its name.

    Raises:
        StudyError: there is no such layer; says which there are.
    """
    names = ARCHITECTURES[architecture].layer_names
    words = {"everywhere": names, "all but conv1": names[1:], "all but conv1 and the means": names[1:-1], "none": ()}
    if isinstance(layers, str):
        return words[layers]
    wanted = [names[layer - 1] if isinstance(layer, int) and layer <= len(names) else str(layer) for layer in layers]
    check_layers(names, wanted, f"models.*: {architecture!r}")
    return tuple(name for name in names if name in wanted)


def recordable_names(model: Model) -> tuple[str, ...]:
    """Names of all layers of a model that can be recorded, in the order of the forward pass.

    The gates of a layer come right after it.
    """
    gated = attended_layers(model)
    names = ARCHITECTURES[model.architecture].layer_names
    return tuple(each for name in names for each in (name, *(gate_names(model, name) if name in gated else ())))


def gate_names(model: Model, layer: str) -> tuple[str, ...]:
    """Names under which the attention gates of a gated layer are recorded: `conv3.channels`, `conv3.places`."""
    both = isinstance(model.attention, CbamAttention)
    return (f"{layer}.{CHANNELS}", *((f"{layer}.{PLACES}",) if both else ()))


def attended_layers(model: Model) -> tuple[str, ...]:
    """Names of the layers whose output attention gates, in order.

    Raises:
        StudyError: there is no such layer, or it is the code, which has no gates.
    """
    return _convolutions(model, model.attention.layers, "attention") if model.attention else ()


def constrained_layers(model: Model) -> tuple[tuple[Sparsity, str], ...]:
    """Every sparsity constraint of a model with each layer that it holds for, in the order of the study.

    Raises:
        StudyError: there is no such layer, it is the code but the constraint is L0, or two constraints of one kind
            hold for it.
    """
    found = [(constraint, name) for constraint in model.sparsity for name in _constrained(model, constraint)]
    held = [(constraint.penalty, name) for constraint, name in found]
    for penalty, name in held:
        if held.count((penalty, name)) > 1:
            raise StudyError(f"models.*.sparsity: two {penalty} constraints hold for {name}; leave it out of one")
    return tuple(found)


def channel_dropping_layers(model: Model) -> dict[str, float]:
    """Temperature of the L0 gates of each layer whose channels have some, in order."""
    gated = {name: each.temperature for each, name in constrained_layers(model) if isinstance(each, L0Sparsity)}
    return {name: gated[name] for name in ARCHITECTURES[model.architecture].layer_names if name in gated}


def defeated_constraints(model: Model) -> tuple[str, ...]:
    """Layers that stand under a KL sparsity constraint and under instance normalisation, which defeats it.

    It gives every channel of every image the same mean and spread, so that the units of a channel cannot all be quiet:
    the constraint then only moves the learned scale and offset.
    """
    if model.norms.encoder != "instance":
        return ()
    held = (name for constraint, name in constrained_layers(model) if isinstance(constraint, KlSparsity))
    return tuple(name for name in held if name != LATENT_LAYER)


def _constrained(model: Model, constraint: Sparsity) -> tuple[str, ...]:
    if isinstance(constraint, L0Sparsity):
        return _convolutions(model, constraint.layers, "sparsity")
    return choose_layers(model.architecture, constraint.layers)


def _convolutions(model: Model, layers: Layers, key: str) -> tuple[str, ...]:
    """The chosen layers without the code: words leave it out silently, its name or number is a mistake."""
    chosen = choose_layers(model.architecture, layers)
    if LATENT_LAYER in chosen and not isinstance(layers, str):
        raise StudyError(
            f"models.*.{key}: the code ({LATENT_LAYER}) has no gates; choose among "
            f"{', '.join(ARCHITECTURES[model.architecture].layer_names[:-1])}"
        )
    return tuple(name for name in chosen if name != LATENT_LAYER)


def check_layers(allowed: Sequence[str], names: Sequence[str], who: str = "record.layers: this model") -> None:
    """Refuse names of layers that a model has not.

    Args:
        allowed: names of the layers that it has.
        names: names in the study.
        who: the setting that holds them, and whose layers they should be; the beginning of the message.

    Raises:
        StudyError: with the likely name and all allowed names.
    """
    for name in names:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1)
            guess = f"did you mean {close[0]!r}? " if close else ""
            raise StudyError(f"{who} has no layer {name!r}; {guess}Allowed: {', '.join(allowed)}")
