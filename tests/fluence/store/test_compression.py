"""Compressed activations: the same values, fewer bytes, and a file that is whole or not there."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from fluence.store.activations import Activations
from fluence.store.compression import write_compressed
from tests.fluence.store.test_activations import SHAPES, invented, write, writer


def everything(path: Path) -> dict[str, object]:
    """Every dataset and every attribute of a file."""
    found: dict[str, object] = {}

    def keep(name: str, item: h5py.Group | h5py.Dataset) -> None:
        found.update({f"{name}@{key}": np.array(value).tolist() for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            found[name] = (item.dtype, item.shape, item[()].tolist())

    with h5py.File(path) as file:
        file.visititems(keep)
        return found | {f"@{key}": value for key, value in file.attrs.items()}


@pytest.mark.parametrize("num_images", [0, 1, 70])
@pytest.mark.parametrize("num_reference", [0, 3])
def test_a_compressed_file_holds_the_same(tmp_path: Path, num_images: int, num_reference: int) -> None:
    values = invented(num_images)
    write(tmp_path / "plain.h5", values, num_reference=num_reference)
    write(tmp_path / "small.h5", values, num_reference=num_reference, compression="zstd")
    assert everything(tmp_path / "small.h5") == everything(tmp_path / "plain.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.h5", "small.h5"]
    with Activations(tmp_path / "small.h5") as file:
        for name in SHAPES:
            np.testing.assert_array_equal(file.read_units(name, 0, 9000), values[name][:, :9000].astype(np.float16))


def test_sparse_activations_take_half_the_space(tmp_path: Path) -> None:
    values = invented(70)
    write(tmp_path / "small.h5", values, compression="zstd")
    with h5py.File(tmp_path / "small.h5") as file:
        stored = file["layers/wide"]
        assert 0.4 < stored.id.get_storage_size() / stored.nbytes < 0.7


def test_interrupted_while_compressing_it_is_compressed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, values = tmp_path / "run.h5", invented(40)

    def interrupted(source: Path, target: Path, name: str) -> None:
        write_compressed(source, target, name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fluence.store.activation_writer.write_compressed", interrupted)
        write(path, values, compression="zstd")
    assert not path.exists()
    with writer(path, 40, compression="zstd") as again:
        assert again.rows_done == 40
        again.finish()
    with Activations(path) as file:
        np.testing.assert_array_equal(file.read("conv1", 0, 40), values["conv1"].astype(np.float16))
