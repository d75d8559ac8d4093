"""Autoencoders, and the one way to build a model from its settings."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fluence.models.architectures import ARCHITECTURES, LATENT_LAYER, check_image_size, scaled
from fluence.models.decoders import build_decoder
from fluence.models.encoders import Posterior, build_encoder
from fluence.models.layers import at_least_float32
from fluence.store.activations import LayerInfo
from fluence.study import VaeModel


class VaeOutput(NamedTuple):
    """What a forward pass returns.

    Attributes:
        reconstruction: [B, 3, H, W], in [0, 1].
        mu: means of the latent distribution, [B, *latent_shape].
        logvar: logarithms of its variances, [B, *latent_shape].
        z: what the decoder saw, [B, *latent_shape].
    """

    reconstruction: Tensor
    mu: Tensor
    logvar: Tensor
    z: Tensor


class ConvVae(nn.Module):
    """A convolutional variational autoencoder.

    Source: Kingma & Welling 2014.

    Attributes:
        latent_shape: shape of one image's latent, (C, h, w) or (D,); that of the noise that `forward` takes.
        recordable: every layer that can be recorded, in the order of the forward pass.
    """

    def __init__(self, model: VaeModel, image_size_px: int) -> None:
        """Draws its weights from torch's global random numbers; `build` gives them a seed.

        Raises:
            StudyError: if the encoder's halvings do not divide the image size.
        """
        super().__init__()
        check_image_size(model.architecture, image_size_px, model.norm)
        plan = ARCHITECTURES[model.architecture]
        side = image_size_px // plan.reduction
        map_shape = (scaled(plan.encoder[-1].channels, model.width), side, side)
        self.architecture = model.architecture
        self.encoder = build_encoder(plan.encoder, model.width, model.norm)
        self.posterior = Posterior(model.latent, map_shape)
        self.latent_shape = self.posterior.shape
        self.decoder = build_decoder(plan.decoder, model.width, model.norm, self.latent_shape, map_shape)
        self.recordable = _recordable(model, image_size_px, self.latent_shape)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> VaeOutput:
        """Encode, draw z and decode.

        Args:
            x: images [B, 3, H, W] in [0, 1].
            noise: standard normal numbers [B, *latent_shape] for z = μ + σ · noise. In eval mode, and without
                noise, z = μ.
        """
        mu, logvar = self.encode(x)
        z = mu if noise is None or not self.training else mu + (0.5 * logvar).exp() * noise
        return VaeOutput(self.decode(z), mu, logvar, z)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] in [0, 1] → μ and ln σ², each [B, *latent_shape]."""
        return self.posterior(self.encoder(2 * x - 1))

    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, *latent_shape] → images [B, 3, H, W] in [0, 1]."""
        return at_least_float32(self.decoder(z)).sigmoid()

    def place(self, layer: str) -> nn.Module:
        """The module whose input is a layer's value before its non-linearity, and whose output after it."""
        return self.get_submodule("posterior.mu" if layer == LATENT_LAYER else f"encoder.{layer}.activation")


def _recordable(model: VaeModel, image_size_px: int, latent_shape: tuple[int, ...]) -> tuple[LayerInfo, ...]:
    infos, side = [], image_size_px
    for layer in ARCHITECTURES[model.architecture].encoder:
        side //= layer.stride
        shape = (scaled(layer.channels, model.width), side, side)
        infos.append(LayerInfo(name=layer.name, shape=shape, tap="post", kind="conv"))
        side //= 2 if layer.pool else 1
    return (*infos, LayerInfo(name=LATENT_LAYER, shape=latent_shape, tap="post", kind="latent"))


MODELS: dict[str, type[ConvVae]] = {"vae": ConvVae}


def build(model: VaeModel, image_size_px: int, seed: int) -> ConvVae:
    """A model with the weights that belong to a seed, on the CPU; torch's global random numbers do not move.

    Raises:
        StudyError: if the model's settings do not go together with the image size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[model.kind](model, image_size_px)
