"""Settings of typicality: how likely an image's activations are, given those of other images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fluence.study.section import Section

IMAGES_PER_COMPONENT = 5
"""A density on k components needs at least 5 k training images."""

_Components = Annotated[int, Field(ge=1)]


class Typicality(Section):
    """Log-likelihood of each image's activations after a principal component analysis, never of the images it was
    fitted on."""

    components: _Components | Annotated[tuple[_Components, ...], Field(min_length=1)] = 20
    """k, the principal components that are kept; a list computes each of them, and its metrics end in `_k20` and so
    on. Every density needs at least 5 k training images."""
    estimators: Annotated[tuple[Literal["gaussian", "ppca", "gmm"], ...], Field(min_length=1)] = ("gaussian", "ppca")
    """The densities: `gaussian` on the components with shrunk covariance; `ppca` of the whole layer, what the
    components leave included (that part is also given by itself, as `typicality_residual`); `gmm`, the mixture of up
    to five Gaussians on the components that BIC chooses."""
    reference: Literal["cross-fit", "training"] = "cross-fit"
    """The images a density is fitted to: `cross-fit`, the rated images of the other folds; `training`, the
    `record.reference_images` training images, which have to be others than the rated ones."""
    folds: Annotated[int, Field(ge=2)] = 10
    """Folds of `cross-fit`, shuffled, stratified by group; a person and duplicates stay on one side."""
    groups: bool = False
    """Also fit each group by itself (`…_group`), and beside it as many images of all groups (`…_matched`): the two
    differ in whom they saw, and not in how many. All groups use as many images as the smallest one that has 5 k;
    images of smaller groups get neither."""
    layers: Literal["all"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all"
    """`all` recorded layers but gates, or a list of their names."""

    @property
    def each_components(self) -> tuple[int, ...]:
        """Every k."""
        return (self.components,) if isinstance(self.components, int) else self.components

    @property
    def fewest_images(self) -> int:
        """Training images that each density needs."""
        return IMAGES_PER_COMPONENT * max(self.each_components)

    @model_validator(mode="after")
    def _goes_together(self) -> Typicality:
        for key, values in (("components", self.each_components), ("estimators", self.estimators)):
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: {', '.join(map(str, values))}: each can be named once")
        if self.groups and self.reference == "training":
            raise ValueError(
                "groups: needs `reference: cross-fit`; with `training`, a run of a group already refers to training "
                "images of its group"
            )
        return self
