from __future__ import annotations

import math

import pytest
import torch

from fluence.errors import Diverged
from fluence.training.divergence import DivergenceWatch

NO, YES = torch.tensor(False), torch.tensor(True)


def look(watch: DivergenceWatch, step: int, terms: list[float], norm: float = 1.0, forgiven: torch.Tensor = NO) -> bool:
    return bool(watch.look(step, torch.tensor(terms, dtype=torch.float64), torch.tensor(norm), forgiven))


def test_first_bad_step_is_named_and_every_later_one_left_out():
    watch = DivergenceWatch(("l2", "kl"), torch.device("cpu"))
    assert not look(watch, 12, [1, 2])
    watch.check(5, "nothing")
    assert look(watch, 13, [1, math.inf])
    assert look(watch, 14, [math.nan, 2])
    assert look(watch, 15, [1, 2])
    with pytest.raises(Diverged, match=r"epoch 3, at step 14: not finite: kl; try less"):
        watch.check(5, "try less")


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_gradient_counts_too_unless_it_is_forgiven(norm):
    watch = DivergenceWatch(("l2",), torch.device("cpu"))
    assert look(watch, 0, [1], norm, forgiven=YES)
    assert not look(watch, 1, [1])
    watch.check(5, "")
    assert look(watch, 2, [1], norm)
    with pytest.raises(Diverged, match="not finite: gradient_norm"):
        watch.check(5, "")


def test_loss_is_never_forgiven():
    watch = DivergenceWatch(("l2",), torch.device("cpu"))
    look(watch, 0, [math.nan], math.nan, forgiven=YES)
    with pytest.raises(Diverged, match="not finite: l2, gradient_norm"):
        watch.check(5, "")
