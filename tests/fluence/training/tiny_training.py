"""A training of a second: a few coarse images and a narrow network, here or in processes that a test can kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter

from fluence.layout import Layout, Run
from fluence.store.packed import PackedWriter
from fluence.study import Model, Training
from fluence.training import Ranks, TrainSpec, train
from fluence.training.checkpoint import Checkpoints

SIZE_PX = 32
KINDS: dict[str, dict[str, Any]] = {
    "tilted": {"prior": {"kind": "tilted", "tau": 4}},
    "ar-vae": {"kind": "ar-vae", "attributes": [{"column": "light", "unit": 1}]},
    "ae": {"kind": "ae"},
    "vq-vae": {"kind": "vq-vae", "codebook_size": 8},
}
"""Settings of the kinds of model besides the plain VAE."""


def write_packed(path: Path, num_images: int, seed: int = 0) -> None:
    """Coarse images that differ most in their brightness, in two groups; the first three are `asian-female`.

    `light` is the mean of an image's pixels, unknown of every fifth image; `one` is the same for all.
    """
    rng = np.random.default_rng(seed)
    brightness = rng.uniform(30, 200, size=(num_images, 1, 1, 1))
    coarse = (brightness + rng.uniform(0, 50, size=(num_images, 4, 4, 3))).astype(np.uint8)
    table = pd.DataFrame(
        {
            "image_id": [f"image-{i:03d}" for i in range(num_images)],
            "ethnicity": ["Asian" if i < 3 else "Black" for i in range(num_images)],
            "sex": "Female",
            "light": np.where(np.arange(num_images) % 5 == 4, np.nan, coarse.mean((1, 2, 3))),
            "one": 1.0,
        }
    )
    with PackedWriter(path, SIZE_PX, {}) as writer:
        writer.append(coarse.repeat(SIZE_PX // 4, axis=1).repeat(SIZE_PX // 4, axis=2))
        writer.finish(table, pd.DataFrame({"image_id": []}))


def spec_in(
    folder: Path, *, num_images: int = 40, group: str = "all", seed: int = 0, key: str = "key",
    model: dict[str, Any] | None = None, **training: Any,
) -> TrainSpec:  # fmt: skip
    """A training below `folder`; settings of the model in `model`, of the training as keywords."""
    layout = Layout(folder)
    if not layout.packed("faces").exists():
        write_packed(layout.packed("faces"), num_images)
    settings = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "validation_fraction": 0.2} | training
    small = {"kind": "vae", "width": 0.125, "latent": {"kind": "conv", "channels": 4}}
    return TrainSpec(
        model=TypeAdapter(Model).validate_python(small | (model or {})),
        training=Training.model_validate(settings),
        run=Run("tiny", group, seed, f"tiny-{group}-s{seed}-0000"),
        layout=layout,
        packed=layout.packed("faces"),
        group_by=("ethnicity", "sex"),
        min_group_size=10,
        key=key,
    )


@dataclass(frozen=True)
class Death:
    """Where a process ends itself with SIGKILL: at the `count`-th checkpoint, at one of these points.

    `half`: half of the temporary file is written. `whole`: all of it, but it is not renamed yet. `renamed`: the
    checkpoint is in place, and the one before the last not yet removed.
    """

    point: Literal["half", "whole", "renamed"]
    count: int

    def lie_in_wait(self) -> None:
        """Puts itself in the way of the functions that write checkpoints."""
        if self.point == "half":
            _replace(Path, "write_bytes", self._dying(_write_half))
        elif self.point == "whole":
            _replace(Path, "write_bytes", self._dying(Path.write_bytes))
        else:
            _replace(Checkpoints, "_keep", self._dying(lambda checkpoints, path: None))

    def _dying(self, last_deed: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        calls = iter(range(1, 10**6))

        def instead_of(original: Callable[..., Any]) -> Callable[..., Any]:
            def act(*arguments: Any) -> Any:
                if next(calls) < self.count:
                    return original(*arguments)
                last_deed(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)

            return act

        return instead_of


def _write_half(path: Path, content: memoryview) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(content[: len(content) // 2])


def _replace(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))


def run_rank(folder: Path, settings: dict[str, Any], ranks: Ranks, port: int, death: Death | None) -> None:
    """What one process does: train a tiny spec, saving after each step."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*CUDA initialization.*")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if death:
        death.lie_in_wait()
    settings = dict(settings)
    stop_at = settings.pop("stop_at", {})
    calls = iter(range(1, 10**6))
    train(
        spec_in(folder, **settings),
        ranks,
        stop=lambda: next(calls) >= stop_at.get(ranks.rank, 10**6),
        checkpoint_interval_s=0,
        quiet=True,
    )


def start(folder: Path, settings: dict[str, Any], world_size: int = 1, death: Death | None = None) -> list[Any]:
    """Starts a training in `world_size` processes of its own; `death` is the first one's."""
    spec_in(folder, **{name: value for name, value in settings.items() if name != "stop_at"})  # writes the images
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "fluence.training.loop"])
    processes = []
    for rank in range(world_size):
        arguments = (folder, settings, Ranks(rank, world_size, rank), port, None if rank else death)
        processes.append(context.Process(target=run_rank, args=arguments))
    for process in processes:
        process.start()
    return processes


def end(processes: list[Any]) -> None:
    """Kills what still runs, and waits for all."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
