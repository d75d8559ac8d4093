"""Speed of two processes on CPU that share each batch (DDP, gloo), beside one process with all threads.

    python benchmarks/processes.py --size 128 --batch 64 --architecture vgg16-10 --width 0.25

Both do the same arithmetic and take turns; each of the two processes has half of the threads.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from train import fluence_loop, options_of, seconds, spec_of

from fluence.allocator import keep_freed_memory
from fluence.training import Ranks, TrainSpec
from fluence.training.distributed import Team

NUM_PROCESSES = 2


def main() -> None:
    """Measures and prints."""
    options = options_of(__doc__ or "")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(options.threads or torch.get_num_threads())
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_of(Path(folder), options)
        one = fluence_loop(spec, Ranks(), Team(Ranks()))
        with _shared(spec, max(1, torch.get_num_threads() // NUM_PROCESSES)) as pipes:
            rounds = {"one process": one, "two processes": lambda: _round(pipes)}
            for run_round in rounds.values():
                run_round()
            times: dict[str, list[float]] = {name: [] for name in rounds}
            for number in range(options.rounds):
                for name in sorted(rounds, reverse=bool(number % 2)):
                    times[name].append(seconds(rounds[name]))
    print(f"{options.architecture} x{options.width:g}, {options.size} px, batch {options.batch}, precision ", end="")
    print(f"{options.precision}, {torch.get_num_threads()} threads in all")
    for name, values in times.items():
        print(f"  {name:14s} {options.steps * options.batch / np.median(values):9.1f} images/s")
    ratios = sorted(a / b for a, b in zip(times["one process"], times["two processes"], strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    print(f"  ratio          {np.median(ratios):9.3f} (middle half {low:.3f} to {high:.3f})")


@contextmanager
def _shared(spec: TrainSpec, num_threads: int) -> Iterator[list[Connection]]:
    """Processes that train together, each behind a pipe."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    pipes, workers = [], []
    for rank in range(NUM_PROCESSES):
        here, there = context.Pipe()
        workers.append(context.Process(target=_work, args=(rank, num_threads, spec, there)))
        pipes.append(here)
        workers[-1].start()
    yield pipes
    for pipe in pipes:
        pipe.send(False)
    for worker in workers:
        worker.join()


def _work(rank: int, num_threads: int, spec: TrainSpec, pipe: Connection) -> None:
    torch.set_num_threads(num_threads)
    keep_freed_memory()
    ranks = Ranks(rank, NUM_PROCESSES, rank)
    with Team.joined(ranks) as team:
        run_round = fluence_loop(spec, ranks, team)
        while pipe.recv():
            run_round()
            pipe.send(True)


def _round(pipes: list[Connection]) -> None:
    for pipe in pipes:
        pipe.send(True)
    for pipe in pipes:
        pipe.recv()


if __name__ == "__main__":
    main()
