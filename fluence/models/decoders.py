"""Decoders: from a latent to an image."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fluence.models.architectures import scaled
from fluence.models.layers import SubpixelConv, UpUnit, he_normal


def build_decoder(
    channels: tuple[int, ...],
    width: float,
    norm: str,
    latent_shape: tuple[int, ...],
    map_shape: tuple[int, int, int],
) -> nn.Sequential:
    """One layer for each number of channels, and one to RGB; each doubles the map.

    A latent vector is first laid out as a map of `map_shape`, the shape of the encoder's last one.
    [B, *latent_shape] → logits [B, 3, H, W]; neither norm nor ReLU follows the last layer.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if len(latent_shape) == 1:
        layers["entry"] = _vector_to_map(latent_shape[0], map_shape)
    wide = map_shape[0] if len(latent_shape) == 1 else latent_shape[0]
    for i, base in enumerate(channels, start=1):
        layers[f"up{i}"] = UpUnit(wide, scaled(base, width), norm=norm)
        wide = scaled(base, width)
    layers[f"up{len(channels) + 1}"] = SubpixelConv(wide, 3, bias=True, nonlinearity="linear")
    return nn.Sequential(layers)


def _vector_to_map(size: int, map_shape: tuple[int, int, int]) -> nn.Sequential:
    """[B, size] → [B, C, h, w]."""
    channels, height, width = map_shape
    linear = nn.Linear(size, channels * height * width)
    he_normal(linear)
    return nn.Sequential(linear, nn.ReLU(), nn.Unflatten(1, map_shape))
