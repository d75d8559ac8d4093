"""Which processes belong to a test cluster: found by what they carry, so that none is missed and none is mistaken.

A list of process ids would miss what was started just before its writer was killed, and name a stranger after an id
was used again. Every process of a cluster shows whose it is: daemons carry MARK in their environment, a slurmstepd
holds files in the cluster's folder open, and jobs carry the name of their cluster.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "FLUENCE_TEST_CLUSTER"
_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process that runs (a zombie does not).

    Attributes:
        pid: its id.
        command: its arguments; a slurmstepd writes its job and step there.
    """

    pid: int
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the program: `slurmd`, `slurmstepd`, …"""
        return Path(self.command[0]).name.partition(":")[0] if self.command else ""


def of_cluster(folder: Path, cluster_name: str) -> list[Process]:
    """Every process that the cluster has started, its jobs included; never this one."""
    marks = {f"{MARK}={folder}".encode(), f"SLURM_CLUSTER_NAME={cluster_name}".encode()}
    return [p for p in _all() if not marks.isdisjoint(environment(p.pid)) or _is_stepd_of(p, folder)]


def of_node(processes: list[Process], node: str) -> list[Process]:
    """What runs on one pretended node: its slurmd, the steps it manages, and their children."""
    mine = {p.pid for p in processes if p.name == "slurmd" and _argument_after(p.command, "-N") == node}
    log = f"/{node}.log"
    stepds = {p.pid for p in processes if p.name == "slurmstepd" and holds(p.pid, lambda path: path.endswith(log))}
    children = [p for p in _all() if not stepds.isdisjoint(_ancestors(p.pid))]
    return [p for p in processes if p.pid in mine | stepds] + children


def end(find: Callable[[], list[Process]], patience_s: float = 10) -> None:
    """Kills until none is found any more: a process may start another one while it is being killed.

    Raises:
        RuntimeError: some do not go.
    """
    deadline = time.monotonic() + patience_s
    ending: list[Process] = []
    while (found := find()) or (ending := [process for process in ending if _still_ends(process.pid)]):
        if time.monotonic() > deadline:
            raise RuntimeError(f"these do not end: {', '.join(f'{p.pid} {p.name}' for p in [*found, *ending])}")
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        ending += found
        time.sleep(0.02)


def _still_ends(pid: int) -> bool:
    """Whether a killed process still holds its files and ports; a zombie holds nothing and waits for its parent."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _all() -> Iterator[Process]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if command:  # kernel threads and zombies have none
                    yield Process(int(entry.name), tuple(command.decode(errors="replace").rstrip("\0").split("\0")))


def environment(pid: int) -> frozenset[bytes]:
    """NAME=value of each variable of a process; none if it has ended."""
    try:
        return frozenset((_PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    except OSError:  # it has ended, or it is somebody else's
        return frozenset()


def _is_stepd_of(process: Process, folder: Path) -> bool:
    return process.name == "slurmstepd" and holds(process.pid, lambda path: path.startswith(f"{folder}/"))


def holds(pid: int, wanted: Callable[[str], bool]) -> bool:
    """Whether a process has a file open whose path is wanted."""
    try:
        return any(wanted(os.readlink(link)) for link in (_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return False


def _argument_after(command: tuple[str, ...], option: str) -> str:
    return command[command.index(option) + 1] if option in command[:-1] else ""


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        try:
            pid = int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return
        yield pid
