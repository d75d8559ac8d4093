"""Decoders: from a latent to an image."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from fluence.architectures import NUM_COLOURS, DecoderLayer, scaled
from fluence.models.layers import Nonlinearity, Style, convolution, he_normal, last_convolution
from fluence.models.norms import norm_layer, spectral_norm
from fluence.models.upsampling import UPSAMPLINGS
from fluence.study import AutoencoderModel


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to what came in, and a ReLU: [B, C, H, W] → [B, C, H, W].

    The second convolution starts from weights divided by √(number of blocks): each block then adds its share of
    variance, and a decoder without normalisation does not begin with a saturated image. It has 2 · (9 C² + C)
    parameters, or 2 · (9 C² + 2 C) with batch or instance normalisation.

    Source: He et al. 2016, figure 2 (basic block, identity shortcut); De & Smith 2020, section 3 (scale of the branch).
    """

    def __init__(self, channels: int, style: Style, num_blocks: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            convolution(channels, channels, style),
            norm_layer(style.norm, channels),
            nn.ReLU(),
            convolution(channels, channels, style, nonlinearity="linear"),
            norm_layer(style.norm, channels),
        )
        self.activation = nn.ReLU()
        with torch.no_grad():
            last_convolution(self.branch[3]).weight.div_(num_blocks**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        return self.activation(x + self.branch(x))


def build_decoder(
    layers: tuple[DecoderLayer, ...],
    model: AutoencoderModel,
    latent_shape: tuple[int, ...],
    map_shape: tuple[int, int, int],
) -> nn.Sequential:
    """The layers of a decoder, by name: [B, *latent_shape] → logits [B, 3, H, W].

    A latent vector is first laid out as a map of `map_shape`, the shape of the encoder's last one. Neither norm nor
    ReLU follows the last layer.
    """
    decoder = nn.Sequential(OrderedDict(_layers(layers, model, latent_shape, map_shape)))
    if model.norms.decoder == "spectral":
        spectral_norm(decoder)
    return decoder


def _layers(
    layers: tuple[DecoderLayer, ...],
    model: AutoencoderModel,
    latent_shape: tuple[int, ...],
    map_shape: tuple[int, int, int],
) -> Iterator[tuple[str, nn.Module]]:
    style, wide = Style.of(model, "decoder"), latent_shape[0]
    if len(latent_shape) == 1:
        yield "entry", _vector_to_map(latent_shape[0], map_shape)
        wide = map_shape[0]
    ends = [layer for layer, following in pairwise(layers) if following.doubles]
    for layer in layers[:-1]:
        channels = scaled(layer.channels, model.width)
        yield layer.name, _unit(layer, wide, channels, model.upsampling, style)
        if model.residual and layer in ends:
            yield f"{layer.name}_residual", ResidualBlock(channels, style, len(ends))
        wide = channels
    yield layers[-1].name, _layer(layers[-1], wide, NUM_COLOURS, model.upsampling, Style(), "linear")


def _unit(layer: DecoderLayer, in_channels: int, out_channels: int, upsampling: str, style: Style) -> nn.Sequential:
    """A layer, normalisation and ReLU."""
    made = _layer(layer, in_channels, out_channels, upsampling, style)
    return nn.Sequential(OrderedDict(layer=made, norm=norm_layer(style.norm, out_channels), activation=nn.ReLU()))


def _layer(
    layer: DecoderLayer, in_channels: int, out_channels: int, upsampling: str, style: Style,
    nonlinearity: Nonlinearity = "relu",
) -> nn.Module:  # fmt: skip
    make = UPSAMPLINGS[upsampling] if layer.doubles else convolution
    return make(in_channels, out_channels, style, nonlinearity=nonlinearity)


def _vector_to_map(size: int, map_shape: tuple[int, int, int]) -> nn.Sequential:
    """[B, size] → [B, C, h, w]."""
    channels, height, width = map_shape
    linear = nn.Linear(size, channels * height * width)
    he_normal(linear)
    return nn.Sequential(linear, nn.ReLU(), nn.Unflatten(1, map_shape))
