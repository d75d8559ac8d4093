"""What the architectures consist of: names, channels and strides, as plain tables without torch.

`fluence check` reads them on machines that have no time for torch; `fluence.models.encoders` and
`fluence.models.decoders` build networks from them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fluence.errors import StudyError
from fluence.study import (
    ArVaeModel,
    AutoencoderModel,
    CbamAttention,
    ConvLatent,
    KlSparsity,
    L0Sparsity,
    Layers,
    Model,
    PixelsModel,
    Sparsity,
)

LATENT_LAYER = "mu"
"""Name under which the means of the latent distribution are recorded."""

PIXELS = "pixels"
"""Name under which the image itself is recorded."""

CHANNELS, PLACES = "channels", "places"
"""What the names of a layer's attention gates end with."""
NUM_COLOURS = 3


@dataclass(frozen=True)
class ConvLayer:
    """One convolution of an encoder, and its non-linearity. Every map is an exact division of the one before.

    Attributes:
        name: the name under which the layer is recorded.
        channels: number of output channels at width 1.
        kernel_px: side of the filters.
        stride: by how much the convolution divides the side of the map.
        padding_px: zeros on each side.
        pool_px: side of the window of a max-pooling of stride 2 that follows; 0 has none. What is recorded is the map
            before it.
    """

    name: str
    channels: int
    kernel_px: int = 3
    stride: int = 1
    padding_px: int = 1
    pool_px: int = 0

    @property
    def pooling(self) -> int:
        """By how much the pooling divides the side of the map."""
        return 2 if self.pool_px else 1


@dataclass(frozen=True)
class DecoderLayer:
    """One layer of a decoder.

    Attributes:
        name: its name in the network.
        channels: number of output channels at width 1; those of the last layer are the three colours at every width.
        doubles: whether it doubles the side of the map (see `fluence.models.upsampling`), or is a plain convolution.
    """

    name: str
    channels: int
    doubles: bool


@dataclass(frozen=True)
class Architecture:
    """An encoder and a decoder.

    Attributes:
        encoder: its convolutions.
        decoder: its layers; the last one makes the image.
        imagenet: torchvision's name of the network whose convolutions the encoder has; None if it is nobody's.
    """

    encoder: tuple[ConvLayer, ...]
    decoder: tuple[DecoderLayer, ...]
    imagenet: str | None = None

    @property
    def reduction(self) -> int:
        """By how much the encoder reduces the side of an image: its strides and poolings multiplied."""
        return math.prod(layer.stride * layer.pooling for layer in self.encoder)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of all layers that can be recorded, in the order of the forward pass."""
        return (*(layer.name for layer in self.encoder), LATENT_LAYER)


def _vgg(blocks: Sequence[Sequence[int]]) -> tuple[ConvLayer, ...]:
    return tuple(
        ConvLayer(f"conv{i}_{j}", channels, pool_px=2 if j == len(block) else 0)
        for i, block in enumerate(blocks, start=1)
        for j, channels in enumerate(block, start=1)
    )


SMALL = tuple(ConvLayer(f"conv{i}", channels, stride=2) for i, channels in enumerate((32, 64, 128, 256, 256), start=1))
"""Five convolutions that each halve the map."""

VGG16 = _vgg([[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3])
"""Configuration D. Source: Simonyan & Zisserman 2015, table 1, without the classifier."""

VGG19 = _vgg([[64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4])
"""Configuration E. Source: Simonyan & Zisserman 2015, table 1, without the classifier."""

ALEXNET = (
    ConvLayer("conv1", 64, kernel_px=11, stride=4, padding_px=4, pool_px=3),
    ConvLayer("conv2", 192, kernel_px=5, padding_px=2, pool_px=3),
    ConvLayer("conv3", 384),
    ConvLayer("conv4", 256),
    ConvLayer("conv5", 256, pool_px=3),
)
"""The convolutions of torchvision's AlexNet, without the classifier. Two paddings differ, so that maps divide exactly:
conv1 has 4 for 2, and the poolings (3 × 3, overlapping) have 1 for 0. Source: Krizhevsky 2014, section 5."""


def _decoder(channels: Sequence[int], layers_per_doubling: int) -> tuple[DecoderLayer, ...]:
    """Doublings to these channels, each followed by plain convolutions to as many; the very last makes colours."""
    layers = [
        DecoderLayer(f"{'conv' if plain else 'up'}{i}", wide, doubles=not plain)
        for i, wide in enumerate(channels, start=1)
        for plain in range(layers_per_doubling)
    ]
    return (*layers[:-1], replace(layers[-1], channels=NUM_COLOURS))


_SMALL_BACK, _VGG_BACK, _ALEXNET_BACK = (256, 128, 64, 32, 16), (512, 256, 128, 64, 32), (256, 192, 128, 64, 32)

ARCHITECTURES = {
    "small": Architecture(SMALL, _decoder(_SMALL_BACK, 1)),
    "small-10": Architecture(SMALL, _decoder(_SMALL_BACK, 2)),
    "vgg16-5": Architecture(VGG16, _decoder(_VGG_BACK, 1), imagenet="vgg16"),
    "vgg16-10": Architecture(VGG16, _decoder(_VGG_BACK, 2), imagenet="vgg16"),
    "vgg19-5": Architecture(VGG19, _decoder(_VGG_BACK, 1), imagenet="vgg19"),
    "vgg19-10": Architecture(VGG19, _decoder(_VGG_BACK, 2), imagenet="vgg19"),
    "alexnet-5": Architecture(ALEXNET, _decoder(_ALEXNET_BACK, 1), imagenet="alexnet"),
    "alexnet-10": Architecture(ALEXNET, _decoder(_ALEXNET_BACK, 2), imagenet="alexnet"),
}
"""Every architecture that a study can name."""


def scaled(channels: int, width: float) -> int:
    """Number of channels at a width multiplier: a multiple of 4, and at least 4."""
    return max(4, 4 * round(channels * width / 4))


def check_image_size(architecture: str, image_size_px: int, norm: str = "none") -> None:
    """Refuse an image size that the encoder's halvings do not divide, or that leaves nothing to normalise.

    Raises:
        StudyError: naming the nearest sizes that are allowed.
    """
    plan = ARCHITECTURES[architecture]
    step = plan.reduction
    if image_size_px % step or image_size_px < step:
        below = image_size_px // step * step
        nearest = " or ".join(str(size) for size in (below, below + step) if size)
        raise StudyError(
            f"data.image_size_px: {image_size_px} is not a multiple of {step}, by which the encoder of "
            f"{architecture!r} reduces the image; the nearest allowed: {nearest}"
        )
    if norm == "instance" and image_size_px * plan.encoder[-1].pooling == step:
        raise StudyError(
            f"models.*.norm: with images of {image_size_px} px the last map of {architecture!r} is a single "
            f"position, of which instance normalisation leaves nothing; use norm `none` or `batch`, or "
            f"data.image_size_px of at least {2 * step}"
        )


def code_size(model: AutoencoderModel, image_size_px: int) -> int:
    """How many numbers the code of one image has; the image size is one that the encoder divides."""
    if not isinstance(model.latent, ConvLatent):
        return model.latent.size
    return model.latent.channels * (image_size_px // ARCHITECTURES[model.architecture].reduction) ** 2


def check_units(model: AutoencoderModel, image_size_px: int) -> None:
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


def check_pretrained(model: AutoencoderModel) -> None:
    """Refuse ImageNet weights for an encoder that is not the one that learned them.

    Raises:
        StudyError: naming the setting that is in the way.
    """
    if model.pretrained is None:
        return
    if model.pretrained == "random":
        raise StudyError("models.*.pretrained: found `random`; `null` starts the encoder from random numbers")
    hindrances = {
        f"architecture {model.architecture}": ARCHITECTURES[model.architecture].imagenet is None,
        f"width {model.width:g}": model.width != 1,
        f"norm {model.norms.encoder}": model.norms.encoder != "none",
        "separable convolutions": model.separable is not None and "encoder" in model.separable.parts,
        f"activation {model.activation}": model.activation != "relu",
    }
    found = [name for name, there in hindrances.items() if there]
    if found:
        raise StudyError(
            f"models.*.pretrained: found with {', '.join(found)}, but the weights belong to the encoder as its authors "
            f"built it: architecture vgg16, vgg19 or alexnet, width 1, norm none, whole convolutions and activation "
            f"relu. Write so (`norm: {{decoder: batch}}` and `separable: {{parts: [decoder]}}` leave the encoder "
            f"alone), or `pretrained: null`"
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
    if isinstance(model, PixelsModel):
        return (PIXELS,)
    gated = attended_layers(model)
    names = ARCHITECTURES[model.architecture].layer_names
    return tuple(each for name in names for each in (name, *(gate_names(model, name) if name in gated else ())))


def gate_names(model: AutoencoderModel, layer: str) -> tuple[str, ...]:
    """Names under which the attention gates of a gated layer are recorded: `conv3.channels`, `conv3.places`."""
    both = isinstance(model.attention, CbamAttention)
    return (f"{layer}.{CHANNELS}", *((f"{layer}.{PLACES}",) if both else ()))


def attended_layers(model: AutoencoderModel) -> tuple[str, ...]:
    """Names of the layers whose output attention gates, in order.

    Raises:
        StudyError: there is no such layer, or it is the code, which has no gates.
    """
    return _convolutions(model, model.attention.layers, "attention") if model.attention else ()


def constrained_layers(model: AutoencoderModel) -> tuple[tuple[Sparsity, str], ...]:
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


def channel_dropping_layers(model: AutoencoderModel) -> dict[str, float]:
    """Temperature of the L0 gates of each layer whose channels have some, in order."""
    gated = {name: each.temperature for each, name in constrained_layers(model) if isinstance(each, L0Sparsity)}
    return {name: gated[name] for name in ARCHITECTURES[model.architecture].layer_names if name in gated}


def defeated_constraints(model: Model) -> tuple[str, ...]:
    """Layers that stand under a KL sparsity constraint and under instance normalisation, which defeats it.

    It gives every channel of every image the same mean and spread, so that the units of a channel cannot all be quiet:
    the constraint then only moves the learned scale and offset.
    """
    if isinstance(model, PixelsModel) or model.norms.encoder != "instance":
        return ()
    held = (name for constraint, name in constrained_layers(model) if isinstance(constraint, KlSparsity))
    return tuple(name for name in held if name != LATENT_LAYER)


def _constrained(model: AutoencoderModel, constraint: Sparsity) -> tuple[str, ...]:
    if isinstance(constraint, L0Sparsity):
        return _convolutions(model, constraint.layers, "sparsity")
    return choose_layers(model.architecture, constraint.layers)


def _convolutions(model: AutoencoderModel, layers: Layers, key: str) -> tuple[str, ...]:
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
