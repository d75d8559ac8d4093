"""The kinds of model in words: what each is, what it minimises, and how its code is read."""

from __future__ import annotations

from collections.abc import Iterable

from fluence.architectures import code_size
from fluence.losses.tilted import best_radius
from fluence.study import (
    AeModel,
    ArVaeModel,
    AutoencoderModel,
    Model,
    PixelLoss,
    Study,
    TiltedPrior,
    VaeModel,
    VqVaeModel,
)


def is_tilted(model: Model) -> bool:
    """Whether the prior of a model's latents is tilted."""
    return isinstance(model, VaeModel) and isinstance(model.prior, TiltedPrior)


def name_of_kind(model: AutoencoderModel) -> str:
    """What a model is, with who introduced it."""
    match model:
        case VaeModel():
            sd = ", σ being fixed to 1" if is_tilted(model) else ""
            return f"a convolutional variational autoencoder (Kingma & Welling 2014){sd}"
        case ArVaeModel():
            return "a convolutional attribute-regularised variational autoencoder (Pati & Lerch 2021)"
        case AeModel():
            return "a convolutional autoencoder, whose code has neither noise nor a prior"
        case VqVaeModel():
            entries = f"a codebook of {model.codebook_size} entries"
            return f"a convolutional vector-quantised autoencoder (van den Oord et al. 2017) with {entries}"


def code_terms(model: AutoencoderModel, image_size_px: int) -> str:
    """What the loss adds to the reconstruction for the kind of model; empty if nothing, else `, plus …`."""
    if isinstance(model, VqVaeModel):
        return (
            f", plus ‖sg[μ] − e‖² and {model.commitment_weight:g} times ‖μ − sg[e]‖² between the code μ and the "
            "nearest entries e (sg passes no gradient), summed over the code"
        )
    if isinstance(model, AeModel):
        return ""
    beta = effective_beta(model, image_size_px)
    same = "" if abs(beta - model.kl_weight) < 1e-9 else f" (effective β on the scale of a sum over pixels: {beta:.3g})"
    return f", plus β = {model.kl_weight:g} times {_divergence(model, image_size_px)}{same}{_attributes(model)}"


def _divergence(model: VaeModel | ArVaeModel, image_size_px: int) -> str:
    if not isinstance(model, VaeModel) or not isinstance(model.prior, TiltedPrior):
        return "the KL divergence from N(0, I), summed over the latent numbers"
    tau, size = model.prior.tau, code_size(model, image_size_px)
    return (
        f"½ (‖μ‖ − {best_radius(tau, size):.4g})², the quadratic approximation, less its least value, of the KL "
        f"divergence of N(μ, I) from the tilted prior e^(τ‖z‖) N(0, I), τ = {tau:g} (Floto, Kremer & Nica 2023)"
    )


def _attributes(model: VaeModel | ArVaeModel) -> str:
    terms = [
        f", plus {attribute.weight:g} times the mean over all pairs of images of a batch of |tanh({attribute.delta:g} "
        f"(zᵢ − zⱼ)) − sign(aᵢ − aⱼ)|, z being latent unit {attribute.unit} and a the column “{attribute.column}”"
        for attribute in (model.attributes if isinstance(model, ArVaeModel) else ())
    ]
    return "".join(terms)


def effective_beta(model: VaeModel | ArVaeModel, image_size_px: int) -> float:
    """β on the scale on which reconstruction losses are sums over the pixel values and have weight 1.

    Dividing the whole loss by what one pixel value weighs: a sum weighs w, a mean over N = 3 · image_size_px² values
    weighs w / N.

    Source: Higgins et al. 2017, appendix A.1.
    """
    num_values = 3 * image_size_px**2
    per_value = sum(t.weight if isinstance(t, PixelLoss) else t.weight / num_values for t in model.reconstruction)
    return model.kl_weight / per_value


def has_prior(model: Model) -> bool:
    """Whether the code of a model is drawn at random in training, and held near a prior by a KL term."""
    return isinstance(model, VaeModel | ArVaeModel)


def codes_recorded(models: Iterable[AutoencoderModel]) -> tuple[str, ...]:
    """What the recorded code is in each kind of model there is."""
    words = {
        (False, False): "the code",
        (True, False): "the latent means",
        (False, True): "the code before its quantisation",
    }
    return tuple(dict.fromkeys(words[has_prior(model), isinstance(model, VqVaeModel)] for model in models))


def circular(study: Study) -> tuple[str, ...]:
    """Models that have seen the very ratings which their metrics are to predict."""
    return taught_the_score(study) if study.data.training == study.data.rated else ()


def taught_the_score(study: Study) -> tuple[str, ...]:
    """Models of the grid that have a latent unit follow the score of the training images."""
    return tuple(
        name
        for name in study.model_names
        if isinstance(model := study.models[name], ArVaeModel)
        and any(attribute.column == study.data.score for attribute in model.attributes)
    )
