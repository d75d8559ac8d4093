"""How the models trained and what they reconstruct."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from analysis.figures.plate import COLOURS, INK, TWO_COLUMNS_IN, colour_of, shorten

_TERM_NAMES = {
    "loss": "Loss",
    "kl": "KL divergence",
    "sharpness": "Sharpness of the batch",
    "reconstruction/l1": "L1 error",
    "reconstruction/l2": "L2 error",
    "reconstruction/ssim": "1 − SSIM",
}
_CROWD = "#b8b8b8"  # groups that are too many to have colours of their own
_LABEL_IN = 0.75  # room for the names of the rows
_PHASE_STYLES: dict[str, tuple[Any, float]] = {"train": (":", 0.9), "validation": ("-", 1.2)}


@dataclass(frozen=True)
class Strip:
    """One row of images.

    Attributes:
        label: what the row is.
        images: uint8 [columns, height, width, 3].
    """

    label: str
    images: np.ndarray


def loss_curves(curves: pd.DataFrame, groups: Sequence[str]) -> Figure:
    """Every loss term of one model against the epoch, one panel per term.

    Args:
        curves: columns group, seed, phase, epoch, term, value.
        groups: the groups, in the order of their colours.
    """
    terms = list(dict.fromkeys(curves["term"]))
    num_columns = min(3, len(terms))
    num_rows = math.ceil(len(terms) / num_columns)
    figure = Figure(figsize=(TWO_COLUMNS_IN, 0.35 + 1.9 * num_rows))
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    colours = _group_colours(groups)
    for axes, term in zip(grid, terms, strict=False):
        _term_panel(axes, curves[curves["term"] == term], colours)
        axes.set_title(_term_name(term))
    for axes in grid[len(terms) :]:
        axes.set_visible(False)
    present = {group: colours[group] for group in groups if group in set(curves["group"])}
    told_apart = {group: colour for group, colour in present.items() if colour != _CROWD}
    crowd = {} if len(told_apart) == len(present) else {"single groups": _CROWD}
    _legend_below(figure, told_apart | crowd)
    return figure


def _group_colours(groups: Sequence[str]) -> dict[str, str]:
    """A colour for each group; too many to tell apart are all grey, but for `all`."""
    if len(groups) <= len(COLOURS):
        return colour_of(groups)
    return {group: COLOURS[0] if group == "all" else _CROWD for group in groups}


def _term_name(term: str) -> str:
    """`reconstruction/lpips_vgg_random` → `LPIPS (vgg, random weights)`."""
    name = term.removeprefix("reconstruction/")
    if name.startswith("lpips_"):
        net, _, random = name.removeprefix("lpips_").partition("_")
        return f"LPIPS ({net}{', random weights' if random else ''})"
    return _TERM_NAMES.get(term, shorten(name))


def _term_panel(axes: Axes, rows: pd.DataFrame, colours: dict[str, str]) -> None:
    for (group, _seed, phase), line in rows.groupby(["group", "seed", "phase"], sort=False):
        style, width = _PHASE_STYLES.get(str(phase), ("--", 0.9))
        by_epoch = line.groupby("epoch")["value"].mean()
        marker = "o" if len(by_epoch) == 1 else None
        axes.plot(
            by_epoch.index,
            by_epoch,
            linestyle=style,
            linewidth=width,
            color=colours[str(group)],
            marker=marker,
            zorder=2 if colours[str(group)] == _CROWD else 3,
        )
    if _spans_decades(rows["value"]):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # no TeX: see plate.py
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Epoch")
    axes.set_xlim(rows["epoch"].min() - 0.5, rows["epoch"].max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _spans_decades(values: pd.Series) -> bool:
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and finite.min() > 0 and finite.max() > 20 * finite.min()


def _legend_below(figure: Figure, colours: dict[str, str]) -> None:
    handles = [Line2D([], [], color=colour, label=shorten(group)) for group, colour in colours.items()]
    handles += [
        Line2D([], [], color=INK, linestyle=style, linewidth=width, label=phase)
        for phase, (style, width) in _PHASE_STYLES.items()
    ]
    entry_in = 0.45 + 0.06 * max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(TWO_COLUMNS_IN / entry_in)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def reconstructions(strips: Sequence[Strip]) -> Figure:
    """Images of a data set above what the networks make of them: rows of originals and rows of reconstructions."""
    sheet, row_height = _sheet(strips)
    width = TWO_COLUMNS_IN - _LABEL_IN
    height = width * sheet.shape[0] / sheet.shape[1]
    figure = Figure(figsize=(TWO_COLUMNS_IN, height))
    figure.set_layout_engine("none")
    axes = figure.add_axes((_LABEL_IN / TWO_COLUMNS_IN, 0, width / TWO_COLUMNS_IN, 1))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.axis("off")
    for number, strip in enumerate(strips):
        y = (number + 0.5) * row_height
        axes.text(-0.01 * sheet.shape[1], y, strip.label, ha="right", va="center", fontsize=7)
    return figure


def _sheet(strips: Sequence[Strip]) -> tuple[np.ndarray, int]:
    """All images on one white sheet, uint8 [height, width, 3], and the height of a row."""
    side = strips[0].images.shape[1]
    gap = max(1, side // 16)
    columns = max(len(strip.images) for strip in strips)
    sheet = np.full((len(strips) * (side + gap), max(columns, 8) * (side + gap), 3), 255, dtype=np.uint8)
    for row, strip in enumerate(strips):
        for column, image in enumerate(strip.images):
            top, left = row * (side + gap), column * (side + gap)
            sheet[top : top + side, left : left + side] = image
    return sheet, side + gap
