"""The parts that networks are made of. Nothing works in place: every value can be recorded as it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from fluence.architectures import ConvLayer
from fluence.models.norms import norm_layer, spectral_norm
from fluence.study import AutoencoderModel

Nonlinearity = Literal["relu", "linear"]
"""What follows a layer, for the scale of its initial weights."""


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
    def of(cls, model: AutoencoderModel, part: Literal["encoder", "decoder"]) -> Style:
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


def last_convolution(convolution: nn.Module) -> nn.Conv2d:
    """The 1 × 1 one of a separable convolution, or a whole one itself.

    Raises:
        TypeError: it is neither.
    """
    last = convolution[-1] if isinstance(convolution, nn.Sequential) else convolution
    if not isinstance(last, nn.Conv2d):
        raise TypeError(f"{type(last).__name__} is no convolution")
    return last


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
        self.gates = gates
        self.post = nn.Identity()
        self.pool = nn.MaxPool2d(layer.pool_px, 2, (layer.pool_px - 1) // 2) if layer.pool_px else nn.Identity()

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, in_channels, H, W], and what chance its gates have, → [B, out_channels, H', W']."""
        activity = self.activation(self.pre(self.norm(self.conv(x))))
        gated = activity if self.gates is None else self.gates(activity, noise)
        return self.pool(self.post(gated))
