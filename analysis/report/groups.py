"""The chapter on groups: each by itself, whether they differ, and general against specialised models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis import figures
from analysis.families import WORDS
from analysis.report.evidence import Evidence
from analysis.report.page import (
    Cell,
    Item,
    Section,
    Table,
    Text,
    cell,
    counted,
    drawn,
    interval,
    number,
    p_equals,
    p_value,
    sortable,
)
from analysis.report.summary import (
    ALL_IMAGES,
    GENERAL,
    POOLED,
    PREDICTOR_NAMES,
    Summary,
    incomplete,
    metric_name,
    seeds_done,
    untrained_models,
)
from fluence.study import OWN_GROUP

_DECIMALS = 3


def groups(evidence: Evidence, summary: Summary) -> Section:
    """Correlation in each group, whether slopes differ, and general against specialised models on the same images."""
    table = summary.correlations
    specialised = [group for group in evidence.study.group_names if group != ALL_IMAGES]
    if not specialised:
        text = "No group has a model of its own in this study, so groups were not analysed one by one."
        return Section("groups", "Groups", [Text(text), *_interactions(evidence)])
    if table.empty:
        return Section("groups", "Groups", [Text("No group could be analysed.", missing=True)])
    items = [item for model in evidence.study.model_names for item in _forest(evidence, summary, model)]
    return Section("groups", "Groups", [*items, *_interactions(evidence), *_specialised(evidence, summary)])


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


def _interactions(evidence: Evidence) -> Iterator[Item]:
    """Whether the slope of a metric differs between groups: a sentence, and every test in a table."""
    table = evidence.table("interactions_over_seeds")
    if table.empty:
        return
    tested = table[table["num_seeds"] > 0]
    differ = tested[tested["num_significant"] == tested["num_seeds"]]
    yield Text(_interaction_words(evidence, tested, differ), heading="Differences between groups")
    columns = ("model", "scorer", "images", "metric", "n", "groups", "left out", "seeds", "F", "p raw", "p adjusted")
    rows = [_interaction_row(evidence, row) for _, row in table.iterrows()]
    caption = (
        "Interaction of group and metric (F means over the seeds; p the largest over the seeds, adjusted by "
        f"Benjamini-Hochberg over {WORDS[evidence.study.analysis.family]})"
    )
    headings = (*columns, "family size", "remark")
    yield Table(caption, headings, tuple(rows), file="../statistics/interactions_over_seeds.csv", folded=True)


def _interaction_words(evidence: Evidence, tested: pd.DataFrame, differ: pd.DataFrame) -> str:
    if tested.empty:
        return "Whether a metric goes with the ratings differently in different groups could not be tested."
    asked = (
        "For each metric of each layer we asked whether its slope on the ratings is the same in all groups (Wald F of "
        "group × metric, with the other confounds)."
    )
    if differ.empty:
        return f"{asked} In none of {counted(len(tested), 'test')} is a difference left after correction in every seed."
    top = differ.loc[differ["p_max"].idxmin()]
    name = metric_name(evidence, top["layer"], top["metric"])
    return (
        f"{asked} A difference is left after correction in every seed in {len(differ):,} of "
        f"{counted(len(tested), 'test')}, most clearly for {name} in {top['model']}: F = {number(top['f_mean'], 1)}, "
        f"{p_equals(top['p_bh_max'])} adjusted. A correlation over all images is then a mean of unlike ones."
    )


def _interaction_row(evidence: Evidence, row: pd.Series) -> tuple[Cell, ...]:
    words = (cell(row["model"]), cell(row["scorer"]), cell(row["subset"]))
    seeds = seeds_done(evidence, row["num_seeds"], row["model"], row["trained_on"])
    return (
        *words,
        cell(metric_name(evidence, row["layer"], row["metric"])),
        cell(int(row["n"])),
        cell(int(row["num_groups"])),
        cell(row["groups_left_out"]),
        Cell(seeds, float(row["num_seeds"])),
        cell(float(row["f_mean"]), 1),
        Cell(p_value(row["p_max"]), sortable(row["p_max"])),
        Cell(p_value(row["p_bh_max"]), sortable(row["p_bh_max"])),
        cell(int(row["family_size"])),
        cell(row["reason"]),
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
            cells += [cell(float(delta), _DECIMALS), Cell(interval(low, high), sortable(low))]
        lines.append(tuple(cells))
    columns = ("model", "metrics used", "images", "n", "seeds")
    columns += ("Δ R² general", "interval", "Δ R² own group", "interval")
    yield Table(
        "One model for all groups against each group's own model, on the same images (means over the seeds)",
        columns,
        tuple(lines),
        file="../statistics/ridge_over_seeds.csv",
    )
