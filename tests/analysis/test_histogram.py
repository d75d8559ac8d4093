"""Counting gives the very same histograms as a slow count, however rows are counted, and nothing depends on the cut."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import analysis.histogram
import fluence.counting
from analysis.histogram import (
    moments_of_histograms,
    moments_of_values,
    nonzero_quantiles,
    nonzero_quantiles_of_float32,
)
from fluence.counting import count
from fluence.store.histograms import Histograms

THRESHOLDS = np.array([0.0, 0.25, 1.0, 1e9])
any_bits = hnp.arrays(np.uint16, st.tuples(st.integers(1, 4), st.integers(1, 40)))
finite_halves = hnp.arrays(
    np.float16, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=st.floats(-65504, 65504, width=16)
)


def random_halves(num_images: int, num_units: int, seed: int = 0) -> np.ndarray:
    """Half of them positive, a quarter zero, a quarter negative; some of −0 and of the largest."""
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(num_images, num_units)) * rng.choice([1, 0, 30], (num_images, num_units))).astype("f2")
    values[:, :: num_units // 3 + 1] = -0.0
    values[:, 1 :: num_units // 2 + 1] = 65504
    return values


def slow_counts(row: np.ndarray) -> dict[int, int]:
    return dict(Counter(row.view(np.uint16).tolist()))


def as_dicts(histograms: Histograms) -> list[dict[int, int]]:
    spans = [slice(*histograms.start[place : place + 2]) for place in range(len(histograms))]
    return [dict(zip(histograms.bits[s].tolist(), histograms.counts[s].tolist(), strict=True)) for s in spans]


@settings(deadline=None)  # the first call compiles
@given(any_bits, st.booleans())
def test_every_bit_pattern_is_counted(bits: np.ndarray, with_table: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fluence.counting, "_SORTED_BELOW", 0 if with_table else 1 << 20)
        found, unfinite = count(bits.view(np.float16))
    assert as_dicts(found) == [slow_counts(row) for row in bits]
    assert all((np.diff(found.bits[slice(*found.start[i : i + 2])].astype(int)) > 0).all() for i in range(len(bits)))
    assert unfinite.tolist() == [int((~np.isfinite(row.view(np.float16))).sum()) for row in bits]


@pytest.mark.parametrize("num_units", [1, 2, 2047, 2048, 2049, 70_001])
def test_rows_of_every_length_are_counted(num_units: int) -> None:
    values = random_halves(3, num_units)
    found, unfinite = count(values)
    assert as_dicts(found) == [slow_counts(row) for row in values]
    assert not unfinite.any()
    assert (found.bits.dtype, found.counts.dtype, found.start.dtype) == (np.uint16, np.uint32, np.int64)


def test_a_view_is_counted_as_its_copy() -> None:
    values = random_halves(6, 3000)
    assert as_dicts(count(values[::2, 5:2990])[0]) == as_dicts(count(values[::2, 5:2990].copy())[0])
    assert as_dicts(count(values.T)[0]) == as_dicts(count(values.T.copy())[0])


@settings(max_examples=50, deadline=None)
@given(finite_halves)
def test_sums_of_bins_and_of_sorted_values_agree(values: np.ndarray) -> None:
    histograms, _ = count(values)
    counted = moments_of_histograms(histograms, THRESHOLDS, values.shape[1])
    for dtype in (np.float32, np.float64):
        by_sorting = moments_of_values(values.astype(dtype), THRESHOLDS)
        for name in ("zeros", "smallest", "largest", "above"):
            np.testing.assert_array_equal(getattr(counted, name), getattr(by_sorting, name))
        for name in ("abs", "squares", "sum", "ranked", "abs_log", "second", "fourth"):
            expected = getattr(by_sorting, name)
            np.testing.assert_allclose(getattr(counted, name), expected, rtol=1e-12, atol=1e-9, err_msg=name)


def test_no_bit_depends_on_what_else_is_counted() -> None:
    values = random_halves(7, 3000)
    whole = moments_of_histograms(count(values)[0], THRESHOLDS, 3000)
    for rows in (slice(0, 1), slice(2, 5), slice(6, 7)):
        alone = moments_of_histograms(count(values[rows])[0], THRESHOLDS, 3000)
        for name in ("abs", "squares", "sum", "ranked", "abs_log", "second", "fourth", "above"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(whole, name)[rows])


def test_no_bit_depends_on_how_many_rows_are_sorted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = random_halves(7, 300).astype(np.float32) * np.float32(1.1)
    whole = moments_of_values(values, THRESHOLDS)
    monkeypatch.setattr(analysis.histogram, "_CHUNK_VALUES", 700)
    np.testing.assert_array_equal(moments_of_values(values, THRESHOLDS).ranked, whole.ranked)


def test_large_float32_rows_are_summed_without_piling_up_rounding() -> None:
    values = np.random.default_rng(0).uniform(0.1, 1.0, (1, 1_000_000)).astype(np.float32)
    wide = np.sort(values.astype(np.longdouble), axis=1)
    weights = 2 * np.arange(1, wide.shape[1] + 1, dtype=np.longdouble) - wide.shape[1] - 1
    found = moments_of_values(values, THRESHOLDS)
    assert found.abs[0] == pytest.approx(float(wide.sum()), rel=1e-13)
    assert found.ranked[0] == pytest.approx(float((wide * weights).sum()), rel=1e-12)


def test_a_histogram_that_lacks_units_is_refused() -> None:
    histograms, _ = count(random_halves(3, 50))
    histograms.counts[histograms.start[1]] += 1
    with pytest.raises(ValueError, match="the histogram of image 1 does not hold 50 values"):
        moments_of_histograms(histograms, THRESHOLDS, 50)


@settings(max_examples=50, deadline=None)
@given(finite_halves, st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_quantiles_are_those_of_numpy(values: np.ndarray, quantiles: list[float]) -> None:
    magnitudes = np.abs(values[values != 0].astype(np.float64))
    found = nonzero_quantiles(count(values)[0], tuple(quantiles))
    if magnitudes.size:
        np.testing.assert_allclose(found, np.quantile(magnitudes, quantiles), rtol=1e-12)
    else:
        assert np.isnan(found).all()


@settings(max_examples=50)
@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.lists(st.floats(0, 1), min_size=1, max_size=4),
    st.integers(1, 60),
)
def test_quantiles_of_float32_are_those_of_numpy(values: np.ndarray, quantiles: list[float], cut: int) -> None:
    magnitudes = np.abs(values[values != 0].astype(np.float64))
    found = nonzero_quantiles_of_float32(lambda: iter([values[:cut], values[cut:]]), tuple(quantiles))
    if magnitudes.size:
        np.testing.assert_allclose(found, np.quantile(magnitudes, quantiles), rtol=1e-12)
    else:
        assert np.isnan(found).all()


def test_quantiles_by_hand() -> None:
    values = np.array([[0, -1, 2, 0], [3, 0, -4, 6]], dtype=np.float16)
    assert nonzero_quantiles(count(values)[0], (0.0, 0.25, 0.5, 0.625, 1.0)).tolist() == [1.0, 2.0, 3.0, 3.5, 6.0]
    assert np.isnan(nonzero_quantiles(Histograms.none(), (0.5,))).all()


def test_an_installation_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    """The compiled code is then kept nowhere."""
    package = tmp_path / "installed" / "analysis"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""A copy."""\n')
    (package / "histogram.py").write_text(Path(analysis.histogram.__file__).read_text(encoding="utf-8"))
    (package / "__pycache__").write_text("a file where numba wants a folder")
    root = Path(analysis.histogram.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{package.parent}:{root}", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/none", "NUMBA_CACHE_DIR": ""}
    code = """
        import numpy as np, analysis.histogram as copied
        print(copied.__file__, copied.moments_of_values(np.ones((1, 3)), np.zeros(1)).above)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [str(package / "histogram.py"), "[[3]]"], done.stderr
