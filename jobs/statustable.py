"""The status of a study as text: its runs with their stages side by side, then what is under way or in trouble."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.standing import Standings
from jobs.status import Row

_RUN_STAGES = ("train", "extract", "measure")
_QUIET = ("done", "waiting", "blocked", "skipped")
_MOST_LINES = 60


def status_table(rows: Sequence[Row], study: str, root: Path, at_slurm: Standings | None = None) -> str:
    """The rows as text.

    Args:
        rows: one for each task.
        study: name of the study.
        root: its folder.
        at_slurm: where the tasks stand at Slurm; None if nothing was submitted.
    """
    counts = Counter(row.kind for row in rows)
    head = f"{study} in {root}: " + ", ".join(f"{number} {state}" for state, number in counts.items())
    alone = [row for row in rows if not row.run]
    lines = [f"  {row.stage} {row.task}: {row.state}{_because(row)}" for row in alone]
    packs = sum(row.stage == "pack" for row in alone)
    parts = (lines[:packs], _run_lines(rows), lines[packs:], _details(rows), _notes(rows, at_slurm))
    return "\n\n".join([head, *("\n".join(part) for part in map(list, parts) if part)])


# ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _run_lines(rows: Sequence[Row]) -> Iterator[str]:
    runs: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.run:
            runs.setdefault(row.run, {})[row.stage] = row
    lines = [["run", *_RUN_STAGES, ""]]
    for run, stages in runs.items():
        lines.append([run, *(stages[stage].state for stage in _RUN_STAGES), _first(stages)])
    yield from _columns(lines) if runs else ()


def _first(stages: dict[str, Row]) -> str:
    """The first stage that did not end well says why."""
    troubles = [row for stage in _RUN_STAGES if (row := stages[stage]).kind not in ("done", "waiting")]
    return _because(troubles[0]).removeprefix(": ") if troubles else ""


def _because(row: Row) -> str:
    reason = row.reason.splitlines()[0] if row.reason else ""
    return f": {reason}" if reason and row.state != "done" else ""


def _columns(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Cells below one another, columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()


# ── What is under way or in trouble ──────────────────────────────────────────────────────────────────────────────────


def _details(rows: Sequence[Row]) -> Iterator[str]:
    """Each task that runs or did not end well; those that merely queue are counted."""
    queued = Counter((row.stage, row.state, row.job.partition("_")[0]) for row in rows if row.kind == "queued")
    single = [row for row in rows if row.kind not in (*_QUIET, "queued")]
    if single:
        lines = [["task", "state", "restarts", "elapsed", "ends about", "job", "log"]]
        yield from _columns([*lines, *map(_detail, single[:_MOST_LINES])])
    if len(single) > _MOST_LINES:
        yield f"  and {len(single) - _MOST_LINES} more; --json shows all"
    for (stage, state, job), number in queued.items():
        yield f"  {number} × {stage} {state}, job {job}"


def _detail(row: Row) -> list[str]:
    return [
        f"{row.stage} {row.run or row.task}",
        row.state,
        str(row.restarts) if row.job else "",
        "" if row.elapsed_s is None else duration(row.elapsed_s),
        "" if row.end_estimate is None else _clock(row.end_estimate),
        row.job + (f" on {row.node}" if row.node else ""),
        _shorter(row.log) if row.log else "",
    ]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _clock(moment: float) -> str:
    """`14:30` within a day, and with the date after that."""
    return time.strftime("%H:%M" if moment - time.time() < 86_400 else "%a %d %b %H:%M", time.localtime(moment))


def _shorter(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


# ── Remarks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _notes(rows: Sequence[Row], at_slurm: Standings | None) -> Iterator[str]:
    if any(row.kind == "failed" for row in rows):
        yield "  those that failed run again after: fluence retry STUDY"
    if at_slurm is None:
        return
    yield from (f"  {note}" for note in (at_slurm.look.notes if at_slurm.was_submitted else ()))
    if at_slurm.outdated:
        first = at_slurm.outdated[0]
        yield (
            f"  the study was edited since: {len(at_slurm.outdated)} queued or running tasks belong to an earlier "
            f"version and keep it, such as {first.batch.stage} {first.task} ({first.element})"
        )
    if at_slurm.unassigned:
        jobs = ", ".join(sorted({job.id.partition("_")[0] for job in at_slurm.unassigned}))
        yield f"  jobs of this folder that the journal has lost: {jobs}; they go on; to end them: scancel {jobs}"
    if at_slurm.was_submitted and at_slurm.look.has_queue:
        yield f"  Slurm was asked at {time.strftime('%H:%M:%S', time.localtime(at_slurm.look.time))}"
