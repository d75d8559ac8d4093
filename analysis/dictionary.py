"""The data dictionary: every column of every table of the analysis, with its meaning and its unit.

The tables are written with exactly these columns, in this order.
"""

from __future__ import annotations

import pandas as pd

Columns = dict[str, tuple[str, str]]
"""Column → (meaning, unit)."""

_WHERE: Columns = {
    "model": ("name of the model in the study", ""),
    "trained_on": ("training images of the model: all, a group, or own-group (each image by its group's model)", ""),
    "scorer": ("general: a model of all groups; own-group: each image by the model of its own group", ""),
    "seed": ("seed of the training; a row per seed", ""),
    "subset": ("rated images: all, a group, or pooled (all images that have a model of their own group)", ""),
}
_WHERE_OVER_SEEDS: Columns = {name: text for name, text in _WHERE.items() if name != "seed"} | {
    "num_seeds": ("number of trainings with an estimate; the other columns sum up over them", "trainings"),
    "missing_seeds": ("seeds of the study without an estimate: not done yet, or not possible; empty if none", ""),
    "n": ("number of images, the smallest over the seeds", "images"),
}
_TEST: Columns = {
    "layer": (
        "recorded layer of the encoder, its gates (LAYER.channels, LAYER.places), mu, reconstruction, or loss (of each "
        "image by itself)",
        "",
    ),
    "metric": (
        "gini; l_eps_fraction_qNN (share of units above ε); any other metric that analysis.metrics names "
        "(docs/statistics.md), with the sign fluency expects; of gates gate_l1 (mean) and gate_entropy (nats), both "
        "expected to be negative; typicality_… (log-likelihood, nats, expected to be positive); an error of the "
        "reconstruction; sharpness, gradient_norm",
        "",
    ),
}
_ESTIMATOR: Columns = {
    "estimator": (
        "pearson; spearman; partial: Pearson's of what the covariates leave out of fold; xi: Chatterjee's ξ of the "
        "rating as a function of the metric (0: independent, 1: a function of any shape), which has no sign",
        "",
    ),
}
_FAMILY: Columns = {
    "family": (
        "what is corrected together, of one estimator and set of images (analysis.family): cell, the name of a metric "
        "or of a layer (all of one model and seed), or study (all models and seeds)",
        "",
    ),
    "family_size": ("number of tests of the family that could be made", "tests"),
}
_CORRELATION: Columns = {
    "n": ("number of images with a value of the metric", "images"),
    "estimate": ("correlation of metric and rating", "correlation"),
    "ci_low": (
        "lower end of the interval at the study's level of confidence; none for ξ, whose asymptotic normality is "
        "known under independence only, and which a bootstrap does not estimate (resampling makes ties)",
        "correlation",
    ),
    "ci_high": ("upper end of the interval; likewise", "correlation"),
    "expected": ("mean of the estimate over the permutations: what the groups alone make of it", "correlation"),
    "p_parametric": (
        "p without permutations, blind to groups and clusters; raw. pearson: two-sided, exact if metric and rating are "
        "normal (t); spearman: two-sided, asymptotic (t); partial: two-sided, t with n − 2 − covariates degrees of "
        "freedom, approximate because the residuals are out of fold; xi: one-sided, asymptotic (normal)",
        "probability",
    ),
    "p_permutation": (
        "p by permutation within groups, (1 + #) / (1 + B); two-sided, for xi one-sided (greater); raw",
        "probability",
    ),
    "p_bh": ("p_permutation adjusted by Benjamini-Hochberg over the family", "probability"),
    "p_max_r": ("permutation p adjusted over the family by the largest deviation from `expected`", "probability"),
    "p_adjusted": ("the one of p_bh and p_max_r that the study decides by", "probability"),
    "significant": ("p_adjusted is at most 1 − confidence", "true or false"),
    **_FAMILY,
    "reason": ("why there is no estimate; empty if there is one", ""),
}
_PREDICTORS: Columns = {
    "predictors": (
        "a metric of analysis.metrics (gini, l_eps, …), gates, typicality, reconstruction, sharpness: this family of "
        "metrics at all layers; all: all together",
        "",
    ),
    "estimator": ("how R² is estimated", ""),
}


_INTERACTION: Columns = {
    "estimator": (
        "Wald F test, in OLS of the rating on group × standardised metric and the other covariates, that the slope is "
        "the same in all groups; errors HC3, or cluster-robust where a person or a picture is there several times",
        "",
    ),
}
_COMPARED: Columns = {
    "num_groups": ("number of groups that are compared", "groups"),
    "groups_left_out": ("groups left out, with their number of images: too few, or the metric does not vary", ""),
}
_PLACED: Columns = {
    "base": ("the first of the models that are alike but for their constraints", ""),
    "constraint": ("the sparsity constraint, without its place", ""),
    "place": ("layers that the constraint holds for; none: the same model without it", ""),
}
_FAMILY_OVER_SEEDS: Columns = {
    "family": _FAMILY["family"],
    "family_size": ("number of tests of the family that could be made, the largest over the seeds", "tests"),
}
_OF_ALL_SEEDS: Columns = {
    "num_significant": ("number of trainings in which it is significant after correction", "trainings"),
    **_FAMILY_OVER_SEEDS,
}


def _ends(column: str, unit: str) -> Columns:
    """Means of the ends of an interval."""
    ends = {"low": "lower", "high": "upper"}
    return {
        f"{column}_{end}_mean": (f"mean over seeds of the {text} end of its interval", unit)
        for end, text in ends.items()
    }


def _spread(column: str, meaning: str, unit: str) -> Columns:
    texts = {"mean": "mean", "sd": "standard deviation", "min": "smallest", "max": "largest"}
    return {f"{column}_{end}": (f"{text} over seeds of the {meaning}", unit) for end, text in texts.items()}


def _mean_interval(column: str, meaning: str, unit: str, *, ends: str = "") -> Columns:
    """A mean over the seeds, with the means of the ends of its interval."""
    return {
        column: (f"{meaning}; mean over the seeds", unit),
        f"{ends or column}_low": ("lower end of its interval over the images; mean over the seeds", unit),
        f"{ends or column}_high": ("upper end of its interval; mean over the seeds", unit),
    }


def _interval(column: str, meaning: str) -> Columns:
    return {
        column: (f"{meaning}; mean over the repeats; may be negative", "R²"),
        f"{column}_low": ("lower end of its bootstrap interval over images (clusters as wholes)", "R²"),
        f"{column}_high": ("upper end of its bootstrap interval", "R²"),
        f"{column}_repeat_sd": ("its standard deviation over the random divisions into folds", "R²"),
    }


_SETS = (
    "what is corrected together: cell (the sets of predictors of one model, seed and set of images), or study (those "
    "of all models and seeds on one set of images); metric and layer say nothing of sets, and mean cell"
)

TABLES: dict[str, Columns] = {
    "correlations": _WHERE | _TEST | _ESTIMATOR | _CORRELATION,
    "correlations_over_seeds": _WHERE_OVER_SEEDS
    | _TEST
    | _ESTIMATOR
    | _spread("estimate", "correlation", "correlation")
    | _ends("ci", "correlation")
    | _spread("p_permutation", "raw permutation p", "probability")
    | _spread("p_adjusted", "adjusted p", "probability")
    | _OF_ALL_SEEDS,
    "interactions": _WHERE
    | _TEST
    | _INTERACTION
    | {"n": ("number of images that are compared", "images")}
    | _COMPARED
    | {
        "f": ("F of the interaction of group and metric", "F"),
        "df_num": ("its degrees of freedom: number of groups less one", "degrees of freedom"),
        "df_denom": (
            "degrees of freedom of the denominator: of the residuals, or clusters less one",
            "degrees of freedom",
        ),
        "p": ("p of F, asymptotic; raw", "probability"),
        "p_bh": ("p adjusted by Benjamini-Hochberg over the family", "probability"),
        "significant": ("p_bh is at most 1 − confidence", "true or false"),
        **_FAMILY,
        "reason": ("why there is no test; empty if there is one", ""),
    },
    "interactions_over_seeds": _WHERE_OVER_SEEDS
    | _TEST
    | _INTERACTION
    | _COMPARED
    | _spread("f", "F of the interaction", "F")
    | _spread("p", "raw p", "probability")
    | _spread("p_bh", "adjusted p", "probability")
    | _OF_ALL_SEEDS
    | {"reason": ("why there is no test, in the first of the seeds; empty if there is one", "")},
    "epsilon_sweep": _WHERE
    | _TEST
    | _ESTIMATOR
    | {
        "quantile": ("quantile of the non-zero magnitudes of training images that ε is", ""),
        "epsilon": ("ε of this layer; empty where each group's model has its own", "activation"),
        "mean_fraction": ("mean share of units above ε over the images", "fraction"),
    }
    | _CORRELATION,
    "ridge": _WHERE
    | _PREDICTORS
    | {
        "num_predictors": ("number of metrics that entered", "columns"),
        "left_out": ("metrics left out because they are constant, or missing for some images", ""),
        "n": ("number of images", "images"),
        "folds": ("number of folds", "folds"),
        "repeats": ("number of random divisions into folds", "divisions"),
    }
    | _interval("r2_baseline", "out-of-fold R² of the covariates alone")
    | _interval("r2_full", "out-of-fold R² of covariates and metrics")
    | _interval("delta_r2", "Δ R² = r2_full − r2_baseline on the same folds")
    | {
        "delta_r2_noise_low": ("5th percentile of Δ R² under permutation (noise floor)", "R²"),
        "delta_r2_noise_high": ("95th percentile of Δ R² under permutation (noise floor)", "R²"),
        "p_delta": ("p of Δ R²: residuals of the baseline permuted within groups, first division; raw", "probability"),
        "p_delta_bh": ("p_delta adjusted by Benjamini-Hochberg over the family", "probability"),
    }
    | _interval("r2_metrics", "out-of-fold R² of the metrics alone")
    | {
        "r2_metrics_noise_low": ("5th percentile of r2_metrics, ratings permuted within groups (noise floor)", "R²"),
        "r2_metrics_noise_high": ("95th percentile of r2_metrics, likewise", "R²"),
        "p_metrics": ("p of r2_metrics: ratings permuted within groups, first division; raw", "probability"),
        "p_metrics_bh": ("p_metrics adjusted by Benjamini-Hochberg over the family", "probability"),
        "family": (_SETS, ""),
        "family_size": ("number of tests of the family that could be made", "tests"),
        "noise_ceiling": ("largest R² that the raters' disagreement allows, by the best method at hand", "R²"),
        "r2_metrics_of_ceiling": ("r2_metrics / noise_ceiling", "fraction"),
        "smallest_detectable_r2": ("population R² that an F test of as many predictors finds in 80 % of cases", "R²"),
        "naive_in_sample_r2": ("naive: R² of linear regression on the images it was fitted on", "R²"),
        "naive_in_sample_noise": ("what pure noise gives there: predictors / (n − 1)", "R²"),
        "naive_fold_r2": ("naive: mean over folds of the squared correlation of prediction and rating", "R²"),
        "naive_fold_noise": ("what pure noise gives there: 1 / (images per fold − 1)", "R²"),
        "population_delta_r2": (
            "share of the variance that the metrics explain beyond the covariates in the population: difference of the "
            "adjusted R² of two linear regressions; may be negative",
            "R²",
        ),
        "population_delta_r2_low": ("lower end of its interval, at least 0 (docs/statistics.md)", "R²"),
        "population_delta_r2_high": ("upper end of its interval", "R²"),
        "population_n": ("number of images behind it: the first of each person or cluster of duplicates", "images"),
        "population_rank": ("number of metrics independent of the covariates and of each other", "columns"),
        "population_reason": ("why there is no population share; empty if there is one", ""),
        "note": ("what could not be done as asked", ""),
        "reason": ("why there is no estimate; empty if there is one", ""),
    },
    "ridge_over_seeds": _WHERE_OVER_SEEDS
    | _PREDICTORS
    | _spread("r2_baseline", "R² of the covariates alone", "R²")
    | _spread("r2_full", "R² of covariates and metrics", "R²")
    | _spread("delta_r2", "Δ R²", "R²")
    | _spread("r2_metrics", "R² of the metrics alone", "R²")
    | _spread("p_delta", "raw p of Δ R²", "probability")
    | _spread("p_delta_bh", "adjusted p of Δ R²", "probability")
    | _spread("population_delta_r2", "population share of the metrics beyond the covariates", "R²")
    | _ends("r2_metrics", "R²")
    | _ends("delta_r2", "R²")
    | {"family": (_SETS, ""), "family_size": _FAMILY_OVER_SEEDS["family_size"]},
    "summary_constraint": _PLACED
    | _WHERE_OVER_SEEDS
    | _PREDICTORS
    | _mean_interval("r2_metrics", "out-of-fold R² of the metrics alone", "R²")
    | _mean_interval("delta_r2", "Δ R² over the covariates", "R²")
    | {
        "p_delta": ("raw p of Δ R², the largest over the seeds", "probability"),
        "p_delta_bh": ("adjusted p of Δ R², the largest over the seeds", "probability"),
        "family": (_SETS, ""),
        "family_size": _FAMILY_OVER_SEEDS["family_size"],
    },
    "summary_layers": _PLACED
    | _WHERE_OVER_SEEDS
    | _TEST
    | _ESTIMATOR
    | _mean_interval("estimate", "correlation", "correlation", ends="ci")
    | {
        "p_permutation": ("raw permutation p, the largest over the seeds", "probability"),
        "p_adjusted": ("adjusted p, the largest over the seeds", "probability"),
        **_OF_ALL_SEEDS,
    },
    "metric_correlations": _WHERE
    | {
        "layer": _TEST["layer"],
        "metric": _TEST["metric"],
        "other_layer": ("layer of the other metric; rating for the ratings", ""),
        "other_metric": ("the other metric, or the column of the ratings", ""),
        "n": ("number of images with both", "images"),
        "estimate": ("Pearson correlation of the two over the images", "correlation"),
        "p_parametric": ("two-sided p of the t test; raw", "probability"),
        "reason": ("why there is no estimate; empty if there is one", ""),
    },
    "exchanged_tests": _WHERE
    | {
        "estimator": _ESTIMATOR["estimator"],
        "alpha": ("level of the test", "probability"),
        "rate": ("share of t tests with a p of at most alpha, of ratings exchanged within groups", "fraction"),
        "num_tests": ("number of these tests: orders of the ratings times metrics", "tests"),
    },
    "runs": {
        "run_id": ("id of the run: model, group, seed and the hash of what made it", ""),
        "model": ("name of the model in the study", ""),
        "trained_on": ("all, or a group", ""),
        "seed": ("seed of the training", ""),
        "status": ("done, skipped, failed, diverged; or unreadable: done, but its metrics cannot be used", ""),
        "reason": ("why it is not done", ""),
    },
    "coverage": _WHERE
    | {
        "groups": ("groups of the images", ""),
        "n": ("number of images", "images"),
        "num_clusters": ("number of persons or clusters of duplicates; no split divides one", "clusters"),
        "covariates": ("covariates of the baseline", ""),
        "covariates_missing": ("covariates asked for that the data lack", ""),
        "covariates_constant": ("covariates asked for that do not vary over these images", ""),
        "covariates_filled": ("covariates with gaps, filled with the median and marked by a column of their own", ""),
        "smallest_detectable_r2": ("population R² that a single predictor needs to be found in 80 % of cases", "R²"),
        "missing_runs": ("runs of the same model and seed that are not done, with their status", ""),
        "note": ("what could not be done as asked", ""),
        "reason": ("why there are no estimates or only correlations; empty if all is there", ""),
    },
    "noise_ceiling": {
        "subset": _WHERE["subset"],
        "method": ("split-half: of the raters, Spearman-Brown; sd and n: 1 − mean(sd² / n) / var(mean)", ""),
        "n": ("number of images", "images"),
        "num_raters": ("number of raters, or their mean number per image", "raters"),
        "ceiling_r2": ("largest R² that any model could reach", "R²"),
        "reason": ("why there is none; empty if there is one", ""),
    },
    "data_dictionary": {
        "table": ("name of the files, without .csv or .parquet", ""),
        "column": ("name of the column", ""),
        "meaning": ("what it holds", ""),
        "unit": ("its unit", ""),
    },
}


def data_dictionary() -> pd.DataFrame:
    """The dictionary as a table: table, column, meaning, unit."""
    rows = [(table, column, *text) for table, columns in TABLES.items() for column, text in columns.items()]
    return pd.DataFrame(rows, columns=list(TABLES["data_dictionary"]))
