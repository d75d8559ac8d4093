"""A folder that another lab can read and analyse again without this software.

    README.md                what this is, what each file holds, and what was left out and why
    study.yaml               the study as it was understood, without the folders of its data sets
    images.csv               a row per rated image: id, group, cluster, covariates; ratings unless they are protected
    metrics/<run>.csv        a row per image, layer and metric
    metrics/<run>.epsilon.csv
    training/<run>.csv       a row per epoch and phase: every term of the loss
    statistics/              every table of the analysis as CSV and Parquet; data_dictionary.csv explains each column
    figures/                 PNG and PDF; each says in its metadata what it shows
    report.html              the report, unless it shows protected images
    provenance.json          how each task ended: settings, inputs, commit, packages, host, seconds
    SHA256SUMS               of all of them: `sha256sum -c SHA256SUMS`

A data set with `redistribute: false`, which is the default for all but synthetic faces, gives no image and no rating
away: neither as a column, nor as a picture, nor as a point in a figure.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from PIL import Image

from analysis.tablefiles import KINDS
from analysis.tables import clusters
from fluence import __version__
from fluence.data.covariates import NAMES
from fluence.errors import StudyError
from fluence.layout import Layout, RunRow
from fluence.store.files import explained, read_json, read_table, sha256_of, write_json, write_table, write_text
from fluence.store.packed import Packed
from fluence.study import Study

IMAGES, RATINGS, NUMBERS = "images", "ratings", "numbers"
"""What a figure shows: pictures, one mark per rated image, or summaries."""

_OF_IMAGES = ("image_id", "sha256", "duplicate_of", *NAMES)
"""Columns that fluence itself has made of an image."""
_CONTENTS = {
    "study.yaml": "the study as it was understood, without the folders of its data sets",
    "images.csv": "a row per rated image: id, group, cluster of duplicates, covariates",
    "metrics/": "a row per image, layer and metric for each run; the ε of each layer",
    "training/": "a row per epoch and phase for each run: every term of the loss",
    "statistics/": "every table of the analysis as CSV and Parquet; data_dictionary.csv explains each column",
    "figures/": "PNG and PDF; title, caption and what is shown are in their metadata",
    "report.html": "the report; it needs no other file",
    "provenance.json": "how each task ended: settings, inputs, commit, packages, host, seconds",
    "SHA256SUMS": "checksums: `sha256sum -c SHA256SUMS`",
}


@dataclass
class Exported:
    """What an export came to.

    Attributes:
        folder: where it lies.
        num_files: files in it.
        left_out: what is not in it, and why.
    """

    folder: Path
    num_files: int = 0
    left_out: list[str] = field(default_factory=list)


def export(
    study: Study, layout: Layout, runs: Sequence[RunRow], tasks: Sequence[tuple[str, str]], folder: Path
) -> Exported:
    """Writes everything that may be given away into a new folder.

    Args:
        study: the study.
        layout: its folder, with finished statistics.
        runs: every run of the grid; those that are not done are named.
        tasks: stage and name of every task.
        folder: where to; it must be absent or empty.

    Raises:
        StudyError: the folder is not empty, or the study has no statistics yet.
        ArtifactError: a file cannot be read.
        UnwritableError: the disk is full or the folder is not writable.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StudyError(f"{folder}: is not empty; name a new folder with --to")
    if not (layout.statistics / "data_dictionary.csv").exists():
        raise StudyError(f"{layout.statistics}: there are no statistics yet; run the study first, or: fluence report")
    done = Exported(folder)
    try:
        with explained(folder):
            _write(study, layout, runs, tasks, done)
    except BaseException:  # half of it would pass for the whole
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return done


def _write(
    study: Study, layout: Layout, runs: Sequence[RunRow], tasks: Sequence[tuple[str, str]], done: Exported
) -> None:
    folder = done.folder
    write_text(folder / "study.yaml", _study_text(study))
    _export_images(study, layout, folder, done)
    _export_runs(layout, runs, folder, done)
    for path in sorted(path for kind in KINDS for path in layout.statistics.glob(f"*{kind}")):
        _copy(path, folder / "statistics" / path.name)
    _export_figures(study, layout, folder, done)
    outcomes = {f"{stage}/{name}": layout.outcome(stage, name) for stage, name in tasks}
    write_json(folder / "provenance.json", {task: read_json(path) for task, path in outcomes.items() if path.exists()})
    write_text(folder / "README.md", _readme(study, folder, done))
    _sign(folder, done)


def protected(study: Study, role: str) -> bool:
    """Whether the images and ratings of a data set (`training` or `rated`) may not be given away."""
    return not study.data.datasets[getattr(study.data, role)].redistribute


def _study_text(study: Study) -> str:
    content: dict[str, Any] = study.model_dump(mode="json")
    for dataset in content["data"]["datasets"].values():
        dataset.pop("root", None)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _export_images(study: Study, layout: Layout, folder: Path, done: Exported) -> None:
    table = Packed(layout.packed(study.data.rated)).table
    if protected(study, "rated"):
        kept = [column for column in ("group", *study.data.group_by, *_OF_IMAGES) if column in table]
        left = [str(column) for column in table if column not in kept]
        done.left_out.append(
            f"ratings and all other columns of the manifest of {study.data.rated} ({', '.join(left)}): it says "
            "`redistribute: false`"
        )
        images = table[sorted(set(kept), key=kept.index)]
    else:
        images = table
    write_table(folder / "images.csv", images.assign(cluster=clusters(table)))


def _export_runs(layout: Layout, runs: Sequence[RunRow], folder: Path, done: Exported) -> None:
    for row in runs:
        name = row.run.id
        if row.status != "done":
            done.left_out.append(f"run {name}: {row.status}{': ' + row.reason if row.reason else ''}")
            continue
        write_table(folder / "metrics" / f"{name}.csv", read_table(layout.metrics(name)))
        _copy(layout.epsilon(name), folder / "metrics" / f"{name}.epsilon.csv")
        log = layout.metrics_log(name)
        if log.exists():
            write_table(folder / "training" / f"{name}.csv", pd.read_json(log, lines=True))


def _export_figures(study: Study, layout: Layout, folder: Path, done: Exported) -> None:
    refused = {IMAGES} if protected(study, "rated") or protected(study, "training") else set()
    refused |= {RATINGS} if protected(study, "rated") else set()
    withheld = []
    for path in sorted(layout.figures.glob("*.png")):
        if shown_in(path) in refused:
            withheld.append(path.stem)
            continue
        for kind in (".png", ".pdf"):
            _copy(path.with_suffix(kind), folder / "figures" / path.with_suffix(kind).name)
    if withheld:
        done.left_out.append(f"figures that show protected images or ratings: {', '.join(withheld)}")
    if refused:
        done.left_out.append("the report, which shows them")
    elif layout.report_page.exists():
        _copy(layout.report_page, folder / "report.html")


def shown_in(figure: Path) -> str:
    """What a PNG figure says it shows; one that says nothing counts as images, which are what is most protected."""
    with Image.open(figure) as image:
        return str(getattr(image, "text", {}).get("Shows", IMAGES))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _readme(study: Study, folder: Path, done: Exported) -> str:
    there = {name: text for name, text in _CONTENTS.items() if (folder / name).exists() or name == "SHA256SUMS"}
    lines = [f"# {study.name}", "", study.description, "", "| file | content |", "|---|---|"]
    lines += [f"| `{name}` | {text} |" for name, text in there.items()]
    lines += ["", "Join tables by `image_id`. `NaN` and an empty cell both mean: no value.", "", "## Left out", ""]
    lines += [f"- {what}" for what in done.left_out] or ["Nothing."]
    lines += ["", f"Written by fluence {__version__}.", ""]
    return "\n".join(lines)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sign(folder: Path, done: Exported) -> None:
    sums = [f"{sha256_of(path)}  {path.relative_to(folder)}" for path in _files(folder)]
    write_text(folder / "SHA256SUMS", "\n".join([*sums, ""]))
    done.num_files = len(sums) + 1
