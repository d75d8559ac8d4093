"""How far a training has come: a small file for `fluence status`, and a bar for whoever watches."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tqdm import tqdm

from fluence.store.outcome import write_progress

INTERVAL_S = 3.0


@dataclass(frozen=True)
class Place:
    """A place in a training: epochs and steps done, and how many there are."""

    epoch: int
    epochs: int
    step: int
    steps: int


class Progress:
    """Tells how far a training has come, at most every few seconds.

    Args:
        path: the JSON file.
        key: the key of the task that trains.
        title: what to write beside the bar.
        active: whether this process is the one that tells.
        quiet: no bar. There is none either where standard error is no terminal.
    """

    def __init__(self, path: Path, key: str, *, title: str, active: bool, quiet: bool) -> None:
        self._path, self._key, self._title, self._active = path, key, title, active
        self._has_bar = active and not quiet and sys.stderr.isatty()
        self._loss: float | None = None
        self._num_images = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, place: Place) -> None:
        """Starts the clock and the bar, where the training stands now."""
        self._told_s = self._started_s = time.monotonic()
        self._bar = tqdm(
            total=place.steps, initial=place.step, desc=self._title, unit="step", dynamic_ncols=True, leave=False,
            disable=not self._has_bar,
        )  # fmt: skip

    def advance(self, num_images: int) -> bool:
        """Counts one step; True if it is time to `tell` again."""
        self._bar.update()
        self._num_images += num_images
        return self._active and time.monotonic() - self._told_s >= INTERVAL_S

    def tell(self, place: Place, loss: float | None) -> None:
        """Writes the file; without a loss, and with one that is no number, the loss told before stays."""
        if not self._active:
            return
        self._told_s = time.monotonic()
        if loss is not None and math.isfinite(loss):
            self._loss = loss
        speed = self._num_images / max(self._told_s - self._started_s, 1e-9)
        fraction = place.step / place.steps if place.steps else 1.0
        facts = {"loss": self._loss, "images_per_s": round(speed, 1)}
        text = f"epoch {place.epoch} of {place.epochs}"
        write_progress(self._path, self._key, fraction, text, **vars(place), **facts)
        self._bar.set_postfix(epoch=f"{place.epoch}/{place.epochs}", loss=self._loss, refresh=False)
