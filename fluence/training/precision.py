"""Which numbers a forward pass computes with, and the scale that keeps gradients of 16 bits from vanishing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from fluence.errors import StudyError
from fluence.study import Training

Precision = Literal["fp32", "bf16", "fp16"]
_NATIVE_BF16 = (8, 0)  # compute capability of the A100; a V100 (7.0) only emulates bf16, slowly
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(training: Training, device: torch.device) -> Precision:
    """What `training.precision` means on a device.

    Raises:
        StudyError: fp16 is asked for on a CPU.
    """
    if training.precision == "fp16" and device.type == "cpu":
        raise StudyError("training.precision: fp16 needs a GPU, and there is none here; allowed: auto, fp32, bf16")
    if training.precision != "auto":
        return training.precision
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= _NATIVE_BF16 else "fp16"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass."""
    return torch.autocast(device.type, _DTYPES[precision]) if precision in _DTYPES else nullcontext()


class LossScaler:
    """Multiplies the loss so that small gradients survive 16 bits; after an overflow it halves the factor.

    The rule and the constants are those of `torch.amp.GradScaler`. This one never asks the device for an answer, and it
    leaves it to the caller to divide the gradients and to leave a step out.

    Source: Micikevicius et al. 2018, section 3.2.

    Attributes:
        scale: the factor, float32 []; 1 for ever unless the precision is fp16.
    """

    GROWTH_INTERVAL = 2000
    SMALLEST = 2.0**-10
    """Gradients that overflow even so are no matter of scale."""

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self._active = precision == "fp16"
        self.scale = torch.tensor(65536.0 if self._active else 1.0, device=device)
        self._streak = torch.zeros((), dtype=torch.int64, device=device)

    def forgives(self, overflow: Tensor) -> Tensor:
        """Whether an overflow (bool []) only means that the factor was too large, bool []."""
        return overflow & self._active & (self.scale > self.SMALLEST)

    def update(self, overflow: Tensor) -> None:
        """Learns whether the gradients of this step overflowed, bool []."""
        if not self._active:
            return
        self._streak = torch.where(overflow, 0, self._streak + 1)
        grows = self._streak >= self.GROWTH_INTERVAL
        self.scale = torch.where(overflow, self.scale / 2, torch.where(grows, self.scale * 2, self.scale))
        self._streak = torch.where(grows, 0, self._streak)

    def state_dict(self) -> dict[str, Tensor]:
        """Its state, for a checkpoint."""
        return {"scale": self.scale, "streak": self._streak}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes a state back."""
        self.scale, self._streak = state["scale"].to(self.scale), state["streak"].to(self._streak)
