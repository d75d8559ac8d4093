"""Every way to double a map: its size, its variance, its parameters, and that it keeps things in their places."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fluence.models import build
from fluence.models.layers import Style
from fluence.models.upsampling import UPSAMPLINGS, SubpixelConv, as_pixels
from tests.fluence.models.every_model import model as settings_of

STYLES = {"whole": Style(), "separable-3": Style(separable_px=3), "separable-7": Style(separable_px=7)}


@pytest.fixture(params=STYLES)
def style(request) -> Style:
    torch.manual_seed(0)
    return STYLES[request.param]


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("side", [(1, 1), (4, 3)])
def test_sides_double(upsampling, style, side):
    height, width = side
    assert UPSAMPLINGS[upsampling](6, 5, style)(torch.randn(2, 6, *side)).shape == (2, 5, 2 * height, 2 * width)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("nonlinearity", ["relu", "linear"])
def test_mean_square_stays_until_the_relu(upsampling, style, nonlinearity):
    """He's weights double it before a ReLU; averaging neighbours (`bilinear`) takes some away."""
    layer = UPSAMPLINGS[upsampling](64, 64, style, nonlinearity)
    gain = layer(torch.randn(4, 64, 32, 32)).square().mean() / (2 if nonlinearity == "relu" else 1)
    assert (0.3 if upsampling == "bilinear" else 0.7) < gain < 1.3


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_what_stands_in_a_corner_stays_there(upsampling, style):
    """A corner of the map decides on that corner of the enlarged one, and on nothing as far as the filters do not."""
    x = torch.zeros(1, 4, 16, 16)
    layer = UPSAMPLINGS[upsampling](4, 4, style)
    at_rest = layer(x)
    x[..., :2, :2] = 1
    changed = (layer(x) - at_rest).abs().sum(1)[0] > 1e-7
    assert changed[:4, :4].any()
    assert not changed[14:].any()
    assert not changed[:, 14:].any()


@pytest.mark.parametrize(
    ("upsampling", "whole", "separable"),
    [
        ("pixelshuffle", 9 * 6 * 20 + 20, 25 * 6 + 6 * 20 + 20),
        ("transposed", 16 * 6 * 5 + 5, 36 * 6 + 6 * 5 + 5),
        ("nearest", 9 * 6 * 5 + 5, 25 * 6 + 6 * 5 + 5),
        ("bilinear", 9 * 6 * 5 + 5, 25 * 6 + 6 * 5 + 5),
    ],
)
def test_parameters_by_hand(upsampling, whole, separable):
    assert num_parameters(UPSAMPLINGS[upsampling](6, 5, Style())) == whole
    assert num_parameters(UPSAMPLINGS[upsampling](6, 5, Style(separable_px=5))) == separable


def test_icnr_starts_as_nearest_neighbour_upsampling():
    torch.manual_seed(0)
    layer = SubpixelConv(6, 5, Style())
    x = torch.randn(2, 6, 4, 3)
    out = layer(x)
    one_of_each = nn.functional.conv2d(x, layer.conv.weight[:5], layer.conv.bias[:5], padding=1)
    nearest = one_of_each.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(out, nearest)
    assert out.std() > 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("sides", [(4, 3), (2, 1)])
def test_pixels_are_those_of_pixel_shuffle_under_another_numbering(layout, channels, sides):
    x = torch.randn(2, 4 * channels, *sides).contiguous(memory_format=layout)
    by_channel = x.unflatten(1, (4, channels)).transpose(1, 2).flatten(1, 2)
    laid_out = as_pixels(x, 2)
    assert torch.equal(laid_out, nn.functional.pixel_shuffle(by_channel, 2))
    assert laid_out.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("upsampling", ["pixelshuffle", "nearest"])
def test_these_start_without_chequerboard(upsampling, style):
    layer = UPSAMPLINGS[upsampling](6, 5, style)
    if upsampling == "nearest":
        layer = layer.enlarge
    blocks = layer(torch.randn(2, 6, 4, 4)).unflatten(2, (4, 2)).unflatten(4, (4, 2))
    assert torch.equal(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks))


def test_every_pixel_of_a_transposed_convolution_is_made_from_as_many_numbers():
    """Chequerboards come from filters that the stride does not divide: some pixels then get more than others."""
    layer = UPSAMPLINGS["transposed"](3, 2, Style())
    nn.init.ones_(layer.conv.weight)
    inside = layer(torch.ones(1, 3, 6, 6))[..., 1:-1, 1:-1]
    assert torch.equal(inside, torch.full_like(inside, 3 * 4))


def test_transposed_convolution_written_out():
    torch.manual_seed(0)
    layer, x = UPSAMPLINGS["transposed"](2, 3, Style()), torch.randn(1, 2, 3, 3)
    expected = torch.zeros(3, 2 * 3 + 2, 2 * 3 + 2, dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            for channel in range(2):
                stamp = x[0, channel, row, column].double() * layer.conv.weight[channel].double()
                expected[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += stamp.detach()
    torch.testing.assert_close(layer(x)[0].double(), expected[:, 1:-1, 1:-1], rtol=1e-4, atol=1e-5)


def test_decoder_of_a_fresh_model_starts_without_chequerboard():
    model = build(settings_of(width=1 / 8), 64, 0).eval()
    image = model(torch.rand(2, 3, 64, 64)).reconstruction
    blocks = image.reshape(2, 3, 32, 2, 32, 2)
    assert torch.equal(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks))
