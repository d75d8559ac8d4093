"""Encoders: from an image to a last map."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fluence.architectures import ARCHITECTURES, NUM_COLOURS, Architecture, scaled
from fluence.errors import ArtifactError
from fluence.models.attention import HardConcreteGates, gates_of
from fluence.models.layers import ConvUnit, Style
from fluence.store.pretrained import find_weights
from fluence.study import AutoencoderModel

IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the red, green and blue values of ImageNet: what torchvision's networks learned with."""


class ImageNetScale(nn.Module):
    """Images in [0, 1] → the same with mean 0 and standard deviation 1 over ImageNet, colour by colour."""

    mean: Tensor
    sd: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("sd", torch.tensor(IMAGENET_SD)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, 3, H, W]."""
        return (x - self.mean) / self.sd


class SymmetricScale(nn.Module):
    """Images in [0, 1] → [−1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, 3, H, W]."""
        return 2 * x - 1


class Encoder(nn.Sequential):
    """Convolutions one after the other, by name."""

    @property
    def l0_gates(self) -> dict[str, HardConcreteGates]:
        """The L0 gates of each layer that has some, in order."""
        found = ((name, getattr(unit.gates, "l0", None)) for name, unit in self.named_children())
        return {name: gates for name, gates in found if gates is not None}

    def forward(self, x: Tensor, noise: Mapping[str, Tensor] | None = None) -> Tensor:
        """[B, 3, H, W], and the chance of the gates of each layer that has some, → the last map [B, C, h, w]."""
        for name, unit in self.named_children():
            x = unit(x, (noise or {}).get(name))
        return x


def build_encoder(model: AutoencoderModel) -> Encoder:
    """The convolutions of an encoder and their gates, by name: [B, 3, H, W] → [B, C, H / reduction, W / reduction].

    The first one sees three colours and is never separable.
    """
    units: OrderedDict[str, nn.Module] = OrderedDict()
    style, gates, channels = Style.of(model, "encoder"), gates_of(model), NUM_COLOURS
    for layer in ARCHITECTURES[model.architecture].encoder:
        wide = scaled(layer.channels, model.width)
        units[layer.name] = ConvUnit(channels, wide, layer, style if units else style.whole, gates(layer.name, wide))
        channels = wide
    return Encoder(units)


def load_pretrained(encoder: nn.Sequential, model: AutoencoderModel) -> None:
    """Gives an encoder the weights that `model.pretrained` names; without it, it keeps its own.

    Raises:
        StudyError: the file is missing; says where it was looked for and how to fetch it.
        ArtifactError: it is damaged, or holds the weights of another network.
    """
    plan = ARCHITECTURES[model.architecture]
    if model.pretrained is None or plan.imagenet is None:
        return
    path = find_weights(plan.imagenet, model.pretrained, f"the encoder ({plan.imagenet})", key="pretrained")
    theirs, wanted = _read(path) if path else {}, dict(encoder.named_parameters())
    for name, key in _torchvision_keys(plan).items():
        ours, found = wanted[name], theirs.get(key)
        if not isinstance(found, Tensor) or found.shape != ours.shape:
            there = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else "missing"
            raise ArtifactError(
                f"{path} holds no weights of torchvision's {plan.imagenet}: {key} is {there}, and {name} of the "
                f"encoder has shape {tuple(ours.shape)}; correct `pretrained:` or `architecture:`"
            )
        with torch.no_grad():
            ours.copy_(found)


def _torchvision_keys(plan: Architecture) -> dict[str, str]:
    """Our name of each parameter: torchvision's, `features.<position>`, where ReLU and poolings have positions too."""
    keys, position = {}, 0
    for layer in plan.encoder:
        for kind in ("weight", "bias"):
            keys[f"{layer.name}.conv.{kind}"] = f"features.{position}.{kind}"
        position += 2 + bool(layer.pool_px)
    return keys


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise ArtifactError(
            f"{path} cannot be read as a state dict ({type(error).__name__}: {str(error).partition(chr(10))[0]}); "
            f"fetch it again, or correct `pretrained:`"
        ) from error
