"""Hands a study to Slurm: what is neither done nor queued nor running, as arrays by stage and resource class.

Every batch is written into the journal before sbatch is called and its id after, so that a second submission finds
what the first one has sent, even if it was cut off in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from fluence.errors import RunError, StudyError
from fluence.layout import Layout
from fluence.store.files import atomic_path, write_text
from jobs.batches import Choice, Draft, Drafts, Room, draft
from jobs.bodies import Execution
from jobs.code import code_folder, freeze_code
from jobs.jobscript import PICKLE, SCRIPT, Place, job_parameters, job_script, refuse_strange_folder
from jobs.journal import Batch, Journal
from jobs.limits import room
from jobs.plan import Planned, plan
from jobs.sites import Site
from jobs.slurm import NoAnswer, Slurm
from jobs.snapshot import Snapshot
from jobs.standing import standings
from jobs.tasks import ClusterTask

_UNKNOWN = "fl-000000000000"
_NEVER = 1_000_000


@dataclass(frozen=True)
class Options:
    """How a study is submitted.

    Attributes:
        choice: which tasks.
        checkpoint_interval_s: seconds between two checkpoints.
        strict: whether an unusable image is an error.
    """

    choice: Choice = field(default_factory=Choice)
    checkpoint_interval_s: float = 600.0
    strict: bool = False


@dataclass(frozen=True)
class Sent:
    """A batch and its script.

    Attributes:
        draft: the batch.
        script: what sbatch was given, or would be.
        job: id of the job or array; empty in a dry run.
    """

    draft: Draft
    script: str
    job: str = ""


@dataclass(frozen=True)
class Submission:
    """What was submitted, or would be.

    Attributes:
        sent: the batches.
        drafts: the same, with what was left out and why.
        num_in_flight: tasks that were queued or running before.
        num_failed: tasks that failed; they are not sent again by themselves.
        notes: what Slurm could not be asked, for people.
    """

    sent: tuple[Sent, ...]
    drafts: Drafts
    num_in_flight: int
    num_failed: int
    notes: tuple[str, ...]


def submit(
    snapshot: Snapshot,
    layout: Layout,
    site: Site,
    options: Options = Options(),
    slurm: Slurm | None = None,
    dry_run: bool = False,
) -> Submission:
    """Submits a study, or what is left of it.

    Args:
        snapshot: the study.
        layout: its folder.
        site: the cluster.
        options: what, and how.
        slurm: how Slurm is reached.
        dry_run: whether to write and send nothing.

    Raises:
        StudyError: the folder's path is not for Slurm, or no run has such a name.
        UnwritableError: the folder is not writable.
        RunError: sbatch refuses, with its own words; what was sent before stays.
    """
    refuse_strange_folder(layout)
    _refuse_unknown_runs(snapshot, options.choice)
    return _Submitting(snapshot, layout, site, options, slurm or Slurm(layout.slurm_answers), dry_run).run()


class _Submitting:
    """One submission on its way."""

    def __init__(
        self, snapshot: Snapshot, layout: Layout, site: Site, options: Options, slurm: Slurm, dry_run: bool
    ) -> None:
        self._snapshot, self._layout, self._site, self._options = snapshot, layout, site, options
        self._slurm, self._dry_run, self._journal = slurm, dry_run, Journal(layout)

    def run(self) -> Submission:
        """Sends what is neither done nor on its way; a dry run also works where Slurm does not answer."""
        notes: tuple[str, ...] = ()
        in_flight: dict[str, tuple[str, str]] = {}
        try:
            in_flight = self._in_flight()
            free, notes = room(self._site, self._slurm)
        except NoAnswer as problem:
            if not self._dry_run:
                raise
            notes = (str(problem),)
            free = Room()
        planned = self._planned()
        drafts = draft(planned, in_flight, free, self._options.choice)
        sent = tuple(self._shown(drafts) if self._dry_run else self._sent(drafts))
        num_failed = sum(entry.state == "failed" for entry in planned)
        return Submission(sent, drafts, len(in_flight), num_failed, notes)

    def _planned(self) -> list[Planned]:
        """The plan, with keys that do not depend on what became of the runs: those are known only later."""
        tasks = self._snapshot.tasks
        planned = plan(tasks, self._layout)
        return [replace(entry, task=task) for entry, task in zip(planned, tasks, strict=True)]

    # ── What is on its way already ───────────────────────────────────────────────────────────────────────────────

    def _in_flight(self) -> dict[str, tuple[str, str]]:
        """Key, and job or array, of each task that is queued or running."""
        found = standings(self._snapshot.tasks, self._layout, self._slurm, keep_s=0)
        if not found.look.has_queue:
            raise NoAnswer(f"{'; '.join(found.look.notes)}; nothing is submitted, since it might be queued already")
        live = [standing for standing in found.every if standing.is_live and standing.batch.job is not None]
        if not self._dry_run:
            self._note_found({standing.batch.token: standing.batch.job or "" for standing in live})
        return {f"{one.batch.stage}/{one.task}": (one.key, one.batch.job or "") for one in live}

    def _note_found(self, jobs: dict[str, str]) -> None:
        """Batches whose answer from sbatch was lost get the id that the queue tells."""
        for batch in self._journal.read():
            if batch.job is None and batch.token in jobs:
                self._journal.submitted(batch.token, jobs[batch.token])

    # ── Sending ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _sent(self, drafts: Drafts) -> Iterator[Sent]:
        if not drafts.drafts:
            return
        snapshot, code = self._snapshot.save(self._layout), freeze_code(self._layout)
        jobs: list[str] = []
        for one in drafts.drafts:
            names, keys = [task.name for task in one.tasks], [task.key for task in one.tasks]
            batch = self._journal.intend(
                self._site.name, one.stage, one.resource_class, names, keys, self._options.checkpoint_interval_s
            )
            place = Place(self._layout.submission(batch.token), snapshot, code)
            sent = self._send(one, batch, place, _after(one, jobs))
            jobs.append(sent.job)
            yield sent

    def _send(self, one: Draft, batch: Batch, place: Place, after: str) -> Sent:
        parameters = job_parameters(self._site, one, batch.token, self._journal.comment(batch), after)
        script = job_script(self._site, one, place, parameters)
        write_text(place.folder / SCRIPT, script)
        self._write_pickle(one, place, parameters["timeout_min"])
        try:
            answer = self._slurm.sbatch(place.folder / SCRIPT)
        except NoAnswer as problem:
            raise RunError(
                f"{self._site.name}: {one.stage}: {problem}\nwhat was submitted before stays queued; when this is "
                f"mended, the same command sends the rest. The script: {place.folder / SCRIPT}"
            ) from problem
        self._journal.submitted(batch.token, answer)
        self._slurm.forget()
        return Sent(one, script, answer)

    def _write_pickle(self, one: Draft, place: Place, time_min: int) -> None:
        from submitit.helpers import DelayedSubmission

        cores = self._site[one.resource_class].cpus_per_task
        execution = Execution(self._options.checkpoint_interval_s, cores, self._options.strict, starts_again=True)
        names = tuple(task.name for task in one.tasks)
        delayed = DelayedSubmission(ClusterTask(place.snapshot, one.stage, names, execution, place.folder.name))
        delayed.set_timeout(time_min, _NEVER)  # submitit's clock guesses; when to give up is counted in jobs.starts
        with atomic_path(place.folder / PICKLE) as temporary:
            delayed.dump(temporary)

    def _shown(self, drafts: Drafts) -> Iterator[Sent]:
        """The scripts with stand-ins where Slurm would give an id."""
        place = Place(self._layout.submission(_UNKNOWN), self._snapshot.path(self._layout), code_folder(self._layout))
        jobs = [f"JOB{number}" for number in range(1, len(drafts.drafts) + 1)]
        for one in drafts.drafts:
            comment = f"{_UNKNOWN} {one.stage} {self._journal.mark}"
            parameters = job_parameters(self._site, one, _UNKNOWN, comment, _after(one, jobs))
            yield Sent(one, job_script(self._site, one, place, parameters))


def _after(one: Draft, jobs: list[str]) -> str:
    """The dependency as sbatch takes it: `afterok:12,aftercorr:13`; all of it must come true."""
    kinds: dict[str, list[str]] = {}
    for kind, other in one.after:
        kinds.setdefault(kind, []).append(jobs[other] if isinstance(other, int) else other)
    return ",".join(":".join([kind, *dict.fromkeys(ids)]) for kind, ids in kinds.items())


def _refuse_unknown_runs(snapshot: Snapshot, choice: Choice) -> None:
    known = {name for task in snapshot.tasks if task.run for name in (task.run.id, task.run.label)}
    if unknown := [name for name in choice.runs if name not in known]:
        labels = sorted({task.run.label for task in snapshot.tasks if task.run})
        raise StudyError(
            f"--only {unknown[0]!r}: no run has that name; there are: {', '.join(labels[:8])}"
            + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
        )
