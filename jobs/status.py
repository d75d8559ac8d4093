"""What became of a study, as a table: read from its files, without touching a running task."""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fluence.errors import StudyError
from fluence.layout import Layout
from fluence.store.files import explained
from fluence.store.outcome import Progress, read_progress
from jobs.plan import Planned

_FRESH_S = 60.0
_RUN_STAGES = ("train", "extract", "measure")


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Holds the study's folder for one `fluence run`.

    Raises:
        StudyError: another `fluence run` holds it.
        ArtifactError: the folder is not writable.
    """
    with explained(layout.root):
        layout.lock.parent.mkdir(parents=True, exist_ok=True)
        file = layout.lock.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StudyError(
                f"{layout.root}: another `fluence run` is at work there; wait for it, or give another --output"
            ) from error
        yield


def is_locked(layout: Layout) -> bool:
    """Whether a `fluence run` is at work in the folder."""
    try:
        with layout.lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def state_rows(planned: tuple[Planned, ...], layout: Layout) -> list[dict[str, Any]]:
    """One row per task: stage, task, state in plain words, fraction done, reason, log."""
    active = is_locked(layout)
    return [_row(entry, layout, active) for entry in planned]


def _row(entry: Planned, layout: Layout, active: bool) -> dict[str, Any]:
    task = entry.task
    progress = read_progress(layout.progress(task.stage, task.name), task.key) if entry.to_do else None
    state = _words(entry, progress, active)
    log = layout.log(task.stage, task.name)
    return {
        "stage": task.stage,
        "task": task.name,
        "run": task.run.label if task.run else "",
        "state": state,
        "fraction": 1.0 if entry.state == "done" else progress.fraction if progress else 0.0,
        "reason": _place(progress) if progress and state.startswith("running") else entry.reason,
        "log": str(log) if log.exists() else "",
    }


def _place(progress: Progress) -> str:
    loss = progress.facts.get("loss")
    return progress.text + (f", loss {loss:.4g}" if loss is not None else "")


def _words(entry: Planned, progress: Progress | None, active: bool) -> str:
    if not entry.to_do:
        return entry.state
    if progress is None:
        return "waiting"
    if active and time.time() - progress.updated < _FRESH_S:
        return f"running {progress.fraction:.0%}"
    return f"paused {progress.fraction:.0%}"


def status_table(rows: list[dict[str, Any]], study: str, root: Path) -> str:
    """The rows as text: one line per run with its stages side by side, the other stages around them."""
    counts = Counter(row["state"].split()[0] for row in rows)
    head = f"{study} in {root}: " + ", ".join(f"{number} {state}" for state, number in counts.items())
    alone = [row for row in rows if not row["run"]]
    lines = [f"  {row['stage']} {row['task']}: {row['state']}{_because(row)}" for row in alone]
    packs = sum(row["stage"] == "pack" for row in alone)
    return "\n".join([head, "", *lines[:packs], "", *_run_lines(rows), "", *lines[packs:]])


def _run_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["run"]:
            runs.setdefault(row["run"], {})[row["stage"]] = row
    if not runs:
        return
    width = max(len(run) for run in runs) + 2
    yield f"  {'run':<{width}}" + "".join(f"{stage:<14}" for stage in _RUN_STAGES)
    for run, stages in runs.items():
        yield f"  {run:<{width}}" + "".join(f"{stages[stage]['state']:<14}" for stage in _RUN_STAGES) + _first(stages)


def _first(stages: dict[str, dict[str, Any]]) -> str:
    """The first stage that did not end well says why."""
    troubles = [row for stage in _RUN_STAGES if (row := stages[stage])["state"] not in ("done", "waiting")]
    return _because(troubles[0]).removeprefix(": ") if troubles else ""


def _because(row: dict[str, Any]) -> str:
    reason = row["reason"].splitlines()[0] if row["reason"] else ""
    return f": {reason}" if reason and row["state"] != "done" else ""
