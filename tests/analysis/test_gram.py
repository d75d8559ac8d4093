"""The Gram matrix of a layer is that of all its units at once, however it is cut, stopped and continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import gram as module
from analysis.gram import Kept, block_units, gram, to_float32
from fluence.errors import ArtifactError, Interrupted
from fluence.store.activations import Activations, ActivationWriter, LayerInfo


class InMemory:
    """Activations [images, units] of one layer, read like a file's."""

    def __init__(self, values: np.ndarray, reference: np.ndarray | None = None, chunk: int = 1) -> None:
        self._values, self.chunk_units = values, chunk
        self._reference = values[:0] if reference is None else reference
        self.image_ids = np.array([f"face-{number}" for number in range(len(values))])
        self.reference_ids = np.array([f"ref-{number}" for number in range(len(self._reference))])
        self.num_read = 0

    def read_units(self, layer: str, start: int, stop: int) -> np.ndarray:
        self.num_read += stop - start
        return self._values[:, start:stop]

    def reference_units(self, layer: str, start: int, stop: int) -> np.ndarray:
        return self._reference[:, start:stop]


def centred(matrix: np.ndarray) -> np.ndarray:
    return matrix - matrix.mean(axis=0) - matrix.mean(axis=1)[:, None] + matrix.mean()


def reference_gram(values: np.ndarray) -> np.ndarray:
    """Slow and plain: centre in float64, multiply."""
    wide = values.astype(np.float64)
    wide -= wide.mean(axis=0)
    return wide @ wide.T


def responses(num_images: int, num_units: int, seed: int = 0, steepness: float = 2) -> np.ndarray:
    """Like a layer after its non-linearity: half zeros, units of very different size, a common part."""
    rng = np.random.default_rng(seed)
    values = np.maximum(rng.normal(size=(num_images, num_units)) + rng.normal(size=num_units), 0)
    return (values * rng.lognormal(sigma=steepness, size=num_units)).astype(np.float16)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_UNITS", 32)


def test_by_hand() -> None:
    values = np.array([[1, 0], [3, 0], [2, 3]], dtype=np.float16)  # means 2 and 1
    expected = [[1 + 1, -1 + 1, -2], [-1 + 1, 1 + 1, -2], [-2, -2, 4]]
    np.testing.assert_allclose(centred(gram(InMemory(values), "conv1", 2)), expected, atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("num_units", [1, 31, 32, 33, 200])
def test_is_that_of_all_units_at_once(num_units: int) -> None:
    values = responses(20, num_units)
    found = gram(InMemory(values), "conv1", num_units)
    expected = reference_gram(values)
    np.testing.assert_allclose(centred(found), expected, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(found, found.T)


def test_a_large_common_part_costs_no_digits() -> None:
    """With X Xᵀ itself, float32 would leave three digits here."""
    rng = np.random.default_rng(0)
    values = (1000 + rng.normal(size=(30, 4000))).astype(np.float32)
    expected = reference_gram(values)
    error = np.abs(centred(gram(InMemory(values), "conv1", 4000)) - expected).max() / expected.max()
    naive = np.abs(centred((values @ values.T).astype(np.float64)) - expected).max() / expected.max()
    assert error < 1e-6 < 1e-4 < naive


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_values_whose_squares_float32_cannot_hold(factor: float) -> None:
    values = responses(10, 50).astype(np.float64) * factor
    expected = reference_gram(values.astype(np.float32))
    found = centred(gram(InMemory(values.astype(np.float32)), "conv1", 50))
    np.testing.assert_allclose(found / expected.max(), expected / expected.max(), atol=1e-6)


@given(seed=st.integers(0, 99), shift=st.floats(-50, 50), num_images=st.integers(1, 12))
def test_a_shift_of_all_images_changes_nothing(seed: int, shift: float, num_images: int) -> None:
    values = np.random.default_rng(seed).normal(size=(num_images, 40)).astype(np.float32)
    moved = centred(gram(InMemory(values + np.float32(shift)), "conv1", 40))
    np.testing.assert_allclose(moved, reference_gram(values), atol=40 * 1e-5 * max(1.0, abs(shift)))


def test_reference_images_are_the_last_rows() -> None:
    values, reference = responses(12, 60, 0), responses(5, 60, 1)
    found = gram(InMemory(values, reference), "conv1", 60, with_reference=True)
    expected = reference_gram(np.concatenate([values, reference]))
    np.testing.assert_allclose(centred(found), expected, atol=1e-6 * np.abs(expected).max())
    assert gram(InMemory(values, reference), "conv1", 60).shape == (12, 12)


def test_every_float16_is_widened_exactly() -> None:
    """All 65,536 of them: zeros with their signs, subnormal numbers, and those that are none."""
    every = np.arange(65_536, dtype=np.uint16).view(np.float16).reshape(64, 1024)
    for values in (every, np.asfortranarray(every), every[:, ::2], every[:5]):
        out = np.empty(values.shape, np.float32)
        to_float32(values, out)
        finite = np.isfinite(values)
        np.testing.assert_array_equal(out[finite].view(np.uint32), values[finite].astype(np.float32).view(np.uint32))
        assert (np.abs(out[~finite]) >= 65_536).all()
        assert (np.abs(out[finite]) < 65_536).all()


# ── Blocks ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(num_rows=st.integers(1, 20_000), chunk=st.integers(1, 100_000))
def test_blocks_are_whole_chunks_and_do_not_grow(num_rows: int, chunk: int) -> None:
    units = block_units(num_rows, chunk)
    assert units % chunk == 0
    assert units == chunk or (units <= module.BLOCK_UNITS and units * num_rows <= 1 << 24)


@pytest.mark.usefixtures("small_blocks")
def test_every_unit_is_read_once_and_told() -> None:
    source, told = InMemory(responses(6, 100), chunk=8), []
    gram(source, "conv1", 100, progress=lambda units, rate: told.append((units, rate > 0)))
    assert source.num_read == 100
    assert told == [(32, True), (64, True), (96, True), (100, True)]


def test_no_more_than_one_block_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_UNITS", 10)
    source, ahead = InMemory(responses(4, 100)), []
    gram(source, "conv1", 100, progress=lambda units, rate: ahead.append(source.num_read - units))
    assert max(ahead) <= 20


# ── Stopped and continued ────────────────────────────────────────────────────────────────────────────────────────


def stop_at(call: int) -> Callable[[], bool]:
    calls = iter(range(1, 1000))
    return lambda: next(calls) >= call


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("call", [1, 2, 5])
def test_continues_to_the_same_bits_without_reading_again(tmp_path: Path, call: int) -> None:
    values, kept = responses(15, 200), Kept(tmp_path / "conv1", "key")
    undisturbed = gram(InMemory(values), "conv1", 200)
    with pytest.raises(Interrupted, match=f"stopped at unit {32 * call} of 200 of layer conv1"):
        gram(InMemory(values), "conv1", 200, kept=kept, stop=stop_at(call))
    source = InMemory(values)
    np.testing.assert_array_equal(gram(source, "conv1", 200, kept=kept), undisturbed)
    assert source.num_read == 200 - 32 * call


@pytest.mark.usefixtures("small_blocks")
def test_is_kept_from_time_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the third block, without a word: two blocks are there."""
    monkeypatch.setattr(module, "_KEEP_EVERY_S", -1.0)
    kept = Kept(tmp_path / "conv1", "key")

    def killed(units: int, rate: float) -> None:
        if units > 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gram(InMemory(responses(5, 200)), "conv1", 200, kept=kept, progress=killed)
    found = kept.read()
    assert found is not None
    assert found["units_done"] == 64


@pytest.mark.usefixtures("small_blocks")
def test_what_was_made_from_something_else_is_made_again(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        gram(InMemory(responses(15, 200, 1)), "conv1", 200, kept=Kept(tmp_path / "k", "old"), stop=stop_at(2))
    values = responses(15, 200, 2)
    found = gram(InMemory(values), "conv1", 200, kept=Kept(tmp_path / "k", "new"))
    np.testing.assert_array_equal(found, gram(InMemory(values), "conv1", 200))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_file_is_said_and_made_again(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    values, kept = responses(15, 200), Kept(tmp_path / "conv1", "key")
    with pytest.raises(Interrupted):
        gram(InMemory(values), "conv1", 200, kept=kept, stop=stop_at(2))
    content = bytearray(kept.path.read_bytes())
    content[len(content) // 2] ^= 1
    kept.path.write_bytes({"cut": content[:-600], "bit": content, "empty": b""}[damage])
    found = gram(InMemory(values), "conv1", 200, kept=kept)
    np.testing.assert_array_equal(found, gram(InMemory(values), "conv1", 200))
    assert "conv1: damaged" in capsys.readouterr().out


# ── Layers and files that are odd ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_name_layer_image_and_count(value: float) -> None:
    values = responses(6, 40)
    values[3, 5], values[4, 7] = value, value
    with pytest.raises(ArtifactError, match=r"layer conv2: 2 values .* NaN or infinite, first in image face-3; extrac"):
        gram(InMemory(values), "conv2", 40)
    with pytest.raises(ArtifactError, match="first in image ref-3"):
        gram(InMemory(responses(2, 40), values), "conv2", 40, with_reference=True)


@pytest.mark.parametrize("level", [0.0, 2.0])
def test_a_constant_layer_has_no_inner_products(level: float) -> None:
    np.testing.assert_array_equal(gram(InMemory(np.full((4, 9), level, np.float16)), "conv1", 9), np.zeros((4, 4)))


@pytest.mark.parametrize("num_images", [0, 1])
def test_hardly_any_image(num_images: int) -> None:
    found = gram(InMemory(responses(num_images, 9)), "conv1", 9)
    np.testing.assert_array_equal(found, np.zeros((num_images, num_images)))


def test_of_a_real_file(tmp_path: Path) -> None:
    values, reference = responses(40, 48).astype(np.float32), responses(7, 48, 1).astype(np.float32)
    layer = LayerInfo("conv1", (3, 4, 4), "post", "conv")
    ids, others = [f"face-{number}" for number in range(40)], [f"ref-{number}" for number in range(7)]
    with ActivationWriter(
        tmp_path / "run.h5", key="k", image_ids=ids, reference_ids=others, layers=[layer], probes=[]
    ) as writer:
        writer.write_reference(0, {"conv1": reference})
        writer.write_block(0, {"conv1": values}, {})
        writer.finish()
    with Activations(tmp_path / "run.h5") as source:
        found = gram(source, "conv1", 48, with_reference=True)
    expected = reference_gram(np.concatenate([values, reference]))
    np.testing.assert_allclose(centred(found), expected, atol=1e-6 * expected.max())
