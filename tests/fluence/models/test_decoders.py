"""Decoders: their layers, and residual blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fluence.models import build
from fluence.models.decoders import ResidualBlock
from fluence.models.layers import Style
from tests.fluence.models.every_model import model as settings_of


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def num_decoder_parameters(**settings) -> int:
    with torch.device("meta"):
        return num_parameters(build(settings_of(width=1, **settings), 64, 0).decoder)


def test_residual_block_written_out():
    torch.manual_seed(0)
    block, x = ResidualBlock(4, Style(), num_blocks=1), torch.randn(2, 4, 5, 5)
    first, last = (module for module in block.branch if isinstance(module, nn.Conv2d))
    inner = nn.functional.conv2d(x, first.weight, first.bias, padding=1).clamp(min=0)
    expected = (x + nn.functional.conv2d(inner, last.weight, last.bias, padding=1)).clamp(min=0)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("style", "expected"), [
    (Style(), 2 * (9 * 8 * 8 + 8)),
    (Style(norm="spectral"), 2 * (9 * 8 * 8 + 8)),
    (Style(norm="batch"), 2 * (9 * 8 * 8 + 2 * 8)),
    (Style(norm="instance"), 2 * (9 * 8 * 8 + 2 * 8)),
    (Style(separable_px=5), 2 * (25 * 8 + 8 * 8 + 8)),
])  # fmt: skip
def test_parameters_of_a_residual_block_by_hand(style, expected):
    assert num_parameters(ResidualBlock(8, style, num_blocks=1)) == expected


@pytest.mark.parametrize("architecture", ["small", "small-10", "vgg16-5", "alexnet-10"])
def test_a_residual_decoder_has_four_blocks(architecture):
    channels = {"small": (256, 128, 64, 32), "vgg16": (512, 256, 128, 64), "alexnet": (256, 192, 128, 64)}
    blocks = sum(2 * (9 * c * c + c) for c in channels[architecture.partition("-")[0]])
    plain = num_decoder_parameters(architecture=architecture)
    assert num_decoder_parameters(architecture=architecture, residual=True) == plain + blocks


def test_parameters_of_the_small_decoders_by_hand():
    latent, channels = 16, (256, 128, 64, 32)
    pairs = list(zip((latent, *channels), (*channels, 3), strict=True))
    assert num_decoder_parameters() == sum(4 * out * (9 * wide + 1) for wide, out in pairs)
    pairs = list(zip((latent, *channels), (*channels, 16), strict=True))
    ups = sum(4 * out * (9 * wide + 1) for wide, out in pairs)
    assert num_decoder_parameters(architecture="small-10") == ups + sum(c * (9 * c + 1) for c in channels) + 3 * (
        9 * 16 + 1
    )


def test_residual_blocks_of_a_fresh_decoder_keep_the_variance():
    torch.manual_seed(0)
    blocks = nn.Sequential(*(ResidualBlock(64, Style(), num_blocks=4) for _ in range(4)))
    x = torch.randn(4, 64, 16, 16).relu()
    assert 0.5 < blocks(x).var() / x.var() < 3  # without the scale it is 7


@pytest.mark.parametrize("architecture", ["small", "small-10"])
def test_gradient_reaches_the_first_layer_past_the_blocks(architecture):
    """Also where no branch lets it through."""
    network = build(settings_of(architecture=architecture, residual=True), 64, 0)
    for module in network.decoder.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.branch[3].weight)
    network(torch.rand(2, 3, 64, 64)).reconstruction.sum().backward()
    assert network.decoder.up1.layer.conv.weight.grad.abs().sum() > 0


def test_the_last_layer_is_whole_and_without_a_norm():
    network = build(settings_of(norm="batch", separable={"parts": ["decoder"]}, architecture="small-10"), 32, 0)
    assert isinstance(network.decoder[-1], nn.Conv2d)
    assert network.decoder[-1].groups == 1
    assert hasattr(network.decoder.conv1.layer, "depthwise")
