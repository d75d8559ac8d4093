"""Where each task of a study stands at Slurm: the journal and one look at the queue, put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fluence.layout import Layout
from jobs.jobstate import JobState
from jobs.journal import TOKEN, Batch, Journal
from jobs.pipeline import Task
from jobs.slurm import KEEP_S, Look, Slurm, Wanted


@dataclass(frozen=True)
class Standing:
    """One task of one batch, and what Slurm says of it.

    Attributes:
        batch: how it was submitted.
        index: its place in the batch.
        job: its job or element of the array; None if Slurm does not know it.
        look: what Slurm was asked.
    """

    batch: Batch
    index: int
    job: JobState | None
    look: Look

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.batch.tasks[self.index]

    @property
    def key(self) -> str:
        """Key of the task when it was submitted."""
        return self.batch.keys[self.index]

    @property
    def element(self) -> str:
        """Id at Slurm, or an empty string."""
        return self.job.id if self.job else next(iter(self.batch.elements(self.index)), "")

    @property
    def is_live(self) -> bool:
        """Whether it is queued or running, or may be: without an answer of Slurm nobody can say that it is not."""
        if self.job is not None:
            return self.job.is_live
        return not self.look.has_queue and self.task not in self.batch.cancelled

    @property
    def words(self) -> str:
        """Its state in plain words; an end is only told of if it left no outcome."""
        if self.job is not None and self.job.is_live:
            return self.job.words
        if self.task in self.batch.cancelled:
            return "cancelled"
        if self.job is not None:
            return "ended without a result" if self.job.state == "COMPLETED" else self.job.words
        if not self.look.has_queue:
            return "unknown (Slurm does not answer)"
        if self.batch.job is None:
            return "not submitted"
        return "cancelled by hand" if self.look.has_accounts else "no longer queued"

    @property
    def explanation(self) -> str:
        """Why, and what to type."""
        if self.job is not None and self.job.is_live:
            return self.job.explanation
        again = f"type: fluence submit STUDY --site {self.batch.site}"
        because = self.job.explanation if self.job else ""
        if self.job is None and not self.look.has_queue:
            return ""
        if self.job is None and self.batch.job is None:
            because = "sbatch was not called, or refused"
        return f"{because}; {again}" if because else again

    @property
    def was_never_possible(self) -> bool:
        """Whether Slurm removed it since what it waited for did not come."""
        return self.job is not None and self.job.was_never_possible and self.task not in self.batch.cancelled


@dataclass(frozen=True)
class Standings:
    """Where the tasks of a study stand at Slurm.

    Attributes:
        of: by the task's id; only those that were submitted as they are now.
        every: all that was ever submitted, of whatever version of the study.
        outdated: queued or running, but of an earlier version of the study.
        unassigned: queued or running for this folder, but no batch that is known has them.
        look: what Slurm was asked.
    """

    of: Mapping[str, Standing]
    every: tuple[Standing, ...]
    outdated: tuple[Standing, ...]
    unassigned: tuple[JobState, ...]
    look: Look

    @property
    def was_submitted(self) -> bool:
        """Whether anything of the study ever was."""
        return bool(self.every)


def standings(tasks: Sequence[Task], layout: Layout, slurm: Slurm | None = None, keep_s: float = KEEP_S) -> Standings:
    """Asks the journal and Slurm about every task.

    Args:
        tasks: all tasks of the study, as in its snapshot: with keys that do not depend on what became of the runs.
        layout: the study's folder.
        slurm: how Slurm is reached.
        keep_s: how old Slurm's answer may be, in seconds; 0 to ask now.
    """
    slurm = slurm or Slurm(layout.slurm_answers)
    journal = Journal(layout)
    batches = journal.read()
    look = slurm.look(wanted(batches, journal.mark), keep_s)
    found = {match[0]: _base(job) for job in look.jobs.values() if (match := TOKEN.search(f"{job.name} {job.comment}"))}
    batches = [replace(batch, job=batch.job or found.get(batch.token)) for batch in batches]
    present = {task.id: task for task in tasks}
    of: dict[str, Standing] = {}
    every = tuple(_each(batches, look))
    outdated = []
    for standing in every:
        name = f"{standing.batch.stage}/{standing.task}"
        if name in present and present[name].key == standing.key:
            of[name] = max(of.get(name, standing), standing, key=_rank)
        elif standing.is_live:
            outdated.append(standing)
    known = {batch.job for batch in batches}
    unassigned = tuple(job for job in look.jobs.values() if job.is_live and _base(job) not in known)
    return Standings(of, every, tuple(outdated), unassigned, look)


def wanted(batches: Sequence[Batch], mark: str) -> Wanted:
    """What to ask Slurm about: ids where they are known, and tokens where they are not."""
    lost = frozenset(batch.token for batch in batches if batch.job is None)
    return Wanted(
        jobs=frozenset(batch.job for batch in batches if batch.job is not None),
        words=lost | {mark},
        lost=lost,
        users=frozenset(batch.user for batch in batches if batch.user.isdigit()),
        since=min((batch.submitted_at for batch in batches), default=0.0),
    )


def _each(batches: Sequence[Batch], look: Look) -> Iterator[Standing]:
    for batch in batches:
        for index in range(len(batch.tasks)):
            jobs = (look.jobs.get(element) for element in batch.elements(index))
            yield Standing(batch, index, next((job for job in jobs if job is not None), None), look)


def _rank(standing: Standing) -> tuple[bool, bool, float]:
    """Which of several submissions of one task counts: what runs, then what is queued, then the latest."""
    job = standing.job
    runs = job is not None and job.is_live and not job.is_queued
    return runs, standing.is_live, standing.batch.submitted_at


def _base(job: JobState) -> str:
    """The id of the job or of its whole array."""
    return job.id.partition("_")[0]
