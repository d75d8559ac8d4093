"""What storing activations costs, by filter and shape of chunks: size, and speed of writing and of both walks.

    python benchmarks/compression.py results/NAME/activations/RUN.h5 …

Every combination writes the same layers to a file of its own, then reads them by images (all units of some images) and
by units (some units of all images), along the chunks, from the page cache and in one thread. Speeds are gigabytes of
float16 values per second, not of compressed bytes; the best of several rounds counts.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from fluence.store.activations import Activations

_BLOCK_BYTES = 32 * 2**20
FILTERS: dict[str, dict[str, object]] = {
    "none": {},
    "bitshuffle + lz4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "bitshuffle + zstd 1": dict(hdf5plugin.Bitshuffle(cname="zstd", clevel=1)),
    "blosc2 bitshuffle + lz4 5": dict(hdf5plugin.Blosc2(cname="lz4", clevel=5, filters=hdf5plugin.Blosc2.BITSHUFFLE)),
    "blosc2 bitshuffle + zstd 1": dict(hdf5plugin.Blosc2(cname="zstd", clevel=1, filters=hdf5plugin.Blosc2.BITSHUFFLE)),
    "blosc2 shuffle + lz4 5": dict(hdf5plugin.Blosc2(cname="lz4", clevel=5, filters=hdf5plugin.Blosc2.SHUFFLE)),
    "blosc2 shuffle + zstd 1": dict(hdf5plugin.Blosc2(cname="zstd", clevel=1, filters=hdf5plugin.Blosc2.SHUFFLE)),
    "zstd 1": dict(hdf5plugin.Zstd(clevel=1)),
    "shuffle + gzip 1": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
}
CHUNKS = ((1, 65536), (8, 8192), (32, 2048), (32, 8192), (128, 2048), (128, 8192))
FIXED_CHUNK, FIXED_FILTERS = (32, 8192), ("bitshuffle + lz4", "none")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every combination and prints two tables."""
    options = _parser().parse_args(arguments)
    layers = [layer for path in options.files for layer in _layers(path, options.images)]
    num_bytes = sum(values.nbytes for values in layers)
    zero = sum(np.count_nonzero(values == 0) for values in layers) / sum(values.size for values in layers)
    print(f"{len(layers)} layers, {num_bytes / 1e9:.2f} GB of float16, {zero:.0%} zeros")
    print(f"\n{'chunks of 32 images × 8,192 units':34}{_HEAD}")
    for name in FILTERS:
        _row(name, layers, FIXED_CHUNK, name, options)
    for name in FIXED_FILTERS:
        print(f"\n{name + ', chunks of':34}{_HEAD}")
        for chunk in CHUNKS:
            _row(f"{chunk[0]} × {chunk[1]:,}", layers, chunk, name, options)


_HEAD = f"{'ratio':>8}{'write':>8}{'images':>8}{'units':>8}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="activation files of real networks")
    parser.add_argument("--images", type=int, default=512, help="images of each (default 512)")
    parser.add_argument("--rounds", type=int, default=3, help="times each is run (default 3)")
    return parser


def _layers(path: Path, num_images: int) -> list[np.ndarray]:
    """The float16 layers of an activation file, [images, units] each."""
    with Activations(path) as source:
        layers = [source.read(layer.name, 0, num_images) for layer in source.layers]
    return [values for values in layers if values.dtype == np.float16]


def _row(label: str, layers: list[np.ndarray], chunk: tuple[int, int], name: str, options: argparse.Namespace) -> None:
    num_bytes = sum(values.nbytes for values in layers)
    with tempfile.TemporaryDirectory(dir=options.files[0].parent) as folder:
        path = Path(folder) / "x.h5"
        write = _best(options.rounds, _write, path, layers, chunk, FILTERS[name])
        ratio = num_bytes / path.stat().st_size
        images = _best(options.rounds, _read_images, path, chunk)
        units = _best(options.rounds, _read_units, path, chunk)
    speeds = "".join(f"{num_bytes / seconds / 1e9:>8.2f}" for seconds in (write, images, units))
    print(f"{label:34}{ratio:>8.2f}{speeds}", flush=True)


def _best(rounds: int, work: Callable[..., None], *arguments: object) -> float:
    """Seconds of the fastest round."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work(*arguments)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _write(path: Path, layers: list[np.ndarray], chunk: tuple[int, int], filter_: dict[str, object]) -> None:
    """In blocks of 128 images, as extraction does."""
    with h5py.File(path, "w") as file:
        for number, values in enumerate(layers):
            chunks = tuple(map(min, values.shape, chunk))
            dataset = file.create_dataset(str(number), values.shape, values.dtype, chunks=chunks, **filter_)
            for start in range(0, len(values), 128):
                dataset[start : start + 128] = values[start : start + 128]


def _read_images(path: Path, chunk: tuple[int, int]) -> None:
    with h5py.File(path) as file:
        for dataset in file.values():
            step = _step(dataset.shape[1], chunk[0])
            for start in range(0, len(dataset), step):
                dataset[start : start + step]


def _read_units(path: Path, chunk: tuple[int, int]) -> None:
    with h5py.File(path) as file:
        for dataset in file.values():
            step = _step(dataset.shape[0], chunk[1])
            for start in range(0, dataset.shape[1], step):
                dataset[:, start : start + step]


def _step(other_side: int, chunk_side: int) -> int:
    """Rows or columns of a block: whole chunks, about `_BLOCK_BYTES`."""
    return max(1, math.floor(_BLOCK_BYTES / 2 / other_side / chunk_side)) * chunk_side


if __name__ == "__main__":
    main()
