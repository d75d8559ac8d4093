"""The activation file: one HDF5 per run, with every recorded layer of every rated image.

    image_id                     UTF-8 text [images]
    layers/<layer>               float16 or float32 [images, units], units flattened from (channels, height, width)
        attributes               shape, tap, kind, dtype_reason
    reference/<layer>            the same for training images, to choose ε on
    reference_id                 UTF-8 text [reference images]
    probes/<probe>               float64 [images]
    samples/<which>/…            image_id, originals and reconstructions (uint8), for the report
    attributes                   format, kind = "activations", key, and what the extractor adds

Opened by a friend: `h5py.File("run.h5")["layers/conv1"][0]` is layer conv1 of the first image.

While it grows the file is called `<name>.partial`. All space is allocated before the first block is written and a
block is counted, in `<name>.partial.json`, only when it has reached the disk: killed at any moment, the file
continues with the first block that is missing. A finished file is complete or does not exist.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import h5py
import numpy as np
import pandas as pd

from fluence.errors import ArtifactError, FluenceError
from fluence.store.files import explained, read_json, reserve, trim, write_json
from fluence.store.packed import open_checked, read_header, write_header

FORMAT = 1
KIND = "activations"
_SLACK_BYTES = 16 * 2**20  # for what HDF5 itself keeps, and for the samples
_CHUNK_IMAGES, _CHUNK_UNITS = 32, 8192
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
Which = Literal["rated", "training"]


@dataclass(frozen=True)
class LayerInfo:
    """A recorded place in a network.

    Attributes:
        name: for example `conv3_2` or `mu`.
        shape: of one image's values, (channels, height, width) or (size,).
        tap: recorded after (`post`) or before (`pre`) the non-linearity.
        kind: `conv`, `latent`, or `gate` for what multiplies a convolution's channels or places.
    """

    name: str
    shape: tuple[int, ...]
    tap: str
    kind: str

    @property
    def num_units(self) -> int:
        """Number of values per image."""
        return int(np.prod(self.shape))


class NeedsFloat32(FluenceError):
    """A layer's values do not fit into float16; extract it again as float32."""

    def __init__(self, layer: str, largest: float) -> None:
        self.layer = layer
        super().__init__(f"layer {layer} reaches {largest:.3g}, more than float16 can hold")


class ActivationWriter:
    """Writes an activation file block by block, and continues one that was interrupted.

    Args:
        path: the file to write.
        key: hash of what determines the values; a partial file with another key is started again.
        image_ids: the rated images, in their order.
        reference_ids: the training images that ε is chosen on.
        layers: what is recorded.
        probes: names of the values recorded once per image.
        float32_layers: layers that do not fit into float16.
        attributes: JSON-serialisable facts to keep with the file.

    Raises:
        ArtifactError: the disk is full or the folder is not writable.
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
        float32_layers: frozenset[str] = frozenset(),
        attributes: dict[str, Any] | None = None,
    ) -> None:
        self._path, self._partial = path, path.with_name(f"{path.name}.partial")
        self._commit = path.with_name(f"{path.name}.partial.json")
        self._num_images = len(image_ids)
        self._policy = {"key": key, "float32_layers": sorted(float32_layers)}
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.rows_done = self._rows_on_disk()
            if self.rows_done is None:
                try:
                    self._create(key, image_ids, reference_ids, layers, probes, float32_layers, attributes or {})
                except OSError:
                    self._partial.unlink(missing_ok=True)
                    raise
                self._count(0)
            self._file = h5py.File(self._partial, "r+")

    rows_done: int | None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _rows_on_disk(self) -> int | None:
        """Number of rows that an interrupted extraction of the same key has left, or None."""
        try:
            commit = read_json(self._commit)
            open_checked(self._partial, KIND, FORMAT).close()
        except ArtifactError:
            return None
        return int(commit["rows_done"]) if commit["policy"] == self._policy else None

    def _create(
        self,
        key: str,
        image_ids: Sequence[str],
        reference_ids: Sequence[str],
        layers: Sequence[LayerInfo],
        probes: Sequence[str],
        float32_layers: frozenset[str],
        attributes: dict[str, Any],
    ) -> None:
        self._commit.unlink(missing_ok=True)
        self._partial.unlink(missing_ok=True)
        num_bytes = sum(
            _num_bytes((len(ids), layer.num_units), 4 if layer.name in float32_layers else 2)
            for layer in layers
            for ids in (image_ids, reference_ids)
        )
        reserve(self._partial, num_bytes + _SLACK_BYTES)
        with h5py.File(self._partial, "w") as file:
            reserve(self._partial, num_bytes + _SLACK_BYTES)
            write_header(file, KIND, FORMAT, {"key": key, **attributes})
            _write_text(file, "image_id", image_ids)
            _write_text(file, "reference_id", reference_ids)
            for layer in layers:
                dtype = "float32" if layer.name in float32_layers else "float16"
                dataset = _allocate(file, f"layers/{layer.name}", (len(image_ids), layer.num_units), dtype)
                _allocate(file, f"reference/{layer.name}", (len(reference_ids), layer.num_units), dtype)
                dataset.attrs["shape"] = layer.shape
                dataset.attrs["tap"], dataset.attrs["kind"] = layer.tap, layer.kind
                dataset.attrs["dtype_reason"] = "out of float16's range" if dtype == "float32" else "fits float16"
            file["layers"].attrs["order"] = json.dumps([layer.name for layer in layers])
            file.create_group("probes").attrs["order"] = json.dumps(list(probes))
            for probe in probes:
                _allocate(file, f"probes/{probe}", (len(image_ids),), "float64")
        reserve(self._partial, self._partial.stat().st_size + _SLACK_BYTES)

    def _count(self, rows_done: int) -> None:
        write_json(self._commit, {"policy": self._policy, "rows_done": rows_done})
        self.rows_done = rows_done

    def write_block(self, start: int, layers: dict[str, np.ndarray], probes: dict[str, np.ndarray]) -> None:
        """Writes the images from `start` on: values [images, units] of every layer, and [images] of every probe.

        Raises:
            NeedsFloat32: a value lies outside float16's range.
            ArtifactError: a value is NaN or infinite, or the disk is full.
        """
        with explained(self._path):
            for name, values in layers.items():
                self._write_layer(f"layers/{name}", name, start, values)
            for name, values in probes.items():
                self._check_probe(name, start, values)
                self._file[f"probes/{name}"][start : start + len(values)] = values
            self._sync()
            self._count(start + len(next(iter(layers.values()))))

    def write_reference(self, start: int, layers: dict[str, np.ndarray]) -> None:
        """Writes training images from `start` on, values [images, units] of every layer. May be repeated.

        Raises:
            NeedsFloat32: a value lies outside float16's range.
            ArtifactError: a value is NaN or infinite, or the disk is full.
        """
        with explained(self._path):
            for name, values in layers.items():
                self._write_layer(f"reference/{name}", name, start, values)

    def _check_probe(self, probe: str, start: int, values: np.ndarray) -> None:
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ArtifactError(
                f"probe {probe}: {len(bad)} values are NaN or infinite, first in image "
                f"{self._file['image_id'].asstr()[start + bad[0]]}; "
                + ("try a smaller record.sharpness.rho" if probe == "sharpness" else "train this run again")
            )

    def _write_layer(self, dataset: str, layer: str, start: int, values: np.ndarray) -> None:
        target = self._file[dataset]
        if not np.isfinite(values).all():
            ids = self._file["image_id" if dataset.startswith("layers/") else "reference_id"].asstr()
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            raise ArtifactError(
                f"layer {layer}: {np.count_nonzero(~np.isfinite(values))} values are NaN or infinite, first in "
                f"image {ids[start + bad[0]]} ({len(bad)} images of this block)"
            )
        largest = float(np.abs(values).max(initial=0))
        if target.dtype == np.float16 and largest > _LARGEST_FLOAT16:
            raise NeedsFloat32(layer, largest)
        target[start : start + len(values)] = values.astype(target.dtype)

    def write_samples(
        self, which: Which, image_ids: Sequence[str], originals: np.ndarray, reconstructions: np.ndarray
    ) -> None:
        """Keeps images, uint8 [images, height, width, 3], beside their reconstructions. May be repeated."""
        with explained(self._path):
            group = self._file.require_group("samples")
            if which in group:
                del group[which]
            _write_text(group, f"{which}/image_id", image_ids)
            group.create_dataset(f"{which}/originals", data=originals)
            group.create_dataset(f"{which}/reconstructions", data=reconstructions)

    def finish(self) -> None:
        """Gives the file its name.

        Raises:
            ArtifactError: images are missing.
        """
        if self.rows_done != self._num_images:
            raise ArtifactError(f"{self._path}: {self.rows_done} of {self._num_images} images written")
        self._sync()
        self._file.close()
        trim(self._partial)
        os.replace(self._partial, self._path)
        self._commit.unlink(missing_ok=True)

    def _sync(self) -> None:
        self._file.flush()
        descriptor = os.open(self._partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Activations:
    """A finished activation file, opened for reading; a context manager.

    Attributes:
        image_ids: text [images].
        reference_ids: text [reference images].
        layers: what is recorded, in the order of the network.
        probes: values recorded once per image, indexed by image_id.
        attributes: what the extractor wrote about the file, with its `key`.
        chunk_units: blocks of units that begin at multiples of this are read fastest.

    Raises:
        ArtifactError: the file is missing, truncated, foreign, or of another version.
    """

    chunk_units: int = _CHUNK_UNITS

    def __init__(self, path: Path) -> None:
        # Without a cache of chunks, what is asked for is read from its place, and not all that lies around it.
        self._file = file = open_checked(path, KIND, FORMAT, rdcc_nbytes=0)
        self.attributes = read_header(file)
        self.image_ids = file["image_id"].asstr()[:]
        self.reference_ids = file["reference_id"].asstr()[:]
        self.layers = tuple(_layer_info(file, name) for name in json.loads(file["layers"].attrs["order"]))
        order = json.loads(file["probes"].attrs["order"])
        index = pd.Index(self.image_ids, name="image_id")
        self.probes = pd.DataFrame({name: file[f"probes/{name}"][:] for name in order}, index=index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, layer: str, start: int, stop: int) -> np.ndarray:
        """Values of the images from `start` to before `stop`, as stored: float16 or float32 [images, units]."""
        return self._file[f"layers/{layer}"][start:stop]

    def read_units(self, layer: str, start: int, stop: int) -> np.ndarray:
        """Values of the units from `start` to before `stop` of all images, as stored: [images, stop − start]."""
        return self._file[f"layers/{layer}"][:, start:stop]

    def reference_units(self, layer: str, start: int, stop: int) -> np.ndarray:
        """The same as `read_units` of the training images: [reference images, stop − start]."""
        return self._file[f"reference/{layer}"][:, start:stop]

    def reference(self, layer: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Values of the training images that ε is chosen on, of all or of some: as stored [reference images, units]."""
        return self._file[f"reference/{layer}"][start:stop]

    def samples(self, which: Which) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, originals and reconstructions (uint8 [images, height, width, 3]) kept for the report."""
        group = self._file[f"samples/{which}"]
        return group["image_id"].asstr()[:], group["originals"][:], group["reconstructions"][:]


def _layer_info(file: h5py.File, name: str) -> LayerInfo:
    attributes = file[f"layers/{name}"].attrs
    shape = tuple(int(side) for side in attributes["shape"])
    return LayerInfo(name, shape, str(attributes["tap"]), str(attributes["kind"]))


def _write_text(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    group.create_dataset(name, data=np.array(list(values), dtype=object), dtype=h5py.string_dtype())


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Both walks are cheap: all units of some images, and some units of all images."""
    return tuple(map(min, shape, (_CHUNK_IMAGES, _CHUNK_UNITS) if len(shape) == 2 else shape))


def _num_bytes(shape: tuple[int, int], bytes_per_value: int) -> int:
    """Space of a layer on disk, where every chunk is whole."""
    return bytes_per_value * math.prod(
        -(-side // chunk) * chunk for side, chunk in zip(shape, _chunks(shape), strict=True)
    )


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    """A dataset whose whole space exists on disk at once, so that later blocks only overwrite raw bytes."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    if all(shape):
        creation.set_chunk(_chunks(shape))
    space = h5py.h5s.create_simple(shape)
    parent, _, leaf = name.rpartition("/")
    group = file.require_group(parent)
    return h5py.Dataset(h5py.h5d.create(group.id, leaf.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, creation))
