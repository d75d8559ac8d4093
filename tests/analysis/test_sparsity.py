from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from analysis.sparsity import NonFinite, gini, l_epsilon

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
