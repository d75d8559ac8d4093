"""The last line of every job: whether it has to start again, and a failure that nobody has written down yet.

`python -m jobs.again FOLDER SNAPSHOT CODE` runs in the job itself after its ranks have ended. It is the one place that
knows what an end means: 0 is an end, 75 asks to continue, above 128 a signal ended a rank (a lost process, too little
memory), and anything else is a failure. How often a task may start without getting any further is counted where it
starts (`jobs.starts`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fluence.errors import FluenceError
from fluence.layout import Layout
from fluence.store.files import read_json
from fluence.store.outcome import Outcome, write_outcome
from jobs.slurm import NoAnswer, Slurm
from jobs.snapshot import Snapshot
from jobs.starts import was_counted
from jobs.successor import submit_successor
from jobs.tasks import EXIT_FAILED, EXIT_INTERRUPTED, planned_task

_BY_SIGNAL = 128
_WAITS_S = (5.0, 10.0, 20.0, 40.0)
T = TypeVar("T")


def end(folder: Path, snapshot: Path, code: int) -> int:
    """Does what the end of a job's ranks asks for.

    Args:
        folder: folder of the batch (`Layout.submission`).
        snapshot: the study as it was planned.
        code: the highest exit code of the ranks.

    Returns:
        The exit code of the job.
    """
    if code == 0:
        return 0
    (stage, name), layout = _own_task(folder), Layout(snapshot.parents[2])
    entry = planned_task(Snapshot.load(snapshot).tasks, layout, stage, name)
    if not entry.to_do:
        return 0 if entry.state == "done" else EXIT_FAILED
    job, slurm = _element(), Slurm()
    if not _patiently(lambda: _still_runs(slurm, job)):
        print("the job was ended from outside; it does not ask to start again", flush=True)
        return code
    if _is_worth_another_start(code, stage, name, layout):
        _start_again(slurm, job, folder, layout, code)
        return 0
    reason = f"a process ended with exit code {code}; its log says more"
    write_outcome(layout.outcome(stage, name), Outcome("failed", entry.task.key, reason, entry.task.section))
    return EXIT_FAILED


def _is_worth_another_start(code: int, stage: str, name: str, layout: Layout) -> bool:
    """A rank that fails takes the others along: so what a signal has ended before its start was counted has failed."""
    return code == EXIT_INTERRUPTED or (code > _BY_SIGNAL and was_counted(stage, name, layout))


def _start_again(slurm: Slurm, job: str, folder: Path, layout: Layout, code: int) -> None:
    """Under the same id where Slurm allows it, else as another job."""
    if "Requeue=0" in _patiently(lambda: slurm.call("scontrol", "show", "job", "--oneliner", job)).split():
        successor = submit_successor(slurm, layout, folder.name, _own_task(folder)[1])
        print(f"ended with {code}; it continues in job {successor}", flush=True)
        return
    print(f"ended with {code}; it continues in another run of job {job}", flush=True)
    _patiently(lambda: slurm.requeue(job))


def _patiently(ask: Callable[[], T]) -> T:
    """Asks again while Slurm is too busy to answer, as in a wave of preemptions; what it refuses it has refused.

    Raises:
        NoAnswer: it refuses, or has been busy for minutes.
    """
    for wait_s in _WAITS_S:
        try:
            return ask()
        except NoAnswer as problem:
            if not problem.may_pass:
                raise
            print(f"{problem}; asking again in {wait_s:g} s", flush=True)
            time.sleep(wait_s)
    return ask()


def _element() -> str:
    """The job's id. The last element of an array shares its number with the array: that alone would mean them all."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _still_runs(slurm: Slurm, job: str) -> bool:
    """Whether nobody has cancelled or requeued the job meanwhile: a cancelled one must not come back."""
    return slurm.call("squeue", "--noheader", f"--jobs={job}", "--format=%T").split() == ["RUNNING"]


def _own_task(folder: Path) -> tuple[str, str]:
    """Stage and name of the task that this job has run."""
    batch = read_json(folder / "batch.json")
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")) if len(batch["tasks"]) > 1 else 0
    return batch["stage"], batch["tasks"][index]


if __name__ == "__main__":
    try:
        sys.exit(end(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
    except FluenceError as error:
        print(error, file=sys.stderr)
        sys.exit(int(sys.argv[3]))
