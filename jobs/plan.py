"""The plan: study + files → tasks with a state and a reason in words. Reads outcomes; runs and writes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fluence.layout import Layout, RunRow
from fluence.store.outcome import Outcome, read_outcome, read_progress
from jobs.pipeline import STAGE, Task, output_of

State = Literal["done", "skipped", "failed", "diverged", "blocked", "ready", "waiting"]
FINAL: tuple[State, ...] = ("done", "skipped", "failed", "diverged", "blocked")


@dataclass(frozen=True)
class Planned:
    """A task, its state, and why.

    Attributes:
        task: the task; for analyse and report its key also covers what became of the runs.
        state: `done`, `skipped`, `failed`, `diverged` (ended); `blocked` (something it needs will not come);
            `ready` (can run now); `waiting` (for what it needs).
        reason: for people.
    """

    task: Task
    state: State
    reason: str

    @property
    def to_do(self) -> bool:
        """Whether the task has yet to run."""
        return self.state in ("ready", "waiting")


def plan(tasks: tuple[Task, ...], layout: Layout, retry: bool = False) -> tuple[Planned, ...]:
    """The state of every task of a study.

    Args:
        tasks: all tasks, each after those it needs (`jobs.pipeline.tasks_of`).
        layout: the study's folder.
        retry: whether tasks that failed are to run again.
    """
    planned: dict[str, Planned] = {}
    for task in tasks:
        if STAGE[task.stage].each == "study":
            task = _with_outcomes(task, planned)
        planned[task.id] = _planned(task, layout, planned, retry)
    return tuple(planned.values())


def run_rows(planned: tuple[Planned, ...]) -> list[RunRow]:
    """What became of each run: `done` if it was measured, else where and why it ended."""
    rows: dict[str, RunRow] = {}
    for entry in planned:
        run = entry.task.run
        if run is None or (run.id in rows and rows[run.id].status != "done"):
            continue
        status = "unfinished" if entry.to_do else entry.state
        reason = "" if status == "done" else f"{entry.task.stage}: {entry.reason}"
        rows[run.id] = RunRow(run, status, reason)
    return list(rows.values())


def _with_outcomes(task: Task, planned: Mapping[str, Planned]) -> Task:
    """A study-wide result also depends on which runs came through: their states belong to its key."""
    states = [(entry.task.key, entry.state, entry.reason) for entry in planned.values() if entry.task.run]
    digest = hashlib.sha256(json.dumps([task.key, states]).encode()).hexdigest()
    return replace(task, key=digest)


def _planned(task: Task, layout: Layout, planned: Mapping[str, Planned], retry: bool) -> Planned:
    outcome = read_outcome(layout.outcome(task.stage, task.name))
    if outcome is not None and outcome.key == task.key:
        ended = _ended(task, outcome, layout)
        if ended is not None and not (retry and ended.state == "failed"):
            return ended
    needs = [planned[need] for need in task.needs]
    if STAGE[task.stage].each == "study":
        needs = [need for need in needs if need.state == "done" or need.to_do or need.task.run is None]
    for need in needs:
        if need.state in FINAL and need.state != "done":
            return Planned(task, "skipped" if need.state == "skipped" else "blocked", _blocked_by(need))
    pending = [need for need in needs if need.to_do]
    reason = _why(task, outcome, layout)
    if pending:
        return Planned(task, "waiting", f"waits for {pending[0].task.label}; {reason}")
    return Planned(task, "ready", reason)


def _blocked_by(need: Planned) -> str:
    """The root cause, without repeating the chain of tasks in between."""
    return need.reason if need.state in ("blocked", "skipped") else f"{need.task.label} {need.state}: {need.reason}"


def _ended(task: Task, outcome: Outcome, layout: Layout) -> Planned | None:
    if outcome.status == "done" and not output_of(task, layout).exists():
        return None
    unchanged = "nothing changed since it was done"
    return Planned(task, outcome.status, unchanged if outcome.status == "done" else outcome.reason)


def _why(task: Task, outcome: Outcome | None, layout: Layout) -> str:
    """Why a task has to run, in words."""
    if outcome is not None and outcome.key == task.key:
        return f"failed before: {outcome.reason}" if outcome.status == "failed" else "its result is gone"
    progress = read_progress(layout.progress(task.stage, task.name), task.key)
    if progress is not None:
        return f"was interrupted at {progress.text}"
    outcome = outcome or _namesake(task, layout)
    if outcome is None:
        return "never ran"
    changes = list(_changes(outcome.section, task.section))
    if changes:
        return f"changed: {', '.join(changes[:3])}" + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")
    return "what it needs has changed"


def _namesake(task: Task, layout: Layout) -> Outcome | None:
    """The latest outcome of a run with the same model, group and seed that was made with other settings."""
    if task.run is None:
        return None
    folder = layout.outcome(task.stage, task.name).parent
    others = [path for path in folder.glob(f"{task.run.label}-????????.outcome.json") if path.is_file()]
    return read_outcome(max(others, key=_age)) if others else None


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _changes(before: Any, after: Any, key: str = "") -> Iterator[str]:
    """The settings that differ, as `training.epochs 5 → 6`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _changes(before.get(name), after.get(name), f"{key}.{name}" if key else name)
    elif before != after:
        yield f"{key} {_short(before)} → {_short(after)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else f"{text[:20]}…"
