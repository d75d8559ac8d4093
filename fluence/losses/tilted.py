"""The tilted prior p(z) ∝ e^(τ‖z‖) N(0, I), and where the KL divergence of N(μ, I) from it is least. Without torch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import poch
from scipy.stats import poisson


@lru_cache
def best_radius(tau: float, size: int) -> float:
    """γ*, the ‖μ‖ with the least KL divergence of N(μ, I) from the tilted prior; 0 where τ is below about √size.

    KL = ln Z_τ − τ E‖z‖ + ½‖μ‖², and is convex in ‖μ‖. Its derivative, ‖μ‖ (1 − τ · pull), vanishes at 0 and, where
    the pull at 0 exceeds 1/τ, once more, near √(τ² − size).

    Source: Floto, Kremer & Nica 2023, the KL divergence from the tilted Gaussian.

    Args:
        tau: τ, at least 0.
        size: how many numbers z has.
    """
    if tau * outward_pull(0.0, size) <= 1:
        return 0.0
    return float(brentq(lambda radius: tau * outward_pull(radius, size) - 1, 0.0, tau + 1, xtol=1e-12))


def outward_pull(radius: float, size: int) -> float:
    """(d E‖z‖ / d‖μ‖) / ‖μ‖ of z ~ N(μ, I) with ‖μ‖ = radius: E[χ_n / n] over n = size + 2 Poisson(radius²/2).

    It falls from E[χ_size]/size ≈ 1/√size at 0 to about 1/radius. ‖z‖ is a noncentral χ; as a mixture of central ones
    all addends are positive and none overflows, where the paper's Laguerre function, that is scipy's hyp1f1, does
    from a size of some hundreds on.

    Source: Johnson, Kotz & Balakrishnan 1994-1995, chapters 18 (χ) and 29 (noncentral χ²).
    """
    rate = radius**2 / 2
    reach = 10 * np.sqrt(rate) + 40  # what lies outside has less than rounding's share of the mass
    counts = np.arange(max(np.floor(rate - reach), 0), rate + reach)
    n = size + 2 * counts
    mean_chi = np.sqrt(2) * poch(n / 2, 0.5)
    return float(poisson.pmf(counts, rate) @ (mean_chi / n))
