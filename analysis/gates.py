"""How much do the gates of a layer let through, and how many of them share it?"""

from __future__ import annotations

import numpy as np

from analysis.sparsity import require_rows

GATE = "gate"
"""Kind of a layer whose values multiply the channels or places of another one."""

REPORTED = {"gate_l1": "mean gate", "gate_entropy": "gate entropy"}
"""Metrics of gates that enter the tests, and their names for people. e^H is left out: it orders images as H does."""


def gate_metrics(gates: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, entropy and effective number of each image's gates. Fluency theory expects all three to be low (−).

    - `gate_l1`: Σ |g| / N, their mean. Gates that are shared out by a softmax and multiplied by N have 1 by
      construction, and get exactly 1: only they exceed 1, and what rounding leaves of their mean is no measurement.
    - `gate_entropy`: H = −Σ p ln p of p = |g| / Σ |g|, in nats: 0 when one gate is open, ln N when all are alike.
    - `gate_effective`: e^H, the number of equally open gates that would have this entropy, from 1 to N.

    Args:
        gates: values [n, gates], at least 0.

    Returns:
        float64 [n] each; for an image whose gates are all zero `gate_l1` is 0 and the others, which have no p, NaN.

    Raises:
        NonFinite: a value is NaN or infinite.

    Source: Woo et al. 2018 (gates); Shannon 1948 (entropy); Hill 1973, eq. 6 (e^H as an effective number).
    """
    require_rows(gates)
    magnitudes = np.abs(gates).astype(np.float64)
    totals = magnitudes.sum(axis=1)
    shares = magnitudes / np.where(totals > 0, totals, np.nan)[:, None]
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy = np.where(totals > 0, -(shares * logarithms).sum(axis=1), np.nan) + 0.0  # −0 becomes 0
    shared_out = (magnitudes > 1).any(axis=1)
    return {
        "gate_l1": np.where(shared_out, 1.0, totals / gates.shape[1]),
        "gate_entropy": entropy,
        "gate_effective": np.exp(entropy),
    }
