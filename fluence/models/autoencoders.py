"""Autoencoders, and the one way to build a model from its settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fluence.architectures import (
    ARCHITECTURES,
    LATENT_LAYER,
    PLACES,
    attended_layers,
    check_image_size,
    check_pretrained,
    check_units,
    gate_names,
    scaled,
)
from fluence.models.decoders import build_decoder
from fluence.models.encoders import ImageNetScale, SymmetricScale, build_encoder, load_pretrained
from fluence.models.latents import NormalHead, PlainHead, QuantisingHead, UnitVarianceHead
from fluence.models.norms import at_least_float32, spectral_norm
from fluence.store.activations import LayerInfo
from fluence.study import AutoencoderModel, TiltedPrior, VaeModel


class Output(NamedTuple):
    """What a forward pass returns.

    Attributes:
        reconstruction: [B, 3, H, W], in [0, 1].
        mu: the code without chance, [B, *latent_shape]; of a VAE the means of the latent distribution, of a VQ-VAE
            the code before it is quantised.
        logvar: logarithms of its variances, [B, *latent_shape]; None where the model has none, or σ is fixed.
        z: what the decoder saw, [B, *latent_shape].
        extras: what the loss terms of the kind of model are made of, by name, [B, ...] each.
    """

    reconstruction: Tensor
    mu: Tensor
    logvar: Tensor | None
    z: Tensor
    extras: dict[str, Tensor]


def _vae_head(model: VaeModel, map_shape: tuple[int, int, int]) -> nn.Module:
    head = UnitVarianceHead if isinstance(model.prior, TiltedPrior) else NormalHead
    return head(model.latent, map_shape)


HEADS: dict[str, Callable[..., nn.Module]] = {
    "vae": _vae_head,
    "ar-vae": lambda model, map_shape: NormalHead(model.latent, map_shape),
    "ae": lambda model, map_shape: PlainHead(model.latent, map_shape),
    "vq-vae": QuantisingHead,
}
"""What makes the code of each kind of model from its settings and the shape of the encoder's last map, (C, h, w)."""


class Autoencoder(nn.Module):
    """A convolutional encoder, a head that makes the code, and a decoder.

    Attributes:
        latent_shape: shape of one image's code, (C, h, w) or (D,).
        noise_shape: shape of the standard normal numbers that `forward` takes for one image: those of the head; with
            L0 gates a vector that begins with them.
        recordable: every layer that can be recorded, in the order of the forward pass.
    """

    def __init__(self, model: AutoencoderModel, image_size_px: int) -> None:
        """Draws its weights from torch's global random numbers; `build` gives them a seed.

        Raises:
            StudyError: if the model's settings do not go together, or not with the image size.
        """
        super().__init__()
        check_image_size(model.architecture, image_size_px, model.norms.encoder)
        check_units(model, image_size_px)
        check_pretrained(model)
        plan = ARCHITECTURES[model.architecture]
        side = image_size_px // plan.reduction
        map_shape = (scaled(plan.encoder[-1].channels, model.width), side, side)
        self.settings = model
        self.scale = ImageNetScale() if model.pretrained else SymmetricScale()
        self.encoder = build_encoder(model)
        self.head = HEADS[model.kind](model, map_shape)
        if model.norms.latent == "spectral":
            spectral_norm(self.head.get_submodule("mean"))
        self.latent_shape: tuple[int, ...] = self.head.shape
        self.noise_shape: tuple[int, ...] = self._noise_shape()
        self.decoder = build_decoder(plan.decoder, model, self.latent_shape, map_shape)
        self.recordable = _recordable(model, image_size_px, self.latent_shape)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Output:
        """Encode, draw z and decode.

        Args:
            x: images [B, 3, H, W] in [0, 1].
            noise: standard normal numbers [B, *noise_shape]. In eval mode, and without noise, nothing is drawn.
        """
        of_head, of_gates = self._split(noise) if noise is not None and self.training else (None, {})
        code = self.head(self.encoder(self.scale(x), of_gates), of_head)
        l0_gates = self.encoder.l0_gates.items()
        num_open = {f"sparsity/l0/{name}": gates.expected_open().expand(len(x)) for name, gates in l0_gates}
        return Output(self.decode(code.z), code.mu, code.logvar, code.z, code.extras | num_open)

    def encode(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] → their codes without chance, [B, *latent_shape]."""
        return self.head(self.encoder(self.scale(x)), None).mu

    def decode(self, z: Tensor) -> Tensor:
        """Codes [B, *latent_shape] → images [B, 3, H, W] in [0, 1]."""
        return at_least_float32(self.decoder(z)).sigmoid()

    def encoder_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and weights of all that leads to the code."""
        return ((name, p) for name, p in self.named_parameters() if not name.startswith("decoder."))

    def place(self, layer: str, tap: str) -> nn.Module:
        """The module whose output is a layer's value after (`post`) or before (`pre`) its non-linearity and gates.

        The code and the gates themselves (`conv3.channels`) have one place for both.
        """
        if layer == LATENT_LAYER:
            return self.get_submodule("head.mu")
        gated, _, which = layer.rpartition(".")
        return self.get_submodule(f"encoder.{gated}.gates.{which}" if gated else f"encoder.{layer}.{tap}")

    def _noise_shape(self) -> tuple[int, ...]:
        num_channels = sum(len(gates.log_alpha) for gates in self.encoder.l0_gates.values())
        return (math.prod(self.head.noise_shape) + num_channels,) if num_channels else self.head.noise_shape

    def _split(self, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """[B, *noise_shape] → the numbers of the head, [B, *its shape], and of each layer's L0 gates, [B, C]."""
        gates = self.encoder.l0_gates
        if not gates:
            return noise, {}
        counts = [len(each.log_alpha) for each in gates.values()]
        of_head, *of_gates = noise.split([math.prod(self.head.noise_shape), *counts], dim=1)
        return of_head.reshape(len(noise), *self.head.noise_shape), dict(zip(gates, of_gates, strict=True))


def _recordable(model: AutoencoderModel, image_size_px: int, latent_shape: tuple[int, ...]) -> tuple[LayerInfo, ...]:
    infos, side, attended = [], image_size_px, attended_layers(model)
    for layer in ARCHITECTURES[model.architecture].encoder:
        side //= layer.stride
        shape = (scaled(layer.channels, model.width), side, side)
        infos.append(LayerInfo(name=layer.name, shape=shape, tap="post", kind="conv"))
        for name in gate_names(model, layer.name) if layer.name in attended else ():
            shape_of_gates = (1, side, side) if name.endswith(PLACES) else shape[:1]
            infos.append(LayerInfo(name=name, shape=shape_of_gates, tap="post", kind="gate"))
        side //= layer.pooling
    return (*infos, LayerInfo(name=LATENT_LAYER, shape=latent_shape, tap="post", kind="latent"))


def build(model: AutoencoderModel, image_size_px: int, seed: int, *, pretrained: bool = True) -> Autoencoder:
    """A model with the weights that belong to a seed, on the CPU; torch's global random numbers do not move.

    Args:
        model: its settings.
        image_size_px: side of the images.
        seed: what its random weights are drawn from.
        pretrained: whether to read the weights that `model.pretrained` names; not where others replace them anyway.

    Raises:
        StudyError: if the model's settings do not go together with the image size, or pretrained weights are missing.
        ArtifactError: if pretrained weights are damaged or belong to another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Autoencoder(model, image_size_px)
    if pretrained:
        load_pretrained(network.encoder, model)
    return network
