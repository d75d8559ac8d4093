from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fluence.data.images import ResidentImages
from fluence.data.sampling import Sampler
from fluence.errors import Diverged
from fluence.losses import Objective
from fluence.models import build
from fluence.store.packed import Packed
from fluence.study import Training
from fluence.training import loop as loop_module
from fluence.training.optimizers import build_optimizer
from fluence.training.sam import Sam
from fluence.training.schedule import Schedule
from tests.fluence.training.test_distributed import outcome
from tests.fluence.training.tiny_training import SIZE_PX
from tests.fluence.training.trainings import (
    handed_on,
    new_loop,
    overflowing,
    rows,
    run,
    same_weights,
    whole_and_broken,
)

CPU = torch.device("cpu")
SAM = {"sam": {"rho": 0.05}}


class Quadratic(nn.Module):
    """½ wᵀ diag(1, 4) w, with w in two parameters, so that the norm has to be one over both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self) -> torch.Tensor:
        return (0.5 * (self.first.square() + 4 * self.second.square())).sum()


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))


# ── The ascent ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_quadratic_by_hand():
    """g = (1, 4), ‖g‖ = √17; W + ε̂ = (1.0242536, 1.0970143), where the loss is 2.9314282 and here 2.5."""
    model = Quadratic()
    model().backward()
    with Sam(model, 0.1).ascended():
        above = model()
        above.backward()
    assert (above - model()).item() == pytest.approx(0.4314282, abs=2e-6)
    assert [p.grad.item() for p in model.parameters()] == pytest.approx([1 + 0.1 / 17**0.5, 4 * (1 + 0.4 / 17**0.5)])
    assert [p.item() for p in model.parameters()] == [1, 1]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_are_those_of_the_slow_reference(name):
    """Foret et al. 2021, algorithm 1, with copies of the network instead of moved weights."""
    x, y = torch.randn(16, 3), torch.randn(16, 1)
    training = Training(optimizer=name, learning_rate=0.1, weight_decay=0.01)
    model, reference = small_network(), small_network()
    ours, theirs = build_optimizer(model, training), build_optimizer(reference, training)
    for _ in range(5):
        model.zero_grad()
        (model(x) - y).square().mean().backward()
        with Sam(model, 0.3).ascended():
            (model(x) - y).square().mean().backward()
        ours.step()

        twin = copy.deepcopy(reference)
        (reference(x) - y).square().mean().backward()
        length = sum(p.grad.square().sum() for p in reference.parameters()).sqrt()
        with torch.no_grad():
            for moved, p in zip(twin.parameters(), reference.parameters(), strict=True):
                moved += 0.3 * p.grad / length
        twin.zero_grad()
        (twin(x) - y).square().mean().backward()
        for p, moved in zip(reference.parameters(), twin.parameters(), strict=True):
            p.grad = moved.grad
        theirs.step()
        reference.zero_grad()
    for p, q in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_weights_and_statistics_are_put_back_bit_for_bit():
    """Also after an error inside. Adding ε̂ and taking it away again would leave other bits."""
    model, x = small_network(), torch.randn(8, 3)
    model(x).square().sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), Sam(model, 0.1).ascended():
        model(x).sum().backward()
        assert not any(torch.equal(before[name], value) for name, value in model.state_dict().items())
        raise RuntimeError("inside")
    assert same_weights(model.state_dict(), before)


def test_no_gradient_moves_nothing():
    model = Quadratic()
    with torch.no_grad():
        model.first.zero_()
        model.second.zero_()
    model().backward()
    with Sam(model, 0.1).ascended():
        assert [p.item() for p in model.parameters()] == [0, 0]
        model().backward()
    assert [p.grad.item() for p in model.parameters()] == [0, 0]


@pytest.mark.parametrize("scale", [2.0**-20, 65536.0])
def test_factor_of_the_loss_changes_nothing(scale):
    """The factor of 16-bit training is divided out with the norm."""
    moved = []
    for factor in (1.0, scale):
        model = Quadratic()
        (model() * factor).backward()
        with Sam(model, 0.1).ascended():
            moved.append([p.item() for p in model.parameters()])
    assert moved[0] == moved[1]


# ── In the training loop ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 3e-3), ("sgd", 1e-4)])
@pytest.mark.parametrize("micro_batch_size", [None, 8])
def test_training_is_that_of_a_plain_loop(make_spec, optimizer, rate, micro_batch_size):
    """Mistake: fresh noise between the two SAM passes. The reference keeps the share's own."""
    spec = make_spec(
        epochs=2, batch_size=8, validation_fraction=0.0, learning_rate=rate, kl_warmup_epochs=2,
        gradient_clip_norm=50.0, optimizer=optimizer, micro_batch_size=micro_batch_size, model={"norm": "batch"}, **SAM,
    )  # fmt: skip
    run(spec)

    model, objective = build(spec.model, SIZE_PX, spec.run.seed), Objective(spec.model)
    images = ResidentImages(Packed(spec.packed).read(), CPU)
    sampler = Sampler(images, 8, model.noise_shape, seed=spec.run.seed, horizontal_flip=True, device=CPU)
    schedule = Schedule(spec.training, 5)
    plain = torch.optim.AdamW(model.parameters(), weight_decay=0.0, foreach=False)
    plain = torch.optim.SGD(model.parameters(), momentum=0.9, foreach=False) if optimizer == "sgd" else plain
    sharpness = []
    for step in range(10):
        share = sampler.share(*divmod(step, 5))
        twin = copy.deepcopy(model)
        total, _ = objective(model(share.images, share.noise), share.images, kl_scale=schedule.kl_scale(step))
        gradients = torch.autograd.grad(total.mean(), list(model.parameters()))
        length = torch.cat([g.flatten() for g in gradients]).norm()
        with torch.no_grad():
            for p, g in zip(twin.parameters(), gradients, strict=True):
                p += 0.05 * g / length
        above, _ = objective(twin(share.images, share.noise), share.images, kl_scale=schedule.kl_scale(step))
        for p, g in zip(model.parameters(), torch.autograd.grad(above.mean(), list(twin.parameters())), strict=True):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(model.parameters(), 50.0)
        plain.param_groups[0]["lr"] = schedule.learning_rate(step)
        plain.step()
        sharpness.append((above - total).mean().item())

    logged = [row["sharpness"] for row in rows(spec, "train")]
    assert logged == pytest.approx(np.reshape(sharpness, (2, 5)).mean(1), rel=1e-3)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(handed_on(spec)["model"][name], value, rtol=2e-3, atol=2e-4)


def test_loss_falls_and_sharpness_is_logged_for_training_alone(make_spec):
    """The ascent goes up: the loss at W + ε̂ is the larger one."""
    spec = make_spec(epochs=25, learning_rate=1e-2, **SAM)
    run(spec)
    losses = [row["loss"] for row in rows(spec, "train")]
    assert losses[-1] < 0.5 * losses[0]
    assert all(row["sharpness"] > 0 for row in rows(spec, "train"))
    assert not any("sharpness" in row for row in rows(spec, "validation"))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_stopped_anywhere_it_continues_to_the_same_bits(make_spec, optimizer):
    settings = {"optimizer": optimizer, "learning_rate": 1e-4, "micro_batch_size": 3, "model": {"norm": "batch"}, **SAM}
    whole_and_broken(make_spec, (1, 2, 1), **settings)


@pytest.mark.parametrize("where", ["at W", "at W + ε̂"])
def test_nothing_is_learned_from_a_pass_that_is_not_finite(make_spec, where):
    loop = new_loop(make_spec(**SAM))
    loop._take_step()
    before = {name: value.clone() for name, value in loop.model.named_parameters()}
    terms = loop._objective._terms
    bad = terms | {"kl": replace(terms["kl"], weight=float("nan"))}
    passes = iter([bad, bad] if where == "at W" else [terms, bad])
    losses = loop._losses

    def spoilt(*arguments):
        loop._objective._terms = next(passes)
        return losses(*arguments)

    loop._losses = spoilt
    loop._take_step()
    loop._losses, loop._objective._terms = losses, terms
    loop._take_step()
    assert all(torch.equal(value, before[name]) for name, value in loop.model.named_parameters())
    with pytest.raises(Diverged, match=r"at step 2: not finite: .*gradient_norm"):
        loop._check_finite()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_fp16_leaves_overflowing_steps_out_and_continues_exactly(make_spec, monkeypatch, optimizer):
    """From the first step on, whose overflow must not leave SGD with velocities that nobody wrote."""
    monkeypatch.setattr(loop_module, "choose_precision", lambda training, device: "fp16")
    spec, state = overflowing(make_spec, weight=30.0, optimizer=optimizer, learning_rate=1e-6, **SAM)
    assert all(value.isfinite().all() for value in state["model"].values())
    fresh = build(spec.model, SIZE_PX, 0).state_dict()
    moved = {name for name, value in state["model"].items() if not torch.equal(value, fresh[name])}
    assert len(moved) > 0.9 * len(fresh)


@pytest.mark.parametrize("overflow_in", [1, 2])
def test_fp16_overflow_in_either_pass_leaves_the_step_out(make_spec, monkeypatch, overflow_in):
    monkeypatch.setattr(loop_module, "choose_precision", lambda training, device: "fp16")
    loop = new_loop(make_spec(learning_rate=1e-3, **SAM))
    loop._scaler.scale.fill_(1.0)
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    gradient_of_batch, calls = loop._gradient_of_batch, iter([1, 2])

    def overflowing():
        sums, norm = gradient_of_batch()
        return sums, torch.tensor(float("inf")) if next(calls) == overflow_in else norm

    loop._gradient_of_batch = overflowing
    loop._take_step()
    assert same_weights(loop.model.state_dict(), before)
    assert loop._scaler.scale == 0.5
    loop._check_finite()
    loop._gradient_of_batch = gradient_of_batch
    loop._take_step()
    assert not same_weights(loop.model.state_dict(), before)


@pytest.mark.slow
def test_number_of_processes_changes_nothing_but_rounding(tmp_path):
    """Batches of 13 in pieces of 4, 4 and 5 images, over 1 and 2 processes."""
    settings = {"epochs": 2, "batch_size": 13, "micro_batch_size": 5, "optimizer": "sgd", "learning_rate": 1e-4}
    settings |= {"model": {"norm": "batch"}, **SAM}
    log, weights = outcome(tmp_path / "1", settings, 1)
    other_log, other_weights = outcome(tmp_path / "2", settings, 2)
    assert len(log) == len(other_log) == 4
    for row, other in zip(log, other_log, strict=True):
        assert {**row, "phase": 0} == pytest.approx({**other, "phase": 0}, rel=1e-4)
    assert log[0]["sharpness"] > 0
    for name, value in weights.items():
        torch.testing.assert_close(other_weights[name], value, rtol=1e-3, atol=2e-5)
