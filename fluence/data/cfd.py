"""Chicago Face Database 3.0: neutral photographs joined to the norming workbook by the model's name.

Photographs are called `CFD-<ethnicity><sex>-<model>-<shot>[-n]-<expression>.jpg`; only the neutral ones (N) are
rated. The workbook calls a model `AF-200`, but `IF601-519` or `IF644-306-1` in the Indian set, where it adds the shot.
`Attractive` is R013 (relative to others of the same race and sex) in CFD and CFD-MR and R013B (absolute) in
CFD-INDIA: the columns `score_variable` and `rater_pool` tell them apart.

Source: Ma, Correll & Wittenbrink (2015), Behavior Research Methods 47; Ma, Kantner & Wittenbrink (2020);
Lakshmi, Wittenbrink, Correll & Ma (2021).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from fluence.data.manifest import Listing, Problem
from fluence.data.tree import files_below, is_image
from fluence.errors import StudyError
from fluence.study import CfdDataset

WORKBOOK = "CFD 3.0 Norming Data and Codebook.xlsx"
ETHNICITIES = {"A": "asian", "B": "black", "L": "latino", "W": "white", "M": "multiracial", "I": "indian"}
SEXES = {"F": "female", "M": "male"}
SHEETS = {
    ("CFD", "US"): ("CFD U.S. Norming Data", "R013"),
    ("CFD-MR", "US"): ("CFD-MR U.S. Norming Data", "R013"),
    ("CFD-INDIA", "US"): ("CFD-I U.S. Norming Data", "R013B"),
    ("CFD-INDIA", "INDIA"): ("CFD-I INDIA Norming Data", "R013B"),
}
STANDARD_NAMES = {"Attractive": "beauty", "AgeRated": "age", "NumberofRaters": "n_ratings"}

_PHOTOGRAPH = re.compile(r"CFD-([ABLWMI])([FM])-(\d+)-(\d+)(?:-(\d+))?-(N|HO|HC|A|F)\.jpe?g", re.IGNORECASE)
_MODEL = re.compile(r"([ABLWMI][FM])-?(\d+(?:-\d+)*)")


@dataclass(frozen=True)
class Photograph:
    """One neutral photograph.

    Attributes:
        path: relative to the root of the data set.
        person: ethnicity, sex and number of the model, `AF-200`.
        shot: number of the shot.
        take: number of the take if a model has several neutral photographs, otherwise None.
    """

    path: str
    person: str
    shot: str
    take: str | None

    @property
    def keys(self) -> tuple[str, ...]:
        """Names that the workbook may give it, the most exact first; only a sole or first take goes by its model."""
        shot = f"{self.person}-{self.shot}"
        if self.take is None:
            return (shot, self.person)
        return (f"{shot}-{self.take}", *((shot, self.person) if self.take == "1" else ()))


@dataclass(frozen=True)
class Norms:
    """One sheet of the workbook.

    Attributes:
        rows: line of the sheet and cells by column name, for each model.
        score_variable: code of the question behind `beauty`.
        problems: rows whose first cell names no model.
    """

    rows: dict[str, tuple[int, dict[str, str]]]
    score_variable: str
    problems: list[Problem]


Rated = tuple[Photograph, float, dict[str, str]]  # with the line of the sheet and its cells by column name


def read_cfd(dataset: CfdDataset, root: Path) -> Listing:
    """Lists the neutral photographs of the chosen subsets with their norms."""
    workbook = find_workbook(root)
    records: list[dict[str, str]] = []
    lines: list[float] = []
    files: list[str] = []
    problems: list[Problem] = []
    for subset in dataset.subsets:
        pool = dataset.india_raters if subset == "CFD-INDIA" else "US"
        sheet, question = SHEETS[subset, pool]
        norms = _read_sheet(workbook, sheet, question)
        photographs, odd = _photographs(root, find_subset(workbook.parent, subset))
        joined, unmatched = _join(photographs, norms)
        problems += [*norms.problems, *odd, *unmatched]
        constant = {"subset": subset, "rater_pool": pool, "score_variable": norms.score_variable}
        for photograph, line, cells in joined:
            records.append({**_describe(photograph), **constant, **cells})
            lines.append(line)
            files.append(f"{workbook.name}, {sheet}")
    table = pd.DataFrame(records, dtype=object).fillna("")
    return Listing(table, lines, files, root, problems)


def find_workbook(root: Path) -> Path:
    """The norming workbook in the root, or in the folder `CFD Version 3.0` below it.

    Raises:
        StudyError: there is none.
    """
    for folder in (root, root / "CFD Version 3.0"):
        if (folder / WORKBOOK).is_file():
            return folder / WORKBOOK
    found = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing"
    raise StudyError(f"{root}: {WORKBOOK!r} is not there; the folder holds {found}; give the folder with it and Images")


def find_subset(folder: Path, subset: str) -> Path:
    """The folder of the photographs of one subset.

    Raises:
        StudyError: there is none.
    """
    images = folder / "Images" / subset
    if images.is_dir():
        return images
    found = ", ".join(sorted(p.name for p in (folder / "Images").glob("*") if p.is_dir())) or "nothing"
    raise StudyError(f"{images}: no such folder; {folder / 'Images'} holds {found}; unpack it or change subsets")


def _photographs(root: Path, folder: Path) -> tuple[list[Photograph], list[Problem]]:
    """The neutral photographs of a subset, and the images that are not named like any photograph of CFD."""
    photographs, problems = [], []
    prefix = PurePosixPath(folder.relative_to(root).as_posix())
    for name in files_below(folder):
        path = str(prefix / name)
        found = _PHOTOGRAPH.fullmatch(PurePosixPath(name).name)
        if found is None and is_image(name):
            problems.append(Problem("", path, math.nan, "not named like a photograph of CFD"))
        elif found is not None and found[6].upper() == "N":
            person = f"{found[1]}{found[2]}-{found[3]}".upper()
            photographs.append(Photograph(path, person, found[4], found[5]))
    if not photographs:
        raise StudyError(f"{folder}: no neutral photograph, such as CFD-AF-200-228-N.jpg")
    return photographs, problems


def _join(photographs: list[Photograph], norms: Norms) -> tuple[list[Rated], list[Problem]]:
    """Gives each photograph its norms; one row of the workbook rates one photograph."""
    joined: list[Rated] = []
    problems: list[Problem] = []
    used: set[str] = set()
    for photograph in photographs:
        key = next((key for key in photograph.keys if key in norms.rows and key not in used), None)
        if key is None:
            image_id = PurePosixPath(photograph.path).stem
            problems.append(
                Problem(image_id, photograph.path, math.nan, "no rating: no row of the workbook", kept=True)
            )
            joined.append((photograph, math.nan, {}))
        else:
            used.add(key)
            joined.append((photograph, *norms.rows[key]))
    for key, (line, _) in norms.rows.items():
        if key not in used:
            problems.append(Problem("", "", line, f"{key} is in the workbook, but has no neutral photograph"))
    return joined, problems


def _describe(photograph: Photograph) -> dict[str, str]:
    return {
        "image_id": PurePosixPath(photograph.path).stem,
        "path": photograph.path,
        "person_id": photograph.person,
        "ethnicity": ETHNICITIES[photograph.person[0]],
        "sex": SEXES[photograph.person[1]],
    }


# ── The workbook ─────────────────────────────────────────────────────────────────────────────────────────────────


def _read_sheet(workbook: Path, sheet: str, question: str) -> Norms:
    cells = _cells(workbook, sheet)
    header = next((row for row, values in enumerate(cells) if values and values[0] == "Model"), None)
    if header is None:
        raise StudyError(f"{workbook.name}, sheet {sheet!r}: no row begins with 'Model'; is it CFD 3.0?")
    columns = _columns(cells, header)
    if "beauty" not in columns:
        raise StudyError(f"{workbook.name}, sheet {sheet!r}: row {header + 1} names no column 'Attractive'")
    rows, problems = {}, []
    for line, values in enumerate(cells[header + 1 :], start=header + 2):
        model = _MODEL.fullmatch(values[0]) if values else None
        if model:
            named = {name: values[i] if i < len(values) else "" for name, i in columns.items()}
            rows[f"{model[1]}-{model[2]}"] = (line, named)
        elif values and values[0]:
            problems.append(Problem("", "", line, f"{sheet}: {values[0]!r} is no model"))
    return Norms(rows, _question(cells[:header], columns["beauty"]) or question, problems)


def _cells(workbook: Path, sheet: str) -> list[list[str]]:
    """All cells of a sheet as text."""
    from openpyxl import load_workbook

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # openpyxl tells of layout that it cannot keep; nothing is written here
        try:
            book = load_workbook(workbook, read_only=True, data_only=True)
        except Exception as error:  # zipfile, XML and openpyxl each have their own errors for a damaged file
            raise StudyError(f"{workbook}: not a readable workbook ({error}); download it again") from error
        try:
            if sheet not in book.sheetnames:
                raise StudyError(f"{workbook.name}: no sheet {sheet!r}; there are: {', '.join(book.sheetnames)}")
            book[sheet].reset_dimensions()
            return [[_text(value) for value in row] for row in book[sheet].iter_rows(values_only=True)]
        finally:
            book.close()


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _columns(cells: list[list[str]], header: int) -> dict[str, int]:
    """Position of each named column; the one after `Attractive` is its standard deviation if it is marked so."""
    labels = cells[header]
    columns = {STANDARD_NAMES.get(label, label): i for i, label in enumerate(labels) if i and label}
    if "beauty" in columns and any("sd" in mark for mark in _marks(cells, header, columns["beauty"] + 1)):
        columns["beauty_sd"] = columns["beauty"] + 1
    return columns


def _marks(cells: list[list[str]], header: int, column: int) -> Iterator[str]:
    """What the rows around the header say of a column without a name of its own."""
    if column < len(cells[header]) and cells[header][column]:
        return
    for row in (header - 1, header + 1):
        if 0 <= row < len(cells) and column < len(cells[row]):
            yield cells[row][column].lower()


def _question(above: list[list[str]], column: int) -> str:
    """Code of the question above a column, such as R013B, or an empty string."""
    found = (re.match(r"R\d+[A-Z]?", row[column]) for row in reversed(above) if column < len(row))
    return next((match[0] for match in found if match), "")
