from __future__ import annotations

import pytest
import torch
from torch import nn

from fluence.study import Training
from fluence.training.optimizers import build_optimizer

SLOW = {
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.2, foreach=False),
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.2, foreach=False),
}


def one_weight(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def step(model: nn.Linear, optimizer: torch.optim.Optimizer, gradient: float, left_out: bool = False) -> float:
    """One step with a gradient that comes multiplied by 8, as 16-bit training has it."""
    model.weight.grad = torch.full((1, 1), 8 * gradient)
    vars(optimizer).update(grad_scale=torch.tensor(8.0), found_inf=torch.tensor(float(left_out)))
    optimizer.step()
    return model.weight.item()


def test_sgd_by_hand():
    """v = 1, 0.9 + 2; W = 1 − 0.1 · 1 = 0.9, then 0.9 − 0.29."""
    model = one_weight(1.0)
    optimizer = build_optimizer(model, Training(optimizer="sgd", learning_rate=0.1))
    assert step(model, optimizer, 1.0) == pytest.approx(0.9)
    assert step(model, optimizer, 2.0) == pytest.approx(0.61)


@pytest.mark.parametrize("name", SLOW)
def test_steps_are_torchs_own_and_those_left_out_leave_no_trace(name):
    """Also where the very first step is left out."""
    model, plain = one_weight(1.0), one_weight(1.0)
    optimizer = build_optimizer(model, Training(optimizer=name, learning_rate=0.1, weight_decay=0.2))
    reference = SLOW[name](plain.parameters())
    for gradient in (float("inf"), 1.0, -3.0, float("nan"), 0.5):
        left_out = gradient in (float("inf"),) or gradient != gradient
        found = step(model, optimizer, gradient, left_out)
        if not left_out:
            plain.weight.grad = torch.full((1, 1), gradient)
            reference.step()
        assert found == pytest.approx(plain.weight.item(), rel=1e-6)
