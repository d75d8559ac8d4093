"""The learning rate and the weight of the KL term, as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fluence.study import Training


@dataclass(frozen=True)
class Schedule:
    """What changes in the course of a training.

    Attributes:
        training: the settings.
        steps_per_epoch: optimiser steps in one epoch.
    """

    training: Training
    steps_per_epoch: int

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0.

        It rises linearly and reaches its height with the last step of the warm-up. Then it stays, or follows half a
        cosine that reaches zero as the last step ends.

        Source: Loshchilov & Hutter 2017, equation 5, without restarts.
        """
        total = self.training.epochs * self.steps_per_epoch
        warmup = min(round(self.training.warmup_epochs * self.steps_per_epoch), total)
        if step < warmup:
            return self.training.learning_rate * (step + 1) / warmup
        if self.training.schedule == "constant" or step >= total:
            return self.training.learning_rate * (self.training.schedule == "constant")
        return self.training.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2

    def kl_scale(self, step: int) -> float:
        """Factor of the KL term at a step, in (0, 1]: linear, and 1 from the last step of its warm-up."""
        warmup = round(self.training.kl_warmup_epochs * self.steps_per_epoch)
        return min(1.0, (step + 1) / max(warmup, 1))
