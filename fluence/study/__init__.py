"""The whole schema of a study: every setting that can change a result, and nothing else.

A study is one YAML file. This package only describes it, a module for each of its sections; `fluence.studyfile` reads
it. It imports neither torch nor pandas, so that the command line starts at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fluence.study.analysis import Analysis, Epsilon, Ridge
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
    AutoencoderSettings,
    CbamAttention,
    ConvLatent,
    DenseLatent,
    Latent,
    Model,
    Norms,
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

__all__ = [
    "AeModel",
    "Analysis",
    "ArVaeModel",
    "Attention",
    "AttganFeatures",
    "Attribute",
    "AutoencoderSettings",
    "CbamAttention",
    "CfdDataset",
    "ConvLatent",
    "CsvDataset",
    "Data",
    "Dataset",
    "DenseLatent",
    "DfcLoss",
    "Effect",
    "Epsilon",
    "FaceFeatures",
    "FairFaceDataset",
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
    "Model",
    "ModelFeatures",
    "Name",
    "Norms",
    "PixelLoss",
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
    "SsimLoss",
    "StandardPrior",
    "Study",
    "SyntheticDataset",
    "TiltedPrior",
    "Training",
    "TrainingOverride",
    "VaeModel",
    "VggFeatures",
    "VqVaeModel",
    "group_slug",
]


class Grid(Section):
    """The runs: every model × group × seed."""

    models: Literal["every"] | Annotated[tuple[str, ...], Field(min_length=1)] = "every"
    """Names of models, or `every`."""
    groups: Annotated[tuple[str, ...], Field(min_length=1)] = ("all",)
    """`all`, and groups such as `asian-female` that get models of their own."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Each seed is a training of its own."""


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
    grid: Grid = Grid()
    """What is run."""

    @model_validator(mode="after")
    def _names_exist(self) -> Study:
        for key in ("training", "rated"):
            if getattr(self.data, key) not in self.data.datasets:
                raise ValueError(
                    f"data.{key}: no data set is called {getattr(self.data, key)!r}; "
                    f"there are: {', '.join(self.data.datasets)}"
                )
        for name in self.model_names:
            if name not in self.models:
                raise ValueError(f"grid.models: no model is called {name!r}; there are: {', '.join(self.models)}")
        for name in self.model_names:
            training = self.training_of(name)
            if training.micro_batch_size and training.micro_batch_size > training.batch_size:
                raise ValueError(
                    f"training.micro_batch_size: {training.micro_batch_size} is more than the {training.batch_size} "
                    f"of training.batch_size, for model {name!r}; write a smaller one, or null"
                )
        if self.analysis.epsilon.report not in self.analysis.epsilon.quantiles:
            raise ValueError("analysis.epsilon.report: must be one of analysis.epsilon.quantiles")
        return self

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models in the grid, in the order of the study."""
        return tuple(self.models) if self.grid.models == "every" else self.grid.models

    def training_of(self, model: str) -> Training:
        """The training settings of one model: the study's, with the model's own on top."""
        own = {name: value for name, value in self.models[model].training if value is not None}
        return self.training.model_copy(update=own)


def group_slug(values: tuple[str, ...]) -> str:
    """The name of a group, from its values: `("East Asian", "Female")` → `east_asian-female`."""
    return "-".join("".join(c if c.isalnum() else "_" for c in str(value).strip().lower()) for value in values)
