"""Cancel and retry: what was meant, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluence.errors import StudyError
from fluence.layout import Layout
from fluence.store.outcome import Outcome, read_outcome, write_outcome
from fluence.study import Study
from jobs.journal import Journal
from jobs.pipeline import Task, tasks_of
from jobs.plan import plan
from jobs.slurm import NoAnswer, Slurm
from jobs.undo import cancel, retry
from tests.jobs.slurm_double import SlurmDouble, queue_line

STUDY = Study.model_validate(
    {
        "name": "tiny",
        "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
        "models": {"small": {"kind": "vae"}},
        "grid": {"seeds": [0, 1, 2]},
    }
)
TASKS = tasks_of(STUDY, {"faces": "x"})
OF = {stage: [task for task in TASKS if task.stage == stage] for stage in ("train", "extract")}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    for job, (stage, tasks) in enumerate(OF.items(), start=7):
        batch = Journal(layout).intend("generic", stage, "gpu", [t.name for t in tasks], [t.key for t in tasks])
        Journal(layout).submitted(batch.token, str(job))
    return layout


def queue() -> SlurmDouble:
    lines = [queue_line(f"{job}_{index}", "PENDING") for job in (7, 8) for index in range(3) if (job, index) != (7, 0)]
    return SlurmDouble([queue_line("7_0", "COMPLETED", start=9), *lines, queue_line("9", "RUNNING", start=9)])


def test_everything_of_the_study_and_nothing_else_is_cancelled(layout: Layout) -> None:
    double = queue()
    assert len(cancel(TASKS, layout, slurm=Slurm(None, double))) == 5
    assert double.calls[-1] == ["scancel", "7_[1-2]", "8_[0-2]"]
    train, extract = Journal(layout).read()
    assert train.cancelled == {task.name for task in OF["train"][1:]}
    assert extract.cancelled == {task.name for task in OF["extract"]}


@pytest.mark.parametrize("name", ["small-all-s1", OF["train"][1].name])
def test_one_run_is_cancelled_with_all_its_stages(layout: Layout, name: str) -> None:
    double = queue()
    assert cancel(TASKS, layout, [name], Slurm(None, double)) == ["7_1", "8_1"]
    assert double.calls[-1] == ["scancel", "7_[1]", "8_[1]"]


def test_jobs_of_an_earlier_version_are_cancelled_with_the_rest(layout: Layout) -> None:
    double, edited = queue(), tasks_of(STUDY, {"faces": "others"})
    assert len(cancel(edited, layout, slurm=Slurm(None, double))) == 5


def test_jobs_that_the_journal_has_lost_are_cancelled_with_the_rest(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    double = SlurmDouble([queue_line("7_0", "RUNNING", start=9, comment=f"fl-0 train {Journal(layout).mark}")])
    assert cancel(TASKS, layout, slurm=Slurm(None, double)) == ["7_0"]


def test_nothing_to_cancel(tmp_path: Path) -> None:
    double = SlurmDouble()
    assert cancel(TASKS, Layout(tmp_path), slurm=Slurm(None, double)) == []
    assert double.programs() == ["squeue"]


def test_where_nothing_was_submitted_slurm_need_not_answer(tmp_path: Path, layout: Layout) -> None:
    def absent(command: list[str], _: float) -> str:
        raise NoAnswer(f"{command[0]}: command not found")

    assert cancel(TASKS, Layout(tmp_path / "never"), slurm=Slurm(None, absent)) == []
    with pytest.raises(NoAnswer, match="nothing is cancelled"):
        cancel(TASKS, layout, slurm=Slurm(None, absent))


def test_an_unknown_run_is_an_error_before_anything_happens(layout: Layout) -> None:
    double = queue()
    with pytest.raises(StudyError, match="did you mean small-all-s1"):
        cancel(TASKS, layout, ["small-al-s1"], Slurm(None, double))
    with pytest.raises(StudyError, match="no run of that name"):
        cancel(TASKS, layout, ["; rm -rf ~"], Slurm(None, double))
    assert double.calls == []


def test_without_an_answer_nothing_is_claimed_to_be_cancelled(layout: Layout) -> None:
    with pytest.raises(NoAnswer, match="nothing is cancelled: the queue cannot be seen"):
        cancel(TASKS, layout, slurm=Slurm(None, SlurmDouble(is_reachable=False)))
    assert all(not batch.cancelled for batch in Journal(layout).read())


def fail(layout: Layout, task: Task, status: str = "failed") -> None:
    write_outcome(layout.outcome(task.stage, task.name), Outcome(status, task.key, "no space left"))


def test_failures_are_forgotten_and_the_rest_stays(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    first, second, third = OF["train"]
    fail(layout, first)
    fail(layout, second, "diverged")
    fail(layout, third)
    starts = layout.starts("train", first.name)
    starts.write_text("{}")
    assert retry(plan(TASKS, layout), layout) == [first, third]
    assert not starts.exists()
    assert read_outcome(layout.outcome("train", second.name)) is not None
    assert {entry.task for entry in plan(TASKS, layout) if entry.state == "failed"} == set()


def test_a_run_that_is_named_may_have_diverged(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for task in OF["train"]:
        fail(layout, task, "diverged")
    assert retry(plan(TASKS, layout), layout, ["small-all-s1"]) == [OF["train"][1]]
    with pytest.raises(StudyError, match="no run of that name"):
        retry(plan(TASKS, layout), layout, ["small-all-s7"])
