"""The chapters on the results: single metrics and regression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np
import pandas as pd

from analysis import figures
from analysis.families import WORDS
from analysis.measure import LOSS, RECONSTRUCTION
from analysis.report.diagnostics import ridge_tables
from analysis.report.evidence import Evidence, metric_quantiles
from analysis.report.page import NOTHING, Cell, Item, Section, Table, Text, cell, drawn, interval, p_value, sortable
from analysis.report.shares import population_shares
from analysis.report.summary import (
    ALL_IMAGES,
    GENERAL,
    LOSS_NAMES,
    PREDICTOR_NAMES,
    Summary,
    controls,
    error_names,
    expected_words,
    incomplete,
    labelled,
    reported_metrics,
    seeds_done,
    shown_models,
    shown_words,
)
from analysis.statistics import Estimator

_PER_FIGURE = 3
_BY_LAYER = (
    "Thin lines: interval over the images; thick lines: range over the seeds; filled: significant after correction in "
    "every seed"
)
_LONG = 40  # rows of a table that is closed at first
_MOST_LINES = 24  # of a figure, which then fills a page
_MOST_ROWS = 600  # of a table
_ERRORS, _LOSS = "errors", "loss"


def key_items(evidence: Evidence, summary: Summary) -> list[Item]:
    """The figure and the table that the verdict rests on."""
    table = summary.general_ridge()
    if table.empty:
        return []
    unlearned = controls(evidence)
    chosen = table[(table["predictors"] == "all") & table["delta"].notna()]
    adjusted = summary.primary(unlearned).set_index("model")["p_models"]
    rows = chosen.assign(
        label=[labelled(evidence, m) for m in chosen["model"]],
        p_models=chosen["model"].map(adjusted),
        control=chosen["model"].isin(unlearned),
    ).sort_values(["control", "delta"], ascending=[True, False])
    if rows.empty:
        return []
    drawn_rows, cut = _largest(rows)
    picture = drawn(
        evidence.layout,
        "answer",
        "What the metrics add to the confounds.",
        f"Left: R² of the ratings, predicted out of fold from the confounds alone (diamond) and with all metrics of "
        f"all layers added (dot). Right: the difference with its {evidence.study.analysis.confidence:.0%} bootstrap "
        f"interval; grey bars end where one in twenty shuffled data sets ends. Means over the seeds."
        f"{cut}{incomplete(evidence, drawn_rows)}",
        figures.gain_over_confounds,
        drawn_rows,
        _ceiling(rows),
        _colours(evidence),
    )
    return [picture, ridge_table(evidence, rows, "The numbers of this figure", with_predictors=False)]


def _largest(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows that a figure has room for, those with the largest Δ R² and the controls, and a sentence on the rest."""
    if len(rows) <= _MOST_LINES:
        return rows, ""
    control = rows["control"] if "control" in rows else pd.Series(False, index=rows.index)
    chosen = rows.assign(gain=rows["delta"].mask(control, np.inf)).nlargest(_MOST_LINES, "gain").index
    words = f" Of {len(rows)} lines the {_MOST_LINES} with the largest Δ R²; the table has all."
    return rows.loc[[index in chosen for index in rows.index]].drop(columns="gain", errors="ignore"), words


def metrics(evidence: Evidence, summary: Summary) -> Section:
    """Correlations of single metrics with the ratings."""
    items: list[Item] = []
    if summary.general_correlations("pearson").empty:
        items.append(Text("No correlation could be computed on all rated images.", missing=True))
    else:
        items += [
            *_by_layer(evidence, summary, "pearson", "Correlation with the ratings by layer."),
            *_by_layer(evidence, summary, "partial", "The same with the confounds taken out (partial correlation)."),
            *_sweep(evidence, summary),
        ]
    items += [*_distributions(evidence, summary), *_correlation_table(evidence, summary)]
    return Section("metrics", "Metrics", items)


def regression(evidence: Evidence, summary: Summary) -> Section:
    """R² by family of metrics, and the estimators of the literature beside it."""
    table = summary.general_ridge()
    rows = table.dropna(subset=["delta"]) if not table.empty else table
    if rows.empty:
        return Section("regression", "Regression", [Text("No regression could be computed.", missing=True)])
    rows = rows.assign(
        label=[f"{r.model}: {PREDICTOR_NAMES.get(r.predictors, r.predictors)}" for r in rows.itertuples()]
    )
    drawn_rows, cut = _largest(rows)
    picture = drawn(
        evidence.layout,
        "ridge",
        "R² by family of metrics.",
        "As in the first figure, for each family of metrics over all layers. Exploratory but for “all metrics”. A "
        "negative value means: worse than predicting the mean."
        f"{cut}{incomplete(evidence, drawn_rows)}",
        figures.gain_over_confounds,
        drawn_rows,
        _ceiling(rows),
        _colours(evidence),
    )
    items: list[Item] = [
        picture,
        ridge_table(evidence, rows, "R² of ridge regression, pooled out of fold", with_predictors=True),
    ]
    items += [*ridge_tables(evidence, summary), *population_shares(evidence, rows), *_naive(evidence, rows)]
    return Section("regression", "Regression", items)


def _colours(evidence: Evidence) -> dict[str, str]:
    """One colour per model through the whole report."""
    return figures.colour_of(evidence.study.model_names)


def _ceiling(rows: pd.DataFrame) -> float | None:
    ceiling = rows["ceiling"].mean()
    return float(ceiling) if np.isfinite(ceiling) else None


def _chunks(models: Sequence[str]) -> list[list[str]]:
    """Models that share a figure."""
    return [list(models[start : start + _PER_FIGURE]) for start in range(0, len(models), _PER_FIGURE)]


def ridge_table(evidence: Evidence, rows: pd.DataFrame, caption: str, *, with_predictors: bool) -> Table:
    """Regressions, a row each, from rows of `Summary.ridge`; with_predictors names the sets of metrics they use."""
    columns = ["model", *(["metrics used"] if with_predictors else []), "n", "seeds", "R² confounds", "R² with metrics"]
    columns += ["Δ R²", "interval", "seeds from … to", "noise floor", "metrics alone"]
    columns += ["p raw"] if with_predictors else ["p adjusted"]
    lines = []
    for _, row in rows.iterrows():
        p = row["p"] if with_predictors else row["p_models"]
        names = [cell(row["model"])] if with_predictors else [cell(row["label"])]
        names += [cell(PREDICTOR_NAMES.get(row["predictors"], row["predictors"]))] if with_predictors else []
        seeds = seeds_done(evidence, row["num_seeds"], row["model"])
        counts = [cell(int(row["n"])), Cell(seeds, float(row["num_seeds"]))]
        numbers = [cell(float(row[name])) for name in ("baseline", "full", "delta")]
        spread = [
            Cell(interval(row["ci_low"], row["ci_high"]), float(row["ci_low"])),
            _over_seeds(row, "delta_min", "delta_max"),
        ]
        rest = [cell(float(row["floor"])), cell(float(row["metrics"])), Cell(p_value(p), float(p) if p == p else 2.0)]
        lines.append((*names, *counts, *numbers, *spread, *rest))
    file, folded = "../statistics/ridge_over_seeds.csv", len(lines) > _LONG
    return Table(caption, tuple(columns), tuple(lines), file=file, folded=folded)


def _with_errors(evidence: Evidence, table: pd.DataFrame) -> pd.DataFrame:
    """Reconstruction errors as one more metric, whose `layers` are the measures of error; likewise what the loss is."""
    errors, of_loss = table["layer"] == RECONSTRUCTION, table["layer"] == LOSS
    named = table["metric"].map(error_names(evidence) | LOSS_NAMES).fillna(table["metric"])
    table = table.assign(
        layer=table["layer"].where(~of_loss, named), metric=table["metric"].where(~of_loss, _LOSS)
    )  # fmt: skip
    return table.assign(
        layer=table["layer"].where(~errors, named), metric=table["metric"].where(~errors, _ERRORS)
    )  # fmt: skip


def _by_layer(evidence: Evidence, summary: Summary, estimator: str, title: str) -> Iterator[Item]:
    table = _with_errors(evidence, summary.general_correlations(estimator)).dropna(subset=["r"])
    present = _panels(evidence, table)
    models = [model for model in shown_models(evidence, summary) if model in set(table["model"])]
    for number, chunk in enumerate(_chunks(models), start=1):
        yield drawn(
            evidence.layout,
            f"correlations-{estimator}-{number}",
            title,
            f"{_BY_LAYER}, {corrected_over(evidence)}. n = {table['n'].min():,.0f} images. {expected_words(present)}"
            f"{shown_words(evidence)}{incomplete(evidence, table[table['model'].isin(chunk)])}",
            figures.correlations_by_layer,
            table[table["model"].isin(chunk)],
            present,
            _colours(evidence),
        )


def corrected_over(evidence: Evidence) -> str:
    """What is corrected together, to follow a comma."""
    return f"corrected over {WORDS[evidence.study.analysis.family]}"


def _panels(evidence: Evidence, table: pd.DataFrame) -> dict[str, str]:
    """The metrics that a figure of correlations by layer has rows for, and their names for people."""
    names = {**reported_metrics(evidence), _ERRORS: "reconstruction error", _LOSS: "sharpness"}
    return {metric: name for metric, name in names.items() if metric in set(table["metric"])}


def by_layer(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    """The correlations of one model by layer, as they are and with the confounds taken out, side by side."""
    found = {"pearson": "Pearson's r", "partial": "confounds taken out"}
    tables = [
        _with_errors(evidence, summary.general_correlations(name)).assign(side=side) for name, side in found.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    rows = table[table["model"] == model].dropna(subset=["r"])
    if rows.empty:
        return
    present = _panels(evidence, rows)
    yield drawn(
        evidence.layout,
        f"correlations-{model}",
        f"Correlations of {model} with the ratings by layer.",
        f"Left: Pearson's r; right: partial correlation. {_BY_LAYER}, {corrected_over(evidence)}. "
        f"n = {rows['n'].min():,.0f} images. "
        f"{expected_words(present)}{incomplete(evidence, rows)}",
        figures.correlations_by_layer,
        rows.assign(model=rows["side"]),
        present,
        dict.fromkeys(found.values(), _colours(evidence)[model]),
    )


def _sweep(evidence: Evidence, summary: Summary) -> Iterator[Item]:
    table = evidence.table("epsilon_sweep")
    if table.empty:
        return
    chosen = table[
        (table["scorer"] == GENERAL) & (table["subset"] == ALL_IMAGES) & (table["estimator"] == "pearson")
    ].dropna(subset=["estimate"])
    shown = [model for model in shown_models(evidence, summary) if model in set(chosen["model"])]
    chosen = chosen[chosen["model"].isin(shown)]
    if chosen.empty:
        return
    grouped = chosen.groupby(["model", "layer", "quantile"], sort=False)
    means = grouped.agg(r=("estimate", "mean"), num_seeds=("seed", "nunique")).reset_index()
    yield drawn(
        evidence.layout,
        "epsilon-sweep",
        "How the choice of ε matters.",
        "Correlation of Lε with the ratings for each quantile that was tried as ε; means over the seeds. A finding "
        f"that holds for one ε alone is no finding.{shown_words(evidence)}{incomplete(evidence, means)}",
        figures.epsilon_sweep,
        means,
        shown,
    )


def _distributions(evidence: Evidence, summary: Summary) -> Iterator[Item]:
    names = reported_metrics(evidence)
    values = metric_quantiles(evidence, tuple(names), shown_models(evidence, summary))
    if values.empty:
        yield Text("No model of all groups has been measured, so there are no distributions to show.", missing=True)
        return
    for number, chunk in enumerate(_chunks(list(dict.fromkeys(values["model"]))), start=1):
        yield drawn(
            evidence.layout,
            f"distributions-{number}",
            "The metrics themselves.",
            "Median (dot) and central 90 % of the rated images (bar), by layer; first seed. A bar of no height is "
            f"a layer that does not tell images apart.{shown_words(evidence)}",
            figures.distributions,
            values[values["model"].isin(chunk)],
            names,
            _colours(evidence),
        )


def _correlation_table(evidence: Evidence, summary: Summary) -> Iterator[Item]:
    pieces = [summary.general_correlations(estimator) for estimator in get_args(Estimator)]
    table = pd.concat(pieces, ignore_index=True)
    if table.empty:
        return
    shown = table if len(table) <= _MOST_ROWS else table.loc[table["r"].abs().nlargest(_MOST_ROWS).index]
    caption = "Every correlation" if shown is table else f"The {_MOST_ROWS} largest correlations of {len(table):,}"
    caption += " on all rated images, means over the seeds; p is the largest over the seeds, "
    caption += f"{corrected_over(evidence)}. ξ of the rating as a function of the metric has no sign and no interval"
    yield correlation_table(evidence, shown, caption, folded=True, num_all=len(table))


def correlation_table(
    evidence: Evidence, table: pd.DataFrame, caption: str, *, folded: bool = False, num_all: int = 0
) -> Table:
    """Correlations, a row each.

    Args:
        evidence: of the study.
        table: rows of `Summary.correlations`.
        caption: of the table.
        folded: whether it is closed at first.
        num_all: how many rows there would be, if these are only some of them.
    """
    columns = ("model", "layer", "metric", "estimator", "n", "seeds", "r or ξ", "interval", "seeds from … to")
    columns += ("p raw", "p adjusted", "family size")
    names = {**reported_metrics(evidence), **error_names(evidence), **LOSS_NAMES}
    rows = []
    for _, row in table.iterrows():
        words = [
            cell(row["model"]),
            cell(row["layer"]),
            cell(names.get(row["metric"], row["metric"])),
            cell(row["estimator"]),
        ]
        seeds = seeds_done(evidence, row["num_seeds"], row["model"])
        counts = [cell(int(row["n"])), Cell(seeds, float(row["num_seeds"]))]
        numbers = [
            cell(float(row["r"])),
            Cell(interval(row["ci_low"], row["ci_high"]), sortable(row["ci_low"])),
            _over_seeds(row, "r_min", "r_max"),
            Cell(p_value(row["p_raw"]), sortable(row["p_raw"])),
            Cell(p_value(row["p"]), sortable(row["p"])),
            cell(int(row["family_size"])),
        ]
        rows.append((*words, *counts, *numbers))
    file = "../statistics/correlations_over_seeds.csv"
    return Table(caption, columns, tuple(rows), file=file, folded=folded, num_all=num_all)


def _over_seeds(row: pd.Series, low: str, high: str) -> Cell:
    """Smallest and largest value over the seeds; a dash if there is only one."""
    text = interval(row[low], row[high]) if row["num_seeds"] > 1 else NOTHING
    return Cell(text, sortable(row[low]))


def _naive(evidence: Evidence, rows: pd.DataFrame) -> Iterator[Item]:
    every = rows[rows["predictors"] == "all"]
    rows, cut = _largest(every)
    kinds = {
        "out of fold, pooled (this report)": "metrics",
        "in sample (naive)": "in_sample",
        "in sample, of pure noise": "in_sample_noise",
        "mean r² per fold (naive)": "fold",
        "mean r² per fold, of pure noise": "fold_noise",
    }
    long = pd.DataFrame(
        [
            {"label": row["model"], "estimator": name, "value": row[column]}
            for name, column in kinds.items()
            for _, row in rows.iterrows()
        ]
    )
    yield drawn(
        evidence.layout,
        "estimators",
        "The same metrics under the estimators of the literature.",
        "R² of all metrics alone, without confounds. The naive estimates are positive even for noise; they are shown "
        f"so that published numbers can be set beside ours, and are no result of this study.{cut}",
        figures.estimators,
        long,
    )
    columns = ("model", "n", "metrics", *kinds)
    lines = [
        (
            cell(row["model"]),
            cell(int(row["n"])),
            cell(int(row["num_predictors"])),
            *(cell(float(row[column])) for column in kinds.values()),
        )
        for _, row in every.iterrows()
    ]
    yield Table("R² of all metrics alone by estimator", columns, tuple(lines), file="../statistics/ridge.csv")
