"""Training: from packed images and a model's settings to weights, and everything needed to continue when killed."""

from fluence.training.distributed import Ranks
from fluence.training.loop import train
from fluence.training.task import TrainSpec, TrainSummary, hand_on_nothing

__all__ = ["Ranks", "TrainSpec", "TrainSummary", "hand_on_nothing", "train"]
