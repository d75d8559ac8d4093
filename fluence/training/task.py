"""What a training is given, what it reports, and the images that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fluence.data.attributes import attribute_values
from fluence.data.images import ResidentImages, rows_of_group, split_rows
from fluence.data.sampling import num_pieces
from fluence.errors import RunError, Skipped, StudyError
from fluence.layout import Layout, Run
from fluence.models.trained import TrainedModel
from fluence.store.packed import Packed
from fluence.store.weights import write_weights
from fluence.study import AutoencoderModel, Training
from fluence.training.distributed import Ranks


@dataclass(frozen=True)
class TrainSpec:
    """The part of a study that one training may see.

    Attributes:
        model: the model.
        training: its training settings, with its own overrides on top.
        run: model × group × seed.
        layout: where its files go.
        packed: the packed training images.
        group_by: columns that make the groups.
        min_group_size: a group with fewer images is skipped.
        key: hash of everything that determines the result; a checkpoint with another key is not continued.
        trained: trained models whose features are compared, by `ModelFeatures.label`.
    """

    model: AutoencoderModel
    training: Training
    run: Run
    layout: Layout
    packed: Path
    group_by: tuple[str, ...]
    min_group_size: int
    key: str
    trained: Mapping[str, TrainedModel] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainSummary:
    """What became of a training.

    Attributes:
        epochs: epochs done, fewer than asked for after early stopping.
        steps: optimiser steps done.
        chosen_epoch: whose weights were handed on: the best by validation loss, or the last without validation.
        validation_loss: of these weights, or None without validation images.
        num_training_images: images learned from.
        num_validation_images: images held out.
        num_parameters: trainable numbers of the network.
        precision: fp32, bf16 or fp16.
        device: `cpu`, or the name of the GPU.
        num_processes: how many processes trained.
    """

    epochs: int
    steps: int
    chosen_epoch: int
    validation_loss: float | None
    num_training_images: int
    num_validation_images: int
    num_parameters: int
    precision: str
    device: str
    num_processes: int


@dataclass(frozen=True)
class TrainingData:
    """The images of one training, on the device.

    Attributes:
        training: images to learn from.
        validation: images held out; there may be none.
        image_size_px: their side.
    """

    training: ResidentImages
    validation: ResidentImages
    image_size_px: int


def hand_on_nothing(run: Run, layout: Layout, key: str) -> TrainSummary:
    """Writes the weights of a model that has none, so that later stages find what they look for.

    Raises:
        ArtifactError: they cannot be written.
    """
    ranks = Ranks.from_environment()
    if ranks.is_first:
        write_weights(layout.weights(run.id), {}, {"key": key, "epoch": 0, "validation_loss": None})
    return TrainSummary(0, 0, 0, None, 0, 0, 0, "fp32", "cpu", ranks.world_size)


def load_images(spec: TrainSpec, ranks: Ranks) -> TrainingData:
    """Reads the images of the run's group to the device; every process holds all of them.

    Raises:
        Skipped: the group is too small.
        StudyError: early stopping is asked for, but there is nothing to validate on; or a latent unit is to follow a
            column that cannot be followed.
        RunError: there are more processes than images in a batch.
        ArtifactError: the packed images are missing or damaged.
    """
    packed = Packed(spec.packed)
    rows = rows_of_group(packed.table, spec.run.group, spec.group_by)
    if len(rows) < spec.min_group_size:
        raise Skipped(
            f"group {spec.run.group} has {len(rows)} training images, "
            f"fewer than the {spec.min_group_size} of data.min_group_size"
        )
    split = split_rows(packed.table, rows, spec.training.validation_fraction)
    _check(spec, ranks, len(split.training), len(split.validation))
    attributes = attribute_values(spec.model, packed.table, split.training, spec.run.model)

    def resident(chosen: np.ndarray) -> ResidentImages:
        return ResidentImages(packed.read(chosen), ranks.device, None if attributes is None else attributes[chosen])

    return TrainingData(resident(split.training), resident(split.validation), packed.image_size_px)


def _check(spec: TrainSpec, ranks: Ranks, num_training: int, num_validation: int) -> None:
    if not num_training:
        raise Skipped(f"group {spec.run.group} has no training images: all are held out by the column split")
    if spec.training.early_stopping_epochs is not None and not num_validation:
        raise StudyError(
            f"training.early_stopping_epochs: group {spec.run.group} has no validation images to stop by; "
            "raise training.validation_fraction above 0, or set early_stopping_epochs: null"
        )
    batch_size = min(spec.training.batch_size, num_training)
    if ranks.world_size > batch_size:
        raise RunError(
            f"{ranks.world_size} processes cannot share a batch of {batch_size} images (training.batch_size is "
            f"{spec.training.batch_size}, group {spec.run.group} has {num_training} training images); "
            f"start at most {batch_size} processes"
        )
    piece_size = batch_size // num_pieces(batch_size, spec.training.micro_batch_size)
    if ranks.world_size > piece_size:
        raise RunError(
            f"{ranks.world_size} processes cannot share {piece_size} images, the smallest part that a batch of "
            f"{batch_size} is passed in (training.micro_batch_size is {spec.training.micro_batch_size}); start at most "
            f"{piece_size} processes, or raise it"
        )
