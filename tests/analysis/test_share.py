from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from threadpoolctl import threadpool_limits

from analysis.share import Share, population_share, squared_correlation_cdf, squared_correlation_interval


def drawn(
    rng: np.random.Generator, n: int, p: int, share: float, k: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratings, confounds that explain .15, and metrics that explain `share` beyond them."""
    confounds, beyond = rng.normal(size=(n, k)), rng.normal(size=(n, p))
    explained = np.sqrt(0.15 / k) * confounds.sum(axis=1) + np.sqrt(share / p) * beyond.sum(axis=1)
    return explained + np.sqrt(0.85 - share) * rng.normal(size=n), confounds, beyond + confounds[:, :1]


def share_of(score: np.ndarray, confounds: np.ndarray, metrics: np.ndarray) -> Share:
    return population_share(score, confounds, metrics, np.arange(len(score)), 0.95)


@pytest.mark.parametrize(("rho2", "p", "freedom"), [(0.0, 3, 50), (0.1, 12, 380), (0.3, 5, 59), (0.8, 2, 40)])
def test_distribution_is_that_of_fs_with_random_noncentrality(rho2: float, p: int, freedom: int) -> None:
    """Given the predictors F is noncentral; their own spread makes λ a multiple of a χ²."""
    points = (np.arange(4000) + 0.5) / 4000
    noncentrality = rho2 / (1 - rho2) * stats.chi2.ppf(points, freedom)
    for r2 in (max(rho2 - 0.05, 0.02), rho2 + 0.1):
        f = r2 / (1 - r2) * (freedom - p) / p
        expected = stats.ncf.cdf(f, p, freedom - p, noncentrality).mean() if rho2 else stats.f.cdf(f, p, freedom - p)
        assert squared_correlation_cdf(r2, rho2, p, freedom) == pytest.approx(expected, abs=2e-4)


def test_interval_ends_where_the_observed_value_becomes_improbable() -> None:
    low, high = squared_correlation_interval(0.2, 5, 100, 0.9)
    assert 0 < low < 0.2 < high
    assert squared_correlation_cdf(0.2, low, 5, 100) == pytest.approx(0.95, abs=1e-5)
    assert squared_correlation_cdf(0.2, high, 5, 100) == pytest.approx(0.05, abs=1e-5)
    assert squared_correlation_interval(0.05, 5, 100, 0.9)[0] == 0
    assert squared_correlation_interval(0.001, 5, 100, 0.9) == (0, 0)  # improbably small even without an effect


def test_one_predictor_is_the_square_of_a_correlation() -> None:
    low, high = squared_correlation_interval(0.25, 1, 199, 0.95)
    assert (low**0.5, high**0.5) == pytest.approx((0.388, 0.598), abs=0.003)  # r = .5, n = 200: Fisher's z


def test_estimate_is_the_difference_of_statsmodels_adjusted_r2() -> None:
    score, confounds, metrics = drawn(np.random.default_rng(0), 120, 6, 0.2)
    full = sm.OLS(score, sm.add_constant(np.hstack([confounds, metrics]))).fit()
    baseline = sm.OLS(score, sm.add_constant(confounds)).fit()
    found = share_of(score, confounds, metrics)
    assert found.estimate == pytest.approx(full.rsquared_adj - baseline.rsquared_adj)
    assert (found.n, found.rank, found.reason) == (120, 6, "")
    alone = share_of(score, np.empty((120, 0)), metrics)
    assert alone.estimate == pytest.approx(sm.OLS(score, sm.add_constant(metrics)).fit().rsquared_adj)
    r2 = sm.OLS(score, sm.add_constant(metrics)).fit().rsquared
    assert (alone.low, alone.high) == pytest.approx(squared_correlation_interval(r2, 6, 119, 0.95))


@pytest.mark.parametrize(("n", "p", "share"), [(150, 6, 0.0), (150, 6, 0.2), (100, 40, 0.1)])
def test_interval_covers_the_planted_share_and_the_estimate_is_unbiased(n: int, p: int, share: float) -> None:
    rng = np.random.default_rng(1)
    with threadpool_limits(1):  # as the analysis does; small matrices gain nothing by threads
        found = [share_of(*drawn(rng, n, p, share)) for _ in range(150)]
    covered = np.mean([one.low <= share <= one.high for one in found])
    assert 0.91 <= covered <= 0.995
    error = np.std([one.estimate for one in found]) / np.sqrt(150)
    assert np.mean([one.estimate for one in found]) == pytest.approx(share, abs=4 * error)


def test_collinear_and_constant_metrics_change_nothing() -> None:
    score, confounds, metrics = drawn(np.random.default_rng(2), 100, 4, 0.2)
    more = np.column_stack([metrics, metrics[:, 0] * 1e6 + 3, metrics.sum(axis=1), confounds[:, 0], np.full(100, 7.0)])
    one, other = share_of(score, confounds, metrics), share_of(score, confounds, more)
    assert other.rank == one.rank == 4
    assert (other.estimate, other.low, other.high) == pytest.approx((one.estimate, one.low, one.high))


def test_a_duplicate_is_no_second_observation() -> None:
    score, confounds, metrics = drawn(np.random.default_rng(3), 80, 4, 0.2)
    once = share_of(score, confounds, metrics)
    doubled = [np.concatenate([one, one]) for one in (score, confounds, metrics)]
    assert population_share(*doubled, np.tile(np.arange(80), 2), 0.95) == once


def test_what_has_no_share_says_why() -> None:
    rng = np.random.default_rng(4)
    score, confounds, metrics = drawn(rng, 60, 4, 0.2)
    reasons = {
        "the covariates explain these metrics entirely": (score, confounds, confounds @ np.ones((3, 2))),
        "50 independent metrics leave 6 degrees of freedom, fewer than 10": (
            score,
            confounds,
            rng.normal(size=(60, 50)),
        ),
        "56 independent metrics leave 0 degrees of freedom, fewer than 10": (
            score,
            confounds,
            rng.normal(size=(60, 99)),
        ),
        "the covariates explain the ratings entirely": (confounds.sum(axis=1), confounds, metrics),
        "the metrics explain the ratings entirely": (metrics.sum(axis=1), confounds, metrics),
    }
    for reason, (ratings, known, columns) in reasons.items():
        found = share_of(ratings, known, columns)
        assert found.reason == reason
        assert np.isnan([found.estimate, found.low, found.high]).all()
