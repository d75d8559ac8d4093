"""What the metrics say about the ratings: correlations, explained variance, and their spread over groups."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.plate import (
    COLOURS,
    INK,
    MUTED,
    ONE_COLUMN_IN,
    PALE,
    TWO_COLUMNS_IN,
    WIDEST_LABEL,
    marker_of,
    shorten,
    zero_line,
)

_SCORER_COLOURS = (INK, COLOURS[3])  # general and own-group: not the colours of models


def gain_over_confounds(rows: pd.DataFrame, ceiling: float | None, colours: Mapping[str, str]) -> Figure:
    """Left: R² of the confounds and of confounds and metrics. Right: their difference, with interval and noise floor.

    Args:
        rows: columns label, model, baseline, full, delta, ci_low, ci_high, floor; one line of the figure each.
        ceiling: largest R² that the reliability of the ratings allows, or None.
        colours: model: its colour.
    """
    figure = Figure(figsize=(TWO_COLUMNS_IN, 0.95 + 0.26 * len(rows)))
    left, right = figure.subplots(1, 2, sharey=True)
    position = np.arange(len(rows))[::-1]
    of_rows = [colours[model] for model in rows["model"]]
    left.hlines(position, rows["baseline"], rows["full"], color=of_rows, linewidth=1.2)
    left.scatter(rows["baseline"], position, marker="D", s=14, facecolor="white", edgecolor=MUTED, zorder=3)
    left.scatter(rows["full"], position, marker="o", s=16, color=of_rows, zorder=3)
    if ceiling is not None and ceiling < 4 * max(rows["full"].max(), 0.05):
        left.axvline(ceiling, color=INK, linewidth=0.8, linestyle="--")
        left.text(ceiling, len(rows) - 0.5, "noise ceiling ", ha="right", va="top", fontsize=7)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(6))
    left.set_xlabel("R², out of fold")
    left.set_title("◇ confounds   ● confounds + metrics", fontweight="normal")
    _gain_panel(right, rows, position, of_rows)
    left.set_yticks(position, [shorten(label, 34) for label in rows["label"]])
    left.set_ylim(-0.6, len(rows) - 0.4)
    for axes in (left, right):
        zero_line(axes, axis="x")
    return figure


def _gain_panel(axes: Axes, rows: pd.DataFrame, position: np.ndarray, colours: Sequence[str]) -> None:
    for y, (_, row) in zip(position, rows.iterrows(), strict=True):
        if np.isfinite(row["floor"]):
            axes.barh(y, row["floor"], height=0.7, color="#dddddd", zorder=0)
    for y, (_, row), colour in zip(position, rows.iterrows(), colours, strict=True):
        axes.hlines(y, row["ci_low"], row["ci_high"], color=colour, linewidth=1.2)
        axes.plot(row["delta"], y, "o", color=colour)
    axes.set_xlabel("Δ R² over the confounds")
    axes.set_title("grey: reached by shuffled ratings", fontweight="normal")
    axes.tick_params(left=False)


def correlations_by_layer(rows: pd.DataFrame, metrics: Mapping[str, str], colours: Mapping[str, str]) -> Figure:
    """Correlation with the ratings by layer, one row of panels per metric, one column per model.

    Args:
        rows: columns model, metric, layer, r, r_min, r_max, ci_low, ci_high, significant, in the order of the layers.
        metrics: metric: its name for people.
        colours: model: its colour.
    """
    models = list(dict.fromkeys(rows["model"]))
    figure = Figure(figsize=(TWO_COLUMNS_IN, 0.3 + 1.9 * len(metrics)))
    panels = figure.subplots(
        len(metrics), len(models), squeeze=False, sharey=True, gridspec_kw={"width_ratios": _widths(rows, models)}
    )
    for row, (metric, label) in zip(panels, metrics.items(), strict=True):
        for axes, model in zip(row, models, strict=True):
            _correlation_panel(axes, rows[(rows["metric"] == metric) & (rows["model"] == model)], colours[model])
        row[0].set_ylabel(textwrap.fill(f"r, {label}", WIDEST_LABEL))
    for axes, model in zip(panels[0], models, strict=True):
        axes.set_title(shorten(model))
    for above, below in pairwise(panels):
        _name_layers_once(above, below)
    return figure


def _name_layers_once(above: Sequence[Axes], below: Sequence[Axes]) -> None:
    """Leaves the names of layers out of a row of panels if the same stand below the next."""
    names = [[[label.get_text() for label in axes.get_xticklabels()] for axes in row] for row in (above, below)]
    if names[0] == names[1]:
        for axes in above:
            axes.set_xticklabels([])


def _widths(rows: pd.DataFrame, models: Sequence[str]) -> list[int]:
    """Panels are as wide as they have layers, but never too narrow for their title."""
    return [max(rows.loc[rows["model"] == model, "layer"].nunique(), 6) for model in models]


def _correlation_panel(axes: Axes, rows: pd.DataFrame, colour: str) -> None:
    position = np.arange(len(rows))
    axes.vlines(position, rows["ci_low"], rows["ci_high"], color=colour, linewidth=0.8)
    axes.vlines(position, rows["r_min"], rows["r_max"], color=colour, linewidth=2.6, alpha=0.5)
    firm = rows["significant"].to_numpy(dtype=bool)
    for chosen, fill in ((firm, colour), (~firm, "white")):
        r = rows["r"].to_numpy()[chosen]
        axes.plot(position[chosen], r, linestyle="none", marker="o", color=colour, markerfacecolor=fill)
    zero_line(axes)
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.set_xticks(position, rows["layer"], rotation=90)
    axes.set_xlim(-0.6, max(len(rows), 1) - 0.4)


def epsilon_sweep(rows: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Correlation of Lε with the ratings, by layer, for each quantile that chose ε; one panel per model.

    Args:
        rows: columns model, layer, quantile, r, in the order of the layers.
        models: the models.
    """
    num_columns = min(2, len(models))
    num_rows = math.ceil(len(models) / num_columns)
    figure = Figure(figsize=(ONE_COLUMN_IN * num_columns, 0.5 + 1.9 * num_rows))
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).ravel()
    quantiles = sorted(rows["quantile"].unique())
    shades, markers = _shades(len(quantiles)), marker_of([f"{quantile:g}" for quantile in quantiles])
    for axes, model in zip(grid, models, strict=False):
        chosen = rows[rows["model"] == model]
        layers = list(dict.fromkeys(chosen["layer"]))
        for quantile, shade in zip(quantiles, shades, strict=True):
            by_layer = chosen[chosen["quantile"] == quantile].set_index("layer")["r"].reindex(layers)
            marker = markers[f"{quantile:g}"]
            axes.plot(range(len(layers)), by_layer, color=shade, marker=marker, label=f"{quantile:g}", linewidth=0.8)
        axes.set_xticks(range(len(layers)), layers, rotation=90)
        axes.set_title(shorten(model))
        zero_line(axes)
    for axes in grid[len(models) :]:
        axes.set_visible(False)
    figure.supylabel("r of Lε with the ratings", fontsize=8)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="quantile that is ε", loc="outside lower center", ncols=6, title_fontsize=7)
    return figure


def _shades(number: int) -> list[tuple[float, float, float]]:
    """Blues from light to dark, readable on white and in grey."""
    light, dark = np.array([0.52, 0.74, 0.90]), np.array([0.0, 0.17, 0.33])
    return [tuple(light + (dark - light) * step) for step in np.linspace(0, 1, number)]


def forest(rows: pd.DataFrame, label: str) -> Figure:
    """Correlation in each group and over all, for the general scorer and the groups' own models.

    Args:
        rows: columns group, scorer, r, ci_low, ci_high, n; the order of `group` is kept, from the top.
        label: name of the correlated metric.
    """
    groups, scorers = list(dict.fromkeys(rows["group"])), list(dict.fromkeys(rows["scorer"]))
    colours, markers = dict(zip(scorers, _SCORER_COLOURS, strict=False)), marker_of(scorers)
    figure = Figure(figsize=(ONE_COLUMN_IN, 0.95 + 0.27 * len(groups)))
    axes = figure.subplots()
    height = {group: len(groups) - 1 - position for position, group in enumerate(groups)}
    for number, scorer in enumerate(scorers):
        chosen = rows[rows["scorer"] == scorer]
        y = np.array([height[group] for group in chosen["group"]]) + 0.15 * ((len(scorers) - 1) / 2 - number) * 2
        axes.hlines(y, chosen["ci_low"], chosen["ci_high"], color=colours[scorer], linewidth=1.1)
        axes.plot(chosen["r"], y, linestyle="none", marker=markers[scorer], color=colours[scorer], label=scorer)
    counts = rows.groupby("group", sort=False)["n"].max()
    axes.set_yticks(list(height.values()), [f"{shorten(group, 20)} ({counts[group]:.0f})" for group in groups])
    axes.set_ylim(-0.6, len(groups) - 0.4)
    zero_line(axes, axis="x")
    axes.set_xlabel(f"Pearson r with\n{label}" if len(label) > 15 else f"Pearson r, {label}")
    if len(scorers) > 1:
        figure.legend(loc="outside upper right", ncols=2)
    return figure


def estimators(rows: pd.DataFrame) -> Figure:
    """The honest R² beside the estimators of the literature, on the same images and metrics.

    Args:
        rows: columns label, estimator, value; estimators in the order of the legend, the honest one first.
    """
    names, labels = list(dict.fromkeys(rows["estimator"])), list(dict.fromkeys(rows["label"]))
    figure = Figure(figsize=(ONE_COLUMN_IN, 0.65 + 0.17 * len(names) + 0.25 * len(labels)))
    axes = figure.subplots()
    markers = marker_of(names)
    colours = dict(zip(names, [COLOURS[0], *(MUTED for _ in names[1:])], strict=True))
    height = {label: len(labels) - 1 - position for position, label in enumerate(labels)}
    for name in names:
        chosen = rows[rows["estimator"] == name]
        y = [height[label] for label in chosen["label"]]
        face = colours[name] if name == names[0] else "white"
        axes.plot(
            chosen["value"], y, linestyle="none", marker=markers[name], color=colours[name], markerfacecolor=face,
            label=name,
        )  # fmt: skip
    axes.set_yticks(list(height.values()), [shorten(label, 30) for label in labels])
    axes.set_ylim(-0.6, len(labels) - 0.4)
    zero_line(axes, axis="x")
    axes.set_xlabel("R²")
    figure.legend(loc="outside lower center", ncols=1)
    return figure
