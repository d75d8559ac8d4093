"""Ways to enlarge a map to twice its side. Each is a convolution that knows no norm and no non-linearity."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fluence.models.layers import Nonlinearity, Style, convolution, he_normal, last_convolution


class SubpixelConv(nn.Module):
    """Convolution whose channels are laid out as pixels.

    Initialised so that the four pixels made from one position are equal (ICNR), which starts the layer as a
    convolution followed by nearest-neighbour upsampling and leaves no chequerboard.

    The convolution's channels are ordered by (row, column, channel), where torch's PixelShuffle has (channel, row,
    column): the same network under another numbering, in which a map with channels last is laid out by copying runs of
    numbers, two to ten times as fast.

    Source: Shi et al. 2016 (PixelShuffle); Aitken et al. 2017, section 3.2 (ICNR).
    """

    FACTOR = 2

    def __init__(self, in_channels: int, out_channels: int, style: Style, nonlinearity: Nonlinearity = "relu") -> None:
        super().__init__()
        pixels = self.FACTOR**2
        self.conv = convolution(in_channels, out_channels * pixels, style, nonlinearity=nonlinearity)
        weight = last_convolution(self.conv).weight
        with torch.no_grad():
            weight.copy_(weight[::pixels].repeat(pixels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, 2 H, 2 W]."""
        return as_pixels(self.conv(x), self.FACTOR)


def as_pixels(x: Tensor, factor: int) -> Tensor:
    """[B, (row, column, channel), H, W] → [B, channel, factor · H, factor · W], in the memory layout of `x`."""
    num_images, num_channels, height, width = x.shape
    channels = num_channels // factor**2
    enlarged = (num_images, height * factor, width * factor, channels)
    if x.stride(1) == 1:  # channels last: each row of pixels is made of runs of factor · channels numbers
        rows = x.permute(0, 2, 3, 1).unflatten(3, (factor, factor * channels)).transpose(2, 3)
        return rows.reshape(enlarged).permute(0, 3, 1, 2)
    places = x.unflatten(1, (factor, factor, channels)).permute(0, 3, 4, 1, 5, 2)
    return places.reshape(num_images, channels, *enlarged[1:3])


def transposed_conv(
    in_channels: int, out_channels: int, style: Style, nonlinearity: Nonlinearity = "relu"
) -> nn.Module:
    """Transposed convolution, kernel 4, stride 2: every pixel is made from as many numbers, so that none is favoured.

    A separable one has depthwise filters of one pixel more than `separable_px`, an even number, and then a 1 × 1
    convolution.

    Source: Dumoulin & Visin 2016, section 4; Odena, Dumoulin & Olah 2016 (kernels that the stride divides).
    """
    if not style.separable_px:
        whole = _transposed(in_channels, out_channels, 4, groups=1, bias=style.bias, nonlinearity=nonlinearity)
        return nn.Sequential(OrderedDict(conv=whole))
    kernel_px = style.separable_px + 1
    depthwise = _transposed(in_channels, in_channels, kernel_px, groups=in_channels, bias=False, nonlinearity="linear")
    pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=style.bias)
    he_normal(pointwise, nonlinearity)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))


def _transposed(
    in_channels: int, out_channels: int, kernel_px: int, *, groups: int, bias: bool, nonlinearity: Nonlinearity
) -> nn.ConvTranspose2d:
    """[B, in_channels, H, W] → [B, out_channels, 2 H, 2 W]; its weights keep the variance, its biases are zero.

    A pixel is made from (kernel_px / 2)² positions: the quarter of the filter that meets it.
    """
    layer = nn.ConvTranspose2d(
        in_channels, out_channels, kernel_px, stride=2, padding=kernel_px // 2 - 1, groups=groups, bias=bias
    )
    fan_in = in_channels // groups * (kernel_px // 2) ** 2
    nn.init.normal_(layer.weight, std=nn.init.calculate_gain(nonlinearity) / math.sqrt(fan_in))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _enlarged(mode: str) -> Callable[..., nn.Module]:
    def make(in_channels: int, out_channels: int, style: Style, nonlinearity: Nonlinearity = "relu") -> nn.Module:
        conv = convolution(in_channels, out_channels, style, nonlinearity=nonlinearity)
        return nn.Sequential(OrderedDict(enlarge=nn.Upsample(scale_factor=2, mode=mode), conv=conv))

    return make


UPSAMPLINGS: dict[str, Callable[..., nn.Module]] = {
    "pixelshuffle": SubpixelConv,
    "transposed": transposed_conv,
    "nearest": _enlarged("nearest"),
    "bilinear": _enlarged("bilinear"),
}
"""What a study can name: a function of the numbers of channels in and out, the style and what follows the layer, which
makes a module [B, in, H, W] → [B, out, 2 H, 2 W]. `nearest` and `bilinear` are free of parameters and precede a
convolution (Odena, Dumoulin & Olah 2016)."""
