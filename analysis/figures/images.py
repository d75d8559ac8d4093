"""The rated images: their ratings, their covariates, and what the networks' metrics look like over them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.plate import (
    COLOURS,
    ONE_COLUMN_IN,
    PALE,
    TWO_COLUMNS_IN,
    WIDEST_LABEL,
    shorten,
    zero_line,
)


def ratings_by_group(ratings: pd.DataFrame, score: str) -> Figure:
    """Histogram of the ratings of each group over that of all images (pale), with the group's mean.

    Args:
        ratings: columns group and score, one row per image.
        score: name of the ratings.
    """
    groups = sorted(ratings["group"].unique())
    num_columns = min(4, len(groups))
    num_rows = math.ceil(len(groups) / num_columns)
    figure = Figure(figsize=(TWO_COLUMNS_IN, 0.3 + 1.25 * num_rows))
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True).ravel()
    bins = np.histogram_bin_edges(ratings["score"].dropna(), bins=20)
    everyone = np.full(len(ratings), 1 / len(ratings))
    for axes, group in zip(grid, groups, strict=False):
        own = ratings.loc[ratings["group"] == group, "score"].dropna()
        axes.hist(ratings["score"], bins=bins, weights=everyone, color="#dddddd")
        axes.hist(own, bins=bins, weights=np.full(len(own), 1 / max(len(own), 1)), histtype="step", color=COLOURS[0])
        axes.axvline(own.mean(), color=COLOURS[1], linewidth=0.9)
        axes.set_title(f"{shorten(group, 20)}  n = {len(own)}", fontweight="normal", fontsize=7)
        axes.tick_params(labelbottom=True)
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    figure.supxlabel(shorten(score, 60), fontsize=8)
    figure.supylabel("Share of images", fontsize=8)
    return figure


def covariate_correlations(rows: pd.DataFrame) -> Figure:
    """Correlation of each covariate with the ratings.

    Args:
        rows: columns covariate, r, ci_low, ci_high.
    """
    figure = Figure(figsize=(ONE_COLUMN_IN, 0.55 + 0.22 * len(rows)))
    axes = figure.subplots()
    position = np.arange(len(rows))[::-1]
    axes.errorbar(
        rows["r"], position, xerr=[rows["r"] - rows["ci_low"], rows["ci_high"] - rows["r"]], fmt="o", color=COLOURS[0],
        elinewidth=1,
    )  # fmt: skip
    zero_line(axes, axis="x")
    axes.set_yticks(position, [shorten(str(name)) for name in rows["covariate"]])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("Pearson r with the ratings")
    return figure


def distributions(values: pd.DataFrame, metrics: Mapping[str, str], colours: Mapping[str, str]) -> Figure:
    """Median and 5–95 % range of each metric over the images, by layer.

    Args:
        values: columns model, metric, layer, q05, q50, q95, in the order of the layers.
        metrics: metric: label of its axis.
        colours: model: its colour.
    """
    models = list(dict.fromkeys(values["model"]))
    figure = Figure(figsize=(TWO_COLUMNS_IN, 0.3 + 1.9 * len(metrics)))
    widths = [max(values.loc[values["model"] == model, "layer"].nunique(), 6) for model in models]
    panels = figure.subplots(
        len(metrics), len(models), squeeze=False, sharey="row", gridspec_kw={"width_ratios": widths}
    )
    for row, (metric, label) in zip(panels, metrics.items(), strict=True):
        for axes, model in zip(row, models, strict=True):
            rows = values[(values["metric"] == metric) & (values["model"] == model)]
            _distribution_panel(axes, rows, colours[model])
        row[0].set_ylabel(textwrap.fill(label, WIDEST_LABEL))
    for axes, model in zip(panels[0], models, strict=True):
        axes.set_title(shorten(model))
    return figure


def _distribution_panel(axes: Axes, rows: pd.DataFrame, colour: str) -> None:
    position = np.arange(len(rows))
    axes.vlines(position, rows["q05"], rows["q95"], color=colour, linewidth=2.6, alpha=0.4)
    axes.plot(position, rows["q50"], linestyle="none", marker="o", color=colour)
    axes.set_xticks(position, rows["layer"], rotation=90)
    axes.set_xlim(-0.6, max(len(rows), 1) - 0.4)
    axes.grid(axis="y", color=PALE, linewidth=0.6)
