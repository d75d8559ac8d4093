from __future__ import annotations

import math

import pytest

from fluence.study import Training
from fluence.training.schedule import Schedule


def schedule(steps_per_epoch: int = 10, **training: object) -> Schedule:
    return Schedule(Training.model_validate({"epochs": 5, "learning_rate": 2.0, **training}), steps_per_epoch)


def test_cosine_by_hand():
    rates = [schedule(4, epochs=2, warmup_epochs=1).learning_rate(step) for step in range(8)]
    half = [2 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, *half])
    assert rates[4:] == pytest.approx([2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)])


def test_constant_stays_after_the_warmup():
    assert [schedule(schedule="constant", warmup_epochs=0.2).learning_rate(s) for s in (0, 1, 2, 49)] == [1, 2, 2, 2]
    assert schedule(schedule="constant", warmup_epochs=0).learning_rate(0) == 2


@pytest.mark.parametrize("kind", ["cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.5, 1, 5, 9])
def test_learning_rate_is_positive_at_every_step_and_never_above_its_height(kind, warmup):
    rates = [schedule(schedule=kind, warmup_epochs=warmup).learning_rate(step) for step in range(50)]
    assert all(0 < rate <= 2 for rate in rates)
    assert max(rates) == 2


def test_kl_scale_rises_to_one_and_stays():
    scales = [schedule(kl_warmup_epochs=0.4).kl_scale(step) for step in range(6)]
    assert scales == [0.25, 0.5, 0.75, 1, 1, 1]
    assert schedule(kl_warmup_epochs=0).kl_scale(0) == 1
