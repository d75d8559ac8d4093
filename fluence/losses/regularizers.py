"""What is added to the reconstruction loss."""

from __future__ import annotations

from torch import Tensor


def kl_to_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence from N(0, I) of each image's latent distribution: ½ Σ (μ² + σ² − 1 − ln σ²), in nats.

    Source: Kingma & Welling 2014, appendix B.

    Args:
        mu: means, [B, ...].
        logvar: ln σ², [B, ...].

    Returns:
        [B], at least 0; summed over all latent numbers.
    """
    # expm1 keeps the digits of σ² − 1 where a unit is unused and σ is close to 1
    return 0.5 * (mu.square() + logvar.expm1() - logvar).flatten(1).sum(1)
