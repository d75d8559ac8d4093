"""One task, run in this process: what each stage calls, and how its end is written down.

`python -m jobs.tasks SNAPSHOT STAGE NAME` is what a local run starts, once per rank. On a cluster submitit calls a
`ClusterTask` instead. Both end in `run_task`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluence.errors import Diverged, FluenceError, Interrupted, LostProcess, Skipped, UnwritableError
from fluence.layout import Layout
from fluence.store.files import no_space_explained
from fluence.store.outcome import Outcome, Status, provenance, write_outcome
from jobs.bodies import BODIES, Context, Execution, Result
from jobs.pipeline import STAGE, Task
from jobs.plan import Planned, plan
from jobs.ranks import Share
from jobs.snapshot import Snapshot
from jobs.starts import MOST_STARTS, is_hopeless

_SHOWS_WITHIN_S = 20.0
EXIT_DONE, EXIT_FAILED, EXIT_WRONG, EXIT_INTERRUPTED = 0, 1, 2, 75


class StopFlag:
    """Set by SIGINT, SIGTERM and SIGUSR2.

    A task that keeps checkpoints asks the flag and chooses the moment; any other is interrupted where it stands, and
    its unfinished files are removed.

    Args:
        polled: whether the task asks.
    """

    def __init__(self, polled: bool) -> None:
        self._set, self._polled = False, polled

    def __call__(self) -> bool:
        return self._set

    def install(self) -> None:
        """Catches the signals."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._handle)

    def _handle(self, *_: object) -> None:
        if not self._polled and not self._set:
            self._set = True
            raise Interrupted("stopped; it starts again from its beginning")
        self._set = True


def run_task(snapshot: Path, stage: str, name: str, execution: Execution, stop: Callable[[], bool]) -> int:
    """Runs one task of a study, and writes its outcome if this is rank 0.

    Args:
        snapshot: the study as it was planned.
        stage: name of the stage.
        name: name of the task within the stage.
        execution: settings that change no result.
        stop: asked again and again; when it answers True, the task saves its state and ends.

    Returns:
        The exit code: 0 ended with an outcome that is no failure, 1 failed, 2 failed because nothing more can be
        written (then no other task can go on either), 75 interrupted and to be started again.
    """
    started = time.time()
    taken, layout = Snapshot.load(snapshot), Layout(snapshot.parents[2])
    tasks = taken.tasks
    task = planned_task(tasks, layout, stage, name).task
    context = Context(taken.study, layout, tasks, execution, Share.of(os.environ), stop)
    try:
        with no_space_explained(layout.root):
            result = BODIES[stage](task, context)
        outcome = _outcome(task, "done", result, started, tasks)
    except Interrupted as interruption:
        print(interruption, flush=True)
        return EXIT_INTERRUPTED
    except UnwritableError as error:
        with contextlib.suppress(OSError, UnwritableError):  # log and outcome may lie on the same full disk
            _note_end(_outcome(task, "failed", Result(str(error)), started, tasks), task, layout)
        return EXIT_WRONG
    except FluenceError as error:
        if isinstance(error, LostProcess):  # the one that is lost knows why; what it has written stays
            print(error, flush=True)
            return EXIT_INTERRUPTED if execution.starts_again else EXIT_FAILED
        outcome = _outcome(task, _status(error), Result(str(error)), started, tasks)
    except Exception as error:
        traceback.print_exc()
        outcome = _outcome(task, "failed", Result(f"{type(error).__name__}: {error}"), started, tasks)
    _note_end(outcome, task, layout)
    return EXIT_FAILED if outcome.status == "failed" else EXIT_DONE


def _note_end(outcome: Outcome, task: Task, layout: Layout) -> None:
    """Writes down how the task ended, in rank 0 or where it failed, and prints it."""
    if os.environ.get("RANK", "0") == "0" or outcome.status == "failed":
        write_outcome(layout.outcome(task.stage, task.name), outcome)
        print(f"{task.label}: {outcome.status}{': ' + outcome.reason if outcome.reason else ''}", flush=True)


def planned_task(tasks: tuple[Task, ...], layout: Layout, stage: str, name: str) -> Planned:
    """One task and its state, without a look at the tasks that it does not depend on."""
    wanted = {f"{stage}/{name}"}
    for task in reversed(tasks):  # each stands after those it needs
        if task.id in wanted:
            wanted.update(task.needs)
    return plan(tuple(task for task in tasks if task.id in wanted), layout)[-1]


def _status(error: FluenceError) -> Status:
    return "skipped" if isinstance(error, Skipped) else "diverged" if isinstance(error, Diverged) else "failed"


def _outcome(task: Task, status: Status, result: Result, started: float, tasks: tuple[Task, ...]) -> Outcome:
    keys = {other.id: other.key for other in tasks}
    inputs = {need: keys[need] for need in task.needs}
    record = {**provenance(started, inputs), "facts": result.facts}
    return Outcome(status, task.key, result.text, task.section, record)


POLLED = ("train", "extract", "measure")


@dataclass(frozen=True)
class ClusterTask:
    """What submitit calls on a cluster, once per rank: one task of a batch, chosen by its place in the array.

    A rank that was asked to stop ends with code 75 when its state is saved; the script of the job then sees to it that
    the job starts again (`jobs.again`). Nothing is kept in this object: where a task continues is on disk.

    Attributes:
        snapshot: the study as it was planned.
        stage: name of the stage.
        names: names of the tasks, in the order of the array.
        execution: settings that change no result.
        submission: token of the batch, also in the jobs that take its place.
    """

    snapshot: Path
    stage: str
    names: tuple[str, ...]
    execution: Execution
    submission: str

    def __call__(self) -> None:
        """Runs the task, unless it is done or something that it needs is missing; its words go to the task's log.

        Raises:
            SystemExit: it failed, or was interrupted.
        """
        stop = StopFlag(polled=self.stage in POLLED)
        try:
            stop.install()
            code = self._run(stop)
        except Interrupted as interruption:
            print(interruption, flush=True)
            code = EXIT_INTERRUPTED
        except UnwritableError as error:
            print(error, flush=True)
            code = EXIT_WRONG
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> Any:
        """What submitit starts again, should a signal arrive before this task listens: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self, stop: StopFlag) -> int:
        from jobs.ranks import slurm_ranks

        os.environ.update(slurm_ranks(os.environ))
        name = self.names[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")) if len(self.names) > 1 else 0]
        layout = Layout(self.snapshot.parents[2])
        _print_to(layout.log(self.stage, name))
        entry = self._look(layout, name)
        is_first = os.environ["RANK"] == "0"
        if not self._can_run(entry):
            if is_first:
                print(f"{entry.task.label}: {entry.state}, nothing to do: {entry.reason}", flush=True)
            return EXIT_DONE
        if is_first and is_hopeless(entry.task, layout, self.submission):
            reason = f"gave up after {MOST_STARTS} starts in a row without a new checkpoint"
            outcome = Outcome("failed", entry.task.key, reason, entry.task.section)
            write_outcome(layout.outcome(self.stage, name), outcome)
            return EXIT_FAILED
        return run_task(self.snapshot, self.stage, name, self.execution, stop)

    def _can_run(self, entry: Planned) -> bool:
        """Analysis and report take whatever is done."""
        return entry.state == "ready" or (entry.to_do and STAGE[self.stage].each == "study")

    def _look(self, layout: Layout, name: str) -> Planned:
        """The state of the task; what another node has just written may take some seconds to show here."""
        tasks, deadline = Snapshot.load(self.snapshot).tasks, time.monotonic() + _SHOWS_WITHIN_S
        while True:
            entry = planned_task(tasks, layout, self.stage, name)
            if entry.state != "waiting" or self._can_run(entry) or time.monotonic() > deadline:
                return entry
            time.sleep(1)


def _print_to(log: Path) -> None:
    """From here on, this process and its children print to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _end_with_parent() -> None:
    """Asks Linux for a SIGTERM when the process that started this one is gone, however it went."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: an orphan finishes its task, which does no harm
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def task_command(snapshot: Path, stage: str, name: str, execution: Execution) -> list[str]:
    """The command line that runs one rank of a task."""
    command = [sys.executable, "-m", "jobs.tasks", str(snapshot), stage, name]
    command += ["--checkpoint-interval", str(execution.checkpoint_interval_s), "--workers", str(execution.num_workers)]
    flags = {"--strict": execution.strict, "--all-figures": execution.all_figures}
    return command + [flag for flag, is_set in flags.items() if is_set]


def main(arguments: list[str] | None = None) -> int:
    """Entry point of one rank of one task."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tasks", description=__doc__)
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("stage", choices=list(BODIES))
    parser.add_argument("name")
    parser.add_argument("--checkpoint-interval", type=float, default=Execution.checkpoint_interval_s, metavar="SECONDS")
    parser.add_argument("--workers", type=int, default=Execution.num_workers)
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--all-figures", action="store_true")
    given = parser.parse_args(arguments)
    _end_with_parent()
    stop = StopFlag(polled=given.stage in POLLED)
    stop.install()
    execution = Execution(given.checkpoint_interval, given.workers, given.strict, all_figures=given.all_figures)
    try:
        return run_task(given.snapshot, given.stage, given.name, execution, stop)
    except FluenceError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
