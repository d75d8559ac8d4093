"""What a network does inside: maps of its layers, its gates, histograms of units and layers, and ways between codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from analysis.figures.comparisons import Style
from analysis.figures.plate import COLOURS, MARKERS, MUTED, TWO_COLUMNS_IN, shorten

_CELL_PX, _GAP_PX = 64, 4
_COLOUR_MAP = "viridis"  # read alike by all eyes, and in grey
_NOTE_IN = 0.6  # room beside a row of maps for a few words
_PANELS_ACROSS = 4
_UNITS_ACROSS = 5
_UNIT_BINS = 20
_VALUES_PER_BIN = 8
_LINES: Any = ("-", "--", "-.", ":")
_OVERLAY = 0.6  # share of the colours of a map over a face


@dataclass(frozen=True)
class MapRow:
    """Some maps of one layer.

    Attributes:
        label: printed before them.
        maps: [maps, rows, columns]; the darkest is the smallest value of the row, the brightest its largest.
        note: printed behind them.
    """

    label: str
    maps: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class UnitPanel:
    """Some units of a layer on every image.

    Attributes:
        title: printed above.
        values: [images, units].
        limits: of the axis that its units share; those of the values if None.
    """

    title: str
    values: np.ndarray
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class LayerHistogram:
    """How the values of a layer are distributed on one image.

    Attributes:
        label: of the network.
        counts: of the values that are not zero, [bins].
        edges: of the bins, [bins + 1].
        active: share of the layer's values that are not zero.
    """

    label: str
    counts: np.ndarray
    edges: np.ndarray
    active: float


def feature_maps(original: np.ndarray, rows: Sequence[MapRow], label: str = "image") -> Figure:
    """An image above maps of layers: uint8 [height, width, 3], and a row of maps for each layer or network."""
    strips = [_resized(original)[None], *(_coloured(row.maps) for row in rows)]
    sheet = _sheet([np.stack([_resized(cell) for cell in strip]) for strip in strips])
    labels, notes = [label, *(row.label for row in rows)], ["", *(row.note for row in rows)]
    return _figure_of_sheet(sheet, labels, notes)


def attention_maps(originals: np.ndarray, maps: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Images, and the same under the map of each layer that says where it looks.

    Args:
        originals: uint8 [images, height, width, 3].
        maps: name and gates in [0, 1], [images, rows, columns], of each layer; coloured from its least to its largest
            value.
    """
    columns = [originals, *(_overlaid(originals, values) for _, values in maps)]
    cells = [np.stack([_resized(column[row], 2 * _CELL_PX) for column in columns]) for row in range(len(originals))]
    sheet = _sheet(cells)
    side_in = min(1.15, TWO_COLUMNS_IN / len(columns))
    scale = side_in / (cells[0].shape[1] + _GAP_PX)
    title_in = 0.36
    width, height = sheet.shape[1] * scale, sheet.shape[0] * scale + title_in
    figure = Figure(figsize=(width, height))
    axes = _axes_of_sheet(figure, sheet, (0, 0, 1, 1 - title_in / height))
    titles = [
        "image",
        *(f"{shorten(name, 14)}\n{values.min():.2f}–{values.max():.2f}" for name, values in maps),
    ]
    for column, title in enumerate(titles):
        x = (column + 0.5) * sheet.shape[1] / len(columns)
        axes.text(x, -_GAP_PX, title, ha="center", va="bottom", fontsize=7 if side_in > 0.7 else 5)
    return figure


def gate_values(layers: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """The gates of each layer's channels on a few images: name and [images, channels]; channels by their mean."""
    figure, panels = _panels(len(layers), 1.5)
    for axes, (name, values) in zip(panels, layers, strict=True):
        order = np.argsort(-values.mean(0))
        for image, gates in enumerate(values):
            axes.plot(
                np.arange(len(order)) + 1, gates[order], linestyle="none", marker=MARKERS[image], markersize=2,
                color=COLOURS[image], label=f"image {image + 1}",
            )  # fmt: skip
        axes.set_title(shorten(name, 24))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("Channel (sorted)")
    figure.supylabel("Gate", fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(layers[0][1]))
    return figure


def unit_histograms(panels: Sequence[UnitPanel], across: int = _PANELS_ACROSS) -> Figure:
    """Histograms of single units over all images, up to 5 × 5 to a panel, `across` panels in a row.

    All units of a panel share one horizontal axis; each is as high as its fullest bin.
    """
    down = math.ceil(len(panels) / across)
    side_in = TWO_COLUMNS_IN / across
    row_in = min(side_in, 1.75) + 0.3
    figure = Figure(figsize=(TWO_COLUMNS_IN, down * row_in))
    axes = _axes_of_sheet(figure, None, (0, 0, 1, 1))
    axes.set_xlim(0, across)
    axes.set_ylim(down, 0)
    shapes: list[np.ndarray] = []
    dead: list[np.ndarray] = []
    for number, panel in enumerate(panels):
        corner = np.array([number % across + 0.04, number // across + 0.12])
        size = np.array([0.92, 0.74])
        low, high = panel.limits or (float(panel.values.min(initial=0)), float(panel.values.max(initial=0)))
        for unit in range(panel.values.shape[1]):
            place = corner + size * np.array([unit % _UNITS_ACROSS, unit // _UNITS_ACROSS]) / _UNITS_ACROSS
            box = size / _UNITS_ACROSS * 0.86
            values = panel.values[:, unit].astype(float)
            (shapes if np.ptp(values) else dead).append(_outline(values, low, high, place, box))
        axes.text(
            corner[0],
            corner[1] - 0.02,
            shorten(panel.title, int(24 * 4 / across)),
            va="bottom",
            fontsize=7,
            weight="bold",
        )
        axes.text(corner[0], corner[1] + size[1], _rounded(low), va="top", fontsize=6, color=MUTED)
        right = corner[0] + size[0] * 0.97
        axes.text(right, corner[1] + size[1], _rounded(high), va="top", ha="right", fontsize=6, color=MUTED)
    for outlines, colour in ((shapes, COLOURS[0]), (dead, COLOURS[1])):
        axes.add_collection(PolyCollection(outlines, facecolor=colour, edgecolor=colour, linewidth=0.2))
    return figure


def _outline(values: np.ndarray, low: float, high: float, place: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The outline of a histogram [points, 2] in a box whose upper left corner is `place`, y downwards."""
    counts, _ = np.histogram(values, _UNIT_BINS, range=(low, high) if high > low else (low - 0.5, low + 0.5))
    tops = np.repeat(place[1] + box[1] * (1 - counts / counts.max()), 2)
    sides = np.repeat(place[0] + box[0] * np.arange(_UNIT_BINS + 1) / _UNIT_BINS, 2)
    floor = place[1] + box[1]
    return np.column_stack([sides, [floor, *tops, floor]])


def _rounded(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def layer_histograms(layers: Sequence[tuple[str, Sequence[LayerHistogram]]], styles: dict[str, Style]) -> Figure:
    """How the values of each layer are distributed on one image, a line per network; zeros are counted in the panel.

    Args:
        layers: name of each layer, and its histogram in each network.
        styles: colour and marker of each network, by its label.
    """
    figure, panels = _panels(len(layers), 1.45)
    for axes, (name, histograms) in zip(panels, layers, strict=True):
        for place, one in enumerate(histograms):
            density, edges = _density(one)
            colour, line = styles[one.label][0], _LINES[place % len(_LINES)]
            axes.stairs(np.where(density > 0, density, np.nan), edges, color=colour, linestyle=line, linewidth=1.0)
            axes.text(
                0.97, 0.97 - 0.11 * place, f"{1 - one.active:.0%}", transform=axes.transAxes, ha="right", va="top",
                fontsize=6.5, color=colour,
            )  # fmt: skip
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5), numticks=4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # no TeX: see plate.py
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(shorten(name, 24))
        axes.set_xlabel("Value")
    labels = list(dict.fromkeys(one.label for _, histograms in layers for one in histograms))
    if len(labels) > 1:
        handles = [
            Line2D([], [], color=styles[label][0], linestyle=_LINES[place % len(_LINES)], label=shorten(label))
            for place, label in enumerate(labels)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    figure.supylabel("Density", fontsize=8)
    return figure


def _density(one: LayerHistogram) -> tuple[np.ndarray, np.ndarray]:
    """Density of a layer's values in each bin, and the edges; neighbouring bins are joined where few values are."""
    joined = 1
    while joined < len(one.counts) // 8 and one.counts.sum() * joined < _VALUES_PER_BIN * len(one.counts):
        joined *= 2
    counts, edges = np.add.reduceat(one.counts, np.arange(0, len(one.counts), joined)), one.edges[::joined]
    return one.active * counts / max(counts.sum(), 1) / np.diff(edges), edges


def ways_between(originals: np.ndarray, ways: np.ndarray) -> Figure:
    """Decoded images on the way from each image to the next, between the two as they are.

    Args:
        originals: uint8 [images, height, width, 3], one more than there are pairs.
        ways: uint8 [pairs, steps, height, width, 3].
    """
    side = originals.shape[1]
    gap = max(1, side // 16)
    pieces = [_sheet(list(rows), gap) for rows in (originals[:-1, None], ways, originals[1:, None])]
    apart = np.full((len(pieces[0]), side // 6, 3), 255, np.uint8)
    sheet = np.concatenate([pieces[0], apart, pieces[1], apart, pieces[2]], axis=1)
    figure = Figure(figsize=(TWO_COLUMNS_IN, TWO_COLUMNS_IN * sheet.shape[0] / sheet.shape[1]))
    _axes_of_sheet(figure, sheet, (0, 0, 1, 1))
    return figure


# ── Sheets of cells, drawn as one picture: a hundred axes would take seconds ─────────────────────────────────────


def _coloured(maps: np.ndarray) -> np.ndarray:
    """[maps, rows, columns] → uint8 [maps, rows, columns, 3], from the least to the largest value of all of them."""
    values = maps.astype(np.float64)
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.asarray(mpl.colormaps[_COLOUR_MAP](scaled, bytes=True))[..., :3]


def _overlaid(originals: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Grey images under coloured maps, uint8 [images, height, width, 3]."""
    grey = originals.mean(axis=-1, keepdims=True)
    height, width = originals.shape[1:3]
    coloured = [
        np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR)) for one in _coloured(maps)
    ]
    return (_OVERLAY * np.stack(coloured) + (1 - _OVERLAY) * grey).round().astype(np.uint8)


def _resized(image: np.ndarray, side: int = _CELL_PX) -> np.ndarray:
    """Small images enlarged without smoothing, large ones made smaller: uint8 [side, side, 3]."""
    small = max(image.shape[:2]) <= side
    how = Image.Resampling.NEAREST if small else Image.Resampling.BOX
    return np.asarray(Image.fromarray(image).resize((side, side), how))


def _sheet(rows: Sequence[np.ndarray], gap: int = _GAP_PX) -> np.ndarray:
    """Rows of cells uint8 [cells, side, side, 3] on one white sheet."""
    side, across = rows[0].shape[1], max(len(row) for row in rows)
    sheet = np.full((len(rows) * (side + gap), across * (side + gap), 3), 255, np.uint8)
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            top, left = number * (side + gap), column * (side + gap)
            sheet[top : top + side, left : left + side] = cell
    return sheet


def _figure_of_sheet(sheet: np.ndarray, labels: Sequence[str], notes: Sequence[str]) -> Figure:
    """A sheet at the width of two columns, with words before and behind each of its rows."""
    shown = [shorten(label, 26) for label in labels]
    label_in = min(max(0.1 + 0.055 * max(map(len, shown)), 0.6), 1.6)
    note_in = _NOTE_IN if any(notes) else 0.0
    width = TWO_COLUMNS_IN - label_in - note_in
    figure = Figure(figsize=(TWO_COLUMNS_IN, width * sheet.shape[0] / sheet.shape[1]))
    axes = _axes_of_sheet(figure, sheet, (label_in / TWO_COLUMNS_IN, 0, width / TWO_COLUMNS_IN, 1))
    row_height = sheet.shape[0] / len(labels)
    for number, (label, note) in enumerate(zip(shown, notes, strict=True)):
        y = (number + 0.5) * row_height - _GAP_PX / 2
        axes.text(-0.01 * sheet.shape[1], y, label, ha="right", va="center", fontsize=7)
        axes.text(1.005 * sheet.shape[1], y, note, ha="left", va="center", fontsize=6, color=MUTED)
    return figure


def _axes_of_sheet(figure: Figure, sheet: np.ndarray | None, place: tuple[float, float, float, float]) -> Axes:
    """Bare axes at a place of the figure, with a sheet if there is one."""
    figure.set_layout_engine("none")
    axes = figure.add_axes(place)
    if sheet is not None:
        axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.axis("off")
    return axes


def _panels(count: int, height_in: float) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, four in a row."""
    across = min(count, _PANELS_ACROSS)
    down = math.ceil(count / across)
    figure = Figure(figsize=(TWO_COLUMNS_IN * max(across, 2) / _PANELS_ACROSS, down * height_in + 0.4))
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, list(grid[:count])
