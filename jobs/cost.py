"""What a study has cost on a cluster: hours by stage and model over all starts of every job, beside the estimate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from fluence.errors import FluenceError
from fluence.layout import Layout
from fluence.study import Study
from jobs.estimate import estimate_study
from jobs.jobstate import Attempt
from jobs.pipeline import STAGES, Task
from jobs.plan import plan
from jobs.slurm import KEEP_S, Slurm
from jobs.standing import Standing, Standings, standings
from jobs.status import state_rows
from jobs.tasks import POLLED

EARLIER = "(earlier version)"
_HOUR_S = 3600.0


@dataclass(frozen=True)
class Usage:
    """Hours of one stage and model.

    Attributes:
        stage: name of the stage.
        model: name of the model; empty where a stage knows none; `(earlier version)` for runs that the study no longer
            has.
        jobs: number of jobs and elements of arrays that have started.
        starts: how often they were started.
        gpu_hours: GPUs × hours.
        cpu_hours: CPUs × hours.
        preemptions: starts that ended since others went first.
        lost_gpu_hours: of the GPU hours, those that were done again at most, since a start ended badly and another one
            followed.
        lost_cpu_hours: of the CPU hours, the same.
        projected_gpu_hours: GPU hours in all if the rest goes as fast; None if nothing can be said.
    """

    stage: str
    model: str
    jobs: int = 0
    starts: int = 0
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    preemptions: int = 0
    lost_gpu_hours: float = 0.0
    lost_cpu_hours: float = 0.0
    projected_gpu_hours: float | None = None


@dataclass(frozen=True)
class Bill:
    """What a study has cost.

    Attributes:
        usages: by stage and model, in the order of the stages.
        estimates: hours of training and extraction of each model, over all its runs, as `fluence check` estimates them.
        device: what the estimate is for.
        notes: what could not be found out, for people.
    """

    usages: tuple[Usage, ...]
    estimates: Mapping[str, float]
    device: str
    notes: tuple[str, ...]


def cost(
    study: Study, tasks: tuple[Task, ...], layout: Layout, slurm: Slurm | None = None, keep_s: float = KEEP_S
) -> Bill:
    """Adds up what Slurm's accounting says of every start of every job.

    Args:
        study: the study.
        tasks: all its tasks.
        layout: its folder.
        slurm: how Slurm is reached.
        keep_s: how old Slurm's answer may be.
    """
    found = standings(tasks, layout, slurm, keep_s)
    notes = list(found.look.notes) if found.was_submitted else ["nothing was submitted to a cluster"]
    estimates, device = _estimates(study, layout, notes)
    return Bill(tuple(_usages(found, tasks, layout)), estimates, device, tuple(notes))


def _usages(found: Standings, tasks: tuple[Task, ...], layout: Layout) -> Iterable[Usage]:
    models = {task.name: task.run.model for task in tasks if task.run}
    jobs: dict[tuple[str, str], list[_Job]] = defaultdict(list)
    for standing in found.every:
        if standing.job is not None and standing.job.attempts:
            model = models.get(standing.task, EARLIER) if standing.batch.stage in _OF_RUNS else ""
            job = _Job((standing.task, standing.key), _at_risk_s(standing), standing.job.attempts)
            jobs[standing.batch.stage, model].append(job)
    progress = _progress(tasks, layout, found)
    order = {stage.name: place for place, stage in enumerate(STAGES)}
    for stage, model in sorted(jobs, key=lambda pair: (order[pair[0]], pair[1])):
        yield _usage(stage, model, jobs[stage, model], progress.get((stage, model), 0.0))


_OF_RUNS = tuple(stage.name for stage in STAGES if stage.each == "run")


@dataclass(frozen=True)
class _Job:
    """A job: name and key of its task, the seconds of work that one of its starts may lose, and its starts."""

    task: tuple[str, str]
    at_risk_s: float
    starts: tuple[Attempt, ...]


def _usage(stage: str, model: str, jobs: Sequence[_Job], progress: float) -> Usage:
    """Adds up.

    Args:
        stage: name of the stage.
        model: name of the model.
        jobs: the jobs; several may have had the same task, one after the other.
        progress: how much of the stage is done for this model, 0 … 1.
    """
    starts = [start for job in jobs for start in job.starts]
    gpu_hours = sum(start.elapsed_s * start.num_gpus for start in starts) / _HOUR_S
    lost = list(_lost(jobs))
    return Usage(
        stage=stage,
        model=model,
        jobs=len(jobs),
        starts=len(starts),
        gpu_hours=gpu_hours,
        cpu_hours=sum(start.elapsed_s * start.num_cpus for start in starts) / _HOUR_S,
        preemptions=sum(start.was_preempted for start in starts),
        lost_gpu_hours=sum(lost_s * start.num_gpus for lost_s, start in lost) / _HOUR_S,
        lost_cpu_hours=sum(lost_s * start.num_cpus for lost_s, start in lost) / _HOUR_S,
        projected_gpu_hours=gpu_hours / progress if progress and gpu_hours else None,
    )


def _lost(jobs: Sequence[_Job]) -> Iterator[tuple[float, Attempt]]:
    """Starts that ended badly and were followed by another one of the same task, with the seconds it did again."""
    by_task: dict[tuple[str, str], list[tuple[float, Attempt]]] = defaultdict(list)
    for job in jobs:
        by_task[job.task] += [(job.at_risk_s, start) for start in job.starts]
    for starts in by_task.values():
        followed = sorted(starts, key=lambda pair: pair[1].started)[:-1]
        yield from ((min(start.elapsed_s, most_s), start) for most_s, start in followed if not start.ended_well)


def _at_risk_s(standing: Standing) -> float:
    """Seconds of work that a start may lose at most: since the last checkpoint, or all where a stage keeps none."""
    batch = standing.batch
    return batch.checkpoint_interval_s if batch.stage in POLLED else inf


def _progress(tasks: tuple[Task, ...], layout: Layout, found: Standings) -> dict[tuple[str, str], float]:
    """How much of each stage is done for each model, as a mean over its runs."""
    fractions: dict[tuple[str, str], list[float]] = defaultdict(list)
    planned = plan(tasks, layout)
    for entry, row in zip(planned, state_rows(planned, layout, found), strict=True):
        fractions[entry.task.stage, entry.task.run.model if entry.task.run else ""].append(row.fraction)
    return {pair: sum(values) / len(values) for pair, values in fractions.items()}


def _estimates(study: Study, layout: Layout, notes: list[str]) -> tuple[dict[str, float], str]:
    """Hours by model on this machine; none where the images cannot be seen from here."""
    try:
        expected = estimate_study(study, layout)
    except FluenceError as error:
        notes.append(f"no estimate: {error}")
        return {}, ""
    hours: dict[str, float] = defaultdict(float)
    for run in expected.runs:
        hours[run.model] += run.num_seeds * run.hours
    return dict(hours), expected.device


# ── As text ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_TITLES = ("stage", "model", "jobs", "starts", "GPU h", "CPU h", "preempted", "lost ≤ GPU h", "lost ≤ CPU h", "in all")


def cost_table(bill: Bill, study: str) -> str:
    """The bill as text.

    Args:
        bill: what was used.
        study: name of the study.
    """
    lines = [_TITLES, *map(_line, bill.usages), _total(bill.usages)] if bill.usages else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  "
        + "  ".join(
            cell.ljust(w) if n < 2 else cell.rjust(w) for n, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    hours = ", ".join(f"{model} {_hours(found)} h" for model, found in bill.estimates.items())
    remarks = [f"estimate of training and extraction, all runs, on {bill.device} here: {hours}"] if hours else []
    if bill.usages:
        remarks.append(
            "lost: since the last checkpoint of starts that were cut off, and done again by the next; at most"
        )
        remarks.append("in all: GPU h if the rest goes as fast")
    return "\n".join([f"{study}: hours over all starts", *table, *(f"  {text}" for text in (*remarks, *bill.notes))])


def _line(usage: Usage) -> tuple[str, ...]:
    projected = "" if usage.projected_gpu_hours is None else _hours(usage.projected_gpu_hours)
    counts = (str(usage.jobs), str(usage.starts), _hours(usage.gpu_hours), _hours(usage.cpu_hours))
    lost = (str(usage.preemptions), _hours(usage.lost_gpu_hours), _hours(usage.lost_cpu_hours))
    return (usage.stage, usage.model, *counts, *lost, projected)


def _total(usages: Sequence[Usage]) -> tuple[str, ...]:
    return _line(
        Usage(
            stage="sum",
            model="",
            jobs=sum(usage.jobs for usage in usages),
            starts=sum(usage.starts for usage in usages),
            gpu_hours=sum(usage.gpu_hours for usage in usages),
            cpu_hours=sum(usage.cpu_hours for usage in usages),
            preemptions=sum(usage.preemptions for usage in usages),
            lost_gpu_hours=sum(usage.lost_gpu_hours for usage in usages),
            lost_cpu_hours=sum(usage.lost_cpu_hours for usage in usages),
        )
    )


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours < 100 else f"{hours:,.0f}"
