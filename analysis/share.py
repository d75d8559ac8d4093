"""The population share: how much of the variance of the ratings do metrics explain beyond the confounds?

Ridge regression (`analysis.ridge`) says how well finitely many images *predict*, which falls short of what the metrics
explain in the population. This is the other estimand: the increase of R² of the linear regression on the confounds when
the metrics are added, in the population that the images were drawn from. It makes no prediction, so it needs no folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize, special, stats

_RANK_TOLERANCE = 1e-9  # of the largest singular value of the standardised predictors
_SPARE = 10  # images beyond the predictors without which an interval would say nothing
_LARGEST = 0.999  # squared partial correlation above which the ratings are a function of the metrics
_REACH = 10.0  # standard deviations of the mixing distribution that are summed over


@dataclass(frozen=True)
class Share:
    """The population share with its interval.

    Attributes:
        estimate: difference of the two adjusted R²; nearly unbiased, therefore negative about as often as it should be.
        low: lower end of the interval, at least 0.
        high: upper end.
        n: number of images that entered, one of each cluster.
        rank: number of metrics that are linearly independent of the confounds and of each other.
        reason: why there is no estimate; empty if there is one.
    """

    estimate: float
    low: float
    high: float
    n: int
    rank: int
    reason: str


def population_share(
    score: np.ndarray, confounds: np.ndarray, metrics: np.ndarray, clusters: np.ndarray, confidence: float
) -> Share:
    """Share of the variance of the ratings that the metrics explain beyond the confounds, in the population.

    Images of one person and duplicates are no independent observations; the first of each cluster enters.

    The share is the squared partial correlation of the metrics times what the confounds leave. The interval inverts the
    exact distribution of the former for predictors drawn at random, and takes in the uncertainty of the latter.

    Args:
        score: float64 [n].
        confounds: float64 [n, k]; k may be 0.
        metrics: float64 [n, p], without NaN.
        clusters: cluster of each image, int [n].
        confidence: level of the interval.

    Source: Ezekiel 1930 (adjusted R²); Fisher 1928, Steiger & Fouladi 1992 (interval by inversion); Zou 2007 (product).
    """
    first = np.unique(clusters, return_index=True)[1]
    score, confounds, metrics = score[first], confounds[first], metrics[first]
    n, total = len(score), float(((score - score.mean()) ** 2).sum())
    left, num_confounds = _left_by(confounds, score)
    unexplained, num_all = _left_by(np.hstack([confounds, metrics]), score)
    rank, freedom = num_all - num_confounds, n - 1 - num_confounds
    reason = _why_not(rank, freedom, (total, left, unexplained))
    if reason:
        return Share(np.nan, np.nan, np.nan, n, rank, reason)
    beyond = _adjusted(left, unexplained, freedom, rank)
    remaining = 1 - _adjusted(total, left, n - 1, num_confounds)
    low, high = squared_correlation_interval(1 - unexplained / left, rank, freedom, confidence)
    of_confounds = (0.0, 0.0)
    if num_confounds:
        of_confounds = squared_correlation_interval(1 - left / total, num_confounds, n - 1, confidence)
    low, high = _product_interval(
        (min(max(beyond, low), high), low, high), (remaining, 1 - of_confounds[1], 1 - of_confounds[0])
    )
    return Share(beyond * remaining, low, high, n, rank, "")


def squared_correlation_interval(
    r2: float, num_predictors: int, freedom: int, confidence: float
) -> tuple[float, float]:
    """Equal-tailed interval of a population's squared multiple correlation; ends that would be negative are 0.

    It covers a true value of 0 in (1 + confidence) / 2 of all cases, since only the lower end can miss it.

    Args:
        r2: the squared multiple correlation observed, in [0, 1); the closer to 1, the slower.
        num_predictors: p, at least 1.
        freedom: degrees of freedom of all, n − 1; less the confounds for a partial correlation. More than p.
        confidence: level of the interval.
    """

    def end(probability: float) -> float:
        def excess(rho2: float) -> float:
            return squared_correlation_cdf(r2, rho2, num_predictors, freedom) - probability

        if excess(0.0) <= 0:
            return 0.0
        above = (1 + r2) / 2
        while excess(above) > 0:
            above = (1 + above) / 2
        return float(optimize.brentq(excess, 0.0, above, xtol=1e-8))

    return end((1 + confidence) / 2), end((1 - confidence) / 2)


def squared_correlation_cdf(r2: float, rho2: float, num_predictors: int, freedom: int) -> float:
    """Probability of an observed squared multiple correlation up to `r2`, for normal predictors drawn at random.

    R² is Beta(p/2 + j, (freedom − p)/2) with j negative binomial of freedom/2 successes of probability 1 − ρ².

    Args:
        r2: in [0, 1].
        rho2: the population's ρ², in [0, 1).
        num_predictors: p.
        freedom: n − 1, less the confounds for a partial correlation.

    Source: Fisher 1928; Gurland 1968.
    """
    if rho2 == 0:
        return float(special.betainc(num_predictors / 2, (freedom - num_predictors) / 2, r2))
    mean = freedom / 2 * rho2 / (1 - rho2)
    reach = _REACH * (np.sqrt(mean / (1 - rho2)) + 1)
    j = np.arange(max(0.0, np.floor(mean - reach)), np.ceil(mean + reach))
    mixing = stats.nbinom.pmf(j, freedom / 2, 1 - rho2)
    return float(mixing @ special.betainc(num_predictors / 2 + j, (freedom - num_predictors) / 2, r2))


def _left_by(predictors: np.ndarray, score: np.ndarray) -> tuple[float, int]:
    """Sum of squares that linear regression with a constant leaves, and the rank of the predictors."""
    centred = score - score.mean()
    spread = predictors.std(axis=0)
    varying = predictors[:, spread > 0]
    if varying.shape[1] == 0:
        return float(centred @ centred), 0
    standard = stats.zscore(varying, axis=0)
    weights, _, rank, _ = linalg.lstsq(standard, centred, cond=_RANK_TOLERANCE)
    return float(((centred - standard @ weights) ** 2).sum()), int(rank)


def _why_not(rank: int, freedom: int, squares: tuple[float, float, float]) -> str:
    total, left, unexplained = squares
    if rank == 0:
        return "the covariates explain these metrics entirely"
    if freedom - rank < _SPARE:
        return f"{rank} independent metrics leave {freedom - rank} degrees of freedom, fewer than {_SPARE}"
    if left <= (1 - _LARGEST) * total:
        return "the covariates explain the ratings entirely"
    return "the metrics explain the ratings entirely" if unexplained <= (1 - _LARGEST) * left else ""


def _adjusted(before: float, after: float, freedom: int, rank: int) -> float:
    """Adjusted R² of a step of a regression that leaves the sum of squares `after` of `before`."""
    return 1 - (after / (freedom - rank)) / (before / freedom)


def _product_interval(one: tuple[float, float, float], other: tuple[float, float, float]) -> tuple[float, float]:
    """Interval of the product of two independent positive numbers from (estimate, low, high) of each."""
    a, a_low, a_high = one
    b, b_low, b_high = other
    reach_down = np.hypot(b * (a - a_low), a * (b - b_low))
    reach_up = np.hypot(b * (a_high - a), a * (b_high - b))
    return max(0.0, float(a * b - reach_down)), float(a * b + reach_up)
