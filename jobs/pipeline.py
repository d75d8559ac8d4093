"""The stages, as a tuple you can read: what each one is made from, and which part of the study it may see."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fluence.layout import Layout, Run
from fluence.study import Study

if TYPE_CHECKING:
    from fluence.models.trained import TrainedModel

Section = dict[str, Any]
Cell = tuple[str, str, int]  # model, group and seed


@dataclass(frozen=True)
class Stage:
    """One arrow of the data flow.

    Attributes:
        name: the word for it everywhere.
        each: what there is one task of: a data set, a run, or the study.
        version: raised when the stage computes other numbers from the same settings.
        uses_gpu: whether it runs on a GPU where there is one.
        shared: whether several processes may share one task.
        needs: the stages that a task of this one reads, in words of `each`; a training may also need other trainings.
    """

    name: str
    each: Literal["dataset", "run", "study"]
    version: int
    uses_gpu: bool
    needs: tuple[str, ...]
    shared: bool = False


STAGES = (
    Stage("pack", each="dataset", version=2, uses_gpu=False, needs=()),
    Stage("train", each="run", version=2, uses_gpu=True, needs=("pack",), shared=True),
    Stage("extract", each="run", version=2, uses_gpu=True, needs=("pack", "train"), shared=True),
    Stage("measure", each="run", version=2, uses_gpu=False, needs=("pack", "extract"), shared=True),
    Stage("analyse", each="study", version=1, uses_gpu=False, needs=("pack", "measure")),
    Stage("report", each="study", version=2, uses_gpu=False, needs=("analyse",)),
)
STAGE = {stage.name: stage for stage in STAGES}


@dataclass(frozen=True)
class Task:
    """One task of a stage.

    Attributes:
        stage: name of the stage.
        name: name of the data set, id of the run, or `study`.
        key: hash of everything that determines the result.
        section: the part of the study that the task sees.
        needs: the tasks whose results it reads, by `id`.
        run: the run it belongs to, if any.
    """

    stage: str
    name: str
    key: str
    section: Section
    needs: tuple[str, ...] = ()
    run: Run | None = None

    @property
    def id(self) -> str:
        """For example `train/small-all-s0-1a2b3c4d`."""
        return f"{self.stage}/{self.name}"

    @property
    def label(self) -> str:
        """The id without the hash."""
        return f"{self.stage} {self.run.label if self.run else self.name}"


def output_of(task: Task, layout: Layout) -> Path:
    """The artifact of a task."""
    paths: dict[str, Callable[[str], Path]] = {
        "pack": layout.packed,
        "train": layout.weights,
        "extract": layout.activations,
        "measure": layout.metrics,
        "analyse": lambda _: layout.statistics,
        "report": lambda _: layout.report_page,
    }
    return paths[task.stage](task.name)


def tasks_of(study: Study, fingerprints: Mapping[str, str]) -> tuple[Task, ...]:
    """Every task of a study, each after the tasks it needs.

    Args:
        study: the study.
        fingerprints: for each data set in use, the hash of what lies on disk.
    """
    packs = {name: _pack(study, name, fingerprints[name]) for name in datasets_in_use(study)}
    tasks = list(packs.values())
    trained: dict[Cell, Task] = {}
    place = {model: number for number, model in enumerate(models_in_order(study))}
    for model, group, seed in sorted(study.trainings, key=lambda cell: place[cell[0]]):
        tasks += (run := _run_tasks(study, packs, trained, model, group, seed))
        trained[model, group, seed] = run[0]
    measures = tuple(task for task in tasks if task.stage == "measure")
    analyse = _task("analyse", "study", _analysis_section(study), (packs[study.data.rated], *measures))
    report = _task("report", "study", study.model_dump(mode="json"), (analyse,))
    return (*tasks, analyse, report)


def datasets_in_use(study: Study) -> tuple[str, ...]:
    """The data sets that a study reads, without those it only mentions."""
    return tuple(dict.fromkeys((study.data.training, study.data.rated)))


def models_in_order(study: Study) -> tuple[str, ...]:
    """The models of the grid in the order of the study, but each after those whose features it compares."""
    return tuple(dict.fromkeys(name for model in study.model_names for name in study.models_before(model)))


def _compared(study: Study, model: str, seed: int) -> dict[str, Cell]:
    """The runs whose features the runs of a model and a seed compare: with the same seed, by `ModelFeatures.label`."""
    return {other.label: (other.model, other.group, seed) for other in study.models[model].compared_models}


def trained_models(task: Task, tasks: tuple[Task, ...], study: Study, layout: Layout) -> dict[str, TrainedModel]:
    """Settings and weights of the trained models whose features the loss of a run compares, by `ModelFeatures.label`.

    Args:
        task: the training or extraction of the run.
        tasks: all tasks of the study.
        study: the study.
        layout: its folder.
    """
    from fluence.models.trained import TrainedModel

    assert task.run is not None
    ids = {(run.model, run.group, run.seed): run.id for run in (other.run for other in tasks) if run}
    compared = _compared(study, task.run.model, task.run.seed)
    return {name: TrainedModel(study.models[cell[0]], layout.weights(ids[cell])) for name, cell in compared.items()}


def _run_tasks(
    study: Study, packs: Mapping[str, Task], trained: Mapping[Cell, Task], model: str, group: str, seed: int
) -> list[Task]:
    """Training, extraction and measuring of one run; a training also needs those whose features it compares."""
    trained_on, rated = packs[study.data.training], packs[study.data.rated]
    section = _train_section(study, model, group, seed)
    needs = (trained_on, *(trained[cell] for cell in dict.fromkeys(_compared(study, model, seed).values())))
    key = _key("train", section, needs)
    run = Run(model, group, seed, f"{model}-{group}-s{seed}-{key[:8]}")
    train = _task("train", run.id, section, needs, run)
    record = {"record": study.record.model_dump(mode="json", exclude={"compression"})}
    extract = _task("extract", run.id, record, (train, rated, trained_on), run)
    needed = (rated, trained_on, extract) if study.analysis.typicality else (extract,)
    return [train, extract, _task("measure", run.id, _measure_section(study), needed, run)]


def _pack(study: Study, name: str, fingerprint: str) -> Task:
    return _task("pack", name, {**pack_section(study, name), "fingerprint": fingerprint}, ())


def pack_section(study: Study, dataset: str) -> Section:
    """What of the study determines a packed data set, besides the files on disk. Where they lie does not matter."""
    data = study.data
    return {
        "dataset": data.datasets[dataset].model_dump(mode="json", exclude={"root", "redistribute"}),
        "image_size_px": data.image_size_px,
        "fit": data.fit,
        "group_by": list(data.group_by),
        "score": data.score,
    }


def _train_section(study: Study, model: str, group: str, seed: int) -> Section:
    return {
        "model": study.models[model].model_dump(mode="json", exclude={"training"}),
        "training": study.training_of(model).model_dump(mode="json"),
        "group": group,
        "seed": seed,
        "min_group_size": study.data.min_group_size,
    }


def _measure_section(study: Study) -> Section:
    """ε and sparsity alone, or also typicality, with all that its folds and groups come from."""
    analysis = study.analysis
    section: Section = analysis.model_dump(mode="json", include={"epsilon", "sparsity"})
    if analysis.typicality is None:
        return section
    typicality = analysis.typicality.model_dump(mode="json")
    return section | {"typicality": typicality, "seed": analysis.seed, "group_by": list(study.data.group_by)}


def _analysis_section(study: Study) -> Section:
    data = study.data.model_dump(mode="json", include={"training", "rated", "score", "group_by"})
    return {"data": data, "analysis": study.analysis.model_dump(mode="json")}


def _task(stage: str, name: str, section: Section, needs: tuple[Task, ...], run: Run | None = None) -> Task:
    unique = tuple({task.id: task for task in needs}.values())
    return Task(stage, name, _key(stage, section, unique), section, tuple(task.id for task in unique), run)


def _key(stage: str, section: Section, needs: tuple[Task, ...]) -> str:
    made_from = {"stage": stage, "version": STAGE[stage].version, "section": section, "needs": [t.key for t in needs]}
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
