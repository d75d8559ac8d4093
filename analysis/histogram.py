"""Summing, compiled: the sums that every metric is made of, from exact histograms or from sorted values.

All is computed in float64, from the bins of a histogram that are not empty (`fluence.counting`). What is compiled knows
nothing of metrics: the formulas are in `analysis.sparsity`. Every row is summed by itself and in one order, so that no
result depends on what it is read or shared out with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from fluence.counting import compiled
from fluence.store.histograms import NUM_BINS, Histograms

_SIGN = 0x8000  # its bit
_BLOCK_BINS = 256  # bins that are summed before their sum is added to the others: rounding does not pile up
_CHUNK_VALUES = 1 << 20  # values held as float64 at one time (8 MiB, and twice as much beside them)
_ZEROS, _ABS, _SQUARES, _SUM, _RANKED, _ABS_LOG, _SMALLEST, _LARGEST, _SECOND, _FOURTH = range(10)


@dataclass(frozen=True)
class Moments:
    """Sums over the N units of each row, float64 [n] unless said otherwise.

    Attributes:
        num_units: N.
        zeros: number of units that are zero.
        abs: Σ |x|.
        squares: Σ x².
        sum: Σ x.
        ranked: Σ (2k − N − 1) |x|_(k), magnitudes ascending.
        abs_log: Σ |x| ln |x|.
        smallest: smallest x.
        largest: largest x.
        second: Σ (x − mean)².
        fourth: Σ (x − mean)⁴.
        above: number of units whose magnitude is strictly greater than each threshold, int64 [n, thresholds].
    """

    num_units: int
    zeros: np.ndarray
    abs: np.ndarray
    squares: np.ndarray
    sum: np.ndarray
    ranked: np.ndarray
    abs_log: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray
    second: np.ndarray
    fourth: np.ndarray
    above: np.ndarray


def moments_of_histograms(histograms: Histograms, thresholds: np.ndarray, num_units: int) -> Moments:
    """Sums over each image's units.

    Args:
        histograms: of finite values.
        thresholds: float64 [thresholds], at least 0; compared in float64.
        num_units: N.

    Raises:
        ValueError: an image has not `num_units` values.
    """
    out, above = _outputs(len(histograms), len(thresholds))
    table, table_log = _tables()
    most = int(np.diff(histograms.start).max(initial=0))
    wrong = _sum_histograms(
        histograms.bits, histograms.counts, histograms.start, table, table_log, thresholds, num_units,
        np.empty((3, most)), np.empty(most + 1, np.int64), out, above,
    )  # fmt: skip
    if wrong >= 0:
        raise ValueError(f"the histogram of image {wrong} does not hold {num_units} values")
    return _named(num_units, out, above)


def moments_of_values(values: np.ndarray, thresholds: np.ndarray) -> Moments:
    """The same sums by sorting, for values that are not float16.

    Args:
        values: finite, float32 or float64 [n, units].
        thresholds: float64 [thresholds], at least 0.
    """
    num_rows, num_units = values.shape
    out, above = _outputs(num_rows, len(thresholds))
    step = max(1, _CHUNK_VALUES // num_units)
    cumulated = np.arange(num_units + 1)
    for first in range(0, num_rows, step):
        rows = slice(first, first + step)
        ascending = _by_magnitude(values[rows])
        magnitudes = np.abs(ascending)
        logs = magnitudes * np.log(magnitudes, out=np.zeros_like(magnitudes), where=magnitudes > 0)
        _sum_rows(ascending, magnitudes, logs, cumulated, thresholds, out[rows], above[rows])
    return _named(num_units, out, above)


def nonzero_quantiles(histograms: Histograms, quantiles: tuple[float, ...]) -> np.ndarray:
    """Quantiles of the non-zero magnitudes of all images together, between two values by linear interpolation.

    Returns:
        float64 [quantiles]; NaN when every value is zero.

    Source: Hyndman & Fan 1996, definition 7, the one of numpy.
    """
    totals = np.bincount(histograms.bits & (_SIGN - 1), weights=histograms.counts, minlength=_SIGN)
    ends = np.cumsum(totals[1:])  # magnitude 0 is left out
    table, _ = _tables()
    return _interpolated(lambda ranks: table[1 + np.searchsorted(ends, ranks, side="right")], int(ends[-1]), quantiles)


def nonzero_quantiles_of_float32(
    blocks: Callable[[], Iterator[np.ndarray]], quantiles: tuple[float, ...]
) -> np.ndarray:
    """The same of float32 values, of which one block at a time is held and none is sorted.

    First the upper 16 bits of every magnitude are counted, then the lower 16 bits of those that share their upper ones
    with a magnitude that is looked for.

    Args:
        blocks: gives the finite values, block by block; called twice.
        quantiles: in (0, 1).
    """
    upper = np.zeros(NUM_BINS, np.int64)
    for block in blocks():
        upper += np.bincount(_nonzero_magnitudes(block) >> np.uint32(16), minlength=NUM_BINS)
    ends = np.cumsum(upper)

    def values_of(ranks: np.ndarray) -> np.ndarray:
        """The values of these ranks, float64 [ranks]."""
        firsts = np.searchsorted(ends, ranks, side="right")
        lower = {int(first): np.zeros(NUM_BINS, np.int64) for first in firsts}
        for block in blocks():
            bits = _nonzero_magnitudes(block)
            for first, counts in lower.items():
                counts += np.bincount(bits[bits >> np.uint32(16) == first] & np.uint32(0xFFFF), minlength=NUM_BINS)
        within = ranks - (ends - upper)[firsts]
        seconds = [
            np.searchsorted(np.cumsum(lower[int(first)]), rank, side="right")
            for first, rank in zip(firsts, within, strict=True)
        ]
        return (firsts << 16 | np.array(seconds, dtype=np.int64)).astype(np.uint32).view(np.float32).astype(np.float64)

    return _interpolated(values_of, int(ends[-1]), quantiles)


def _interpolated(
    values_of: Callable[[np.ndarray], np.ndarray], num_values: int, quantiles: tuple[float, ...]
) -> np.ndarray:
    """Quantiles of so many values, of which `values_of` gives those of some ranks, ascending from 0."""
    if num_values == 0 or not quantiles:
        return np.full(len(quantiles), np.nan)
    place = np.array(quantiles, dtype=np.float64) * (num_values - 1)
    ranks = np.concatenate([np.floor(place), np.ceil(place)]).astype(np.int64)
    lower, upper = np.split(values_of(ranks), 2)
    return lower + (upper - lower) * (place - np.floor(place))


def _nonzero_magnitudes(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return bits[bits > 0]


def _named(num_units: int, out: np.ndarray, above: np.ndarray) -> Moments:
    names = ("zeros", "abs", "squares", "sum", "ranked", "abs_log", "smallest", "largest", "second", "fourth")
    return Moments(num_units=num_units, above=above, **dict(zip(names, out.T, strict=True)))


def _outputs(num_rows: int, num_thresholds: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((num_rows, 10)), np.empty((num_rows, num_thresholds), np.int64)


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """x and |x| ln |x| of every float16 by its bits, float64 [65,536]; 0 where it is not finite."""
    values = np.arange(NUM_BINS, dtype=np.uint16).view(np.float16)
    finite = np.where(np.isfinite(values), values, 0).astype(np.float64)
    magnitudes = np.abs(finite)
    return finite, magnitudes * np.log(magnitudes, out=np.zeros(NUM_BINS), where=magnitudes > 0)


def _by_magnitude(values: np.ndarray) -> np.ndarray:
    """Each row in ascending order of magnitude, as float64: the bits sort so when the sign is made the last of them."""
    unsigned = np.dtype(f"u{values.dtype.itemsize}").type
    last = unsigned(8 * values.dtype.itemsize - 1)
    bits = np.ascontiguousarray(values).view(unsigned)
    keys = np.sort((bits << unsigned(1)) | (bits >> last), axis=1)
    return ((keys >> unsigned(1)) | (keys << last)).view(values.dtype).astype(np.float64)


@compiled
def _sum_histograms(bits, counts, start, table, table_log, thresholds, num_units, scratch, cumulated, out, above):
    """Merges positive and negative bins by magnitude and sums; the first image with other than N units, or −1."""
    values, magnitudes, logs = scratch[0], scratch[1], scratch[2]
    cumulated[0] = 0
    for r in range(start.size - 1):
        end = start[r + 1]
        positive, negative = start[r], start[r]
        while negative < end and bits[negative] < np.uint16(_SIGN):
            negative += 1
        middle, size = negative, end - start[r]
        for k in range(size):
            left = negative == end or (positive < middle and bits[positive] <= (bits[negative] & np.uint16(_SIGN - 1)))
            place = positive if left else negative
            positive += 1 if left else 0
            negative += 0 if left else 1
            values[k] = table[bits[place]]
            magnitudes[k] = abs(values[k])
            logs[k] = table_log[bits[place]]
            cumulated[k + 1] = cumulated[k] + counts[place]
        if cumulated[size] != num_units:
            return r
        _sum(values[:size], magnitudes[:size], logs[:size], cumulated[: size + 1], thresholds, out[r], above[r])
    return -1


@compiled
def _sum_rows(values, magnitudes, logs, cumulated, thresholds, out, above):
    for r in range(values.shape[0]):
        _sum(values[r], magnitudes[r], logs[r], cumulated, thresholds, out[r], above[r])


@compiled
def _sum(values, magnitudes, logs, cumulated, thresholds, out, above):
    """Sums over the bins of one row, magnitudes ascending; `cumulated` is the number of units before each bin."""
    size = values.size
    num_units = cumulated[size]
    out[:] = 0.0
    out[_ZEROS] = cumulated[np.searchsorted(magnitudes, 0.0, side="right")]
    smallest, largest = values[0], values[0]
    for first in range(0, size, _BLOCK_BINS):
        total_abs, squares, total, ranked, abs_log = 0.0, 0.0, 0.0, 0.0, 0.0
        for k in range(first, min(first + _BLOCK_BINS, size)):
            number = float(cumulated[k + 1] - cumulated[k])
            mass = number * magnitudes[k]
            total_abs += mass
            squares += mass * magnitudes[k]
            total += number * values[k]
            ranked += mass * float(cumulated[k] + cumulated[k + 1] - num_units)
            abs_log += number * logs[k]
            smallest, largest = min(smallest, values[k]), max(largest, values[k])
        out[_ABS] += total_abs
        out[_SQUARES] += squares
        out[_SUM] += total
        out[_RANKED] += ranked
        out[_ABS_LOG] += abs_log
    out[_SMALLEST], out[_LARGEST] = smallest, largest
    mean = out[_SUM] / num_units
    for first in range(0, size, _BLOCK_BINS):
        second, fourth = 0.0, 0.0
        for k in range(first, min(first + _BLOCK_BINS, size)):
            square = (values[k] - mean) ** 2
            weighted = float(cumulated[k + 1] - cumulated[k]) * square
            second += weighted
            fourth += weighted * square
        out[_SECOND] += second
        out[_FOURTH] += fourth
    for t in range(thresholds.size):
        above[t] = num_units - cumulated[np.searchsorted(magnitudes, thresholds[t], side="right")]
