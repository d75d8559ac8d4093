"""What float16 can hold of a layer, and what it would lose.

A float16 keeps 11 bits of a value between 6.1e-5 and 65,504: its error is at most 2⁻¹¹ of the value. Beyond, it is
infinite; below, its steps are 6.0e-8 wide, so that small values lose more and more of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fluence.errors import ArtifactError, FluenceError

MOST_LOST = 1e-3
"""Σ|x − float16(x)| of an image may be this much of its Σ|x|."""
SURE_MEAN = 1e-4
"""An image whose mean magnitude is above loses less than `MOST_LOST`: each of its N values loses at most 2⁻¹¹ |x|, or
2⁻²⁵ where it is small, and 2⁻¹¹ Σ|x| + 2⁻²⁵ N < 1e-3 Σ|x| if Σ|x| > 5.9e-5 N."""
FITS = "fits float16"

_INFINITE = np.uint16(0x7C00)
"""The bits of infinity; those of NaN are above, those of any other value below."""
_SIGN = np.uint16(0x8000)


class NeedsFloat32(FluenceError):
    """A layer's values do not fit into float16; extract it again as float32.

    Attributes:
        layer: its name.
        reason: why, with the figure.
    """

    def __init__(self, layer: str, reason: str) -> None:
        self.layer, self.reason = layer, reason
        super().__init__(f"layer {layer}: {reason}")


def why_float32(values: np.ndarray) -> str | None:
    """Why values [images, units], finite, are not to be stored as float16; None if they may be.

    Each image is judged by itself, so that the answer does not depend on which images are judged together.
    """
    with np.errstate(over="ignore"):
        stored = values.astype(np.float16)
    if np.isinf(stored).any():
        return f"a value of {np.abs(values).max():.3g} is more than float16 can hold"
    exact = values.astype(np.float64)
    size = np.abs(exact).sum(axis=1)
    lost = np.abs(exact - stored).sum(axis=1)
    worst = np.divide(lost, size, out=np.zeros_like(size), where=size > 0).max(initial=0)
    return f"float16 would lose {worst:.1e} of an image's sum of magnitudes" if worst > MOST_LOST else None


def is_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite; of float16 the raw bits are looked at, which is ten times as fast."""
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    if not values.size:
        return True
    # Read as whole numbers, negative values are above all others: one maximum for either sign.
    bits = np.ascontiguousarray(values).view(np.uint16)
    return bool(bits.view(np.int16).max() < int(_INFINITE) and bits.max() < (_SIGN | _INFINITE))


def check_rows(values: np.ndarray, dtype: np.dtype, layer: str, ids: Sequence[str]) -> np.ndarray:
    """Values [images, units] as they are stored.

    What already has the type `dtype` is only looked through for values that are not finite: whoever made float16 from
    more has asked `why_float32`, or knows that an infinite value was infinite before.

    Args:
        values: float16, float32 or float64.
        dtype: float16 or float32.
        layer: for the errors.
        ids: of these images, for the errors.

    Raises:
        NeedsFloat32: they are to be float16, and do not fit.
        ArtifactError: a value is NaN or infinite.
    """
    if not is_finite(values):
        finite = np.isfinite(values)
        if values.dtype == np.float16 and not np.isnan(values).any():
            raise NeedsFloat32(layer, "a value is more than float16 can hold")
        bad = np.flatnonzero(~finite.all(axis=1))
        raise ArtifactError(
            f"layer {layer}: {np.count_nonzero(~finite)} values are NaN or infinite, first in image {ids[bad[0]]} "
            f"({len(bad)} images of this block); train this run again, or leave the layer out (record.layers)"
        )
    if dtype == np.float16 and values.dtype != np.float16 and (reason := why_float32(values)):
        raise NeedsFloat32(layer, reason)
    return values.astype(dtype, copy=False)
