"""What the report says on whether the slope of a metric differs between groups."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.families import WORDS
from analysis.report.evidence import Evidence
from analysis.report.page import Cell, Item, Table, Text, cell, counted, number, p_equals, p_value, sortable
from analysis.report.summary import metric_name, seeds_done

_MOST_ROWS = 600  # of a table


def interaction_items(evidence: Evidence) -> Iterator[Item]:
    """A sentence, and every test in a table; nothing if there are no images of several groups."""
    table = evidence.table("interactions_over_seeds")
    if table.empty:
        return
    tested = table[table["num_seeds"] > 0]
    differ = tested[tested["num_significant"] == tested["num_seeds"]]
    yield Text(_interaction_words(evidence, tested, differ), heading="Differences between groups")
    columns = ("model", "scorer", "images", "metric", "n", "groups", "left out", "seeds", "F", "p raw", "p adjusted")
    shown = table if len(table) <= _MOST_ROWS else table.nsmallest(_MOST_ROWS, "p_max")
    rows = [_interaction_row(evidence, row) for _, row in shown.iterrows()]
    words = "" if shown is table else f"The {_MOST_ROWS} smallest p of {len(table):,}. "
    caption = (
        f"{words}Interaction of group and metric (F means over the seeds; p the largest over the seeds, adjusted by "
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
