"""Settings of what is recorded of each image's way through a network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fluence.study.section import Positive, Section


class LpipsProbe(Section):
    """LPIPS between each image and its reconstruction."""

    net: Literal["alex", "vgg", "squeeze"] = "alex"
    """Trunk; `alex` is the one to measure with."""
    weights: str = "imagenet"
    """`imagenet`, a file, or `random` (no perceptual distance; named so in every output)."""


class SharpnessProbe(Section):
    """L(W + ε̂) − L(W) of each image alone, with the ε̂ of its own gradient, and the norm of that gradient."""

    rho: Positive = 0.05
    """ρ, the length of ε̂."""
    parameters: Literal["all", "encoder"] = "all"
    """The weights that are moved: of the whole network, or of what leads to the code."""


class Record(Section):
    """What is kept of each rated image's way through a network."""

    layers: Literal["encoder"] | Annotated[tuple[str, ...], Field(min_length=1)] = "encoder"
    """`encoder` records every convolution of the encoder, its gates, and the code `mu` (of a VAE the means of the
    latents, of a VQ-VAE the code before it is quantised); or a list of their names."""
    tap: Literal["post", "pre"] = "post"
    """Record a layer after (`post`) or before (`pre`) its non-linearity."""
    lpips: LpipsProbe | None = None
    """Also measure LPIPS; it needs weights on disk. L1, L2 and SSIM errors are always measured."""
    sharpness: SharpnessProbe | None = None
    """Also measure each image's sharpness; it takes about four times a forward and backward pass."""
    reference_images: Annotated[int, Field(ge=1)] = 64
    """Training images whose activations are kept to choose ε; never the rated images' own ratings."""
    store: Literal["activations", "metrics"] = "activations"
    """`metrics` counts large layers while the network runs and stores no activations of them: exact histograms, which
    every metric of a whole layer comes from. Numbers are the same; typicality and what asks for places in a layer
    (`analysis.sparsity.per`) need activations."""
    compression: Literal["zstd"] | None = None
    """Store activations compressed: half the size, read a sixth as fast from memory. While a file is being compressed,
    both are on the disk. What is computed from them does not change."""
    sample_images: Annotated[int, Field(ge=1, le=64)] = 12
    """Reconstructions kept for the report, of rated and of training images each."""
