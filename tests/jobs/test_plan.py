"""The plan: what runs, what does not, and why, from a study and the outcomes on disk alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fluence.layout import Layout
from fluence.store.outcome import Outcome, Status, write_outcome, write_progress
from fluence.study import Study
from jobs.pipeline import Task, output_of, tasks_of
from jobs.plan import Planned, plan, run_rows

FINGERPRINTS = {"faces": "as it is on disk"}


def make_study(**changes: Any) -> Study:
    content: dict[str, Any] = {
        "name": "tiny",
        "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
        "models": {"small": {"kind": "vae"}, "wide": {"kind": "vae", "width": 2.0}},
        "grid": {"groups": ["all", "a-female"], "seeds": [0, 1]},
    }
    return Study.model_validate({**content, **changes})


def finish(task: Task, layout: Layout, status: Status = "done", reason: str = "") -> None:
    output = output_of(task, layout)
    output.parent.mkdir(parents=True, exist_ok=True)
    if status == "done":
        output.mkdir(exist_ok=True) if task.stage == "analyse" else output.touch()
    write_outcome(layout.outcome(task.stage, task.name), Outcome(status, task.key, reason, task.section))


def finish_all(study: Study, layout: Layout) -> None:
    for position in range(len(tasks_of(study, FINGERPRINTS))):
        finish(plan(tasks_of(study, FINGERPRINTS), layout)[position].task, layout)


def states(study: Study, layout: Layout) -> dict[str, Planned]:
    return {entry.task.label: entry for entry in plan(tasks_of(study, FINGERPRINTS), layout)}


def test_the_grid_is_every_model_group_and_seed_with_three_stages_each() -> None:
    tasks = tasks_of(make_study(), FINGERPRINTS)
    assert sum(task.stage == "train" for task in tasks) == 2 * 2 * 2
    assert len({task.id for task in tasks}) == len(tasks) == 1 + 3 * 8 + 2
    position = {task.id: number for number, task in enumerate(tasks)}
    assert all(position[need] < position[task.id] for task in tasks for need in task.needs)


def test_how_activations_are_stored_makes_no_other_result() -> None:
    """Extraction compressed or not, measuring and analysis are the same; the tap is another matter."""

    def keys(**record: str) -> dict[str, str]:
        tasks = tasks_of(make_study(record=record), FINGERPRINTS)
        return {task.label: task.key for task in tasks if task.stage in ("extract", "measure", "analyse")}

    assert keys(compression="zstd") == keys()
    assert not set(keys(tap="pre").values()) & set(keys().values())


def test_at_first_only_packing_can_run_and_nothing_ever_ran(tmp_path: Path) -> None:
    found = states(make_study(), Layout(tmp_path))
    assert [label for label, entry in found.items() if entry.state == "ready"] == ["pack faces"]
    assert found["pack faces"].reason == "never ran"
    assert found["train small-all-s0"].reason == "waits for pack faces; never ran"


def test_a_finished_study_has_nothing_to_do_and_every_task_says_why(tmp_path: Path) -> None:
    finish_all(make_study(), Layout(tmp_path))
    found = states(make_study(), Layout(tmp_path))
    assert {entry.state for entry in found.values()} == {"done"}
    assert {entry.reason for entry in found.values()} == {"nothing changed since it was done"}


def test_changing_one_models_setting_runs_only_its_tasks_and_says_which_setting(tmp_path: Path) -> None:
    finish_all(make_study(), Layout(tmp_path))
    changed = make_study(models={"small": {"kind": "vae"}, "wide": {"kind": "vae", "width": 3.0}})
    to_do = {label: entry for label, entry in states(changed, Layout(tmp_path)).items() if entry.to_do}
    assert set(to_do) == {
        f"{stage} wide-{group}-s{seed}"
        for stage in ("train", "extract", "measure")
        for group in ("all", "a-female")
        for seed in (0, 1)
    } | {"analyse study", "report study"}
    assert to_do["train wide-all-s0"].reason == "changed: model.width 2.0 → 3.0"
    assert to_do["extract wide-all-s0"].reason.endswith("what it needs has changed")


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"record": {"tap": "pre"}}, {"extract", "measure", "analyse", "report"}),
        ({"analysis": {"epsilon": {"report": 0.25}}}, {"measure", "analyse", "report"}),
        ({"analysis": {"sparsity": {"per": ["layer", "unit"]}}}, {"measure", "analyse", "report"}),
        ({"analysis": {"metrics": ["gini", "hoyer"]}}, {"analyse", "report"}),
        ({"analysis": {"permutations": 199}}, {"analyse", "report"}),
        ({"analysis": {"typicality": {}}}, {"measure", "analyse", "report"}),
        ({"description": "said better"}, {"report"}),
        ({"training": {"epochs": 3}}, {"train", "extract", "measure", "analyse", "report"}),
    ],
)
def test_a_change_reruns_the_stages_that_see_it_and_no_other(
    tmp_path: Path, changes: dict[str, Any], stages: set[str]
) -> None:
    finish_all(make_study(), Layout(tmp_path))
    found = states(make_study(**changes), Layout(tmp_path))
    assert {entry.task.stage for entry in found.values() if entry.to_do} == stages


def test_what_typicality_comes_from_reruns_the_measuring() -> None:
    """Its folds are drawn from the seed and the groups; without it, neither is seen."""

    def measuring(typicality: dict[str, Any] | None, seed: int = 0, group_by: tuple[str, ...] = ("sex",)) -> Task:
        data = {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"}
        made = make_study(
            data=data | {"group_by": group_by}, analysis={"typicality": typicality, "seed": seed, "embeddings": []},
            grid={"models": ["small"]},
        )  # fmt: skip
        return next(task for task in tasks_of(made, FINGERPRINTS) if task.stage == "measure")

    assert measuring(None).section.keys() == {"epsilon", "sparsity"}
    assert measuring(None).key == measuring(None, seed=1).key
    asked = {"components": 5}
    different = [measuring(asked), measuring(asked, seed=1), measuring(asked | {"folds": 5}), measuring(None)]
    assert len({task.key for task in different}) == 4
    assert measuring(asked).section["group_by"] != measuring(asked, group_by=("ethnicity",)).section["group_by"]
    assert measuring(asked).needs[0] == "pack/faces"


def test_other_maps_of_the_latents_measure_only_those_runs_again_that_they_are_made_of() -> None:
    def keys(*methods: str) -> dict[str, str]:
        made = make_study(analysis={"embeddings": methods}, grid={"models": ["small"], "seeds": [1, 0]})
        return {
            task.run.label: task.key for task in tasks_of(made, FINGERPRINTS) if task.run and task.stage == "measure"
        }

    none, some, more = keys(), keys("pca"), keys("pca", "tsne")
    assert {label for label in none if none[label] != some[label]} == {"small-all-s0"}
    assert {label for label in none if some[label] != more[label]} == {"small-all-s0"}
    assert len(none) > 1


def test_where_data_lie_changes_nothing_but_what_they_hold_does(tmp_path: Path) -> None:
    csv = {"datasets": {"faces": {"kind": "csv", "root": "/a"}}, "training": "faces", "rated": "faces"}
    moved = {**csv, "datasets": {"faces": {"kind": "csv", "root": "/b"}}}
    keys = [
        {task.stage: task.key for task in tasks_of(make_study(data=data), {"faces": content})}
        for data, content in ((csv, "1"), (moved, "1"), (csv, "2"))
    ]
    report = "report"  # sees the whole study, the root included
    assert {s: k for s, k in keys[0].items() if s != report} == {s: k for s, k in keys[1].items() if s != report}
    assert not set(keys[0].values()) & set(keys[2].values())


def test_an_ended_run_is_a_row_and_stops_only_what_needs_it(tmp_path: Path) -> None:
    layout, study = Layout(tmp_path), make_study()
    ends: dict[str, tuple[Status, str]] = {
        "train small-all-s0": ("diverged", "loss became NaN in epoch 2"),
        "train small-a-female-s0": ("skipped", "2 images, fewer than 20"),
        "extract small-all-s1": ("failed", "the disk is full"),
    }
    for position in range(len(tasks_of(study, FINGERPRINTS))):
        entry = plan(tasks_of(study, FINGERPRINTS), layout)[position]
        if entry.to_do:
            finish(entry.task, layout, *ends.get(entry.task.label, ("done", "")))
    found = states(study, layout)
    assert found["extract small-all-s0"].state == "blocked"
    assert found["measure small-all-s0"].reason == "train small-all-s0 diverged: loss became NaN in epoch 2"
    assert found["measure small-a-female-s0"].state == "skipped"
    assert found["analyse study"].state == found["report study"].state == "done"
    rows = {row.run.label: (row.status, row.reason) for row in run_rows(tuple(found.values()))}
    assert rows["small-all-s0"] == ("diverged", "train: loss became NaN in epoch 2")
    assert rows["small-a-female-s0"] == ("skipped", "train: 2 images, fewer than 20")
    assert rows["small-all-s1"] == ("failed", "extract: the disk is full")
    assert rows["wide-all-s0"] == ("done", "")


def test_analyse_runs_again_when_another_run_comes_through(tmp_path: Path) -> None:
    layout, study = Layout(tmp_path), make_study()
    finish_all(study, layout)
    measured = states(study, layout)["measure small-all-s0"].task
    finish(measured, layout, "failed", "the node died")
    found = states(study, layout)
    assert found["analyse study"].to_do
    assert found["report study"].to_do


def test_failed_tasks_run_again_only_on_request_and_say_what_happened(tmp_path: Path) -> None:
    layout, tasks = Layout(tmp_path), tasks_of(make_study(), FINGERPRINTS)
    finish(tasks[0], layout, "failed", "the disk is full")
    assert plan(tasks, layout)[0].state == "failed"
    again = plan(tasks, layout, retry=True)[0]
    assert (again.state, again.reason) == ("ready", "failed before: the disk is full")


def test_interrupted_and_lost_results_are_named(tmp_path: Path) -> None:
    layout, study = Layout(tmp_path), make_study()
    finish_all(study, layout)
    tasks = {task.label: task for task in tasks_of(study, FINGERPRINTS)}
    output_of(tasks["measure wide-all-s1"], layout).unlink()
    train = tasks["train small-all-s0"]
    layout.outcome("train", train.name).unlink()
    write_progress(layout.progress("train", train.name), train.key, 0.3, "epoch 3 of 10")
    found = states(study, layout)
    assert found["measure wide-all-s1"].reason == "its result is gone"
    assert found["train small-all-s0"].reason == "was interrupted at epoch 3 of 10"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 99}', b'{"format": 1, "status": "done"}', b"\xff"])
def test_a_damaged_outcome_counts_as_none(tmp_path: Path, damage: bytes) -> None:
    layout, study = Layout(tmp_path), make_study()
    finish_all(study, layout)
    layout.outcome("pack", "faces").write_bytes(damage)
    assert states(study, layout)["pack faces"].state == "ready"


def test_the_plan_writes_nothing(tmp_path: Path) -> None:
    plan(tasks_of(make_study(), FINGERPRINTS), Layout(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_listing_folders_finds_what_looking_for_each_file_finds(tmp_path: Path) -> None:
    study, layout = make_study(), Layout(tmp_path)

    def both() -> tuple[Planned, ...]:
        tasks = tasks_of(study, FINGERPRINTS)
        looked, listed = plan(tasks, layout), plan(tasks, layout, trust_listing=True)
        assert listed == looked
        return listed

    assert both()[0].state == "ready"
    finish_all(study, layout)
    train, extract, _, *others = (task for task in tasks_of(study, FINGERPRINTS) if task.run)
    output_of(train, layout).unlink()
    output_of(others[-1], layout).unlink()
    layout.outcome("extract", extract.name).unlink()
    write_progress(layout.progress("extract", extract.name), extract.key, 0.5, "image 5 of 10")
    assert [entry.state for entry in both()].count("ready") == 2
    older = make_study(grid={"groups": ["all"], "seeds": [0, 1]}, models={"small": {"kind": "vae", "width": 3.0}})
    tasks = tasks_of(older, FINGERPRINTS)
    assert plan(tasks, layout, trust_listing=True) == plan(tasks, layout)
    assert "changed: model.width 1.0 → 3.0" in plan(tasks, layout, trust_listing=True)[1].reason
