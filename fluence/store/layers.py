"""What an activation file holds, and how its datasets lie on the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import h5py
import numpy as np

FORMAT = 2
KIND = "activations"
CHUNK_IMAGES, CHUNK_UNITS = 32, 8192
"""Both walks are cheap: all units of some images, and some units of all images (benchmarks/compression.py)."""
UNIT_ORDER = "channel, row, column"
Which = Literal["rated", "training"]


@dataclass(frozen=True)
class LayerInfo:
    """A recorded place in a network.

    Attributes:
        name: for example `conv3_2` or `mu`.
        shape: of one image's values, (channels, height, width) or (size,).
        tap: recorded after (`post`) or before (`pre`) the non-linearity.
        kind: `conv`, `latent`, `gate` for what multiplies a convolution's channels or places, or `input` for pixels.
    """

    name: str
    shape: tuple[int, ...]
    tap: str
    kind: str

    @property
    def num_units(self) -> int:
        """Number of values per image."""
        return int(np.prod(self.shape))


def write_layer_info(dataset: h5py.Dataset, layer: LayerInfo, dtype_reason: str) -> None:
    """Writes what a layer is beside its values."""
    dataset.attrs["shape"] = layer.shape
    dataset.attrs["tap"], dataset.attrs["kind"] = layer.tap, layer.kind
    dataset.attrs["unit_order"], dataset.attrs["dtype_reason"] = UNIT_ORDER, dtype_reason


def read_layer_info(dataset: h5py.Dataset) -> LayerInfo:
    """What `write_layer_info` wrote."""
    attributes = dataset.attrs
    name = dataset.name.rpartition("/")[2]
    shape = tuple(int(side) for side in attributes["shape"])
    return LayerInfo(name, shape, str(attributes["tap"]), str(attributes["kind"]))


def write_counted(group: h5py.Group, layers: Sequence[LayerInfo]) -> None:
    """Writes what is recorded of layers of which the file holds no values."""
    group.attrs["counted"] = json.dumps([(one.name, one.shape, one.tap, one.kind) for one in layers])


def read_counted(group: h5py.Group) -> dict[str, LayerInfo]:
    """What `write_counted` wrote, by name."""
    found = json.loads(group.attrs.get("counted", "[]"))
    return {name: LayerInfo(name, tuple(shape), tap, kind) for name, shape, tap, kind in found}


def write_texts(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    """Writes UTF-8 texts [values]."""
    group.create_dataset(name, data=np.array(list(values), dtype=object), dtype=h5py.string_dtype())


def num_bytes(shape: tuple[int, int], bytes_per_value: int) -> int:
    """Space of a layer on disk, where every chunk is whole."""
    if not all(shape):
        return 0
    return bytes_per_value * math.prod(
        -(-side // chunk) * chunk for side, chunk in zip(shape, _chunks(shape), strict=True)
    )


def allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
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


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(min, shape, (CHUNK_IMAGES, CHUNK_UNITS) if len(shape) == 2 else shape))
