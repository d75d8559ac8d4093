"""Several processes train one network: who they are, what they agree on, and what they add up."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fluence.errors import LostProcess, RunError

PATIENCE = timedelta(minutes=30)
"""How long a process waits for another one before it gives up."""


_SIGNS_OF_A_LOSS = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")
"""gloo says with a plain RuntimeError that a process no longer answers."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        local_rank: number of this process on its node; it chooses the GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """Reads RANK, WORLD_SIZE and LOCAL_RANK; without them there is one process.

        Raises:
            RunError: they contradict each other or are no numbers, or MASTER_ADDR and MASTER_PORT are missing.
        """
        values = {name: environment.get(name, default) for name, default in _DEFAULTS.items()}
        if not all(value.isdecimal() for value in values.values()):
            raise RunError(f"the environment says {_listed(values)}; each must be a whole number from 0")
        ranks = cls(*(int(value) for value in values.values()))
        if ranks.rank >= ranks.world_size:
            raise RunError(f"the environment says {_listed(values)}; RANK must be below WORLD_SIZE")
        absent = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if ranks.world_size > 1 and absent:
            raise RunError(f"the environment says {_listed(values)} but has no {' and no '.join(absent)}")
        return ranks

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")


_DEFAULTS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


class Team:
    """The processes that train together. With one process every method returns what it was given.

    Sums of tensors run on the device. Agreements run between the CPUs, so that nobody waits for a GPU.
    """

    def __init__(self, ranks: Ranks, cpus: Any = None) -> None:
        self.ranks, self._cpus = ranks, cpus

    @classmethod
    @contextmanager
    def joined(cls, ranks: Ranks) -> Iterator[Team]:
        """The team, as long as the block lasts: NCCL between GPUs, gloo between CPUs.

        Raises:
            LostProcess: another process is gone.
        """
        if ranks.world_size == 1:
            yield cls(ranks)
            return
        if ranks.device.type == "cuda":
            torch.cuda.set_device(ranks.device)
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.world_size, timeout=PATIENCE)
            yield cls(ranks, dist.new_group(backend="gloo", timeout=PATIENCE))
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS_OF_A_LOSS):
                raise LostProcess(f"rank {ranks.rank}: another process of this training is gone ({error})") from error
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """Adds `values` of all processes up, in place."""
        if self._cpus is not None:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether any process raised it: the same answer everywhere."""
        if self._cpus is None:
            return flags
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self._cpus)
        return tuple(bool(flag) for flag in raised)

    def wait(self) -> None:
        """Waits until every process is here."""
        if self._cpus is not None:
            dist.barrier(group=self._cpus)

    def from_first(self, value: Any) -> Any:
        """What the first process has, everywhere."""
        box = [value]
        if self._cpus is not None:
            dist.broadcast_object_list(box, src=0, group=self._cpus)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """What every process has, in the order of ranks."""
        values = [value]
        if self._cpus is not None:
            values = [None] * self.ranks.world_size
            dist.all_gather_object(values, value, group=self._cpus)
        return values

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network to train with: its backward pass averages gradients over the processes."""
        if self._cpus is None:
            return model
        gpus = [self.ranks.device] if self.ranks.device.type == "cuda" else None
        # Buffers need no broadcast: batch normalisation over all processes leaves the same ones everywhere.
        parallel = nn.parallel.DistributedDataParallel
        renamed = "forward_sync_buffers" in inspect.signature(parallel).parameters  # torch from 2.15 on
        unsynced = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        return parallel(model, device_ids=gpus, **unsynced)

    def until_last_piece(self, network: nn.Module, is_last: bool) -> AbstractContextManager[object]:
        """The passes of one piece of a batch: gradients add up in each process, and the last piece averages them."""
        if is_last or not isinstance(network, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return network.no_sync()


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Puts back what passes inside the block changed of the buffers, such as the statistics of batch normalisation."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


@contextmanager
def first_pass_undone(model: nn.Module) -> Iterator[None]:
    """Takes back what one forward and backward pass changed: buffers are put back, and no gradient stays.

    Every process makes its first pass in here, a fresh one and one that continues a training. The reason is that
    DistributedDataParallel sorts parameters into buckets anew after its first backward pass, and with more than two
    processes the bucket decides in which order gradients are added. Without this pass, a training that continues would
    take its first step with the first buckets, where an undisturbed one has long used the second: other bits.
    """
    with buffers_kept(model):
        yield
    model.zero_grad(set_to_none=True)
