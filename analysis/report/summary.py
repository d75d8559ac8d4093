"""The statistics with the seeds put together, and the few questions that the whole report asks of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.gates import REPORTED
from analysis.measure import LOSS, RECONSTRUCTION
from analysis.report.evidence import Evidence
from analysis.report.page import listed
from analysis.sparsity import METRICS
from analysis.tables import reported_metrics as layer_metrics
from analysis.typicality_words import PREFIX, metric_names
from fluence.study import PixelsModel

_WHERE = ["model", "trained_on", "scorer", "subset"]
GENERAL, ALL_IMAGES, POOLED, ALL_METRICS = "general", "all", "pooled", "all"
METRIC_NAMES = {
    "gini": "Gini",
    "l_eps": "Lε",
    "l0": "share of active units",
    "l1": "mean magnitude",
    "l2": "root mean square",
    "hoyer": "Hoyer",
    "treves_rolls": "Treves-Rolls",
    "kurtosis": "kurtosis",
    "entropy": "entropy",
    "mean": "mean",
    "max": "maximum",
    "dead_fraction": "share of silent units",
    "gini_map": "Gini of maps",
    "gini_position": "Gini across channels",
}
"""The metrics of layers that a study can choose (`Analysis.metrics`), and their names for people."""
PREDICTOR_NAMES = {
    "all": "all metrics",
    **METRIC_NAMES,
    "gates": "gates",
    "typicality": "typicality",
    "reconstruction": "reconstruction errors",
    "sharpness": "sharpness and gradient",
}
SIGNS = METRICS | {"gini_map": +1, "gini_position": +1}
LOSS_NAMES = {"sharpness": "sharpness", "gradient_norm": "gradient norm"}
"""What is measured of each image's loss, and its names for people."""


MOST_COMPARED = 6
MOST_IN_FULL = 12
"""Models that the figures of a chapter show; of more, each has its own figures in its page."""


@dataclass(frozen=True)
class Summary:
    """What the report says about the statistics, one row for all seeds of a training.

    Attributes:
        correlations: model, trained_on, scorer, subset, estimator, metric, layer, n, num_seeds, r, r_min, r_max,
            ci_low, ci_high, p_raw and p (largest over the seeds, raw and adjusted), significant (in every seed),
            family_size.
        ridge: model, trained_on, scorer, subset, predictors, n, num_seeds and the means of the regressions' numbers;
            delta_min and delta_max over the seeds; p (largest over the seeds, raw).
    """

    correlations: pd.DataFrame
    ridge: pd.DataFrame

    def general_correlations(self, estimator: str) -> pd.DataFrame:
        """Correlations of models trained on all groups, over all rated images."""
        table = self.correlations
        if table.empty:
            return table
        chosen = (table["scorer"] == GENERAL) & (table["subset"] == ALL_IMAGES) & (table["estimator"] == estimator)
        return table[chosen]

    def general_ridge(self) -> pd.DataFrame:
        """Regressions on the metrics of models trained on all groups, over all rated images."""
        table = self.ridge
        return table if table.empty else table[(table["scorer"] == GENERAL) & (table["subset"] == ALL_IMAGES)]

    def primary(self, controls: set[str]) -> pd.DataFrame:
        """The planned test of each trained model: all its metrics above the confounds, p adjusted over the models.

        Adds `p_models`: Benjamini-Hochberg over the models. Strongest first.
        """
        table = self.general_ridge()
        if table.empty:
            return table
        chosen = table[(table["predictors"] == ALL_METRICS) & ~table["model"].isin(controls)].dropna(subset=["delta"])
        adjusted = stats.false_discovery_control(chosen["p"]) if len(chosen) else np.array([])
        return chosen.assign(p_models=adjusted).sort_values("delta", ascending=False)


def seeds_done(evidence: Evidence, num_seeds: float, model: str, trained_on: str = ALL_IMAGES) -> str:
    """`2`, or `1 of 2` while trainings of a model with other seeds are missing."""
    planned = len(evidence.study.seeds_of(model, trained_on))
    return f"{num_seeds:.0f}" if num_seeds >= planned else f"{num_seeds:.0f} of {planned}"


def shown_models(evidence: Evidence, summary: Summary) -> tuple[str, ...]:
    """The models that the figures of the chapters show, in the order of the study: all, or those that add most.

    Of many models these are the strongest control, which all others are held against, and those with the largest Δ R².
    """
    names = evidence.study.model_names
    if len(names) <= MOST_COMPARED:
        return names
    table = summary.general_ridge()
    gains = pd.Series(dtype=float)
    if not table.empty:
        gains = table[table["predictors"] == ALL_METRICS].set_index("model")["delta"].dropna()
    unlearned = controls(evidence)
    control = sorted(unlearned, key=lambda name: -gains.get(name, -np.inf))[:1]
    trained = [name for name in names if name not in unlearned]
    best = sorted(trained, key=lambda name: -gains.get(name, -np.inf))[: MOST_COMPARED - len(control)]
    return tuple(name for name in names if name in {*control, *best})


def models_in_full(evidence: Evidence, summary: Summary) -> tuple[str, ...]:
    """The models whose pages have every figure: all of up to twelve models, of more those that the chapters show."""
    names = evidence.study.model_names
    return names if len(names) <= MOST_IN_FULL else shown_models(evidence, summary)


def shown_words(evidence: Evidence) -> str:
    """A sentence on the models that the figures of the chapters do not show; empty if there are none."""
    num_models = len(evidence.study.model_names)
    if num_models <= MOST_COMPARED:
        return ""
    return f" Of {num_models} models those with the largest Δ R²; the others: see their pages."


def incomplete(evidence: Evidence, rows: pd.DataFrame) -> str:
    """A sentence that names each model whose mean lacks a seed, to follow a caption; empty if none does.

    Args:
        evidence: what the study has left behind.
        rows: with columns model and num_seeds.
    """
    fewest = rows.groupby("model", sort=False)["num_seeds"].min() if len(rows) else pd.Series(dtype=float)
    done = {str(model): seeds_done(evidence, number, str(model)) for model, number in fewest.items()}
    models = [f"{model} ({seeds})" for model, seeds in done.items() if " of " in seeds]
    return f" Seeds are missing: {listed(models)}; these means may change." if models else ""


def summarise(evidence: Evidence) -> Summary:
    """Puts the seeds together."""
    return Summary(_correlations(evidence.table("correlations")), _ridge(evidence.table("ridge")))


def controls(evidence: Evidence) -> set[str]:
    """Models that have learned nothing on purpose: untrained networks, and the pixels themselves."""
    return untrained_networks(evidence) | pixel_models(evidence)


def untrained_networks(evidence: Evidence) -> set[str]:
    """Networks left untrained on purpose; not those that have the weights of others."""
    study = evidence.study
    names = (name for name in study.model_names if study.models[name].pretrained is None)
    return {name for name in names if study.training_of(name).epochs == 0} - pixel_models(evidence)


def pixel_models(evidence: Evidence) -> set[str]:
    """Models that are no networks: their one layer is the image."""
    study = evidence.study
    return {name for name in study.model_names if isinstance(study.models[name], PixelsModel)}


def labelled(evidence: Evidence, model: str) -> str:
    """The name of a model in a figure, which says so if it is a control: `big (untrained)`, `untrained`, `pixels`."""
    kinds = {"untrained": untrained_networks(evidence), "pixels": pixel_models(evidence)}
    words = [f" ({kind})" for kind, models in kinds.items() if model in models and kind not in model]
    return model + "".join(words)


def reported_metrics(evidence: Evidence) -> dict[str, str]:
    """The metrics of layers that enter the tests, and their names for people."""
    analysis = evidence.study.analysis
    quantile = analysis.epsilon.report
    gated = any(evidence.study.models[name].attention for name in evidence.study.model_names)
    families = layer_metrics(quantile, analysis.metrics)
    names = {key: METRIC_NAMES[family] for key, family in families.items()}
    names |= {key: f"Lε (q = {quantile:g})" for key, family in families.items() if family == "l_eps"}
    typicality = metric_names(analysis.typicality) if analysis.typicality else {}
    return names | (REPORTED if gated else {}) | typicality


def error_names(evidence: Evidence) -> dict[str, str]:
    """The measures of reconstruction error, and their names for people; LPIPS with random weights says so."""
    probe = evidence.study.record.lpips
    lpips = "LPIPS (random weights)" if probe and probe.weights == "random" else "LPIPS"
    return {"l1_error": "L1", "l2_error": "L2", "ssim_error": "1 − SSIM", "lpips_error": lpips}


def metric_name(evidence: Evidence, layer: str, metric: str) -> str:
    """`Gini of conv3`, `SSIM error`."""
    if layer == RECONSTRUCTION:
        return f"{error_names(evidence).get(metric, metric)} reconstruction error"
    if layer == LOSS:
        return f"{LOSS_NAMES.get(metric, metric)} of the loss"
    return f"{reported_metrics(evidence).get(metric, metric)} of {layer}"


def expected_sign(metric: str) -> int:
    """The sign that fluency expects of the correlation with beauty.

    Beauty goes with sparse and typical activity, few open gates, small errors and flat losses.
    """
    return 1 if metric.startswith(PREFIX) else SIGNS.get(metric, -1)


def expected_words(names: Mapping[str, str]) -> str:
    """Which metrics fluency theory expects to grow with beauty."""
    kinds = {metric: "typicality" if metric.startswith(PREFIX) else name for metric, name in names.items()}
    positive = list(dict.fromkeys(kind for metric, kind in kinds.items() if expected_sign(metric) > 0))
    if not positive:
        return "Fluency theory expects negative values."
    others = ", negative ones for all others" if len(positive) < len(set(kinds.values())) else ""
    return f"Fluency theory expects positive values for {listed(positive)}{others}."


def _correlations(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        return table
    grouped = table.groupby([*_WHERE, "estimator", "metric", "layer"], sort=False, dropna=False)
    return grouped.agg(
        n=("n", "min"),
        num_seeds=("estimate", "count"),
        r=("estimate", "mean"),
        r_min=("estimate", "min"),
        r_max=("estimate", "max"),
        ci_low=("ci_low", "mean"),
        ci_high=("ci_high", "mean"),
        p_raw=("p_permutation", "max"),
        p=("p_adjusted", "max"),
        significant=("significant", "min"),
        family_size=("family_size", "max"),
    ).reset_index()


def _ridge(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        return table
    means = {
        "baseline": "r2_baseline",
        "full": "r2_full",
        "metrics": "r2_metrics",
        "delta": "delta_r2",
        "ci_low": "delta_r2_low",
        "ci_high": "delta_r2_high",
        "floor": "delta_r2_noise_high",
        "population": "population_delta_r2",
        "population_low": "population_delta_r2_low",
        "population_high": "population_delta_r2_high",
        "population_n": "population_n",
        "metrics_floor": "r2_metrics_noise_high",
        "ceiling": "noise_ceiling",
        "detectable": "smallest_detectable_r2",
        "in_sample": "naive_in_sample_r2",
        "in_sample_noise": "naive_in_sample_noise",
        "fold": "naive_fold_r2",
        "fold_noise": "naive_fold_noise",
    }
    grouped = table.groupby([*_WHERE, "predictors"], sort=False, dropna=False)
    return grouped.agg(
        n=("n", "min"),
        num_seeds=("delta_r2", "count"),
        num_predictors=("num_predictors", "max"),
        delta_min=("delta_r2", "min"),
        delta_max=("delta_r2", "max"),
        p=("p_delta", "max"),
        reason=("reason", _first_reason),
        population_reason=("population_reason", _first_reason),
        **{name: (column, "mean") for name, column in means.items()},
    ).reset_index()


def _first_reason(reasons: pd.Series) -> str:
    """Why a regression could not be done in a seed; empty if it could in all."""
    return next((reason for reason in reasons if reason), "")
