from __future__ import annotations

import pytest
import torch

from fluence.errors import StudyError
from fluence.study import Training
from fluence.training.precision import LossScaler, autocast, choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_auto_is_what_the_gpu_does_natively(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision(Training(), GPU) == expected
    assert choose_precision(Training(precision="fp32"), GPU) == "fp32"


def test_cpu_computes_in_fp32_unless_told_otherwise():
    assert choose_precision(Training(), CPU) == "fp32"
    assert choose_precision(Training(precision="bf16"), CPU) == "bf16"
    with pytest.raises(StudyError, match=r"training\.precision: fp16 needs a GPU"):
        choose_precision(Training(precision="fp16"), CPU)


def test_autocast_computes_in_the_chosen_precision():
    x = torch.ones(2, 2)
    with autocast("bf16", CPU):
        assert (x @ x).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert (x @ x).dtype == torch.float32


def test_scaler_follows_the_rule_of_grad_scaler():
    """Beside torch's own update rule, over a growth, overflows in a row and a second growth."""
    ours, theirs, tracker = LossScaler("fp16", CPU), torch.tensor(65536.0), torch.tensor(0, dtype=torch.int32)
    for overflow in [True, True, *[False] * 2001, True, *[False] * 4000]:
        ours.update(torch.tensor(overflow))
        torch._amp_update_scale_(theirs, tracker, torch.tensor(float(overflow)), 2.0, 0.5, ours.GROWTH_INTERVAL)
        assert ours.scale == theirs
    assert ours.scale == 65536 / 4 * 2 / 2 * 4


def test_scaler_forgives_an_overflow_only_while_it_can_scale_down():
    scaler, overflow = LossScaler("fp16", CPU), torch.tensor(True)
    num_forgiven = 0
    while scaler.forgives(overflow):
        scaler.update(overflow)
        num_forgiven += 1
    assert num_forgiven == 26  # from 2¹⁶ to 2⁻¹⁰
    assert not LossScaler("fp32", CPU).forgives(overflow)
    assert not LossScaler("fp16", CPU).forgives(torch.tensor(False))


def test_scaler_continues_from_its_state():
    scaler, other = LossScaler("fp16", CPU), LossScaler("fp16", CPU)
    for overflow in [True, False, False]:
        scaler.update(torch.tensor(overflow))
    other.load_state_dict(scaler.state_dict())
    for _ in range(1998):
        scaler.update(torch.tensor(False))
        other.update(torch.tensor(False))
    assert scaler.scale == other.scale == 65536
