"""Slurm's own commands: the only module that calls sbatch, squeue, sacct, scancel and scontrol, and reads their words.

One look at all jobs of a study is one `squeue` and at most one `sacct`, kept in the study's folder for a minute, so
that many looks from many shells stay one call. No shell ever sees an argument.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluence.errors import ArtifactError, RunError
from fluence.store.files import read_json, write_json
from jobs.jobstate import LIVE, JobState, merged, read_accounts, read_queue

KEEP_S = 60.0
"""How long an answer counts. Polling more often than once a minute has brought clusters to a halt."""

_QUEUE_FIELDS = {
    "JobArrayID": 40,
    "State": 20,
    "Reason": 100,
    "NodeList": 80,
    "StartTime": 20,
    "EndTime": 20,
    "TimeUsed": 20,
    "RestartCnt": 10,
    "UserID": 12,
    "Comment": 64,
    "Name": 64,
}
_ACCOUNT_FIELDS = (
    "JobID,State,ExitCode,ElapsedRaw,Start,End,NodeList,AllocCPUS,AllocTRES,ReqTRES,TimelimitRaw,Comment,JobName"
)
_IDS_AT_ONCE = 200
_HAVE_ENDED = ("already completing or completed", "already finished", "Invalid job id specified")


_BUSY = ("did not answer within", "timed out", "Unable to contact")


class NoAnswer(RunError):
    """A command of Slurm is missing, refuses, or takes too long."""

    @property
    def may_pass(self) -> bool:
        """Whether Slurm is only busy, and may answer in a moment."""
        return any(words in str(self) for words in _BUSY)


@dataclass(frozen=True)
class Answer:
    """What a command said.

    Attributes:
        code: its exit code.
        out: what it printed.
        err: what it complained about.
    """

    code: int
    out: str
    err: str = ""


def run_command(arguments: Sequence[str], timeout_s: float) -> Answer:
    """Runs one of Slurm's commands, without the habits that a user may have set for it in the environment.

    Raises:
        NoAnswer: there is no such command, or it takes too long.
    """
    habits = ("SQUEUE_", "SACCT_", "SCANCEL_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(habits)}
    if arguments[0] == "sbatch":
        environment = {name: value for name, value in environment.items() if not _of_another_job(name)}
    environment |= {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            list(arguments),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise NoAnswer(f"there is no {arguments[0]} here") from error
    except PermissionError as error:
        raise NoAnswer(f"{arguments[0]} may not be run here") from error
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"{arguments[0]} did not answer within {timeout_s:.0f} s") from error
    return Answer(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def _of_another_job(name: str) -> bool:
    """What a shell, or the job that this runs in, would otherwise put in place of a script's own options."""
    return name.startswith("SBATCH_") or (name.startswith("SLURM_") and not name.startswith("SLURM_CONF"))


@dataclass(frozen=True)
class Look:
    """What Slurm knows of a study's jobs.

    Attributes:
        jobs: by the id of the job or of the array's element, such as `4242_3`.
        time: when Slurm was asked, in seconds since the epoch.
        has_queue: whether squeue answered.
        has_accounts: whether sacct answered.
        num_queued: jobs of this user that are queued or running, whatever they are for; each element counts.
        notes: what could not be asked, for people.
    """

    jobs: dict[str, JobState] = field(default_factory=dict)
    time: float = 0.0
    has_queue: bool = False
    has_accounts: bool = False
    num_queued: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """Which jobs a study has.

    Attributes:
        jobs: ids of jobs and arrays.
        words: tokens, and the mark of the folder; a job with one of them in its name or comment belongs to it, too.
        lost: those of the words that sacct has to be searched for, since no id is known for them.
        users: ids of the users that have submitted; this one always counts.
        since: when the first job was submitted, in seconds since the epoch.
    """

    jobs: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    since: float = 0.0


class Slurm:
    """Slurm as this machine reaches it.

    Args:
        cache: file in which answers are kept (`Layout.slurm_answers`); None to ask every time.
        run: calls a command; tests give another.
        now: the clock.
    """

    def __init__(
        self,
        cache: Path | None = None,
        run: Callable[[Sequence[str], float], Answer] = run_command,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._cache, self._run, self._now = cache, run, now

    def call(self, *arguments: str, timeout_s: float = 30.0) -> str:
        """What a command prints.

        Raises:
            NoAnswer: it is missing, takes too long, or refuses; with its own words.
        """
        answer = self._run(arguments, timeout_s)
        if answer.code != 0:
            said = " ".join(answer.err.split()) or f"exit code {answer.code}"
            raise NoAnswer(said if said.startswith(arguments[0]) else f"{arguments[0]}: {said}")
        return answer.out

    # ── Look ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self, wanted: Wanted, keep_s: float = KEEP_S) -> Look:
        """What Slurm knows of these jobs: one squeue and at most one sacct, or what they said a moment ago.

        Args:
            wanted: the jobs.
            keep_s: how old an answer may be; 0 to ask now.
        """
        asked = sorted(wanted.jobs | wanted.words)
        kept = self._kept(asked)
        if kept is None or not 0 <= self._now() - kept["time"] < keep_s:
            kept = {"asked": asked, **self._ask(wanted)}
            self._keep(kept)
        queue, accounts = kept["queue"], kept["accounts"]
        return Look(
            jobs=merged(None if queue is None else read_queue(queue), read_accounts(accounts or "")),
            time=kept["time"],
            has_queue=queue is not None,
            has_accounts=accounts is not None,
            num_queued=kept["num_queued"],
            notes=tuple(kept["notes"]),
        )

    def forget(self) -> None:
        """Makes the next look ask again, after something was submitted or cancelled."""
        if self._cache is not None:
            with suppress(OSError):
                self._cache.unlink(missing_ok=True)

    def _ask(self, wanted: Wanted) -> dict[str, Any]:
        queue, accounts, num_queued, notes = None, None, 0, []
        try:
            patience_s = 30.0 if wanted.jobs or wanted.lost else 5.0
            text = self.call("squeue", *_queue_arguments(wanted.users | {str(os.getuid())}), timeout_s=patience_s)
            queue, num_queued = _ours(text, wanted.jobs, wanted.words, 9), _num_live(text)
        except NoAnswer as error:
            notes.append(f"the queue cannot be seen: {error}")
        known = wanted.jobs | {_base(line.split("|", 1)[0]) for line in (queue or "").splitlines()}
        lost = {word for word in wanted.lost if word not in (queue or "")}
        if known or lost:
            try:
                text = self.call("sacct", *_account_arguments(known, lost, wanted), timeout_s=60.0)
                accounts = _ours(text, known, wanted.words, 11)
            except NoAnswer as error:
                notes.append(f"no accounting: {error}")
        return {
            "time": self._now(),
            "queue": queue,
            "accounts": accounts,
            "num_queued": num_queued,
            "notes": notes,
        }

    def _kept(self, asked: list[str]) -> dict[str, Any] | None:
        if self._cache is None:
            return None
        with suppress(ArtifactError, OSError, TypeError, KeyError):
            kept = read_json(self._cache)
            return kept if kept["asked"] == asked and isinstance(kept["time"], float) else None
        return None

    def _keep(self, kept: dict[str, Any]) -> None:
        if self._cache is not None and self._cache.parent.exists():
            with suppress(ArtifactError, OSError):  # somebody else's study: look without keeping
                write_json(self._cache, kept)

    # ── Act ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def cancel(self, elements: Iterable[str]) -> None:
        """Cancels jobs and elements of arrays; those that have ended count as cancelled.

        Raises:
            NoAnswer: scancel refuses, with its words.
        """
        ids = _compressed(elements)
        for start in range(0, len(ids), _IDS_AT_ONCE):
            answer = self._run(["scancel", *ids[start : start + _IDS_AT_ONCE]], 60.0)
            complaints = [line for line in answer.err.splitlines() if not any(word in line for word in _HAVE_ENDED)]
            if answer.code != 0 and complaints:
                raise NoAnswer("; ".join(complaints))
        self.forget()

    def sbatch(self, script: Path) -> str:
        """Submits a script; returns the id of the job or array.

        Raises:
            NoAnswer: sbatch refuses, with its words, or takes so long that nobody knows.
        """
        said = self.call("sbatch", "--parsable", str(script), timeout_s=120.0)
        job = said.strip().splitlines()[-1].partition(";")[0] if said.strip() else ""
        if not job.isdigit():
            raise NoAnswer(f"sbatch: answered {said.strip()!r} where a job id was expected")
        self.forget()
        return job

    def would_start(self, script: str) -> str:
        """When a script would start, in words; nothing is submitted.

        Raises:
            NoAnswer: sbatch would refuse it, with its words.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as file:
            file.write(script)
            file.flush()
            answer = self._run(["sbatch", "--test-only", file.name], 60.0)
        if answer.code != 0:
            raise NoAnswer(" ".join(answer.err.split()) or f"sbatch: exit code {answer.code}")
        return _start_in_words(answer.err + answer.out, self._now())

    def requeue(self, job: str) -> None:
        """Puts a job back in the queue under its own id; one that is there already is left alone.

        Raises:
            NoAnswer: scontrol refuses, for example since the site does not allow it.
        """
        answer = self._run(["scontrol", "requeue", job], 60.0)
        if answer.code != 0 and "pending execution" not in answer.err:
            raise NoAnswer(" ".join(answer.err.split()) or f"scontrol: exit code {answer.code}")

    def config(self) -> dict[str, str]:
        """Slurm's settings, such as MaxArraySize, by name.

        Raises:
            NoAnswer: scontrol is missing or refuses.
        """
        pairs = (line.partition("=") for line in self.call("scontrol", "show", "config").splitlines())
        return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def _queue_arguments(users: Collection[str]) -> list[str]:
    columns = ",".join(f"{name}:{width}|" for name, width in _QUEUE_FIELDS.items()).removesuffix("|")
    return ["--array", "--noheader", "--states=all", f"--user={','.join(sorted(users))}", f"--Format={columns}"]


def _account_arguments(known: Collection[str], lost: Collection[str], wanted: Wanted) -> list[str]:
    arguments = ["--duplicates", "--allocations", "--parsable2", "--noheader", f"--format={_ACCOUNT_FIELDS}"]
    if lost:
        users = ",".join(sorted(wanted.users | {str(os.getuid())}))
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(max(wanted.since - 60, 0)))
        return [*arguments, f"--user={users}", f"--starttime={since}"]
    return [*arguments, f"--jobs={','.join(sorted(known))}"]


def _start_in_words(said: str, now: float) -> str:
    """When a job would start, from what `sbatch --test-only` says."""
    found = re.search(r"to start at (\S+)", said)
    if not found:
        return "it does not say when one would start"
    try:
        wait_min = (float(found[1]) - now) / 60
    except ValueError:
        return f"one would start at {found[1]}"
    if wait_min < 2:
        return "one would start at once"
    return (
        f"one would start in {wait_min:.0f} minutes"
        if wait_min < 120
        else f"one would start in {wait_min / 60:.0f} hours"
    )


def _base(element: str) -> str:
    """The id of the job or of the whole array."""
    return element.partition("_")[0].strip()


def _ours(text: str, jobs: Collection[str], words: Collection[str], column: int) -> str:
    """The lines about some jobs, without the blanks that fill squeue's columns.

    Args:
        text: what squeue or sacct printed.
        jobs: ids of jobs and arrays.
        words: one of them in the comment or the name will do, too.
        column: where the comment is; the name comes next and is the last.
    """
    said = re.compile("|".join(map(re.escape, sorted(words))) or r"(?!)")
    lines = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|", column + 1)]
        whole = len(cells) == column + 2
        if whole and (_base(cells[0]) in jobs or said.search(" ".join(cells[column:]))):
            lines.append("|".join(cells))
    return "\n".join(lines)


def _num_live(text: str) -> int:
    """How many of this user's jobs are queued or running."""
    mine, num = str(os.getuid()), 0
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|", 9)]
        num += len(cells) > 9 and cells[8] == mine and cells[1] in LIVE
    return num


def _compressed(elements: Iterable[str]) -> list[str]:
    """Ids as scancel takes them: the elements of one array together, as in `4242_[0-3,7]`."""
    singles: list[str] = []
    arrays: dict[str, set[int]] = {}
    for element in elements:
        base, underscore, index = element.partition("_")
        if underscore:
            arrays.setdefault(base, set()).add(int(index))
        else:
            singles.append(base)
    return [*singles, *(f"{base}_[{_ranges(sorted(indices))}]" for base, indices in arrays.items())]


def _ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)
