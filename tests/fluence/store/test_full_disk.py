"""A disk that fills up: one clear line, nothing half-written, and no crash of HDF5."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fluence.errors import ArtifactError
from fluence.store.activations import Activations, ActivationWriter, LayerInfo
from fluence.store.files import reserve, trim, write_json
from fluence.store.packed import Packed, PackedWriter

SIZE_MB = 40


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def activation_writer(path: Path, num_images: int) -> ActivationWriter:
    layer = LayerInfo("conv1", (4, 64, 64), "post", "conv")
    ids = [str(number) for number in range(num_images)]
    return ActivationWriter(path, key="k", image_ids=ids, reference_ids=ids[:1], layers=[layer], probes=["l1_error"])


def test_packing_more_than_the_disk_holds(small_disk: Path) -> None:
    block = np.ones((64, 64, 64, 3), dtype=np.uint8)
    with (
        pytest.raises(ArtifactError, match="the disk is full: free some space"),
        PackedWriter(small_disk / "faces.h5", 64, {}) as writer,
    ):
        for _ in range(100):
            writer.append(block)
    assert list(small_disk.iterdir()) == []


def test_activations_that_do_not_fit_are_refused_before_the_first_image(small_disk: Path) -> None:
    with pytest.raises(ArtifactError, match="the disk is full"):
        activation_writer(small_disk / "run.h5", 5000)
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_is_already_full(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**20))
    for attempt in (
        lambda: activation_writer(small_disk / "run.h5", 1),
        lambda: PackedWriter(small_disk / "faces.h5", 64, {}).__enter__(),
        lambda: write_json(small_disk / "x.json", list(range(10**5))),
    ):
        with pytest.raises(ArtifactError, match="the disk is full"):
            attempt()
    assert list(small_disk.iterdir()) == [ballast]


def test_a_disk_that_fills_up_while_activations_are_written(small_disk: Path) -> None:
    """Their own space is theirs; that they cannot be counted is one line, and they go on when there is space."""
    values, probes = {"conv1": np.ones((100, 4 * 64 * 64), np.float32)}, {"l1_error": np.zeros(100)}
    with activation_writer(small_disk / "run.h5", 200) as writer:
        writer.write_block(0, values, probes)
        writer.keep()
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**12))
        with pytest.raises(ArtifactError, match=r"run\.h5.*: the disk is full: free some space and start again"):
            writer.write_block(100, values, probes)
            writer.keep()
    ballast.unlink()
    with activation_writer(small_disk / "run.h5", 200) as writer:
        assert writer.rows_done == 100
        writer.write_block(100, values, probes)
        writer.finish()
    with Activations(small_disk / "run.h5") as file:
        assert (file.read("conv1", 0, 200) == 1).all()


def test_a_file_system_that_is_read_only(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ArtifactError, match="the file system is read-only: choose another folder with --output"):
        activation_writer(small_disk / "run.h5", 1)


def test_reserved_space_is_given_back(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "faces.h5", 8, {}) as writer:
        writer.append(np.zeros((2, 8, 8, 3), dtype=np.uint8))
        writer.finish(pd.DataFrame({"image_id": ["a", "b"]}), pd.DataFrame())
    assert len(Packed(tmp_path / "faces.h5")) == 2
    assert (tmp_path / "faces.h5").stat().st_blocks * 512 < 2**20


def test_reserving_changes_neither_size_nor_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    reserve(path, 2**20)
    assert path.read_bytes() == b"abc"
    trim(path)
    assert path.stat().st_blocks * 512 < 2**16
