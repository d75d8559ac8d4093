"""What the methods say of the maps of the latents."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.wording import listing
from fluence.study import EmbeddingMethod

SOURCES = {
    "tsne": "van der Maaten L, Hinton G (2008). Visualizing data using t-SNE. J Mach Learn Res 9:2579–2605.",
    "umap": "McInnes L, Healy J, Melville J (2018). UMAP: uniform manifold approximation and projection for dimension "
    "reduction. arXiv:1802.03426.",
    "trust": "Venna J, Kaski S (2001). Neighborhood preservation in nonlinear projection methods: an experimental "
    "study. ICANN.",
}
"""References by method, and that of trustworthiness."""

_NAMES = {
    "pca": "their first two principal components",
    "tsne": "t-SNE (van der Maaten & Hinton 2008)",
    "umap": "UMAP (McInnes, Healy & Melville 2018)",
}


def sentence(methods: Sequence[EmbeddingMethod]) -> str:
    """How the latents were put into the plane, to follow another sentence; empty if they were not."""
    if not methods:
        return ""
    after = ", the latter of at most 50 principal components" if set(methods) - {"pca"} else ""
    return (
        f" For illustration alone, the codes of the rated images were mapped to the plane by "
        f"{listing([_NAMES[method] for method in methods])}{after}; trustworthiness is that of Venna & Kaski (2001)."
    )


def cited(methods: Sequence[EmbeddingMethod]) -> list[str]:
    """Keys of `SOURCES` that the sentence cites."""
    return [key for key in (*methods, *(["trust"] if methods else [])) if key in SOURCES]
