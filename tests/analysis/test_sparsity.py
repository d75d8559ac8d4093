from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from analysis.sparsity import METRICS, NonFinite, counted, gini, l_epsilon, sparsity, sparsity_of_histograms

positive = hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(0.01, 100.0))


def slow_gini(row: np.ndarray) -> float:
    """Mean absolute difference over all pairs, over twice the mean: the textbook definition, in float64."""
    magnitudes = np.abs(row.astype(np.float64))
    pairs = np.abs(magnitudes[:, None] - magnitudes[None, :])
    return float(pairs.mean() / (2 * magnitudes.mean()))


def one(row: np.ndarray) -> float:
    return float(gini(np.asarray(row)[None])[0])


def test_hand_cases() -> None:
    np.testing.assert_allclose(gini(np.array([[0.0, 0, 0, 1], [1, 2, 3, 4], [5, 5, 5, 5]])), [0.75, 0.25, 0.0])


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.floats(-1e3, 1e3)))
def test_agrees_with_the_slow_definition(values: np.ndarray) -> None:
    values[np.abs(values) < 1e-6] = 0  # the slow definition loses such values
    alive = values.any(axis=1)
    expected = [slow_gini(row) for row in values[alive]]
    np.testing.assert_allclose(gini(values)[alive], expected, atol=1e-12)
    assert np.isnan(gini(values)[~alive]).all()


@given(positive, st.data())
def test_robin_hood_taking_from_the_rich_lowers_it(row: np.ndarray, data: st.DataObject) -> None:
    row = np.sort(row)
    row[-1] += 1.0
    gift = data.draw(st.floats(0.05, 0.45)) * (row[-1] - row[0])
    given_away = row.copy()
    given_away[-1] -= gift
    given_away[0] += gift
    assert one(given_away) < one(row)


@given(positive, st.floats(0.01, 100.0))
def test_scaling_changes_nothing(row: np.ndarray, factor: float) -> None:
    assert one(row * factor) == pytest.approx(one(row), abs=1e-12)


@given(positive, st.floats(0.1, 100.0))
def test_rising_tide_lowers_it(row: np.ndarray, tide: float) -> None:
    row[0] += 1 + row[1]  # not all equal
    assert one(row + tide) < one(row)


@given(positive, st.integers(2, 4))
def test_cloning_changes_nothing(row: np.ndarray, copies: int) -> None:
    assert one(np.tile(row, copies)) == pytest.approx(one(row), abs=1e-12)


@given(positive)
def test_bill_gates_growing_richer_raises_it(row: np.ndarray) -> None:
    row = np.sort(row)
    row[-1] += row.sum()
    richer = row.copy()
    richer[-1] *= 2
    assert one(richer) > one(row)


@given(positive)
def test_babies_without_income_raise_it(row: np.ndarray) -> None:
    assert one(np.append(row, 0.0)) > one(row)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_large_half_precision_rows_are_exact(dtype: type) -> None:
    """Mistake: Gini by a cumulated sum in float32 (off by 2e-3), or in float16 (infinite)."""
    values = np.random.default_rng(0).normal(size=(2, 200_000)).astype(dtype)
    magnitudes = np.sort(np.abs(values.astype(np.longdouble)), axis=1)
    weights = 2 * np.arange(1, values.shape[1] + 1, dtype=np.longdouble) - values.shape[1] - 1
    expected = (magnitudes * weights).sum(axis=1) / (values.shape[1] * magnitudes.sum(axis=1))
    np.testing.assert_allclose(gini(values), expected.astype(np.float64), rtol=1e-12)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=(7, 33)).astype(np.float16)
    whole = gini(values)
    monkeypatch.setattr("analysis.sparsity._CHUNK_VALUES", 70)
    np.testing.assert_array_equal(gini(values), whole)


def test_variants_differ_as_named() -> None:
    """Mistake: Gini shifted by the minimum, unasked."""
    row = np.array([[-2.0, 0.0, 1.0, 3.0]])
    assert gini(row, "magnitude") == pytest.approx(slow_gini(np.array([2.0, 0, 1, 3])))
    assert gini(row, "relu") == pytest.approx(slow_gini(np.array([0.0, 0, 1, 3])))
    assert gini(row, "shift") == pytest.approx(slow_gini(np.array([0.0, 2, 3, 5])))


def test_gaussian_values_match_the_known_index() -> None:
    """Gini of |x| is √2 − 1 ≈ .414 and of ReLU(x) is (1 + .414) / 2 ≈ .707 for Gaussian x."""
    values = np.random.default_rng(2).normal(size=(1, 400_000)).astype(np.float32)
    assert gini(values) == pytest.approx(np.sqrt(2) - 1, abs=2e-3)
    assert gini(values, "relu") == pytest.approx(np.sqrt(2) / 2, abs=2e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_negative_zero_is_zero(dtype: type) -> None:
    values = np.array([[-0.0, 0.0, -0.0, 1.0]], dtype=dtype)
    assert gini(values, "relu") == gini(values) == 0.75


def test_dead_rows_are_nan_and_the_input_stays() -> None:
    """Mistake: Gini changes its caller's array."""
    values = np.array([[0.0, 0.0], [3.0, -1.0]])
    before = values.copy()
    assert np.isnan(gini(values)).tolist() == [True, False]
    np.testing.assert_array_equal(values, before)
    assert np.isnan(gini(np.full((1, 3), 2.0), "shift")).all()


@pytest.mark.parametrize("measure", [gini, lambda values: l_epsilon(values, 0.1)])
def test_nan_and_infinity_are_counted(measure) -> None:  # type: ignore[no-untyped-def]
    values = np.array([[1.0, 2, 3], [np.nan, np.inf, 1], [1, 1, -np.inf]])
    with pytest.raises(NonFinite, match="3 of 9 values are NaN or infinite, first in row 1") as caught:
        measure(values)
    assert (caught.value.count, caught.value.first_row) == (3, 1)


@settings(max_examples=50)
@given(
    hnp.arrays(np.float16, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=st.floats(-8, 8, width=16)),
    st.floats(0, 4),
)
def test_l_epsilon_counts_strictly_in_double_precision(values: np.ndarray, epsilon: float) -> None:
    count, fraction = l_epsilon(values, epsilon)
    expected = [sum(abs(float(value)) > epsilon for value in row) for row in values]
    assert count.tolist() == expected
    np.testing.assert_allclose(fraction, np.array(expected) / values.shape[1])


def test_l_epsilon_does_not_round_the_threshold_to_half_precision() -> None:
    tenth = np.float16(0.1)  # 0.0999755859375
    assert l_epsilon(np.array([[tenth]]), 0.1).num_above == 0
    assert l_epsilon(np.array([[tenth]]), 0.09997).num_above == 1
    assert l_epsilon(np.array([[0.5, -0.5, 0.75, -2.0]]), 0.5).num_above == 2


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="epsilon must be ≥ 0"):
        l_epsilon(np.ones((1, 2)), -1.0)
    with pytest.raises(ValueError, match=r"not shape \(3,\)"):
        gini(np.ones(3))


# ── Every metric ─────────────────────────────────────────────────────────────────────────────────────────────────

halves = hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=st.integers(-2000, 2000)).map(
    lambda numbers: (numbers / 64).astype(np.float16)
)
"""Never nearly equal: the kurtosis of such values is all rounding, in any arithmetic."""


def slow_metrics(row: np.ndarray) -> dict[str, float]:
    """Every metric by its textbook definition, in long double."""
    x = row.astype(np.longdouble)
    magnitudes, n = np.abs(x), len(row)
    dead, constant = not magnitudes.any(), np.unique(x).size == 1
    p = magnitudes[magnitudes > 0] / magnitudes.sum() if not dead else magnitudes[:0]
    centred = x - x.mean()
    return {
        "gini": np.nan if dead else slow_gini(row),
        "l0": np.count_nonzero(x) / n,
        "l1": magnitudes.mean(),
        "l2": np.sqrt((x**2).mean()),
        "hoyer": np.nan
        if dead or n == 1
        else (np.sqrt(n) - magnitudes.sum() / np.sqrt((x**2).sum())) / (np.sqrt(n) - 1),
        "treves_rolls": np.nan if dead else magnitudes.mean() ** 2 / (x**2).mean(),
        "kurtosis": np.nan if constant else (centred**4).mean() / (centred**2).mean() ** 2 - 3,
        "entropy": np.nan if dead else -(p * np.log(p)).sum(),
        "mean": x.mean(),
        "max": x.max(),
        "dead_fraction": 1 - np.count_nonzero(x) / n,
    }


def assert_slow(values: np.ndarray) -> None:
    metrics, above = sparsity(values, np.array([0.5, 2.0]))
    assert list(metrics) == list(METRICS)
    for place, row in enumerate(values):
        expected = slow_metrics(row)
        for name in METRICS:
            scale = max(1.0, abs(float(expected[name]))) if np.isfinite(expected[name]) else 1.0
            assert metrics[name][place] == pytest.approx(float(expected[name]), abs=1e-12 * scale, nan_ok=True), name
        assert above[place].tolist() == [int((np.abs(row.astype(float)) > one).sum()) for one in (0.5, 2.0)]


@settings(deadline=None)  # the first call compiles
@given(halves)
def test_counted_metrics_agree_with_the_slow_definitions(values: np.ndarray) -> None:
    assert_slow(values)


@settings(deadline=None)
@given(halves, st.sampled_from([np.float32, np.float64]))
def test_sorted_metrics_agree_with_the_slow_definitions(values: np.ndarray, dtype: type) -> None:
    assert_slow(values.astype(dtype) * dtype(1.1))


@pytest.mark.parametrize("num_units", [2047, 2048, 60_000])
def test_counting_and_sorting_agree_on_large_rows(num_units: int) -> None:
    """Mistake: sums in float32 or float16."""
    values = np.random.default_rng(0).normal(size=(2, num_units)).astype(np.float16)
    values[0] = np.maximum(values[0], 0)
    fast, above = sparsity(values, np.array([0.3]))
    for dtype in (np.float32, np.float64):
        slow, also_above = sparsity(values.astype(dtype), np.array([0.3]))
        np.testing.assert_array_equal(above, also_above)
        for name in METRICS:
            np.testing.assert_allclose(fast[name], slow[name], rtol=1e-12, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(fast["gini"], gini(values), rtol=1e-12)


def test_metrics_by_hand() -> None:
    metrics, above = sparsity(np.array([[0.0, 0, 0, 2], [-1, 1, -1, 1], [3, 3, 3, 3]], np.float16), np.array([0.5, 1]))
    expected = {
        "gini": [0.75, 0, 0],
        "l0": [0.25, 1, 1],
        "l1": [0.5, 1, 3],
        "l2": [1, 1, 3],
        "hoyer": [1, 0, 0],
        "treves_rolls": [0.25, 1, 1],
        "kurtosis": [-2 / 3, -2, np.nan],
        "entropy": [0, np.log(4), np.log(4)],
        "mean": [0.5, 0, 3],
        "max": [2, 1, 3],
        "dead_fraction": [0.75, 0, 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(metrics[name], values, atol=1e-15, err_msg=name)
    assert above.tolist() == [[1, 1], [4, 0], [4, 4]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_not_defined_is_nan(dtype: type) -> None:
    dead, _ = sparsity(np.zeros((1, 5), dtype), np.empty(0))
    assert [name for name in METRICS if np.isnan(dead[name][0])] == [
        "gini", "hoyer", "treves_rolls", "kurtosis", "entropy",
    ]  # fmt: skip
    assert (dead["dead_fraction"][0], dead["l0"][0], dead["max"][0]) == (1, 0, 0)
    single, above = sparsity(np.array([[-2.0]], dtype), np.array([1.0]))
    assert [name for name in METRICS if np.isnan(single[name][0])] == ["hoyer", "kurtosis"]
    assert (single["gini"][0], single["entropy"][0], single["treves_rolls"][0], above[0, 0]) == (0, 0, 1, 1)
    assert not np.signbit(sparsity(np.array([[-0.0, -0.0]], dtype), np.empty(0))[0]["max"][0])


@settings(deadline=None)
@given(positive, st.data())
def test_all_agree_that_robin_hood_makes_less_sparse(row: np.ndarray, data: st.DataObject) -> None:
    """And each in the direction that `METRICS` says."""
    row = np.sort(row)
    row[-1] += 1.0
    gift = data.draw(st.floats(0.05, 0.45)) * (row[-1] - row[0])
    fair = row.copy()
    fair[-1] -= gift
    fair[0] += gift
    before, after = (sparsity(one[None], np.empty(0))[0] for one in (row, fair))
    for name in ("gini", "hoyer", "treves_rolls", "entropy"):
        assert METRICS[name] * after[name][0] < METRICS[name] * before[name][0], name


@settings(deadline=None)
@given(positive, st.floats(0.5, 2.0))
def test_none_of_the_ratios_depends_on_the_scale(row: np.ndarray, factor: float) -> None:
    before, after = (sparsity(one[None], np.empty(0))[0] for one in (row, row * factor))
    for name in ("gini", "l0", "hoyer", "treves_rolls", "entropy", "dead_fraction"):
        assert after[name][0] == pytest.approx(before[name][0], abs=1e-12)


def test_kurtosis_of_a_gaussian_is_zero() -> None:
    """Mistake: kurtosis about zero instead of about the mean, or not in excess of a Gaussian's."""
    values = (7 + np.random.default_rng(3).normal(size=(1, 400_000))).astype(np.float32)
    assert sparsity(values, np.empty(0))[0]["kurtosis"][0] == pytest.approx(0, abs=0.03)


def test_kept_histograms_give_the_same_bits_with_another_threshold() -> None:
    values = np.random.default_rng(4).normal(size=(5, 9000)).astype(np.float16)
    kept, num_units = counted(values), values.shape[1]
    for thresholds in (np.array([0.1]), np.array([0.5, 1.5, 3.0]), np.empty(0)):
        metrics, above = sparsity_of_histograms(kept, thresholds, num_units)
        expected, also_above = sparsity(values, thresholds)
        np.testing.assert_array_equal(above, also_above)
        for name in METRICS:
            np.testing.assert_array_equal(metrics[name], expected[name])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("num_units", [3, 3000])
def test_sparsity_counts_nan_and_infinity(dtype: type, num_units: int) -> None:
    values = np.ones((3, num_units), dtype)
    values[1, :2], values[2, 2] = (np.nan, np.inf), -np.inf
    with pytest.raises(NonFinite, match=f"3 of {3 * num_units} values are NaN or infinite, first in row 1") as caught:
        sparsity(values, np.array([0.5]))
    assert (caught.value.count, caught.value.first_row) == (3, 1)
