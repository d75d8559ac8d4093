from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fluence.errors import RunError
from fluence.store.weights import read_weights
from fluence.training.checkpoint import Checkpoints
from fluence.training.distributed import Ranks, Team, first_pass_undone
from tests.fluence.training.tiny_training import end, spec_in, start

# ── Who they are ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_ranks_come_from_the_environment():
    place = {"MASTER_ADDR": "n1", "MASTER_PORT": "1"}
    assert Ranks.from_environment({}) == Ranks(0, 1, 0)
    found = Ranks.from_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **place})
    assert found == Ranks(rank=5, world_size=8, local_rank=1)
    assert not found.is_first


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"RANK": "two"}, "RANK=two, .*must be a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1, .*must be a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2, .*RANK must be below WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1"}, "has no MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK must be below WORLD_SIZE"),
    ],
)
def test_contradictory_environment_is_refused(environment, word):
    with pytest.raises(RunError, match=word):
        Ranks.from_environment(environment)


def test_one_process_agrees_with_itself_and_needs_no_group():
    with Team.joined(Ranks()) as team:
        assert not torch.distributed.is_initialized()
        values = torch.tensor([1.0, 2.0])
        assert torch.equal(team.sum(values), torch.tensor([1.0, 2.0]))
        assert team.any(True, False) == (True, False)
        assert team.from_first("x") == "x"
        assert team.gathered(3) == [3]
        model = nn.Linear(1, 1)
        assert team.wrap(model) is model
        team.wait()


def test_first_pass_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with first_pass_undone(model):
        model(torch.rand(2, 3, 4, 4)).sum().backward()
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# ── What they make together ──────────────────────────────────────────────────────────────────────────────────────


def outcome(folder: Path, settings: dict[str, Any], world_size: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    processes = start(folder, settings, world_size)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * world_size
    spec = spec_in(folder, **settings)
    log = spec.layout.metrics_log(spec.run.id).read_text().splitlines()
    return [json.loads(line) for line in log], read_weights(spec.layout.weights(spec.run.id))[0]


@pytest.mark.slow
def test_number_of_processes_changes_nothing_but_rounding(tmp_path):
    """A batch of 7 over 2 and 3 processes: shares of unequal size, which weigh by their images."""
    settings = {"epochs": 2, "batch_size": 7, "kl_warmup_epochs": 2, "model": {"norm": "batch"}}
    log, weights = outcome(tmp_path / "1", settings, 1)
    for world_size in (2, 3):
        other_log, other_weights = outcome(tmp_path / str(world_size), settings, world_size)
        assert len(log) == len(other_log) == 4
        for row, other in zip(log, other_log, strict=True):
            assert {**row, "phase": 0} == pytest.approx({**other, "phase": 0}, rel=1e-5)
        for name, value in weights.items():
            torch.testing.assert_close(other_weights[name], value, rtol=1e-3, atol=2e-5)


EVERY_BATCH_TERM = {
    "sparsity": [
        {"penalty": "kl", "layers": "everywhere", "weight": 0.5},
        {"penalty": "l1", "layers": ["conv2"]},
        {"penalty": "l0", "layers": ["conv3"]},
    ],
    "attention": {"kind": "cbam", "layers": ["conv2", "conv4"]},
}


@pytest.mark.slow
def test_terms_of_the_whole_batch_are_the_same_for_any_number_of_processes(tmp_path):
    """Of the 9 images held out the last batch has one: the other processes take part in it with an empty share.

    Mistakes: a mean over a process' own share where the batch's is meant; a process that leaves a batch out.
    """
    settings = {"epochs": 2, "batch_size": 8, "model": EVERY_BATCH_TERM}
    log, weights = outcome(tmp_path / "1", settings, 1)
    assert [row["num_images"] for row in log if row["phase"] == "validation"] == [9, 9]
    for world_size in (2, 3):
        other_log, other_weights = outcome(tmp_path / str(world_size), settings, world_size)
        for row, other in zip(log, other_log, strict=True):
            assert row["sparsity/kl/conv1"] > 0
            assert {**row, "phase": 0} == pytest.approx({**other, "phase": 0}, rel=1e-5)
        for name, value in weights.items():
            torch.testing.assert_close(other_weights[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_three_processes_continue_to_the_same_bits(tmp_path):
    """With more than two, the order of addition depends on DDP's buckets; see `first_pass_undone`."""
    settings = {"epochs": 2, "model": {"width": 0.5}}
    log, weights = outcome(tmp_path / "whole", settings, 3)
    processes = start(tmp_path / "broken", {**settings, "stop_at": {1: 2}}, 3)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [1, 1, 1]
    other_log, other_weights = outcome(tmp_path / "broken", settings, 3)
    assert log == other_log
    for name, value in weights.items():
        assert torch.equal(other_weights[name], value)


@pytest.mark.slow
def test_one_process_that_is_asked_to_stop_stops_all_at_the_same_step(tmp_path):
    settings = {"stop_at": {1: 4}}
    processes = start(tmp_path, settings, 2)
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [1, 1]
    end(processes)
    spec = spec_in(tmp_path)
    checkpoints = Checkpoints(spec.layout.checkpoints(spec.run.id), spec.key)
    path = checkpoints.newest()
    assert path is not None
    state = checkpoints.load(path)
    assert (state["epoch"], state["batch"]) == (1, 0)
    assert len(state["random_states"]) == 2
