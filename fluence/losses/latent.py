"""What each kind of model asks of its code."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fluence.losses.terms import Pass, Term
from fluence.study import Model, VaeModel


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


def latent_terms(model: Model) -> Iterator[Term]:
    """The terms of the code that belong to the kind of model."""
    if isinstance(model, VaeModel):
        yield Term("kl", model.kl_weight, _kl, warms_up=True)


def _kl(seen: Pass) -> Tensor:
    if seen.logvar is None:
        raise TypeError("a model with a KL term has to say its ln σ²")
    return kl_to_standard_normal(seen.mu, seen.logvar)
