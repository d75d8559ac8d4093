"""The whole schema of a study: every setting that can change a result, and nothing else.

A study is one YAML file. This package only describes it, a module for each of its sections; `fluence.studyfile` reads
it. It imports neither torch nor pandas, so that the command line starts at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fluence.errors import StudyError
from fluence.study.analysis import (
    Analysis,
    Correction,
    EmbeddingMethod,
    Epsilon,
    Family,
    Metric,
    Ridge,
    SparsityMetrics,
)
from fluence.study.data import (
    CfdDataset,
    CsvDataset,
    Data,
    Dataset,
    Effect,
    FairFaceDataset,
    FolderDataset,
    ImageSet,
    SyntheticDataset,
)
from fluence.study.loss import (
    AttganFeatures,
    Attribute,
    DfcLoss,
    FaceFeatures,
    Features,
    KlSparsity,
    L0Sparsity,
    L1Sparsity,
    Layers,
    LpipsLoss,
    ModelFeatures,
    PixelLoss,
    Reconstruction,
    Sparsity,
    SsimLoss,
    VggFeatures,
)
from fluence.study.model import (
    AeModel,
    ArVaeModel,
    Attention,
    AutoencoderModel,
    AutoencoderSettings,
    CbamAttention,
    ConvLatent,
    DenseLatent,
    Latent,
    Model,
    Norms,
    PixelsModel,
    Prior,
    Separable,
    SigmoidAttention,
    SoftmaxAttention,
    StandardPrior,
    TiltedPrior,
    VaeModel,
    VqVaeModel,
)
from fluence.study.record import LpipsProbe, Record, SharpnessProbe
from fluence.study.section import Name, Section
from fluence.study.training import Sam, Training, TrainingOverride
from fluence.study.typicality import Typicality

__all__ = [
    "OWN_GROUP",
    "AeModel",
    "Analysis",
    "ArVaeModel",
    "Attention",
    "AttganFeatures",
    "Attribute",
    "AutoencoderModel",
    "AutoencoderSettings",
    "CbamAttention",
    "CfdDataset",
    "Comparison",
    "ConvLatent",
    "Correction",
    "CsvDataset",
    "Data",
    "Dataset",
    "DenseLatent",
    "DfcLoss",
    "Effect",
    "EmbeddingMethod",
    "Epsilon",
    "FaceFeatures",
    "FairFaceDataset",
    "Family",
    "Features",
    "FolderDataset",
    "Grid",
    "ImageSet",
    "KlSparsity",
    "L0Sparsity",
    "L1Sparsity",
    "Latent",
    "Layers",
    "LpipsLoss",
    "LpipsProbe",
    "Metric",
    "Model",
    "ModelFeatures",
    "Name",
    "Norms",
    "PixelLoss",
    "PixelsModel",
    "Prior",
    "Reconstruction",
    "Record",
    "Ridge",
    "Sam",
    "Section",
    "Separable",
    "SharpnessProbe",
    "SigmoidAttention",
    "SoftmaxAttention",
    "Sparsity",
    "SparsityMetrics",
    "SsimLoss",
    "StandardPrior",
    "Study",
    "SyntheticDataset",
    "TiltedPrior",
    "Training",
    "TrainingOverride",
    "Typicality",
    "VaeModel",
    "VggFeatures",
    "VqVaeModel",
    "group_slug",
]


OWN_GROUP = "own-group"
"""Stands for every group that a model was trained on by itself, each image scored by the model of its own group."""


class Grid(Section):
    """The runs: every model × group × seed."""

    models: Literal["every"] | Annotated[tuple[str, ...], Field(min_length=1)] = "every"
    """Names of models, or `every`."""
    groups: Annotated[tuple[str, ...], Field(min_length=1)] = ("all",)
    """`all`, and groups such as `asian-female` that get models of their own."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Each seed is a training of its own."""


class Comparison(Section):
    """Models that the report sets side by side: losses, reconstructions and metrics."""

    question: str
    """What is asked, in one sentence."""
    models: Annotated[tuple[str, ...], Field(min_length=2)]
    """Names of the models, in the order in which they are shown."""


class Study(Section):
    """One study: data, models, training, records, analysis and the grid of runs."""

    name: Name
    """Name of the study and of its folder."""
    description: str = ""
    """What the study asks; printed at the top of the report."""
    data: Data
    """The images."""
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    """The models, by a name of your choice."""
    training: Training = Training()
    """How they are trained."""
    record: Record = Record()
    """What is recorded."""
    analysis: Analysis = Analysis()
    """The statistics."""
    grid: Grid | Annotated[tuple[Grid, ...], Field(min_length=1)] = Grid()
    """What is run: a grid, or a list of grids whose runs are put together."""
    comparisons: dict[Name, Comparison] = {}
    """Models to set side by side in the report, by a name of your choice."""

    @model_validator(mode="after")
    def _names_exist(self) -> Study:
        for key in ("training", "rated"):
            if getattr(self.data, key) not in self.data.datasets:
                raise ValueError(
                    f"data.{key}: no data set is called {getattr(self.data, key)!r}; "
                    f"there are: {', '.join(self.data.datasets)}"
                )
        self._refuse_unknown_models()
        self._refuse_large_pieces()
        if self.analysis.epsilon.report not in self.analysis.epsilon.quantiles:
            raise ValueError("analysis.epsilon.report: must be one of analysis.epsilon.quantiles")
        self._refuse_reference_images_that_will_not_do()
        self._refuse_what_needs_activations()
        return self

    def _refuse_what_needs_activations(self) -> None:
        if self.record.store == "activations":
            return
        needs = ["analysis.typicality"] if self.analysis.typicality else []
        needs += [f"analysis.sparsity.per: {per}" for per in self.analysis.sparsity.per if per != "layer"]
        if needs:
            raise ValueError(
                f"record.store: metrics keeps no activations, which {' and '.join(needs)} would read; "
                "write store: activations, or leave that out"
            )

    @model_validator(mode="after")
    def _compared_models_are_trained(self) -> Study:
        """A DFC loss may compare features of a model that is in the grid, and that does not wait for it in turn."""
        for name, _, seed in self.trainings:
            for features in self.models[name].compared_models:
                needed, key = (features.model, features.group, seed), f"models.{name}.reconstruction"
                if features.model not in self.model_names:
                    raise ValueError(
                        f"{key}: the features of the model {features.model!r} are compared, but it is not in the "
                        f"grid; there are: {', '.join(self.model_names)}"
                    )
                if isinstance(self.models[features.model], PixelsModel):
                    raise ValueError(
                        f"{key}: {features.model!r} has no features to compare, only pixels; write `loss: l2`, or name "
                        "another model"
                    )
                if needed not in self.trainings:
                    raise ValueError(
                        f"{key}: the features of {features.model!r}, trained on the group {features.group!r} with seed "
                        f"{seed}, are compared, but the grid has no such run; add it to grid.groups and grid.seeds"
                    )
                if name in self.models_before(features.model):
                    raise ValueError(
                        f"{key}: {name!r} would have to be trained before itself, since it compares the features of "
                        f"{features.model!r}"
                    )
        return self

    def models_before(self, name: str) -> tuple[str, ...]:
        """A model and those whose features it compares, directly or through others, each after those it needs."""
        found: dict[str, None] = {}
        waiting: list[str] = []

        def visit(name: str) -> None:
            waiting.append(name)
            for features in self.models[name].compared_models:
                if features.model in self.models and features.model not in (*waiting, *found):
                    visit(features.model)
            found[waiting.pop()] = None

        visit(name)
        return tuple(found)

    def _refuse_unknown_models(self) -> None:
        chosen = [("grid.models", grid.models) for grid in self.grids if grid.models != "every"]
        compared = [(f"comparisons.{name}.models", found.models) for name, found in self.comparisons.items()]
        for key, names in (*chosen, *compared):
            for name in names:
                if name not in self.models:
                    raise ValueError(f"{key}: no model is called {name!r}; there are: {', '.join(self.models)}")

    def _refuse_large_pieces(self) -> None:
        for name in self.model_names:
            training = self.training_of(name)
            if training.micro_batch_size and training.micro_batch_size > training.batch_size:
                raise ValueError(
                    f"training.micro_batch_size: {training.micro_batch_size} is more than the {training.batch_size} "
                    f"of training.batch_size, for model {name!r}; write a smaller one, or null"
                )

    def _refuse_reference_images_that_will_not_do(self) -> None:
        wanted, recorded = self.analysis.typicality, self.record.reference_images
        if wanted is None or wanted.reference != "training":
            return
        if self.data.training == self.data.rated:
            raise ValueError(
                "analysis.typicality.reference: the rated images are the training images here, and no image's "
                "likelihood may come from itself; write `cross-fit`"
            )
        if recorded < wanted.fewest_images:
            raise ValueError(
                f"analysis.typicality.components: {max(wanted.each_components)} components need "
                f"{wanted.fewest_images} reference images, and record.reference_images is {recorded}; write "
                f"`reference_images: {wanted.fewest_images}`, or fewer components"
            )

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grid, or the grids."""
        return (self.grid,) if isinstance(self.grid, Grid) else self.grid

    @property
    def trainings(self) -> tuple[tuple[str, str, int], ...]:
        """Model, group and seed of every run: those of the grids, each once, sorted by the order of the study.

        A model of kind `pixels` has one run, for all images and with the smallest seed: others would be the same.
        """
        order = {name: place for place, name in enumerate(self.models)}
        every = {
            (model, group, seed)
            for grid in self.grids
            for model in self._models_of(grid)
            for group in grid.groups
            for seed in grid.seeds
        }
        pixels = {name for name, _, _ in every if isinstance(self.models[name], PixelsModel)}
        once = {(name, "all", min(seed for model, _, seed in every if model == name)) for name in pixels}
        every = {run for run in every if run[0] not in pixels} | once
        groups = {group: place for place, group in enumerate(self.group_names)}
        return tuple(sorted(every, key=lambda run: (order[run[0]], groups[run[1]], run[2])))

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models that are run, in the order of the study."""
        return tuple(dict.fromkeys(model for model, _, _ in self.trainings))

    @property
    def group_names(self) -> tuple[str, ...]:
        """`all`, and groups that get models of their own, in the order of the grids."""
        named = [group for grid in self.grids for group in grid.groups]
        chosen = (self.models[name] for grid in self.grids for name in self._models_of(grid))
        pixels = ["all"] if any(isinstance(model, PixelsModel) for model in chosen) else []
        return tuple(dict.fromkeys(named + pixels))

    def _models_of(self, grid: Grid) -> tuple[str, ...]:
        return tuple(self.models) if grid.models == "every" else grid.models

    def seeds_of(self, model: str, trained_on: str = "all") -> tuple[int, ...]:
        """Seeds of a model on a group; `own-group` means all of its groups but `all`."""
        own = [(group, seed) for name, group, seed in self.trainings if name == model]
        wanted = {seed for group, seed in own if group == trained_on or (trained_on == OWN_GROUP and group != "all")}
        return tuple(sorted(wanted))

    def network(self, model: str) -> AutoencoderModel:
        """The settings of a model that is a network.

        Raises:
            StudyError: it is nothing but pixels.
        """
        settings = self.models[model]
        if isinstance(settings, PixelsModel):
            raise StudyError(f"models.{model}: nothing but pixels, and no network")
        return settings

    def embeddings_of(self, model: str, trained_on: str, seed: int) -> tuple[EmbeddingMethod, ...]:
        """The maps that are made of a run's latents: those of the general run with the first seed."""
        if isinstance(self.models[model], PixelsModel):
            return ()  # which have no latents
        first = trained_on == "all" and seed == self.seeds_of(model)[0]
        return self.analysis.embeddings if first else ()

    def training_of(self, model: str) -> Training:
        """The training settings of one model: the study's, with the model's own on top."""
        own = {name: value for name, value in self.models[model].training if value is not None}
        return self.training.model_copy(update=own)


def group_slug(values: tuple[str, ...]) -> str:
    """The name of a group, from its values: `("East Asian", "Female")` → `east_asian-female`."""
    return "-".join("".join(c if c.isalnum() else "_" for c in str(value).strip().lower()) for value in values)
