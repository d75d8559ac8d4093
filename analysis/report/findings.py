"""The chapters on the results: single metrics, regression, groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from analysis import figures
from analysis.measure import LOSS, RECONSTRUCTION
from analysis.report.evidence import Evidence, metric_quantiles, metrics_of
from analysis.report.page import NOTHING, Cell, Item, Section, Table, Text, cell, drawn, interval, p_value
from analysis.report.shares import population_shares
from analysis.report.summary import (
    ALL_IMAGES,
    GENERAL,
    LOSS_NAMES,
    POOLED,
    PREDICTOR_NAMES,
    Summary,
    error_names,
    expected_words,
    incomplete,
    metric_name,
    reported_metrics,
    seeds_done,
    untrained_models,
)
from fluence.study import OWN_GROUP

_PER_FIGURE = 3
_ERRORS, _LOSS = "errors", "loss"
_DECIMALS = 3


def key_items(evidence: Evidence, summary: Summary) -> list[Item]:
    """The figure and the table that the verdict rests on."""
    table = summary.general_ridge()
    if table.empty:
        return []
    untrained = untrained_models(evidence)
    chosen = table[(table["predictors"] == "all") & table["delta"].notna()]
    adjusted = summary.primary(untrained).set_index("model")["p_models"]
    rows = chosen.assign(
        label=[f"{m} (untrained)" if m in untrained else m for m in chosen["model"]],
        p_models=chosen["model"].map(adjusted),
        control=chosen["model"].isin(untrained),
    ).sort_values(["control", "delta"], ascending=[True, False])
    if rows.empty:
        return []
    picture = drawn(
        evidence.layout,
        "answer",
        "What the metrics add to the confounds.",
        f"Left: R² of the ratings, predicted out of fold from the confounds alone (diamond) and with all metrics of "
        f"all layers added (dot). Right: the difference with its {evidence.study.analysis.confidence:.0%} bootstrap "
        f"interval; grey bars end where one in twenty shuffled data sets ends. Means over the seeds."
        f"{incomplete(evidence, rows)}",
        figures.gain_over_confounds,
        rows,
        _ceiling(rows),
        _colours(evidence),
    )
    return [picture, _ridge_table(evidence, rows, "The numbers of this figure", with_predictors=False)]


def metrics(evidence: Evidence, summary: Summary) -> Section:
    """Correlations of single metrics with the ratings."""
    items: list[Item] = []
    if summary.general_correlations("pearson").empty:
        items.append(Text("No correlation could be computed on all rated images.", missing=True))
    else:
        items += [
            *_by_layer(evidence, summary, "pearson", "Correlation with the ratings by layer."),
            *_by_layer(evidence, summary, "partial", "The same with the confounds taken out (partial correlation)."),
            *_scatter(evidence, summary),
            *_sweep(evidence),
        ]
    items += [*_distributions(evidence), *_correlation_table(evidence, summary)]
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
    picture = drawn(
        evidence.layout,
        "ridge",
        "R² by family of metrics.",
        "As in the first figure, for each family of metrics over all layers. Exploratory but for “all metrics”. A "
        "negative value means: worse than predicting the mean."
        f"{incomplete(evidence, rows)}",
        figures.gain_over_confounds,
        rows,
        _ceiling(rows),
        _colours(evidence),
    )
    items: list[Item] = [
        picture,
        _ridge_table(evidence, rows, "R² of ridge regression, pooled out of fold", with_predictors=True),
    ]
    return Section("regression", "Regression", [*items, *population_shares(evidence, rows), *_naive(evidence, rows)])


def groups(evidence: Evidence, summary: Summary) -> Section:
    """Correlation in each group, and general against specialised models on the same images."""
    table = summary.correlations
    specialised = [group for group in evidence.study.group_names if group != ALL_IMAGES]
    if not specialised:
        text = "No group has a model of its own in this study, so groups were not analysed one by one."
        return Section("groups", "Groups", [Text(text)])
    if table.empty:
        return Section("groups", "Groups", [Text("No group could be analysed.", missing=True)])
    items = [item for model in evidence.study.model_names for item in _forest(evidence, summary, model)]
    return Section("groups", "Groups", [*items, *_specialised(evidence, summary)])


def _colours(evidence: Evidence) -> dict[str, str]:
    """One colour per model through the whole report."""
    return figures.colour_of(evidence.study.model_names)


def _ceiling(rows: pd.DataFrame) -> float | None:
    ceiling = rows["ceiling"].mean()
    return float(ceiling) if np.isfinite(ceiling) else None


def _chunks(models: Sequence[str]) -> list[list[str]]:
    """Models that share a figure."""
    return [list(models[start : start + _PER_FIGURE]) for start in range(0, len(models), _PER_FIGURE)]


def _ridge_table(evidence: Evidence, rows: pd.DataFrame, caption: str, *, with_predictors: bool) -> Table:
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
    return Table(caption, tuple(columns), tuple(lines), file="../statistics/ridge_over_seeds.csv")


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
    names = {**reported_metrics(evidence), _ERRORS: "reconstruction error", _LOSS: "sharpness"}
    present = {metric: name for metric, name in names.items() if metric in set(table["metric"])}
    models = [model for model in evidence.study.model_names if model in set(table["model"])]
    for number, chunk in enumerate(_chunks(models), start=1):
        yield drawn(
            evidence.layout,
            f"correlations-{estimator}-{number}",
            title,
            "Thin lines: interval over the images; thick lines: range over the seeds; filled: significant after "
            f"correction in every seed. n = {table['n'].min():,.0f} images. {expected_words(present)}"
            f"{incomplete(evidence, table[table['model'].isin(chunk)])}",
            figures.correlations_by_layer,
            table[table["model"].isin(chunk)],
            present,
            _colours(evidence),
        )


def _scatter(evidence: Evidence, summary: Summary) -> Iterator[Item]:
    table = summary.general_correlations("pearson").dropna(subset=["r"])
    table = table[~table["model"].isin(untrained_models(evidence))]
    if table.empty:
        return
    top = table.loc[table["r"].abs().idxmax()]
    run = next(run for run in evidence.done if (run.model, run.group) == (top["model"], ALL_IMAGES))
    values = metrics_of(evidence, run)
    if values is None:
        return
    chosen = values[(values["layer"] == top["layer"]) & (values["metric"] == top["metric"])]
    points = chosen.set_index("image_id")["value"].rename("x").to_frame().join(evidence.ratings()["score"].rename("y"))
    name = metric_name(evidence, top["layer"], top["metric"])
    yield drawn(
        evidence.layout,
        "strongest",
        "The metric with the largest correlation.",
        f"{name} in {run.label}, one point per image. Chosen after the fact as the largest of {len(table)}, so its "
        "size is exaggerated.",
        figures.scatter,
        points,
        name,
        evidence.study.data.score,
        shows="ratings",
    )


def _sweep(evidence: Evidence) -> Iterator[Item]:
    table = evidence.table("epsilon_sweep")
    if table.empty:
        return
    chosen = table[
        (table["scorer"] == GENERAL) & (table["subset"] == ALL_IMAGES) & (table["estimator"] == "pearson")
    ].dropna(subset=["estimate"])
    if chosen.empty:
        return
    grouped = chosen.groupby(["model", "layer", "quantile"], sort=False)
    means = grouped.agg(r=("estimate", "mean"), num_seeds=("seed", "nunique")).reset_index()
    yield drawn(
        evidence.layout,
        "epsilon-sweep",
        "How the choice of ε matters.",
        "Correlation of Lε with the ratings for each quantile that was tried as ε; means over the seeds. A finding "
        f"that holds for one ε alone is no finding.{incomplete(evidence, means)}",
        figures.epsilon_sweep,
        means,
        [model for model in evidence.study.model_names if model in set(means["model"])],
    )


def _distributions(evidence: Evidence) -> Iterator[Item]:
    names = reported_metrics(evidence)
    values = metric_quantiles(evidence, tuple(names))
    if values.empty:
        yield Text("No model of all groups has been measured, so there are no distributions to show.", missing=True)
        return
    for number, chunk in enumerate(_chunks(list(dict.fromkeys(values["model"]))), start=1):
        yield drawn(
            evidence.layout,
            f"distributions-{number}",
            "The metrics themselves.",
            "Median (dot) and central 90 % of the rated images (bar), by layer; first seed. A bar of no height is "
            "a layer that does not tell images apart.",
            figures.distributions,
            values[values["model"].isin(chunk)],
            names,
            _colours(evidence),
        )


def _correlation_table(evidence: Evidence, summary: Summary) -> Iterator[Item]:
    pieces = [summary.general_correlations(estimator) for estimator in ("pearson", "spearman", "partial")]
    table = pd.concat(pieces, ignore_index=True)
    if table.empty:
        return
    columns = ("model", "layer", "metric", "estimator", "n", "seeds", "r", "interval", "seeds from … to", "p adjusted")
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
            Cell(interval(row["ci_low"], row["ci_high"]), _sortable(row["ci_low"])),
            _over_seeds(row, "r_min", "r_max"),
            Cell(p_value(row["p"]), _sortable(row["p"])),
        ]
        rows.append((*words, *counts, *numbers))
    caption = "Every correlation on all rated images, means over the seeds; p is the largest over the seeds"
    yield Table(caption, columns, tuple(rows), file="../statistics/correlations_over_seeds.csv", folded=True)


def _over_seeds(row: pd.Series, low: str, high: str) -> Cell:
    """Smallest and largest value over the seeds; a dash if there is only one."""
    text = interval(row[low], row[high]) if row["num_seeds"] > 1 else NOTHING
    return Cell(text, _sortable(row[low]))


def _sortable(value: float) -> float:
    return float(value) if np.isfinite(value) else 2.0


def _naive(evidence: Evidence, rows: pd.DataFrame) -> Iterator[Item]:
    rows = rows[rows["predictors"] == "all"]
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
        "so that published numbers can be set beside ours, and are no result of this study.",
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
        for _, row in rows.iterrows()
    ]
    yield Table("R² of all metrics alone by estimator", columns, tuple(lines), file="../statistics/ridge.csv")


def _forest(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    """The model's most correlated metric in every group."""
    general = summary.general_correlations("pearson")
    general = general[general["model"] == model].dropna(subset=["r"])
    if general.empty or model in untrained_models(evidence):
        return
    top = general.loc[general["r"].abs().idxmax()]
    table = summary.correlations
    same = (table["model"] == model) & (table["layer"] == top["layer"]) & (table["metric"] == top["metric"])
    rows = table[same & (table["estimator"] == "pearson")].dropna(subset=["r"])
    order = {name: place for place, name in enumerate((ALL_IMAGES, *evidence.study.group_names))}
    place = rows["subset"].map(order).fillna(len(order) + rows["subset"].str.len())  # pools last, the largest first
    rows = rows.assign(place=place).sort_values("place", kind="stable")
    rows = rows.assign(group=rows["subset"].replace({ALL_IMAGES: "all images"}))
    name = metric_name(evidence, top["layer"], top["metric"])
    yield drawn(
        evidence.layout,
        f"groups-{model}",
        f"{name} in {model}, by group.",
        "Correlation with the ratings among the images of each group (n in brackets), for the model of all groups and "
        "for the groups' own models; intervals over images, means over seeds. The metric is the most correlated "
        f"over all images, chosen after the fact: exploratory.{incomplete(evidence, rows)}",
        figures.forest,
        rows,
        name,
    )


def _specialised(evidence: Evidence, summary: Summary) -> Iterator[Item]:
    """General and specialised scorers, on the same images."""
    table = summary.ridge
    rows = table[table["subset"].str.startswith(POOLED)].dropna(subset=["delta"]) if not table.empty else table
    if rows.empty:
        yield Text("Fewer than two groups have finished models of their own: there is no comparison.", missing=True)
        return
    keys = ["model", "subset", "predictors"]
    values = ["delta", "ci_low", "ci_high", "n", "num_seeds"]
    wide = rows.pivot_table(index=keys, columns="scorer", values=values, sort=False)
    lines = []
    for (model, subset, predictors), row in wide.iterrows():
        cells = [cell(model), cell(PREDICTOR_NAMES.get(predictors, predictors)), cell(subset)]
        cells.append(cell(int(max(row.get(("n", scorer), 0) for scorer in (GENERAL, OWN_GROUP)))))
        num_seeds = min(row.get(("num_seeds", scorer), 0) for scorer in (GENERAL, OWN_GROUP))
        cells.append(Cell(seeds_done(evidence, num_seeds, str(model), OWN_GROUP), num_seeds))
        for scorer in (GENERAL, OWN_GROUP):
            low, high = row.get(("ci_low", scorer), np.nan), row.get(("ci_high", scorer), np.nan)
            delta = row.get(("delta", scorer), np.nan)
            cells += [cell(float(delta), _DECIMALS), Cell(interval(low, high), _sortable(low))]
        lines.append(tuple(cells))
    columns = ("model", "metrics used", "images", "n", "seeds")
    columns += ("Δ R² general", "interval", "Δ R² own group", "interval")
    yield Table(
        "One model for all groups against each group's own model, on the same images (means over the seeds)",
        columns,
        tuple(lines),
        file="../statistics/ridge_over_seeds.csv",
    )
