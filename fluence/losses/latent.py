"""What each kind of model asks of its code."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fluence.losses.shared import batch_sum, whole_batch
from fluence.losses.terms import Pass, Term
from fluence.losses.tilted import best_radius
from fluence.study import ArVaeModel, Attribute, AutoencoderModel, TiltedPrior, VaeModel, VqVaeModel


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


def kl_to_tilted(mu: Tensor, tau: float) -> Tensor:
    """About the KL divergence of each image's N(μ, I) from the prior ∝ e^(τ‖z‖) N(0, I), less its least value.

    ½ (‖μ‖ − γ*)², where γ* is the ‖μ‖ at which the divergence is least. τ = 0 gives it exactly: ½ ‖μ‖².

    Source: Floto, Kremer & Nica 2023, the quadratic approximation of the KL divergence.

    Args:
        mu: means, [B, ...].
        tau: τ, at least 0.

    Returns:
        [B], at least 0, in nats.
    """
    means = mu.flatten(1)
    return 0.5 * (torch.linalg.vector_norm(means, dim=1) - best_radius(tau, means.shape[1])).square()


def attribute_disorder(unit: Tensor, attribute: Tensor, delta: float) -> Tensor:
    """How far a latent unit is from rising with an attribute: mean over all pairs of images i, j, each with each, of
    |tanh(δ (z_i − z_j)) − sign(a_i − a_j)|.

    Images without a value take no part; without any value it is 0.

    Source: Pati & Lerch 2021, the attribute regularisation loss, and z as in the code that they published.

    Args:
        unit: z of the unit, as the decoder sees it, [B].
        attribute: [B], NaN where unknown.
        delta: δ, how sharply differences of z count.

    Returns:
        [], from 0 to 2.
    """
    known = attribute.isfinite()
    pairs = (known[:, None] & known).to(unit.dtype)
    values = attribute.where(known, 0)
    wrong = (delta * (unit[:, None] - unit)).tanh() - (values[:, None] - values).sign()
    return (wrong.abs() * pairs).sum() / pairs.sum().clamp(min=1)


def perplexity(counts: Tensor) -> Tensor:
    """e to the entropy of how often the entries of a codebook were chosen, [K] → [], from 1 to K.

    1: one entry stands for everything; K: all are in equal use.
    """
    shares = counts / counts.sum()
    return torch.special.entr(shares).sum().exp()


def latent_terms(model: AutoencoderModel) -> Iterator[Term]:
    """The terms of the code that belong to the kind of model."""
    if isinstance(model, VaeModel | ArVaeModel):
        yield Term("kl", model.kl_weight, _kl_from_the_prior(model), warms_up=True)
    if isinstance(model, ArVaeModel):
        for column, attribute in enumerate(model.attributes):
            yield Term(f"attribute/{attribute.column}", attribute.weight, _following(column, attribute))
    if isinstance(model, VqVaeModel):
        yield Term("codebook", 1.0, lambda seen: seen.extras["codebook"])
        yield Term("commitment", model.commitment_weight, lambda seen: seen.extras["commitment"])
        yield Term("perplexity", 0.0, lambda seen: perplexity(batch_sum(seen.extras["chosen"].sum(0))))


def _kl(seen: Pass) -> Tensor:
    if seen.logvar is None:
        raise TypeError("a model with a KL term has to say its ln σ²")
    return kl_to_standard_normal(seen.mu, seen.logvar)


def _kl_from_the_prior(model: VaeModel | ArVaeModel) -> Callable[[Pass], Tensor]:
    if isinstance(model, ArVaeModel) or not isinstance(model.prior, TiltedPrior):
        return _kl
    tau = model.prior.tau
    return lambda seen: kl_to_tilted(seen.mu, tau)


def _following(column: int, attribute: Attribute) -> Callable[[Pass], Tensor]:
    """The term of one attribute, over all pairs of the global batch."""

    def disorder(seen: Pass) -> Tensor:
        if seen.attributes is None:
            raise TypeError(f"a model that follows {attribute.column!r} has to be given its values")
        unit, values = seen.z.flatten(1)[:, attribute.unit], seen.attributes[:, column]
        unit, values = whole_batch(torch.stack([unit, values.to(unit)], dim=1)).unbind(1)
        return attribute_disorder(unit, values, attribute.delta)

    return disorder
