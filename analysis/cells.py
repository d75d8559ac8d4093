"""One cell of the analysis: the metrics of one scorer on one set of images, related to the ratings in every way.

A scorer is `general` (a model trained on all groups) or `own-group` (each image by the model of its own group).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from analysis import ridge
from analysis.families import bh_by, decide
from analysis.gates import REPORTED
from analysis.interactions import interactions
from analysis.measure import LOSS, RECONSTRUCTION, quantile_name
from analysis.share import population_share
from analysis.statistics import (
    MIN_IMAGES,
    Correlations,
    Estimator,
    correlate,
    exchanges,
    noise_ceiling,
    residualise,
    smallest_detectable_r2,
    why_untestable,
)
from analysis.tables import DEFAULT_METRICS, Design, covariate_design, reported_metrics
from analysis.typicality_words import PREFIX
from fluence.study import Analysis


@dataclass(frozen=True)
class Sample:
    """A set of rated images and all that is known about it before any model is looked at.

    Attributes:
        name: `all`, a group, or `pooled` (all images that have a model of their own group).
        rated: rows of `tables.rated_images`.
        design: the confound baseline.
        orders: equally likely orders of the images, int [1 + B, n].
        ceilings: the noise ceiling by each method.
        division: the folds; None if there are too few images, and `reason` says so.
        baseline: the baseline's own out-of-fold fit; None likewise.
        reason: why there is no regression; empty if there is one.
    """

    name: str
    rated: pd.DataFrame
    design: Design
    orders: np.ndarray
    ceilings: pd.DataFrame
    division: ridge.Division | None
    baseline: ridge.Fit | None
    reason: str

    @property
    def score(self) -> np.ndarray:
        """The ratings, float64 [n]."""
        return self.rated["score"].to_numpy(dtype=np.float64)

    @property
    def clusters(self) -> np.ndarray:
        """The cluster of each image, int [n]."""
        return self.rated["cluster"].to_numpy()

    @property
    def confounds(self) -> np.ndarray:
        """The baseline's columns, float64 [n, k]."""
        return self.design.matrix.to_numpy(dtype=np.float64)

    @property
    def ceiling(self) -> float:
        """The noise ceiling by the best method that the data allow; NaN if none does."""
        return float(self.ceilings["ceiling_r2"].iloc[0]) if len(self.ceilings) else float("nan")


@dataclass(frozen=True)
class Cell:
    """One scorer's metrics on one sample.

    Attributes:
        model: name of the model.
        trained_on: `all`, a group, or `own-group` for a pool of specialised models.
        scorer: `general` or `own-group`.
        seed: seed of the training.
        sample: name of the sample.
        features: image × (layer, metric), the metrics that are tested.
        sweep: image × (layer, metric), L_ε at every quantile.
        epsilon: layer, quantile, epsilon; empty where each group has its own.
    """

    model: str
    trained_on: str
    scorer: str
    seed: int
    sample: str
    features: pd.DataFrame
    sweep: pd.DataFrame
    epsilon: pd.DataFrame

    def label(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with the columns that say where its rows come from."""
        names = ("model", "trained_on", "scorer", "seed")
        return table.assign(**{name: getattr(self, name) for name in names}, subset=self.sample)


@dataclass(frozen=True)
class CellTables:
    """What the analysis of one cell gives.

    Attributes:
        sample: name of the sample.
        correlations: a row per estimator, layer and metric.
        ridge: a row per set of predictors.
        epsilon_sweep: a row per estimator, layer and quantile.
        interactions: a row per layer and metric; empty for images of one group.
        largest: largest deviation of the correlations in every order [1 + B], by estimator; empty if no family is
            larger than the cell.
        largest_of_sweep: likewise of the sweep.
    """

    sample: str
    correlations: pd.DataFrame
    ridge: pd.DataFrame
    epsilon_sweep: pd.DataFrame
    interactions: pd.DataFrame
    largest: dict[str, np.ndarray]
    largest_of_sweep: dict[str, np.ndarray]


def prepare(name: str, rated: pd.DataFrame, score: str, analysis: Analysis) -> Sample:
    """Everything about a set of images that does not depend on a model: baseline, folds, permutations, ceiling.

    Args:
        name: of the sample.
        rated: rows of `tables.rated_images`.
        score: column of the ratings.
        analysis: settings of the study.
    """
    groups, clusters = rated["group"].to_numpy(), rated["cluster"].to_numpy()
    design = covariate_design(rated, analysis.covariates)
    orders = exchanges(groups, clusters, analysis.permutations, analysis.seed)
    ceilings = noise_ceiling(rated, score, analysis.seed)
    reason = _why_no_regression(rated, analysis.ridge.folds)
    if reason:
        return Sample(name, rated, design, orders, ceilings, None, None, reason)
    division = ridge.divide(groups, clusters, analysis.ridge.folds, analysis.ridge.repeats, analysis.seed)
    confounds = design.matrix.to_numpy(dtype=np.float64)
    targets = ridge.exchanged_residuals(rated["score"].to_numpy(dtype=np.float64), confounds, orders)
    with threadpool_limits(1):
        baseline = ridge.fit(confounds, targets, division)
    return Sample(name, rated, design, orders, ceilings, division, baseline, "")


def analyse_cell(cell: Cell, sample: Sample, analysis: Analysis) -> CellTables:
    """Correlations, regressions and the sweep over ε of one cell.

    Args:
        cell: the metrics, a row for each image of the sample, in its order.
        sample: the images.
        analysis: settings of the study.
    """
    with threadpool_limits(1):  # cells run side by side; more threads in each only get in each other's way
        correlations, largest = _correlations(cell.features, sample, analysis)
        sweep, largest_of_sweep = _sweep(cell, sample, analysis)
        return CellTables(
            sample=cell.sample,
            correlations=cell.label(correlations),
            ridge=cell.label(_regressions(cell.features, sample, analysis)),
            epsilon_sweep=cell.label(sweep),
            interactions=cell.label(interactions(cell.features, sample.rated, analysis)),
            largest=largest,
            largest_of_sweep=largest_of_sweep,
        )


def _why_no_regression(rated: pd.DataFrame, folds: int) -> str:
    needed = max(MIN_IMAGES, 2 * folds)
    if len(rated) < needed:
        return f"{len(rated)} images, fewer than {needed}"
    if rated["cluster"].nunique() < 2 * folds:
        return f"{rated['cluster'].nunique()} persons or clusters of duplicates, fewer than {2 * folds}"
    return "constant ratings" if rated["score"].nunique() == 1 else ""


def _correlations(
    features: pd.DataFrame, sample: Sample, analysis: Analysis
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Pearson, Spearman and partial correlations and ξ, which are never in one family."""
    found = {
        estimator: correlate(
            features,
            sample.score,
            sample.orders,
            estimator=estimator,
            confidence=analysis.confidence,
            family=analysis.family,
        )
        for estimator in (*_RANKED, "xi")
    }
    found["partial"] = _partial(features, sample, analysis, found["pearson"].table)
    return _together(found, analysis)


_RANKED: tuple[Estimator, ...] = ("pearson", "spearman")


def _together(found: dict[Estimator, Correlations], analysis: Analysis) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The tables of several estimators as one, and what families larger than the cell have to know."""
    table = pd.concat([one.table for one in found.values()], ignore_index=True)
    is_larger = analysis.family == "study"
    largest = {str(name): one.largest for name, one in found.items()} if is_larger else {}
    return decide(table, analysis.correction, analysis.confidence), largest


def _partial(features: pd.DataFrame, sample: Sample, analysis: Analysis, pearson: pd.DataFrame) -> Correlations:
    """Correlations of what the baseline leaves, fitted out of fold, of each metric and of the ratings."""
    refused = sample.reason or ("" if sample.confounds.shape[1] else "no covariate varies over these images")
    unusable = pearson["reason"].ne("").to_numpy()
    values = features.mask(np.broadcast_to(unusable | bool(refused), features.shape))
    score = sample.score
    if not refused and sample.division is not None:
        folds = sample.division.folds[0]
        values = pd.DataFrame(
            residualise(values.to_numpy(np.float64), sample.confounds, folds), features.index, features.columns
        )
        score = residualise(score[:, None], sample.confounds, folds)[:, 0]
        refused = "" if np.isfinite(score).all() else "the covariates explain the ratings entirely"
        values = values.mask(np.broadcast_to(bool(refused), values.shape))
    found = correlate(
        values,
        score,
        sample.orders,
        estimator="partial",
        confidence=analysis.confidence,
        num_covariates=sample.confounds.shape[1],
        family=analysis.family,
    )
    explained = values.isna().all().to_numpy() & ~unusable
    reasons = np.where(explained, refused or "the covariates explain this metric entirely", found.table["reason"])
    return found._replace(table=found.table.assign(reason=np.where(unusable, pearson["reason"], reasons)))


def predictor_sets(
    features: pd.DataFrame, report_quantile: float, chosen: Sequence[str] = DEFAULT_METRICS
) -> dict[str, pd.DataFrame]:
    """The sets of predictors that are compared: each family of metrics over all layers, and all together."""
    layers, metrics = (features.columns.get_level_values(level) for level in ("layer", "metric"))
    sets = {
        family: features.loc[:, metrics == name] for name, family in reported_metrics(report_quantile, chosen).items()
    } | {
        "gates": features.loc[:, metrics.isin(list(REPORTED))],
        "typicality": features.loc[:, metrics.str.startswith(PREFIX)],
        "reconstruction": features.loc[:, layers == RECONSTRUCTION],
        "sharpness": features.loc[:, layers == LOSS],
    }
    return {name: one for name, one in sets.items() if one.shape[1]} | {"all": features}


def _regressions(features: pd.DataFrame, sample: Sample, analysis: Analysis) -> pd.DataFrame:
    """A row per set of predictors; a set that cannot be judged keeps its row, with the reason."""
    sets = predictor_sets(features, analysis.epsilon.report, analysis.metrics)
    table = pd.DataFrame([{"predictors": name} | _regression(one, sample, analysis) for name, one in sets.items()])
    table = table.assign(family="study" if analysis.family == "study" else "cell")
    return bh_by(table, ["family"], ["p_delta", "p_metrics"]).assign(
        estimator="pooled out-of-fold R²",
        n=len(sample.rated),
        folds=analysis.ridge.folds,
        repeats=analysis.ridge.repeats,
        note=sample.division.note if sample.division else "",
    )


_NUMBERS = (
    *(f"r2_{name}{end}" for name in ("baseline", "full", "metrics") for end in ("", "_low", "_high", "_repeat_sd")),
    *(f"delta_r2{end}" for end in ("", "_low", "_high", "_repeat_sd", "_noise_low", "_noise_high")),
    *("p_delta", "p_metrics", "r2_metrics_noise_low", "r2_metrics_noise_high", "noise_ceiling"),
    *("r2_metrics_of_ceiling", "smallest_detectable_r2", "naive_in_sample_r2", "naive_in_sample_noise"),
    *("naive_fold_r2", "naive_fold_noise"),
    *("population_delta_r2", "population_delta_r2_low", "population_delta_r2_high", "population_n", "population_rank"),
)


_OF_SHARE = {"": "estimate", "_low": "low", "_high": "high"}


def _regression(features: pd.DataFrame, sample: Sample, analysis: Analysis) -> dict[str, object]:
    """R² of the baseline, of baseline and metrics, and of the metrics alone, on the same folds."""
    usable = np.array([_is_usable(features.iloc[:, position]) for position in range(features.shape[1])], dtype=bool)
    left_out = "; ".join(f"{layer} {metric}" for layer, metric in features.columns[~usable])
    reason = sample.reason or ("" if usable.any() else "no metric varies over these images")
    row: dict[str, object] = {"num_predictors": int(usable.sum()), "left_out": left_out, "reason": reason}
    if reason or sample.division is None or sample.baseline is None:
        return row | dict.fromkeys(_NUMBERS, np.nan) | {"population_reason": reason}
    metrics = features.to_numpy(np.float64)[:, usable]
    residuals = ridge.exchanged_residuals(sample.score, sample.confounds, sample.orders)
    fits = {
        "baseline": sample.baseline,
        "full": ridge.fit(np.hstack([sample.confounds, metrics]), residuals, sample.division),
        "metrics": ridge.fit(metrics, ridge.exchanged(sample.score, sample.orders), sample.division),
    }
    numbers = _judge(fits, sample, analysis)
    numbers |= _naive(metrics, fits["metrics"].predicted, sample.score, sample.division.folds[0])
    numbers["smallest_detectable_r2"] = smallest_detectable_r2(len(metrics), metrics.shape[1], 1 - analysis.confidence)
    share = population_share(sample.score, sample.confounds, metrics, sample.clusters, analysis.confidence)
    numbers |= {f"population_delta_r2{end}": getattr(share, name) for end, name in _OF_SHARE.items()}
    numbers |= {"population_n": share.n, "population_rank": share.rank}
    return row | {name: numbers[name] for name in _NUMBERS} | {"population_reason": share.reason}


def _is_usable(column: pd.Series) -> bool:
    values = column.to_numpy(np.float64)
    return bool(np.isfinite(values).all()) and why_untestable(values, values) == ""


def _judge(fits: dict[str, ridge.Fit], sample: Sample, analysis: Analysis) -> dict[str, float]:
    """R² and Δ R² with their intervals, their spread over the divisions, their permutation p and their noise floor."""
    intervals = ridge.bootstrap_intervals(
        sample.score,
        {name: fit.errors for name, fit in fits.items()},
        sample.clusters,
        num_samples=analysis.bootstrap,
        confidence=analysis.confidence,
        seed=analysis.seed,
    )
    numbers: dict[str, float] = {}
    repeats = {f"r2_{name}": fit.r2 for name, fit in fits.items()}
    repeats["delta_r2"] = fits["full"].r2 - fits["baseline"].r2
    for (name, values), (low, high) in zip(repeats.items(), intervals.values(), strict=True):
        numbers |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        numbers[f"{name}_repeat_sd"] = float(values.std(ddof=1)) if len(values) > 1 else np.nan
    delta = fits["full"].permuted - fits["baseline"].permuted
    for name, permuted in (("delta_r2", delta), ("r2_metrics", fits["metrics"].permuted)):
        numbers[f"{name}_noise_low"], numbers[f"{name}_noise_high"] = ridge.noise_floor(permuted)
    ceiling = sample.ceiling
    return numbers | {
        "p_delta": ridge.p_of(delta),
        "p_metrics": ridge.p_of(fits["metrics"].permuted),
        "noise_ceiling": ceiling,
        "r2_metrics_of_ceiling": numbers["r2_metrics"] / ceiling if ceiling > 0 else np.nan,
    }


def _naive(metrics: np.ndarray, predicted: np.ndarray, score: np.ndarray, folds: np.ndarray) -> dict[str, float]:
    """The literature's naive estimates of the metrics alone, each beside what pure noise would give."""
    in_sample = ridge.naive_in_sample_r2(metrics, score)
    in_folds = ridge.naive_fold_r2(predicted, score, folds)
    names = ("naive_in_sample_r2", "naive_in_sample_noise", "naive_fold_r2", "naive_fold_noise")
    return dict(zip(names, (*in_sample, *in_folds), strict=True))


def _sweep(cell: Cell, sample: Sample, analysis: Analysis) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Correlations of L_ε at every quantile of the ε rule, with the ε and the mean share of units above it."""
    found = {
        estimator: correlate(
            cell.sweep,
            sample.score,
            sample.orders,
            estimator=estimator,
            confidence=analysis.confidence,
            family=analysis.family,
        )
        for estimator in _RANKED
    }
    table, largest = _together(found, analysis)
    names = {f"l_eps_fraction_{quantile_name(quantile)}": quantile for quantile in analysis.epsilon.quantiles}
    means = cell.sweep.mean().rename("mean_fraction").rename_axis(["layer", "metric"]).reset_index()
    table = table.assign(quantile=table["metric"].map(names)).merge(means, how="left", on=["layer", "metric"])
    return table.merge(cell.epsilon[["layer", "quantile", "epsilon"]], how="left", on=["layer", "quantile"]), largest
