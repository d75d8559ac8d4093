"""Nested ridge regression: how much of the ratings do metrics predict, above what the confounds predict?

R² is 1 − Σ(y − ŷ)² / Σ(y − ȳ)² over all images pooled, each predicted by a model that has not seen it (nor the same
person, nor a duplicate of it). Standardisation and the choice of the penalty happen inside the fold. It may be
negative. The naive estimates of the literature are computed beside it, so that the difference can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import PredefinedSplit, StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ALPHAS = np.logspace(-1, 5, 10)
"""Penalties to choose from. The features are standardised, so that one range serves every number of images."""

NOISE_FLOOR = (0.05, 0.95)
"""Quantiles of R² under permutation that are reported as the noise floor."""

_BATCH = 250  # permutations, or bootstrap samples, held in memory at one time


@dataclass(frozen=True)
class Division:
    """Random divisions of the images into folds.

    Attributes:
        folds: fold of each image, int [repeats, n].
        note: what could not be done as asked; empty if all could.
    """

    folds: np.ndarray
    note: str


@dataclass(frozen=True)
class Fit:
    """A set of predictors, judged by its out-of-fold predictions.

    Attributes:
        r2: R² of each repeat, float64 [repeats].
        errors: squared error of each image, its mean over the repeats, float64 [n].
        predicted: prediction of each image in the first division, float64 [n].
        permuted: R² in every order of the ratings for the first division, float64 [1 + B]; the first as observed.
    """

    r2: np.ndarray
    errors: np.ndarray
    predicted: np.ndarray
    permuted: np.ndarray


def divide(groups: np.ndarray, clusters: np.ndarray, num_folds: int, repeats: int, seed: int) -> Division:
    """Divides images into folds: shuffled, stratified by group, clusters kept whole.

    Groups with fewer images than folds are put together for stratification, and the note says so.

    Args:
        groups: group of each image, text [n].
        clusters: cluster of each image, int [n].
        num_folds: number of folds.
        repeats: number of divisions.
        seed: of the first division; the next ones follow.
    """
    strata, note = _strata(groups, num_folds)
    together = None if len(np.unique(clusters)) == len(clusters) else clusters
    kind = StratifiedKFold if together is None else StratifiedGroupKFold  # the latter is slow
    folds = np.empty((repeats, len(groups)), dtype=np.int64)
    for repeat in range(repeats):
        splitter = kind(num_folds, shuffle=True, random_state=seed + repeat)
        for number, (_, test) in enumerate(splitter.split(strata, strata, together)):
            folds[repeat, test] = number
    return Division(folds, note)


def fit(features: np.ndarray, targets: np.ndarray, division: Division) -> Fit:
    """Predicts the ratings out of fold, over all repeats, and again in every order of the ratings.

    Args:
        features: float64 [n, p], without NaN; p may be 0, which predicts the mean.
        targets: float64 [n, 1 + B]: the ratings, and the ratings as they would be had chance alone been at work.
        division: from `divide`.
    """
    score = targets[:, 0]
    predicted = np.stack([out_of_fold(features, score, folds) for folds in division.folds])
    return Fit(
        r2=np.array([r2_score(score, one) for one in predicted]),
        errors=((score - predicted) ** 2).mean(axis=0),
        predicted=predicted[0],
        permuted=permuted_r2(features, targets, division.folds[0]),
    )


def out_of_fold(features: np.ndarray, score: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Prediction of each image by a nested ridge regression that was fitted on the other folds, float64 [n].

    The penalty is chosen inside the training folds by leave-one-out, which ridge regression has in closed form. That
    inner choice does not know of clusters: a duplicate may make the penalty too small, but no estimate too high.

    Args:
        features: float64 [n, p].
        score: float64 [n].
        folds: fold of each image, int [n].
    """
    model = nested_ridge() if features.shape[1] else DummyRegressor()
    with config_context(assume_finite=True, skip_parameter_validation=True):  # a fifth of the time for small samples
        return cross_val_predict(model, features, score, cv=PredefinedSplit(folds))


def nested_ridge() -> BaseEstimator:
    """Standardisation and ridge regression that chooses its own penalty."""
    return make_pipeline(StandardScaler(), RidgeCV(ALPHAS))


def permuted_r2(features: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Out-of-fold R² of `nested_ridge` for many targets at once, each with its own choice of penalty.

    The same as `RidgeCV(alpha_per_target=True)` in every fold, about five times as fast.

    Args:
        features: float64 [n, p].
        targets: float64 [n, targets].
        folds: fold of each image, int [n].

    Returns:
        float64 [targets].
    """
    residual = np.zeros(targets.shape[1])
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        predicted = _predict_many(features[train], targets[train], features[test])
        residual += ((targets[test] - predicted) ** 2).sum(axis=0)
    return 1 - residual / ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)


def _predict_many(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Ridge predictions [test images, targets], the penalty of each target chosen by leave-one-out.

    With Z = U S Vᵀ, ridge predicts U D Uᵀy with D = S² / (S² + α), and leaving image i out changes its residual e_i
    to e_i / (1 − h_i), where h_i = 1/n + Σ_k U_ik² D_k is its leverage.
    Source: Golub, Heath & Wahba 1979; as in scikit-learn's RidgeCV.
    """
    means = targets.mean(axis=0)
    if train.shape[1] == 0:
        return np.broadcast_to(means, (len(test), len(means)))
    scaler = StandardScaler().fit(train)
    left, sizes, right = np.linalg.svd(scaler.transform(train), full_matrices=False)
    left, sizes, right = left[:, sizes > 1e-9], sizes[sizes > 1e-9], right[sizes > 1e-9]
    centred = targets - means
    projected = left.T @ centred  # [rank, targets]
    shrinkage = sizes**2 / (sizes**2 + ALPHAS[:, None])  # [alphas, rank]
    weights = (1 - 1 / len(train) - (left**2) @ shrinkage.T) ** -2.0  # [n, alphas]
    loo = weights.T @ centred**2
    for alpha, shrink in enumerate(shrinkage):
        weighted = left * weights[:, alpha : alpha + 1]
        kept = shrink[:, None] * projected
        loo[alpha] += (kept * ((weighted.T @ left) @ kept - 2 * (weighted.T @ centred))).sum(axis=0)
    best = shrinkage[loo.argmin(axis=0)].T / sizes[:, None]  # [rank, targets]
    return means + (scaler.transform(test) @ right.T) @ (best * projected)


def exchanged(score: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """The ratings in every order, float64 [n, 1 + B]."""
    return score[orders].T


def exchanged_residuals(score: np.ndarray, baseline: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Ratings that the baseline explains as before, with what it leaves put in every order: float64 [n, 1 + B].

    Source: Freedman & Lane 1983, a permutation test of added predictors.
    """
    if baseline.shape[1] == 0:
        return exchanged(score, orders)
    fitted = LinearRegression().fit(baseline, score).predict(baseline)
    return fitted[:, None] + exchanged(score - fitted, orders)


def p_of(permuted: np.ndarray) -> float:
    """One-sided permutation p, (1 + #) / (1 + B): how often chance does as well as the first value or better."""
    return float((permuted >= permuted[0] - 1e-12).mean())


def noise_floor(permuted: np.ndarray) -> tuple[float, float]:
    """The 5th and 95th percentile of a statistic under permutation."""
    low, high = np.quantile(permuted[1:], NOISE_FLOOR)
    return float(low), float(high)


def bootstrap_intervals(
    score: np.ndarray,
    errors: dict[str, np.ndarray],
    clusters: np.ndarray,
    *,
    num_samples: int,
    confidence: float,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of R², and of the difference `full` − `baseline` as `delta`, over resampled clusters.

    The out-of-fold predictions stay as they are. The interval is for the R² that such a regression attains from as
    many images; what it would attain from endlessly many is greater by about p / n. Deviations are taken from the mean
    of all images, because a mean taken anew in each sample only adds a bias of about 1 / n.

    Args:
        score: float64 [n].
        errors: squared out-of-fold error of each image [n], by set of predictors; `baseline` and `full` among them.
        clusters: cluster of each image, int [n].
        num_samples: number of bootstrap samples.
        confidence: level of the intervals.
        seed: of the random numbers.
    """
    centred = score - score.mean()
    per_image = np.stack([*errors.values(), centred**2])
    codes = np.unique(clusters, return_inverse=True)[1]
    sums = np.stack([np.bincount(codes, weights=row) for row in per_image])
    baseline, full = list(errors).index("baseline"), list(errors).index("full")

    def r2(picked: np.ndarray, axis: int) -> np.ndarray:
        total = sums[:, picked].sum(axis=axis)
        values = 1 - total[:-1] / total[-1]
        return np.concatenate([values, values[full : full + 1] - values[baseline : baseline + 1]])

    found = stats.bootstrap(
        (np.arange(sums.shape[1]),),
        r2,
        n_resamples=num_samples,
        batch=_BATCH,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {name: (float(low), float(high)) for name, low, high in zip([*errors, "delta"], *found, strict=True)}


def naive_in_sample_r2(features: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """R² of a linear regression on the images it was fitted on, and what pure noise gives there: p / (n − 1)."""
    n, p = features.shape
    return float(LinearRegression().fit(features, score).score(features, score)), min(1.0, p / (n - 1))


def naive_fold_r2(predicted: np.ndarray, score: np.ndarray, folds: np.ndarray) -> tuple[float, float]:
    """Mean over folds of the squared correlation of prediction and rating, and what pure noise gives: 1 / (m − 1).

    m is the number of images in a fold. Squaring makes every chance correlation count in favour.
    """
    parts = [(predicted[folds == fold], score[folds == fold]) for fold in np.unique(folds)]
    varying = [(x, y) for x, y in parts if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0]
    squares = [stats.pearsonr(x, y).statistic ** 2 for x, y in varying]
    return float(np.mean(squares)) if squares else float("nan"), 1 / (len(score) / len(parts) - 1)


def _strata(groups: np.ndarray, num_folds: int) -> tuple[np.ndarray, str]:
    """The group of each image, with groups smaller than the number of folds put together: int [n], and a note."""
    names, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    small = counts < num_folds
    if not small.any():
        return codes, ""
    strata = np.where(small[codes], -1, codes)
    if counts[small].sum() < num_folds:  # even together too few: they join the largest group
        strata[strata == -1] = int(counts.argmax())
    note = f"not stratified by {', '.join(names[small])}: fewer images than the {num_folds} folds"
    return strata, note
