"""What float16 can hold of a layer: against exact sums, for every bit pattern, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fluence.errors import ArtifactError
from fluence.store.precision import MOST_LOST, SURE_MEAN, NeedsFloat32, check_rows, is_finite, why_float32

IDS = ["a", "b", "c"]
HALF = np.dtype("float16")
WIDE = st.floats(-1e5, 1e5) | st.floats(-1e-4, 1e-4) | st.sampled_from([0.0, 6e-8, 65504.0, 65520.0])


def lost(values: np.ndarray) -> float:
    """The share of its sum of magnitudes that an image loses as float16, in exact sums."""
    size = math.fsum(abs(float(value)) for value in values)
    difference = math.fsum(abs(float(value) - float(np.float16(value))) for value in values)
    return difference / size if size else 0.0


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 8)), elements=WIDE))
def test_a_layer_needs_float32_if_and_only_if_an_image_says_so(values: np.ndarray) -> None:
    is_too_large = bool((np.abs(values) >= 65520).any())
    expected = is_too_large or any(lost(image) > MOST_LOST for image in values)
    assert (why_float32(values) is not None) == expected
    assert (why_float32(values) is not None) == any(why_float32(image[None]) is not None for image in values)


@given(hnp.arrays(np.float64, 6, elements=st.floats(0, 6e-4) | st.floats(0, 1e-6)))
def test_an_image_of_sure_mean_loses_little(values: np.ndarray) -> None:
    if values.sum() > 1e-30:
        assert lost(values * (1.001 * SURE_MEAN / values.mean())) < MOST_LOST


def test_worked_by_hand() -> None:
    # Below 6.1e-5 float16 has multiples of 2⁻²⁴ alone: 1.5 · 2⁻²⁴ becomes 2 · 2⁻²⁴, a third more.
    assert why_float32(np.array([[1.5 * 2.0**-24]])) == "float16 would lose 3.3e-01 of an image's sum of magnitudes"
    assert why_float32(np.array([[1.5 * 2.0**-24, 1.0]])) is None
    assert why_float32(np.array([[65519.0]])) is None
    assert why_float32(np.array([[1.0], [-65520.0]])) == "a value of 6.55e+04 is more than float16 can hold"
    assert why_float32(np.zeros((2, 3))) is None
    assert why_float32(np.zeros((0, 3))) is None


def test_every_bit_pattern_of_float16() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    for value in every:
        assert is_finite(np.array([[1, value, -2]], dtype=np.float16)) == bool(np.isfinite(value))
    assert is_finite(every[np.isfinite(every)])
    assert is_finite(every[:0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_names_layer_image_and_number(dtype: type) -> None:
    values = np.ones((3, 4), dtype=dtype)
    values[1, 2:], values[2, 0] = np.nan, np.inf
    with pytest.raises(ArtifactError, match=r"layer conv1: 3 values are NaN or infinite, first in image b \(2 images"):
        check_rows(values, HALF, "conv1", IDS)


def test_an_infinite_float16_was_too_large_a_number() -> None:
    with pytest.raises(NeedsFloat32, match="layer conv1: a value is more than float16 can hold"):
        check_rows(np.array([[1, np.inf]], dtype=np.float16), HALF, "conv1", IDS)
    with pytest.raises(ArtifactError, match="1 values are NaN or infinite"):
        check_rows(np.array([[1, np.inf]], dtype=np.float32), HALF, "conv1", IDS)


def test_what_has_its_type_is_handed_through() -> None:
    values = np.ones((3, 4), dtype=np.float16)
    assert check_rows(values, HALF, "conv1", IDS) is values
    assert check_rows(np.full((3, 4), 1e-9, np.float32), np.dtype("float32"), "conv1", IDS).dtype == np.float32
    with pytest.raises(NeedsFloat32, match=r"float16 would lose 1\.0e\+00"):
        check_rows(np.full((3, 4), 1e-9, np.float32), HALF, "conv1", IDS)
