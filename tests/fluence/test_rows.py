"""Layers on their way to the file: the right order, the right type, and one block behind the network."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluence.errors import ArtifactError
from fluence.rows import Behind, Rows
from fluence.store.precision import NeedsFloat32

IDS = [f"image-{number}" for number in range(8)]


def slowly(values: torch.Tensor) -> np.ndarray:
    """[B, C, H, W] → [B, units], value by value in the order (channel, row, column)."""
    num_images, channels, height, width = values.shape
    return np.array(
        [
            [values[b, c, y, x].item() for c in range(channels) for y in range(height) for x in range(width)]
            for b in range(num_images)
        ],
        dtype=np.float16,
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 5, 31, 29), (1, 64, 8, 9), (2, 1, 4, 4), (3, 4, 1, 1), (2, 3, 2, 5)])
def test_units_are_in_the_order_channel_row_column(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    values = torch.rand(shape).to(memory_format=memory_format)
    rows = Rows({"conv1": values}, {}, IDS)["conv1"]
    assert rows.dtype == np.float16
    np.testing.assert_array_equal(rows, slowly(values))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans())
def test_every_shape_is_flattened(shape: list[int], is_float32: bool) -> None:
    values = torch.rand(2, *shape) + 0.1
    rows = Rows({"mu": values}, {"mu": ""} if is_float32 else {}, IDS)
    assert list(rows) == ["mu"]
    expected = values.numpy().reshape(2, -1)
    np.testing.assert_array_equal(rows["mu"], expected if is_float32 else expected.astype(np.float16))


def maps(*fills: float) -> torch.Tensor:
    """Maps of one value per image, [B, 3, 16, 16]."""
    return torch.tensor(fills, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 16, 16).clone()


def test_small_values_are_found_in_any_image() -> None:
    with pytest.raises(NeedsFloat32, match="layer conv2: float16 would lose"):
        Rows({"conv1": maps(1, 1), "conv2": maps(1, 1e-8)}, {}, IDS)
    assert Rows({"conv2": maps(1, 1e-8)}, {"conv2": "why"}, IDS)["conv2"].dtype == np.float32


def test_silent_images_and_rows_that_are_silent_are_no_loss() -> None:
    values = maps(0, 1)
    values[1, :, ::8] = 0
    np.testing.assert_array_equal(Rows({"conv1": values}, {}, IDS)["conv1"], values.numpy().reshape(2, -1))


def test_nan_is_named_by_its_own_image() -> None:
    with pytest.raises(ArtifactError, match="layer conv1: 768 values are NaN or infinite, first in image image-2"):
        Rows({"conv1": maps(1, 0, float("nan"))}, {}, IDS)


def test_a_value_too_large_becomes_infinite_and_is_left_to_the_writer() -> None:
    values = maps(1)
    values[0, 1, 3, 3] = 1e6
    assert np.isinf(Rows({"conv1": values}, {}, IDS)["conv1"]).sum() == 1


def test_work_is_done_behind_in_order_and_never_more_than_one_piece() -> None:
    may_go, done = threading.Event(), []

    def slow() -> None:
        may_go.wait(10)
        done.append("slow")

    with Behind() as behind:
        behind(slow)
        assert done == []
        may_go.set()
        behind(lambda: done.append("next"))
        assert done[0] == "slow"
        behind.wait()
        assert done == ["slow", "next"]
        behind.wait()


@pytest.mark.parametrize("ends_with", ["wait", "more work"])
def test_what_fails_behind_fails_in_front(ends_with: str) -> None:
    def fail() -> None:
        raise ArtifactError("the disk is full")

    with Behind() as behind:
        behind(fail)
        with pytest.raises(ArtifactError, match="the disk is full"):
            behind.wait() if ends_with == "wait" else behind(fail)
