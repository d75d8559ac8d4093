"""The latents in the plane: one mark per rated image, coloured by what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.maps import SEQUENTIAL, UNKNOWN
from analysis.figures.plate import COLOURS, MARKERS, TWO_COLUMNS_IN, shorten

MOST_KINDS = 7
"""Kinds of image that are told apart by colour and marker; the rarer ones are grey."""
MOST_MAPS = 6
"""Maps that a row has at most."""
_LEGEND_IN = 1.25
_ELSE = "others"


@dataclass(frozen=True)
class Panel:
    """One map.

    Attributes:
        title: what is printed over it.
        points: columns x and y, indexed by image.
        axes: names of its axes.
    """

    title: str
    points: pd.DataFrame
    axes: tuple[str, str]


def latent_maps(panels: Sequence[Panel], known: Mapping[str, pd.Series]) -> Figure:
    """Maps side by side, in a row for each thing that is known of the images.

    Args:
        panels: the maps, a column each.
        known: name: values by image; numbers are shaded, words get a colour and a marker each.
    """
    side_in = min(2.0, (TWO_COLUMNS_IN - _LEGEND_IN) / len(panels))
    figure = Figure(figsize=(_LEGEND_IN + side_in * len(panels), 0.25 + (side_in + 0.08) * len(known)))
    grid = figure.subplots(len(known), len(panels), squeeze=False, sharex="col", sharey="col")
    for row, (name, values) in zip(grid, known.items(), strict=True):
        if pd.api.types.is_numeric_dtype(values):
            _shaded(figure, row, panels, name, values)
        else:
            _sorted_out(row, panels, name, values)
    for axes, panel in zip(grid[0], panels, strict=True):
        axes.set_title(panel.title)
    for axes, panel in zip(grid[-1], panels, strict=True):
        axes.set_xlabel(panel.axes[0], fontsize=7)
    for row in grid:
        for place, (axes, panel) in enumerate(zip(row, panels, strict=True)):
            if place == 0 or panel.axes[1] != panels[0].axes[1]:
                axes.set_ylabel(panel.axes[1], fontsize=7)
            axes.set_xticks([])  # the numbers mean nothing
            axes.set_yticks([])
            axes.set_box_aspect(1)
    return figure


def _size(num_points: int, num_panels: int) -> float:
    """Area of a mark in points²: the smaller the more there are in a panel, and the smaller the panels."""
    return float(np.clip(1800 / max(num_points, 1), 1.5, 14)) * min(1.0, 2.5 / num_panels)


def _shaded(figure: Figure, row: Sequence[Axes], panels: Sequence[Panel], name: str, values: pd.Series) -> None:
    finite = values[np.isfinite(values)]
    scale = Normalize(*(np.quantile(finite, (0.02, 0.98)) if len(finite) else (0, 1)))
    marks = None
    for axes, panel in zip(row, panels, strict=True):
        own = values.reindex(panel.points.index)
        x, y, known = panel.points["x"], panel.points["y"], np.isfinite(own)
        axes.scatter(x[~known], y[~known], s=_size(len(x), len(panels)), color=UNKNOWN, linewidth=0)
        marks = axes.scatter(
            x[known], y[known], s=_size(len(x), len(panels)), c=own[known], cmap=SEQUENTIAL, norm=scale, linewidth=0
        )
    if marks is not None:
        beside = row[-1].inset_axes((1.06, 0.05, 0.06, 0.9))
        figure.colorbar(marks, cax=beside, label=shorten(name, 24), extend="both")


def _sorted_out(row: Sequence[Axes], panels: Sequence[Panel], name: str, values: pd.Series) -> None:
    kinds = [str(kind) for kind in values.dropna().value_counts().index[:MOST_KINDS]]
    styles = dict(zip(sorted(kinds), zip(COLOURS, MARKERS, strict=True), strict=False))
    for axes, panel in zip(row, panels, strict=True):
        own = values.reindex(panel.points.index).astype(object)
        x, y = panel.points["x"], panel.points["y"]
        rest = ~own.isin(list(styles))
        axes.scatter(x[rest], y[rest], s=_size(len(x), len(panels)), color=UNKNOWN, linewidth=0)
        for kind, (colour, marker) in styles.items():
            of_kind = (own == kind).to_numpy()
            axes.scatter(
                x[of_kind],
                y[of_kind],
                s=_size(len(x), len(panels)),
                color=colour,
                marker=marker,
                linewidth=0,
                alpha=0.8,
            )
    handles = [
        Line2D([], [], linestyle="none", marker=marker, color=colour, label=shorten(kind, 16))
        for kind, (colour, marker) in styles.items()
    ]
    if values.isna().any() or values.nunique() > len(styles):
        handles.append(Line2D([], [], linestyle="none", marker="o", color=UNKNOWN, label=_ELSE))
    row[-1].legend(
        handles=handles, title=shorten(name, 18), title_fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5),
        borderaxespad=0.2, handletextpad=0.2,
    )  # fmt: skip
