"""Models side by side: how they trained, and what their layers are like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.plate import COLOURS, MARKERS, MUTED, PALE, TWO_COLUMNS_IN, shorten
from analysis.figures.training import PHASE_STYLES, legend_below, scale_of_term, term_panels

MOST_PANELS = 9
"""Panels that a figure of loss terms has at most."""

Style = tuple[str, str]
"""Colour and marker of a model."""

_COLOURS = (*COLOURS, MUTED)  # eight, and seven markers: together they tell 56 models apart
_OTHERS = "#cccccc"
_PANELS_PER_ROW = 4


def style_of(models: Sequence[str]) -> dict[str, Style]:
    """Colour and marker of each model, by its position; from the ninth on colours return with another marker."""
    return {
        model: (_COLOURS[place % len(_COLOURS)], MARKERS[place % len(MARKERS)]) for place, model in enumerate(models)
    }


def compared_curves(curves: pd.DataFrame, styles: Mapping[str, Style]) -> Figure:
    """The loss terms of several models against the epoch: a panel per term, a line per run and phase.

    Args:
        curves: columns model, seed, phase, epoch, term, value; panels in the order of the terms.
        styles: model: its colour and marker, in the order of the legend.
    """
    figure, panels = term_panels(list(dict.fromkeys(curves["term"])))
    for term, axes in panels.items():
        rows = curves[curves["term"] == term]
        for model, style in styles.items():
            _runs_of_model(axes, rows[rows["model"] == model], style)
        scale_of_term(axes, rows)
        axes.set_xlim(curves["epoch"].min() - 0.5, curves["epoch"].max() + 0.5)
    present = set(curves["model"])
    handles = [
        Line2D([], [], color=colour, marker=marker, label=shorten(model))
        for model, (colour, marker) in styles.items()
        if model in present
    ]
    legend_below(figure, handles)
    return figure


def _runs_of_model(axes: Axes, rows: pd.DataFrame, style: Style) -> None:
    """Thin lines where there are several seeds; a marker at the end of the solid ones, or of all if there are none."""
    colour, marker = style
    thinner = 0.6 if rows["seed"].nunique() > 1 else 1.0
    marked = "validation" if "validation" in set(rows["phase"]) else "train"
    for (_seed, phase), line in rows.groupby(["seed", "phase"], sort=False):
        by_epoch = line.groupby("epoch")["value"].mean()
        pattern, width = PHASE_STYLES.get(str(phase), ("--", 0.9))
        axes.plot(
            by_epoch.index,
            by_epoch,
            linestyle=pattern,
            linewidth=thinner * width,
            color=colour,
            marker=marker if phase == marked else None,
            markevery=[len(by_epoch) - 1],
            markersize=3,
            clip_on=False,  # the last epoch is at the edge
        )


def metric_by_layer(rows: pd.DataFrame, label: str, styles: Mapping[str, Style], layers: Sequence[str]) -> Figure:
    """A metric by layer: a panel per model, with the other models in grey behind it.

    Args:
        rows: columns model, place, mean, low, high, in the order of the layers; place is the number of the layer
            from 0, or its relative depth from 0 to 1 if `layers` is empty.
        label: name of the metric.
        styles: model: its colour and marker, in the order of the panels.
        layers: names of the layers, the same for all models; empty if they differ.
    """
    models = [model for model in styles if model in set(rows["model"])]
    num_columns = min(_PANELS_PER_ROW, max(2, len(models)))
    num_rows = math.ceil(len(models) / num_columns)
    below_in = (0.1 + 0.055 * max(map(len, layers))) if layers else 0.2
    figure = Figure(figsize=(TWO_COLUMNS_IN, 0.3 + below_in + 1.35 * num_rows))
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, model in zip(grid, models, strict=False):
        for other in models:
            _line_of_model(axes, rows[rows["model"] == other], styles[other], behind=other != model)
        axes.set_title(shorten(model, 26))
        axes.grid(axis="y", color=PALE, linewidth=0.6)
    for axes in grid[len(models) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(models) - num_columns) : len(models)]:
        axes.tick_params(labelbottom=True)
        _name_places(axes, layers)
    figure.supylabel(label, fontsize=8)
    if not layers:
        figure.supxlabel("Relative depth, from the first layer (0) to the code (1)", fontsize=8)
    return figure


def _line_of_model(axes: Axes, rows: pd.DataFrame, style: Style, *, behind: bool) -> None:
    colour, marker = style
    if behind:
        axes.plot(rows["place"], rows["mean"], color=_OTHERS, linewidth=0.8, zorder=1)
        return
    axes.fill_between(rows["place"], rows["low"], rows["high"], color=colour, alpha=0.25, linewidth=0, zorder=2)
    axes.plot(rows["place"], rows["mean"], color=colour, marker=marker, markersize=3, zorder=3)


def _name_places(axes: Axes, layers: Sequence[str]) -> None:
    if layers:
        size = 7 if len(layers) <= 10 else 6
        axes.set_xticks(np.arange(len(layers)), [shorten(name, 16) for name in layers], rotation=90, fontsize=size)
    else:
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
