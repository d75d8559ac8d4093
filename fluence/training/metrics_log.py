"""The loss terms of each epoch: added up on the device, written as one JSON object per line."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluence.store.files import explained, write_text


class EpochSums:
    """Running sums of one epoch, in float64 on the device: the loss terms of all images, and the gradient norms.

    Args:
        names: of the loss terms, and of the gradient norm at the end.
        device: where.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = tuple(names)
        self._values = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._counts = torch.zeros_like(self._values)

    def add(self, terms: Tensor, num_images: int, gradient_norm: Tensor) -> None:
        """Adds one step: sums of the terms over `num_images` images, float64 [num_terms], and a norm, [].

        What is not finite is left out; that can be the norm of a step whose 16-bit gradient overflowed.
        """
        values = torch.cat([terms, gradient_norm.reshape(1)])
        finite = torch.isfinite(values)
        self._values += torch.where(finite, values, 0)
        self._counts[:-1] += finite[:-1] * num_images
        self._counts[-1] += finite[-1]

    def means(self) -> dict[str, float]:
        """The means so far, by name; without what nothing was added to. Waits for the device."""
        columns = zip(self._names, self._values.tolist(), self._counts.tolist(), strict=True)
        return {name: value / count for name, value, count in columns if count}

    def clear(self) -> None:
        """Starts anew."""
        self._values.zero_()
        self._counts.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, for a checkpoint."""
        return {"values": self._values, "counts": self._counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes sums back."""
        self._values.copy_(state["values"])
        self._counts.copy_(state["counts"])


class MetricsLog:
    """`metrics.jsonl`. It holds no times, so that the same training gives the same bytes.

    Args:
        path: the file.
        writes: whether this process is the one that writes it.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.text = ""
        self._path, self._writes = path, writes

    def restart_from(self, text: str) -> None:
        """Makes the file what it was when a checkpoint was written; what was written later is computed again."""
        self.text = text
        if self._writes:
            write_text(self._path, text)

    def append(self, row: dict[str, Any]) -> None:
        """Adds one row."""
        line = json.dumps(row, allow_nan=False) + "\n"
        self.text += line
        if self._writes:
            with explained(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
