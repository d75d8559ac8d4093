"""The packed file: what goes in comes out, and a file is whole or absent."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluence.errors import ArtifactError
from fluence.store.packed import FORMAT, KIND, PROBLEM_COLUMNS, Packed, PackedWriter

NO_PROBLEMS = pd.DataFrame(columns=list(PROBLEM_COLUMNS))


def noise(num_images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_images, 6, 6, 3), np.uint8)


def table_of(num_images: int) -> pd.DataFrame:
    return pd.DataFrame({"image_id": [f"i{n}" for n in range(num_images)], "beauty": np.arange(num_images) / 7})


def write(path, pixels, table=None, problems=NO_PROBLEMS, attributes=None, blocks=1):
    with PackedWriter(path, 6, attributes or {}) as writer:
        for block in np.array_split(pixels, blocks):
            writer.append(block)
        writer.finish(table_of(len(pixels)) if table is None else table, problems)
    return Packed(path)


def test_pixels_table_problems_and_attributes_come_back(tmp_path):
    table = table_of(5).assign(note=["", "é, 名", 'a "b"', "x\ny", "z"], missing=[1, np.nan, 3, 4, 5])
    problems = pd.DataFrame([("", "half.jpg", 3, "truncated", False)], columns=list(PROBLEM_COLUMNS))
    packed = write(tmp_path / "a" / "x.h5", noise(5), table, problems, {"commit": "1a", "nested": {"a": [1]}}, blocks=3)
    assert np.array_equal(packed.read(), noise(5))
    pd.testing.assert_frame_equal(packed.table, table, check_dtype=False)
    assert packed.table["beauty"].dtype == np.float64
    assert packed.problems.to_dict("records") == [
        {"image_id": "", "path": "half.jpg", "line": 3, "reason": "truncated", "kept": 0}
    ]
    assert packed.attributes == {"image_size_px": 6, "commit": "1a", "nested": {"a": [1]}}
    assert (len(packed), packed.image_size_px) == (5, 6)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, 8), max_size=20))
def test_rows_may_be_read_in_any_order_and_again(tmp_path_factory, rows):
    packed = write(tmp_path_factory.mktemp("rows") / "x.h5", noise(9))
    assert np.array_equal(packed.read(np.array(rows, int)), noise(9)[rows])


def test_slices_and_nothing_are_read(tmp_path):
    packed = write(tmp_path / "x.h5", noise(9))
    assert np.array_equal(packed.read(slice(2, 7, 2)), noise(9)[2:7:2])
    assert packed.read(np.array([], int)).shape == (0, 6, 6, 3)


def test_a_friend_reads_it_with_plain_h5py(tmp_path):
    write(tmp_path / "x.h5", noise(3))
    with h5py.File(tmp_path / "x.h5") as file:
        assert np.array_equal(file["pixels"][0], noise(3)[0])
        assert (file.attrs["kind"], file.attrs["format"]) == (KIND, FORMAT)
        assert file["pixels"].chunks == (1, 6, 6, 3)


class Mishap(Exception):
    """Something that happens while a file is written."""


@pytest.mark.parametrize("error", [Mishap, KeyboardInterrupt])
def test_an_error_leaves_nothing_and_keeps_the_old_file(tmp_path, error):
    write(tmp_path / "x.h5", noise(3))

    def fail() -> None:
        with PackedWriter(tmp_path / "x.h5", 6, {}) as writer:
            writer.append(noise(2, seed=1))
            raise error

    with pytest.raises(error):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]
    assert np.array_equal(Packed(tmp_path / "x.h5").read(), noise(3))


def test_a_file_that_was_not_finished_does_not_appear(tmp_path):
    with pytest.raises(ArtifactError, match="before it was finished"), PackedWriter(tmp_path / "x.h5", 6, {}) as writer:
        writer.append(noise(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("table", "words"),
    [(table_of(2), "2 rows for 3 images"), (table_of(3).assign(image_id="same"), "an image_id occurs twice")],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, table, words):
    with pytest.raises(ArtifactError, match=words):
        write(tmp_path / "x.h5", noise(3), table)
    assert list(tmp_path.iterdir()) == []


def test_missing_damaged_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        Packed(tmp_path / "none.h5")
    write(tmp_path / "x.h5", noise(30))
    content = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "half.h5").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.h5").write_text("no HDF5")
    for name in ("half.h5", "text.h5"):
        with pytest.raises(ArtifactError, match="damaged or not an HDF5 file"):
            Packed(tmp_path / name)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["pixels"] = [1]
    with pytest.raises(ArtifactError, match="holds something else"):
        Packed(tmp_path / "other.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file.attrs["format"] = FORMAT + 1
    with pytest.raises(ArtifactError, match=f"in format {FORMAT + 1}, expected {KIND} in format {FORMAT}"):
        Packed(tmp_path / "x.h5")


def test_a_folder_that_may_not_be_written_is_explained(tmp_path, monkeypatch):
    """The superuser, as whom tests often run, may write anywhere: the refusal is put in its place."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(ArtifactError, match="you may not write there"):
        write(tmp_path / "closed" / "x.h5", noise(3))
