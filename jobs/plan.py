"""The plan: study + files → tasks with a state and a reason in words. Reads outcomes; runs and writes nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fluence.layout import Layout, RunRow
from fluence.store.outcome import Outcome, read_outcome, read_progress
from jobs.pipeline import STAGE, Task, output_of

State = Literal["done", "skipped", "failed", "diverged", "blocked", "ready", "waiting"]
_OUTCOME = ".outcome.json"
_HASHED = len("-1a2b3c4d") + len(_OUTCOME)
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


def plan(
    tasks: tuple[Task, ...], layout: Layout, retry: bool = False, trust_listing: bool = False
) -> tuple[Planned, ...]:
    """The state of every task of a study.

    Args:
        tasks: all tasks, each after those it needs (`jobs.pipeline.tasks_of`).
        layout: the study's folder.
        retry: whether tasks that failed are to run again.
        trust_listing: whether a file that a listing of its folder does not show is not looked for itself. That saves
            thousands of questions, but on a shared file system a listing may be some seconds old: good for showing,
            not for deciding.
    """
    planned: dict[str, Planned] = {}
    folders = _Folders(trust_listing)
    for task in tasks:
        if STAGE[task.stage].each == "study":
            task = _with_outcomes(task, planned)
        planned[task.id] = _planned(task, layout, planned, retry, folders)
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


class _Folders:
    """Names of the files in the folders that a plan reads, each listed once."""

    def __init__(self, trusted: bool) -> None:
        self._trusted = trusted
        self._names: dict[str, frozenset[str]] = {}
        self._labels: dict[str, dict[str, list[str]]] = {}

    def may_hold(self, path: Path) -> bool:
        """Whether it is worth while to look for a file."""
        return not self._trusted or path.name in self._list(str(path.parent))

    def hold(self, path: Path, alone: bool) -> bool:
        """Whether there is such a file; one that is alone in its folder is looked for itself."""
        return path.name in self._list(str(path.parent)) if self._trusted and not alone else path.exists()

    def outcomes_like(self, path: Path, label: str) -> list[Path]:
        """Outcomes beside `path` of runs with this label, whatever their hash."""
        folder = str(path.parent)
        if folder not in self._labels:
            labels = self._labels[folder] = {}
            for name in self._list(folder):
                if name.endswith(_OUTCOME) and name[-_HASHED:][:1] == "-":
                    labels.setdefault(name[:-_HASHED], []).append(name)
        return [path.with_name(name) for name in self._labels[folder].get(label, ())]

    def _list(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                self._names[folder] = frozenset()
        return self._names[folder]


def _planned(task: Task, layout: Layout, planned: Mapping[str, Planned], retry: bool, folders: _Folders) -> Planned:
    path = layout.outcome(task.stage, task.name)
    outcome = read_outcome(path) if folders.may_hold(path) else None
    if outcome is not None and outcome.key == task.key:
        ended = _ended(task, outcome, layout, folders)
        if ended is not None and not (retry and ended.state == "failed"):
            return ended
    needs = [planned[need] for need in task.needs]
    if STAGE[task.stage].each == "study":
        needs = [need for need in needs if need.state == "done" or need.to_do or need.task.run is None]
    for need in needs:
        if need.state in FINAL and need.state != "done":
            return Planned(task, "skipped" if need.state == "skipped" else "blocked", _blocked_by(need))
    pending = [need for need in needs if need.to_do]
    reason = _why(task, outcome, layout, folders)
    if pending:
        return Planned(task, "waiting", f"waits for {pending[0].task.label}; {reason}")
    return Planned(task, "ready", reason)


def _blocked_by(need: Planned) -> str:
    """The root cause, without repeating the chain of tasks in between."""
    return need.reason if need.state in ("blocked", "skipped") else f"{need.task.label} {need.state}: {need.reason}"


def _ended(task: Task, outcome: Outcome, layout: Layout, folders: _Folders) -> Planned | None:
    if outcome.status == "done" and not folders.hold(output_of(task, layout), alone=task.stage == "train"):
        return None
    unchanged = "nothing changed since it was done"
    return Planned(task, outcome.status, unchanged if outcome.status == "done" else outcome.reason)


def _why(task: Task, outcome: Outcome | None, layout: Layout, folders: _Folders) -> str:
    """Why a task has to run, in words."""
    if outcome is not None and outcome.key == task.key:
        return f"failed before: {outcome.reason}" if outcome.status == "failed" else "its result is gone"
    path = layout.progress(task.stage, task.name)
    progress = read_progress(path, task.key) if folders.may_hold(path) else None
    if progress is not None:
        return f"was interrupted at {progress.text}"
    outcome = outcome or _namesake(task, layout, folders)
    if outcome is None:
        return "never ran"
    changes = list(_changes(outcome.section, task.section))
    if changes:
        return f"changed: {', '.join(changes[:3])}" + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")
    return "what it needs has changed"


def _namesake(task: Task, layout: Layout, folders: _Folders) -> Outcome | None:
    """The latest outcome of a run with the same model, group and seed that was made with other settings."""
    if task.run is None:
        return None
    others = folders.outcomes_like(layout.outcome(task.stage, task.name), task.run.label)
    others = [path for path in others if path.is_file()]
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
