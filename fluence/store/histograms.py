"""Packed histograms: how often each float16 value occurs in a layer's response to an image, without the empty bins.

    image_id                UTF-8 text [images]
    layers/<layer>/bits     uint16 [bins], the raw bits of a float16 value; of one image after the other
    layers/<layer>/counts   uint32 [bins], how many units have that value
    layers/<layer>/start    int64 [images + 1], where the bins of each image begin
    reference/<layer>/…     the same for the training images that ε is chosen on
    attributes              format, kind = "histograms", made_from, and what the writer adds

A float16 has 65,536 values, so this is exact: everything that does not depend on where in a layer a value stands can be
computed from it. Bits ascend within an image: non-negative values upwards, then negative ones downwards.

Opened by a friend, the values of the first image and how often each occurs:

    layer = h5py.File("run.histograms.h5")["layers/conv1"]
    bins = slice(*layer["start"][:2])
    values, counts = layer["bits"][bins].view("float16"), layer["counts"][bins]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from fluence.errors import ArtifactError
from fluence.store.activations import LayerInfo
from fluence.store.files import atomic_path, reserve, trim
from fluence.store.packed import open_checked, read_header, write_header

FORMAT = 1
KIND = "histograms"
NUM_BINS = 1 << 16
SMALLEST_COUNTED = 16_384
"""Units of the smallest layer whose histograms are kept: below it they are hardly smaller than the layer itself."""
_CHUNK_BINS = 1 << 17
_SLACK_BYTES = 8 * 2**20  # for what HDF5 itself keeps


def is_kept(layer: LayerInfo, dtype: np.dtype) -> bool:
    """Whether histograms of a layer that is stored with this dtype are kept; others are read again when needed."""
    return dtype == np.float16 and layer.num_units >= SMALLEST_COUNTED


@dataclass(frozen=True)
class Histograms:
    """Histograms of some images.

    Attributes:
        bits: raw bits of float16 values, uint16 [bins], ascending within each image.
        counts: number of units with that value, uint32 [bins], at least 1.
        start: where the bins of each image begin, int64 [images + 1].
    """

    bits: np.ndarray
    counts: np.ndarray
    start: np.ndarray

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def num_bytes(self) -> int:
        """Space that they take."""
        return self.bits.nbytes + self.counts.nbytes + self.start.nbytes

    @staticmethod
    def none() -> Histograms:
        """Of no image."""
        return Histograms(np.empty(0, np.uint16), np.empty(0, np.uint32), np.zeros(1, np.int64))

    @staticmethod
    def joined(pieces: Sequence[Histograms]) -> Histograms:
        """Those of the images of several pieces, one after the other."""
        if len(pieces) == 1:
            return pieces[0]
        ends = np.cumsum([0, *(len(piece.bits) for piece in pieces)])
        starts = [piece.start[1:] + end for piece, end in zip(pieces, ends, strict=False)]
        bits, counts = ([getattr(piece, name) for piece in pieces] for name in ("bits", "counts"))
        empty = Histograms.none()
        return Histograms(
            np.concatenate([empty.bits, *bits]),
            np.concatenate([empty.counts, *counts]),
            np.concatenate([empty.start, *starts]),
        )


class HistogramWriter:
    """Writes a file of histograms block by block, its layers in any order; it appears when the `with` block ends well.

    Args:
        path: the file to write.
        made_from: what the histograms were counted from; a reader that expects another gets nothing.
        image_ids: the images, in their order.
        attributes: JSON-serialisable facts to keep with the file.

    Raises:
        UnwritableError: the disk is full or the folder is not writable.
        ArtifactError: at the end of the `with` block, a layer has not one histogram for each image.
    """

    def __init__(
        self, path: Path, *, made_from: str, image_ids: Sequence[str], attributes: dict[str, Any] | None = None
    ) -> None:
        self._path, self._image_ids = path, list(image_ids)
        self._header = {"made_from": made_from, **(attributes or {})}

    def __enter__(self) -> Self:
        self._atomic = atomic_path(self._path)
        self._temporary = self._atomic.__enter__()
        try:
            reserve(self._temporary, _SLACK_BYTES)
            self._file = h5py.File(self._temporary, "w")
            self._make_room(64 * len(self._image_ids))
            write_header(self._file, KIND, FORMAT, self._header)
            ids = np.array(self._image_ids, dtype=object)
            self._file.create_dataset("image_id", data=ids, dtype=h5py.string_dtype())
            self._file.create_group("layers")
        except BaseException as error:
            self._atomic.__exit__(type(error), error, None)
            raise
        return self

    def append(self, layer: str, histograms: Histograms) -> None:
        """Adds the next images of a layer."""
        self._append(f"layers/{layer}", histograms)

    def append_reference(self, layer: str, histograms: Histograms) -> None:
        """Adds the next training images that ε of a layer is chosen on."""
        self._append(f"reference/{layer}", histograms)

    def _append(self, name: str, histograms: Histograms) -> None:
        self._make_room(histograms.num_bytes + 3 * 4 * _CHUNK_BINS)
        if name not in self._file:
            _create(self._file.create_group(name))
        group = self._file[name]
        before = len(group["bits"])
        for column, values in (
            ("bits", histograms.bits),
            ("counts", histograms.counts),
            ("start", histograms.start[1:] + before),
        ):
            dataset = group[column]
            end = len(dataset)
            dataset.resize(end + len(values), axis=0)
            dataset[end:] = values

    def _make_room(self, num_bytes: int) -> None:
        reserve(self._temporary, self._file.id.get_filesize() + num_bytes + _SLACK_BYTES)

    def _check(self) -> None:
        for name, group in self._file["layers"].items():
            if len(group["start"]) - 1 != len(self._image_ids):
                raise ArtifactError(
                    f"{self._path}: layer {name} has histograms of {len(group['start']) - 1} images, not of "
                    f"{len(self._image_ids)}"
                )

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool | None:
        try:
            if error is None:
                self._check()
        except ArtifactError as problem:
            self._file.close()
            self._atomic.__exit__(type(problem), problem, None)
            raise
        self._file.close()
        trim(self._temporary)
        return self._atomic.__exit__(kind, error, trace)


class HistogramFile:
    """A finished file of histograms, opened for reading; a context manager.

    Attributes:
        path: of the file.
        made_from: what the histograms were counted from.
        image_ids: text [images].
        layers: names of the layers that are in it.
        reference_layers: names of those with histograms of the training images.

    Raises:
        ArtifactError: the file is missing, truncated, foreign, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self._file = file = open_checked(path, KIND, FORMAT)
        self.path = path
        self.made_from = str(read_header(file)["made_from"])
        self.image_ids = file["image_id"].asstr()[:]
        self.layers = frozenset(file["layers"])
        self.reference_layers = frozenset(file.get("reference", ()))
        self._starts = {name: file[f"layers/{name}/start"][:] for name in self.layers}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, layer: str, start: int, stop: int) -> Histograms:
        """Histograms of a layer for the images from `start` to before `stop`.

        Raises:
            ArtifactError: the file is damaged.
        """
        starts = self._starts[layer][start : stop + 1]
        bins = slice(int(starts[0]), int(starts[-1]))
        return self._read(f"layers/{layer}", bins, starts - starts[0])

    def reference(self, layer: str) -> Histograms:
        """Histograms of a layer for the training images that ε is chosen on."""
        group = f"reference/{layer}"
        return self._read(group, slice(None), self._file[f"{group}/start"][:])

    def _read(self, group: str, bins: slice, start: np.ndarray) -> Histograms:
        try:
            bits, counts = self._file[f"{group}/bits"][bins], self._file[f"{group}/counts"][bins]
        except OSError as error:
            raise ArtifactError(f"{self.path}: damaged ({error}); delete it and run again") from error
        return Histograms(bits, counts, start)


def _create(group: h5py.Group) -> None:
    for name, dtype in (("bits", "uint16"), ("counts", "uint32"), ("start", "int64")):
        first = np.zeros(int(name == "start"), dtype)
        group.create_dataset(name, data=first, maxshape=(None,), chunks=(_CHUNK_BINS,))
