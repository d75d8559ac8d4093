"""Tables that are read at a glance: correlations of all metrics with each other, and R² by model and family."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.figures.maps import DIVERGING, UNKNOWN, ink_on, paint
from analysis.figures.plate import INK, PALE, TWO_COLUMNS_IN, shorten

P_STEPS = {0.001: "p < .001", 0.01: "p < .01", 0.05: "p < .05", 1.0: "not below .05"}
"""Upper ends of the steps of p, and their names."""
_P_COLOURS = ("#08306b", "#4292c6", "#c6dbef", PALE)


def correlation_matrix(r: pd.DataFrame, p: pd.DataFrame, blocks: Sequence[int], n: str) -> Figure:
    """Left: correlations of everything with everything. Right: their p in steps.

    Args:
        r: square, −1 to 1, NaN where there is none; named by the labels of its rows and columns.
        p: the same for p.
        blocks: number of rows of each family, from the top; a line is drawn between families.
        n: words on the number of images.
    """
    size = len(r)
    letters = 6.5 if size <= 24 else 5.2
    width_in, labels_in = TWO_COLUMNS_IN, 0.06 * max(len(shorten(name)) for name in r.index)
    figure = Figure(figsize=(width_in, 0.95 + labels_in + (width_in - labels_in - 0.3) / 2))
    left, right = figure.subplots(1, 2, sharey=True)
    coloured = paint(left, r.to_numpy(float), DIVERGING, Normalize(-1, 1))
    steps = BoundaryNorm([0, *P_STEPS], ncolors=len(P_STEPS))
    paint(right, p.to_numpy(float), ListedColormap(_P_COLOURS), steps)
    for axes in (left, right):
        axes.set_aspect("equal")
        axes.set_xticks(np.arange(size) + 0.5, [shorten(name) for name in r.columns], rotation=90, fontsize=letters)
        for place in np.cumsum(blocks)[:-1]:
            axes.axhline(place, color=INK, linewidth=0.6)
            axes.axvline(place, color=INK, linewidth=0.6)
    left.set_yticks(np.arange(size) + 0.5, [shorten(name) for name in r.index], fontsize=letters)
    left.set_title("Pearson r")
    right.set_title("its p, raw")
    right.text(1, 1.01, n, transform=right.transAxes, ha="right", va="bottom", fontsize=7)
    figure.colorbar(coloured, ax=left, location="bottom", shrink=0.7, aspect=30, pad=0.02)
    patches = [Patch(facecolor=c, edgecolor="#999999", linewidth=0.4, label=name) for c, name in _steps_named(p)]
    right.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, _below(labels_in, width_in)), ncols=2)
    return figure


def _below(labels_in: float, width_in: float) -> float:
    """Where the legend stands in heights of the panel: under the names of its columns."""
    return -0.06 - labels_in / ((width_in - labels_in - 0.3) / 2)


def _steps_named(p: pd.DataFrame) -> list[tuple[str, str]]:
    named = list(zip(_P_COLOURS, P_STEPS.values(), strict=True))
    return [*named, (UNKNOWN, "no number")] if p.isna().any(axis=None) else named


def ridge_heat(panels: Mapping[str, pd.DataFrame], stars: Mapping[str, pd.DataFrame]) -> Figure:
    """R² by model and family of metrics, printed in cells that are coloured by it; a panel per estimate.

    Args:
        panels: title: model × family, R²; NaN where there is none.
        stars: title: model × family, whether a star follows the number.
    """
    first = next(iter(panels.values()))
    figure = Figure(figsize=(TWO_COLUMNS_IN, 0.75 + 0.2 * len(first)))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    reach = max(0.05, np.nanmax(np.abs([table.to_numpy(float) for table in panels.values()]), initial=0))
    scale = Normalize(-reach, reach)
    for axes, (title, table) in zip(grid, panels.items(), strict=True):
        paint(axes, table.to_numpy(float), DIVERGING, scale)
        _print_numbers(axes, table, stars[title], scale)
        axes.set_title(title)
        families = [textwrap.fill(shorten(str(name), 24), 12) for name in table.columns]
        axes.set_xticks(np.arange(table.shape[1]) + 0.5, families, fontsize=6.5)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
    grid[0].set_yticks(np.arange(len(first)) + 0.5, [shorten(str(name), 26) for name in first.index])
    return figure


def _print_numbers(axes: Axes, table: pd.DataFrame, stars: pd.DataFrame, scale: Normalize) -> None:
    """`.106`, as the literature prints R²."""
    size = 7 if table.shape[1] <= 5 else 6
    for row, column in np.argwhere(np.isfinite(table.to_numpy(float))):
        value = float(table.iat[row, column])
        text = f"{value:.3f}".replace("0.", ".", 1).replace("-", "−") + ("*" if stars.iat[row, column] else "")
        colour = ink_on(DIVERGING(scale(value)))
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=colour)
