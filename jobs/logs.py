"""What the tasks of a run have printed, and what they print now."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fluence.errors import StudyError
from fluence.layout import Layout
from jobs.journal import Batch, Journal
from jobs.pipeline import STAGES

_POLL_S = 0.5
_BEFORE_BYTES = 4000
_HASH_CHARACTERS = 8


@dataclass(frozen=True)
class Log:
    """What one task has printed.

    Attributes:
        stage: name of the stage.
        task: name of the task.
        path: the file.
        written_at: when it was last written to, in seconds since the epoch.
    """

    stage: str
    task: str
    path: Path
    written_at: float


def find_logs(studies: Sequence[Layout], name: str, stage: str | None = None) -> list[Log]:
    """The logs of one run, in the order of the stages.

    Args:
        studies: folders to look in; the one that was written to last counts.
        name: a run such as `small-all-s0`, with or without its hash, a data set, or one of the stages of the whole
            study.
        stage: name of the only stage that is wanted.

    Raises:
        StudyError: there is no such log; says which there are.
    """
    found = {layout: [log for log in _logs(layout, stage) if _is_called(log, name)] for layout in studies}
    logs = max(found.values(), key=lambda logs: max((log.written_at for log in logs), default=0.0), default=[])
    if logs:
        return logs
    known = {_short(log) for layout in studies for log in _logs(layout, stage)}
    where = ", ".join(str(layout.root) for layout in studies[:3]) or "results: no study has run there"
    there_are = f"; there are: {', '.join(sorted(known)[:8])}" if known else ""
    raise StudyError(f"{name!r}: nothing of that name has printed anything in {where}{there_are}")


def studies_in(folder: Path) -> list[Layout]:
    """Every study whose results lie in a folder such as `results`."""
    try:
        return [Layout(path.absolute()) for path in sorted(folder.iterdir()) if (path / "tasks").is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _logs(layout: Layout, stage: str | None) -> Iterator[Log]:
    """What the tasks printed, and their jobs: a prologue that fails leaves no other trace."""
    for known in STAGES:
        if stage in (None, known.name):
            yield from _of_stage(layout, known.name)
    for batch in Journal(layout).read():
        if stage in (None, batch.stage):
            yield from _of_jobs(layout, batch)


def _of_jobs(layout: Layout, batch: Batch) -> Iterator[Log]:
    try:
        sizes = {entry.name: entry.stat() for entry in os.scandir(layout.submission(batch.token))}
    except FileNotFoundError:
        return
    for index, task in enumerate(batch.tasks):
        for path in (layout.job_log(batch.token, element) for element in batch.elements(index)):
            if path.name in sizes and sizes[path.name].st_size:
                yield Log(batch.stage, task, path, sizes[path.name].st_mtime)


def _of_stage(layout: Layout, stage: str) -> Iterator[Log]:
    try:
        entries = list(os.scandir(layout.log(stage, "any").parent))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.endswith(".log"):
            yield Log(stage, entry.name.removesuffix(".log"), Path(entry.path), entry.stat().st_mtime)


def _is_called(log: Log, name: str) -> bool:
    return name in (log.task, _short(log), f"{log.stage}/{log.task}")


def _short(log: Log) -> str:
    """A run without its hash; the stage where there is but one task."""
    if log.task == "study":
        return log.stage
    label, dash, hash_ = log.task.rpartition("-")
    return label if dash and len(hash_) == _HASH_CHARACTERS else log.task


def show(logs: Sequence[Log], out: BinaryIO) -> None:
    """Prints the logs one after the other, each under its name if there are several."""
    for number, log in enumerate(logs):
        if len(logs) > 1:
            out.write(b"\n" * (number > 0) + _heading(log))
        out.write(log.path.read_bytes())
    out.flush()


def follow(studies: Sequence[Layout], name: str, stage: str | None, out: BinaryIO) -> None:
    """Prints the end of the newest log and whatever comes, from the next stage, too; until Ctrl-C."""
    places: dict[Path, int] = {}
    for log in find_logs(studies, name, stage):
        places[log.path] = log.path.stat().st_size
    newest = max(find_logs(studies, name, stage), key=lambda log: log.written_at)
    places[newest.path] = max(0, newest.path.stat().st_size - _BEFORE_BYTES)
    shown = None
    while True:
        for log in find_logs(studies, name, stage):
            new, places[log.path] = _from(log.path, places.get(log.path, 0))
            if new and log.path != shown:
                out.write(_heading(log))
                shown = log.path
            out.write(new)
        out.flush()
        time.sleep(_POLL_S)


def _from(path: Path, place: int) -> tuple[bytes, int]:
    """What stands in a file from a place on, or all of it if the file was written anew; and where it ends."""
    with path.open("rb") as file:
        file.seek(place if os.fstat(file.fileno()).st_size >= place else 0)
        return file.read(), file.tell()


def _heading(log: Log) -> bytes:
    return f"==> {log.stage} {_short(log)}: {log.path} <==\n".encode()
