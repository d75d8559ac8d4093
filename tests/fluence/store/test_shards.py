"""Shards: they read as one file, from wherever it lies, and one that is not as it was is refused."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluence.errors import ArtifactError, LostProcess
from fluence.store.activations import Activations
from fluence.store.shards import Shards, join, share
from tests.fluence.store.test_activations import SHAPES, invented, write

CUTS = (range(64), range(64, 96), range(96, 120))


@given(st.integers(0, 500), st.integers(1, 70), st.integers(1, 9))
def test_shares_hold_every_image_once_and_begin_at_whole_steps(num_images: int, step: int, world_size: int) -> None:
    shares = [share(num_images, step, rank, world_size) for rank in range(world_size)]
    assert [image for images in shares for image in images] == list(range(num_images))
    assert all(images.start % step == 0 for images in shares if images)
    assert max(map(len, shares)) <= -(-num_images // (step * world_size)) * step


def shards_in(folder: Path) -> Shards:
    return Shards(folder / "run.h5", folder / "run.parts", "k")


def write_shards(folder: Path, **others: object) -> Shards:
    """120 images in three shards."""
    values, shards = invented(120), shards_in(folder)
    for images in CUTS:
        part = {name: rows[images.start : images.stop] for name, rows in values.items()}
        num_reference = 0 if images.start else 2
        write(shards.of(images), part, first=images.start, num_reference=num_reference, **others)
    return shards


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    write_shards(tmp_path / "there").join(CUTS)
    return tmp_path / "there" / "run.h5"


def test_shards_read_as_the_file_of_all_images(joined: Path, tmp_path: Path) -> None:
    write(tmp_path / "whole.h5", invented(120))
    with Activations(joined) as shards, Activations(tmp_path / "whole.h5") as whole:
        assert shards.layers == whole.layers
        assert shards.attributes == whole.attributes
        assert shards.probes.equals(whole.probes)
        assert list(shards.reference_ids) == list(whole.reference_ids)
        for name in SHAPES:
            assert shards.dtype(name) == whole.dtype(name)
            np.testing.assert_array_equal(shards.read(name, 50, 110), whole.read(name, 50, 110))
            np.testing.assert_array_equal(shards.read_units(name, 1, 8300), whole.read_units(name, 1, 8300))
            np.testing.assert_array_equal(shards.reference(name), whole.reference(name))
        for one, other in zip(shards.samples("rated"), whole.samples("rated"), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_friend_reads_them_from_anywhere_and_after_a_move(
    joined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(joined.parent, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    with h5py.File("elsewhere/run.h5") as file:
        np.testing.assert_array_equal(file["layers/conv1"][100], invented(120)["conv1"][100].astype(np.float16))
        assert file["layers/conv1"].attrs["shape"].tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", r"00000064-00000096\.h5: this part of the activations is missing: put it back, or delete"),
        ("truncated", r"00000064-00000096\.h5: damaged \([\d,]+ of [\d,]+ bytes\); delete the file that it is a part"),
        ("foreign", r"00000064-00000096\.h5: damaged or not an HDF5 file"),
        ("another", r"00000064-00000096\.h5: this part belongs to another extraction"),
    ],
)
def test_a_shard_that_is_not_as_it_was_is_refused(joined: Path, how: str, says: str) -> None:
    path = shards_in(joined.parent).of(CUTS[1])
    size = path.stat().st_size
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, size - 1)
    elif how == "foreign":
        path.write_bytes(bytes(size))
    else:
        with h5py.File(path, "r+") as file:
            file.attrs["attributes"] = file.attrs["attributes"].replace('"k"', '"l"')
    with pytest.raises(ArtifactError, match=says):
        Activations(joined)


def test_what_a_lost_shard_held_is_not_zero_for_others_either(joined: Path) -> None:
    shards_in(joined.parent).of(CUTS[1]).unlink()
    with h5py.File(joined) as file:
        assert np.isnan(file["layers/conv1"][64:96]).all()
        assert np.isfinite(file["layers/conv1"][:64]).all()


@pytest.mark.parametrize("changes", [{"key": "l"}, {"float32_layers": {"one": "why"}}, {"layers": ()}])
def test_shards_that_differ_are_not_joined(tmp_path: Path, changes: dict[str, object]) -> None:
    shards = write_shards(tmp_path)
    if "layers" in changes:
        with h5py.File(shards.of(CUTS[2]), "r+") as file:
            file["layers/one"].attrs["tap"] = "pre"
    else:
        part = {name: rows[96:] for name, rows in invented(120).items()}
        write(shards.of(CUTS[2]), part, first=96, num_reference=0, **changes)
    with pytest.raises(ArtifactError, match=r"00000096-00000120\.h5: its \w+ are not those of the first part"):
        join(tmp_path / "run.h5", [shards.of(images) for images in CUTS])
    assert not (tmp_path / "run.h5").exists()


def test_a_single_shard_becomes_the_file(tmp_path: Path) -> None:
    shards = shards_in(tmp_path)
    write(shards.of(range(40)), invented(40))
    shards.join([range(40), range(40, 40)])
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]
    with Activations(tmp_path / "run.h5") as file:
        assert len(file.image_ids) == 40


def test_a_shard_is_finished_only_if_it_is_of_this_extraction(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    assert shards.is_finished(CUTS[0], [])
    assert not shards.is_finished(CUTS[0], ["conv1"])
    assert not shards.is_finished(range(60), [])
    assert not Shards(tmp_path / "run.h5", tmp_path / "run.parts", "l").is_finished(CUTS[0], [])
    os.truncate(shards.of(CUTS[0]), 5000)
    assert not shards.is_finished(CUTS[0], [])


def test_joining_removes_what_else_is_in_the_folder(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    shards.need_float32("conv1", "why")
    (tmp_path / "run.parts" / "00000000-00000032.h5.partial").write_text("left over")
    shards.join(CUTS)
    assert sorted((tmp_path / "run.parts").iterdir()) == [shards.of(images) for images in CUTS]
    assert shards.is_joined()


def test_processes_tell_each_other_what_needs_float32(tmp_path: Path) -> None:
    one, other = shards_in(tmp_path), shards_in(tmp_path)
    foreign = Shards(tmp_path / "run.h5", tmp_path / "run.parts", "l")
    assert one.float32_layers() == {}
    other.need_float32("conv3.channels", "too large")
    foreign.need_float32("mu", "of another extraction")
    one.need_float32("conv1", "too small")
    assert one.float32_layers() == other.float32_layers() == {"conv1": "too small", "conv3.channels": "too large"}


def test_processes_tell_each_other_that_they_give_up(tmp_path: Path) -> None:
    one, other = shards_in(tmp_path), shards_in(tmp_path)
    one.check_others()
    other.give_up(2, "the disk is full")
    with pytest.raises(LostProcess, match="process 2 gave up: the disk is full"):
        one.check_others()
    other.forget(2)
    one.check_others()
    other.give_up(3, "long ago")
    note = tmp_path / "run.parts" / "gave-up-3.json"
    os.utime(note, (time.time() - 60, time.time() - 60))
    one.check_others()
