"""A smaller copy of a file of activations, for disks that are too small.

Nothing is compressed unless a study says so: a core writes a tenth and reads a sixth as fast (docs/performance.md). The
filter is Zstandard at level 1, which on real activations halves the size and is faster than all others that do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import hdf5plugin

from fluence.store.files import reserve, trim
from fluence.store.layers import CHUNK_IMAGES, CHUNK_UNITS

FILTERS = {"zstd": dict(hdf5plugin.Zstd(clevel=1))}
"""By their name in `record.compression`."""
_COLUMNS = 64 * CHUNK_UNITS
_COMPRESSED = ("layers", "reference")


def write_compressed(source: Path, target: Path, name: str) -> None:
    """Copies a complete file of activations, its layers compressed; memory does not grow with the file.

    Args:
        source: the file.
        target: the copy.
        name: of the filter.

    Raises:
        OSError: the disk cannot take a copy that turned out no smaller.
    """
    most = source.stat().st_size
    reserve(target, most)
    with h5py.File(source, rdcc_nbytes=0) as old, h5py.File(target, "w", rdcc_nbytes=0) as new:
        reserve(target, most)
        new.attrs.update(old.attrs)
        for key in old:
            if key in _COMPRESSED:
                new.create_group(key).attrs.update(old[key].attrs)
                for layer in old[key].values():
                    _copy(layer, new, name)
            else:
                old.copy(key, new)
    trim(target)


def _copy(layer: h5py.Dataset, file: h5py.File, name: str) -> None:
    filters = FILTERS[name] if layer.chunks else {}
    copied = file.create_dataset(layer.name, layer.shape, layer.dtype, chunks=layer.chunks, **filters)
    copied.attrs.update(layer.attrs)
    for block in _blocks(layer.shape):
        copied[block] = layer[block]


def _blocks(shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Whole chunks, at most 64 side by side."""
    for start in range(0, shape[0], CHUNK_IMAGES):
        for left in range(0, shape[1], _COLUMNS):
            yield slice(start, start + CHUNK_IMAGES), slice(left, left + _COLUMNS)
