"""What a report consists of, how numbers are written in it, and how it becomes one HTML file."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from analysis.figures import Plate, Shows, draw
from fluence.layout import Layout

_TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
NOTHING = "–"
_LAST = -1e308  # sorts missing numbers below all others


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what is printed.
        key: what the column is sorted by; None sorts by the text.
        link: id of the place in the page that it leads to; empty for none.
    """

    text: str
    key: float | None = None
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table, sortable by its headings.

    Attributes:
        caption: what it lists.
        columns: its headings.
        rows: its cells.
        file: the CSV it was taken from, relative to the report's folder; empty if there is none.
        folded: whether it is closed until somebody opens it.
        num_all: how many rows there are, where only the first of them are shown; else 0.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    file: str = ""
    folded: bool = False
    num_all: int = 0

    @property
    def extent(self) -> str:
        """How many rows it has: `24`, or `300 of 9,000`."""
        return f"{len(self.rows):,} of {self.num_all:,}" if self.num_all > len(self.rows) else f"{len(self.rows):,}"

    @property
    def kind(self) -> str:
        return "table"


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        plate: the figure.
        held: whether the page holds it, or only leads to its files.
    """

    plate: Plate
    held: bool = True

    @property
    def kind(self) -> str:
        return "picture"

    @property
    def narrow(self) -> bool:
        """Whether two of them fit side by side."""
        return self.plate.width_px <= 800

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return f"data:image/webp;base64,{base64.b64encode(self.plate.image).decode('ascii')}"


@dataclass(frozen=True)
class Text:
    """A paragraph, with a heading of its own if it has one.

    Attributes:
        text: the paragraph.
        heading: printed before it; empty for none.
        missing: whether it says that something is missing.
        link: id of the place in the page that it leads to, and the words that do; empty for none.
    """

    text: str
    heading: str = ""
    missing: bool = False
    link: tuple[str, str] | tuple[()] = ()

    @property
    def kind(self) -> str:
        return "text"


@dataclass(frozen=True)
class Listing:
    """A list of lines."""

    lines: tuple[str, ...]

    @property
    def kind(self) -> str:
        return "listing"


@dataclass(frozen=True)
class Heading:
    """The heading of a part of a chapter."""

    text: str

    @property
    def kind(self) -> str:
        return "heading"


@dataclass(frozen=True)
class Code:
    """Something to be copied, closed until somebody opens it.

    Attributes:
        caption: what it is.
        text: the lines.
    """

    caption: str
    text: str

    @property
    def kind(self) -> str:
        return "code"


Item = Table | Picture | Text | Listing | Heading | Code


@dataclass(frozen=True)
class Section:
    """A chapter of the report.

    Attributes:
        id: its anchor.
        title: its heading.
        items: what it holds, from the top.
    """

    id: str
    title: str
    items: Sequence[Item]


@dataclass(frozen=True)
class ModelPage:
    """All about one model, shown alone.

    Attributes:
        name: of the model.
        lead: what it is, in a few words.
        items: what the page holds, from the top.
    """

    name: str
    lead: str
    items: Sequence[Item]

    @property
    def id(self) -> str:
        return model_id(self.name)


def model_id(name: str) -> str:
    """The anchor of a model's page."""
    return f"model-{name}"


@dataclass(frozen=True)
class Caveat:
    """Something that qualifies the results, printed before them all.

    Attributes:
        text: one or two sentences.
        severe: whether it puts the result as a whole in doubt.
        details: the cases, one line each.
    """

    text: str
    severe: bool = False
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """The whole report.

    Attributes:
        title: name of the study.
        description: what the study asks.
        made: when, and with what.
        verdict: sentences that answer the question, the most important one first.
        key_items: figure and table that support it.
        caveats: what qualifies it.
        sections: all else.
        model_pages: a page for each model.
    """

    title: str
    description: str
    made: str
    verdict: tuple[str, ...]
    key_items: Sequence[Item]
    caveats: tuple[Caveat, ...]
    sections: Sequence[Section] = field(default_factory=tuple)
    model_pages: Sequence[ModelPage] = field(default_factory=tuple)


def drawn(
    layout: Layout, name: str, title: str, caption: str, figure_of: Callable[..., Any], *args: Any,
    shows: Shows = "numbers",
) -> Picture:  # fmt: skip
    """Draws a figure (a function of `analysis.figures` and its arguments) into the report's folder."""
    return Picture(draw(layout.figures, name, title, caption, figure_of, *args, shows=shows))


def render(page: Page) -> str:
    """The page as HTML that needs no other file. Everything that comes from the study is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = {kind: Markup((_TEMPLATES / f"report.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js")}
    return environment.get_template("report.html").render(page=page, **parts)


def number(value: object, digits: int = 3, *, sign: bool = False) -> str:
    """A number with a real minus sign; a dash if there is none."""
    if value is None or not math.isfinite(float(value)):  # type: ignore[arg-type]
        return NOTHING
    rounded = round(float(value), digits) + 0.0  # type: ignore[arg-type]  # + 0.0: no negative zero
    return f"{rounded:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def interval(low: object, high: object, digits: int = 3) -> str:
    """An interval in brackets; a dash if it is unknown."""
    texts = number(low, digits), number(high, digits)
    return NOTHING if NOTHING in texts else f"[{texts[0]}, {texts[1]}]"


def p_value(value: object) -> str:
    """A p-value to two digits, never zero."""
    if value is None or not math.isfinite(float(value)):  # type: ignore[arg-type]
        return NOTHING
    p = float(value)  # type: ignore[arg-type]
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_equals(value: object) -> str:
    """`p = 0.013`, `p < 0.001`."""
    text = p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def cell(value: object, digits: int = 3) -> Cell:
    """A cell from any value: numbers are aligned and sorted as numbers, missing ones are dashes."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return Cell(NOTHING, _LAST)
    if isinstance(value, bool) or not isinstance(value, Real):
        return Cell(str(value))
    value = float(value)
    whole = value.is_integer() and abs(value) < 1e15
    return Cell(f"{int(value):,}".replace("-", "−") if whole else number(value, digits), value)


def sortable(value: float) -> float:
    """What a probability or a correlation is sorted by: itself, above all others if it is missing."""
    return float(value) if math.isfinite(value) else 2.0


def counted(count: int, noun: str) -> str:
    """`1 run`, `1,200 runs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[object]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    texts = [str(word) for word in words]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else "none"
