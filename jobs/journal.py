"""The journal of submissions: what was about to be handed to Slurm, and under which id Slurm took it.

A batch is written down before `sbatch` is called, and its job id after. Its token is the beginning of the job's name
and of its comment, so that a batch whose answer was lost is found again in the queue. The journal says only what may
be queued or running; that a task is done is said by its outcome alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from fluence.errors import ArtifactError
from fluence.layout import Layout
from fluence.store.files import explained, read_json, write_json

CHECKPOINT_INTERVAL_S = 600.0
TOKEN = re.compile(r"fl-[0-9a-f]{12}")
_MEMBERS = "batch.json"


@dataclass(frozen=True)
class Batch:
    """Tasks of one stage that were handed to Slurm together: one array, or a single job if there is but one.

    Attributes:
        token: names the batch before Slurm does.
        site: name of the site.
        stage: name of the stage.
        resource_class: `gpu`, `cpu` or `bigmem`.
        tasks: names of the tasks, in the order of the array.
        keys: their keys, in the same order.
        job: id of the job or of the array; None if Slurm's answer was lost, or never came.
        submitted_at: seconds since the epoch.
        user: id of the user whose jobs they are.
        cancelled: names of the tasks that were cancelled with `fluence cancel`.
        checkpoint_interval_s: seconds between two checkpoints of a task.
    """

    token: str
    site: str
    stage: str
    resource_class: str
    tasks: tuple[str, ...]
    keys: tuple[str, ...]
    job: str | None
    submitted_at: float
    user: str = ""
    cancelled: frozenset[str] = frozenset()
    checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S

    def elements(self, index: int) -> tuple[str, ...]:
        """The ids that the task at `index` can have at Slurm, the likelier first. One task alone is no array."""
        if self.job is None:
            return ()
        in_array = f"{self.job}_{index}"
        return (self.job, in_array) if len(self.tasks) == 1 else (in_array,)


class Journal:
    """The journal of one study's folder. Every event is one line, appended in one write.

    Args:
        layout: the study's folder.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @property
    def mark(self) -> str:
        """Tells the jobs of this folder from those of all others; part of the comment of each."""
        return hashlib.sha256(os.fsencode(self._layout.root.resolve())).hexdigest()[:12]

    def comment(self, batch: Batch) -> str:
        """The comment that the batch's job carries: token, stage, and the mark of the study's folder."""
        return f"{batch.token} {batch.stage} {self.mark}"

    def intend(
        self, site: str, stage: str, resource_class: str, tasks: Sequence[str], keys: Sequence[str],
        checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S,
    ) -> Batch:  # fmt: skip
        """Writes down that a batch is about to be submitted, and gives it its token.

        Raises:
            UnwritableError: the study's folder is not writable; then nothing may be submitted.
        """
        token = f"fl-{secrets.token_hex(6)}"
        record = {
            "event": "intent",
            "token": token,
            "site": site,
            "stage": stage,
            "class": resource_class,
            "tasks": list(tasks),
            "keys": list(keys),
            "time": time.time(),
            "user": str(os.getuid()),
            "checkpoint_interval_s": checkpoint_interval_s,
        }
        write_json(self._layout.submission(token) / _MEMBERS, record)
        self._append(record)
        return _batch(record)

    def submitted(self, token: str, job: str) -> None:
        """Writes down under which id Slurm took a batch."""
        self._append({"event": "submitted", "token": token, "job": job, "time": time.time()})

    def cancelled(self, token: str, tasks: Sequence[str]) -> None:
        """Writes down that these tasks of a batch were cancelled with `fluence cancel`."""
        self._append({"event": "cancelled", "token": token, "tasks": list(tasks), "time": time.time()})

    def read(self) -> list[Batch]:
        """Every batch, oldest first; also those that only their own folders still know.

        Lines that cannot be read are passed over: the last one may have been cut off when a disk was full.
        """
        events = self._events()
        batches: dict[str, Batch] = {}
        for token in self._folders() - {str(event.get("token")) for event in events if event.get("event") == "intent"}:
            with suppress(ArtifactError, KeyError, TypeError, ValueError):
                batches[token] = _batch(read_json(self._layout.submission(token) / _MEMBERS))
        for event in events:
            with suppress(KeyError, TypeError, ValueError):
                _take(batches, event)
        return sorted(batches.values(), key=lambda batch: batch.submitted_at)

    def _events(self) -> list[dict[str, Any]]:
        try:
            lines = self._layout.journal.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        events = []
        for line in lines:
            with suppress(ValueError):
                events.append(json.loads(line))
        return [event for event in events if isinstance(event, dict)]

    def _folders(self) -> set[str]:
        try:
            return {name for name in os.listdir(self._layout.submissions) if TOKEN.fullmatch(name)}
        except FileNotFoundError:
            return set()

    def _append(self, event: dict[str, Any]) -> None:
        path = self._layout.journal
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                _append_line(descriptor, json.dumps(event, ensure_ascii=False).encode())
            finally:
                os.close(descriptor)


def _append_line(descriptor: int, line: bytes) -> None:
    """Appends one line in one write; a line that was cut off before it is ended first."""
    with suppress(OSError):  # some shared file systems have no locks; then O_APPEND has to do
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    size = os.fstat(descriptor).st_size
    cut_off = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
    whole = (b"\n" if cut_off else b"") + line + b"\n"
    written = os.write(descriptor, whole)
    if written < len(whole):
        os.write(descriptor, whole[written:])  # says why it does not fit
    os.fsync(descriptor)


def _batch(record: dict[str, Any]) -> Batch:
    return Batch(
        token=record["token"],
        site=record["site"],
        stage=record["stage"],
        resource_class=record["class"],
        tasks=tuple(record["tasks"]),
        keys=tuple(record["keys"]),
        job=None,
        submitted_at=float(record["time"]),
        user=str(record.get("user", "")),
        checkpoint_interval_s=float(record.get("checkpoint_interval_s", CHECKPOINT_INTERVAL_S)),
    )


def _take(batches: dict[str, Batch], event: dict[str, Any]) -> None:
    token = event["token"]
    if event["event"] == "intent":
        batches[token] = _batch(event)
    elif event["event"] == "submitted":
        batches[token] = replace(batches[token], job=str(event["job"]))
    elif event["event"] == "cancelled":
        cancelled = batches[token].cancelled | set(event["tasks"])
        batches[token] = replace(batches[token], cancelled=cancelled)
