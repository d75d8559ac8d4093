"""What the methods say of constraints on activity and of attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_never

from fluence.study import (
    Attention,
    CbamAttention,
    KlSparsity,
    L0Sparsity,
    L1Sparsity,
    Layers,
    Model,
    SigmoidAttention,
    SoftmaxAttention,
    Sparsity,
)

SOURCES = {
    "kl": "Ng A (2011). Sparse autoencoder. CS294A lecture notes, Stanford University.",
    "l0": "Louizos C, Welling M, Kingma DP (2018). Learning sparse neural networks through L0 regularization. ICLR.",
    "cbam": "Woo S, Park J, Lee JY, Kweon IS (2018). CBAM: convolutional block attention module. ECCV.",
    "effective": "Hill MO (1973). Diversity and evenness: a unifying notation and its consequences. "
    "Ecology 54:427–432.",
}
"""References by what is named after them."""

_SQUASHED = {"rational": "|x|/(1 + |x|)", "exponential": "1 − e^−|x|", "sigmoid": "1/(1 + e^−x)"}


def constraint_sentences(model: Model) -> Iterator[str]:
    """A sentence for each constraint of a model that holds for a layer, and one for its attention."""
    for constraint in model.sparsity:
        if constraint.layers != "none":
            yield _constraint(constraint)
    if model.attention and model.attention.layers != "none":
        yield _attention(model.attention)


def gate_sentence(models: Sequence[Model]) -> str:
    """What was measured of gates, if there are any; else empty."""
    if not any(model.attention for model in models):
        return ""
    return (
        "Of the attention gates we computed, in the place of Lε, their mean and the entropy H of the gates divided by "
        "their sum, in nats (low where few gates are open; e^H is the effective number of open gates, Hill 1973)."
    )


def cited(models: Sequence[Model]) -> list[str]:
    """Keys of `SOURCES` that the sentences about these models cite."""
    penalties = {each.penalty for model in models for each in model.sparsity if each.layers != "none"}
    gated = [model.attention for model in models if model.attention]
    keys = [*sorted(penalties & set(SOURCES)), *(["effective"] if gated else [])]
    return keys + (["cbam"] if any(attention.layers != "none" for attention in gated) else [])


def _constraint(constraint: Sparsity) -> str:
    weight = f"{constraint.weight:g} times"
    where = _where(constraint.layers, "convolutions" if isinstance(constraint, L0Sparsity) else "layers")
    match constraint:
        case KlSparsity():
            return (
                f"Its loss also has {weight} the Kullback-Leibler divergence of ρ = {constraint.rho:g} from each "
                f"unit's mean activation over the batch, squashed by {_SQUASHED[constraint.squash]} and summed over "
                f"the units of {where} (Ng 2011)."
            )
        case L1Sparsity():
            return f"Its loss also has {weight} the sum of the magnitudes of the activations of {where}."
        case L0Sparsity():
            return (
                f"The channels of {where} have hard concrete gates (temperature {constraint.temperature:.3g}), and its "
                f"loss has {weight} their expected number of open ones (Louizos, Welling & Kingma 2018)."
            )
        case other:
            assert_never(other)


def _attention(attention: Attention) -> str:
    made = f"computed from each channel's mean and maximum by a perceptron narrowed by {attention.reduction:g}"
    where = _where(attention.layers, "convolutions")
    match attention:
        case CbamAttention():
            return (
                f"The output of {where} is multiplied by CBAM's gates of channels, {made}, and then by those of places "
                f"(Woo et al. 2018); {attention.weight:g} times the L1 norm of the latter is added to the loss."
            )
        case SigmoidAttention():
            return (
                f"The channels of {where} are multiplied by sigmoid gates, {made} (after Woo et al. 2018), and "
                f"{attention.weight:g} times their L1 norm is added to the loss."
            )
        case SoftmaxAttention():
            return (
                f"The channels of {where} are multiplied by gates {made} (after Woo et al. 2018): a softmax at "
                f"temperature {attention.temperature:g}, times the number of channels."
            )
        case other:
            assert_never(other)


def _where(layers: Layers, all_of_them: str) -> str:
    """`all layers`, `conv2 and layer 4`; words for gates speak of `convolutions`, since the code has none."""
    without_code = " and the code" if all_of_them == "layers" else ""
    words = {
        "everywhere": f"all {all_of_them}",
        "all but conv1": f"all {all_of_them} but the first",
        "all but conv1 and the means": f"all {all_of_them} but the first{without_code}",
    }
    if isinstance(layers, str):
        return words[layers]
    names = [f"layer {layer}" if isinstance(layer, int) else layer for layer in layers]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
