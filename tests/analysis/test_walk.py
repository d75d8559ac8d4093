"""Blocks come in order, one ahead and no more; shares of a block give what the whole gives."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import walk
from analysis.sparsity import NonFinite, gini
from analysis.walk import Shares, num_threads, read_ahead, steps


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 1 << 26))
def test_steps_cover_every_row_once(first: int, end: int, bytes_per_row: int) -> None:
    spans = list(steps(first, end, bytes_per_row))
    assert [row for start, stop in spans for row in range(start, stop)] == list(range(first, end))
    assert all(stop - start == 1 or (stop - start) * bytes_per_row <= walk.BLOCK_BYTES for start, stop in spans)


def test_steps_are_whole_chunks_where_that_fits() -> None:
    assert next(steps(0, 1000, walk.BLOCK_BYTES // 100)) == (0, 96)
    assert next(steps(0, 1000, walk.BLOCK_BYTES // 5)) == (0, 5)
    assert next(steps(0, 1000, 10 * walk.BLOCK_BYTES)) == (0, 1)


def test_one_block_is_read_ahead_and_no_more() -> None:
    read: list[int] = []

    def slow(start: int, stop: int) -> int:
        read.append(start)
        return 10 * start

    blocks = read_ahead(slow, iter([(k, k + 1) for k in range(5)]))
    assert next(blocks) == (0, 0)
    time.sleep(0.05)
    assert read == [0, 1]
    assert list(blocks) == [(k, 10 * k) for k in range(1, 5)]
    assert list(read_ahead(slow, iter([]))) == []


def test_reading_goes_on_in_another_thread_and_its_errors_arrive() -> None:
    threads = []

    def read(start: int, stop: int) -> int:
        threads.append(threading.current_thread())
        if start == 2:
            raise OSError("the disk is gone")
        return start

    with pytest.raises(OSError, match="the disk is gone"):
        list(read_ahead(read, iter([(k, k + 1) for k in range(4)])))
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 40])
def test_shares_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch, threads: int, num_rows: int) -> None:
    monkeypatch.setattr(walk, "_SHARE_BYTES", 300)
    rows = np.random.default_rng(0).normal(size=(num_rows, 64)).astype(np.float16)
    with Shares(threads) as shares:
        found = shares.map(gini, rows)
    assert len(found) == (1 if threads == 1 else min(num_rows, 4 * threads, -(-rows.nbytes // 300)))
    np.testing.assert_array_equal(np.concatenate(found), gini(rows))


@pytest.mark.parametrize("threads", [1, 3])
def test_values_that_are_not_finite_are_counted_over_all_shares(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(walk, "_SHARE_BYTES", 100)
    rows = np.ones((12, 64), np.float16)
    rows[5, 3], rows[10, :2] = np.nan, np.inf
    with Shares(threads) as shares, pytest.raises(NonFinite, match=r"3 of 768 values .* first in row 5"):
        shares.map(gini, rows)


def test_there_is_a_processor() -> None:
    assert num_threads() >= 1
