"""The confounds, against slow references, properties and cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fluence.data.covariates import EDGE_THRESHOLD, NAMES, covariates, edge_density, pixel_gini

images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(3, 7), st.integers(3, 7), st.just(3)))


def slow_gini(values: list[int]) -> float:
    """Mean absolute difference of all pairs over twice the mean: the Gini index by its definition."""
    total = sum(values)
    if total == 0:
        return math.nan
    pairs = sum(abs(a - b) for a in values for b in values)
    return pairs / (2 * len(values) * total)


def slow_edge_density(luminance: np.ndarray) -> float:
    """Sobel with explicit kernels, pixel by pixel."""
    across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    height, width = luminance.shape
    edges = 0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            patch = luminance[y - 1 : y + 2, x - 1 : x + 2]
            edges += math.hypot((patch * across).sum(), (patch * across.T).sum()) > EDGE_THRESHOLD
    return edges / ((height - 2) * (width - 2))


@settings(max_examples=40, deadline=None)
@given(images)
def test_all_covariates_agree_with_slow_references(pixels):
    measured = covariates(pixels)
    assert tuple(measured) == NAMES
    for position, image in enumerate(pixels.astype(float)):
        luminance = (0.2126 * image[..., 0] + 0.7152 * image[..., 1] + 0.0722 * image[..., 2]) / 255
        ordered = sorted(luminance.ravel())
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        spread = math.sqrt(sum((v - sum(ordered) / len(ordered)) ** 2 for v in ordered) / len(ordered))
        expected = (sum(ordered) / len(ordered), middle, spread, slow_gini(image.ravel().astype(int).tolist()))
        for name, value in zip(NAMES, expected, strict=False):
            assert measured[name][position] == pytest.approx(value, abs=1e-12, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(float, st.tuples(st.integers(1, 2), st.integers(3, 8), st.integers(3, 8)), elements=st.floats(0, 1)))
def test_edge_density_agrees_with_explicit_kernels(luminance):
    assert edge_density(luminance) == pytest.approx([slow_edge_density(image) for image in luminance])


@settings(max_examples=40, deadline=None)
@given(images, st.integers(0, 100))
def test_gini_is_bounded_and_blind_to_order_and_scale(pixels, seed):
    gini = pixel_gini(pixels)
    num_values = pixels[0].size
    shuffled = np.random.default_rng(seed).permuted(pixels.reshape(len(pixels), -1), axis=1).reshape(pixels.shape)
    assert pixel_gini(shuffled) == pytest.approx(gini, nan_ok=True)
    assert pixel_gini(pixels // 2 * 2) == pytest.approx(pixel_gini(pixels // 2), nan_ok=True)
    assert np.all((np.nan_to_num(gini) >= -1e-12) & (np.nan_to_num(gini) <= 1 - 1 / num_values + 1e-12))


def test_gini_by_hand():
    def image(values: list[int]) -> np.ndarray:
        return np.array(values, np.uint8).reshape(1, 1, -1, 1)

    assert pixel_gini(image([0, 0, 0, 255])) == pytest.approx([0.75])
    assert pixel_gini(image([1, 2, 3, 4])) == pytest.approx([0.25])
    assert pixel_gini(image([7, 7, 7, 7])) == pytest.approx([0])
    assert np.isnan(pixel_gini(image([0, 0, 0, 0])))[0]


def test_luminance_by_hand():
    primaries = np.zeros((3, 4, 4, 3), np.uint8)
    for channel in range(3):
        primaries[channel, ..., channel] = 255
    assert covariates(primaries)["luminance_mean"] == pytest.approx([0.2126, 0.7152, 0.0722])
    halves = np.zeros((1, 4, 4, 3), np.uint8)
    halves[:, :, 2:] = 255
    assert covariates(halves)["luminance_contrast"] == pytest.approx([0.5])
    assert covariates(halves)["luminance_median"] == pytest.approx([0.5])


@pytest.mark.parametrize(("step", "density"), [(EDGE_THRESHOLD * 1.01, 0.5), (EDGE_THRESHOLD * 0.99, 0.0)])
def test_a_step_is_an_edge_on_both_sides_from_the_threshold_on(step, density):
    luminance = np.full((1, 6, 6), 0.3)
    luminance[:, :, 3:] += step
    assert edge_density(luminance) == [density]
    assert edge_density(luminance.transpose(0, 2, 1)) == [density]


def test_no_images_have_no_covariates():
    assert all(len(values) == 0 for values in covariates(np.empty((0, 8, 8, 3), np.uint8)).values())
