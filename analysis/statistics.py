"""Correlations with intervals and permutation tests; noise ceiling and power.

Permutations exchange ratings within groups, so that what a metric knows about group means counts for nothing, and
they move clusters (a person's photos, duplicates) as wholes among clusters of the same make-up.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from analysis.families import deviation, families_of, permutation_p, within_cell
from fluence.study import Family

Estimator = Literal["pearson", "spearman", "partial", "xi"]

MIN_IMAGES = 30
"""Fewer images than this give no statistic, only a row that says so."""

_BATCH = 1000  # permutations held in memory at one time
_XI_BATCH = 250  # likewise for ξ, whose ranks then stay in the processor's cache
_SPLITS = 100  # random halvings of the raters


def exchanges(groups: np.ndarray, clusters: np.ndarray, num_permutations: int, seed: int) -> np.ndarray:
    """Orders of the images that are equally likely when nothing but the group matters.

    Clusters change places with clusters that have as many images in the same groups; within one, the order is kept.

    Args:
        groups: group of each image, text [n].
        clusters: cluster of each image, int [n].
        num_permutations: B.
        seed: of the random numbers.

    Returns:
        int32 [1 + B, n]; the first row is the order as it is.
    """
    rng = np.random.default_rng(seed)
    images = pd.DataFrame({"group": groups, "cluster": clusters, "row": np.arange(len(groups))})
    images = images.sort_values(["cluster", "group"], kind="stable")
    members = images.groupby("cluster", sort=False).agg({"row": list, "group": tuple})
    orders = np.tile(np.arange(len(groups), dtype=np.int32), (1 + num_permutations, 1))
    for _, alike in members.groupby("group", sort=True)["row"]:
        places = np.array(alike.tolist(), dtype=np.int32)  # [clusters, images of one]
        shuffled = rng.permuted(np.tile(np.arange(len(places)), (num_permutations, 1)), axis=1)
        orders[1:, places.ravel()] = places[shuffled].reshape(num_permutations, -1)
    return orders


def permuted_correlations(columns: np.ndarray, score: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Pearson's r of every column with the score in every order, over the images where the column has a value.

    Args:
        columns: float64 [n, p], NaN where an image has no value.
        score: float64 [n].
        orders: int [1 + B, n], from `exchanges`.

    Returns:
        float64 [1 + B, p].
    """
    present = np.isfinite(columns)
    centred = np.where(present, columns - np.nanmean(columns, axis=0), 0.0)
    centred /= np.linalg.norm(centred, axis=0)
    counts, mask = present.sum(axis=0)[:, None], present.T.astype(np.float64)
    standard = (score - score.mean()) / score.std()
    correlations = []
    for start in range(0, len(orders), _BATCH):
        permuted = standard[orders[start : start + _BATCH].T]
        spread = float(len(score)) if present.all() else mask @ permuted**2 - (mask @ permuted) ** 2 / counts
        correlations.append((centred.T @ permuted / np.sqrt(spread)).T)
    return np.concatenate(correlations)


def permuted_xi(columns: np.ndarray, score: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Chatterjee's ξ of the score as a function of every column, in every order, where the column has a value.

    In the order of the column, ξ = 1 − n Σ |r_(i+1) − r_i| / (2 Σ l_i (n − l_i)), r_i the number of scores at most as
    large, l_i the number at least as large. Equal values of a column are put in a random order, always the same one.

    Args:
        columns: float64 [n, p], NaN where an image has no value.
        score: float64 [n].
        orders: int [1 + B, n], from `exchanges`.

    Returns:
        float64 [1 + B, p].

    Source: Chatterjee 2021, equation 1.2; as `scipy.stats.chatterjeexi`.
    """
    xi = np.empty((len(orders), columns.shape[1]))
    present = np.isfinite(columns)
    patterns, which = np.unique(present, axis=1, return_inverse=True)
    ascending = [np.argsort(untied(column[rows])) for column, rows in zip(columns.T, present.T, strict=True)]
    by_score = np.argsort(score, kind="stable")
    ends = tuple(np.searchsorted(score[by_score], score[by_score], side) for side in ("left", "right"))
    for start in range(0, len(orders), _XI_BATCH):
        batch = orders[start : start + _XI_BATCH]
        places = np.empty_like(batch)  # in each order, the image that has the smallest score, the next one, …
        np.put_along_axis(places, batch, np.broadcast_to(np.arange(len(score), dtype=batch.dtype), batch.shape), axis=1)
        places = places[:, by_score]
        for number, rows in enumerate(patterns.T):
            ranks, spread = _ranks_of_present(rows, places, ends)
            for member in np.flatnonzero(np.ravel(which) == number):
                steps = np.abs(np.diff(ranks[ascending[member]], axis=0)).sum(axis=0, dtype=np.int64)
                share = np.divide(len(ranks) * steps, spread, out=np.ones(len(batch)), where=spread > 0)
                xi[start : start + _XI_BATCH, member] = 1 - share
    return xi


def _ranks_of_present(
    rows: np.ndarray, places: np.ndarray, ends: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the scores among the images that are present, in every order, without sorting anew.

    Args:
        rows: which images are present, bool [n].
        places: in each order, the images by ascending score, int [orders, n].
        ends: for each score in ascending order, where those equal to it begin and where the greater ones do.

    Returns:
        How many scores are at most as large, int [present, orders], and 2 Σ l (n − l), l how many are at least as
        large, int64 [orders].
    """
    there = rows[places]
    counted = np.cumsum(there, axis=1, dtype=np.int32)
    first, num_present = ends[0], np.int32(rows.sum())
    at_least = num_present - counted[:, first] + there[:, first]
    spread = 2 * (there * at_least * (num_present - at_least)).sum(axis=1, dtype=np.int64)
    ranks = np.empty_like(counted)
    np.put_along_axis(ranks, places, counted[:, ends[1] - 1], axis=1)
    return np.ascontiguousarray(ranks.T[rows]), spread


def untied(column: np.ndarray) -> np.ndarray:
    """Ranks of the values without ties: equal values are put in a random order, always the same one, float64 [n].

    Source: Chatterjee 2021, who breaks ties at random; scipy leaves them in the order of its sort.
    """
    mixed = np.random.default_rng(0).permutation(len(column))
    ranks = np.empty(len(column))
    ranks[mixed] = stats.rankdata(column[mixed], method="ordinal")
    return ranks


class Correlations(NamedTuple):
    """The correlations of a cell by one estimator.

    Attributes:
        table: a row per column.
        largest: largest deviation of all columns in every order, float64 [1 + B]; −∞ where nothing could be tested.
    """

    table: pd.DataFrame
    largest: np.ndarray


def correlate(
    features: pd.DataFrame,
    score: np.ndarray,
    orders: np.ndarray,
    *,
    estimator: Estimator,
    confidence: float,
    num_covariates: int = 0,
    family: Family = "cell",
) -> Correlations:
    """Correlates every metric of every layer with the score.

    A statistic is tested by its distance from its mean over all orders, which differs from zero where groups differ.

    Args:
        features: image × (layer, metric); for `partial`, what the baseline leaves of it.
        score: float64 [n]; for `partial`, what the baseline leaves of it.
        orders: from `exchanges`.
        estimator: `pearson`; `spearman`; `partial`, Pearson's of residuals with fewer degrees of freedom; or `xi`,
            Chatterjee's ξ of the score as a function of the metric.
        confidence: level of the intervals.
        num_covariates: columns of the baseline; only for `partial`.
        family: which columns are corrected together.

    Returns:
        A row per column: layer, metric, estimator, n, estimate, ci_low, ci_high, expected, p_parametric, p_permutation,
        p_bh, p_max_r, family, family_size, reason. A column that cannot be tested keeps its row, with NaN and the
        reason.
    """
    values = features.to_numpy(dtype=np.float64)
    rows = [_estimate(column, score, estimator, confidence, num_covariates) for column in values.T]
    table = pd.DataFrame(rows)
    table.insert(0, "layer", [layer for layer, _ in features.columns])
    table.insert(1, "metric", [metric for _, metric in features.columns])
    table.insert(2, "estimator", estimator)
    table = table.assign(family=families_of(list(features.columns), family), expected=np.nan, p_permutation=np.nan)
    usable = table["reason"].eq("").to_numpy()
    away, largest = np.empty((len(orders), 0)), np.full(len(orders), -np.inf)
    if usable.any():
        statistics = _permuted(values[:, usable], score, orders, estimator)
        expected = statistics.mean(axis=0)
        away = deviation(statistics - expected, estimator)
        largest = away.max(axis=1)
        table.loc[usable, "expected"], table.loc[usable, "p_permutation"] = expected, permutation_p(away[0], away)
    return Correlations(within_cell(table, away), largest)


def _permuted(columns: np.ndarray, score: np.ndarray, orders: np.ndarray, estimator: Estimator) -> np.ndarray:
    """The statistic of each column in every order, float64 [1 + B, p]."""
    if estimator == "xi":
        return permuted_xi(columns, score, orders)
    if estimator == "spearman":
        columns, score = stats.rankdata(columns, axis=0, nan_policy="omit"), stats.rankdata(score)
    return permuted_correlations(columns, score, orders)


def _estimate(
    column: np.ndarray, score: np.ndarray, estimator: Estimator, confidence: float, num_covariates: int
) -> dict[str, float | int | str]:
    """Estimate, interval and parametric p of one column, or the reason why there are none."""
    present = np.isfinite(column)
    x, y = column[present], score[present]
    result: dict[str, float | int | str] = {"n": len(x)}
    reason = why_untestable(x, y)
    if not reason and len(x) - num_covariates < 5:
        reason = f"{len(x)} images for {num_covariates} covariates"
    if reason:
        return result | dict.fromkeys(("estimate", "ci_low", "ci_high", "p_parametric"), np.nan) | {"reason": reason}
    low = high = np.nan
    if estimator == "pearson":
        found = stats.pearsonr(x, y)
        estimate, p, (low, high) = found.statistic, found.pvalue, found.confidence_interval(confidence)
    elif estimator == "spearman":
        estimate, p = stats.spearmanr(x, y)
        low, high = fisher_interval(estimate, np.sqrt((1 + estimate**2 / 2) / (len(x) - 3)), confidence)
    elif estimator == "xi":
        estimate, p = stats.chatterjeexi(untied(x), y)
    else:
        estimate = stats.pearsonr(x, y).statistic
        freedom = len(x) - 2 - num_covariates
        p = 2 * stats.t.sf(abs(estimate) * np.sqrt(freedom / max(1 - estimate**2, 1e-300)), freedom)
        low, high = fisher_interval(estimate, 1 / np.sqrt(freedom - 1), confidence)
    numbers = {"estimate": estimate, "ci_low": low, "ci_high": high, "p_parametric": p}
    return result | {name: float(number) for name, number in numbers.items()} | {"reason": ""}


def why_untestable(column: np.ndarray, score: np.ndarray) -> str:
    """Why a metric cannot be related to the score; empty if it can."""
    if len(score) == 0:
        return "no value for any image (a dead layer)"
    if len(score) < MIN_IMAGES:
        return f"{len(score)} images, fewer than {MIN_IMAGES}"
    if np.ptp(column) <= 1e-12 * np.abs(column).max():
        return "constant metric"
    return "constant ratings" if np.ptp(score) == 0 else ""


def fisher_interval(estimate: float, standard_error: float, confidence: float) -> tuple[float, float]:
    """Interval of a correlation through Fisher's z, whose standard error is given.

    Source: Bonett & Wright 2000 for Spearman's, √((1 + r²/2) / (n − 3)); Fisher 1924 for partial, 1 / √(n − k − 3).
    """
    z = np.arctanh(np.clip(estimate, -1 + 1e-15, 1 - 1e-15))
    reach = stats.norm.ppf((1 + confidence) / 2) * standard_error
    return float(np.tanh(z - reach)), float(np.tanh(z + reach))


def residualise(columns: np.ndarray, baseline: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """What linear regression on the baseline leaves of each column, every image predicted from the other folds.

    Args:
        columns: float64 [n, p], NaN where an image has no value.
        baseline: float64 [n, k], k ≥ 1.
        folds: fold of each image, int [n].

    Returns:
        float64 [n, p], NaN where `columns` is; all NaN for a column that lacks values in all but one fold, or of which
        the baseline leaves nothing but rounding errors.
    """
    residuals = np.full(columns.shape, np.nan)
    present = np.isfinite(columns)
    patterns, which = np.unique(present, axis=1, return_inverse=True)
    for number, rows in enumerate(patterns.T):
        if len(np.unique(folds[rows])) > 1:
            place = np.ix_(rows, np.ravel(which) == number)
            predicted = cross_val_predict(
                LinearRegression(), baseline[rows], columns[place], cv=PredefinedSplit(folds[rows])
            )
            residuals[place] = columns[place] - predicted.reshape(columns[place].shape)
    explained = np.nanmax(np.abs(residuals), axis=0, initial=0) <= 1e-9 * np.nanmax(np.abs(columns), axis=0, initial=0)
    residuals[:, explained] = np.nan
    return residuals


def smallest_detectable_r2(n: int, num_predictors: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest population R² that the F test of a linear regression finds with the given power; NaN if n is too small.

    Source: Cohen 1988, chapter 9: non-central F with λ = n R² / (1 − R²).
    """
    freedom = n - num_predictors - 1
    if num_predictors < 1 or freedom < 2:
        return float("nan")
    critical = stats.f.isf(alpha, num_predictors, freedom)

    def shortfall(r2: float) -> float:
        return float(stats.ncf.sf(critical, num_predictors, freedom, n * r2 / (1 - r2))) - power

    return float(optimize.brentq(shortfall, 1e-9, 1 - 1e-3)) if shortfall(1 - 1e-3) > 0 else float("nan")


def noise_ceiling(rated: pd.DataFrame, score: str, seed: int) -> pd.DataFrame:
    """The largest R² that any model could reach, given how much raters disagree.

    Columns `rater_…` give the split-half reliability of the mean rating, raised to all raters by Spearman and Brown's
    formula (mean over 100 random halvings). `<score>_sd` and `n_ratings` give 1 − mean(sd²/n) / var(mean).

    Args:
        rated: rows of `tables.rated_images`.
        score: column of the ratings.
        seed: of the halvings.

    Returns:
        A row per method that the data allow, best first: method, n, num_raters, ceiling_r2.
    """
    rows = []
    raters = rated[[c for c in rated if str(c).startswith("rater_") and pd.api.types.is_numeric_dtype(rated[c])]]
    if raters.shape[1] >= 2 and len(rated) >= MIN_IMAGES:
        ceiling = split_half(raters.to_numpy(dtype=np.float64), seed)
        rows.append(("split-half", len(rated), float(raters.shape[1]), ceiling))
    if {f"{score}_sd", "n_ratings"} <= set(rated) and len(rated) >= MIN_IMAGES:
        known = rated[["score", f"{score}_sd", "n_ratings"]].apply(pd.to_numeric, errors="coerce").dropna()
        known = known[known["n_ratings"] > 0]
        if len(known) >= MIN_IMAGES:
            error = (known[f"{score}_sd"] ** 2 / known["n_ratings"]).mean()
            ceiling = float(1 - error / known["score"].var())
            rows.append(("sd and n", len(known), float(known["n_ratings"].mean()), ceiling))
    table = pd.DataFrame(rows, columns=["method", "n", "num_raters", "ceiling_r2"])
    return table[table["ceiling_r2"].notna()].reset_index(drop=True)


def split_half(ratings: np.ndarray, seed: int) -> float:
    """Reliability of the mean over all raters: correlation of random halves, raised by Spearman and Brown's formula.

    Args:
        ratings: float64 [images, raters], NaN where a rater has not seen an image.
        seed: of the halvings.

    Returns:
        In (−∞, 1]; NaN if hardly an image was seen by raters of both halves.

    Source: Spearman 1910; Brown 1910.
    """
    rng = np.random.default_rng(seed)
    reliabilities = []
    for _ in range(_SPLITS):
        order = rng.permutation(ratings.shape[1])
        first, second = (_mean_over(ratings[:, half]) for half in np.array_split(order, 2))
        both = np.isfinite(first) & np.isfinite(second)
        if not why_untestable(first[both], second[both]):
            r = stats.pearsonr(first[both], second[both]).statistic
            reliabilities.append(2 * r / (1 + r))
    return float(np.mean(reliabilities)) if reliabilities else float("nan")


def _mean_over(ratings: np.ndarray) -> np.ndarray:
    """Mean of the raters of each image; NaN without any."""
    seen = np.isfinite(ratings)
    return np.where(seen, ratings, 0.0).sum(axis=1) / np.where(seen.any(axis=1), seen.sum(axis=1), np.nan)
