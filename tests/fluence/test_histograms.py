"""The file of packed histograms: what is written is read, and what is not whole is refused."""

from __future__ import annotations

import errno
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fluence.store.histograms as module
from fluence.errors import ArtifactError, UnwritableError
from fluence.store.activations import LayerInfo
from fluence.store.histograms import HistogramFile, Histograms, HistogramWriter, is_kept

IDS = ["a", "b", "c"]


def histograms(num_images: int, seed: int = 0) -> Histograms:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_images, 50)).astype(np.float16).view(np.uint16)
    found = [np.unique(row, return_counts=True) for row in rows]
    bits, counts = (np.concatenate([np.empty(0, "u2"), *column]) for column in zip(*found, strict=True))
    start = np.cumsum([0, *(len(one) for one, _ in found)])
    return Histograms(bits.astype(np.uint16), counts.astype(np.uint32), start.astype(np.int64))


def part(whole: Histograms, start: int, stop: int) -> Histograms:
    bins = slice(whole.start[start], whole.start[stop])
    return Histograms(whole.bits[bins], whole.counts[bins], whole.start[start : stop + 1] - whole.start[start])


def assert_same(found: Histograms, expected: Histograms) -> None:
    for name in ("bits", "counts", "start"):
        assert getattr(found, name).dtype == getattr(expected, name).dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def write(path: Path, conv: Histograms, made_from: str = "k") -> None:
    with HistogramWriter(path, made_from=made_from, image_ids=IDS, attributes={"run": "r"}) as file:
        file.append("conv1", part(conv, 0, 2))
        file.append_reference("conv1", part(conv, 1, 3))
        file.append("conv1", part(conv, 2, 3))


@given(st.lists(st.integers(0, 10), max_size=3))
def test_pieces_join_to_the_whole(cuts: list[int]) -> None:
    whole = histograms(10)
    ends = sorted({0, *cuts, 10})
    assert_same(Histograms.joined([part(whole, *span) for span in pairwise(ends)]), whole)
    assert_same(Histograms.joined([]), Histograms.none())


@pytest.mark.parametrize("chunk", [7, 1 << 17])
def test_what_is_written_is_read_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(module, "_CHUNK_BINS", chunk)
    conv = histograms(3)
    write(tmp_path / "h.h5", conv)
    with HistogramFile(tmp_path / "h.h5") as file:
        assert (file.made_from, file.image_ids.tolist(), file.layers) == ("k", IDS, {"conv1"})
        assert_same(file.read("conv1", 0, 3), conv)
        assert_same(file.read("conv1", 1, 2), part(conv, 1, 2))
        assert_same(file.read("conv1", 2, 9), part(conv, 2, 3))
        assert_same(file.reference("conv1"), part(conv, 1, 3))


def test_a_friend_opens_it_with_h5py(tmp_path: Path) -> None:
    """The lines of the documentation."""
    conv = histograms(3)
    write(tmp_path / "h.h5", conv)
    with h5py.File(tmp_path / "h.h5") as file:
        layer = file["layers/conv1"]
        bins = slice(*layer["start"][:2])
        values, counts = layer["bits"][bins].view("float16"), layer["counts"][bins]
    rebuilt = np.sort(np.repeat(values, counts))
    np.testing.assert_array_equal(rebuilt, np.sort(np.random.default_rng(0).normal(size=(3, 50)).astype("f2")[0]))


def test_missing_images_leave_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="layer conv1 has histograms of 2 images, not of 3"),
        HistogramWriter(tmp_path / "h.h5", made_from="k", image_ids=IDS) as file,
    ):
        file.append("conv1", histograms(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", [0, 1, 3])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """HDF5 does not survive a write that fails, so that space is asked for before."""
    calls = iter(range(100))

    def full(path: Path, num_bytes: int) -> None:
        if next(calls) >= when:
            raise OSError(errno.ENOSPC, "no space", str(path))

    monkeypatch.setattr(module, "reserve", full)
    with pytest.raises(UnwritableError, match=r"h\.h5: the disk is full: free some space and start again"):
        write(tmp_path / "h.h5", histograms(3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "damaged or not an HDF5 file"), (b"nonsense" * 99, "damaged or not an HDF5 file"), (None, "no such file")],
)
def test_what_is_no_file_of_histograms_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "h.h5").write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        HistogramFile(tmp_path / "h.h5")


def test_truncated_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.h5"
    write(path, histograms(3))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="damaged"):
        HistogramFile(path)
    for name, value, words in (("format", 9, "in format 9"), ("kind", "faces", "holds faces")):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            file.attrs[name] = value
        with pytest.raises(ArtifactError, match=words):
            HistogramFile(path)


def test_only_large_float16_layers_are_kept() -> None:
    large, small = (LayerInfo("conv1", (units,), "post", "conv") for units in (16_384, 16_383))
    assert is_kept(large, np.dtype("float16"))
    assert not is_kept(small, np.dtype("float16"))
    assert not is_kept(large, np.dtype("float32"))
