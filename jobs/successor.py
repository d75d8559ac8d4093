"""Where Slurm may not start a job again under its own id, another job takes its place: submitted by the job itself.

It is a batch of its own with the same script, and whatever waited for the first job waits for it instead.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path

from fluence.layout import Layout
from fluence.store.files import atomic_path, write_text
from jobs.jobscript import PICKLE, SCRIPT
from jobs.journal import Batch, Journal
from jobs.pipeline import STAGE, STAGES
from jobs.slurm import Slurm

_ALSO = {
    ("pack", "train"): "afterok",
    ("pack", "extract"): "afterok",
    ("pack", "analyse"): "afterany",
    ("measure", "analyse"): "afterany",
}
"""Whole batches that wait for a stage, besides the next stage of the same run, and for what end of it.

Trainings that wait for other trainings are not among them: only those that wait for this very job wait on.
"""


def submit_successor(slurm: Slurm, layout: Layout, token: str, name: str) -> str:
    """Submits the rest of one task of a batch; returns the id of the new job.

    Args:
        slurm: how Slurm is reached.
        layout: the study's folder.
        token: the batch.
        name: the task.

    Raises:
        NoAnswer: Slurm refuses, for example since compute nodes may not submit.
    """
    journal = Journal(layout)
    batches = {batch.token: batch for batch in journal.read()}
    first = batches[token]
    key = first.keys[first.tasks.index(name)]
    batch = journal.intend(first.site, first.stage, first.resource_class, [name], [key], first.checkpoint_interval_s)
    old, new = layout.submission(token), layout.submission(batch.token)
    write_text(new / SCRIPT, _script((old / SCRIPT).read_text(encoding="utf-8"), token, batch.token))
    _write_pickle(old / PICKLE, new / PICKLE, name)
    job = slurm.sbatch(new / SCRIPT)
    journal.submitted(batch.token, job)
    for waiting in _next_of_run(list(batches.values()), first.stage, name):
        slurm.call("scontrol", "update", f"JobId={waiting}", f"Dependency=afterok:{job}")
    for other in batches.values():
        if other.job and (first.stage, other.stage) in _ALSO:
            _let_wait(slurm, other.job, f"{_ALSO[first.stage, other.stage]}:{job}")
        if other.job and first.job and first.stage == other.stage == "train":
            _let_wait(slurm, other.job, f"afterany:{job}", besides=first.job)
    return job


def _script(text: str, token: str, successor: str) -> str:
    """The same script for one task alone, that waits for nothing."""
    text = re.sub(r"^#SBATCH --(array|dependency)=.*\n", "", text, flags=re.M)
    return text.replace(token, successor).replace("%A_%a", "%j")


def _write_pickle(old: Path, new: Path, name: str) -> None:
    delayed = pickle.loads(old.read_bytes())
    delayed.function = replace(delayed.function, names=(name,))
    with atomic_path(new) as temporary:
        temporary.write_bytes(pickle.dumps(delayed))


def _let_wait(slurm: Slurm, job: str, condition: str, besides: str = "") -> None:
    """Adds a condition to what a job or array waits for; one that waits for nothing any more is left alone.

    Args:
        slurm: how Slurm is reached.
        job: the job or array.
        condition: what it shall wait for, too.
        besides: if given, it is also left alone unless it waits for this job or array.
    """
    shown = slurm.call("scontrol", "show", "job", "--oneliner", job).splitlines()
    found = re.search(r"\bDependency=([^\s(]\S*)", shown[0] if shown else "")
    if found and (not besides or re.search(rf":{besides}(?!\d)", found[1])):
        present = re.sub(r"\([^)]*\)|_\*", "", found[1])
        slurm.call("scontrol", "update", f"JobId={job}", f"Dependency={present},{condition}")


def _next_of_run(batches: list[Batch], stage: str, name: str) -> list[str]:
    """The job of the same run's next stage, if it was submitted."""
    if STAGE[stage].each != "run":
        return []
    names = [one.name for one in STAGES if one.each == STAGE[stage].each]
    following = names[names.index(stage) + 1 :][:1]
    found = [batch for batch in batches if batch.stage in following and name in batch.tasks]
    return [found[-1].elements(found[-1].tasks.index(name))[0]] if found and found[-1].job else []
