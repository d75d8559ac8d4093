"""Encoders: from an image to a last map."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from fluence.models.architectures import ConvLayer, scaled
from fluence.models.attention import Gates, HardConcreteGates
from fluence.models.layers import ConvUnit


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


def build_encoder(
    layers: tuple[ConvLayer, ...], width: float, norm: str, gates: Callable[[str, int], Gates | None]
) -> Encoder:
    """The convolutions of an encoder, and the gates that `gates` makes from a layer's name and number of channels."""
    units: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for layer in layers:
        wide = scaled(layer.channels, width)
        units[layer.name] = ConvUnit(
            channels, wide, stride=layer.stride, pool=layer.pool, norm=norm, gates=gates(layer.name, wide)
        )
        channels = wide
    return Encoder(units)
