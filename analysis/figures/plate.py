"""One look for all figures, and the one way a figure reaches the disk and the report."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from analysis.figures.fonts import families
from fluence.store.files import atomic_path

ONE_COLUMN_IN, TWO_COLUMNS_IN = 3.5, 7.0
Shows = Literal["numbers", "ratings", "images"]
"""What a figure shows: summaries, a mark for each rated image, or pictures."""
WIDEST_LABEL = 24  # characters beside a panel of a grid, which would otherwise run into the next one's
DPI = 200
_PHOTOGRAPHS_DPI = 150  # in the page, which holds all of them; the files have all dots
INK, MUTED, PALE = "#1a1a1a", "#767676", "#eeeeee"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito 2008, without the yellow, which vanishes on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LOOK: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # names come from users: a dollar sign is a dollar sign
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Plate:
    """A figure on its way into the report.

    Attributes:
        name: stem of its files.
        title: what it shows.
        caption: how to read it.
        image: WebP, for the page; drawings lose nothing by it.
        width_px: width of the figure, at the resolution of drawings.
        height_px: height of the figure.
    """

    name: str
    title: str
    caption: str
    image: bytes
    width_px: int
    height_px: int


def draw(
    folder: Path, name: str, title: str, caption: str, figure_of: Callable[..., Figure], *args: Any,
    shows: Shows = "numbers",
) -> Plate:  # fmt: skip
    """Draws a figure in the common look and writes it to `folder` as PNG and PDF, with what it is in their metadata.

    Args:
        folder: where the files go.
        name: stem of the files.
        title: for the report.
        caption: for the report.
        figure_of: one of the functions of this package, called with `args`.
        args: what the figure is drawn from.
        shows: `ratings` if each rated image is a mark in it, `numbers` if not; pictures are recognised.
    """
    with look():
        figure = figure_of(*args)
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        figure.set_layout_engine("none")  # it is laid out now; drawing would do it again
        photographs = any(axes.images for axes in figure.axes)
        words = {"Title": title, "Description": caption, "Shows": "images" if photographs else shows}
        pixels = _pixels(figure)
        drawing = pixels if photographs else _few_colours(pixels)
        for kind, content in {"png": _png(drawing, words), "pdf": _pdf(figure, words)}.items():
            with atomic_path(folder / f"{name}.{kind}", durable=False) as temporary:
                temporary.write_bytes(content)
        image = _photographs(pixels) if photographs else _without_loss(drawing)
    width, height = (round(side * DPI) for side in figure.get_size_inches())
    return Plate(name, title, caption, image, width, height)


@contextmanager
def look() -> Iterator[None]:
    """The settings of all figures, and silence about letters that the font lacks."""
    with mpl.rc_context(_LOOK | {"font.family": families()}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


def _pixels(figure: Figure) -> Image.Image:
    """The figure, drawn once for the page and for the file."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.frombytes("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")


def _few_colours(pixels: Image.Image) -> Image.Image:
    """A drawing with at most 256 colours, which are all that lines and letters need: a third of the bytes."""
    return pixels.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _png(image: Image.Image, words: Mapping[str, str]) -> bytes:
    target, about = io.BytesIO(), PngInfo()
    for name, text in words.items():
        about.add_itxt(name, text)
    image.save(target, format="PNG", dpi=(DPI, DPI), pnginfo=about)
    return target.getvalue()


def _pdf(figure: Figure, words: Mapping[str, str]) -> bytes:
    about = {"Title": words["Title"], "Subject": words["Description"], "Keywords": words["Shows"]}
    target = io.BytesIO()
    metadata = {"CreationDate": None, "Producer": None, "Creator": None} | about
    figure.savefig(target, format="pdf", dpi=DPI, facecolor="white", metadata=metadata)
    return target.getvalue()


def _without_loss(drawing: Image.Image) -> bytes:
    """A drawing as WebP: the same pixels in two thirds of the bytes."""
    target = io.BytesIO()
    drawing.convert("RGB").save(target, format="WEBP", lossless=True, method=4)
    return target.getvalue()


def _photographs(pixels: Image.Image) -> bytes:
    """Photographs as WebP, smaller and with what the eye does not miss left out."""
    size = [round(side * _PHOTOGRAPHS_DPI / DPI) for side in pixels.size]
    target = io.BytesIO()
    pixels.resize((size[0], size[1]), Image.Resampling.LANCZOS).save(target, format="WEBP", quality=85)
    return target.getvalue()


def colour_of(names: Sequence[str]) -> dict[str, str]:
    """The colour of each name, by its position."""
    return {name: COLOURS[position % len(COLOURS)] for position, name in enumerate(names)}


def marker_of(names: Sequence[str]) -> dict[str, str]:
    """The marker of each name, by its position, so that no figure depends on colour alone."""
    return {name: MARKERS[position % len(MARKERS)] for position, name in enumerate(names)}


def zero_line(axes: Axes, *, axis: Literal["x", "y"] = "y") -> None:
    """A thin line where nothing is found."""
    line = axes.axhline if axis == "y" else axes.axvline
    line(0, color=MUTED, linewidth=0.6, zorder=0)


def shorten(text: str, length: int = 28) -> str:
    """Text that fits on an axis."""
    return text if len(text) <= length else text[: length - 1] + "…"
