"""Who a process is among those that share a task, in the words that torch reads."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

_FIRST_PORT, _NUM_PORTS = 10_000, 20_000  # below those that Linux gives to outgoing connections


@dataclass(frozen=True)
class Share:
    """Which of the processes of a task this one is.

    Attributes:
        rank: its number, from 0.
        world_size: how many there are.
        local_rank: its number on its node, which is that of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Share:
        """What `slurm_ranks`, or the local pool, has set for this process."""
        names = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        return cls(*(int(environment.get(name, default)) for name, default in names))


def slurm_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of one process.

    The port differs between jobs and between the runs of one job: a process of a run that was killed and has not
    noticed yet can never join the next one. The device is chosen by LOCAL_RANK; where Slurm shows each process its
    own GPU alone, that is number 0.

    Args:
        environment: what Slurm has set for a process that `srun` started.
    """
    local = "0" if _num_gpus(environment) == 1 else environment.get("SLURM_LOCALID", "0")
    return {
        "RANK": environment.get("SLURM_PROCID", "0"),
        "WORLD_SIZE": environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1"),
        "LOCAL_RANK": local,
        "MASTER_ADDR": _master(environment),
        "MASTER_PORT": str(_port(environment)),
    }


def _num_gpus(environment: Mapping[str, str]) -> int:
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    return len([number for number in visible.split(",") if number.strip()])


def _port(environment: Mapping[str, str]) -> int:
    job, restarts = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"))
    return _FIRST_PORT + (7919 * job + 104_729 * restarts) % _NUM_PORTS


def _master(environment: Mapping[str, str]) -> str:
    """The first host of the job, or where its name means nothing, the address that `srun` was called from: the same."""
    host = first_host(environment.get("SLURM_JOB_NODELIST", ""))
    launched_from = environment.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    if not host:
        return launched_from
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return launched_from
    return host


def first_host(hosts: str) -> str:
    """The first of a list as Slurm writes it: `node[07-09,12],other` → `node07`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0]) if first else ""
