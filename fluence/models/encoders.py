"""Encoders: from an image to a last map."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fluence.models.architectures import ConvLayer, scaled
from fluence.models.layers import ConvUnit


def build_encoder(layers: tuple[ConvLayer, ...], width: float, norm: str) -> nn.Sequential:
    """The convolutions of an encoder, by name: [B, 3, H, W] → [B, C, H / reduction, W / reduction]."""
    units: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for layer in layers:
        wide = scaled(layer.channels, width)
        units[layer.name] = ConvUnit(channels, wide, stride=layer.stride, pool=layer.pool, norm=norm)
        channels = wide
    return nn.Sequential(units)
