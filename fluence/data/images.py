"""Images in memory: which of them belong to a group, which are held out, and batches of them on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fluence.errors import StudyError
from fluence.study import group_slug

ALL = "all"
"""The group of every image."""
HELD_OUT = {"train": False, "training": False, "val": True, "validation": True, "test": True}
"""What the values of a column `split` mean; an empty one means training."""


def rows_of_group(table: pd.DataFrame, group: str, group_by: Sequence[str]) -> np.ndarray:
    """Positions of the images of one group in the table of a packed data set, int64, ascending.

    Raises:
        StudyError: the table lacks a column of `group_by`.
    """
    if group == ALL:
        return np.arange(len(table))
    missing = [column for column in group_by if column not in table]
    if missing:
        raise StudyError(
            f"data.group_by: the training images have no column {missing[0]!r}, which group {group!r} needs; "
            f"there are: {', '.join(map(str, table.columns))}"
        )
    columns = [table[column].astype(str) for column in group_by]
    slugs = [group_slug(values) for values in zip(*columns, strict=True)]
    return np.flatnonzero(np.array(slugs, dtype=object) == group)


@dataclass(frozen=True)
class Split:
    """Positions in a table, int64, ascending: the images to learn from, and those held out."""

    training: np.ndarray
    validation: np.ndarray


def split_rows(table: pd.DataFrame, rows: np.ndarray, validation_fraction: float) -> Split:
    """Divides images into those to learn from and those held out, the same way in every run of every study.

    A filled column `split` decides. Without one a hash decides, which keeps the images of one person, and duplicates,
    together. At least one person is held out if `validation_fraction` is above 0 and another one remains.

    Raises:
        StudyError: the column `split` holds a word that means nothing.
    """
    part = table.iloc[rows]
    if "split" in part and any(_text(value) for value in part["split"]):
        held_out = np.array([_is_held_out(_text(value)) for value in part["split"]], dtype=bool)
    else:
        held_out = _hashed(part, validation_fraction)
    return Split(rows[~held_out], rows[held_out])


def _is_held_out(word: str) -> bool:
    if word and word.lower() not in HELD_OUT:
        raise StudyError(f"column split: {word!r} is not understood; allowed: {', '.join(HELD_OUT)}, or nothing")
    return HELD_OUT.get(word.lower(), False)


def _hashed(table: pd.DataFrame, fraction: float) -> np.ndarray:
    positions = np.array([_position(cluster) for cluster in _clusters(table)])
    if fraction == 0 or len(np.unique(positions)) < 2:
        return np.zeros(len(table), dtype=bool)
    return positions < np.clip(fraction, np.nextafter(positions.min(), 1), positions.max())


def _position(cluster: str) -> float:
    """A number in [0, 1) that depends on a name alone."""
    return int.from_bytes(hashlib.sha256(cluster.encode()).digest()[:6], "big") / 2**48


def _clusters(table: pd.DataFrame) -> list[str]:
    """Who or what an image shows: the person, else the image that it duplicates, else itself."""
    columns = [table[c].map(_text) for c in ("person_id", "duplicate_of", "image_id") if c in table]
    return [next(filter(None, values), "") for values in zip(*columns, strict=True)]


def _text(value: object) -> str:
    return "" if pd.isna(value) else str(value).strip()


class ResidentImages:
    """Images that stay on the device as bytes; a batch of them becomes numbers when it is asked for.

    Args:
        pixels: uint8 [num_images, H, W, 3].
        device: where they stay.
        attributes: values of columns that go with the images, float [num_images, num_columns], NaN where unknown.
    """

    def __init__(self, pixels: np.ndarray, device: torch.device, attributes: np.ndarray | None = None) -> None:
        self._pixels = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
        self._attributes = None if attributes is None else torch.from_numpy(attributes.astype(np.float32)).to(device)

    def __len__(self) -> int:
        return len(self._pixels)

    def batch(self, images: Tensor, flip: Tensor | None = None) -> Tensor:
        """The chosen images, float32 [B, 3, H, W] in [0, 1], channels last in memory.

        Args:
            images: positions, int64 [B], on the device.
            flip: which of them to mirror left to right, bool [B], on the device.
        """
        pixels = self._pixels.index_select(0, images)
        if flip is not None:
            # With every bit of the mask set this is the mirrored image; `torch.where` is seven times slower on a CPU.
            mask = flip.to(torch.uint8).neg()[:, None, None, None]
            pixels ^= (pixels ^ pixels.flip(2)) & mask
        return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)

    def attributes_of(self, images: Tensor) -> Tensor | None:
        """Values of the columns of the chosen images, float32 [B, num_columns]; None if there are no columns.

        Args:
            images: positions, int64 [B], on the device.
        """
        return None if self._attributes is None else self._attributes.index_select(0, images)
