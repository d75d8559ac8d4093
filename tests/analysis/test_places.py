"""Sparsity of maps, of places and of units, against loops."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.places import gini_of_maps, gini_of_positions, has_places, lifetime_sparsity
from analysis.sparsity import NonFinite

SHAPE = (3, 2, 4)


def slow_gini(row: np.ndarray) -> float:
    magnitudes = np.abs(row.astype(np.float64))
    pairs = np.abs(magnitudes[:, None] - magnitudes[None, :])
    return float(pairs.mean() / (2 * magnitudes.mean())) if magnitudes.any() else np.nan


def maps(dtype: type) -> np.ndarray:
    """Some maps and some places are silent, of the last image all."""
    values = np.random.default_rng(0).normal(size=(4, *SHAPE))
    values[0, 1], values[1, :, 0, 2], values[3] = 0, 0, 0
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_maps_and_positions_agree_with_loops(dtype: type) -> None:
    values = maps(dtype)
    of_maps = [np.nanmean([slow_gini(one.ravel()) for one in image]) for image in values[:3]]
    places = [image.reshape(3, -1).T for image in values[:3]]
    of_positions = [np.nanmean([slow_gini(one) for one in image]) for image in places]
    flat = values.reshape(4, -1)
    np.testing.assert_allclose(gini_of_maps(flat, SHAPE), [*of_maps, np.nan], rtol=1e-12)
    np.testing.assert_allclose(gini_of_positions(flat, SHAPE), [*of_positions, np.nan], rtol=1e-12)


def test_maps_and_positions_by_hand() -> None:
    """One map is active at one place of four: 3/4 within it, and 1/2 between the two maps at that place."""
    values = np.array([[0, 0, 0, 5, 0, 0, 0, 0]], np.float16)
    assert gini_of_maps(values, (2, 2, 2)).tolist() == [0.75]
    assert gini_of_positions(values, (2, 2, 2)).tolist() == [0.5]
    every = np.array([[1, 1, 1, 1, 0, 0, 0, 0]], np.float16)
    assert gini_of_maps(every, (2, 2, 2)).tolist() == [0.0]
    assert gini_of_positions(every, (2, 2, 2)).tolist() == [0.5]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_lifetime_sparsity_agrees_with_loops(dtype: type) -> None:
    values = np.maximum(np.random.default_rng(1).normal(size=(30, 7)), 0).astype(dtype)
    values[:, 4] = 0
    found = lifetime_sparsity(values)
    wide = values.astype(np.float64).T
    np.testing.assert_allclose(found["gini"], [slow_gini(unit) for unit in wide], rtol=1e-12)
    ratio = [unit.mean() ** 2 / (unit**2).mean() if unit.any() else np.nan for unit in wide]
    np.testing.assert_allclose(found["treves_rolls"], ratio, rtol=1e-12)
    np.testing.assert_allclose(found["dead_fraction"], (wide == 0).mean(axis=1))


def test_one_image_says_nothing_about_the_life_of_a_unit() -> None:
    found = lifetime_sparsity(np.array([[0.0, 2.0]], np.float16))
    np.testing.assert_array_equal(found["gini"], [np.nan, 0.0])
    np.testing.assert_array_equal(found["dead_fraction"], [1.0, 0.0])


def test_nan_is_refused_and_vectors_have_no_places() -> None:
    with pytest.raises(NonFinite):
        lifetime_sparsity(np.array([[1.0, np.nan]], np.float16))
    assert has_places((3, 1, 1))
    assert not has_places((5,))
