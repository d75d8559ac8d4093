"""From the encoder's last map to a code: what tells the kinds of autoencoder apart."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fluence.models.layers import he_normal
from fluence.models.norms import at_least_float32
from fluence.study import ConvLatent, DenseLatent, VqVaeModel

LOGVAR_LIMIT = 10.0
"""σ stays within e^±5, that is 0.0067 … 148: far from where e^logvar or its gradient overflow in float16."""


class Code(NamedTuple):
    """What a head makes of the last map of B images.

    Attributes:
        mu: the code without chance, and before it is quantised, [B, *shape]: what is recorded.
        z: what the decoder sees, [B, *shape].
        logvar: ln σ² of a distribution around mu, [B, *shape]; None where there is none, or where σ is fixed.
        extras: what the kind's own loss terms are made of, by name, [B, ...] each.
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


class PlainHead(nn.Module):
    """The code is linear in the encoder's last map, and nothing else happens to it."""

    noise_shape = (0,)

    def __init__(self, latent: ConvLatent | DenseLatent, map_shape: tuple[int, int, int]) -> None:
        """For the encoder's last map [C, h, w]; `self.shape` is the shape of one image's code."""
        super().__init__()
        self.shape = code_shape(latent, map_shape)
        self.mean = linear_map(latent, map_shape)
        self.mu = nn.Identity()

    def forward(self, last_map: Tensor, noise: Tensor | None) -> Code:
        """[B, C, h, w] → z = μ, in float32 at least; there is no noise to take."""
        mu = self.mu(at_least_float32(self.mean(last_map)))
        return Code(mu, mu, None, extras={})


class UnitVarianceHead(nn.Module):
    """The mean of z, linear in the encoder's last map; σ is 1 for every image.

    Source: Floto, Kremer & Nica 2023.
    """

    def __init__(self, latent: ConvLatent | DenseLatent, map_shape: tuple[int, int, int]) -> None:
        """For the encoder's last map [C, h, w]; `self.shape` is the shape of one image's code and of its noise."""
        super().__init__()
        self.shape = self.noise_shape = code_shape(latent, map_shape)
        self.mean = linear_map(latent, map_shape)
        self.mu = nn.Identity()

    def forward(self, last_map: Tensor, noise: Tensor | None) -> Code:
        """[B, C, h, w] and standard normal numbers [B, *noise_shape], or None for z = μ; in float32 at least."""
        mu = self.mu(at_least_float32(self.mean(last_map)))
        return Code(mu, mu if noise is None else mu + noise, None, extras={})


class QuantisingHead(nn.Module):
    """At each position of a latent map, the entry of a codebook that is nearest to what the encoder says there.

    The gradient of z goes to the encoder as if nothing had been quantised (straight through); the entries learn from
    the term `codebook` alone, so one that nobody chose in a batch has gradient zero there.

    Entries start as normal numbers, as the values that they are to stand for do.

    Source: van den Oord, Vinyals & Kavukcuoglu 2017, eq. 1-3.
    """

    noise_shape = (0,)

    def __init__(self, model: VqVaeModel, map_shape: tuple[int, int, int]) -> None:
        """For the encoder's last map [C, h, w]; `self.shape` is the shape of one image's code."""
        super().__init__()
        self.shape = code_shape(model.latent, map_shape)
        self.mean = linear_map(model.latent, map_shape)
        self.mu = nn.Identity()
        self.codebook = nn.Parameter(torch.randn(model.codebook_size, model.latent.channels))

    def forward(self, last_map: Tensor, noise: Tensor | None) -> Code:
        """[B, C, h, w] → μ, the values before quantisation, and z, made of entries; in float32 at least.

        Its extras are `codebook`, ‖sg[μ] − e‖², and `commitment`, ‖μ − sg[e]‖², summed over the code, [B]; and
        `chosen`, how many positions of each image chose each entry, [B, codebook_size].
        """
        mu = self.mu(at_least_float32(self.mean(last_map)))
        entries = at_least_float32(self.codebook)
        chosen = nearest(mu.detach().movedim(1, -1).flatten(1, 2), entries.detach())
        quantised = functional.embedding(chosen, entries).unflatten(1, self.shape[1:]).movedim(-1, 1)
        extras = {
            "codebook": (mu.detach() - quantised).square().flatten(1).sum(1),
            "commitment": (mu - quantised.detach()).square().flatten(1).sum(1),
            "chosen": mu.new_zeros(len(mu), len(entries)).scatter_add_(1, chosen, torch.ones_like(chosen).to(mu)),
        }
        return Code(mu, quantised.detach() + (mu - mu.detach()), None, extras)


def nearest(values: Tensor, entries: Tensor) -> Tensor:
    """Number of the entry [K, C] with the least Euclidean distance to each value [..., C], int64 [...].

    ‖v‖² is the same for all entries and left out; of equally near ones the first is taken. In float64, which mixed
    precision leaves alone: the differences of large squares decide.
    """
    values, entries = values.double(), entries.double()
    return (entries.square().sum(1) - 2 * values @ entries.T).argmin(-1)


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
