"""Gates: numbers that multiply a layer's channels or places, computed from its own values or learned.

All of them are computed in float32, also inside autocast, where a softmax or a sum over places would overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fluence.architectures import attended_layers, channel_dropping_layers
from fluence.models.layers import he_normal
from fluence.models.norms import SyncedBatchNorm2d, at_least_float32, without_autocast
from fluence.study import Attention, AutoencoderModel, CbamAttention, SigmoidAttention, SoftmaxAttention

OPEN = 0.9
"""Where gates between 0 and 1 start: without normalisation, 13 layers that start half open pass one part in 8192."""
_OPEN_LOGIT = math.log(OPEN / (1 - OPEN))
_START_SD = 0.01  # of the last weights before a gate: the gates of a fresh network are almost equal

GAMMA, ZETA = -0.1, 1.1
"""Ends of the stretched interval of hard concrete gates: so that they reach 0 and 1."""


class ChannelGates(nn.Module):
    """A gate for each channel, from the mean and the largest value of each channel: [B, C, H, W] → [B, C].

    The two go through one perceptron C → C/r → C, and its two answers are added up before the non-linearity.

    Source: Woo et al. 2018, section 3.1 (channel attention module), eq. 2.
    """

    def __init__(self, channels: int, reduction: int, gate: Callable[[Tensor], Tensor], start: float = 0.0) -> None:
        """For `channels` channels; `gate` makes gates [B, C] of logits, which are about `start` in a fresh network."""
        super().__init__()
        narrow = max(1, channels // reduction)
        self.narrow, self.wide = nn.Linear(channels, narrow), nn.Linear(narrow, channels)
        self._gate = gate
        _begin_alive(self.narrow)
        nn.init.normal_(self.wide.weight, std=_START_SD)
        nn.init.constant_(self.wide.bias, start / 2)  # it is added twice

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C]."""
        with without_autocast(x):
            exact = torch.promote_types(x.dtype, torch.float32)
            pooled = torch.stack([x.mean((2, 3), dtype=exact), x.amax((2, 3)).to(exact)])
            return self._gate(self.wide(self.narrow(pooled).relu()).sum(0))


@torch.no_grad()
def _begin_alive(layer: nn.Linear) -> None:
    """Weights that leave no perceptron dead: every second unit starts as the opposite of the one before it.

    What is pooled is never negative and much alike for all images, so that each unit behind a ReLU would start dead
    for all of them with probability ½, and there may be only one or two. A last one without a pair starts positive.
    """
    he_normal(layer)
    layer.weight[1::2] = -layer.weight[: len(layer.weight) // 2 * 2 : 2]
    if len(layer.weight) % 2:
        layer.weight[-1].abs_()


class PlaceGates(nn.Module):
    """A gate for each place, from the largest and the mean value of its channels: [B, C, H, W] → [B, 1, H, W].

    Source: Woo et al. 2018, section 3.1 (spatial attention module), eq. 3; with their code's batch normalisation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = SyncedBatchNorm2d(1)
        he_normal(self.conv, "linear")
        nn.init.constant_(self.norm.bias, _OPEN_LOGIT)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, 1, H, W]."""
        with without_autocast(x):
            exact = torch.promote_types(x.dtype, torch.float32)
            pooled = torch.cat([x.amax(1, keepdim=True).to(exact), x.mean(1, keepdim=True, dtype=exact)], dim=1)
            return self.norm(self.conv(pooled)).sigmoid()


class HardConcreteGates(nn.Module):
    """A learned gate for each channel that can be exactly 0 and 1, and the expected number of open ones.

    In training each image draws its own gates; without noise they are the deterministic ones of testing.

    Source: Louizos, Welling & Kingma 2018, eq. 10 to 13.
    """

    def __init__(self, channels: int, temperature: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((channels,), _OPEN_LOGIT))
        self.temperature = temperature

    def forward(self, noise: Tensor | None) -> Tensor:
        """Standard normal numbers [B, C] → gates [B, C] in [0, 1]; or None → [1, C]."""
        if noise is None:
            return _stretched(self.log_alpha.sigmoid())[None]
        # Φ makes uniform numbers u of normal ones; this is ln u − ln(1 − u), also where u is 0 or 1 but for rounding.
        noise = at_least_float32(noise)
        logistic = torch.special.log_ndtr(noise) - torch.special.log_ndtr(-noise)
        return _stretched(((logistic + self.log_alpha) / self.temperature).sigmoid())

    def expected_open(self) -> Tensor:
        """Σ P(gate > 0) over the channels, []."""
        return (self.log_alpha - self.temperature * math.log(-GAMMA / ZETA)).sigmoid().sum()


def _stretched(concrete: Tensor) -> Tensor:
    return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


class Gates(nn.Module):
    """All gates of one layer: attention over channels, then over places, then L0 gates of channels."""

    def __init__(self, attention: Attention | None, temperature: float | None, channels: int) -> None:
        """For a layer of `channels` channels; `temperature` is that of its L0 gates, None if it has none."""
        super().__init__()
        self.channels = channel_gates(attention, channels) if attention else None
        self.places = PlaceGates() if isinstance(attention, CbamAttention) else None
        self.l0 = HardConcreteGates(channels, temperature) if temperature is not None else None

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, C, H, W] and the noise of the L0 gates [B, C] → [B, C, H, W]."""
        if self.channels is not None:
            x = _multiplied(x, self.channels(x)[:, :, None, None])
        if self.places is not None:
            x = _multiplied(x, self.places(x))
        if self.l0 is not None:
            x = _multiplied(x, self.l0(noise)[:, :, None, None])
        return x


def channel_gates(attention: Attention, channels: int) -> ChannelGates:
    """The channel gates that a study asks for: sigmoid, or a softmax with temperature times the channels."""
    match attention:
        case CbamAttention() | SigmoidAttention():
            return ChannelGates(channels, attention.reduction, torch.sigmoid, start=_OPEN_LOGIT)
        case SoftmaxAttention():
            return ChannelGates(channels, attention.reduction, lambda a: softmax_gates(a, attention.temperature))


def softmax_gates(logits: Tensor, temperature: float) -> Tensor:
    """C e^(a/t) / Σ e^(a/t): [B, C] → [B, C], whose mean over channels is 1, so that activations keep their scale."""
    below_largest = logits - logits.amax(1, keepdim=True)  # before the division, which then cannot overflow to NaN
    return logits.shape[1] * (below_largest / temperature).softmax(1)


def _multiplied(x: Tensor, gates: Tensor) -> Tensor:
    """The product in the precision of the gates, so that their gradient is summed in it, back in that of `x`."""
    return (x * gates).to(x.dtype)


def gates_of(model: AutoencoderModel) -> Callable[[str, int], Gates | None]:
    """What makes the gates of a layer of a model from its name and number of channels; None where it has none.

    Raises:
        StudyError: a chosen layer does not exist, or can have no gates.
    """
    attended, temperatures = attended_layers(model), channel_dropping_layers(model)

    def make(layer: str, channels: int) -> Gates | None:
        attention = model.attention if layer in attended else None
        if attention is None and layer not in temperatures:
            return None
        return Gates(attention, temperatures.get(layer), channels)

    return make
