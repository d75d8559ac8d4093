"""The parts that networks are made of. Nothing works in place: every value can be recorded as it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from fluence.models.architectures import ConvLayer
from fluence.study import Model

Nonlinearity = Literal["relu", "linear"]
"""What follows a layer, for the scale of its initial weights."""


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers in float32 where mixed precision made them shorter; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """The context in which operations on `x` keep its precision; torch knows none for its `meta` device."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


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


def norm_layer(kind: str, channels: int) -> nn.Module:
    """The normalisation of [B, channels, H, W] maps that a study calls `none`, `batch` or `instance`.

    That of the weights, `spectral`, leaves the maps alone; see `convolution`.
    """
    layers: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "spectral": nn.Identity,
        "batch": lambda: SyncedBatchNorm2d(channels),
        "instance": lambda: nn.InstanceNorm2d(channels, affine=True),  # Ulyanov et al. 2016
    }
    return layers[kind]()


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value σ, as one step of the power method per pass estimates it.

    The weight is read as a matrix with one row for each output. The estimates u of the left and v of the right singular
    vector are buffers: part of the weights of a model, the same in every process, since they depend on nothing but the
    weights, and still in eval mode. PyTorch's `spectral_norm` computes the same, but not inside autocast.

    Source: Miyato et al. 2018, section 2.1 and algorithm 1.

    Attributes:
        rests: whether u and v stay in train mode too; see `power_iterations_rest`.
    """

    FIRST_ITERATIONS = 15
    SMALLEST = 1e-12
    """A weight of zeros stays one."""
    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, output_dim: int) -> None:
        """Draws u and v, and brings them near those of `weight`, whose dimension `output_dim` counts outputs."""
        super().__init__()
        self.output_dim, self.rests = output_dim, False
        matrix = self._matrix(weight.detach())
        self.register_buffer("u", functional.normalize(matrix.new_empty(len(matrix)).normal_(), dim=0))
        self.register_buffer("v", functional.normalize(matrix.new_empty(matrix.shape[1]).normal_(), dim=0))
        for _ in range(self.FIRST_ITERATIONS):
            self._iterate(matrix)

    def forward(self, weight: Tensor) -> Tensor:
        """A weight → the same over σ = uᵀ W v, in float32 at least."""
        with without_autocast(weight):
            matrix = self._matrix(weight)
            if self.training and not self.rests:
                self._iterate(matrix.detach())
            # Copies: the next pass moves u and v, and this one's backward pass still needs them.
            sigma = torch.dot(self.u.clone(), torch.mv(matrix, self.v.clone()))
            return weight / sigma.clamp(min=self.SMALLEST)

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.movedim(self.output_dim, 0).flatten(1)

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        self.u.copy_(functional.normalize(torch.mv(matrix, self.v), dim=0, eps=self.SMALLEST))
        self.v.copy_(functional.normalize(torch.mv(matrix.T, self.u), dim=0, eps=self.SMALLEST))


def spectral_norm(network: nn.Module) -> None:
    """Constrain the weight of every convolution and fully connected layer in a network, whose weights are drawn."""
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            constraint = SpectralNorm(layer.weight, output_dim=int(isinstance(layer, nn.ConvTranspose2d)))
            parametrize.register_parametrization(layer, "weight", constraint)


@contextmanager
def power_iterations_rest(network: nn.Module) -> Iterator[None]:
    """Inside the block no pass moves the singular vectors of spectral normalisation, also not in train mode.

    For a second pass over the same batch, as sharpness-aware minimisation makes it at other weights.
    """
    norms = [module for module in network.modules() if isinstance(module, SpectralNorm)]
    for norm in norms:
        norm.rests = True
    try:
        yield
    finally:
        for norm in norms:
            norm.rests = False


def he_normal(layer: nn.Conv2d | nn.Linear, nonlinearity: Nonlinearity = "relu") -> None:
    """Draw weights that keep the variance of the signal through the layer; biases become zero.

    Source: He et al. 2015, eq. 10. Without it a VGG16 without normalisation does not train from scratch.
    """
    nn.init.kaiming_normal_(layer.weight, nonlinearity=nonlinearity)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@dataclass(frozen=True)
class Style:
    """How the convolutions of one part of a network are made.

    Attributes:
        norm: `none`, `batch`, `instance` or `spectral`.
        separable_px: side of the filters of depthwise-separable convolutions; None makes whole ones.
        activation: `relu` or `lwta`.
    """

    norm: str = "none"
    separable_px: int | None = None
    activation: str = "relu"

    @classmethod
    def of(cls, model: Model, part: Literal["encoder", "decoder"]) -> Style:
        """That of a part of a model. Only encoders have another activation than ReLU."""
        separable = model.separable.kernel_px if model.separable and part in model.separable.parts else None
        return cls(getattr(model.norms, part), separable, model.activation if part == "encoder" else "relu")

    @property
    def whole(self) -> Style:
        """The same without separable convolutions."""
        return replace(self, separable_px=None)

    @property
    def bias(self) -> bool:
        """Whether convolutions need a bias: not where a normalisation of their maps has one."""
        return self.norm in ("none", "spectral")


def depthwise_separable(
    in_channels: int, out_channels: int, kernel_px: int, *, stride: int, bias: bool, nonlinearity: Nonlinearity
) -> nn.Sequential:
    """One k × k filter for each channel, then a 1 × 1 convolution; nothing stands between them.

    In · k² + in · out weights instead of in · out · k².

    Source: Howard et al. 2017, section 3.1; without a non-linearity between, as Chollet 2017, section 4.7.
    """
    depthwise = nn.Conv2d(
        in_channels, in_channels, kernel_px, stride, padding=kernel_px // 2, groups=in_channels, bias=False
    )
    pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
    he_normal(depthwise, "linear")
    he_normal(pointwise, nonlinearity)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))


def convolution(
    in_channels: int,
    out_channels: int,
    style: Style,
    *,
    kernel_px: int = 3,
    stride: int = 1,
    padding_px: int = 1,
    nonlinearity: Nonlinearity = "relu",
) -> nn.Module:
    """A convolution, or a separable one with filters of its own size that divides the map as much."""
    if style.separable_px:
        return depthwise_separable(
            in_channels, out_channels, style.separable_px, stride=stride, bias=style.bias, nonlinearity=nonlinearity
        )
    conv = nn.Conv2d(in_channels, out_channels, kernel_px, stride, padding_px, bias=style.bias)
    he_normal(conv, nonlinearity)
    return conv


class LocalWinnerTakesAll(nn.Module):
    """Of every two neighbouring channels the larger value passes and the other one becomes zero, at each position.

    Of two equal values the first passes. Gradients reach winners alone. Half of the values pass, as with ReLU, and
    for symmetric ones their mean square is halved too, so that the initial weights for ReLU fit. The larger of two
    negative values passes as it is.

    Source: Srivastava et al. 2013, section 3, with blocks of two.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W], C even."""
        first, second = x.unflatten(1, (-1, 2)).unbind(2)
        # "Loses" rather than "wins": so written, a value that is not a number passes, and is found.
        first, second = torch.where(first < second, 0, first), torch.where(second <= first, 0, second)
        return torch.stack([first, second], dim=2).flatten(1, 2)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "lwta": LocalWinnerTakesAll}


class ConvUnit(nn.Module):
    """Convolution, normalisation, non-linearity, gates if there are any, and, if asked for, a max-pooling.

    `pre` and `post` are where the unit is recorded: their outputs are the values before the non-linearity, and after
    it and the gates.
    """

    def __init__(
        self, in_channels: int, out_channels: int, layer: ConvLayer, style: Style, gates: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = convolution(
            in_channels, out_channels, style,
            kernel_px=layer.kernel_px, stride=layer.stride, padding_px=layer.padding_px,
        )  # fmt: skip
        if style.norm == "spectral":
            spectral_norm(self.conv)
        self.norm = norm_layer(style.norm, out_channels)
        self.pre = nn.Identity()
        self.activation = ACTIVATIONS[style.activation]()
        self.gates = gates or nn.Identity()
        self.post = nn.Identity()
        self.pool = nn.MaxPool2d(layer.pool_px, 2, (layer.pool_px - 1) // 2) if layer.pool_px else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W']."""
        return self.pool(self.post(self.gates(self.activation(self.pre(self.norm(self.conv(x)))))))
