"""The chapter on groups: a metric in each of them, whether they differ, general against specialised models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis import figures
from analysis.report.evidence import Evidence
from analysis.report.interactions import interaction_items
from analysis.report.page import Cell, Item, Section, Table, Text, cell, drawn, interval, sortable
from analysis.report.summary import (
    ALL_IMAGES,
    GENERAL,
    POOLED,
    PREDICTOR_NAMES,
    Summary,
    controls,
    incomplete,
    metric_name,
    seeds_done,
    shown_models,
)
from fluence.study import OWN_GROUP


def groups(evidence: Evidence, summary: Summary) -> Section:
    """Correlation in each group, whether slopes differ, and general against specialised models on the same images."""
    table = summary.correlations
    specialised = [group for group in evidence.study.group_names if group != ALL_IMAGES]
    if not specialised:
        text = "No group has a model of its own in this study, so groups were not analysed one by one."
        return Section("groups", "Groups", [Text(text), *interaction_items(evidence)])
    if table.empty:
        return Section("groups", "Groups", [Text("No group could be analysed.", missing=True)])
    items = [item for model in shown_models(evidence, summary) for item in forest(evidence, summary, model)]
    return Section("groups", "Groups", [*items, *interaction_items(evidence), *_specialised(evidence, summary)])


def forest(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    """The model's most correlated metric in every group; nothing for an untrained model."""
    general = summary.general_correlations("pearson")
    general = general[general["model"] == model].dropna(subset=["r"])
    if general.empty or model in controls(evidence):
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
            cells += [cell(float(delta)), Cell(interval(low, high), sortable(low))]
        lines.append(tuple(cells))
    columns = ("model", "metrics used", "images", "n", "seeds")
    columns += ("Δ R² general", "interval", "Δ R² own group", "interval")
    yield Table(
        "One model for all groups against each group's own model, on the same images (means over the seeds)",
        columns,
        tuple(lines),
        file="../statistics/ridge_over_seeds.csv",
    )
