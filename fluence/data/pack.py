"""A data set becomes one file: square uint8 pixels, the manifest, content hashes and covariates of every image.

An image that cannot be read is left out and listed with its reason; one that has the pixels of an earlier one, or
nearly, is kept, marked in `duplicate_of` and listed. Nothing is dropped silently.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from fluence.data import decode
from fluence.data.covariates import NAMES
from fluence.data.duplicates import near_duplicates
from fluence.data.manifest import Manifest, Problem, capped, keep_aside, name_of
from fluence.data.prepare import Drawing, ImageFile, Prepared, Source, prepared
from fluence.data.readers import read_manifest
from fluence.errors import ArtifactError, Mistake, StudyError
from fluence.store.packed import PackedWriter
from fluence.study import Data, Dataset, SyntheticDataset

Progress = Callable[[int, int], None]

_MOST_LINES = 10


@dataclass(frozen=True)
class PackSummary:
    """What a packing came to.

    Attributes:
        num_images: images in the file.
        num_problems: images that were left out or kept with a reservation.
        lines: the same in words, for the screen.
    """

    num_images: int
    num_problems: int
    lines: list[str]


@dataclass
class _Facts:
    """What is learnt of the usable images while they are decoded; `rows` are their rows in the manifest."""

    rows: list[int] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    thumbnails: list[np.ndarray] = field(default_factory=list)
    covariates: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in NAMES})
    reasons: dict[int, str] = field(default_factory=dict)
    num_seen: int = 0

    def add(self, chunk: Prepared) -> None:
        self.rows += (self.num_seen + chunk.usable).tolist()
        self.sha256 += chunk.sha256
        self.thumbnails.append(chunk.thumbnails)
        self.reasons |= {self.num_seen + position: reason for position, reason in chunk.reasons.items()}
        for name, values in chunk.covariates.items():
            self.covariates[name].append(values)
        self.num_seen += chunk.num_images


def pack(
    dataset: Dataset,
    data: Data,
    out: Path,
    *,
    attributes: dict[str, Any],
    strict: bool = False,
    num_workers: int = 2,
    progress: Progress | None = None,
) -> PackSummary:
    """Packs a data set into one file, which appears when it is complete.

    Args:
        dataset: the images.
        data: the section of the study that names groups, size and shape.
        out: the file to write.
        attributes: facts to keep with the file.
        strict: refuse a data set with any problem.
        num_workers: processes that decode.
        progress: called with the number of images done and of all.

    Raises:
        StudyError: the manifest is wrong, no image is usable, or `strict` and there is a problem.
        ArtifactError: the file cannot be written.
        RunError: a process that decodes was killed.
    """
    manifest = read_manifest(dataset, data)
    _check_space(out, len(manifest.table) * data.image_size_px**2 * 3)
    facts = _Facts()
    with PackedWriter(out, data.image_size_px, {"fit": data.fit, "decoder": decode.VERSION, **attributes}) as writer:
        for chunk in _with_progress(manifest, dataset, data, num_workers, progress):
            writer.append(chunk.pixels)
            facts.add(chunk)
        alike = _alike(facts)
        table = _table(manifest, facts, alike)
        problems = [*manifest.problems, *_undecodable(manifest, facts), *_duplicates(manifest, facts, table, alike)]
        _refuse(name_of(dataset, data), problems, len(table), strict)
        writer.finish(table, pd.DataFrame(problems, columns=list(Problem._fields)))
    return PackSummary(len(table), len(problems), _in_words(out, len(table), data.image_size_px, problems))


def _check_space(out: Path, num_bytes: int) -> None:
    """Raises if the disk cannot hold the pixels; better now than after hours of decoding."""
    folder = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(folder)[2]
    if free < num_bytes:
        raise ArtifactError(
            f"{out}: needs {num_bytes / 1e6:,.1f} MB, and the disk has {free / 1e6:,.1f} MB left: free some space, "
            "choose another folder with --output, or a smaller data.image_size_px"
        )


def _with_progress(
    manifest: Manifest, dataset: Dataset, data: Data, num_workers: int, progress: Progress | None
) -> Iterator[Prepared]:
    """The decoded chunks, with a bar on the terminal."""
    sources = _sources(manifest, dataset)
    done = 0
    with tqdm(total=len(sources), desc=f"pack {name_of(dataset, data)}", unit="image", disable=None) as bar:
        for chunk in prepared(sources, data.image_size_px, data.fit, num_workers):
            yield chunk
            done += chunk.num_images
            bar.update(chunk.num_images)
            if progress:
                progress(done, len(sources))


def _sources(manifest: Manifest, dataset: Dataset) -> Sequence[Source]:
    if isinstance(dataset, SyntheticDataset):
        return [Drawing(dataset, index) for index in range(len(manifest.table))]
    if manifest.root is None:
        raise ValueError(f"a data set of kind {dataset.kind} has no folder")
    return [ImageFile(manifest.root / path) for path in manifest.table["path"]]


def _alike(facts: _Facts) -> dict[int, tuple[int, str]]:
    """By position in the table, each image that repeats an earlier one: the position of that one, and how it does."""
    found: dict[int, tuple[int, str]] = {}
    for copy in near_duplicates(np.concatenate(facts.thumbnails)) if facts.thumbnails else ():
        mirrored = ", mirrored" if copy.is_mirrored else ""
        found[copy.image] = copy.original, f"near-duplicate (r = {copy.correlation:.3f}{mirrored}): nearly the same as"
    first: dict[str, int] = {}
    for position, sha256 in enumerate(facts.sha256):
        original = first.setdefault(sha256, position)
        if original != position:
            found[position] = original, "duplicate: same image as"
    return found


def _table(manifest: Manifest, facts: _Facts, alike: dict[int, tuple[int, str]]) -> pd.DataFrame:
    """The manifest of the usable images with hash, duplicates and covariates."""
    table = manifest.table.iloc[facts.rows].reset_index(drop=True)
    keep_aside(table, ["sha256", *NAMES])
    table["sha256"] = facts.sha256
    ids = table["image_id"]
    found = [ids[alike[position][0]] if position in alike else "" for position in range(len(ids))]
    stated = table.get("duplicate_of", pd.Series("", table.index))
    table["duplicate_of"] = [mine or theirs for mine, theirs in zip(found, stated, strict=True)]
    for name, values in facts.covariates.items():
        table[name] = np.concatenate(values) if values else []
    return table


def _undecodable(manifest: Manifest, facts: _Facts) -> Iterator[Problem]:
    for row, reason in sorted(facts.reasons.items()):
        image_id, path = manifest.table.loc[row, ["image_id", "path"]]
        yield Problem(image_id, path, manifest.lines[row], reason)


def _duplicates(
    manifest: Manifest, facts: _Facts, table: pd.DataFrame, alike: dict[int, tuple[int, str]]
) -> Iterator[Problem]:
    marked = zip(facts.rows, table["image_id"], table["path"], table["duplicate_of"], strict=True)
    for position, (row, image_id, path, original) in enumerate(marked):
        if original:
            _, words = alike.get(position, (0, "duplicate: same image as"))
            yield Problem(image_id, path, manifest.lines[row], f"{words} {original}", kept=True)


def _refuse(name: str, problems: Sequence[Problem], num_images: int, strict: bool) -> None:
    """Raises if the data set has no usable image, or has problems and may have none."""
    if num_images and not (strict and problems):
        return
    what = f"{_number(len(problems))}, and --strict allows none" if num_images else "not one image can be used"
    raise StudyError(f"data.datasets.{name}: {what}", capped([_mistake(problem) for problem in problems]))


def _mistake(problem: Problem) -> Mistake:
    line = None if np.isnan(problem.line) else int(problem.line)
    return Mistake(problem.path or problem.image_id or "row", problem.reason, line)


def _in_words(out: Path, num_images: int, size_px: int, problems: Sequence[Problem]) -> list[str]:
    lines = [f"{num_images:,} images of {size_px} × {size_px} px"]
    for kept, words in ((False, "left out"), (True, "kept, with a word")):
        kinds = Counter(re.split("[:;(]", p.reason)[0].strip() for p in problems if p.kept == kept)
        if kinds:
            listed = ", ".join(f"{kind} ({number:,})" for kind, number in kinds.most_common())
            lines.append(f"{kinds.total():,} {words}: {listed}")
    lines += [f"  {_mistake(problem)}" for problem in problems[:_MOST_LINES]]
    if len(problems) > _MOST_LINES:
        lines.append(f"  and {len(problems) - _MOST_LINES:,} more; all are listed in {out} under problems")
    return lines


def _number(count: int) -> str:
    return f"{count:,} problem{'' if count == 1 else 's'}"
