"""How sparse is a layer's response to an image? Every metric, from the sums over its units.

float16 values are counted (`fluence.counting`), others sorted; both ways lead to the same sums, and one set of
formulas.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from analysis.histogram import Moments, moments_of_histograms, moments_of_values
from fluence.counting import count
from fluence.errors import ArtifactError
from fluence.store.histograms import Histograms

Variant = Literal["magnitude", "relu", "shift"]
"""What is compared: `magnitude` |x|; `relu` max(x, 0); `shift` x − min(x), as the predecessors of this work did."""

METRICS = {
    "gini": +1,
    "l0": -1,
    "l1": -1,
    "l2": -1,
    "hoyer": +1,
    "treves_rolls": -1,
    "kurtosis": +1,
    "entropy": -1,
    "mean": -1,
    "max": -1,
    "dead_fraction": +1,
}
"""Metrics of a layer's response to an image, and the sign that fluency theory expects: sparse is beautiful."""

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


def counted(values: np.ndarray) -> Histograms:
    """The exact histogram of each row.

    Args:
        values: float16 [n, units].

    Raises:
        NonFinite: a value is NaN or infinite.
    """
    histograms, unfinite = count(values)
    if unfinite.any():
        raise NonFinite(int(unfinite.sum()), int(np.flatnonzero(unfinite)[0]), values.size)
    return histograms


def sparsity(values: np.ndarray, thresholds: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All metrics of each row, and the number of its units whose magnitude is strictly above each threshold.

    Args:
        values: float16, float32 or float64 [n, units].
        thresholds: float64 [thresholds], at least 0.

    Returns:
        name → float64 [n] of `METRICS`, and int64 [n, thresholds].

    Raises:
        NonFinite: a value is NaN or infinite.
    """
    if values.dtype == np.float16:
        return sparsity_of_histograms(counted(values), thresholds, values.shape[1])
    require_rows(values)
    moments = moments_of_values(values, thresholds)
    return metrics_of(moments), moments.above


def sparsity_of_histograms(
    histograms: Histograms, thresholds: np.ndarray, num_units: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """`sparsity` of counted values, bit for bit.

    Raises:
        ValueError: an image has not `num_units` values.
    """
    moments = moments_of_histograms(histograms, thresholds, num_units)
    return metrics_of(moments), moments.above


def metrics_of(moments: Moments) -> dict[str, np.ndarray]:
    """Every metric of `METRICS` from the sums over N units, float64 [n] each.

    - `gini`: Σ (2k − N − 1) |x|_(k) / (N Σ|x|), magnitudes ascending. 0 … 1 − 1/N.
    - `l0`: share of units that are not zero; `dead_fraction`: share of those that are.
    - `l1`: Σ|x| / N; `l2`: √(Σx² / N). Per unit, so that layers of different size can be compared.
    - `hoyer`: (√N − Σ|x| / √Σx²) / (√N − 1). 0 … 1.
    - `treves_rolls`: (Σ|x| / N)² / (Σx² / N), the activity ratio. 1/N … 1; small where few units are active.
    - `kurtosis`: N Σ(x − mean)⁴ / (Σ(x − mean)²)² − 3, the excess over a Gaussian.
    - `entropy`: −Σ p ln p of p = |x| / Σ|x|, in nats. 0 … ln N; small where few units are active.
    - `mean`, `max`: of the values with their signs.

    What is not defined is NaN: a row of zeros has neither gini nor hoyer, treves_rolls nor entropy, a constant row no
    kurtosis, a single unit no hoyer.

    Source: Hurley & Rickard 2009 (gini, l0, hoyer); Hoyer 2004 (hoyer); Treves & Rolls 1991, Rolls & Tovee 1995
    (treves_rolls); Field 1994 (kurtosis); Shannon 1948 (entropy).
    """
    n = moments.num_units
    alive = moments.abs > 0
    total = np.where(alive, moments.abs, np.nan)
    squares = np.where(alive, moments.squares, np.nan)
    second = np.where(moments.largest > moments.smallest, moments.second, np.nan)
    root = np.sqrt(n) - 1 if n > 1 else np.nan
    return {
        "gini": moments.ranked / (n * total),
        "l0": (n - moments.zeros) / n,
        "l1": moments.abs / n,
        "l2": np.sqrt(moments.squares / n),
        "hoyer": (np.sqrt(n) - total / np.sqrt(squares)) / root,
        "treves_rolls": (total / n) ** 2 / (squares / n),
        "kurtosis": n * (moments.fourth / second) / second - 3,
        "entropy": np.maximum(np.log(total) - moments.abs_log / total, 0.0),
        "mean": moments.sum / n,
        "max": moments.largest + 0.0,  # −0 becomes 0
        "dead_fraction": moments.zeros / n,
    }


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
