"""An extraction that several processes share: the same values whatever the cut, and none waits for one that is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import h5py
import numpy as np
import pytest

import fluence.activations
from fluence.activations import ExtractSpec, block_images, extract
from fluence.errors import ArtifactError, Interrupted, LostProcess
from fluence.models import build
from fluence.store.activations import Activations
from fluence.store.weights import write_weights
from fluence.study import Record
from tests.fluence.test_activations import MODEL, NUM_IMAGES, RUN, SIZE_PX, make_spec, same_file

SMALL = Record(layers=("conv3", "mu"), reference_images=5, sample_images=3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> ExtractSpec:
    spec = make_spec(tmp_path_factory.mktemp("alone"), record=SMALL)
    extract(spec)
    return spec


def together(spec: ExtractSpec, world_size: int, stop: Callable[[], bool] = lambda: False) -> list[Future[None]]:
    """Extracts with threads in the place of processes: they share nothing but the files."""
    with ThreadPoolExecutor(world_size) as pool:
        ranks = [pool.submit(extract, spec, stop, rank, world_size) for rank in range(world_size)]
        wait(ranks)
    return ranks


def test_the_values_do_not_depend_on_the_cut(alone: ExtractSpec, tmp_path: Path) -> None:
    for world_size in (2, 3, 5):
        spec = make_spec(tmp_path / str(world_size), record=SMALL)
        assert [rank.result() for rank in together(spec, world_size)] == [None] * world_size
        assert same_file(spec, alone)
        with h5py.File(spec.layout.activations(RUN.id)) as file:
            assert file["layers/conv3"].is_virtual
            assert len(file["layers/conv3"].virtual_sources()) == min(world_size, 3)


def test_compressed_shards_hold_the_same_values(alone: ExtractSpec, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, record=SMALL.model_copy(update={"compression": "zstd"}))
    assert all(rank.result() is None for rank in together(spec, 2))
    assert same_file(spec, alone)
    shards = sorted(spec.layout.activation_parts(RUN.id).iterdir())
    assert [shard.name for shard in shards] == ["00000000-00000128.h5", "00000128-00000300.h5"]
    for shard in shards:
        with h5py.File(shard) as file:
            assert file["layers/conv3"]._filters, shard


def test_few_images_take_one_process_and_one_file(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, num_images=20, record=SMALL)
    assert all(rank.result() is None for rank in together(spec, 3))
    assert [path.name for path in spec.layout.activations(RUN.id).parent.iterdir()] == [f"{RUN.id}.h5"]


def test_stopped_processes_continue_and_each_keeps_its_share(alone: ExtractSpec, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, record=SMALL)
    assert {type(rank.exception()) for rank in together(spec, 2, stop=lambda: True)} == {Interrupted}
    assert not spec.layout.activations(RUN.id).exists()
    finished = spec.layout.activation_parts(RUN.id) / "00000000-00000128.h5"
    assert all(rank.result() is None for rank in together(spec, 2))
    assert same_file(spec, alone)
    written = finished.stat().st_mtime_ns
    assert all(rank.result() is None for rank in together(spec, 2))
    assert finished.stat().st_mtime_ns == written
    assert same_file(spec, alone)


def test_another_number_of_processes_leaves_nothing_behind(alone: ExtractSpec, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, record=SMALL)
    together(spec, 2, stop=lambda: True)
    extract(spec)
    assert same_file(spec, alone)
    assert not spec.layout.activation_parts(RUN.id).exists()


def test_a_layer_that_needs_float32_in_one_share_is_float32_in_all(tmp_path: Path) -> None:
    record = Record(layers=("conv3", "mu"), tap="pre", reference_images=1, sample_images=1)
    spec, whole = (make_spec(tmp_path / name, record=record) for name in ("parts", "whole"))
    state = build(MODEL, SIZE_PX, seed=0).state_dict()
    weight = next(name for name in state if "conv3" in name and name.endswith("weight"))
    network_max = _largest(whole)
    state[weight] *= 1.01 * 65536 / network_max  # hardly any other image leaves the range
    for each in (spec, whole):
        write_weights(each.layout.weights(RUN.id), state, {})
    extract(whole)
    assert all(rank.result() is None for rank in together(spec, 3))
    assert same_file(spec, whole)
    with Activations(spec.layout.activations(RUN.id)) as file:
        assert file.dtype("conv3")[0] == np.float32
        assert "more than float16 can hold" in file.dtype("conv3")[1]


def _largest(spec: ExtractSpec) -> float:
    extract(spec)
    with Activations(spec.layout.activations(RUN.id)) as file:
        return float(np.abs(file.read("conv3", 0, NUM_IMAGES)).max())


def test_a_process_that_fails_ends_the_others(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, record=SMALL)
    threading.Timer(0.5, spec.layout.weights(RUN.id).write_bytes, (b"",)).start()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(extract, spec, lambda: False, 0, 2)
        while spec.layout.weights(RUN.id).stat().st_size:
            time.sleep(0.05)
        second = pool.submit(extract, spec, lambda: False, 1, 2)
        assert isinstance(second.exception(), ArtifactError)
        assert isinstance(first.exception(), LostProcess)
    assert "process 1 gave up" in str(first.exception())
    assert "weights.pt" in str(first.exception())


def test_a_process_that_waits_can_be_stopped_and_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(tmp_path, record=SMALL)
    with pytest.raises(Interrupted, match="waited for the other processes"):
        extract(spec, stop=lambda: spec.layout.progress("extract", RUN.id).exists(), rank=0, world_size=3)
    monkeypatch.setattr(fluence.activations, "_LOST_S", 0.5)
    with pytest.raises(LostProcess, match="nothing was heard of the other processes"):
        extract(spec, rank=0, world_size=3)


@pytest.mark.parametrize(
    ("bytes_per_image", "expected"), [(1, 128), (2**22, 64), (2**28 // 100, 96), (2**28 // 9, 8), (2**40, 1)]
)
def test_blocks_are_whole_chunks_or_divide_one(bytes_per_image: int, expected: int) -> None:
    assert block_images(bytes_per_image) == expected
