"""CSV files as people have them: with a byte order mark, semicolons, blank lines, and rows of the wrong length."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fluence.data.manifest import capped, did_you_mean
from fluence.errors import Mistake, StudyError


@dataclass(frozen=True)
class CsvText:
    """A CSV file as text.

    Attributes:
        table: one row per record, every cell stripped text.
        lines: line at which each record begins, counted from 1.
        odd: line and wording of each record that has more or fewer cells than the header.
        decimal: `,` in files separated by semicolons, `.` otherwise.
    """

    table: pd.DataFrame
    lines: list[int]
    odd: list[tuple[int, str]]
    decimal: str


def read_csv_text(path: Path) -> CsvText:
    """Reads a CSV file separated by commas, semicolons or tabs.

    Raises:
        StudyError: the file is missing, empty, no UTF-8, no CSV, or names a column twice.
    """
    text = _decoded(path)
    delimiter = _delimiter(text)
    records = _records(path, text, delimiter)
    _, header = next(records, (0, []))
    if not header:
        raise StudyError(f"{path}: empty file; expected a header line such as path,beauty")
    columns = _column_names(path, header)
    rows: list[list[str]] = []
    lines: list[int] = []
    odd: list[tuple[int, str]] = []
    for line, cells in records:
        while len(cells) > len(columns) and not cells[-1]:
            cells.pop()
        if len(cells) == len(columns):
            rows.append(cells)
            lines.append(line)
        else:
            odd.append((line, f"has {len(cells)} cells, the header names {len(columns)}"))
    if not rows and not odd:
        raise StudyError(f"{path}: no rows below the header")
    return CsvText(pd.DataFrame(rows, columns=columns, dtype=object), lines, odd, "," if delimiter == ";" else ".")


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise StudyError(f"{path}: no such file{_others(path)}") from error
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = f"byte 0x{content[error.start]:02x} is not UTF-8"
        raise StudyError(str(path), (Mistake("encoding", found, line, "save the file as CSV UTF-8"),)) from error


def _others(path: Path) -> str:
    names = sorted(other.name for other in path.parent.glob("*.csv"))
    if not names:
        return ""
    hint = did_you_mean(path.name, names)
    return f"; that folder holds {', '.join(names[:10])}" + (f" ({hint})" if hint else "")


def _delimiter(text: str) -> str:
    """The separator that occurs most often in the header, outside quotes."""
    header = "".join(next((line for line in text.splitlines() if line.strip()), "").split('"')[::2])
    return max(",;\t", key=header.count)


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not blank, with the line at which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise StudyError(str(path), (Mistake("quotes", f"no CSV from here on ({error})", line),)) from error


def _column_names(path: Path, header: list[str]) -> list[str]:
    """The names of the columns; one without a name, such as a saved row number, is called by its position."""
    names = [name or f"column_{position}" for position, name in enumerate(header, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise StudyError(str(path), capped([Mistake(name, "names two columns", 1) for name in twice]))
    return names
