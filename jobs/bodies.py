"""What each stage does with one task: from a task and the study's folder to a call into `fluence` or `analysis`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from fluence.layout import Layout
from fluence.store.outcome import write_progress
from fluence.study import PixelsModel, Study
from jobs.pipeline import Task, trained_models
from jobs.plan import plan, run_rows
from jobs.ranks import Share


@dataclass(frozen=True)
class Execution:
    """Settings of one execution that change how fast it goes, never a number that comes out.

    Attributes:
        checkpoint_interval_s: seconds between two checkpoints.
        num_workers: processes that decode images.
        strict: whether an unusable image is an error.
        starts_again: whether the task is started again when one of its processes was lost.
        all_figures: whether the report has every figure of every model also where there are many models.
    """

    checkpoint_interval_s: float = 300.0
    num_workers: int = 1
    strict: bool = False
    starts_again: bool = False
    all_figures: bool = False


@dataclass(frozen=True)
class Context:
    """What a stage's body is given besides its task."""

    study: Study
    layout: Layout
    tasks: tuple[Task, ...]
    execution: Execution
    share: Share
    stop: Callable[[], bool]


@dataclass(frozen=True)
class Result:
    """What a stage's body has to say about its result, in words and in figures."""

    text: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def _pack(task: Task, context: Context) -> Result:
    from fluence.data.pack import pack

    dataset = context.study.data.datasets[task.name]
    summary = pack(
        dataset,
        context.study.data,
        context.layout.packed(task.name),
        strict=context.execution.strict,
        num_workers=context.execution.num_workers,
        attributes={"key": task.key, "dataset": task.name},
        progress=_PackProgress(task, context),
    )
    facts = {"num_images": summary.num_images, "num_problems": summary.num_problems}
    return Result("; ".join(summary.lines), facts)


class _PackProgress:
    """Tells every second or so how many images are packed."""

    def __init__(self, task: Task, context: Context) -> None:
        self._path, self._key, self._told_s = context.layout.progress(task.stage, task.name), task.key, 0.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._told_s >= 1 or done == total:
            self._told_s = time.monotonic()
            write_progress(self._path, self._key, done / max(total, 1), f"image {done} of {total}")


def _train(task: Task, context: Context) -> Result:
    from fluence.training import TrainSpec, hand_on_nothing, train

    assert task.run is not None
    study, layout, run = context.study, context.layout, task.run
    model = study.models[run.model]
    if isinstance(model, PixelsModel):
        return Result("pixels: nothing to train", asdict(hand_on_nothing(run, layout, task.key)))
    spec = TrainSpec(
        model=model,
        training=study.training_of(run.model),
        run=run,
        layout=layout,
        packed=layout.packed(study.data.training),
        group_by=study.data.group_by,
        min_group_size=study.data.min_group_size,
        key=task.key,
        trained=trained_models(task, context.tasks, study, layout),
    )
    summary = train(spec, stop=context.stop, checkpoint_interval_s=context.execution.checkpoint_interval_s, quiet=True)
    return Result(f"epoch {summary.chosen_epoch} of {summary.epochs} kept", asdict(summary))


def _extract(task: Task, context: Context) -> Result:
    from fluence.activations import ExtractSpec, extract

    assert task.run is not None
    study, layout = context.study, context.layout
    spec = ExtractSpec(
        model=study.models[task.run.model],
        record=study.record,
        run=task.run,
        layout=layout,
        rated=layout.packed(study.data.rated),
        training=layout.packed(study.data.training),
        group_by=study.data.group_by,
        validation_fraction=study.training_of(task.run.model).validation_fraction,
        key=task.key,
        trained=trained_models(task, context.tasks, study, layout),
    )
    share = context.share
    extract(spec, context.stop, share.rank, share.world_size, gpu=share.local_rank)
    return Result()


def _measure(task: Task, context: Context) -> Result:
    from analysis.embedding import asked_embeddings
    from analysis.measure import measure
    from analysis.tables import asked_typicality

    assert task.run is not None
    study, layout, settings = context.study, context.layout, context.study.analysis
    asked = asked_typicality(study, layout)
    measure(
        task.run,
        layout,
        settings.epsilon,
        settings.sparsity,
        key=task.key,
        typicality=asked,
        embeddings=asked_embeddings(study, task.run),
        stop=context.stop,
        rank=context.share.rank,
        world_size=context.share.world_size,
    )
    return Result()


def _analyse(_: Task, context: Context) -> Result:
    from analysis.analyse import analyse

    analyse(context.study, context.layout, run_rows(plan(context.tasks, context.layout)))
    return Result()


def _report(_: Task, context: Context) -> Result:
    from analysis.report import write_report

    rows = run_rows(plan(context.tasks, context.layout))
    write_report(context.study, context.layout, rows, all_figures=context.execution.all_figures)
    return Result()


BODIES: dict[str, Callable[[Task, Context], Result]] = {
    "pack": _pack,
    "train": _train,
    "extract": _extract,
    "measure": _measure,
    "analyse": _analyse,
    "report": _report,
}
