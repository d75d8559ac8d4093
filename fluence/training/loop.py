"""The training of one run, from images in memory to the weights that it hands on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluence.allocator import keep_freed_memory
from fluence.data.sampling import Sampler, Share, share_of
from fluence.errors import Diverged, Interrupted
from fluence.features import trained_features
from fluence.losses import Objective
from fluence.models import Recorder, build
from fluence.store.weights import write_weights
from fluence.training.checkpoint import Checkpoints
from fluence.training.distributed import Ranks, Team, first_pass_undone
from fluence.training.divergence import GRADIENT, DivergenceWatch
from fluence.training.metrics_log import EpochSums, MetricsLog
from fluence.training.optimizers import build_optimizer
from fluence.training.precision import LossScaler, autocast, choose_precision
from fluence.training.progress import Place, Progress
from fluence.training.randomness import random_states, reproducible, restore_random_states
from fluence.training.sam import SHARPNESS, Sam
from fluence.training.schedule import Schedule
from fluence.training.task import TrainingData, TrainSpec, TrainSummary, load_images

STEPS_BETWEEN_CHECKS = 32
"""How often the processes look whether the loss is still finite. Looking makes them wait for the GPU."""


def train(
    spec: TrainSpec,
    ranks: Ranks | None = None,
    *,
    stop: Callable[[], bool],
    checkpoint_interval_s: float,
    quiet: bool = False,
) -> TrainSummary:
    """Trains one run, or continues it from its newest checkpoint, and writes its weights.

    Args:
        spec: what to train.
        ranks: the place of this process among those that train together; read from the environment by default.
        stop: asked after each step; once it is true in any process, all save and stop.
        checkpoint_interval_s: seconds between checkpoints.
        quiet: no progress bar, and no word about where it continues.

    Raises:
        Skipped: the group is too small for a model of its own.
        Interrupted: `stop` was true; the state is saved, and the same call continues it.
        Diverged: a loss or a gradient was not finite. Nothing was learned from it; the last checkpoint is kept.
        StudyError: settings that do not go together with the images or the machine.
        ArtifactError: a file is missing, damaged, or cannot be written.
    """
    keep_freed_memory()
    ranks = ranks or Ranks.from_environment()
    data = load_images(spec, ranks)
    with Team.joined(ranks) as team, reproducible(spec.run.seed, ranks.device):
        loop = TrainingLoop(spec, data, team, stop=stop, checkpoint_interval_s=checkpoint_interval_s, quiet=quiet)
        loop.resume()
        with loop.progress:
            loop.run()
            return loop.finish()


@dataclass(frozen=True)
class Best:
    """The epoch with the lowest validation loss, and its weights, on the CPU."""

    epoch: int
    loss: float
    weights: dict[str, Tensor]


class TrainingLoop:
    """The state of a training, and what moves it forward.

    Attributes:
        model: the network.
        epoch: epochs done.
        batch: steps done in the epoch that is under way.
        best: the best epoch so far; None before the first validation.
        epochs_without_improvement: epochs since the best one.
    """

    def __init__(
        self, spec: TrainSpec, data: TrainingData, team: Team, *,
        stop: Callable[[], bool], checkpoint_interval_s: float, quiet: bool,
    ) -> None:  # fmt: skip
        settings, ranks = spec.training, team.ranks
        self._spec, self._settings, self._data, self._team, self._ranks = spec, settings, data, team, ranks
        self._stop, self._interval_s, self._quiet = stop, checkpoint_interval_s, quiet

        model = build(spec.model, data.image_size_px, spec.run.seed).to(ranks.device)
        # Channels last is how convolutions are fastest; it changes no result but by rounding.
        self.model = model.to(memory_format=torch.channels_last)
        self._network = team.wrap(self.model)
        trained = trained_features(spec.trained, data.image_size_px)
        self._objective = Objective(spec.model, trained).to(ranks.device)
        self._recorder = Recorder(self.model, self._objective.layers, "post")
        self._precision = choose_precision(settings, ranks.device)
        self._scaler = LossScaler(self._precision, ranks.device)
        self._optimizer = build_optimizer(self.model, settings)
        self._sam = Sam(self.model, settings.sam.rho) if settings.sam else None
        self._sampler = Sampler(
            data.training, settings.batch_size, model.noise_shape, seed=spec.run.seed,
            horizontal_flip=settings.horizontal_flip, device=ranks.device,
            micro_batch_size=settings.micro_batch_size, rank=ranks.rank, world_size=ranks.world_size,
        )  # fmt: skip
        self._schedule = Schedule(settings, self._sampler.batches_per_epoch)

        self.epoch = self.batch = self.epochs_without_improvement = 0
        self.best: Best | None = None
        self._terms = self._first_pass()
        self._watch = DivergenceWatch(self._terms, ranks.device)
        self._sums = EpochSums((*self._terms, *((SHARPNESS,) if self._sam else ()), GRADIENT), ranks.device)

        self._log = MetricsLog(spec.layout.metrics_log(spec.run.id), writes=ranks.is_first)
        self._checkpoints = Checkpoints(spec.layout.checkpoints(spec.run.id), spec.key)
        self._saved_s = time.monotonic()
        path = spec.layout.progress("train", spec.run.id)
        self.progress = Progress(path, spec.key, title=spec.run.label, active=ranks.is_first, quiet=quiet)

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.epoch * self._sampler.batches_per_epoch + self.batch

    # ── Forward through the epochs ───────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Trains to the last epoch, or until validation no longer improves."""
        if self._settings.epochs == 0 and self.best is None:
            self._validate()
        while not self._is_over:
            self.run_epoch()
            self.finish_epoch()
            self._save_or_stop()

    @property
    def _is_over(self) -> bool:
        patience = self._settings.early_stopping_epochs
        gave_up = patience is not None and self.epochs_without_improvement >= patience
        return gave_up or self.epoch >= self._settings.epochs

    def run_epoch(self) -> None:
        """Takes the steps that are left of the epoch under way."""
        while self.batch < self._sampler.batches_per_epoch:
            self._take_step()
            self._save_or_stop()

    def _take_step(self) -> None:
        sums, norm = self._gradient_of_batch()
        sharpness = sums[:0]
        if self._sam:
            sharpness, norm = self._ascend_and_look(self._sam, sums, norm)
        self._update_weights(sums, norm)
        self._sums.add(torch.cat([sums, sharpness]), self._sampler.batch_size, norm)
        self.batch += 1
        if self.progress.advance(self._sampler.batch_size):
            self._tell()

    def _gradient_of_batch(self) -> tuple[Tensor, Tensor]:
        """Adds the gradients up; returns the terms' sums over the batch, float64 [num_terms], and the norm, []."""
        sums = torch.zeros(len(self._terms), dtype=torch.float64, device=self._ranks.device)
        for piece in range(self._sampler.num_pieces):
            is_last = piece == self._sampler.num_pieces - 1
            with self._team.until_last_piece(self._network, is_last):
                share = self._sampler.share(self.epoch, self.batch, piece)
                losses, terms = self._losses(share, self._schedule.kl_scale(self.step))
                # Gradients are averaged over the processes, whose shares may differ by an image: so each adds up its
                # images and divides by its part of the whole batch. The result is the mean over the batch, however
                # it was shared and cut.
                loss = losses.sum() * (self._ranks.world_size / self._sampler.batch_size)
                (loss * self._scaler.scale).backward()
            sums += _sums(terms)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return self._team.sum(sums), torch.nn.utils.get_total_norm(gradients) / self._scaler.scale

    def _ascend_and_look(self, sam: Sam, sums: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Puts the gradient at W + ε̂ in the place of the one at W, of which sums and norm are given.

        Returns:
            L(W + ε̂) − L(W), summed over the batch, [1], and the new norm: NaN if either pass was not finite.
        """
        with sam.ascended():
            sums_above, norm_above = self._gradient_of_batch()
        loss = self._terms.index("loss")
        sharpness = (sums_above - sums)[loss : loss + 1]
        return sharpness, torch.where(norm.isfinite() & sharpness[0].isfinite(), norm_above, torch.nan)

    def _losses(self, share: Share, kl_scale: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each image of a share, [B], and its terms."""
        with autocast(self._precision, self._ranks.device):
            output = self._network(share.images, share.noise)
        return self._objective(output, share.images, self._recorder.take(), share.attributes, kl_scale=kl_scale)

    def _update_weights(self, sums: Tensor, norm: Tensor) -> None:
        """One step of the optimiser, unless something is not finite.

        The fused optimiser divides the gradient by `grad_scale` and does nothing at all where `found_inf` is 1. Both
        stay on the device, so that no step waits for it.
        """
        overflow = ~torch.isfinite(norm)
        left_out = self._watch.look(self.step, sums, norm, self._scaler.forgives(overflow))

        limit = self._settings.gradient_clip_norm or float("inf")
        divisor = self._scaler.scale * (norm / limit).clamp(min=1)
        vars(self._optimizer).update(grad_scale=divisor, found_inf=left_out.float())
        self._optimizer.param_groups[0]["lr"] = self._schedule.learning_rate(self.step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.update(overflow)

    def _first_pass(self) -> tuple[str, ...]:
        """One pass over two black images, of which nothing stays but the names of the loss terms."""
        size, device = self._data.image_size_px, self._ranks.device
        images = torch.zeros((2, 3, size, size), device=device).to(memory_format=torch.channels_last)
        noise = torch.zeros((2, *self.model.noise_shape), device=device)
        attributes = torch.zeros((2, len(self._objective.columns)), device=device)
        with first_pass_undone(self.model):
            losses, terms = self._losses(Share(images, noise, attributes), kl_scale=1.0)
            losses.sum().backward()
        return tuple(terms)

    # ── The end of an epoch ──────────────────────────────────────────────────────────────────────────────────────

    def finish_epoch(self) -> None:
        """Writes down how the epoch went, validates, and goes on to the next one."""
        self._check_finite()
        rate = self._schedule.learning_rate(self.step - 1)
        num_images = self._sampler.batches_per_epoch * self._sampler.batch_size
        self.epoch, self.batch = self.epoch + 1, 0
        self._write_row("train", self._sums.means() | {"learning_rate": rate, "num_images": num_images})
        self._sums.clear()
        self._validate()

    def _write_row(self, phase: str, facts: dict[str, float]) -> None:
        self._log.append({"epoch": self.epoch, "step": self.step, "phase": phase, "loss": facts["loss"]} | facts)

    def _validate(self) -> None:
        """Measures the loss of the images held out, with the weights that training ends at, and keeps the best."""
        num_images = len(self._data.validation)
        if not num_images:
            return
        means = self._validation_means()
        self._write_row("validation", means | {"num_images": num_images})
        self.epochs_without_improvement += 1
        if self.best is None or means["loss"] < self.best.loss:
            self.best = Best(self.epoch, means["loss"], self._weights())
            self.epochs_without_improvement = 0

    @torch.no_grad()
    def _validation_means(self) -> dict[str, float]:
        """Mean loss terms over the images held out: in eval mode with z = μ, and the full weight of the KL term."""
        sums = torch.zeros(len(self._terms), dtype=torch.float64, device=self._ranks.device)
        self.model.eval()
        for chosen in self._validation_shares():
            with autocast(self._precision, self._ranks.device):
                images = self._data.validation.batch(chosen)
                output = self.model(images)
            attributes = self._data.validation.attributes_of(chosen)
            _, terms = self._objective(output, images, self._recorder.take(), attributes)
            sums += _sums(terms)
        self.model.train()
        means = (self._team.sum(sums) / len(self._data.validation)).tolist()
        if not torch.isfinite(sums).all():
            raise Diverged(f"the validation loss after epoch {self.epoch} is not finite; {self._remedy}")
        return dict(zip(self._terms, means, strict=True))

    def _validation_shares(self) -> list[Tensor]:
        """This process' part of each batch of the images held out: positions, int64 [B].

        A part is empty where a batch has fewer images than there are processes. It is passed through all the same:
        terms of the whole batch are computed by all processes together.
        """
        positions = torch.arange(len(self._data.validation), device=self._ranks.device)
        batches = positions.split(self._sampler.batch_size)
        return [batch[share_of(len(batch), self._ranks.rank, self._ranks.world_size)] for batch in batches]

    def _weights(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}

    # ── Stop, save, continue ─────────────────────────────────────────────────────────────────────────────────────

    def _save_or_stop(self) -> None:
        """The place between two steps where the processes may agree to save, to stop, or to give up."""
        due = self._ranks.is_first and time.monotonic() - self._saved_s >= self._interval_s
        stop, save = self._team.any(self._stop(), due)
        if stop or save:
            self._save()
        elif self.step % STEPS_BETWEEN_CHECKS == 0:
            self._check_finite()
        if stop:
            raise Interrupted(
                f"{self._spec.run.label}: stopped after {self.step} of {self._place.steps} steps; its state is saved, "
                "and the same command continues it"
            )

    def _check_finite(self) -> None:
        self._watch.check(self._sampler.batches_per_epoch, self._remedy)

    @property
    def _remedy(self) -> str:
        found = {"learning_rate": self._settings.learning_rate, "gradient_clip_norm": self._settings.gradient_clip_norm}
        advice = " or ".join(f"a smaller training.{name} (now {value})" for name, value in found.items())
        return f"try {advice}" + (", or training.precision: fp32" if self._precision != "fp32" else "")

    def _save(self) -> None:
        self._check_finite()
        state = self._state()
        if self._ranks.is_first:
            self._checkpoints.save(self.step, state)
            self._tell()
        self._team.wait()
        self._saved_s = time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "sums": self._sums.state_dict(),
            "best": self.best and vars(self.best),
            "epochs_without_improvement": self.epochs_without_improvement,
            "log": self._log.text,
            "random_states": self._team.gathered(random_states()),
        }

    def resume(self) -> None:
        """Takes the newest checkpoint up, if there is one."""
        path = self._team.from_first(self._checkpoints.newest() if self._ranks.is_first else None)
        state = self._checkpoints.load(path) if path else None
        self._log.restart_from(state["log"] if state else "")
        if state:
            self._restore(state)
        self.progress.begin(self._place)

    def _restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._sums.load_state_dict(state["sums"])
        self.best = Best(**state["best"]) if state["best"] else None
        self.epochs_without_improvement = state["epochs_without_improvement"]
        if len(state["random_states"]) == self._ranks.world_size:
            restore_random_states(state["random_states"][self._ranks.rank])
        if self._ranks.is_first and not self._quiet:
            print(f"fluence: {self._spec.run.label} continues after step {self.step}", file=sys.stderr)

    # ── What others see ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _place(self) -> Place:
        epochs = self._settings.epochs
        return Place(self.epoch, epochs, self.step, epochs * self._sampler.batches_per_epoch)

    def _tell(self) -> None:
        self.progress.tell(self._place, self._sums.means().get("loss"))

    def finish(self) -> TrainSummary:
        """Writes the weights that later stages use: of the best epoch by validation, else of the last one."""
        self._save()
        last = (self.epoch, None, self._weights())
        epoch, loss, weights = (self.best.epoch, self.best.loss, self.best.weights) if self.best else last
        if self._ranks.is_first:
            facts = {"key": self._spec.key, "epoch": epoch, "validation_loss": loss}
            write_weights(self._spec.layout.weights(self._spec.run.id), weights, facts)
        self._team.wait()
        return self._summary(epoch, loss)

    def _summary(self, chosen_epoch: int, validation_loss: float | None) -> TrainSummary:
        device = self._ranks.device
        return TrainSummary(
            epochs=self.epoch,
            steps=self.step,
            chosen_epoch=chosen_epoch,
            validation_loss=validation_loss,
            num_training_images=len(self._data.training),
            num_validation_images=len(self._data.validation),
            num_parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            precision=self._precision,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            num_processes=self._ranks.world_size,
        )


def _sums(terms: dict[str, Tensor]) -> Tensor:
    """The sum of each term over the images, float64 [num_terms]."""
    return torch.stack(list(terms.values())).sum(dim=1, dtype=torch.float64)
