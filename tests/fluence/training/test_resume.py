"""A training ended with SIGKILL and started again must not differ by a bit from one that was never touched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fluence.store.weights import read_weights
from fluence.training.checkpoint import Checkpoints
from tests.fluence.training.tiny_training import KINDS, Death, end, spec_in, start

pytestmark = pytest.mark.slow
SETTINGS: dict[str, Any] = {"epochs": 4, "kl_warmup_epochs": 2, "model": {"norm": "batch"}}
NUM_STEPS = 4 * (31 // 8)


def results(folder: Path, settings: dict[str, Any]) -> tuple[bytes, Any, dict[str, Any]]:
    """metrics.jsonl, what weights.pt holds, and the last checkpoint."""
    spec = spec_in(folder, **settings)
    checkpoints = Checkpoints(spec.layout.checkpoints(spec.run.id), spec.key)
    path = checkpoints.newest()
    assert path is not None
    log = spec.layout.metrics_log(spec.run.id).read_bytes()
    return log, read_weights(spec.layout.weights(spec.run.id)), checkpoints.load(path)


def assert_same_bits(folder: Path, undisturbed: Path, settings: dict[str, Any] = SETTINGS) -> None:
    (log, weights, state), (log_0, weights_0, state_0) = results(folder, settings), results(undisturbed, settings)
    assert log == log_0
    assert_equal(weights, weights_0)
    for name in ("epoch", "batch", "model", "optimizer", "best"):
        assert_equal(state[name], state_0[name])


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_equal(a[name], b[name])
    else:
        assert a == b


def finish(folder: Path, world_size: int, settings: dict[str, Any] = SETTINGS) -> None:
    processes = start(folder, settings, world_size)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * world_size


def steps_saved(folder: Path) -> int:
    """The step of the newest checkpoint, from its name."""
    return max((int(path.name[5:13]) for path in folder.glob("runs/*/checkpoints/step-*.pt")), default=0)


@pytest.fixture(scope="module", params=[1, 2])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with the training that nobody touched, and its number of processes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder, request.param)
    return folder, request.param


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(tmp_path, undisturbed, seed):
    """Each attempt may save a random number of steps, and dies a random moment after that."""
    reference, world_size = undisturbed
    rng = np.random.default_rng(seed)
    found_at = []
    while steps_saved(tmp_path) < NUM_STEPS - 4:
        found_at.append(steps_saved(tmp_path))
        processes = start(tmp_path, SETTINGS, world_size)
        enough = found_at[-1] + rng.integers(1, 5)
        while steps_saved(tmp_path) < enough:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        victim = processes[rng.integers(world_size)]
        assert victim.is_alive()
        end([victim, *processes])
    assert len(found_at) >= 2
    finish(tmp_path, world_size)
    assert_same_bits(tmp_path, reference)


@pytest.mark.parametrize("point", ["half", "whole", "renamed"])
def test_killed_while_a_checkpoint_is_written(tmp_path, undisturbed, point):
    reference, world_size = undisturbed
    for count in (1, 5):
        processes = start(tmp_path, SETTINGS, world_size, Death(point, count))
        processes[0].join()
        assert processes[0].exitcode == -9
        end(processes)
    left_behind = list(tmp_path.glob("runs/*/checkpoints/.*.tmp"))
    assert bool(left_behind) == (point != "renamed")
    finish(tmp_path, world_size)
    assert_same_bits(tmp_path, reference)
    assert not list(tmp_path.glob("runs/*/checkpoints/.*.tmp"))


@pytest.mark.parametrize("kind", ["ar-vae", "vq-vae"])
def test_other_kinds_of_model_continue_after_a_kill(tmp_path, kind):
    settings = {"epochs": 3, "kl_warmup_epochs": 2, "model": KINDS[kind]}
    finish(tmp_path / "undisturbed", 1, settings)
    (process,) = start(tmp_path / "killed", settings, 1, Death("renamed", 5))
    process.join()
    assert process.exitcode == -9
    finish(tmp_path / "killed", 1, settings)
    assert_same_bits(tmp_path / "killed", tmp_path / "undisturbed", settings)
