"""The activation file: what is written is read, in three lines by a friend, and nothing wrong is read silently."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from fluence.errors import ArtifactError
from fluence.store.activations import Activations, ActivationWriter, LayerInfo, NeedsFloat32
from fluence.store.packed import LockedError

LAYERS = (
    LayerInfo("conv1", (3, 4, 5), "post", "conv"),
    LayerInfo("one", (1,), "post", "latent"),
    LayerInfo("wide", (2, 70, 70), "post", "conv"),
)
SHAPES = {layer.name: layer.num_units for layer in LAYERS}


def invented(num_images: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.maximum(rng.normal(size=(num_images, units)), 0) for name, units in SHAPES.items()}


def writer(
    path: Path, num_images: int, *, first: int = 0, num_reference: int = 2, **others: object
) -> ActivationWriter:
    ids = [f"image-{first + number}" for number in range(num_images)]
    reference = [f"t{number}" for number in range(num_reference)]
    return ActivationWriter(
        path,
        **{
            "key": "k",
            "image_ids": ids,
            "reference_ids": reference,
            "layers": LAYERS,
            "probes": ["l1_error"],
            "attributes": {"run": "small-all-s0"},
            **others,
        },  # type: ignore[arg-type]
    )


def write(
    path: Path, values: dict[str, np.ndarray], *, first: int = 0, num_reference: int = 2, **others: object
) -> None:
    num_images = len(values["conv1"])
    with writer(path, num_images, first=first, num_reference=num_reference, **others) as out:
        if num_reference:
            out.write_reference(0, invented(num_reference, seed=9))
            out.write_samples("rated", ["s"], np.zeros((1, 2, 2, 3), np.uint8), np.ones((1, 2, 2, 3), np.uint8))
        for start in range(0, num_images, 50):
            block = {name: rows[start : start + 50] for name, rows in values.items()}
            places = first + np.arange(start, min(start + 50, num_images))
            out.write_block(start, block, {"l1_error": places / 4})
        out.finish()


@pytest.mark.parametrize("num_images", [0, 1, 31, 120])
def test_what_is_written_is_read_by_images_and_by_units(tmp_path: Path, num_images: int) -> None:
    values = invented(num_images)
    write(tmp_path / "run.h5", values)
    with Activations(tmp_path / "run.h5", run="small-all-s0") as file:
        assert file.layers == LAYERS
        assert list(file.image_ids) == [f"image-{number}" for number in range(num_images)]
        assert file.attributes == {"key": "k", "run": "small-all-s0"}
        for name, rows in values.items():
            stored = rows.astype(np.float16)
            np.testing.assert_array_equal(file.read(name, 0, num_images), stored)
            np.testing.assert_array_equal(file.read(name, 7, 40), stored[7:40])
            np.testing.assert_array_equal(file.read_units(name, 3, 9000), stored[:, 3:9000])
            np.testing.assert_array_equal(file.reference(name), invented(2, seed=9)[name].astype(np.float16))
        assert file.probes["l1_error"].tolist() == [number / 4 for number in range(num_images)]
        assert file.samples("rated")[2].all()
        assert (file.chunk_images, file.chunk_units) == (32, 8192)
    with h5py.File(tmp_path / "run.h5") as raw:
        assert not num_images or raw["layers/wide"].chunks == (min(num_images, 32), 8192)
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_a_friend_opens_it_in_three_lines(tmp_path: Path) -> None:
    values = invented(3)
    write(tmp_path / "run.h5", values)
    lines = [
        "import h5py",
        "file = h5py.File('run.h5')",
        "print(file['image_id'][2].decode(), float(file['layers/conv1'][2].sum()), *file['layers/one'].attrs['shape'])",
    ]
    said = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout.split(maxsplit=2) == [
        "image-2",
        str(float(values["conv1"][2].astype("f2").sum())),
        "1\n",
    ]


def test_layers_that_need_float32_say_why(tmp_path: Path) -> None:
    values = invented(3)
    values["conv1"][1] *= 1e6
    with writer(tmp_path / "run.h5", 3) as out, pytest.raises(NeedsFloat32) as needs:
        out.write_block(0, values, {"l1_error": np.zeros(3)})
    write(tmp_path / "run.h5", values, float32_layers={needs.value.layer: needs.value.reason})
    with Activations(tmp_path / "run.h5") as file:
        dtype, reason = file.dtype("conv1")
        assert dtype == np.float32
        assert reason == f"a value of {values['conv1'].max():.3g} is more than float16 can hold"
        assert file.dtype("one") == (np.dtype("float16"), "fits float16")
        np.testing.assert_array_equal(file.read("conv1", 0, 3), values["conv1"].astype(np.float32))


@pytest.mark.parametrize("fill", [0.0, 2.5])
def test_constant_and_silent_layers_are_stored_as_they_are(tmp_path: Path, fill: float) -> None:
    values = {name: np.full((4, units), fill) for name, units in SHAPES.items()}
    write(tmp_path / "run.h5", values)
    with Activations(tmp_path / "run.h5") as file:
        assert all((file.read(name, 0, 4) == fill).all() for name in SHAPES)
        assert file.dtype("conv1")[0] == np.float16


def test_nan_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    values = invented(60)
    values["one"][57] = np.nan
    with pytest.raises(ArtifactError, match="layer one: 1 values are NaN or infinite, first in image image-57"):
        write(tmp_path / "run.h5", values)
    assert not (tmp_path / "run.h5").exists()


def test_blocks_have_to_come_in_order_and_to_be_complete(tmp_path: Path) -> None:
    values = invented(5)
    with writer(tmp_path / "run.h5", 10) as out:
        with pytest.raises(ArtifactError, match="image 5 was given, image 0 is next"):
            out.write_block(5, values, {"l1_error": np.zeros(5)})
        out.write_block(0, values, {"l1_error": np.zeros(5)})
        with pytest.raises(ArtifactError, match="5 of 10 images written"):
            out.finish()


def test_only_what_is_kept_counts_and_only_for_the_same(tmp_path: Path) -> None:
    path, values = tmp_path / "run.h5", invented(5)
    with writer(path, 15) as out:
        out.write_block(0, values, {"l1_error": np.zeros(5)})
        out.keep()
        out.write_block(5, values, {"l1_error": np.zeros(5)})
    for changes in ({}, {"attributes": {"run": "another word"}}):
        with writer(path, 15, **changes) as again:
            assert again.rows_done == 5
    for changes in ({"key": "other"}, {"float32_layers": {"one": "why"}}):
        with writer(path, 15) as first:
            first.write_block(first.rows_done, values, {"l1_error": np.zeros(5)})
            first.keep()
        with writer(path, 15, **changes) as afresh:
            assert afresh.rows_done == 0
    with writer(path, 16, **changes) as afresh:
        assert afresh.rows_done == 0


def test_a_file_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    with writer(tmp_path / "run.h5", 3) as out:
        script = f"""
from pathlib import Path
from fluence.store.packed import LockedError
from tests.fluence.store.test_activations import writer
try:
    writer(Path({str(tmp_path)!r}) / "run.h5", 3)
except LockedError as error:
    print(error)
"""
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        assert "another process has it open" in said
        out.write_block(0, invented(3), {"l1_error": np.zeros(3)})
        out.finish()
    with Activations(tmp_path / "run.h5") as file:
        assert len(file.image_ids) == 3


def test_a_file_that_may_not_be_opened_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)  # a superuser may open everything
    with pytest.raises(LockedError, match="chmod u"):
        Activations(tmp_path / "run.h5")


def spoil(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "foreign":
        path.write_text("beauty")
    else:
        with h5py.File(path, "r+") as file:
            file.attrs["format"] = 1


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "no such file"),
        ("truncated", "damaged or not an HDF5 file .*truncated.*delete it and run again"),
        ("empty", "damaged or not an HDF5 file"),
        ("foreign", "damaged or not an HDF5 file"),
        ("format 1", "in format 1, expected activations in format 2; delete it and run again"),
    ],
)
def test_what_is_not_such_a_file_is_refused_with_a_word(tmp_path: Path, how: str, says: str) -> None:
    write(tmp_path / "run.h5", invented(3))
    spoil(tmp_path / "run.h5", how)
    with pytest.raises(ArtifactError, match=says):
        Activations(tmp_path / "run.h5")


def test_activations_of_another_run_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "run.h5", invented(3))
    with pytest.raises(ArtifactError, match="the activations of small-all-s0, not of vgg-all-s1; delete it"):
        Activations(tmp_path / "run.h5", run="vgg-all-s1")
