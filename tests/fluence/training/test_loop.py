from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fluence.data.images import ResidentImages, rows_of_group, split_rows
from fluence.data.sampling import Sampler
from fluence.errors import Diverged, Interrupted, RunError, Skipped, StudyError
from fluence.losses import Objective
from fluence.models import build
from fluence.store.files import read_json
from fluence.store.packed import Packed
from fluence.training import Ranks, train
from fluence.training import loop as loop_module
from fluence.training.checkpoint import Checkpoints
from fluence.training.schedule import Schedule
from tests.fluence.training.tiny_training import SIZE_PX
from tests.fluence.training.trainings import (
    after,
    handed_on,
    last_state,
    new_loop,
    overflowing,
    rows,
    run,
    same_weights,
    whole_and_broken,
)

CPU = torch.device("cpu")


# ── The arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────

GOLDEN = [
    189.82526063919067, 165.20379996299744, 161.01362872123718, 139.15508151054382, 173.9665687084198,
    159.51519179344177, 184.13063025474548, 147.61045002937317, 173.63584399223328, 130.5333857536316,
    167.59760355949402, 154.63874220848083, 175.39788007736206, 143.9081540107727, 131.27107691764832,
    126.63380217552185, 153.06495809555054, 152.94506692886353, 150.51223754882812, 157.61981320381165,
]  # fmt: skip


def test_golden_loss_curve(make_spec):
    """20 steps, each a batch and an epoch of its own. A change here means "numbers will differ" in CHANGELOG.

    CPUs and versions of torch add up in different orders (SSE instead of AVX moves these figures by 5e-8), so they are
    compared to rounding; on one machine every bit is the same, which the next test asserts.
    """
    spec = make_spec(num_images=10, epochs=20, batch_size=8, validation_fraction=0.0, kl_warmup_epochs=5)
    run(spec)
    assert [row["loss"] for row in rows(spec, "train")] == pytest.approx(GOLDEN, rel=1e-6)


def test_same_training_gives_the_same_bits_and_another_seed_others(make_spec):
    specs = [make_spec("a"), make_spec("b"), make_spec("c", seed=1)]
    for spec in specs:
        run(spec)
    logs = [spec.layout.metrics_log(spec.run.id).read_bytes() for spec in specs]
    assert same_weights(handed_on(specs[0])["model"], handed_on(specs[1])["model"])
    assert logs[0] == logs[1] != logs[2]


@pytest.mark.parametrize("clip", [5.0, None])
def test_steps_are_those_of_a_plain_loop(make_spec, clip):
    """A reference with torch's own clipping and an optimiser that is not fused; images and noise are the sampler's."""
    spec = make_spec(
        epochs=3, batch_size=8, kl_warmup_epochs=2, weight_decay=0.1, gradient_clip_norm=clip,
        horizontal_flip=True, validation_fraction=0.0, model={"norm": "batch"},
    )  # fmt: skip
    run(spec)

    model, objective = build(spec.model, SIZE_PX, spec.run.seed), Objective(spec.model)
    images = ResidentImages(Packed(spec.packed).read(), CPU)
    sampler = Sampler(images, 8, model.noise_shape, seed=spec.run.seed, horizontal_flip=True, device=CPU)
    schedule = Schedule(spec.training, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1, foreach=False)
    losses = []
    for step in range(15):
        share = sampler.share(*divmod(step, 5))
        total, _ = objective(model(share.images, share.noise), share.images, kl_scale=schedule.kl_scale(step))
        optimizer.zero_grad()
        total.mean().backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.param_groups[0]["lr"] = schedule.learning_rate(step)
        optimizer.step()
        losses.append(total.mean().item())

    assert [row["loss"] for row in rows(spec, "train")] == pytest.approx(np.reshape(losses, (3, 5)).mean(1), rel=1e-5)
    trained = handed_on(spec)["model"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-4)


def test_training_lowers_the_loss(make_spec):
    spec = make_spec(epochs=25, learning_rate=1e-2)
    run(spec)
    losses = [row["loss"] for row in rows(spec, "train")]
    assert losses[-1] < 0.5 * losses[0]


# ── What is written ──────────────────────────────────────────────────────────────────────────────────────────────


def test_metrics_have_a_row_per_phase_and_epoch(make_spec):
    spec = make_spec(epochs=2)
    summary = run(spec)
    train_rows, validation_rows = rows(spec, "train"), rows(spec, "validation")
    shared = {"epoch", "step", "phase", "loss", "reconstruction/l2", "kl", "num_images"}
    assert all(row.keys() == shared | {"learning_rate", "gradient_norm"} for row in train_rows)
    assert all(row.keys() == shared for row in validation_rows)
    steps = summary.num_training_images // 8
    assert [(row["epoch"], row["step"], row["num_images"]) for row in train_rows] == [
        (1, steps, 8 * steps), (2, 2 * steps, 8 * steps)
    ]  # fmt: skip
    assert {row["num_images"] for row in validation_rows} == {summary.num_validation_images}
    assert summary.num_training_images + summary.num_validation_images == 40


def test_handed_on_are_the_weights_of_the_lowest_validation_loss(make_spec):
    """The best epoch is not the last one here, and its loss is that of the objective with the full weight of KL."""
    spec = make_spec(
        epochs=8, learning_rate=1e-2, schedule="constant", kl_warmup_epochs=20,
        model={"kl_weight": 2.0, "norm": "batch", "reconstruction": [{"loss": "l2", "weight": 0.5}]},
    )  # fmt: skip
    summary = run(spec)
    by_epoch = {row["epoch"]: row["loss"] for row in rows(spec, "validation")}
    weights = handed_on(spec)
    assert min(by_epoch, key=by_epoch.__getitem__) == summary.chosen_epoch == weights["epoch"] < 8
    assert summary.validation_loss == weights["validation_loss"] == min(by_epoch.values())

    model = build(spec.model, SIZE_PX, 0)
    model.load_state_dict(weights["model"])
    packed = Packed(spec.packed)
    images = ResidentImages(packed.read(split_rows(packed.table, np.arange(40), 0.2).validation), CPU)
    held_out = images.batch(torch.arange(len(images)))
    with torch.no_grad():
        losses, _ = Objective(spec.model)(model.eval()(held_out), held_out)
    assert weights["validation_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_checkpoint_pairs_the_optimiser_with_the_last_weights(make_spec):
    """Mistake: best weights saved with the current optimiser."""
    spec = make_spec(epochs=8, learning_rate=1e-2, schedule="constant", model={"norm": "batch"})
    loop = new_loop(spec)
    loop.run()
    last = {name: value.clone() for name, value in loop.model.state_dict().items()}
    summary = loop.finish()
    assert summary.chosen_epoch < 8
    state = last_state(spec)
    assert same_weights(state["model"], last)
    assert same_weights(state["best"]["weights"], handed_on(spec)["model"])
    assert not same_weights(state["best"]["weights"], state["model"])


def test_without_validation_the_last_weights_are_handed_on(make_spec):
    spec = make_spec(validation_fraction=0.0)
    summary = run(spec)
    assert (summary.num_validation_images, summary.validation_loss, summary.chosen_epoch) == (0, None, 3)
    assert rows(spec, "validation") == []
    assert same_weights(handed_on(spec)["model"], last_state(spec)["model"])


def test_no_epochs_leave_the_network_as_it_was_built(make_spec):
    spec = make_spec(epochs=0, seed=5)
    for _ in range(2):
        summary = run(spec)
        assert (summary.epochs, summary.steps, summary.chosen_epoch) == (0, 0, 0)
        assert same_weights(handed_on(spec)["model"], build(spec.model, SIZE_PX, 5).state_dict())
        assert [row["epoch"] for row in rows(spec, "validation")] == [0]
    assert rows(spec, "train") == []


def test_progress_tells_where_the_training_stands(make_spec):
    spec = make_spec()
    with pytest.raises(Interrupted):
        run(spec, stop=after(2))
    told = read_json(spec.layout.progress("train", spec.run.id))
    assert (told["epoch"], told["epochs"], told["step"]) == (0, 3, 2)
    assert told["loss"] > 0
    assert told["images_per_s"] > 0
    assert told["key"] == spec.key
    assert told["text"] == "epoch 0 of 3"
    run(spec)
    told = read_json(spec.layout.progress("train", spec.run.id))
    assert told["fraction"] == 1
    assert told["step"] == told["steps"] == 3 * (31 // 8)


def test_bar_shows_on_a_terminal_and_is_taken_away(make_spec, monkeypatch, capsys):
    spec = make_spec(epochs=1)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    train(spec, Ranks(), stop=lambda: False, checkpoint_interval_s=0)
    shown = capsys.readouterr().err
    assert "tiny-all-s0:   0%|" in shown
    assert "0/3" in shown
    assert shown.endswith("\r")
    train(spec, Ranks(), stop=lambda: False, checkpoint_interval_s=0, quiet=True)
    assert capsys.readouterr().err == ""


# ── Stop and continue ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_stopped_anywhere_it_continues_to_the_same_bits(make_spec, schedule):
    """Mistake: schedule restarted on resume. Stopped before and after the end of an epoch, and twice in a row."""
    settings = {"epochs": 3, "schedule": schedule, "kl_warmup_epochs": 2, "model": {"norm": "batch"}}
    said = r"stopped after \d+ of 9 steps; its state is saved"
    whole_and_broken(make_spec, (1, 2, 1, 3), said, **settings)


def test_damaged_checkpoint_costs_steps_but_no_bits(make_spec, capsys):
    whole, broken = make_spec("whole"), make_spec("broken")
    run(whole)
    with pytest.raises(Interrupted):
        run(broken, stop=after(5), interval_s=0)
    newest = max(broken.layout.checkpoints(broken.run.id).iterdir())
    newest.write_bytes(newest.read_bytes()[:-1000])
    run(broken)
    assert f"{newest.name}: this checkpoint is damaged" in capsys.readouterr().err
    assert same_weights(handed_on(whole)["model"], handed_on(broken)["model"])


def test_checkpoint_of_other_settings_is_not_continued(make_spec, capsys):
    """Mistake: a cache keyed by a name, not by what made it."""
    old, new, fresh = make_spec("a", key="old"), make_spec("a", key="new", seed=0), make_spec("b", key="new")
    with pytest.raises(Interrupted):
        run(old, stop=after(4))
    for spec in (new, fresh):
        run(spec)
    assert "made with other settings or data" in capsys.readouterr().err
    assert same_weights(handed_on(new)["model"], handed_on(fresh)["model"])


def test_checkpoints_follow_the_clock(make_spec, monkeypatch):
    """After every step and every epoch if no time may pass; else at the end alone."""
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, state: saved.append(step))
    run(make_spec("always"), interval_s=0)
    assert saved == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 9]
    saved.clear()
    run(make_spec("never"))
    assert saved == [9]


# ── When it goes wrong ───────────────────────────────────────────────────────────────────────────────────────────


def test_diverged_training_keeps_the_checkpoint_from_before(make_spec):
    spec = make_spec(learning_rate=1e30, warmup_epochs=0, epochs=9)
    message = r"diverged in epoch 1, at step 2: not finite: .*loss.*smaller training\.learning_rate \(now 1e\+30\)"
    with pytest.raises(Diverged, match=message):
        run(spec, interval_s=0)
    state = last_state(spec)
    assert (state["epoch"], state["batch"]) == (0, 1)
    assert all(value.isfinite().all() for value in state["model"].values())
    assert not spec.layout.weights(spec.run.id).exists()


def test_nothing_is_learned_from_a_bad_step_nor_after_it(make_spec):
    """The processes look at the verdict now and then only; the weights have been safe all the time."""
    loop = new_loop(make_spec(num_images=60))
    loop._take_step()
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    optimizer = str(loop._optimizer.state_dict()["state"])
    terms = loop._objective._terms
    loop._objective._terms = terms | {"kl": replace(terms["kl"], weight=float("nan"))}
    loop._take_step()
    loop._objective._terms = terms
    loop._take_step()
    assert same_weights(loop.model.state_dict(), before)
    assert str(loop._optimizer.state_dict()["state"]) == optimizer
    with pytest.raises(Diverged, match="at step 2: not finite: loss, gradient_norm"):
        loop._check_finite()


def test_early_stopping_waits_so_many_epochs(make_spec):
    """A learning rate that rounds to no change: the first epoch stays the best."""
    summary = run(make_spec(epochs=9, learning_rate=1e-30, early_stopping_epochs=2))
    assert (summary.epochs, summary.chosen_epoch) == (3, 1)


def test_early_stopping_count_survives_a_stop(make_spec):
    spec = make_spec(epochs=9, learning_rate=1e-30, early_stopping_epochs=2)
    for _ in range(4):
        with pytest.raises(Interrupted):
            run(spec, stop=after(2))
    assert run(spec).epochs == 3


def test_batch_norm_moves_by_training_alone(make_spec):
    """Mistake: statistics moved by a sanity forward. Nor does validation move them, or any parameter."""
    spec = make_spec(model={"norm": "batch"})
    loop = new_loop(spec)
    fresh = build(spec.model, SIZE_PX, spec.run.seed).state_dict()
    assert any("running_mean" in name for name in fresh)
    assert same_weights(loop.model.state_dict(), fresh)
    assert all(p.grad is None for p in loop.model.parameters())
    loop._validate()
    assert same_weights(loop.model.state_dict(), fresh)
    assert loop.model.training
    loop._take_step()
    assert not same_weights(loop.model.state_dict(), fresh)


def test_group_trains_on_its_own_images(make_spec):
    spec = make_spec(group="black-female", validation_fraction=0.0)
    assert run(spec).num_training_images == 37
    table = Packed(spec.packed).table
    assert len(rows_of_group(table, "black-female", spec.group_by)) == 37


def test_small_group_is_skipped_with_its_size(make_spec):
    with pytest.raises(
        Skipped, match=r"group asian-female has 3 training images, fewer than the 10 of data.min_group_size"
    ):
        run(make_spec(group="asian-female"))


def test_more_processes_than_images_are_refused(make_spec):
    spec = make_spec(batch_size=3)
    with pytest.raises(RunError, match=r"4 processes cannot share a batch of 3 images.*start at most 3 processes"):
        train(spec, Ranks(0, 4, 0), stop=lambda: False, checkpoint_interval_s=1)


def test_early_stopping_without_validation_is_refused(make_spec):
    with pytest.raises(StudyError, match=r"training\.early_stopping_epochs: .* no validation images"):
        run(make_spec(early_stopping_epochs=2, validation_fraction=0.0))


# ── Short numbers ────────────────────────────────────────────────────────────────────────────────────────────────


def test_bf16_trains_close_to_fp32(make_spec):
    short, exact = make_spec("short", precision="bf16"), make_spec("exact")
    assert run(short).precision == "bf16"
    run(exact)
    losses = [[row["loss"] for row in rows(spec, "train")] for spec in (short, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


def test_fp16_leaves_overflowing_steps_out_and_continues_exactly(make_spec, monkeypatch):
    """On the CPU, which knows fp16 too, if slowly: a factor too large for fp16 falls until gradients fit."""
    monkeypatch.setattr(loop_module, "choose_precision", lambda training, device: "fp16")
    _, state = overflowing(make_spec, weight=300.0)
    steps = {value["step"].item() for value in state["optimizer"]["state"].values()}
    halvings = int(torch.log2(65536 / state["scaler"]["scale"]))
    assert steps == {9 - halvings}
