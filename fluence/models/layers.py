"""The parts that networks are made of. Nothing works in place: every value can be recorded as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

Nonlinearity = Literal["relu", "linear"]
"""What follows a layer, for the scale of its initial weights."""


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers in float32 where mixed precision made them shorter; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes. Its gradient is again a sum over all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose batch is that of all processes together, on CPU (gloo) and GPU (NCCL).

    One process uses PyTorch's own. With several, mean and variance are those of the global batch, also where
    the processes hold unequal shares of it; every process then has the same running statistics. (PyTorch's
    `SyncBatchNorm` refuses the CPU.) Gradients are those of the sum of the processes' losses.

    Source: Ioffe & Szegedy 2015, algorithm 1.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        x = at_least_float32(input)
        mean, variance, count = _global_moments(x)
        self._follow(mean.detach(), variance.detach(), count)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised = (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, as PyTorch does: with the unbiased variance."""
        self.num_batches_tracked.add_(1)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], biased variance [C] and count [] per channel, of the batches [B, C, H, W] of all processes.

    The variance is summed around the global mean, in a second pass: a sum of squares would cancel in float32.
    """
    local_count = x.new_tensor([x.numel() / x.shape[1]])
    sums = _SumOverProcesses.apply(torch.cat([x.sum(dim=(0, 2, 3)), local_count]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    squares = (x - mean[:, None, None]).square().sum(dim=(0, 2, 3))
    return mean, _SumOverProcesses.apply(squares) / count, count


def norm_layer(kind: str, channels: int) -> nn.Module:
    """The normalisation of [B, channels, H, W] maps that a study calls `none`, `batch` or `instance`."""
    layers: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "batch": lambda: SyncedBatchNorm2d(channels),
        "instance": lambda: nn.InstanceNorm2d(channels, affine=True),  # Ulyanov et al. 2016
    }
    return layers[kind]()


def he_normal(layer: nn.Conv2d | nn.Linear, nonlinearity: Nonlinearity = "relu") -> None:
    """Draw weights that keep the variance of the signal through the layer; biases become zero.

    Source: He et al. 2015, eq. 10. Without it a VGG16 without normalisation does not train from scratch.
    """
    nn.init.kaiming_normal_(layer.weight, nonlinearity=nonlinearity)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class ConvUnit(nn.Module):
    """3 × 3 convolution, normalisation, ReLU and, if asked for, a max-pooling.

    `activation` is the place where the unit is recorded: its input is the value before the non-linearity, its
    output the value after it.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, pool: bool, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=norm == "none")
        self.norm = norm_layer(norm, out_channels)
        self.activation = nn.ReLU()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        he_normal(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W']."""
        return self.pool(self.activation(self.norm(self.conv(x))))


class SubpixelConv(nn.Module):
    """3 × 3 convolution whose channels are laid out as pixels: the map becomes twice as wide and high.

    Initialised so that the four pixels made from one position are equal (ICNR), which starts the layer as a
    convolution followed by nearest-neighbour upsampling and leaves no chequerboard.

    Source: Shi et al. 2016 (PixelShuffle); Aitken et al. 2017, section 3.2 (ICNR).
    """

    FACTOR = 2

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool, nonlinearity: Nonlinearity = "relu") -> None:
        super().__init__()
        pixels = self.FACTOR**2
        self.conv = nn.Conv2d(in_channels, out_channels * pixels, 3, padding=1, bias=bias)
        self.shuffle = nn.PixelShuffle(self.FACTOR)
        he_normal(self.conv, nonlinearity)
        with torch.no_grad():
            one_of_each = self.conv.weight[::pixels].clone()
            self.conv.weight.copy_(one_of_each.repeat_interleave(pixels, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, 2 H, 2 W]."""
        return self.shuffle(self.conv(x))


class UpUnit(nn.Module):
    """Sub-pixel convolution, normalisation and ReLU: [B, in, H, W] → [B, out, 2 H, 2 W]."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: str) -> None:
        super().__init__()
        self.up = SubpixelConv(in_channels, out_channels, bias=norm == "none")
        self.norm = norm_layer(norm, out_channels)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, 2 H, 2 W]."""
        return self.activation(self.norm(self.up(x)))
