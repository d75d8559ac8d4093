"""Tables that are read at a glance: correlations of all metrics with each other, and R² by model and family."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.figures.maps import DIVERGING, ink_on, paint
from analysis.figures.plate import DPI, INK, PALE, TWO_COLUMNS_IN, shorten

P_STEPS = {0.001: "p < .001", 0.01: "p < .01", 0.05: "p < .05", 1.0: "not below .05"}
"""Upper ends of the steps of p, and their names."""
_PALER = 1.6  # than the ends of the scale, which letters cannot be read on
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
    letters = 6.5 if size <= 24 else 5
    labels_in = 0.1 + letters * 0.55 / 72 * max(len(shorten(name)) for name in r.index)
    side_in = (TWO_COLUMNS_IN - labels_in - 0.15) / 2
    figure = Figure(figsize=(TWO_COLUMNS_IN, 0.75 + labels_in + side_in), dpi=DPI)  # small letters grow when rounded
    left, right = figure.subplots(1, 2, sharey=True)
    of_r = paint(left, r.to_numpy(float), DIVERGING, Normalize(-1, 1))
    steps = BoundaryNorm(np.arange(len(P_STEPS) + 1), ncolors=len(P_STEPS))
    of_p = paint(right, _step_of(p.to_numpy(float)), ListedColormap(_P_COLOURS), steps)
    for place in range(size):
        right.add_patch(Rectangle((place, place), 1, 1, facecolor="white", edgecolor="none"))  # nothing is tested there
    for axes in (left, right):
        axes.set_xticks(np.arange(size) + 0.5, [shorten(name) for name in r.columns], rotation=90, fontsize=letters)
        for place in np.cumsum(blocks)[:-1]:
            axes.axhline(place, color=INK, linewidth=0.6)
            axes.axvline(place, color=INK, linewidth=0.6)
    left.set_yticks(np.arange(size) + 0.5, [shorten(name) for name in r.index], fontsize=letters)
    left.set_title("Pearson r")
    right.set_title("its p, raw")
    right.set_title(n, loc="right", fontweight="normal", fontsize=7)
    bar = {"location": "bottom", "shrink": 0.8, "aspect": 30, "pad": 0.01}
    figure.colorbar(of_r, ax=left, ticks=[-1, -0.5, 0, 0.5, 1], **bar)
    legend = figure.colorbar(of_p, ax=right, **bar)
    legend.set_ticks(np.arange(len(P_STEPS)) + 0.5, labels=list(P_STEPS.values()))
    legend.ax.tick_params(length=0)
    return figure


def _step_of(p: np.ndarray) -> np.ndarray:
    """The number of the step that each p is in, NaN where there is none; their colours are equally wide in the bar."""
    steps = np.searchsorted(list(P_STEPS), np.nan_to_num(p), side="right")
    return np.where(np.isfinite(p), np.minimum(steps, len(P_STEPS) - 1) + 0.5, np.nan)


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
    scale = Normalize(-_PALER * reach, _PALER * reach)
    for axes, (title, table) in zip(grid, panels.items(), strict=True):
        paint(axes, table.to_numpy(float), DIVERGING, scale)
        _print_numbers(axes, table, stars[title], scale)
        axes.set_title(title)
        families = [textwrap.fill(shorten(str(name), 24), 12, break_long_words=False) for name in table.columns]
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
