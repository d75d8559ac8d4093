"""Trainings in this process, stopped where a test likes, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from fluence.errors import Interrupted
from fluence.store.weights import read_weights
from fluence.training import Ranks, TrainSpec, TrainSummary, train
from fluence.training.checkpoint import Checkpoints
from fluence.training.distributed import Team
from fluence.training.loop import TrainingLoop
from fluence.training.task import load_images

NEVER = 1e9


def run(spec: TrainSpec, stop: Callable[[], bool] = lambda: False, interval_s: float = NEVER) -> TrainSummary:
    return train(spec, Ranks(), stop=stop, checkpoint_interval_s=interval_s, quiet=True)


def rows(spec: TrainSpec, phase: str) -> list[dict[str, Any]]:
    lines = spec.layout.metrics_log(spec.run.id).read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["phase"] == phase]


def handed_on(spec: TrainSpec) -> dict[str, Any]:
    state, facts = read_weights(spec.layout.weights(spec.run.id))
    return {"model": state, **facts}


def last_state(spec: TrainSpec) -> dict[str, Any]:
    checkpoints = Checkpoints(spec.layout.checkpoints(spec.run.id), spec.key)
    path = checkpoints.newest()
    assert path is not None
    return checkpoints.load(path)


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def after(num_calls: int) -> Callable[[], bool]:
    """A stop flag that is raised at the given call."""
    calls = iter(range(1, 10**6))
    return lambda: next(calls) >= num_calls


def new_loop(spec: TrainSpec) -> TrainingLoop:
    data = load_images(spec, Ranks())
    loop = TrainingLoop(spec, data, Team(Ranks()), stop=lambda: False, checkpoint_interval_s=NEVER, quiet=True)
    loop.resume()
    return loop


def whole_and_broken(
    make_spec: Callable[..., TrainSpec], stops: Sequence[int], said: str = "stopped after", **settings: Any
) -> tuple[TrainSpec, TrainSpec]:
    """Two trainings alike, one of them stopped after so many steps each time and continued: to the same bits.

    Args:
        make_spec: makes the training that `settings` describe.
        stops: steps of each start before the last.
        said: pattern of what a stopped training says.
    """
    whole, broken = make_spec("whole", **settings), make_spec("broken", **settings)
    run(whole)
    for num_steps in stops:
        with pytest.raises(Interrupted, match=said):
            run(broken, stop=after(num_steps))
    run(broken)
    logs = [spec.layout.metrics_log(spec.run.id).read_bytes() for spec in (whole, broken)]
    assert logs[0] == logs[1]
    assert same_weights(handed_on(whole)["model"], handed_on(broken)["model"])
    assert str(last_state(whole)["optimizer"]) == str(last_state(broken)["optimizer"])
    return whole, broken


def overflowing(
    make_spec: Callable[..., TrainSpec], weight: float, **settings: Any
) -> tuple[TrainSpec, dict[str, Any]]:
    """A training in fp16 whose first gradients overflow, and its last state: the same when it was stopped meanwhile."""
    model = {"reconstruction": [{"loss": "l2", "weight": weight}]}
    specs = [make_spec(name, epochs=3, model=model, **settings) for name in "ab"]
    run(specs[0])
    with pytest.raises(Interrupted):
        run(specs[1], stop=after(4))
    run(specs[1])
    states = [last_state(spec) for spec in specs]
    assert states[0]["scaler"]["scale"] < 65536
    assert states[0]["scaler"] == states[1]["scaler"]
    assert same_weights(states[0]["model"], states[1]["model"])
    return specs[0], states[0]
