"""From the encoder's last map to a code: what tells the kinds of autoencoder apart."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from fluence.models.layers import at_least_float32, he_normal
from fluence.study import ConvLatent, DenseLatent

LOGVAR_LIMIT = 10.0
"""σ stays within e^±5, that is 0.0067 … 148: far from where e^logvar or its gradient overflow in float16."""


class Code(NamedTuple):
    """What a head makes of the last map of B images.

    Attributes:
        mu: the code without chance, [B, *shape]: what is recorded.
        z: what the decoder sees, [B, *shape].
        logvar: ln σ² of a distribution around mu, [B, *shape]; None where there is none.
        extras: further loss terms by name, [B] each.
    """

    mu: Tensor
    z: Tensor
    logvar: Tensor | None
    extras: dict[str, Tensor]


class NormalHead(nn.Module):
    """The mean and the logarithm of the variance of z, both linear in the encoder's last map (no ReLU).

    Training starts from σ = 1 for every image, since the weights of logvar start from zero. logvar is limited
    to ±`LOGVAR_LIMIT` by a tanh that is the identity near zero: a hard clamp has no gradient outside its limits,
    so that a unit that once left them could never come back.

    Source: Kingma & Welling 2014, section 2.4.
    """

    def __init__(self, latent: ConvLatent | DenseLatent, map_shape: tuple[int, int, int]) -> None:
        """For the encoder's last map [C, h, w]; `self.shape` is the shape of one image's code and of its noise."""
        super().__init__()
        self.shape = self.noise_shape = code_shape(latent, map_shape)
        self.mean = linear_map(latent, map_shape)
        self.logvar = linear_map(latent, map_shape)
        self.mu = nn.Identity()
        for parameter in self.logvar.parameters():
            nn.init.zeros_(parameter)

    def forward(self, last_map: Tensor, noise: Tensor | None) -> Code:
        """[B, C, h, w] and standard normal numbers [B, *noise_shape], or None for z = μ; in float32 at least."""
        mu = self.mu(at_least_float32(self.mean(last_map)))
        raw = at_least_float32(self.logvar(last_map))
        logvar = LOGVAR_LIMIT * (raw / LOGVAR_LIMIT).tanh()
        z = mu if noise is None else mu + (0.5 * logvar).exp() * noise
        return Code(mu, z, logvar, extras={})


def code_shape(latent: ConvLatent | DenseLatent, map_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Shape of one image's code for the encoder's last map [C, h, w]: (channels, h, w) or (size,)."""
    return (latent.channels, *map_shape[1:]) if isinstance(latent, ConvLatent) else (latent.size,)


def linear_map(latent: ConvLatent | DenseLatent, map_shape: tuple[int, int, int]) -> nn.Module:
    """A 3 × 3 convolution to a latent map, or a fully connected layer to a latent vector."""
    layer: nn.Conv2d | nn.Linear
    if isinstance(latent, ConvLatent):
        layer = nn.Conv2d(map_shape[0], latent.channels, 3, padding=1)
    else:
        layer = nn.Linear(math.prod(map_shape), latent.size)
    he_normal(layer, "linear")
    return layer if isinstance(latent, ConvLatent) else nn.Sequential(nn.Flatten(), layer)
