"""What became of a study, as a table: read from its files and from one look at the queue, without touching a task."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from fluence.errors import StudyError
from fluence.layout import Layout
from fluence.store.files import explained
from fluence.store.outcome import Progress, read_progress
from jobs.pipeline import STAGES, Task
from jobs.plan import Planned
from jobs.standing import Standing, Standings

_FRESH_S = 60.0


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Holds the study's folder for one `fluence run`, `submit` or `report`.

    Where the file system has no locks, nothing is held; `fluence doctor` says so.

    Raises:
        StudyError: another one holds it.
        UnwritableError: the folder is not writable.
    """
    with explained(layout.root):
        layout.lock.parent.mkdir(parents=True, exist_ok=True)
        file = layout.lock.open("a")
    with file:
        if not _hold(file, fcntl.LOCK_EX):
            raise StudyError(
                f"{layout.root}: another fluence is at work there; wait until it ends, or give another --output"
            )
        yield


def is_locked(layout: Layout) -> bool:
    """Whether somebody holds the folder."""
    try:
        with layout.lock.open() as file:
            return not _hold(file, fcntl.LOCK_SH)
    except OSError:
        return False


def _hold(file: IO[str], how: int) -> bool:
    """Takes a file's lock; False if somebody else has it."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # there are no locks here
        return True
    return True


@dataclass(frozen=True)
class Row:
    """One task and how it stands.

    Attributes:
        stage: name of its stage.
        task: its name.
        run: readable name of its run, or an empty string.
        state: in plain words.
        fraction: how much of it is done, 0 … 1.
        reason: why it is so, or where a running task stands.
        epoch: the epoch that a training is in.
        loss: its last loss.
        restarts: how often its job was started again.
        elapsed_s: seconds that it has run for, over all starts.
        end_estimate: when it may end, in seconds since the epoch.
        job: its job, or its element of an array.
        node: where that runs.
        log: what it prints, or an empty string if there is nothing yet.
    """

    stage: str
    task: str
    run: str
    state: str
    fraction: float
    reason: str
    epoch: int | None = None
    loss: float | None = None
    restarts: int = 0
    elapsed_s: float | None = None
    end_estimate: float | None = None
    job: str = ""
    node: str = ""
    log: str = ""

    @property
    def kind(self) -> str:
        """The state without figures and reasons: `running`, `queued`, `preempted and queued again`, `done`, …"""
        words = self.state.partition(" (")[0]
        return words.rpartition(" ")[0] if words.endswith("%") else words


def state_rows(planned: tuple[Planned, ...], layout: Layout, at_slurm: Standings | None = None) -> list[Row]:
    """One row per task.

    Args:
        planned: every task with its state.
        layout: the study's folder.
        at_slurm: where the tasks stand at Slurm; None if nothing was submitted.
    """
    active, files, now = is_locked(layout), _files(layout), time.time()
    return [_Case(entry, layout, at_slurm, files[entry.task.stage], active, now).row() for entry in planned]


def _files(layout: Layout) -> dict[str, set[str]]:
    """Names of the files about each stage's tasks: one look at a folder, and not three at each task."""
    names: dict[str, set[str]] = {}
    for stage in STAGES:
        try:
            names[stage.name] = set(os.listdir(layout.log(stage.name, "any").parent))
        except FileNotFoundError:
            names[stage.name] = set()
    return names


class _Case:
    """What is known of one task."""

    def __init__(
        self, entry: Planned, layout: Layout, at_slurm: Standings | None, files: set[str], active: bool, now: float
    ) -> None:
        self._entry, self._task, self._active, self._now = entry, entry.task, active, now
        self._standing = at_slurm.of.get(self._task.id) if at_slurm else None
        self._progress = _progress(self._task, layout, files) if entry.to_do else None
        log = layout.log(self._task.stage, self._task.name)
        self._log = str(log) if log.name in files else self._job_log(layout)

    def row(self) -> Row:
        """The row of the task."""
        task, progress = self._task, self._progress
        state, reason = self._words()
        facts = progress.facts if progress else {}
        job = self._standing.job if self._standing else None
        elapsed_s = self._elapsed_s()
        return Row(
            stage=task.stage,
            task=task.name,
            run=task.run.label if task.run else "",
            state=state,
            fraction=1.0 if self._entry.state == "done" else progress.fraction if progress else 0.0,
            reason=reason,
            epoch=facts.get("epoch"),
            loss=facts.get("loss"),
            restarts=job.restarts if job else 0,
            elapsed_s=elapsed_s,
            end_estimate=self._end(elapsed_s),
            job=self._standing.element if self._standing else "",
            node=job.node if job and self._runs else "",
            log=self._log,
        )

    def _job_log(self, layout: Layout) -> str:
        """What its job printed, where the task itself has not come to that."""
        standing = self._standing
        if self._entry.state == "done" or standing is None or standing.job is None or standing.job.is_queued:
            return ""
        path = layout.job_log(standing.batch.token, standing.element)
        return str(path) if path.exists() else ""

    @property
    def _runs(self) -> bool:
        """Whether Slurm has it running now."""
        job = self._standing.job if self._standing else None
        return job is not None and job.is_live and not job.is_queued

    def _words(self) -> tuple[str, str]:
        """The state, and why it is so."""
        entry, progress, standing = self._entry, self._progress, self._standing
        if not entry.to_do:
            return entry.state, entry.reason
        if progress is not None and self._active and self._now - progress.updated < _FRESH_S:
            return f"running {progress.fraction:.0%}", _place(progress)
        if standing is not None and (standing.is_live or not self._went_on_since(standing)):
            return self._at_slurm(standing)
        return (f"paused {progress.fraction:.0%}", entry.reason) if progress else ("waiting", entry.reason)

    def _at_slurm(self, standing: Standing) -> tuple[str, str]:
        words, progress = standing.words, self._progress
        if words == "running" and progress is not None:
            return f"running {progress.fraction:.0%}", _place(progress)
        if self._task.run is None and standing.job is not None and standing.job.state == "COMPLETED":
            return "waiting", self._entry.reason  # it took what was done then
        if standing.was_never_possible and self._entry.state == "waiting":
            return "waiting", f"{self._entry.reason}; {standing.explanation}"
        place = f"at {_place(progress)}" if progress is not None and progress.fraction else ""
        return words, "; ".join(part for part in (place, standing.explanation) if part)

    def _went_on_since(self, standing: Standing) -> bool:
        """Whether somebody worked on it here after its job had gone."""
        ended = standing.job.end_estimate if standing.job else None
        return self._progress is not None and ended is not None and self._progress.updated > ended + _FRESH_S

    def _elapsed_s(self) -> float | None:
        """Seconds over all starts; None if they are not all known."""
        job = self._standing.job if self._standing else None
        if job is None or not self._entry.to_do:
            return None
        before = job.attempts[: job.restarts]
        if len(before) < job.restarts:
            return None
        past = sum(attempt.elapsed_s for attempt in before)
        return past + (self._now - job.start if self._runs and job.start else 0.0 if job.is_queued else job.elapsed_s)

    def _end(self, elapsed_s: float | None) -> float | None:
        """When it ends if it goes on as fast as until now."""
        progress = self._progress
        if not self._runs or progress is None or not progress.fraction or not elapsed_s:
            return None
        return self._now + elapsed_s * (1 - progress.fraction) / progress.fraction


def _progress(task: Task, layout: Layout, files: set[str]) -> Progress | None:
    path = layout.progress(task.stage, task.name)
    return read_progress(path, task.key) if path.name in files else None


def _place(progress: Progress) -> str:
    loss = progress.facts.get("loss")
    return progress.text + (f", loss {loss:.4g}" if loss is not None else "")
