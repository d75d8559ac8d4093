"""Takes back: cancels what is queued or running, and forgets failures so that they run again."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Collection, Sequence

from fluence.errors import StudyError
from fluence.layout import Layout
from fluence.store.files import explained
from jobs.journal import Journal
from jobs.pipeline import Task
from jobs.plan import Planned
from jobs.slurm import NoAnswer, Slurm
from jobs.standing import Standing, standings


def refuse_unknown(tasks: Sequence[Task], names: Collection[str]) -> None:
    """Raises StudyError for the first name that is no run of the study."""
    known = {name for task in tasks if task.run for name in (task.run.id, task.run.label)}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "type fluence status STUDY to see them"
            raise StudyError(f"{name!r}: the study has no run of that name; {hint}")


def _is_meant(task: Task, names: Collection[str]) -> bool:
    return not names or (task.run is not None and bool({task.run.id, task.run.label} & set(names)))


def cancel(tasks: Sequence[Task], layout: Layout, names: Collection[str] = (), slurm: Slurm | None = None) -> list[str]:
    """Cancels queued and running tasks; what they have saved stays.

    Args:
        tasks: all tasks of the study.
        layout: its folder.
        names: ids or labels of runs; none for everything that was submitted for this folder, whatever the study says
            by now.
        slurm: how Slurm is reached.

    Returns:
        The ids of what was cancelled.

    Raises:
        StudyError: the study has no such run.
        NoAnswer: Slurm does not answer, or refuses.
    """
    refuse_unknown(tasks, names)
    slurm = slurm or Slurm(layout.slurm_answers)
    found = standings(tasks, layout, slurm, keep_s=0)
    if not found.look.has_queue and not layout.submissions.is_dir():
        return []  # nothing was ever submitted from here; Slurm may not even be installed
    if not found.look.has_queue:
        raise NoAnswer(f"nothing is cancelled: {'; '.join(found.look.notes)}")
    present = {task.id: task for task in tasks}
    live = [
        standing
        for standing in found.every
        if standing.is_live and _is_meant_by(present.get(f"{standing.batch.stage}/{standing.task}"), standing, names)
    ]
    elements = [standing.element for standing in live]
    if not names:
        elements += [job.id for job in found.unassigned]
    if elements:
        _write_down(live, Journal(layout))
        slurm.cancel(elements)
    return elements


def _is_meant_by(task: Task | None, standing: Standing, names: Collection[str]) -> bool:
    return not names or standing.task in names or (task is not None and _is_meant(task, names))


def _write_down(live: Sequence[Standing], journal: Journal) -> None:
    """Before it is done: a task that comes to its end meanwhile has an outcome, and that counts for more."""
    by_batch: dict[str, list[str]] = defaultdict(list)
    for standing in live:
        by_batch[standing.batch.token].append(standing.task)
    for token, tasks in by_batch.items():
        journal.cancelled(token, tasks)


def retry(planned: Sequence[Planned], layout: Layout, names: Collection[str] = ()) -> list[Task]:
    """Forgets failures; the next `fluence submit` or `fluence run` tries again, from the last checkpoint on.

    Args:
        planned: every task with its state.
        layout: the study's folder.
        names: ids or labels of runs; with them, diverged trainings are forgotten, too. None for all that failed.

    Returns:
        The tasks that will run again.

    Raises:
        StudyError: the study has no such run.
        UnwritableError: the folder is not writable.
    """
    refuse_unknown([entry.task for entry in planned], names)
    states = ("failed", "diverged") if names else ("failed",)
    chosen = [entry.task for entry in planned if entry.state in states and _is_meant(entry.task, names)]
    for task in chosen:
        for path in (layout.outcome(task.stage, task.name), layout.starts(task.stage, task.name)):
            with explained(path):
                path.unlink(missing_ok=True)
    return chosen
