"""The verb `submit`: its options, and what it says. A dry run shows all that would be sent, and what it would cost."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator

from fluence.errors import FluenceError, StudyError
from fluence.layout import Layout
from fluence.study import Study
from jobs.batches import STAGE_NAMES, Choice
from jobs.estimate import estimate_study
from jobs.pipeline import Task
from jobs.sites import Site, load_site, placeholders
from jobs.snapshot import Snapshot, take_snapshot
from jobs.submit import Options, Sent, Submission, submit
from jobs.weights import refuse_absent_weights

_GFLOPS_PER_S = {70: 5e3, 75: 3e3, 80: 8e3, 86: 7e3, 89: 12e3, 90: 15e3}
"""What a GPU of each compute capability does of such networks' arithmetic: a guess, a third of its float32 peak."""


def run_submit(given: argparse.Namespace, study: Study, layout: Layout) -> Iterator[str]:
    """Submits a study, or shows what would be submitted.

    Args:
        given: the options of the verb.
        study: the study.
        layout: its folder.

    Yields:
        Lines for the user.

    Raises:
        StudyError: an option, the site or the study is wrong, or weights are missing.
        RunError: Slurm refuses, or cannot be reached.
    """
    site = load_site(given.site, placeholders(given.set))
    choice = Choice(stages=_stages(given.stage), runs=tuple(given.only))
    options = Options(choice, given.checkpoint_interval, given.strict)
    snapshot = take_snapshot(study, layout)
    notes = refuse_absent_weights(study, site)
    done = submit(snapshot, layout, site, options, dry_run=given.dry_run)
    if given.dry_run:
        yield from _scripts(done)
    yield from _batches(done, site)
    yield from (f"note: {note}" for note in notes)
    if given.dry_run:
        yield from _cost(done, snapshot, layout, site)
        yield "nothing was written and nothing was sent"


def _stages(named: list[str]) -> tuple[str, ...]:
    unknown = [stage for stage in named if stage not in STAGE_NAMES]
    if unknown:
        raise StudyError(f"--stage {unknown[0]}: no such stage; there are: {', '.join(STAGE_NAMES)}")
    return tuple(named) or STAGE_NAMES


def _scripts(done: Submission) -> Iterator[str]:
    for sent in done.sent:
        yield f"──── {_title(sent)}"
        yield sent.script
        for index, task in enumerate(sent.draft.tasks):
            yield f"  {index:>4}  {task.label}"
        yield ""


def _title(sent: Sent) -> str:
    number = len(sent.draft.tasks)
    return f"{sent.draft.stage}: {number} task{'s' if number > 1 else ''}"


def _batches(done: Submission, site: Site) -> Iterator[str]:
    """What was sent, what is on its way already, and what was not sent and why."""
    for sent in done.sent:
        wait = "after what it needs" if sent.draft.after else "as soon as there is room"
        yield f"{sent.job and f'job {sent.job}':<12} {_title(sent)} on {site.name}/{sent.draft.resource_class}, {wait}"
    if done.num_in_flight:
        yield f"{done.num_in_flight} tasks are queued or running already"
    if done.num_failed:
        yield f"{done.num_failed} tasks have failed and are not sent; to let them run again, type: fluence retry STUDY"
    if done.drafts.left_out:
        yield f"{_counted(done.drafts.left_out)}: no room for now under your limits; the same command sends them later"
    if done.drafts.in_vain:
        yield f"{_counted(done.drafts.in_vain)}: not sent, since what they need is neither done nor on its way"
    for note in done.notes:
        yield f"note: {note}"
    if not done.sent and not done.num_in_flight:
        yield "nothing to do"


def _counted(tasks: tuple[Task, ...]) -> str:
    return ", ".join(f"{number} × {stage}" for stage, number in Counter(task.stage for task in tasks).items())


# ── Cost ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _cost(done: Submission, snapshot: Snapshot, layout: Layout, site: Site) -> Iterator[str]:
    """Hours of training by the site's billing rule, and disk. Orders of magnitude."""
    try:
        cost = estimate_study(snapshot.study, layout, _GFLOPS_PER_S.get(site["gpu"].caps.gpu_sm or 0))
    except FluenceError as problem:
        yield f"hours and disk are unknown: {str(problem).splitlines()[0]}"
        return
    gpu = site["gpu"]
    ranks = gpu.nodes * gpu.tasks_per_node
    hours_of = {(run.model, run.group): run.hours / ranks for run in cost.runs}
    runs = [task.run for sent in done.sent for task in sent.draft.tasks if task.stage == "train" and task.run]
    hours = sum(hours_of.get((run.model, run.group), 0.0) for run in runs)
    gpu_hours, billed = _short(hours * gpu.nodes * gpu.gpus_per_node), _short(gpu.billed_hours(hours))
    yield (
        f"about {gpu_hours} GPU hours for {len(runs)} trainings and extractions, {billed} {gpu.caps.billing_unit} at "
        f"this site (arithmetic over {cost.gflops_per_s:.2g} GFLOP/s: an order of magnitude)"
    )
    parts = ", ".join(f"{kind} {gb:.2g}" for kind, gb in cost.disk_gb.items())
    yield f"about {cost.total_gb:.2g} GB of disk for the whole study ({parts})"


def _short(number: float) -> str:
    return "0.01" if 0 < number < 0.01 else f"{number:.2g}" if number < 100 else f"{number:,.0f}"
