"""What tells whether the tests can be trusted: how the metrics hang together, and what tests say of exchanged ratings.

Both are computed of one cell per model: its general run with the first seed, on all rated images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats
from threadpoolctl import threadpool_limits

from analysis.cells import Cell, Sample
from analysis.statistics import permuted_correlations, residualise, why_untestable

RATING = "rating"
"""The layer that the ratings are filed under among the metrics."""
ALPHAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Levels at which tests of exchanged ratings are counted."""


def first_general(cells: Iterable[Cell]) -> list[Cell]:
    """Of each model the cell that stands for it: the general run with the first seed that is done, on all images."""
    general = [cell for cell in cells if cell.scorer == "general" and cell.sample == "all"]
    return list({cell.model: cell for cell in sorted(general, key=lambda cell: -cell.seed)}.values())


def metric_correlations(cell: Cell, sample: Sample, score: str) -> pd.DataFrame:
    """Pearson's r of every two metrics, and of every metric with the ratings.

    Args:
        cell: the metrics.
        sample: the images.
        score: name of the ratings.

    Returns:
        A row per pair: layer, metric, other_layer, other_metric, n, estimate, p_parametric, reason. Pairs that cannot
        be tested keep their row, with NaN and the reason.
    """
    columns = {(RATING, score): sample.score} | {
        (str(layer), str(metric)): cell.features[layer, metric].to_numpy(np.float64)
        for layer, metric in cell.features.columns
    }
    with threadpool_limits(1):
        rows = [(*one, *other, *_related(columns[one], columns[other])) for one, other in combinations(columns, 2)]
    names = ["other_layer", "other_metric", "layer", "metric", "n", "estimate", "p_parametric", "reason"]
    return cell.label(pd.DataFrame(rows, columns=names))


def _related(first: np.ndarray, second: np.ndarray) -> tuple[int, float, float, str]:
    """Number of images with both, r, p and why there are none."""
    both = np.isfinite(first) & np.isfinite(second)
    x, y = first[both], second[both]
    reason = why_untestable(x, x) or why_untestable(y, y)
    if reason:
        return len(x), np.nan, np.nan, reason
    found = stats.pearsonr(x, y)
    return len(x), float(found.statistic), float(found.pvalue), ""


def exchanged_tests(cell: Cell, sample: Sample) -> pd.DataFrame:
    """How often tests of ratings that were exchanged within groups have a parametric p of at most α.

    A t test of Pearson's or Spearman's r counts what a metric knows of the means of groups as a finding; here these
    means are all that is left, so that the share is above α by as much as they matter. With partial correlations it
    is to be α.

    Args:
        cell: the metrics.
        sample: the images, with the orders in which their ratings are exchanged.

    Returns:
        estimator, alpha, rate, num_tests; no rows where nothing can be tested.
    """
    with threadpool_limits(1):
        rows = [
            (estimator, alpha, float((p <= alpha).mean()), p.size)
            for estimator, p in _p_of_exchanged(cell, sample)
            for alpha in ALPHAS
        ]
    return cell.label(pd.DataFrame(rows, columns=["estimator", "alpha", "rate", "num_tests"]))


def _p_of_exchanged(cell: Cell, sample: Sample) -> Iterator[tuple[str, np.ndarray]]:
    """Two-sided p of the t test of every metric in every order, float64 [orders, metrics]."""
    values = cell.features.to_numpy(np.float64)
    usable = [not why_untestable(column[np.isfinite(column)], sample.score[np.isfinite(column)]) for column in values.T]
    values, num_covariates = values[:, usable], sample.confounds.shape[1]
    if not any(usable):
        return
    yield "pearson", _p(values, sample.score, sample.orders)
    ranks = stats.rankdata(values, axis=0, nan_policy="omit")
    yield "spearman", _p(ranks, stats.rankdata(sample.score), sample.orders)
    if sample.division is None or not num_covariates:
        return
    both = np.column_stack([sample.score, values])
    score, *columns = residualise(both, sample.confounds, sample.division.folds[0]).T
    left = [column for column in columns if np.isfinite(column).any()]
    if np.isfinite(score).all() and left:
        yield "partial", _p(np.column_stack(left), score, sample.orders, num_covariates)


def _p(columns: np.ndarray, score: np.ndarray, orders: np.ndarray, num_covariates: int = 0) -> np.ndarray:
    r = permuted_correlations(columns, score, orders)[1:]
    freedom = np.isfinite(columns).sum(axis=0) - 2 - num_covariates
    return 2 * stats.t.sf(np.abs(r) * np.sqrt(freedom / np.maximum(1 - r**2, 1e-300)), freedom)
