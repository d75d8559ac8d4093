"""How sparse are the values of a layer? The Gini index and the number of units above a threshold."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from fluence.errors import ArtifactError

Variant = Literal["magnitude", "relu", "shift"]
"""What is compared: `magnitude` |x|; `relu` max(x, 0); `shift` x − min(x), as the predecessors of this work did."""

_CHUNK_VALUES = 1 << 22  # values held as float64 at one time (32 MiB)


class NonFinite(ArtifactError):
    """Some values are NaN or infinite.

    Attributes:
        count: number of such values.
        first_row: first row that holds one.
    """

    def __init__(self, count: int, first_row: int, num_values: int) -> None:
        self.count, self.first_row = count, first_row
        super().__init__(f"{count} of {num_values} values are NaN or infinite, first in row {first_row}")


class LEpsilon(NamedTuple):
    """Units above a threshold, for each row: their number (int64 [n]) and their share of all units (float64 [n])."""

    num_above: np.ndarray
    fraction: np.ndarray


def gini(values: np.ndarray, variant: Variant = "magnitude") -> np.ndarray:
    """Gini index of each row: 0 when all units are equal, 1 − 1/units when a single one is active.

    Σ_k (2k − N − 1) c_(k) / (N Σ c) with c sorted in ascending order. Sums run in float64 whatever the input is.

    Args:
        values: float16, float32 or float64 [n, units]; it is not changed.
        variant: what is compared.

    Returns:
        float64 [n]; NaN for a row of zeros (a dead layer), whose inequality is undefined.

    Raises:
        NonFinite: a value is NaN or infinite.

    Source: Hurley & Rickard 2009, Comparing measures of sparsity, table I.
    """
    require_rows(values)
    num_units = values.shape[1]
    weights = 2.0 * np.arange(1, num_units + 1) - num_units - 1
    step = max(1, _CHUNK_VALUES // num_units)
    result = np.empty(len(values))
    for start in range(0, len(values), step):
        ascending = _ascending(values[start : start + step], variant).astype(np.float64)
        totals = ascending.sum(axis=1)
        weighted = ascending @ weights
        alive = np.where(totals > 0, totals, np.nan)
        result[start : start + step] = weighted / (num_units * alive)
    return result


def l_epsilon(values: np.ndarray, epsilon: float) -> LEpsilon:
    """Number and share of each row's units whose magnitude is strictly greater than `epsilon`.

    Args:
        values: float16, float32 or float64 [n, units].
        epsilon: threshold, ≥ 0, compared in float64: float16 values are not compared with a rounded threshold.

    Raises:
        NonFinite: a value is NaN or infinite.
        ValueError: `epsilon` is negative or not a number.
    """
    require_rows(values)
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be ≥ 0, not {epsilon}")
    num_above = np.count_nonzero(np.abs(values) > np.array([epsilon], dtype=np.float64), axis=1)
    return LEpsilon(num_above, num_above / values.shape[1])


def _ascending(values: np.ndarray, variant: Variant) -> np.ndarray:
    """The compared quantities of each row, sorted; a new array."""
    if variant == "magnitude":
        compared = np.abs(values)
    elif variant == "relu":
        compared = np.maximum(values, 0)
    else:
        wide = values.astype(np.float64)
        compared = wide - wide.min(axis=1, keepdims=True)
    if compared.dtype == np.float16:  # the bits of non-negative float16 sort like the numbers, and far faster
        compared += np.float16(0)  # −0 becomes +0
        return np.sort(compared.view(np.uint16), axis=1, kind="stable").view(np.float16)
    return np.sort(compared, axis=1)


def require_rows(values: np.ndarray) -> None:
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"expected values [n, units] with at least one unit, not shape {values.shape}")
    finite = np.isfinite(values)
    if not finite.all():
        bad_rows = np.flatnonzero(~finite.all(axis=1))
        raise NonFinite(int(np.count_nonzero(~finite)), int(bad_rows[0]), values.size)
