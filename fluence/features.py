"""Trained models of the same study as feature networks of another training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fluence.losses.features import FrozenNetwork
from fluence.models import Recorder
from fluence.models.trained import TrainedModel, load_trained


class EncoderFeatures(FrozenNetwork):
    """The encoder of a trained model; its layers are those that can be recorded, after non-linearity and gates."""

    def __init__(self, trained: TrainedModel, image_size_px: int) -> None:
        """Loads its weights.

        Raises:
            ArtifactError: they are missing or damaged, or do not fit its settings.
        """
        super().__init__()
        self.model = load_trained(trained.model, image_size_px, trained.weights)
        self.layers = tuple(info.name for info in self.model.recordable)
        self.default_layers = tuple(info.name for info in self.model.recordable if info.kind == "conv")
        self._recorder = Recorder(self.model, "encoder", "post")
        self.freeze()

    def forward(self, images: Tensor, layers: Sequence[str]) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] in [0, 1] → values of the layers, [B, *shape] each."""
        self.model.encode(images)
        values = self._recorder.take()
        return tuple(values[name] for name in layers)


def trained_features(trained: Mapping[str, TrainedModel], image_size_px: int) -> dict[str, EncoderFeatures]:
    """The frozen network of each trained model, by the same names.

    Raises:
        ArtifactError: weights are missing or damaged, or do not fit their settings.
    """
    return {name: EncoderFeatures(model, image_size_px) for name, model in trained.items()}
