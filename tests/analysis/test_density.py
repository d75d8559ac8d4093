"""Components from a Gram matrix are those of scikit-learn's full PCA; densities are those of slow references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from analysis.density import (
    Components,
    log_gaussian,
    log_mixture,
    log_ppca,
    log_residual,
    principal_components,
    project,
)
from analysis.gram import gram
from tests.analysis.test_gram import InMemory, responses


def inner(values: np.ndarray) -> np.ndarray:
    """In float64, and not centred at all."""
    return values.astype(np.float64) @ values.T.astype(np.float64)


def correlated(num_images: int, num_units: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(num_images, 6)) * np.array([9, 7, 5, 4, 3, 2])
    return 10 + hidden @ rng.normal(size=(6, num_units)) + 0.5 * rng.normal(size=(num_images, num_units))


def up_to_signs(scores: np.ndarray, like: np.ndarray) -> np.ndarray:
    return scores * np.sign((scores * like).sum(axis=0))


# ── Components ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_by_hand() -> None:
    """Three images on a line, (−1, −1), (0, 0), (1, 1); a fourth beside it."""
    values = np.array([[-1.0, -1], [0, 0], [1, 1], [3, 1]])
    components = principal_components(inner(values), np.arange(3), num_units=2, most=1)
    assert components.variances == pytest.approx([2])
    seen = project(components, inner(values), np.arange(4))
    np.testing.assert_allclose(np.abs(seen.scores[:, 0]), np.sqrt([2, 0, 2, 8]), atol=1e-9)
    np.testing.assert_allclose(seen.squared_residual, [0, 0, 0, 2], atol=1e-9)


@pytest.mark.parametrize(("num_images", "num_units", "steepness"), [(60, 400, 0.5), (80, 20, 0.5), (60, 400, 2)])
def test_is_scikit_learns_full_pca(num_images: int, num_units: int, steepness: float) -> None:
    """Of a fold's training images, and of images held out; from float16, through float32 products.

    1e-6 is a share of each number; where the first component has thousands of times the variance of the last, of the
    first one's.
    """
    values = responses(num_images, num_units, steepness=steepness)
    rng = np.random.default_rng(1)
    train, held_out = np.split(rng.permutation(num_images), [num_images - 15])
    matrix = gram(InMemory(values), "conv1", num_units)
    components = principal_components(matrix, train, num_units, 8)
    theirs = PCA(svd_solver="full").fit(values[train].astype(np.float64))
    tolerance = 1e-7 * theirs.explained_variance_[0] if steepness > 1 else 0
    np.testing.assert_allclose(components.variances, theirs.explained_variance_[:8], rtol=1e-6, atol=tolerance)
    assert components.total_variance == pytest.approx(theirs.explained_variance_.sum(), rel=1e-6)
    for rows in (train, held_out):
        seen, expected = project(components, matrix, rows), theirs.transform(values[rows].astype(np.float64))
        size = np.abs(expected).max()
        np.testing.assert_allclose(up_to_signs(seen.scores, expected[:, :8]), expected[:, :8], atol=1e-6 * size)
        distance = ((values[rows] - theirs.mean_) ** 2).sum(axis=1)  # also what lies outside the training images
        residual = distance - (expected[:, :8] ** 2).sum(axis=1)
        np.testing.assert_allclose(seen.squared_residual, residual, atol=1e-6 * distance.max())


def test_each_fold_is_centred_over_its_own_training_images() -> None:
    """Centred once over all images, the training images would know of the held-out ones."""
    values = correlated(40, 100)
    values[30:] += 50
    components = principal_components(inner(values), np.arange(30), 100, 4)
    expected = PCA(4, svd_solver="full").fit(values[:30])
    np.testing.assert_allclose(components.variances, expected.explained_variance_, rtol=1e-9)
    moved = values.copy()
    moved[30:] *= 7
    again = principal_components(inner(moved), np.arange(30), 100, 4)
    np.testing.assert_allclose(again.variances, components.variances, rtol=1e-9)
    np.testing.assert_allclose(np.abs(again.weights), np.abs(components.weights), rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), shift=st.floats(-20, 20))
def test_neither_a_shift_nor_the_order_of_the_images_matters(seed: int, shift: float) -> None:
    values = correlated(25, 60, seed)
    order = np.random.default_rng(seed).permutation(20)
    one = principal_components(inner(values), np.arange(20), 60, 5)
    other = principal_components(inner(values + shift), order, 60, 5)
    np.testing.assert_allclose(one.variances, other.variances, rtol=1e-6)
    held_out = np.arange(20, 25)
    ours, theirs = project(one, inner(values), held_out), project(other, inner(values + shift), held_out)
    np.testing.assert_allclose(np.abs(ours.scores), np.abs(theirs.scores), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.squared_residual, theirs.squared_residual, rtol=1e-5)


def test_fewer_components_than_asked_for() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 50))
    assert len(principal_components(inner(flat), np.arange(30), 50, 10).variances) == 2
    assert len(principal_components(inner(rng.normal(size=(30, 3))), np.arange(30), 3, 10).variances) == 3
    assert len(principal_components(inner(rng.normal(size=(4, 50))), np.arange(4), 50, 10).variances) == 3


def test_training_images_that_are_all_alike_have_no_components() -> None:
    """Though the others are not, and rounding leaves traces of them."""
    values = responses(30, 500)
    values[:20] = values[0]
    matrix = gram(InMemory(values), "conv1", 500)
    assert len(principal_components(matrix, np.arange(20), 500, 5).variances) == 0
    assert len(principal_components(np.zeros((20, 20)), np.arange(20), 500, 5).variances) == 0


def test_the_first_of_many_components() -> None:
    matrix = inner(correlated(40, 100))
    many, few = (principal_components(matrix, np.arange(30), 100, number) for number in (5, 3))
    assert many.first(3).residual_variance == pytest.approx(few.residual_variance)
    np.testing.assert_allclose(many.first(3).variances, few.variances)
    np.testing.assert_allclose(np.abs(many.first(3).weights), np.abs(few.weights), atol=1e-12)


# ── Densities ────────────────────────────────────────────────────────────────────────────────────────────────────


def seen_by(values: np.ndarray, num_train: int, number: int) -> tuple[Components, np.ndarray, np.ndarray]:
    components = principal_components(inner(values), np.arange(num_train), values.shape[1], number)
    train = project(components, inner(values), np.arange(num_train)).scores
    return components, train, np.arange(num_train, len(values))


def full_ppca(train: np.ndarray, judged: np.ndarray, number: int) -> np.ndarray:
    """Slow reference: the whole D × D covariance of probabilistic PCA, W Wᵀ + σ² I."""
    mean, num_units = train.mean(axis=0), train.shape[1]
    variances, axes = np.linalg.eigh(np.cov(train.T))
    variances, axes = variances[::-1], axes[:, ::-1]
    noise = variances[number:].sum() / (num_units - number)
    factors = axes[:, :number] * np.sqrt(variances[:number] - noise)
    return multivariate_normal(mean, factors @ factors.T + noise * np.eye(num_units)).logpdf(judged)


@pytest.mark.parametrize(("num_images", "num_units"), [(40, 120), (200, 15)])
def test_ppca_is_that_of_the_whole_covariance(num_images: int, num_units: int) -> None:
    values = correlated(num_images, num_units)
    components, _, held_out = seen_by(values, num_images - 10, 4)
    ours = log_ppca(components, project(components, inner(values), held_out))
    np.testing.assert_allclose(ours, full_ppca(values[:-10], values[-10:], 4), rtol=1e-8)


def test_ppca_is_scikit_learns_where_there_are_more_images_than_units() -> None:
    values = correlated(200, 15)
    components, _, held_out = seen_by(values, 150, 4)
    theirs = PCA(4, svd_solver="full").fit(values[:150])
    ours = log_ppca(components, project(components, inner(values), held_out))
    np.testing.assert_allclose(ours, theirs.score_samples(values[150:]), rtol=1e-8)


def test_ppca_differs_from_scikit_learns_where_there_are_fewer() -> None:
    """scikit-learn spreads what is left over min(n, D) − k directions, though there are D − k of them."""
    values = correlated(40, 120)
    components, _, _ = seen_by(values, 30, 4)
    theirs = PCA(4, svd_solver="full").fit(values[:30])
    assert theirs.noise_variance_ * (30 - 4) == pytest.approx(components.residual_variance * (120 - 4))
    assert theirs.noise_variance_ > 4 * components.residual_variance


def test_ppca_is_an_inside_and_a_residual() -> None:
    values = correlated(60, 200)
    components, _, held_out = seen_by(values, 50, 4)
    seen = project(components, inner(values), held_out)
    inside = multivariate_normal(np.zeros(4), np.diag(components.variances)).logpdf(seen.scores)
    parts = inside + log_residual(components, seen.squared_residual)
    np.testing.assert_allclose(log_ppca(components, seen), parts, rtol=1e-12)


def test_the_residual_by_hand() -> None:
    """D = 3, k = 1, λ = (4, 1.5, 0.5): σ² = 1; r² = 2 gives −½ (2 ln 2π + 2)."""
    components = Components(np.arange(9), np.array([4.0]), np.zeros((9, 1)), 6.0, np.zeros(9), 3)
    assert components.residual_variance == pytest.approx(1)
    assert log_residual(components, np.array([2.0])) == pytest.approx([-np.log(2 * np.pi) - 1])


def test_nothing_outside_the_components_has_no_density() -> None:
    values = np.random.default_rng(0).normal(size=(30, 3))
    components, _, held_out = seen_by(values, 20, 3)
    seen = project(components, inner(values), held_out)
    assert np.isnan(log_residual(components, seen.squared_residual)).all()
    flat = np.random.default_rng(0).normal(size=(30, 2)) @ np.ones((2, 40)) * np.arange(40)
    components, _, _ = seen_by(flat, 20, 1)
    assert np.isnan(components.residual_variance)


def test_the_shrunk_gaussian_by_hand() -> None:
    """Ledoit & Wolf 2004 written out: δ = min(β², δ²) / δ² of S, towards the mean variance."""
    _, train, _ = seen_by(correlated(40, 100), 40, 4)
    sample = train.T @ train / len(train)
    target = np.trace(sample) / 4 * np.eye(4)
    off = np.mean((sample - target) ** 2)
    noise = np.mean([np.mean((np.outer(row, row) - sample) ** 2) for row in train]) / len(train)
    weight = min(noise, off) / off
    assert 0 < weight < 1
    judged = np.random.default_rng(0).normal(size=(7, 4))
    expected = multivariate_normal(np.zeros(4), weight * target + (1 - weight) * sample).logpdf(judged)
    np.testing.assert_allclose(log_gaussian(train, judged), expected, rtol=1e-9)
    assert log_gaussian(train[:, :1], judged[:1, :1]).shape == (1,)


def test_the_mixture_finds_two_kinds_of_images() -> None:
    """In units of the scores: a Gaussian would call the empty middle the most typical place of all."""
    rng = np.random.default_rng(0)
    train = rng.normal(size=(200, 3)) * np.array([1, 10, 100.0])
    train[:, 0] += np.where(np.arange(200) < 100, -20, 20)
    train -= train.mean(axis=0)
    places = np.array([[-20.0, 0, 0], [0, 0, 0], [20, 0, 0]])
    mixture, gaussian = log_mixture(train, places, 0), log_gaussian(train, places)
    assert mixture[1] < mixture[[0, 2]].min() - 50
    assert gaussian[1] > gaussian[[0, 2]].max()
    drawn_from = np.log(0.5) + multivariate_normal(np.zeros(3), np.diag([1.0, 100, 10_000])).logpdf(np.zeros(3))
    np.testing.assert_allclose(mixture[[0, 2]], drawn_from, atol=0.3)


def test_the_mixture_of_one_kind_of_images_is_a_single_gaussian() -> None:
    train = np.random.default_rng(0).normal(size=(150, 3)) * np.array([1, 2, 3])
    places = train[:10] / 2
    expected = multivariate_normal(train.mean(axis=0), np.diag(train.var(axis=0))).logpdf(places)
    np.testing.assert_allclose(log_mixture(train, places, 0), expected, atol=0.01)


def test_densities_are_densities() -> None:
    """In one dimension each sums up to 1."""
    train = np.random.default_rng(0).normal(size=(60, 1)) * 3
    train -= train.mean(axis=0)
    grid = np.linspace(-40, 40, 20_001)[:, None]
    for log in (log_gaussian(train, grid), log_mixture(train, grid, 0)):
        assert np.trapezoid(np.exp(log), grid[:, 0]) == pytest.approx(1, abs=1e-6)
