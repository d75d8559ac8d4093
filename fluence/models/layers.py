"""The parts that networks are made of. Nothing works in place: every value can be recorded as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

Nonlinearity = Literal["relu", "linear"]
"""What follows a layer, for the scale of its initial weights."""


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers in float32 where mixed precision made them shorter; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _GlobalNorm(torch.autograd.Function):
    """Normalises a share of a batch by mean and variance of the whole; one exchange each way, whatever the maps' size.

    Forward exchanges the moments of each share, which Chan's formula joins without cancellation; backward exchanges
    the sums of the gradient and of gradient × normalised value. All else is PyTorch's own fused batch normalisation.

    Source: Ioffe & Szegedy 2015, algorithm 1 and section 3; Chan, Golub & LeVeque 1979, eq. 2.1.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _global_moments(x)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return functional.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of x [B, C, H, W], weight [C] and bias [C]; those of the last two are this share's alone."""
        x, weight, mean, variance, count = ctx.saved_tensors
        # With `train` off this is the gradient at fixed moments; the sums are those of this share.
        gradient, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([by_bias, by_weight])
        dist.all_reduce(sums)
        rate = torch.rsqrt(variance + ctx.eps)
        slope = weight * rate.square() * sums[1] / count
        offset = weight * rate * sums[0] / count - slope * mean
        through_moments = torch.addcmul(offset[:, None, None], slope[:, None, None], x)
        return gradient - through_moments, by_weight, by_bias, None


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], biased variance [C] and count [] per channel, of the shares [B, C, H, W] of all processes."""
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    share = torch.cat([mean, variance, x.new_tensor([x.numel() / x.shape[1]])])
    shares = [torch.empty_like(share) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, share)
    means, variances = torch.stack(shares)[:, :-1].unflatten(1, (2, -1)).unbind(1)
    counts = torch.stack(shares)[:, -1:]
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return mean, variance, count


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
        normalised, mean, variance, count = _GlobalNorm.apply(x, self.weight, self.bias, self.eps)
        self._follow(mean, variance, count)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, as PyTorch does: with the unbiased variance."""
        self.num_batches_tracked.add_(1)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)


class InstanceNorm2d(nn.InstanceNorm2d):
    """Instance normalisation with learned scale and offset, of a batch that may be empty (PyTorch's refuses it).

    Source: Ulyanov et al. 2016, section 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        return super().forward(input) if len(input) else input


def norm_layer(kind: str, channels: int) -> nn.Module:
    """The normalisation of [B, channels, H, W] maps that a study calls `none`, `batch` or `instance`."""
    layers: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "batch": lambda: SyncedBatchNorm2d(channels),
        "instance": lambda: InstanceNorm2d(channels),
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
    """Convolution, normalisation, non-linearity, gates if there are any, and, if asked for, a max-pooling.

    `pre` and `post` are where the unit is recorded: their outputs are the values before the non-linearity, and after
    it and the gates.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, pool: bool, norm: str, gates: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=norm == "none")
        self.norm = norm_layer(norm, out_channels)
        self.pre = nn.Identity()
        self.activation = nn.ReLU()
        self.gates = gates or nn.Identity()
        self.post = nn.Identity()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        he_normal(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W']."""
        return self.pool(self.post(self.gates(self.activation(self.pre(self.norm(self.conv(x)))))))


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
