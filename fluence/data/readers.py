"""How each kind of data set is read; `READERS` is the list of kinds.

A reader lists the images with the standard column names; `fluence.data.manifest.checked` does the rest. Its
fingerprint says, without decoding an image, whether the data set is still the one that was packed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from fluence.data import cfd, decode
from fluence.data.manifest import Listing, Manifest, Problem, checked, clean_path, missing_column, name_of
from fluence.data.tabular import CsvText, read_csv_text
from fluence.data.tree import files_below, is_image
from fluence.errors import StudyError
from fluence.study import CfdDataset, CsvDataset, Data, Dataset, FairFaceDataset, FolderDataset, SyntheticDataset
from fluence.studyfile import expand_root

Evidence = Iterator[tuple[str, str | int]]


def read_manifest(dataset: Dataset, data: Data) -> Manifest:
    """Lists the images of a data set.

    Raises:
        StudyError: the folder or its files are missing, or their content cannot be used; with all lines at once.
    """
    return checked(READERS[dataset.kind].read(dataset, root_of(dataset, data)), dataset, data)


def fingerprint(dataset: Dataset, data: Data) -> str:
    """SHA-256 of what a data set consists of, wherever its folder lies: settings, tables, and names of the images,
    with their sizes where asking for them is cheap (not for the 100,000 of FairFace).

    Raises:
        StudyError: the folder or its tables are missing.
    """
    settings = dataset.model_dump(mode="json", exclude={"root", "redistribute"})
    digest = hashlib.sha256(json.dumps([settings, decode.VERSION], sort_keys=True).encode())
    for item in READERS[dataset.kind].evidence(dataset, root_of(dataset, data)):
        digest.update(json.dumps(item).encode())
    return digest.hexdigest()


def root_of(dataset: Dataset, data: Data) -> Path | None:
    """The folder of a data set, or None if its images are drawn.

    Raises:
        StudyError: there is no such folder, or an environment variable in its name is not set.
    """
    if isinstance(dataset, SyntheticDataset):
        return None
    name = name_of(dataset, data)
    root = expand_root(dataset.root, name)
    if not root.is_dir():
        raise StudyError(f"data.datasets.{name}.root: {root}: no such folder; give the folder of the images")
    return root


# ── Any table ────────────────────────────────────────────────────────────────────────────────────────────────────


def read_csv(dataset: CsvDataset, root: Path) -> Listing:
    """Lists the rows of a CSV manifest."""
    text = read_csv_text(root / dataset.manifest)
    table = _standard_names(text.table, dataset)
    odd = [Problem("", "", line, reason) for line, reason in text.odd]
    return _without_blank_paths(_table_listing(table, text, dataset.manifest, root, odd))


def _standard_names(table: pd.DataFrame, dataset: CsvDataset) -> pd.DataFrame:
    """Renames columns; one that is displaced by a renamed one is kept as `source_<column>`."""
    unknown = [
        missing_column(theirs, table.columns, f"columns.{standard} names it")
        for standard, theirs in dataset.columns.items()
        if theirs not in table
    ]
    if "path" not in table and "path" not in dataset.columns:
        unknown.append(missing_column("path", table.columns, "it says where each image lies; or set columns.path"))
    if unknown:
        raise StudyError(f"{dataset.manifest}: columns are missing", tuple(unknown))
    taken = {standard: table[theirs] for standard, theirs in dataset.columns.items()}
    rest = table.drop(columns=list(dataset.columns.values()))
    rest = rest.rename(columns={column: f"source_{column}" for column in rest.columns if column in taken})
    return pd.concat([pd.DataFrame(taken, index=table.index), rest], axis=1)


def _table_listing(table: pd.DataFrame, text: CsvText, file: str, root: Path, odd: list[Problem]) -> Listing:
    return Listing(table, text.lines, [file] * len(table), root, odd, text.decimal)


def _without_blank_paths(listing: Listing) -> Listing:
    """Turns rows that name no image into problems."""
    table = listing.table
    blank = [row for row, path in enumerate(table["path"]) if not path]
    ids = table["image_id"] if "image_id" in table else [""] * len(table)
    problems = [Problem(ids[row], "", listing.lines[row], "names no image: path is empty") for row in blank]
    keep = [row for row in range(len(table)) if row not in set(blank)]
    return Listing(
        table.iloc[keep].reset_index(drop=True),
        [listing.lines[row] for row in keep],
        [listing.files[row] for row in keep],
        listing.root,
        listing.problems + problems,
        listing.decimal,
    )


def _csv_evidence(dataset: CsvDataset, root: Path) -> Evidence:
    yield _content(root, dataset.manifest)
    for path in sorted(set(read_csv(dataset, root).table["path"])):
        cleaned, wrong = clean_path(path)
        yield cleaned, -1 if wrong else _size(root / cleaned)


# ── Folders that name the groups ─────────────────────────────────────────────────────────────────────────────────


def read_folder(dataset: FolderDataset, root: Path) -> Listing:
    """Lists the images below folders that name their groups."""
    paths, problems = [], []
    for path in files_below(root):
        depth = len(PurePosixPath(path).parts) - 1
        if not is_image(path):
            problems.append(Problem("", path, math.nan, "not an image by its ending"))
        elif depth < len(dataset.levels):
            problems.append(Problem("", path, math.nan, f"not in a folder {'/'.join(dataset.levels)}"))
        else:
            paths.append(path)
    if not paths:
        expected = "/".join((*dataset.levels, "x.jpg"))
        raise StudyError(f"{root}: no image lies where expected, such as {expected}")
    columns = {level: [PurePosixPath(p).parts[i] for p in paths] for i, level in enumerate(dataset.levels)}
    table = pd.DataFrame({"path": paths, **columns}, dtype=object)
    return Listing(table, [math.nan] * len(paths), [str(root)] * len(paths), root, problems)


def _folder_evidence(dataset: FolderDataset, root: Path) -> Evidence:
    for path in files_below(root):
        yield path, _size(root / path)


# ── Chicago Face Database ────────────────────────────────────────────────────────────────────────────────────────


def _cfd_evidence(dataset: CfdDataset, root: Path) -> Evidence:
    workbook = cfd.find_workbook(root)
    yield _content(workbook.parent, workbook.name)
    for subset in dataset.subsets:
        folder = cfd.find_subset(workbook.parent, subset)
        for path in files_below(folder):
            yield path, _size(folder / path)


# ── FairFace ─────────────────────────────────────────────────────────────────────────────────────────────────────

FAIRFACE_PARTS = ("train", "val")


def read_fairface(dataset: FairFaceDataset, root: Path) -> Listing:
    """Lists the images of FairFace, whose labels lie in two CSV files."""
    images, labels = _fairface_folders(dataset, root)
    parts = [_fairface_part(labels, part) for part in FAIRFACE_PARTS]
    prefix = "" if images == root else f"{images.name}/"
    table = pd.concat([text.table.assign(split=part) for part, text in zip(FAIRFACE_PARTS, parts, strict=True)])
    table = table.reset_index(drop=True).rename(columns={"gender": "sex", "race": "ethnicity", "age": "age_range"})
    table["image_id"] = table["file"].map(lambda file: str(PurePosixPath(file).with_suffix("")))
    table["path"] = prefix + table.pop("file")
    table["sex"] = table["sex"].str.lower()
    files = [_fairface_labels(p) for p, text in zip(FAIRFACE_PARTS, parts, strict=True) for _ in text.lines]
    problems = [Problem("", "", line, f"{_fairface_labels(p)}: {reason}") for p, text in
                zip(FAIRFACE_PARTS, parts, strict=True) for line, reason in text.odd]  # fmt: skip
    return Listing(table, [line for text in parts for line in text.lines], files, root, problems)


def _fairface_labels(part: str) -> str:
    return f"fairface_label_{part}.csv"


def _fairface_folders(dataset: FairFaceDataset, root: Path) -> tuple[Path, Path]:
    """The folder of `train` and `val`, and that of the label files; root may be either."""
    name = f"fairface-img-margin{dataset.padding.replace('.', '')}-trainval"
    images = root / name if (root / name).is_dir() else root
    unnamed = not images.name.startswith("fairface-img-margin")
    if not (images / "train").is_dir() or not (images.name == name or unnamed):
        raise StudyError(f"{root}: no folder {name} with the folders train and val; unpack FairFace there")
    labels = next((folder for folder in (root, root.parent) if (folder / _fairface_labels("train")).is_file()), root)
    return images, labels


def _fairface_part(labels: Path, part: str) -> CsvText:
    file = _fairface_labels(part)
    text = read_csv_text(labels / file)
    needed = ("file", "age", "gender", "race")
    missing = [missing_column(c, text.table.columns, "FairFace has it") for c in needed if c not in text.table]
    if missing:
        raise StudyError(f"{labels / file}: not FairFace's labels", tuple(missing))
    return text


def _fairface_evidence(dataset: FairFaceDataset, root: Path) -> Evidence:
    images, labels = _fairface_folders(dataset, root)
    for part in FAIRFACE_PARTS:
        yield _content(labels, _fairface_labels(part))
        folder = images / part
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        yield part, hashlib.sha256("\n".join(names).encode()).hexdigest()


# ── Faces that fluence draws ─────────────────────────────────────────────────────────────────────────────────────


def read_synthetic(dataset: SyntheticDataset, root: Path | None) -> Listing:
    """Lists the faces that fluence is to draw."""
    from fluence.data.synthetic import synthetic_table

    table = synthetic_table(dataset)
    if "path" not in table:
        table = table.assign(path="")
    return Listing(table, [math.nan] * len(table), ["synthetic"] * len(table), None)


def _synthetic_evidence(dataset: SyntheticDataset, root: Path | None) -> Evidence:
    from fluence.data import synthetic

    yield "generator", synthetic.VERSION


# ── The list of kinds ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Reader:
    """How one kind of data set is read and recognised.

    Attributes:
        read: lists the images.
        evidence: names and contents or sizes of what the data set consists of.
    """

    read: Callable[..., Listing]
    evidence: Callable[..., Evidence]


READERS: dict[str, Reader] = {
    "csv": Reader(read_csv, _csv_evidence),
    "folder": Reader(read_folder, _folder_evidence),
    "cfd": Reader(cfd.read_cfd, _cfd_evidence),
    "fairface": Reader(read_fairface, _fairface_evidence),
    "synthetic": Reader(read_synthetic, _synthetic_evidence),
}


def _content(root: Path, name: str) -> tuple[str, str]:
    path = root / name
    try:
        with path.open("rb") as file:
            return name, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror})") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
