"""The names of typicality's metrics, and what the methods paragraph says about them."""

from __future__ import annotations

from analysis.wording import listing
from fluence.study import Typicality

PREFIX = "typicality_"
"""How the names of all these metrics begin."""

PARTS = {"gaussian": "Gaussian", "residual": "residual", "ppca": "PPCA", "gmm": "mixture"}
"""What is asked of an image, and its name for people."""

KINDS = {"": "", "_group": ", own group", "_matched": ", matched"}
"""Whom a density is fitted to: all images, those of the group, or as many as these of all groups (matched)."""

SOURCES = {
    "ppca": "Tipping ME, Bishop CM (1999). Probabilistic principal component analysis. J R Stat Soc B 61:611–622.",
    "gaussian": "Ledoit O, Wolf M (2004). A well-conditioned estimator for large-dimensional covariance matrices. "
    "J Multivar Anal 88:365–411.",
    "gmm": "Schwarz G (1978). Estimating the dimension of a model. Ann Stat 6:461–464.",
}

_DENSITIES = {
    "gaussian": "a Gaussian on the components with shrunk covariance (Ledoit & Wolf 2004)",
    "ppca": "probabilistic principal component analysis of the whole response, with σ² = Σ_{j>k} λ_j/(D − k) for D "
    "units",
    "gmm": "the mixture of one to five Gaussians on the components that the BIC chooses (Schwarz 1978)",
}


def metric_name(part: str, num_components: int, kind: str, settings: Typicality) -> str:
    """The name of one metric.

    Args:
        part: one of `PARTS`.
        num_components: k; part of the name where the study gives a list of them.
        kind: one of `KINDS`.
        settings: of the study.
    """
    return f"{PREFIX}{part}{'' if isinstance(settings.components, int) else f'_k{num_components}'}{kind}"


def metric_names(settings: Typicality) -> dict[str, str]:
    """Every metric that the settings give, with its name for people."""
    parts = [part for part in PARTS if part in settings.estimators or part == "residual"]
    kinds = list(KINDS) if settings.groups else [""]
    names = {}
    for number in settings.each_components:
        which = f", k = {number}" if len(settings.each_components) > 1 else ""
        for part in parts:
            for kind in kinds:
                names[metric_name(part, number, kind, settings)] = f"typicality ({PARTS[part]}{which}{KINDS[kind]})"
    return names


def sentence(settings: Typicality | None, num_reference: int) -> str:
    """What was done, for the methods; empty if nothing was.

    Args:
        settings: of the study.
        num_reference: training images whose activations were recorded.
    """
    if settings is None:
        return ""
    others = (
        f"{num_reference} training images, none of them rated"
        if settings.reference == "training"
        else f"the images of the other folds ({settings.folds} folds, stratified by group, the images of a person and "
        "duplicates on one side)"
    )
    groups = (
        " The same was done within each group, and with as many images drawn from all groups (matched)."
        if settings.groups
        else ""
    )
    densities = listing([_DENSITIES[name] for name in settings.estimators])
    numbers = listing([str(number) for number in settings.each_components])
    return (
        f" The typicality of an image for a layer is the log-density of its activations on the first {numbers} "
        f"principal components (exact, from the Gram matrix), fitted to {others}: {densities}; the density of what the "
        f"components leave is given by itself (Tipping & Bishop 1999). No image was judged by a density that "
        f"had seen it.{groups}"
    )


def cited(settings: Typicality | None) -> list[str]:
    """Keys of `SOURCES` that the sentence cites, and of the residual, which is that of PPCA."""
    return [name for name in SOURCES if name in (*settings.estimators, "ppca")] if settings else []
