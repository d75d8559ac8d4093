"""Settings of the statistics."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fluence.study.section import Section
from fluence.study.typicality import Typicality


class Epsilon(Section):
    """The rule that chooses ε of L_ε for each layer, on training images."""

    quantiles: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (0.25, 0.5, 0.75)
    """ε is this quantile of the layer's non-zero magnitudes over the reference images. All are computed."""
    report: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The quantile that enters the tests; the others are the sweep."""


Metric = Literal[
    "gini", "l_eps", "l0", "l1", "l2", "hoyer", "treves_rolls", "kurtosis", "entropy", "mean", "max", "dead_fraction",
    "gini_map", "gini_position",
]  # fmt: skip

Correction = Literal["bh", "max-r"]
Family = Literal["cell", "metric", "layer", "study"]


EmbeddingMethod = Literal["pca", "tsne", "umap"]


class SparsityMetrics(Section):
    """Over what the sparsity of a layer is measured."""

    per: Annotated[tuple[Literal["layer", "map", "position", "unit"], ...], Field(min_length=1)] = ("layer",)
    """`layer`: all units of a layer, for each image; always computed, so it has to be named. Besides it `map`: the Gini
    of each feature map, its mean over the maps; `position`: the Gini across channels at each place, its mean over the
    places; `unit`: each unit over the images (lifetime sparsity), in a table of its own."""

    @model_validator(mode="after")
    def _layer_is_named(self) -> Self:
        if "layer" not in self.per:
            raise ValueError(f"per: must hold layer; write [layer, {', '.join(self.per)}]")
        return self


class Ridge(Section):
    """Nested ridge regression, scored by pooled out-of-fold R²."""

    folds: Annotated[int, Field(ge=2)] = 10
    """Outer folds, shuffled, stratified by group; a person and duplicates stay on one side."""
    repeats: Annotated[int, Field(ge=1)] = 10
    """Random divisions into folds."""


class Analysis(Section):
    """The statistics."""

    epsilon: Epsilon = Epsilon()
    """How ε is chosen."""
    sparsity: SparsityMetrics = SparsityMetrics()
    """Over what sparsity is measured."""
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = ("gini", "l_eps")
    """Metrics of layers that enter the statistics; each adds a test per layer. All others are in the tables of metrics
    only. Errors, sharpness and gates always enter."""
    typicality: Typicality | None = None
    """Also compute how typical each image is; `null` does not."""
    embeddings: tuple[EmbeddingMethod, ...] = ("pca", "tsne")
    """Maps of the latents for the report, of each model's general run with the first seed: `pca`, linear; `tsne`;
    `umap`, which needs `pip install 'fluence[umap]'`. `[]` makes none."""
    covariates: tuple[str, ...] = ("group", "luminance_mean", "luminance_contrast", "pixel_gini", "age")
    """The confound baseline: `group` and any column of the packed images. One that a data set lacks is left out,
    and the report says so."""
    permutations: Annotated[int, Field(ge=99)] = 999
    """Permutations of the ratings within groups behind every permutation p."""
    bootstrap: Annotated[int, Field(ge=99)] = 999
    """Bootstrap samples behind every interval of a difference of R²."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of the intervals."""
    correction: Correction = "bh"
    """Correction that decides what is called significant: Benjamini-Hochberg or max-|r|. Both are computed."""
    family: Family = "cell"
    """Which tests of one estimator are corrected together: of one model, seed and set of images all layers and metrics
    (`cell`), the layers of one metric (`metric`), or the metrics of one layer (`layer`); or those of all models and
    seeds on the same images (`study`). Sets of predictors (Δ R²) are corrected within the cell, or over the study."""
    ridge: Ridge = Ridge()
    """The regression."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of folds, permutations and bootstrap."""

    @model_validator(mode="after")
    def _metrics_are_computed(self) -> Self:
        for metric, per in (("gini_map", "map"), ("gini_position", "position")):
            if metric in self.metrics and per not in self.sparsity.per:
                raise ValueError(f"metrics: {metric} is only computed if sparsity.per holds {per}")
        return self
