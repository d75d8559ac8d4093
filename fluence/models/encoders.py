"""Encoders: from an image to a last map, and from there to a normal distribution of the latent."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from fluence.models.architectures import ConvLayer, scaled
from fluence.models.layers import ConvUnit, at_least_float32, he_normal
from fluence.study import ConvLatent, DenseLatent

LOGVAR_LIMIT = 10.0
"""σ stays within e^±5, that is 0.0067 … 148: far from where e^logvar or its gradient overflow in float16."""


def build_encoder(layers: tuple[ConvLayer, ...], width: float, norm: str) -> nn.Sequential:
    """The convolutions of an encoder, by name: [B, 3, H, W] → [B, C, H / reduction, W / reduction]."""
    units: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for layer in layers:
        wide = scaled(layer.channels, width)
        units[layer.name] = ConvUnit(channels, wide, stride=layer.stride, pool=layer.pool, norm=norm)
        channels = wide
    return nn.Sequential(units)


class Posterior(nn.Module):
    """The mean and the logarithm of the variance of z, both linear in the encoder's last map (no ReLU).

    Training starts from σ = 1 for every image, since the weights of logvar start from zero. logvar is limited
    to ±`LOGVAR_LIMIT` by a tanh that is the identity near zero: a hard clamp has no gradient outside its limits,
    so that a unit that once left them could never come back.
    """

    def __init__(self, latent: ConvLatent | DenseLatent, map_shape: tuple[int, int, int]) -> None:
        """For the encoder's last map [C, h, w]; `self.shape` is the shape of one image's latent."""
        super().__init__()
        _, height, width = map_shape
        self.shape: tuple[int, ...] = (
            (latent.channels, height, width) if isinstance(latent, ConvLatent) else (latent.size,)
        )
        self.mean = _linear_map(latent, map_shape)
        self.logvar = _linear_map(latent, map_shape)
        self.mu = nn.Identity()
        for parameter in self.logvar.parameters():
            nn.init.zeros_(parameter)

    def forward(self, last_map: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, h, w] → μ and ln σ², each [B, *shape], in float32 at least."""
        mu = self.mu(at_least_float32(self.mean(last_map)))
        raw = at_least_float32(self.logvar(last_map))
        return mu, LOGVAR_LIMIT * (raw / LOGVAR_LIMIT).tanh()


def _linear_map(latent: ConvLatent | DenseLatent, map_shape: tuple[int, int, int]) -> nn.Module:
    """A 3 × 3 convolution to a latent map, or a fully connected layer to a latent vector."""
    layer: nn.Conv2d | nn.Linear
    if isinstance(latent, ConvLatent):
        layer = nn.Conv2d(map_shape[0], latent.channels, 3, padding=1)
    else:
        layer = nn.Linear(math.prod(map_shape), latent.size)
    he_normal(layer, "linear")
    return layer if isinstance(latent, ConvLatent) else nn.Sequential(nn.Flatten(), layer)
