"""The manifest of a data set: one row per image, checked, with its problems named by line.

A reader (`fluence.data.readers`) lists what it found as text; `checked` turns the listing into a `Manifest`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from fluence.errors import Mistake, StudyError
from fluence.study import Data, Dataset, group_slug

NUMBERS = ("beauty", "beauty_sd", "n_ratings", "age")
TEXTS = (
    *("image_id", "path", "ethnicity", "sex", "person_id", "duplicate_of", "split", "license"),
    *("score_variable", "rater_pool", "age_range", "subset"),
)
NO_NUMBER = frozenset({"", "na", "n/a", "nan", "null", "none"})
UNKNOWN = "unknown"
MOST_MISTAKES = 20

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_CODE = re.compile(r"[+-]?0\d")  # 007 is a name, no number


class Problem(NamedTuple):
    """An image that needs a word.

    Attributes:
        image_id: its id, or an empty string if it never got one.
        path: where it lies or should lie, relative to the root.
        line: line of the manifest, counted from 1, or NaN if there is no manifest.
        reason: what is the matter, in words.
        kept: whether the image is in the packed data set all the same.
    """

    image_id: str
    path: str
    line: float
    reason: str
    kept: bool = False


@dataclass(frozen=True)
class Listing:
    """What a reader found, not yet checked.

    Attributes:
        table: one row per image; text as it was written (empty if missing), or numbers.
        lines: line of each row in its file, NaN if it has none.
        files: file of each row, relative to the root.
        root: folder that `path` is relative to; None if the images are drawn.
        problems: what the reader left out.
        decimal: decimal sign of the numbers.
    """

    table: pd.DataFrame
    lines: Sequence[float]
    files: Sequence[str]
    root: Path | None
    problems: list[Problem] = field(default_factory=list)
    decimal: str = "."


@dataclass(frozen=True)
class Manifest:
    """The images of a data set.

    Attributes:
        table: one row per image: `image_id` (unique), `path` (relative to `root`), `group`, and every other column;
            numbers are float64 with NaN if missing, the rest is text and empty if missing.
        root: folder of the images; None if fluence draws them.
        problems: one row per image that was left out or kept with a reservation.
        lines: line of each row of `table` in its file, NaN if it has none.
    """

    table: pd.DataFrame
    root: Path | None
    problems: list[Problem]
    lines: Sequence[float]


def checked(listing: Listing, dataset: Dataset, data: Data) -> Manifest:
    """Checks a listing, renames values, converts numbers, and names ids and groups.

    Raises:
        StudyError: columns are missing, ids occur twice, ratings are no numbers, paths leave the root, or a value
            to be renamed does not occur; all at once, with their lines.
    """
    name = name_of(dataset, data)
    _raise_if_any(name, listing, _missing_columns(listing.table, dataset, data))
    table = listing.table.reset_index(drop=True)
    mistakes: list[Mistake] = []
    if listing.root is not None:
        mistakes += _clean_paths(table, listing)
    mistakes += _name_images(table, listing)
    mistakes += _rename_values(table, dataset)
    mistakes += _convert_numbers(table, listing, data)
    if _is_rated(dataset, data) and not mistakes:
        mistakes += _no_rating(table, data)
    _raise_if_any(name, listing, mistakes)
    problems = [*listing.problems, *_name_groups(table, listing, data)]
    return Manifest(table, listing.root, problems, listing.lines)


def name_of(dataset: Dataset, data: Data) -> str:
    """The name of a data set in its study."""
    return next((name for name, other in data.datasets.items() if other == dataset), dataset.kind)


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """A hint with the nearest of some words, or an empty string."""
    originals = {original.lower(): original for original in words}
    near = difflib.get_close_matches(word.lower(), originals, n=1)
    return f"did you mean {originals[near[0]]!r}?" if near else ""


def capped(mistakes: Sequence[Mistake]) -> tuple[Mistake, ...]:
    """The first mistakes, and how many more there are."""
    if len(mistakes) <= MOST_MISTAKES:
        return tuple(mistakes)
    rest = len(mistakes) - MOST_MISTAKES
    return (*mistakes[:MOST_MISTAKES], Mistake("…", f"and {rest} more"))


def clean_path(text: str) -> tuple[str, str]:
    """A path relative to the root, with forward slashes, and what is wrong with it (empty if nothing is)."""
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() or re.match(r"[A-Za-z]:", text):
        return str(path), "is absolute; it must be relative to root"
    if ".." in path.parts:
        return str(path), "leaves the folder root"
    return str(path), ""


# ── Checks of single columns; each changes the table in place and gives back the mistakes it met ─────────────────


def _missing_columns(table: pd.DataFrame, dataset: Dataset, data: Data) -> list[Mistake]:
    needed = dict.fromkeys(data.group_by, "data.group_by names it")
    needed |= dict.fromkeys(getattr(dataset, "values", {}), "values renames in it")
    if _is_rated(dataset, data):
        needed[data.score] = "data.score names it, and these are the rated images"
    return [missing_column(column, table.columns, why) for column, why in needed.items() if column not in table]


def missing_column(column: str, columns: Iterable[str], why: str) -> Mistake:
    """The mistake that a column is missing, with those that exist."""
    message = f"no such column ({why}); there are: {', '.join(columns)}"
    return Mistake(column, message, hint=did_you_mean(column, columns))


def _is_rated(dataset: Dataset, data: Data) -> bool:
    return data.datasets.get(data.rated) == dataset


def _clean_paths(table: pd.DataFrame, listing: Listing) -> list[Mistake]:
    cleaned = [clean_path(path) for path in table["path"]]
    table["path"] = [path for path, _ in cleaned]
    return [_at(listing, row, "path", f"{cleaned[row][0]!r} {why}") for row, (_, why) in enumerate(cleaned) if why]


def _name_images(table: pd.DataFrame, listing: Listing) -> list[Mistake]:
    """Gives every image an id, by default its path without the ending, where that is unique."""
    if "image_id" not in table:
        stems = table["path"].map(lambda path: str(PurePosixPath(path).with_suffix("")))
        table.insert(0, "image_id", stems.mask(stems.duplicated(keep=False), table["path"]))
    first: dict[str, int] = {}
    mistakes = []
    for row, image_id in enumerate(table["image_id"]):
        if not image_id:
            mistakes.append(_at(listing, row, "image_id", "is empty"))
        elif first.setdefault(image_id, row) != row:
            before = _at(listing, first[image_id], "image_id", "")
            mistakes.append(_at(listing, row, "image_id", f"{image_id!r} is also on line {before.line}"))
    return mistakes


def _rename_values(table: pd.DataFrame, dataset: Dataset) -> list[Mistake]:
    mistakes = []
    for column, names in dataset.values.items():
        original = table[column].astype(str)
        found = sorted(set(original) - {""})
        message = f"no image has it; there are: {', '.join(found[:MOST_MISTAKES])}"
        mistakes += [
            Mistake(f"values.{column}.{value}", message, hint=did_you_mean(value, found))
            for value in names
            if value not in found
        ]
        table[f"source_{column}"] = table[column]
        table[column] = original.map(lambda value, names=names: names.get(value, value))
    return mistakes


def _convert_numbers(table: pd.DataFrame, listing: Listing, data: Data) -> list[Mistake]:
    mistakes = []
    required = {*NUMBERS, data.score}
    for column in table.columns:
        values = table[column]
        if pd.api.types.is_numeric_dtype(values):
            table[column] = values.astype("float64")
        elif column in required:
            mistakes += _convert_required(table, column, listing)
        elif not (column in (*TEXTS, *data.group_by) or column.startswith("source_")) and _all_numbers(values, listing):
            table[column] = [_number(text, listing.decimal) for text in values]
    return mistakes


def _convert_required(table: pd.DataFrame, column: str, listing: Listing) -> list[Mistake]:
    texts = [str(value) for value in table[column]]
    numbers = [_number(text, listing.decimal) for text in texts]
    table[column] = pd.Series(numbers, index=table.index, dtype="float64")
    mistakes = []
    for row, (text, number) in enumerate(zip(texts, numbers, strict=True)):
        if why := _not_allowed(column, text, number):
            hint = "write ages as years; call ranges age_range" if column == "age" else ""
            mistakes.append(_at(listing, row, column, f"{text!r} {why}", hint))
    return mistakes


def _not_allowed(column: str, text: str, number: float) -> str:
    if math.isnan(number):
        return "" if text.lower() in NO_NUMBER else "is not a number"
    if column in ("beauty_sd", "age") and number < 0:
        return "is negative"
    return "must be a whole number above 0" if column == "n_ratings" and (number < 1 or number % 1) else ""


def _number(text: str, decimal: str) -> float:
    text = text.replace(decimal, ".") if decimal != "." else text
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    return number if math.isfinite(number) else math.nan


def _all_numbers(values: pd.Series, listing: Listing) -> bool:
    texts = [str(value) for value in values if str(value).lower() not in NO_NUMBER]
    return bool(texts) and not any(_CODE.match(text) or math.isnan(_number(text, listing.decimal)) for text in texts)


def _no_rating(table: pd.DataFrame, data: Data) -> Iterator[Mistake]:
    if table[data.score].notna().sum() == 0:
        yield Mistake(data.score, "not one image has a value, and these are the rated images")


def _name_groups(table: pd.DataFrame, listing: Listing, data: Data) -> Iterator[Problem]:
    """Adds the column `group`; an image without one of its values belongs to a group `unknown-…`."""
    keep_aside(table, ["group"])
    cells = [[str(value) for value in table[column]] for column in data.group_by]
    rows = list(zip(*cells, strict=True))
    table["group"] = [group_slug(tuple(value or UNKNOWN for value in row)) for row in rows]
    for row, values in enumerate(rows):
        if not all(values):
            missing = ", ".join(c for c, value in zip(data.group_by, values, strict=True) if not value)
            reason = f"no {missing}; its group is {table['group'][row]}"
            yield Problem(table["image_id"][row], table["path"][row], listing.lines[row], reason, kept=True)


def keep_aside(table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Renames columns of the user's that are about to be computed to `source_<column>`."""
    for column in columns:
        if column in table:
            table[f"source_{column}"] = table.pop(column)


def _at(listing: Listing, row: int, column: str, message: str, hint: str = "") -> Mistake:
    """A mistake with its line, and with its file if there are several."""
    key = f"{listing.files[row]}: {column}" if len(set(listing.files)) > 1 else column
    line = listing.lines[row]
    return Mistake(key, message, None if math.isnan(line) else int(line), hint)


def _raise_if_any(name: str, listing: Listing, mistakes: Sequence[Mistake]) -> None:
    if not mistakes:
        return
    files = ", ".join(dict.fromkeys(listing.files)) if len(set(listing.files)) <= 4 else f"{listing.root}"
    number = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
    raise StudyError(f"data.datasets.{name} ({files}): {number}", capped(mistakes))
