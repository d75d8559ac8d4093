"""Counting, compiled: the exact histogram of each row of float16 values.

A float16 has 65,536 values. Counting how often each occurs takes one addition per unit and no sort.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from fluence.store.histograms import NUM_BINS, Histograms

_SIGN, _INFINITE = 0x8000, 0x7C00  # bit of the sign; magnitudes from here on are infinite or NaN
_SORTED_BELOW = 2048  # units of rows whose values are sorted: visiting the bins would take longer
_NEAR = 1 << 13  # values that stay in the nearest cache while they are passed twice


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled function, kept for the next process where there is a folder for it that can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the installation nor the user's own folder can be written
        return numba.njit(nogil=True)(function)


def count(values: np.ndarray) -> tuple[Histograms, np.ndarray]:
    """The histogram of each row, and how many of its values are NaN or infinite.

    Args:
        values: float16 [n, units].

    Returns:
        histograms of the n rows, and int64 [n].
    """
    rows = np.ascontiguousarray(values).view(np.uint16)
    num_rows, num_units = rows.shape
    most = num_rows * min(num_units, NUM_BINS) + 1
    bits, counts = np.empty(most, np.uint16), np.empty(most, np.uint32)
    start = np.zeros(num_rows + 1, np.int64)
    if num_units < _SORTED_BELOW:
        _count_sorted(np.sort(rows, axis=1, kind="stable"), bits, counts, start)
    else:
        _count(rows, np.zeros(2 * NUM_BINS, np.uint32), bits, counts, start)
    found = Histograms(bits[: start[-1]].copy(), counts[: start[-1]].copy(), start)
    return found, _unfinite(found.bits, found.counts, start)


@compiled
def _count(rows, table, bits, counts, start):
    """Every row by a table of its own bins, of which there are two so that equal neighbours need not wait."""
    half = np.int64(NUM_BINS)
    num_units = rows.shape[1]
    place = np.int64(0)
    for r in range(rows.shape[0]):
        row = rows[r]
        largest = np.uint16(0)  # of the bits of non-negative values
        negative = np.uint16(0)  # of the bits of all
        for first in range(0, num_units, _NEAR):
            near = row[first : first + _NEAR]
            for i in range(near.size):
                negative = max(negative, near[i])
                largest = max(largest, near[i] if near[i] < np.uint16(_SIGN) else np.uint16(0))
            for i in range(0, near.size - 1, 2):
                table[near[i]] += np.uint32(1)
                table[half + np.int64(near[i + 1])] += np.uint32(1)
            if near.size % 2:
                table[near[near.size - 1]] += np.uint32(1)
        for first, end in ((0, np.int64(largest) + 1), (_SIGN, np.int64(negative) + 1)):
            for one in range(first, end):  # without a branch: nobody can foretell which bins are empty
                total = table[one] + table[half + one]
                bits[place], counts[place] = one, total
                place += np.int64(total != 0)
            if first < end:
                table[first:end] = 0
                table[half + first : half + end] = 0
        start[r + 1] = place


@compiled
def _count_sorted(rows, bits, counts, start):
    """The same from rows whose bits ascend."""
    place = 0
    for r in range(rows.shape[0]):
        row = rows[r]
        run = 0
        for i in range(1, row.size + 1):
            if i == row.size or row[i] != row[run]:
                bits[place], counts[place] = row[run], i - run
                place += 1
                run = i
        start[r + 1] = place


@compiled
def _unfinite(bits, counts, start):
    found = np.zeros(start.size - 1, np.int64)
    for r in range(start.size - 1):
        for place in range(start[r], start[r + 1]):
            if (bits[place] & np.uint16(_SIGN - 1)) >= np.uint16(_INFINITE):
                found[r] += counts[place]
    return found
