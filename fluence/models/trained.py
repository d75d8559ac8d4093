"""Networks with the weights that a training handed on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fluence.errors import ArtifactError
from fluence.models.autoencoders import Autoencoder, build
from fluence.models.pixels import Pixels
from fluence.store.weights import read_weights
from fluence.study import AutoencoderModel, Model, PixelsModel


@dataclass(frozen=True)
class TrainedModel:
    """Another training of the same study, whose features this one compares.

    Attributes:
        model: its settings.
        weights: what it handed on.
    """

    model: AutoencoderModel
    weights: Path


def load_recordable(model: Model, image_size_px: int, weights: Path) -> Autoencoder | Pixels:
    """What images pass through when their layers are recorded: a trained network, or nothing but the pixels.

    Args:
        model: its settings.
        image_size_px: side of the images.
        weights: what its training wrote.

    Raises:
        ArtifactError: the weights are missing or damaged, or do not fit the network.
    """
    return Pixels(image_size_px) if isinstance(model, PixelsModel) else load_trained(model, image_size_px, weights)


def load_trained(model: AutoencoderModel, image_size_px: int, weights: Path) -> Autoencoder:
    """A network with its trained weights, in eval mode, on the CPU.

    Args:
        model: its settings.
        image_size_px: side of the images it learned from.
        weights: what its training wrote.

    Raises:
        ArtifactError: the weights are missing or damaged, or do not fit the network.
    """
    network = build(model, image_size_px, seed=0, pretrained=False)
    state, _ = read_weights(weights)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(f"{weights}: these weights belong to another network ({error})") from error
    return network.eval().to(memory_format=torch.channels_last)
