"""How one metric and the ratings are distributed together."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.maps import SEQUENTIAL
from analysis.figures.plate import COLOURS, INK, ONE_COLUMN_IN, shorten

MOST_POINTS = 500
"""More images than this are counted in hexagons."""


def joint(points: pd.DataFrame, x_label: str, y_label: str, r: float, line: pd.DataFrame) -> Figure:
    """A metric against the ratings, with the histogram of each and the least-squares line with its interval.

    Args:
        points: columns x and y, one row per image.
        x_label: name of the metric.
        y_label: name of the ratings.
        r: Pearson's r, as the tables have it.
        line: columns x, mean, low, high: the mean rating at values of the metric, and its interval; empty for none.
    """
    figure = Figure(figsize=(ONE_COLUMN_IN, ONE_COLUMN_IN))
    grid = figure.add_gridspec(2, 2, width_ratios=(4.5, 1), height_ratios=(1, 4.5))
    axes = figure.add_subplot(grid[1, 0])
    points = points.dropna()
    x, y = points["x"].to_numpy(float), points["y"].to_numpy(float)
    if len(points) > MOST_POINTS:
        hexagons = axes.hexbin(x, y, gridsize=26, mincnt=1, cmap=SEQUENTIAL, linewidths=0.1)
        figure.colorbar(hexagons, ax=axes, location="bottom", label="images", shrink=0.6, aspect=30)
    else:
        axes.plot(x, y, ".", color=COLOURS[0], markersize=4, alpha=0.5, markeredgewidth=0)
    axes.plot(line["x"], line["mean"], color=INK, linewidth=1.2)
    axes.fill_between(line["x"], line["low"], line["high"], color=INK, alpha=0.2, linewidth=0)
    for place, values, orientation in ((grid[0, 0], x, "vertical"), (grid[1, 1], y, "horizontal")):
        shared = {"sharex": axes} if orientation == "vertical" else {"sharey": axes}
        _margin(figure.add_subplot(place, **shared), values, orientation)
    axes.set_xlabel(shorten(x_label, 50))
    axes.set_ylabel(shorten(y_label, 40))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    number = f"{r:+.2f}".replace("-", "−") if np.isfinite(r) else "not defined"
    words = {"transform": axes.transAxes, "ha": "left", "va": "top", "fontsize": 7}
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
    axes.text(0.03, 0.98, f"r = {number}\nn = {len(points):,}", color=INK, bbox=box, **words)
    return figure


def _margin(axes: Axes, values: np.ndarray, orientation: str) -> None:
    if len(values):
        axes.hist(values, bins=20, orientation=orientation, color=COLOURS[0], alpha=0.6)  # type: ignore[arg-type]
    axes.tick_params(labelbottom=False, labelleft=False, left=False, bottom=False)
    axes.set_xticks([]) if orientation == "horizontal" else axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(side == ("bottom" if orientation == "vertical" else "left"))
