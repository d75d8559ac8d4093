"""A loss or a gradient that is no finite number: noticed before the optimiser step, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fluence.errors import Diverged

GRADIENT = "gradient_norm"


class DivergenceWatch:
    """Remembers the first step whose loss or gradient was not finite; from that step on, nothing is learned any more.

    It costs no waiting for the device: steps after the first bad one are left out there, and the process reads the
    verdict when it reads results anyway. What is lost is the time of those steps, never the weights.

    Args:
        terms: names of the loss terms that `look` gets, in their order.
        device: where they are.
    """

    def __init__(self, terms: Sequence[str], device: torch.device) -> None:
        self._names = (*terms, GRADIENT)
        self._first = torch.full((), -1, dtype=torch.int64, device=device)
        self._values = torch.zeros(len(self._names), dtype=torch.float64, device=device)

    def look(self, step: int, terms: Tensor, gradient_norm: Tensor, forgiven: Tensor) -> Tensor:
        """Whether to leave this step out, bool [].

        Args:
            step: its number.
            terms: sums of the loss terms over the global batch, float64 [num_terms].
            gradient_norm: float32 [].
            forgiven: whether a gradient that is not finite is no harm (bool [], see `LossScaler.forgives`).
        """
        bad = ~torch.isfinite(terms).all() | (~torch.isfinite(gradient_norm) & ~forgiven)
        is_first = bad & (self._first < 0)
        values = torch.cat([terms, gradient_norm.reshape(1).double()])
        self._values = torch.where(is_first, values, self._values)
        self._first = torch.where(is_first, step, self._first)
        return (self._first >= 0) | forgiven

    def check(self, steps_per_epoch: int, remedy: str) -> None:
        """Waits for the device and raises if a step was bad.

        Raises:
            Diverged: with the epoch, the step, the terms that were not finite, and what to try.
        """
        step = int(self._first)
        if step < 0:
            return
        bad = [n for n, finite in zip(self._names, torch.isfinite(self._values).tolist(), strict=True) if not finite]
        raise Diverged(
            f"diverged in epoch {step // steps_per_epoch + 1}, at step {step + 1}: not finite: {', '.join(bad)}; "
            f"{remedy}"
        )
