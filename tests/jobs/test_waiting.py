"""Trainings that wait for trainings, since they compare features of the trained models: hashes, states and arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fluence.layout import Layout
from fluence.store.outcome import Outcome, Status, write_outcome
from fluence.study import Study
from jobs.batches import Choice, Draft, Drafts, Room, draft
from jobs.journal import Journal
from jobs.pipeline import Task, output_of, tasks_of, trained_models
from jobs.plan import Planned, plan, run_rows
from jobs.slurm import Answer, Slurm
from jobs.successor import submit_successor

FINGERPRINTS = {"faces": "as it is on disk"}
PLAIN = {"kind": "vae"}
NOWHERE, ENOUGH, ALL = Layout(Path("/nowhere")), Room(), Choice()


def compares(*models: str, group: str = "all") -> dict[str, Any]:
    networks = ({"kind": "model", "model": model, "group": group} for model in models)
    return {"kind": "vae", "reconstruction": [{"loss": "dfc", "network": network} for network in networks]}


def study_of(models: dict[str, Any] | None = None, /, **grid: Any) -> Study:
    """By default a chain that stands the wrong way round, and a model that has nothing to do with it."""
    chain = {
        "last": compares("middle"),
        "middle": compares("first"),
        "first": PLAIN,
        "alone": PLAIN,
    }
    content = {
        "name": "tiny",
        "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
        "models": models or chain,
        "grid": {"seeds": [0, 1], **grid},
    }
    return Study.model_validate(content)


def tasks_by_label(study: Study) -> dict[str, Task]:
    return {task.label: task for task in tasks_of(study, FINGERPRINTS)}


def finish(task: Task, layout: Layout, status: Status = "done", reason: str = "") -> None:
    output_of(task, layout).parent.mkdir(parents=True, exist_ok=True)
    output_of(task, layout).touch()
    write_outcome(layout.outcome(task.stage, task.name), Outcome(status, task.key, reason, task.section))


def states(study: Study, layout: Layout) -> dict[str, Planned]:
    return {entry.task.label: entry for entry in plan(tasks_of(study, FINGERPRINTS), layout)}


# ── The study ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("models", "grid", "words"),
    [
        ({"a": compares("a")}, {}, r"models\.a\.reconstruction: 'a' would have to be trained before itself"),
        ({"a": compares("b"), "b": compares("a")}, {}, r"'a' would have to be .* it compares the features of 'b'"),
        (
            {"a": compares("b"), "b": compares("c"), "c": compares("b")},
            {},
            "'b' would have to be trained before itself",
        ),
        ({"a": compares("b")}, {}, "the model 'b' are compared, but it is not in the grid; there are: a"),
        ({"a": compares("b"), "b": PLAIN}, {"models": ["a"]}, "'b' are compared, but it is not in the grid"),
        (
            {"a": compares("b", group="a-female"), "b": PLAIN},
            {},
            r"trained on the group 'a-female' with seed 0, are compared, but the grid has no such run",
        ),
    ],
)
def test_what_cannot_come_is_refused(models: dict[str, Any], grid: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        study_of(models, **grid)


def test_models_that_are_not_in_the_grid_may_say_what_they_like() -> None:
    assert study_of({"a": PLAIN, "b": compares("b")}, models=["a"]).model_names == ("a",)


# ── Tasks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_training_needs_that_of_the_same_seed() -> None:
    study = study_of(groups=["all", "a-female"])
    tasks = tasks_by_label(study)
    for group in ("all", "a-female"):
        for seed in (0, 1):
            needed = [tasks["pack faces"].id, tasks[f"train first-all-s{seed}"].id]
            assert list(tasks[f"train middle-{group}-s{seed}"].needs) == needed
    assert list(tasks["train first-all-s0"].needs) == ["pack/faces"]


def test_every_task_stands_after_those_it_needs() -> None:
    tasks = tasks_of(study_of(), FINGERPRINTS)
    position = {task.id: number for number, task in enumerate(tasks)}
    assert all(position[need] < position[task.id] for task in tasks for need in task.needs)
    assert len(position) == len(tasks)


def test_without_such_a_loss_the_order_is_that_of_the_study() -> None:
    runs = [task.label for task in tasks_of(study_of({"b": PLAIN, "a": PLAIN}), FINGERPRINTS)]
    assert runs[1::3][:4] == ["train b-all-s0", "train b-all-s1", "train a-all-s0", "train a-all-s1"]


def test_what_changes_a_training_changes_those_that_compare_its_features() -> None:
    before, after = study_of(), study_of(study_of().model_dump()["models"] | {"first": {"kind": "vae", "width": 2.0}})
    old, new = tasks_by_label(before), tasks_by_label(after)
    changed = {label for label in old if old[label].key != new[label].key and old[label].stage == "train"}
    assert changed == {f"train {model}-all-s{seed}" for model in ("first", "middle", "last") for seed in (0, 1)}


def test_settings_and_weights_are_those_of_the_run_that_was_waited_for(tmp_path: Path) -> None:
    models = {"two": compares("plain", "other"), "plain": {"kind": "vae", "width": 0.5}, "other": PLAIN}
    study, layout = study_of(models), Layout(tmp_path)
    tasks = tasks_by_label(study)
    found = trained_models(tasks["train two-all-s1"], tuple(tasks.values()), study, layout)
    assert {name: (trained.model.width, trained.weights) for name, trained in found.items()} == {
        "plain-all": (0.5, layout.weights(tasks["train plain-all-s1"].name)),
        "other-all": (1.0, layout.weights(tasks["train other-all-s1"].name)),
    }
    assert trained_models(tasks["train plain-all-s1"], tuple(tasks.values()), study, layout) == {}


# ── States ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_what_will_not_come_blocks_those_that_wait_for_it(tmp_path: Path, status: Status) -> None:
    study, layout = study_of(), Layout(tmp_path)
    tasks = tasks_by_label(study)
    finish(tasks["pack faces"], layout)
    assert states(study, layout)["train middle-all-s0"].reason == "waits for train first-all-s0; never ran"
    finish(tasks["train first-all-s0"], layout, status, "the loss became NaN")
    finish(tasks["train first-all-s1"], layout)
    found = states(study, layout)
    because = f"train first-all-s0 {status}: the loss became NaN"
    for label in ("train middle-all-s0", "extract middle-all-s0", "train last-all-s0", "measure last-all-s0"):
        assert (found[label].state, found[label].reason) == ("blocked", because)
    assert found["train middle-all-s1"].state == "ready"
    assert found["train last-all-s1"].state == "waiting"
    rows = {row.run.label: (row.status, row.reason) for row in run_rows(tuple(found.values()))}
    assert rows["last-all-s0"] == ("blocked", f"train: {because}")


def test_a_group_that_is_too_small_skips_those_that_wait_for_it(tmp_path: Path) -> None:
    study, layout = study_of(), Layout(tmp_path)
    tasks = tasks_by_label(study)
    finish(tasks["pack faces"], layout)
    finish(tasks["train first-all-s0"], layout, "skipped", "2 images")
    assert states(study, layout)["train last-all-s0"].state == "skipped"


# ── Batches ──────────────────────────────────────────────────────────────────────────────────────────────────────


def drafts_of(
    study: Study,
    layout: Layout = NOWHERE,
    room: Room = ENOUGH,
    flying: Sequence[str] = (),
    choice: Choice = ALL,
) -> Drafts:
    tasks = tasks_by_label(study)
    in_flight = {tasks[label].id: (tasks[label].key, "99") for label in flying}
    return draft(plan(tasks_of(study, FINGERPRINTS), layout), in_flight, room, choice)


def told(one: Draft) -> tuple[str, list[str], list[tuple[str, int | str]]]:
    return one.stage, [task.run.label if task.run else task.name for task in one.tasks], list(one.after)


def test_each_wave_is_an_array_of_its_own_that_waits_for_any_end_of_the_one_before() -> None:
    """`aftercorr` across arrays would pair first-0 with alone-0; `afterok` would hold all back for one that failed."""
    waves = (["first-all-s0", "first-all-s1", "alone-all-s0", "alone-all-s1"], ["middle-all-s0", "middle-all-s1"],
             ["last-all-s0", "last-all-s1"])  # fmt: skip
    drafts = list(map(told, drafts_of(study_of()).drafts))
    assert drafts[0] == ("pack", ["faces"], [])
    assert drafts[1:4] == [
        ("train", waves[0], [("afterok", 0)]),
        ("extract", waves[0], [("aftercorr", 1), ("afterok", 0)]),
        ("measure", waves[0], [("aftercorr", 2)]),
    ]
    assert drafts[4:7] == [
        ("train", waves[1], [("afterok", 0), ("afterany", 1)]),
        ("extract", waves[1], [("aftercorr", 4), ("afterok", 0)]),
        ("measure", waves[1], [("aftercorr", 5)]),
    ]
    assert drafts[7] == ("train", waves[2], [("afterok", 0), ("afterany", 4)])
    assert drafts[10] == ("analyse", ["study"], [("afterany", number) for number in range(10)])


def test_one_run_that_waits_for_one_run() -> None:
    """No array, so no pairs: but still any end, and not a good one alone, or the run would never say why it ended."""
    drafts = drafts_of(study_of({"b": compares("a"), "a": PLAIN}, seeds=[0])).drafts
    assert told(drafts[4]) == ("train", ["b-all-s0"], [("afterok", 0), ("afterany", 1)])
    assert told(drafts[5]) == ("extract", ["b-all-s0"], [("afterok", 4), ("afterok", 0)])


def test_arrays_that_were_cut_are_waited_for_where_they_are_needed() -> None:
    study = study_of({"b": compares("a"), "a": PLAIN}, seeds=[0, 1, 2])
    drafts = drafts_of(study, room=Room(longest_array=2)).drafts
    trainings = {number: told(one) for number, one in enumerate(drafts) if one.stage == "train"}
    assert trainings[1][1:] == (["a-all-s0", "a-all-s1"], [("afterok", 0)])
    assert trainings[4][1:] == (["a-all-s2"], [("afterok", 0)])
    assert trainings[7][1:] == (["b-all-s0", "b-all-s1"], [("afterok", 0), ("afterany", 1)])
    assert trainings[10][1:] == (["b-all-s2"], [("afterok", 0), ("afterany", 4)])


def test_what_waits_for_what_there_is_no_room_for_is_left_out_with_it() -> None:
    """Room for packing and two chains: first, and alone; never for middle without first."""
    study = study_of(seeds=[0])
    room = Room(purses={"cpu": "", "gpu": "gpu", "bigmem": ""}, slots={"gpu": 2})
    found = drafts_of(study, room=room)
    assert [told(one)[1] for one in found.drafts if one.stage == "train"] == [["first-all-s0"]]
    late = [task.run.label for task in found.left_out if task.stage == "train" and task.run]
    assert late == ["alone-all-s0", "middle-all-s0", "last-all-s0"]
    nothing = drafts_of(study, room=Room(purses={"gpu": "gpu"}, slots={"gpu": 0}))
    assert {task.stage for one in nothing.drafts for task in one.tasks} == {"pack"}


def test_a_training_in_flight_is_waited_for(tmp_path: Path) -> None:
    study = study_of({"b": compares("a"), "a": PLAIN}, seeds=[0])
    finish(tasks_by_label(study)["pack faces"], Layout(tmp_path))
    flying = [f"{stage} a-all-s0" for stage in ("train", "extract", "measure")]
    drafts = drafts_of(study, Layout(tmp_path), flying=flying).drafts
    assert told(drafts[0]) == ("train", ["b-all-s0"], [("afterany", "99")])


def test_what_is_trained_is_not_waited_for(tmp_path: Path) -> None:
    """Its extraction is still to come, but nobody waits for that."""
    study = study_of({"b": compares("a"), "a": PLAIN}, seeds=[0])
    for label in ("pack faces", "train a-all-s0"):
        finish(tasks_by_label(study)[label], Layout(tmp_path))
    drafts = [told(one) for one in drafts_of(study, Layout(tmp_path)).drafts]
    assert ("train", ["b-all-s0"], []) in drafts


def test_a_run_chosen_without_the_one_it_waits_for_is_in_vain() -> None:
    found = drafts_of(study_of(), choice=Choice(runs=["middle-all-s0"]))
    assert [one.stage for one in found.drafts] == ["pack"]
    assert found.in_vain[0].label == "train middle-all-s0"


# ── Where nothing is requeued ────────────────────────────────────────────────────────────────────────────────────


WAITS = {"400": "afterany:40_*(unfulfilled)", "41": "afterany:400_*(unfulfilled)", "42": "afterok:4(unfulfilled)"}


class Commands:
    """A Slurm that takes one job and says what each of those in the queue waits for."""

    def __init__(self, waits: dict[str, str]) -> None:
        self.waits, self.updates = waits, []

    def __call__(self, arguments: Sequence[str], timeout_s: float) -> Answer:
        if arguments[0] == "sbatch":
            return Answer(0, "77\n")
        if list(arguments[:2]) == ["scontrol", "update"]:
            self.updates.append(list(arguments[2:]))
        return Answer(0, f"JobId={arguments[-1]} Dependency={self.waits.get(arguments[-1], '(null)')} Reason=x\n")


def test_what_waits_for_a_training_also_waits_for_the_job_that_takes_its_place(tmp_path: Path) -> None:
    """And no other training: 4 is not 40, and what waits for packing alone has nothing to do with it."""
    study, layout = study_of(), Layout(tmp_path)
    tasks, journal = tasks_by_label(study), Journal(layout)
    for job, label in (("40", "first"), ("400", "middle"), ("41", "last"), ("42", "alone")):
        chosen = [tasks[f"train {label}-all-s{seed}"] for seed in (0, 1)]
        batch = journal.intend("generic", "train", "gpu", [task.name for task in chosen], [task.key for task in chosen])
        journal.submitted(batch.token, job)
        (layout.submission(batch.token)).mkdir(parents=True, exist_ok=True)
    token = journal.read()[0].token
    (layout.submission(token) / "job.sh").write_text("#SBATCH --array=0-1\n")
    write_pickle(layout, token, tuple(journal.read()[0].tasks))
    commands = Commands(WAITS)
    submit_successor(Slurm(run=commands), layout, token, tasks["train first-all-s0"].name)
    assert commands.updates == [["JobId=400", "Dependency=afterany:40,afterany:77"]]


def write_pickle(layout: Layout, token: str, names: tuple[str, ...]) -> None:
    from submitit.helpers import DelayedSubmission

    from jobs.bodies import Execution
    from jobs.tasks import ClusterTask

    task = ClusterTask(layout.snapshot("0"), "train", names, Execution(), token)
    DelayedSubmission(task).dump(layout.submission(token) / "task.pkl")


# ── The real thing ───────────────────────────────────────────────────────────────────────────────────────────────

TINY = """
name: tiny
data:
  image_size_px: 32
  datasets: {{faces: {{kind: synthetic, num_images: 80, num_ethnicities: 1}}}}
  training: faces
  rated: faces
models:
  student:
    kind: vae
    width: 0.125
    reconstruction: [{{loss: dfc, network: {{kind: model, model: teacher}}, layers: [conv1, conv3], weight: 100}}]
  teacher: {{kind: vae, width: 0.125, norm: batch, training: {{learning_rate: {rate}}}}}
training: {{epochs: 2, batch_size: 16}}
record: {{reference_images: 8, sample_images: 2}}
analysis: {{permutations: 99, bootstrap: 99, ridge: {{folds: 4, repeats: 1}}}}
"""


def run_tiny(folder: Path, rate: float) -> tuple[str, Layout]:
    path = folder / "tiny.yaml"
    path.write_text(TINY.format(rate=rate))
    command = [sys.executable, "-m", "jobs.cli", "run", str(path), "--output", str(folder / "out"), "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert "Traceback" not in done.stderr
    return done.stdout, Layout(folder / "out")


@pytest.mark.slow
def test_a_student_learns_after_its_teacher(tmp_path: Path) -> None:
    said, layout = run_tiny(tmp_path, rate=1e-3)
    lines = [" ".join(line.partition(" in ")[0].split()) for line in said.splitlines()]
    order = [line for line in lines if line.startswith(("start train", "done train"))]
    assert order == [f"{word} train {name}-all-s0" for name in ("teacher", "student") for word in ("start", "done")]
    (log,) = layout.root.glob("runs/student-*/metrics.jsonl")
    assert '"reconstruction/dfc_teacher-all"' in log.read_text()
    assert "conv1 and conv3 of the frozen encoder of “teacher”" in layout.report_page.read_text()
    assert "nothing to do" in run_tiny(tmp_path, rate=1e-3)[0]


@pytest.mark.slow
def test_a_student_of_a_teacher_that_diverged_says_so(tmp_path: Path) -> None:
    said, layout = run_tiny(tmp_path, rate=1e30)
    assert "diverged train teacher-all-s0" in said
    assert "start  train student-all-s0" not in said
    assert not list(layout.root.glob("tasks/train/student-*.outcome.json"))
    assert "train teacher-all-s0 diverged" in layout.report_page.read_text()
