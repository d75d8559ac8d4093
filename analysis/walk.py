"""Walking over a layer: the next block is read while this one is measured, and its rows are shared out over threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np

from analysis.sparsity import NonFinite
from fluence.store.layers import CHUNK_IMAGES

Values = TypeVar("Values")
Result = TypeVar("Result")

BLOCK_BYTES = 32 << 20  # of stored values; two blocks are held at one time, and their histograms
_SHARE_BYTES = 1 << 20  # of stored values that are worth a thread's while


def num_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def steps(first: int, end: int, bytes_per_row: int) -> Iterator[tuple[int, int]]:
    """Positions of the rows from `first` to before `end`, in blocks of about `BLOCK_BYTES`: start and stop.

    They are whole chunks where these are small. Waiting for whole chunks of large layers too, 200 MB each, costs more
    than it saves, from a cold disk as well: memory of that size is taken from the system anew each time.
    """
    rows = BLOCK_BYTES // max(1, bytes_per_row)
    step = max(1, rows // CHUNK_IMAGES * CHUNK_IMAGES or rows)
    for start in range(first, end, step):
        yield start, min(start + step, end)


def read_ahead(
    read: Callable[[int, int], Values], positions: Iterator[tuple[int, int]]
) -> Iterator[tuple[int, Values]]:
    """Start and values of one block after the other; a thread reads the next one meanwhile.

    Args:
        read: gives the rows from a start to before a stop.
        positions: of the blocks.
    """
    with ThreadPoolExecutor(1) as reader:
        waiting = [(start, reader.submit(read, start, stop)) for start, stop in _next(positions)]
        while waiting:
            start, future = waiting.pop()
            values = future.result()
            waiting = [(start, reader.submit(read, start, stop)) for start, stop in _next(positions)]
            yield start, values
            del values, future  # before the block after the next is read


def _next(positions: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    found = next(positions, None)
    return [] if found is None else [found]


class Shares:
    """Threads that measure the rows of a block in shares; a context manager.

    Args:
        threads: how many; 1 starts none.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __enter__(self) -> Shares:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[np.ndarray], Result], rows: np.ndarray) -> list[Result]:
        """`work` of every share of the rows, in their order.

        Raises:
            NonFinite: with all such values of the rows counted, and the first row that holds one.
        """
        num_bytes = max(1, rows.nbytes)
        wanted = min(len(rows), 4 * self._threads, -(-num_bytes // _SHARE_BYTES)) if self._pool else 1
        ends = np.linspace(0, len(rows), max(1, wanted) + 1).astype(int)
        shares = [rows[start:stop] for start, stop in pairwise(ends)]
        run = self._pool.map if self._pool else map
        outcomes = list(run(lambda share: _attempt(work, share), shares))
        bad = [(end, error) for end, error in zip(ends, outcomes, strict=False) if isinstance(error, NonFinite)]
        if bad:
            count = sum(error.count for _, error in bad)
            raise NonFinite(count, int(bad[0][0]) + bad[0][1].first_row, rows.size)
        return [outcome for outcome in outcomes if not isinstance(outcome, NonFinite)]


def _attempt(work: Callable[[np.ndarray], Result], share: np.ndarray) -> Result | NonFinite:
    try:
        return work(share)
    except NonFinite as error:
        return error
