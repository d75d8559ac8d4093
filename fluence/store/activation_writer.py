"""Writing an activation file, or one shard of it; `fluence.store.activations` tells what is in it.

While it grows the file is called `<name>.partial`. All space is allocated before the first block is written, so that a
disk that is too small is found at once. Blocks count, in `<name>.partial.json`, only when they have reached the disk:
killed at any moment, the file continues behind the last block that counts. A finished file is complete or does not
exist.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from fluence.errors import ArtifactError
from fluence.store.compression import write_compressed
from fluence.store.exhibits import Exhibits, allocate_units, write_exhibits, write_units
from fluence.store.files import atomic_path, explained, read_json, reserve, trim, write_json
from fluence.store.layers import (
    FORMAT,
    KIND,
    LayerInfo,
    Which,
    allocate,
    num_bytes,
    write_counted,
    write_layer_info,
    write_texts,
)
from fluence.store.packed import LockedError, open_checked, write_header
from fluence.store.precision import FITS, check_rows

_SLACK_BYTES = 16 * 2**20  # for what HDF5 itself keeps, and for the samples
_KEEPING_SHARE, _KEEP_WITHIN_S = 0.05, 30.0
"""Waiting for the disk may take this share of the time; what is older than so many seconds is kept all the same."""


class ActivationWriter:
    """Writes an activation file block by block, and continues one that was interrupted.

    Args:
        path: the file to write.
        key: hash of what determines the values; a partial file with another key is started again.
        image_ids: the rated images, in their order.
        reference_ids: the training images that ε is chosen on.
        layers: what is recorded.
        probes: names of the values recorded once per image.
        float32_layers: layers that do not fit into float16, with the reason.
        attributes: JSON-serialisable facts to keep with the file.
        compression: name of the filter that the finished file is compressed with; None to leave it as it is.
        counted: names of layers of which the file holds no values: their histograms are kept elsewhere.
        units: places of the units of each layer that are kept apart to be looked at.
        before_keep: called with the number of images that are about to count.

    Attributes:
        rows_done: images that are written, from the first on.
        rows_kept: those of them that count, whatever happens now.

    Raises:
        ArtifactError: the disk is full, the folder is not writable, or another process writes this file.
    """

    def __init__(
        self,
        path: Path,
        *,
        key: str,
        image_ids: Sequence[str],
        reference_ids: Sequence[str],
        layers: Sequence[LayerInfo],
        probes: Sequence[str],
        float32_layers: Mapping[str, str] | None = None,
        attributes: dict[str, Any] | None = None,
        compression: str | None = None,
        counted: Collection[str] = (),
        units: Mapping[str, np.ndarray] | None = None,
        before_keep: Callable[[int], None] = lambda num_images: None,
    ) -> None:
        self._path, self._partial = path, path.with_name(f"{path.name}.partial")
        self._commit = path.with_name(f"{path.name}.partial.json")
        self._image_ids, self._reference_ids = list(image_ids), list(reference_ids)
        self._order, self._probes = tuple(layers), list(probes)
        self._layers = tuple(layer for layer in layers if layer.name not in counted)
        self._units, self._before_keep = dict(units or {}), before_keep
        self._float32, self._compression = dict(float32_layers or {}), compression
        self._policy = {"key": key, "images": len(image_ids), "float32_layers": sorted(self._float32)}
        self._policy |= {"counted": sorted(counted)} if counted else {}
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            done = self._rows_on_disk()
            if done is None:
                self._create({"key": key, **(attributes or {})})
            self.rows_done = done or 0
            # Without a cache of chunks, what is written goes straight to its place.
            self._file = h5py.File(self._partial, "r+", rdcc_nbytes=0)
        self.rows_kept = self.rows_done
        self._kept_at, self._keeping_s = time.monotonic(), 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _rows_on_disk(self) -> int | None:
        """Number of rows that an interrupted extraction of the same key has left, or None."""
        try:
            open_checked(self._partial, KIND, FORMAT, "r+").close()
            commit = read_json(self._commit)
        except LockedError:
            raise
        except ArtifactError:
            return None
        return int(commit["rows_done"]) if commit["policy"] == self._policy else None

    def _create(self, attributes: dict[str, Any]) -> None:
        self._commit.unlink(missing_ok=True)
        self._partial.unlink(missing_ok=True)
        try:
            self._allocate(attributes)
        except OSError:
            self._partial.unlink(missing_ok=True)
            raise
        self._count(0)

    def _allocate(self, attributes: dict[str, Any]) -> None:
        space = _SLACK_BYTES + sum(
            num_bytes((len(ids), layer.num_units), self._dtype(layer).itemsize)
            for layer in self._layers
            for ids in (self._image_ids, self._reference_ids)
        )
        space += sum(num_bytes((len(self._image_ids), len(units)), 4) for units in self._units.values())
        reserve(self._partial, space)
        with h5py.File(self._partial, "w") as file:
            reserve(self._partial, space)
            write_header(file, KIND, FORMAT, attributes)
            write_texts(file, "image_id", self._image_ids)
            write_texts(file, "reference_id", self._reference_ids)
            for group, ids in (("layers", self._image_ids), ("reference", self._reference_ids)):
                for layer in self._layers:
                    shape = (len(ids), layer.num_units)
                    dataset = allocate(file, f"{group}/{layer.name}", shape, self._dtype(layer).name)
                    write_layer_info(dataset, layer, self._float32.get(layer.name, FITS))
            group = file.require_group("layers")
            group.attrs["order"] = json.dumps([layer.name for layer in self._order])
            write_counted(group, [layer for layer in self._order if layer not in self._layers])
            file.create_group("probes").attrs["order"] = json.dumps(self._probes)
            for probe in self._probes:
                allocate(file, f"probes/{probe}", (len(self._image_ids),), "float64")
            for layer in self._order:
                if layer.name in self._units:
                    allocate_units(file, layer.name, self._units[layer.name], len(self._image_ids), self._dtype(layer))
        reserve(self._partial, self._partial.stat().st_size + _SLACK_BYTES)

    def _dtype(self, layer: LayerInfo) -> np.dtype:
        return np.dtype("float32" if layer.name in self._float32 else "float16")

    def write_block(
        self,
        start: int,
        layers: Mapping[str, np.ndarray],
        probes: Mapping[str, np.ndarray],
        units: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Writes the images from `start` on.

        Args:
            start: the first image.
            layers: values [images, units] of every layer that is stored.
            probes: values [images] of every probe.
            units: values [images, kept units] of the units that are kept apart.

        Raises:
            NeedsFloat32: a layer does not fit into float16.
            ArtifactError: a value is NaN or infinite, blocks are not in order, units are missing, or the disk is full.
        """
        units = units or {}
        if start != self.rows_done:
            raise ArtifactError(f"{self._path}: image {start} was given, image {self.rows_done} is next")
        if missing := set(self._units) - set(units):
            raise ArtifactError(f"{self._path}: the units of {', '.join(sorted(missing))} were not given")
        num_images = len(next(iter((*probes.values(), *layers.values())), ()))
        with explained(self._path):
            for name, values in layers.items():
                self._write_rows(f"layers/{name}", self._image_ids, start, values)
            for name, values in probes.items():
                self._check_probe(name, start, values)
                self._file[f"probes/{name}"][start : start + num_images] = values
            for name, values in units.items():
                write_units(self._file, name, start, values)
            self.rows_done += num_images
        if time.monotonic() - self._kept_at >= min(self._keeping_s / _KEEPING_SHARE, _KEEP_WITHIN_S):
            self.keep()

    def write_reference(self, start: int, layers: Mapping[str, np.ndarray]) -> None:
        """Writes training images from `start` on, values [images, units] of every layer. May be repeated.

        Raises:
            NeedsFloat32: a layer does not fit into float16.
            ArtifactError: a value is NaN or infinite, or the disk is full.
        """
        with explained(self._path):
            for name, values in layers.items():
                self._write_rows(f"reference/{name}", self._reference_ids, start, values)

    def _write_rows(self, dataset: str, ids: list[str], start: int, values: np.ndarray) -> None:
        target = self._file[dataset]
        layer = dataset.rpartition("/")[2]
        stop = start + len(values)
        target[start:stop] = check_rows(values, target.dtype, layer, ids[start:stop])

    def _check_probe(self, probe: str, start: int, values: np.ndarray) -> None:
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ArtifactError(
                f"probe {probe}: {len(bad)} values are NaN or infinite, first in image "
                f"{self._image_ids[start + bad[0]]}; "
                + ("try a smaller record.sharpness.rho" if probe == "sharpness" else "train this run again")
            )

    def write_samples(
        self, which: Which, image_ids: Sequence[str], originals: np.ndarray, reconstructions: np.ndarray
    ) -> None:
        """Keeps images, uint8 [images, height, width, 3], beside their reconstructions. May be repeated."""
        with explained(self._path):
            group = self._file.require_group("samples")
            if which in group:
                del group[which]
            write_texts(group, f"{which}/image_id", image_ids)
            group.create_dataset(f"{which}/originals", data=originals)
            group.create_dataset(f"{which}/reconstructions", data=reconstructions)

    def write_exhibits(self, exhibits: Exhibits) -> None:
        """Keeps what the network makes of a few images. May be repeated.

        Raises:
            ArtifactError: the disk is full.
        """
        with explained(self._path):
            reserve(self._partial, self._file.id.get_filesize() + exhibits.num_bytes + _SLACK_BYTES)
            write_exhibits(self._file, exhibits)

    def keep(self) -> None:
        """Sees to it that what is written so far has reached the disk, and counts it.

        Raises:
            ArtifactError: the disk is full.
        """
        started = time.monotonic()
        with explained(self._path):
            self._sync()
            self._before_keep(self.rows_done)
            self._count(self.rows_done)
        self.rows_kept, self._kept_at = self.rows_done, time.monotonic()
        self._keeping_s = self._kept_at - started

    def finish(self) -> None:
        """Gives the file its name.

        Raises:
            ArtifactError: images are missing.
        """
        if self.rows_done != len(self._image_ids):
            raise ArtifactError(f"{self._path}: {self.rows_done} of {len(self._image_ids)} images written")
        self.keep()
        with explained(self._path):
            self._file.close()
            trim(self._partial)
            if self._compression:
                with atomic_path(self._path) as temporary:
                    write_compressed(self._partial, temporary, self._compression)
                self._partial.unlink()
            else:
                os.replace(self._partial, self._path)
            self._commit.unlink(missing_ok=True)

    def _count(self, rows_done: int) -> None:
        write_json(self._commit, {"policy": self._policy, "rows_done": rows_done})

    def _sync(self) -> None:
        self._file.flush()
        descriptor = os.open(self._partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
