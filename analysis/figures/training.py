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
    "codebook": "Distance of entries to codes",
    "commitment": "Distance of codes to entries",
    "perplexity": "Perplexity of the codebook",
    "reconstruction/l1": "L1 error",
    "reconstruction/l2": "L2 error",
    "reconstruction/ssim": "1 − SSIM",
    "sparsity/kl": "KL sparsity",
    "sparsity/l0": "L0 sparsity",
    "sparsity/l1": "L1 sparsity",
    "attention/l1": "L1 of gates",
    "sharpness": "Sharpness, L(W + ε̂) − L(W)",
}
_PER_LAYER = ("sparsity/", "attention/")
_CROWD = "#b8b8b8"  # groups that are too many to have colours of their own
_LABEL_IN = (0.75, 1.6)  # least and most room for the names of the rows
PHASE_STYLES: dict[str, tuple[Any, float]] = {"train": (":", 0.9), "validation": ("-", 1.2)}


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
    figure, panels = term_panels(list(dict.fromkeys(curves["term"])))
    colours = _group_colours(groups)
    for term, axes in panels.items():
        _term_panel(axes, curves[curves["term"] == term], colours)
    present = {group: colours[group] for group in groups if group in set(curves["group"])}
    told_apart = {group: colour for group, colour in present.items() if colour != _CROWD}
    crowd = {} if len(told_apart) == len(present) else {"single groups": _CROWD}
    handles = [Line2D([], [], color=colour, label=shorten(group)) for group, colour in (told_apart | crowd).items()]
    legend_below(figure, handles)
    return figure


def term_panels(terms: Sequence[str]) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel for each term of a loss, in rows of three, each under its name."""
    num_columns = min(3, len(terms))
    num_rows = math.ceil(len(terms) / num_columns)
    figure = Figure(figsize=(TWO_COLUMNS_IN, 0.35 + 1.9 * num_rows))
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, term in zip(grid, terms, strict=False):
        axes.set_title(term_name(term))
    for axes in grid[len(terms) :]:
        axes.set_visible(False)
    return figure, dict(zip(terms, grid, strict=False))


def family_of(term: str) -> str:
    """A term without its layer: `sparsity/kl/conv3` → `sparsity/kl`; a term of no layer is its own family."""
    return "/".join(term.split("/")[:2]) if term.startswith(_PER_LAYER) else term


def _group_colours(groups: Sequence[str]) -> dict[str, str]:
    """A colour for each group; too many to tell apart are all grey, but for `all`."""
    if len(groups) <= len(COLOURS):
        return colour_of(groups)
    return {group: COLOURS[0] if group == "all" else _CROWD for group in groups}


def term_name(term: str) -> str:
    """`reconstruction/lpips_vgg_random` → `LPIPS (vgg, random weights)`, `sparsity/kl` → `KL sparsity, …`."""
    if term.startswith(_PER_LAYER) and family_of(term) == term:
        return f"{_TERM_NAMES.get(term, shorten(term, 20))}, sum over layers"
    name = term.removeprefix("reconstruction/")
    if name.startswith("lpips_"):
        net, _, random = name.removeprefix("lpips_").partition("_")
        return f"LPIPS ({net}{', random weights' if random else ''})"
    if name.startswith("dfc_"):
        return f"DFC ({shorten(name.removeprefix('dfc_').replace('_random', ', random weights'), 24)})"
    if name.startswith("attribute/"):
        return f"Disorder along {shorten(name.removeprefix('attribute/'))}"
    return _TERM_NAMES.get(term, shorten(name))


def _term_panel(axes: Axes, rows: pd.DataFrame, colours: dict[str, str]) -> None:
    for (group, _seed, phase), line in rows.groupby(["group", "seed", "phase"], sort=False):
        style, width = PHASE_STYLES.get(str(phase), ("--", 0.9))
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
    scale_of_term(axes, rows)


def scale_of_term(axes: Axes, rows: pd.DataFrame) -> None:
    """Gives a panel its scales: logarithmic where positive values span more than a factor of 20; whole epochs."""
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


def legend_below(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend of lines, then of the two phases, in as many columns as fit below the figure."""
    phases = [
        Line2D([], [], color=INK, linestyle=style, linewidth=width, label=phase)
        for phase, (style, width) in PHASE_STYLES.items()
    ]
    entries = [*handles, *phases]
    entry_in = 0.45 + 0.06 * max(len(str(entry.get_label())) for entry in entries)
    columns = max(1, min(len(entries), int(TWO_COLUMNS_IN / entry_in)))
    figure.legend(handles=entries, loc="outside lower center", ncols=columns)


def reconstructions(strips: Sequence[Strip]) -> Figure:
    """Images of a data set above what the networks make of them: rows of originals and rows of reconstructions."""
    sheet, row_height = _sheet(strips)
    labels = [shorten(strip.label, 26) for strip in strips]
    label_in = min(max(0.1 + 0.058 * max(map(len, labels)), _LABEL_IN[0]), _LABEL_IN[1])
    width = TWO_COLUMNS_IN - label_in
    height = width * sheet.shape[0] / sheet.shape[1]
    figure = Figure(figsize=(TWO_COLUMNS_IN, height))
    figure.set_layout_engine("none")
    axes = figure.add_axes((label_in / TWO_COLUMNS_IN, 0, width / TWO_COLUMNS_IN, 1))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.axis("off")
    for number, label in enumerate(labels):
        y = (number + 0.5) * row_height
        axes.text(-0.01 * sheet.shape[1], y, label, ha="right", va="center", fontsize=7)
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
