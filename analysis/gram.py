"""The Gram matrix of a layer: inner products of all pairs of images, streamed over blocks of units.

A principal component analysis of n images needs no more than their n × n inner products, however many units the layer
has. They are made block by block: float32 products of some units of all images, added up in float64. Memory is that of
two n × n matrices and two blocks.

Source: Sirovich 1987, part I (the method of snapshots).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np

from fluence.errors import ArtifactError, Interrupted
from fluence.store.files import atomic_path

BLOCK_UNITS = 16_384
"""Units per block: long products are fast, and their float32 sums still exact to some 1e-7."""
_BLOCK_VALUES = 1 << 24  # values of a block, 64 MiB as float32, where that many images leave room for a chunk
_KEEP_EVERY_S = 30.0
_LARGEST_EXPONENT = 40  # squares of values up to 2^40, summed over any layer, stay inside float32
_ROWS_AT_A_TIME = 8  # which stay in the cache
_SIGN_AND_NUMBER = np.int32(-0x70002000)  # bits of a float32 that a shifted float16 fills: 0x8fffe000
_FACTOR = np.float32(2.0**112)
_BEYOND_FLOAT16 = 65_536.0
_MADE_FROM, _UNITS_DONE, _GRAM = "made_from", "units_done", "gram"

Progress = Callable[[int, float], None]
"""Told the number of units done and the bytes read per second."""


class Units(Protocol):
    """A file of activations as it is read here: some units of all images (`fluence.store.activations.Activations`)."""

    image_ids: np.ndarray
    reference_ids: np.ndarray
    chunk_units: int  # units that lie together on disk

    def read_units(self, layer: str, start: int, stop: int) -> np.ndarray:
        """Values [images, stop − start]."""

    def reference_units(self, layer: str, start: int, stop: int) -> np.ndarray:
        """The same of the reference images."""


@dataclass(frozen=True)
class Kept:
    """Arrays on disk that hold only for what they were made from; a damaged or foreign file counts as none.

    Attributes:
        path: the file.
        made_from: everything that determines the arrays, in one text.
    """

    path: Path
    made_from: str

    def write(self, **arrays: np.ndarray) -> None:
        """Keeps the arrays, atomically.

        Raises:
            UnwritableError: the disk is full.
        """
        content: dict[str, Any] = arrays | {_MADE_FROM: np.array(self.made_from)}
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, **content)

    def read(self) -> dict[str, np.ndarray] | None:
        """The arrays, or None if there are none that hold."""
        try:
            with self.path.open("rb") as file, np.load(file) as arrays:  # the archive checks each array's sum
                if str(arrays[_MADE_FROM]) != self.made_from:
                    return None
                return {name: arrays[name] for name in arrays.files if name != _MADE_FROM}
        except FileNotFoundError:
            return None
        except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
            print(f"{self.path}: damaged ({error}); it is made again", flush=True)
            return None


def gram(
    source: Units,
    layer: str,
    num_units: int,
    *,
    with_reference: bool = False,
    kept: Kept | None = None,
    progress: Progress = lambda units, rate: None,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Inner products of all pairs of images over all units of a layer, up to a shift of the origin.

    K = (X − m)(X − m)ᵀ, where m is about the mean over the images. Centring K over any of its rows gives what centring
    X Xᵀ gives, since a shift of all images changes no difference between two of them; but without the common part of
    the images, which would cost digits. Blocks depend on the number of images, units and chunks alone: interrupted and
    continued, the sums are the same to the last bit.

    Args:
        source: the activations.
        layer: name of the layer.
        num_units: number of its units.
        with_reference: whether the reference images follow the rated ones as further rows.
        kept: where the unfinished matrix is kept every half minute; None keeps nothing.
        progress: told after every block.
        stop: asked after every block.

    Returns:
        float64 [n, n], symmetric.

    Raises:
        ArtifactError: a value is NaN or infinite; says of which image, and how many.
        Interrupted: `stop` answered True before the last block; what is done is kept.
        UnwritableError: the disk is full.
    """
    ids = np.concatenate([source.image_ids, source.reference_ids]) if with_reference else source.image_ids
    done, total = _continued(kept, len(ids)) if len(ids) else (num_units, np.zeros((0, 0)))
    step = block_units(len(ids), source.chunk_units)
    product = np.empty((len(ids), len(ids)), dtype=np.float32)
    room = np.empty(len(ids) * min(step, num_units), dtype=np.float32)
    saved = began = time.monotonic()
    num_bytes = 0
    for stop_at, block in _blocks(source, layer, range(done, num_units, step), num_units, with_reference):
        num_bytes += block.nbytes
        values = room[: block.size].reshape(block.shape)
        scale = _centre(block, values, layer, ids)
        np.matmul(values, values.T, out=product)
        total += product if scale == 1 else scale * product.astype(np.float64)
        progress(stop_at, num_bytes / max(time.monotonic() - began, 1e-9))
        is_stopped = stop_at < num_units and stop()
        if kept and (is_stopped or time.monotonic() - saved > _KEEP_EVERY_S):
            kept.write(**{_UNITS_DONE: np.array(stop_at), _GRAM: total})
            saved = time.monotonic()
        if is_stopped:
            raise Interrupted(f"stopped at unit {stop_at} of {num_units} of layer {layer}")
    return total


def block_units(num_rows: int, chunk_units: int) -> int:
    """Units per block: as many as fit, in whole chunks, so that no chunk is read twice."""
    room = min(BLOCK_UNITS, _BLOCK_VALUES // max(num_rows, 1))
    return max(chunk_units, room // chunk_units * chunk_units)


def _continued(kept: Kept | None, num_rows: int) -> tuple[int, np.ndarray]:
    """Units that an interrupted process has left, and their sums."""
    found = kept.read() if kept else None
    if found is None or _GRAM not in found:
        return 0, np.zeros((num_rows, num_rows))
    return int(found[_UNITS_DONE]), found[_GRAM]


def _blocks(
    source: Units, layer: str, starts: range, num_units: int, with_reference: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """End and values [n, units] of one block after the other; the next is read while one is worked on."""

    def read(start: int) -> tuple[int, np.ndarray]:
        end = min(start + starts.step, num_units)
        rated = source.read_units(layer, start, end)
        return end, np.concatenate([rated, source.reference_units(layer, start, end)]) if with_reference else rated

    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        coming = [reader.submit(read, start) for start in starts[:1]]
        for following in [*starts[1:], None]:
            current = coming.pop().result() if coming else None
            if following is not None:
                coming.append(reader.submit(read, following))
            if current is not None:
                yield current


def to_float32(values: np.ndarray, out: np.ndarray) -> None:
    """Writes float16 or float32 values [rows, units] into `out` as float32, exactly.

    Float16 is widened by its bits, some rows at a time, which is ten times as fast as numpy's own conversion: exponent
    and fraction move to their places in a float32, and the difference of the exponents' offsets is a factor 2^112.
    Infinite values and NaN so become 65,536 and more, which no float16 reaches.

    Args:
        values: in any order in memory.
        out: float32, contiguous.

    Source: IEEE 754-2019, table 3.5.
    """
    if values.dtype != np.float16:
        np.copyto(out, values)
        return
    for start in range(0, len(values), _ROWS_AT_A_TIME):
        rows = out[start : start + _ROWS_AT_A_TIME]
        bits = rows.view(np.int32)
        np.copyto(bits, values[start : start + _ROWS_AT_A_TIME].view(np.int16))
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, _SIGN_AND_NUMBER, out=bits)
        np.multiply(rows, _FACTOR, out=rows)


def _centre(block: np.ndarray, values: np.ndarray, layer: str, ids: np.ndarray) -> float:
    """Writes a block into `values`, float32 [n, units], minus the mean over the images.

    Values whose squares float32 cannot hold are multiplied by a power of two, which costs no digit.

    Returns:
        The factor that the products lack.
    """
    to_float32(block, values)
    largest = max(float(values.max(initial=0)), -float(values.min(initial=0)))
    if not largest < (_BEYOND_FLOAT16 if block.dtype == np.float16 else np.inf):
        raise ArtifactError(_not_finite(block, layer, ids))
    exponent = int(np.frexp(largest)[1])
    if abs(exponent) <= _LARGEST_EXPONENT:
        exponent = 0
    else:
        np.ldexp(values, -exponent, out=values)
    values -= values.mean(axis=0)
    return float(4.0**exponent)


def _not_finite(block: np.ndarray, layer: str, ids: np.ndarray) -> str:
    bad = ~np.isfinite(block)
    first = np.flatnonzero(bad.any(axis=1))[0]
    return (
        f"layer {layer}: {np.count_nonzero(bad)} values of a block are NaN or infinite, first in image {ids[first]}; "
        "extract this run again"
    )
