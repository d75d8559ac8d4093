"""A job as Slurm tells it: reads the lines of squeue and sacct, and says in plain words what they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

_QUEUED = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_STANDS_STILL = ("SUSPENDED", "STOPPED")
LIVE = (*_QUEUED, *_STANDS_STILL, "CONFIGURING", "RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING")
"""States of a job that has not ended, in Slurm's words."""

_REASONS = {
    "None": "",
    "Priority": "others go first",
    "Resources": "waits for free nodes",
    "Dependency": "waits for the task before it",
    "DependencyNeverSatisfied": "the task before it failed; it will never start",
    "BeginTime": "starts again in a moment",
    "JobArrayTaskLimit": "as many tasks of the array as allowed are running",
    "JobHeldUser": "held; type: scontrol release JOB",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "held, since it was requeued too often; type: scontrol release JOB",
    "launch failed requeued held": "held, since it could not start; type: scontrol release JOB",
    "PartitionTimeLimit": "asks for more time than the partition gives",
    "PartitionNodeLimit": "asks for more nodes than the partition gives",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is closed",
    "ReqNodeNotAvail": "its nodes are reserved or down",
    "Reservation": "waits for a reservation",
    "Licenses": "waits for licences",
    "InvalidAccount": "the account is not allowed there",
    "InvalidQOS": "the QoS is not allowed there",
    "BadConstraints": "no node is as asked for",
}
_REASON_LIKE = (
    ("Nodes required for job are DOWN", "its nodes are down, or reserved for jobs that go first"),
    ("GrpTRESMinutes", "the project's hours are used up"),
    ("GrpCPUMinutes", "the project's hours are used up"),
    ("BillingMinutes", "the project's hours are used up"),
    ("GrpGRES", "the project has as many GPUs at once as it may"),
    ("MaxGRESPerUser", "you have as many GPUs at once as you may"),
    ("MaxTRESPerUser", "you have as much at once as you may"),
    ("MaxJobsPerUser", "you have as many jobs running as you may"),
    ("MaxSubmit", "you have as many jobs queued as you may"),
    ("WallDuration", "asks for more time than the QoS gives"),
    ("Limit", "a limit of the account or the QoS"),
)
_ALMOST = {"CONFIGURING": "starting", "COMPLETING": "ending"}
BY_SLURM = "by Slurm"
_NEVER = (BY_SLURM, "DependencyNeverSatisfied")
_LONG_LIMIT_S, _MARGIN_S = 2100.0, 600.0


@dataclass(frozen=True)
class Attempt:
    """One start of a job.

    Attributes:
        state: how it ended, in Slurm's words, or `RUNNING`.
        started: seconds since the epoch.
        elapsed_s: how long it ran.
        num_cpus: CPUs that it had.
        num_gpus: GPUs that it had.
        limit_s: its time limit; None if it had none.
    """

    state: str
    started: float
    elapsed_s: float
    num_cpus: int
    num_gpus: int
    limit_s: float | None

    @property
    def hit_its_limit(self) -> bool:
        """Whether it ended since its time was over. One that put itself in the queue again is told by when it did."""
        if self.state != "REQUEUED" or self.limit_s is None:
            return self.state == "TIMEOUT"
        margin = _MARGIN_S if self.limit_s >= _LONG_LIMIT_S else self.limit_s / 2
        return self.elapsed_s >= self.limit_s - margin

    @property
    def was_preempted(self) -> bool:
        """Whether another job took its place. One that saved its state first counts as requeued at Slurm."""
        return self.state == "PREEMPTED" or (self.state == "REQUEUED" and not self.hit_its_limit)

    @property
    def ended_well(self) -> bool:
        """Whether nothing it did has to be done again: it came to its end, or saved all when its time was over."""
        return self.state == "COMPLETED" or (self.state == "REQUEUED" and self.hit_its_limit)


@dataclass(frozen=True)
class JobState:
    """A job, or one element of an array, over all its starts.

    Attributes:
        id: such as `4242_3`.
        state: in Slurm's words, such as `RUNNING`.
        reason: why it waits, or by whom it was cancelled.
        node: where it runs or ran.
        elapsed_s: seconds of the present or last start.
        restarts: how often it was started again.
        start: when it started, or may start; seconds since the epoch.
        end_estimate: when its time is over at the latest, or when it ended; seconds since the epoch.
        exit: exit code and signal, as in `1:0`.
        comment: its comment.
        name: its name.
        attempts: every start that the accounting knows, oldest first.
    """

    id: str
    state: str
    reason: str = ""
    node: str = ""
    elapsed_s: float = 0.0
    restarts: int = 0
    start: float | None = None
    end_estimate: float | None = None
    exit: str = ""
    comment: str = ""
    name: str = ""
    attempts: tuple[Attempt, ...] = ()

    @property
    def is_live(self) -> bool:
        """Whether it is queued or running."""
        return self.state in LIVE

    @property
    def is_queued(self) -> bool:
        """Whether it waits for its start."""
        return self.state in _QUEUED

    @property
    def was_never_possible(self) -> bool:
        """Whether Slurm removed it since what it waited for did not come."""
        return self.state == "CANCELLED" and self.reason in _NEVER

    @property
    def words(self) -> str:
        """Its state in plain words."""
        if self.is_queued:
            return self._queued()
        if self.is_live:
            return "suspended" if self.state in _STANDS_STILL else _ALMOST.get(self.state, "running")
        ended = {
            "COMPLETED": "ended",
            "CANCELLED": "cancelled by Slurm" if self.was_never_possible else "cancelled by hand",
            "FAILED": "failed",
            "TIMEOUT": "time limit",
            "DEADLINE": "time limit",
            "OUT_OF_MEMORY": "out of memory",
            "NODE_FAIL": "node lost",
            "BOOT_FAIL": "node lost",
            "PREEMPTED": "preempted",
            "VANISHED": "no longer queued",
        }
        return ended.get(self.state, self.state.lower().replace("_", " "))

    def _queued(self) -> str:
        if not self.restarts:
            return f"queued ({self.reason or self.state.capitalize()})"
        last = self.attempts[-1] if self.attempts else None
        if last is None:
            return "interrupted and queued again"
        if last.state in ("NODE_FAIL", "BOOT_FAIL"):
            return "node lost, queued again"
        if last.hit_its_limit:
            return "time limit, queued again"
        return "preempted and queued again" if last.was_preempted else "interrupted and queued again"

    @property
    def explanation(self) -> str:
        """Why it waits, or what its end means, for people."""
        if self.is_queued:
            return reason_in_words(self.reason)
        if self.was_never_possible:
            return "what it waited for did not come"
        if self.state == "FAILED":
            code, _, signal = self.exit.partition(":")
            return f"ended by signal {signal}" if signal not in ("", "0") else f"exit code {code}"
        return ""


def reason_in_words(reason: str) -> str:
    """Slurm's reason for letting a job wait, in words; as it stands if it is not a usual one."""
    reason = reason.strip("()")
    if reason in _REASONS:
        return _REASONS[reason]
    return next((words for sign, words in _REASON_LIKE if sign in reason), reason)


# ── Lines of squeue and sacct ────────────────────────────────────────────────────────────────────────────────────────


def read_queue(text: str) -> dict[str, JobState]:
    """Jobs as squeue tells them: id, state, reason, nodes, start, end, time used, restarts, user, comment, name."""
    jobs = {}
    for line in text.splitlines():
        id_, state, reason, node, start, end, used, restarts, _, comment, name = map(str.strip, line.split("|", 10))
        for element in expanded(id_):
            jobs[element] = JobState(
                id=element,
                state=state,
                reason="" if reason == "None" else reason,
                node=node,
                elapsed_s=_seconds(used),
                restarts=_whole(restarts),
                start=_moment(start),
                end_estimate=_moment(end),
                comment=comment,
                name=name,
            )
    return jobs


def read_accounts(text: str) -> dict[str, JobState]:
    """Jobs as sacct -D tells them: a line for each start; the last one says how the job stands."""
    lines: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        cells = line.split("|", 12)
        for element in expanded(cells[0]):
            lines.setdefault(element, []).append(cells)
    return {element: _accounted(element, found) for element, found in lines.items()}


def _accounted(element: str, lines: list[list[str]]) -> JobState:
    lines = sorted(lines, key=lambda cells: _moment(cells[4]) or float("inf"))
    attempts = tuple(_attempts(lines))
    _, state, exit_, elapsed, start, end, node, _, _, _, _, comment, name = lines[-1]
    word, _, by = state.partition(" ")
    return JobState(
        id=element,
        state=word,
        reason=by or (BY_SLURM if word == "CANCELLED" else ""),
        node="" if node == "None assigned" else node,
        elapsed_s=float(_whole(elapsed)),
        restarts=len(lines) - 1,
        start=_moment(start),
        end_estimate=_moment(end),
        exit=exit_,
        comment=comment,
        name=name,
        attempts=attempts,
    )


def _attempts(lines: Iterable[list[str]]) -> Iterator[Attempt]:
    for _, state, _, elapsed, start, _, _, cpus, allocated, asked, limit, *_ in lines:
        started = _moment(start)
        if started is not None and (_whole(elapsed) or allocated):
            yield Attempt(
                state=state.partition(" ")[0],
                started=started,
                elapsed_s=float(_whole(elapsed)),
                num_cpus=_whole(cpus),
                num_gpus=_gpus(allocated) or _gpus(asked),
                limit_s=60.0 * int(limit) if limit.isdigit() else None,
            )


def merged(queue: Mapping[str, JobState] | None, accounts: Mapping[str, JobState]) -> dict[str, JobState]:
    """The queue knows better what is; the accounts know better what was.

    Args:
        queue: what squeue says; None if it does not answer.
        accounts: what sacct says. What still runs in there, but not in the queue, has vanished: the accounting was
            not told how it ended.
    """
    jobs = dict(accounts)
    if queue is not None:
        jobs = {
            element: replace(job, state="VANISHED") if job.is_live and element not in queue else job
            for element, job in jobs.items()
        }
    for element, job in (queue or {}).items():
        known = accounts.get(element)
        if known is None:
            jobs[element] = job
            continue
        by = known.reason if job.state == known.state == "CANCELLED" else job.reason
        jobs[element] = replace(
            job,
            attempts=known.attempts,
            restarts=max(job.restarts, known.restarts),
            exit=known.exit,
            reason=by,
        )
    return jobs


_ARRAY = re.compile(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]")


def expanded(element: str) -> list[str]:
    """The single elements of `4242_[0-3,7%2]`; any other id is one of its own."""
    match = _ARRAY.fullmatch(element)
    if match is None:
        return [element]
    numbers: list[int] = []
    for part in match[2].split(","):
        bounds, _, step = part.partition(":")
        first, _, last = bounds.partition("-")
        numbers += range(int(first), int(last or first) + 1, int(step or 1))
    return [f"{match[1]}_{number}" for number in numbers]


def _moment(text: str) -> float | None:
    """Seconds since the epoch; None for `N/A`, `Unknown` and `None`."""
    return float(text) if text.isdigit() and text != "0" else None


def _whole(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _seconds(text: str) -> float:
    """Seconds of `1-02:03:04`, `2:03:04` or `3:04`."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts):
        return 0.0
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return float(seconds + 86400 * _whole(days))


def _gpus(tres: str) -> int:
    """GPUs of `billing=4,cpu=4,gres/gpu=2,gres/gpu:v100=2`."""
    pairs = dict(item.split("=", 1) for item in tres.split(",") if "=" in item)
    typed = sum(_whole(number) for name, number in pairs.items() if name.startswith("gres/gpu:"))
    return _whole(pairs.get("gres/gpu", "")) or typed
