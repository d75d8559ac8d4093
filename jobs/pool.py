"""The local way of running a study: a bounded pool of processes on this machine, one per rank of a task."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from fluence.errors import UnwritableError
from fluence.layout import Layout
from fluence.store.files import explained
from fluence.store.outcome import Outcome, read_progress, write_outcome
from jobs.bodies import Execution
from jobs.pipeline import STAGE, Task
from jobs.plan import Planned, plan
from jobs.snapshot import Snapshot
from jobs.tasks import EXIT_INTERRUPTED, EXIT_WRONG, task_command

_MOST_PLACES = 8
_POLL_S = 0.1
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Machine:
    """What the pool may use.

    Attributes:
        cores: CPU cores.
        gpus: their numbers, as in CUDA_VISIBLE_DEVICES.
        processes: ranks of one training, extraction or measuring.
        places: processes that work at the same time.
    """

    cores: int
    gpus: tuple[str, ...]
    processes: int
    places: int

    @classmethod
    def detect(cls, processes: int | None, jobs: int | None) -> Machine:
        """This machine.

        Args:
            processes: ranks of one training, extraction or measuring; by default one.
            jobs: processes at the same time; by default one for each GPU, or each core up to 8.
        """
        cores, gpus = len(os.sched_getaffinity(0)), _gpus()
        processes = processes or 1
        return cls(cores, gpus, processes, max(processes, jobs or len(gpus) or min(cores, _MOST_PLACES)))

    def ranks(self, task: Task) -> int:
        """Number of processes of a task."""
        return self.processes if STAGE[task.stage].shared else 1

    @property
    def threads(self) -> int:
        """Threads of each process; the same whatever else runs, since their number can change the last bit."""
        return max(1, self.cores // self.places)


def _gpus() -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(number for number in visible.split(",") if number.strip() not in ("", "-1"))
    devices = Path("/dev").glob("nvidia[0-9]*")
    return tuple(sorted(device.name.removeprefix("nvidia") for device in devices))


class _Running:
    """The processes of one task."""

    def __init__(self, task: Task, machine: Machine, gpus: tuple[str, ...], command: list[str], log: Path) -> None:
        self.task, self.gpus, self.places = task, gpus, machine.ranks(task)
        self.started = time.time()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log: IO[bytes] = log.open("ab")
        ranks = machine.ranks(task)
        port = _free_port() if ranks > 1 else 0
        self._ranks = [self._start(command, rank, ranks, port, machine) for rank in range(ranks)]
        self._ended_at: float | None = None

    def _start(self, command: list[str], rank: int, ranks: int, port: int, machine: Machine) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(machine.threads),
            "PYTHONUNBUFFERED": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        if machine.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        log = self._log
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )

    def poll(self) -> int | None:
        """The exit code of the task when all its ranks have ended; a rank that dies takes the others along."""
        codes = [process.poll() for process in self._ranks]
        if any(code not in (None, 0, EXIT_INTERRUPTED) for code in codes):
            self._ended_at = self._ended_at or time.time()
            if time.time() - self._ended_at > 2:
                self.signal(signal.SIGKILL)
        if None in codes:
            return None
        self._log.close()
        return EXIT_WRONG if EXIT_WRONG in codes else min(codes) or max(codes)  # a signal says more than a code

    def signal(self, number: int) -> None:
        """Sends a signal to every process of the task and to those they have started."""
        for process in self._ranks:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)


class Pool:
    """Runs every task of a study that has to run, as many at a time as the machine bears.

    Args:
        snapshot: the study as it was planned.
        layout: the study's folder.
        machine: what may be used.
        execution: settings that change no result.
        say: called with one line about each task that starts or ends.
    """

    def __init__(
        self, snapshot: Snapshot, layout: Layout, machine: Machine, execution: Execution, say: Callable[[str], None]
    ) -> None:
        self._tasks, self._layout, self._machine = snapshot.tasks, layout, machine
        self._snapshot = snapshot.save(layout)
        self._execution, self._say = execution, say
        self._running: list[_Running] = []
        self._free_gpus = list(machine.gpus)
        self._stopped = False
        self._unwritable = ""

    def run(self) -> tuple[Planned, ...]:
        """Runs until nothing is left to do or Ctrl-C; returns the final plan.

        Raises:
            KeyboardInterrupt: the user asked to stop; every process has ended, and what was done is kept.
            UnwritableError: a task could write no more; the others were asked to stop, and what was done is kept.
        """
        with self._interruptible():
            bar = tqdm(unit="task", disable=None, leave=False, dynamic_ncols=True)
            planned = plan(self._tasks, self._layout)
            bar.total = sum(entry.to_do for entry in planned)
            while True:
                if not self._stopped:
                    self._start_ready(planned)
                if not self._running:
                    break
                time.sleep(_POLL_S)
                if self._collect():
                    planned = plan(self._tasks, self._layout)
                    bar.n = bar.total - sum(entry.to_do for entry in planned)
                bar.set_postfix_str(self._activity(), refresh=True)
            bar.close()
        if self._unwritable:
            raise UnwritableError(self._unwritable)
        if self._stopped:
            raise KeyboardInterrupt
        return planned

    def _start_ready(self, planned: tuple[Planned, ...]) -> None:
        """Fills the free places, with the tasks that need most of them first: the others fit in later."""
        busy = {running.task.id for running in self._running}
        ready = [entry.task for entry in planned if entry.state == "ready" and entry.task.id not in busy]
        for task in sorted(ready, key=self._machine.ranks, reverse=True):
            if self._has_room(task):
                self._start(task)

    def _has_room(self, task: Task) -> bool:
        free = self._machine.places - sum(running.places for running in self._running)
        return free >= self._machine.ranks(task) and len(self._free_gpus) >= self._wants_gpus(task)

    def _wants_gpus(self, task: Task) -> int:
        return min(self._machine.ranks(task), len(self._machine.gpus)) if STAGE[task.stage].uses_gpu else 0

    def _start(self, task: Task) -> None:
        gpus = tuple(self._free_gpus.pop(0) for _ in range(self._wants_gpus(task)))
        command = task_command(self._snapshot, task.stage, task.name, self._execution)
        log = self._layout.log(task.stage, task.name)
        with explained(log):
            self._running.append(_Running(task, self._machine, gpus, command, log))
        self._say(f"start  {task.label}")

    def _collect(self) -> bool:
        """Takes note of the tasks that have ended; True if there were any."""
        ended = [(running, code) for running in self._running if (code := running.poll()) is not None]
        for running, code in ended:
            self._running.remove(running)
            self._free_gpus += running.gpus
            self._note_end(running, code)
        return bool(ended)

    def _note_end(self, running: _Running, code: int) -> None:
        task, seconds = running.task, time.time() - running.started
        if code == EXIT_INTERRUPTED or (self._stopped and code != EXIT_WRONG):
            self._say(f"paused {task.label}")
            return
        state, log = self._state(task), self._layout.log(task.stage, task.name)
        if code == EXIT_WRONG:
            told = state.state == "failed"
            self._give_up(state.reason if told else f"{task.label} could write no more below {self._layout.root}")
        elif code and state.to_do:
            outcome = Outcome("failed", task.key, _how_it_ended(code), task.section)
            try:
                write_outcome(self._layout.outcome(task.stage, task.name), outcome)
            except UnwritableError as error:
                self._give_up(str(error))
            state = self._state(task)
        reason = "" if state.state == "done" else f": {state.reason}"
        place = f" (log: {log})" if state.state == "failed" else ""
        self._say(f"{state.state:<6} {task.label} in {seconds:.0f} s{reason}{place}")

    def _give_up(self, why: str) -> None:
        """Nothing more can be written: asks the others to stop, once."""
        self._unwritable = self._unwritable or why
        if not self._stopped:
            self._stop()

    def _state(self, task: Task) -> Planned:
        return next(entry for entry in plan(self._tasks, self._layout) if entry.task.id == task.id)

    def _activity(self) -> str:
        texts = []
        for running in self._running:
            progress = read_progress(self._layout.progress(running.task.stage, running.task.name), running.task.key)
            texts.append(f"{running.task.label} {progress.text if progress else ''}".strip())
        return " · ".join(texts)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C asks every task to save its state and end, and insists after some seconds."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for running in self._running:
                running.signal(signal.SIGKILL)
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, *_: object) -> None:
        insist = signal.SIGKILL if self._stopped else signal.SIGTERM
        self._stopped = True
        for running in self._running:
            running.signal(insist)
        if insist == signal.SIGTERM:
            signal.signal(signal.SIGALRM, lambda *_: [running.signal(signal.SIGKILL) for running in self._running])
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)


def _how_it_ended(code: int) -> str:
    """In words, for a task that could leave none itself."""
    if code >= 0:
        return f"ended with exit code {code}"
    return f"ended by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
