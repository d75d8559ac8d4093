"""Spectral normalisation in a training: it continues to the same bits, and every process has the same vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from fluence.errors import Interrupted
from fluence.models import build
from fluence.study import VaeModel
from fluence.training import Ranks, train
from fluence.training.checkpoint import Checkpoints
from fluence.training.distributed import Team, first_pass_undone
from tests.fluence.training.tiny_training import spec_in

SHARES = (slice(0, 5), slice(5, 8))  # unequal on purpose
SETTINGS = VaeModel(kind="vae", width=1 / 16, norm="spectral", upsampling="transposed")


def test_stopped_it_continues_to_the_same_bits(tmp_path):
    def run(folder: str, stops: list[bool]) -> dict:
        spec = spec_in(tmp_path / folder, model={"norm": "spectral"}, epochs=2)
        while True:
            try:
                train(spec, Ranks(), stop=lambda: bool(stops) and stops.pop(0), checkpoint_interval_s=1e9, quiet=True)
            except Interrupted:
                continue
            checkpoints = Checkpoints(spec.layout.checkpoints(spec.run.id), spec.key)
            return checkpoints.load(checkpoints.newest())["model"]

    whole, broken = run("whole", []), run("broken", [False, True, False, False, True])
    assert any(name.endswith(".u") for name in whole)
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())


def _steps(wrapped: torch.nn.Module, network: torch.nn.Module, images: torch.Tensor, count: int) -> dict:
    """The weights after three steps on a share of `count` images."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    scale = dist.get_world_size() / count if dist.is_initialized() else 1 / count
    with first_pass_undone(network):
        wrapped(images).reconstruction.sum().backward()
    for _ in range(3):
        ((wrapped(images).reconstruction - images).square().sum() * scale).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return network.state_dict()


def _only_what_moves(network: torch.nn.Module) -> torch.nn.Module:
    """Without noise nothing reaches the variances, for which DistributedDataParallel would wait."""
    network.head.logvar.requires_grad_(False)
    return network


def _worker(rank: int, folder: str, images: torch.Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(SHARES))
    team = Team(Ranks(rank, len(SHARES)), dist.new_group(backend="gloo"))
    network = _only_what_moves(build(SETTINGS, 32, 0))
    torch.save(_steps(team.wrap(network), network, images[SHARES[rank]], len(images)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_process_has_the_same_vectors_and_they_are_those_of_one_process(tmp_path):
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.multiprocessing.spawn(_worker, (str(tmp_path), images), nprocs=len(SHARES))
    first, second = (torch.load(Path(tmp_path, f"{rank}.pt"), weights_only=True) for rank in range(len(SHARES)))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    network = _only_what_moves(build(SETTINGS, 32, 0))
    start = {name: value.clone() for name, value in network.state_dict().items()}
    one = _steps(network, network, images, len(images))
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)
    assert any(name.endswith(".u") and not torch.equal(value, start[name]) for name, value in one.items())
