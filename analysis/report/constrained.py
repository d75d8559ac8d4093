"""Tables shaped like a thesis: what the metrics say about the ratings, by the place of a sparsity constraint."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.families import WORDS
from analysis.report.compared import Case
from analysis.report.page import NOTHING, Cell, Item, Table, cell, interval, listed, number, p_equals
from analysis.report.summary import ALL_IMAGES, GENERAL, PREDICTOR_NAMES, metric_name
from analysis.summaries import NONE

_SHOWN = ("pearson", "partial")


def constraint_tables(case: Case) -> Iterator[Item]:
    """Metric × place of the constraint, and metric × layer, for models that differ in nothing else."""
    regressions, correlations = (_of(case, name) for name in ("summary_constraint", "summary_layers"))
    if regressions.empty:
        return
    for base, own in regressions.groupby("base", sort=False):
        models = [model for model in case.models if model in set(own["model"])]
        if len(models) > 1:
            yield _by_place(case, own, models)
            if not correlations.empty:
                yield _by_layer(case, correlations[correlations["base"] == base], models)


def _of(case: Case, name: str) -> pd.DataFrame:
    """The rows of a summary on the general models of a comparison and all rated images."""
    table = case.evidence.table(name)
    if table.empty:
        return table
    chosen = (table["scorer"] == GENERAL) & (table["subset"] == ALL_IMAGES) & table["model"].isin(case.models)
    return table[chosen]


def _by_place(case: Case, rows: pd.DataFrame, models: list[str]) -> Table:
    lines = []
    for name, own in rows.groupby("predictors", sort=False):
        metrics = cell(PREDICTOR_NAMES.get(str(name), str(name)))
        lines.append((metrics, cell("R²"), *(_regression(own, model, "r2_metrics") for model in models)))
        lines.append((metrics, cell("Δ R²"), *(_regression(own, model, "delta_r2") for model in models)))
    caption = (
        "Metric × place of the constraint: ridge R² of the metrics alone, out of fold, and Δ R² over the confounds "
        f"with its adjusted p, with their intervals. {_constraints(rows, models)} n = {rows['n'].min():,.0f} images; "
        f"means over the seeds, p the largest.{_missing(case, rows)}"
    )
    headings = _headings(("metrics", "number"), rows, models)
    return Table(caption, headings, tuple(lines), file="../statistics/summary_constraint.csv")


def _by_layer(case: Case, rows: pd.DataFrame, models: list[str]) -> Table:
    shown = rows[rows["estimator"].isin(_SHOWN)]
    lines = [
        (
            cell(metric_name(case.evidence, str(layer), str(metric))),
            cell(str(estimator)),
            *(_correlation(own, model) for model in models),
        )
        for (metric, layer, estimator), own in shown.groupby(["metric", "layer", "estimator"], sort=False)
    ]
    caption = (
        f"Metric × layer, with and without the constraint: r with its interval and p, adjusted over "
        f"{WORDS[case.evidence.study.analysis.family]}; means over the seeds, p the largest.{_missing(case, rows)}"
    )
    headings = _headings(("metric", "estimator"), rows, models)
    return Table(caption, headings, tuple(lines), file="../statistics/summary_layers.csv", folded=True)


def _missing(case: Case, rows: pd.DataFrame) -> str:
    """A sentence on the models that lack a seed."""
    return case.missing_seeds({str(model): int(num) for model, num in rows.groupby("model")["num_seeds"].max().items()})


def _headings(first: tuple[str, ...], rows: pd.DataFrame, models: list[str]) -> tuple[str, ...]:
    """A column per model, which says where its constraint acts."""
    place = rows.groupby("model")["place"].first()
    return (*first, *(f"{model} ({place.get(model, NOTHING)})" for model in models))


def _constraints(rows: pd.DataFrame, models: list[str]) -> str:
    """The constraint, or the constraint of each model if they have several."""
    placed = rows[(rows["place"] != NONE) & rows["model"].isin(models)]
    of_model = placed.groupby("model", sort=False)["constraint"].first()
    if of_model.nunique() < 2:
        return f"Constraint: {of_model.iloc[0]}." if len(of_model) else ""
    return f"Constraints: {listed([f'{model} {constraint}' for model, constraint in of_model.items()])}."


def _regression(rows: pd.DataFrame, model: str, column: str) -> Cell:
    own = rows[rows["model"] == model]
    if own.empty or own[column].isna().all():
        return cell(None)
    row = own.iloc[0]
    text = f"{number(row[column])} {interval(row[f'{column}_low'], row[f'{column}_high'])}"
    p = f", {p_equals(row['p_delta_bh'])}" if column == "delta_r2" else ""
    return Cell(text + p, float(row[column]))


def _correlation(rows: pd.DataFrame, model: str) -> Cell:
    own = rows[rows["model"] == model]
    if own.empty or own["estimate"].isna().all():
        return cell(None)
    row = own.iloc[0]
    text = f"{number(row['estimate'], 2, sign=True)} {interval(row['ci_low'], row['ci_high'], 2)}"
    return Cell(f"{text}, {p_equals(row['p_adjusted'])}", float(row["estimate"]))
