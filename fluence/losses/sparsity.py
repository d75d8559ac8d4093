"""What keeps activity low: constraints on the activations of layers, on their gates, and on the number of channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from fluence.architectures import attended_layers, constrained_layers, gate_names
from fluence.losses.shared import batch_mean
from fluence.losses.terms import Pass, Term
from fluence.study import AutoencoderModel, KlSparsity, L0Sparsity, L1Sparsity, SoftmaxAttention

LOW = 1e-3
"""ρ̂ is at least LOW · ρ inside its logarithm: the slope of a unit's divergence stays within 1 / LOW."""
HIGH = 1e-7
"""1 − ρ̂ is at least HIGH inside its logarithm; float32 knows nothing between 6e-8 and 0 there."""

SQUASH: dict[str, Callable[[Tensor], Tensor]] = {
    "rational": lambda x: x.abs() / (1 + x.abs()),
    "exponential": lambda x: -(-x.abs()).expm1(),
    "sigmoid": lambda x: x.sigmoid(),
}
"""How activations of any size come into 0 … 1; for all but `sigmoid` a silent unit stays at 0."""


def kl_sparsity(mean: Tensor, rho: float) -> Tensor:
    """Σ_n KL(ρ ‖ ρ̂_n) = Σ_n ρ ln(ρ/ρ̂_n) + (1 − ρ) ln((1 − ρ)/(1 − ρ̂_n)) over units, in nats: [...] → [].

    Source: Ng 2011, Sparse autoencoder (CS294A lecture notes), section 3. Limiting ρ̂ inside the logarithms is ours.

    Args:
        mean: ρ̂, mean activation of each unit over the images, squashed, 0 … 1.
        rho: ρ, the mean that is wanted, between 0 and 1.
    """
    active = rho * (math.log(rho) - mean.clamp(min=LOW * rho).log())
    silent = (1 - rho) * (math.log1p(-rho) - (1 - mean).clamp(min=HIGH).log())
    return (active + silent).sum()


def clamped_fraction(mean: Tensor, rho: float) -> Tensor:
    """Share of the units whose ρ̂ is limited in `kl_sparsity`, so that it has less or no pull on them: [...] → []."""
    return ((mean < LOW * rho) | (1 - mean < HIGH)).to(mean.dtype).mean()


def l1_norm(values: Tensor) -> Tensor:
    """Σ |a| of each image over all units: [B, ...] → [B]."""
    return values.abs().flatten(1).sum(1)


def sparsity_terms(model: AutoencoderModel) -> Iterator[Term]:
    """The constraints on the layers of the encoder, and on the gates of its attention.

    Raises:
        StudyError: a layer does not exist or cannot be constrained so, or is constrained twice.
    """
    for constraint, layer in constrained_layers(model):
        match constraint:
            case KlSparsity():
                yield from _kl_terms(constraint, layer)
            case L1Sparsity():
                yield Term(f"sparsity/l1/{layer}", constraint.weight, _l1_of(layer), layers=(layer,))
            case L0Sparsity():
                yield Term(f"sparsity/l0/{layer}", constraint.weight, _extra(f"sparsity/l0/{layer}"))
    yield from _attention_terms(model)


def _attention_terms(model: AutoencoderModel) -> Iterator[Term]:
    """L1 of the gates after their sigmoid: CBAM's of places, else of channels. A softmax' is the same for any gates."""
    if model.attention is None or isinstance(model.attention, SoftmaxAttention):
        return
    for layer in attended_layers(model):
        gates = gate_names(model, layer)[-1]
        yield Term(f"attention/l1/{layer}", model.attention.weight, _l1_of(gates), layers=(gates,))


def _kl_terms(constraint: KlSparsity, layer: str) -> Iterator[Term]:
    def mean(seen: Pass) -> Tensor:
        key = (layer, constraint.squash)
        if key not in seen.found:
            seen.found[key] = batch_mean(SQUASH[constraint.squash](seen.values[layer]))
        return seen.found[key]

    kl = Term(f"sparsity/kl/{layer}", constraint.weight, lambda seen: kl_sparsity(mean(seen), constraint.rho), (layer,))
    clamped = Term(
        f"sparsity/clamped/{layer}", 0.0, lambda seen: clamped_fraction(mean(seen).detach(), constraint.rho), (layer,)
    )
    return iter((kl, clamped))


def _l1_of(name: str) -> Callable[[Pass], Tensor]:
    return lambda seen: l1_norm(seen.values[name])


def _extra(name: str) -> Callable[[Pass], Tensor]:
    return lambda seen: seen.extras[name]
