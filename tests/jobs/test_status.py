"""The status table: states in plain words, from files and from one look at the queue."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fluence.errors import StudyError
from fluence.layout import Layout
from fluence.store.outcome import Outcome, write_outcome, write_progress
from fluence.study import Study
from jobs.journal import Batch, Journal
from jobs.pipeline import Task, tasks_of
from jobs.plan import plan
from jobs.slurm import Slurm
from jobs.standing import standings
from jobs.status import Row, is_locked, locked, state_rows
from jobs.statustable import duration, status_table
from tests.jobs.slurm_double import SlurmDouble, account_line, queue_line

STUDY = Study.model_validate(
    {
        "name": "tiny",
        "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
        "models": {"small": {"kind": "vae"}},
        "grid": {"seeds": [0, 1]},
    }
)
TASKS = tasks_of(STUDY, {"faces": "x"})
TRAININGS = [task for task in TASKS if task.stage == "train"]


def table(layout: Layout) -> str:
    return status_table(state_rows(plan(TASKS, layout), layout), STUDY.name, layout.root)


def test_a_training_under_way_shows_percent_epoch_and_loss(tmp_path: Path) -> None:
    layout, train = Layout(tmp_path), TASKS[1]
    write_progress(layout.progress("train", train.name), train.key, 0.37, "epoch 11 of 30", loss=104.62)
    with locked(layout):
        shown = table(layout)
    assert "running 37%" in shown
    assert "epoch 11 of 30, loss 104.6" in shown
    assert "paused 37%" in table(layout)


def test_progress_of_another_key_is_not_this_tasks(tmp_path: Path) -> None:
    layout, train = Layout(tmp_path), TASKS[1]
    write_progress(layout.progress("train", train.name), "another", 0.37, "epoch 11 of 30")
    assert "37%" not in table(layout)
    assert "epoch 11" not in table(layout)


def test_a_diverged_run_says_why_and_the_head_counts_states(tmp_path: Path) -> None:
    layout, train = Layout(tmp_path), TASKS[1]
    write_outcome(layout.outcome("train", train.name), Outcome("diverged", train.key, "loss became NaN\nmore"))
    lines = table(layout).splitlines()
    assert lines[0].startswith(f"tiny in {tmp_path}: ")
    assert "1 diverged" in lines[0]
    assert "2 blocked" in lines[0]
    (line,) = [line for line in lines if line.startswith("  small-all-s0")]
    assert line.split()[:4] == ["small-all-s0", "diverged", "blocked", "blocked"]
    assert line.endswith("loss became NaN")


def test_the_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "new")
    assert not is_locked(layout)
    with locked(layout):
        assert is_locked(layout)
        with pytest.raises(StudyError, match="another fluence is at work"), locked(layout):
            pass
    assert not is_locked(layout)


# ── At Slurm ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def submit(layout: Layout, tasks: Sequence[Task], job: str | None = "7") -> Batch:
    journal = Journal(layout)
    names, keys = [task.name for task in tasks], [task.key for task in tasks]
    batch = journal.intend("generic", tasks[0].stage, "gpu", names, keys)
    if job is not None:
        journal.submitted(batch.token, job)
    return batch


def rows_at(layout: Layout, double: SlurmDouble, tasks: tuple[Task, ...] = TASKS) -> dict[str, Row]:
    found = standings(tasks, layout, Slurm(None, double))
    return {f"{row.stage} {row.run or row.task}": row for row in state_rows(plan(tasks, layout), layout, found)}


def text_at(layout: Layout, double: SlurmDouble, tasks: tuple[Task, ...] = TASKS) -> str:
    found = standings(tasks, layout, Slurm(None, double))
    return status_table(state_rows(plan(tasks, layout), layout, found), STUDY.name, layout.root, found)


def test_a_running_and_a_queued_training(tmp_path: Path) -> None:
    layout, now = Layout(tmp_path), int(time.time())
    submit(layout, TRAININGS)
    write_progress(
        layout.progress("train", TRAININGS[0].name), TRAININGS[0].key, 0.25, "epoch 5 of 20", epoch=5, loss=2
    )
    queue = [queue_line("7_0", "RUNNING", node="v100n1", start=now - 600), queue_line("7_1", "PENDING", "Priority")]
    double = SlurmDouble(queue, [account_line("7_0", "RUNNING", start=now - 600, elapsed_s=600)])
    rows = rows_at(layout, double)
    running, queued = rows["train small-all-s0"], rows["train small-all-s1"]
    assert (running.state, running.reason) == ("running 25%", "epoch 5 of 20, loss 2")
    assert (running.epoch, running.loss, running.job, running.node) == (5, 2, "7_0", "v100n1")
    assert running.elapsed_s == pytest.approx(600, abs=5)
    assert running.end_estimate == pytest.approx(now + 1800, abs=20)
    assert (queued.state, queued.reason, queued.kind) == ("queued (Priority)", "others go first", "queued")
    assert double.programs() == ["squeue", "sacct"]
    text = text_at(layout, double)
    assert "1 running" in text.splitlines()[0]
    assert "1 × train queued (Priority), job 7" in text
    assert "0:10:0" in text
    assert "7_0 on v100n1" in text


def test_preempted_and_queued_again_with_its_restarts_and_where_it_stopped(tmp_path: Path) -> None:
    layout, now = Layout(tmp_path), int(time.time())
    submit(layout, TRAININGS[:1])
    write_progress(layout.progress("train", TRAININGS[0].name), TRAININGS[0].key, 0.25, "epoch 5 of 20")
    accounts = [account_line("7", "PREEMPTED", start=now - 900, elapsed_s=300), account_line("7", "PENDING")]
    row = rows_at(layout, SlurmDouble([queue_line("7", "PENDING", "BeginTime", restarts=1)], accounts))[
        "train small-all-s0"
    ]
    assert row.state == "preempted and queued again"
    assert row.reason == "at epoch 5 of 20; starts again in a moment"
    assert (row.restarts, row.elapsed_s, row.job) == (1, 300, "7")


def test_elapsed_adds_up_over_all_starts_and_is_unknown_without_accounting(tmp_path: Path) -> None:
    layout, now = Layout(tmp_path), int(time.time())
    submit(layout, TRAININGS[:1])
    queue = [queue_line("7", "RUNNING", start=now - 100, restarts=1)]
    accounts = [
        account_line("7", "REQUEUED", start=now - 900, elapsed_s=300),
        account_line("7", "RUNNING", start=now - 100, elapsed_s=100),
    ]
    known = rows_at(layout, SlurmDouble(queue, accounts))["train small-all-s0"]
    assert known.elapsed_s == pytest.approx(400, abs=5)
    unknown = rows_at(layout, SlurmDouble(queue, None))["train small-all-s0"]
    assert (unknown.state, unknown.restarts, unknown.elapsed_s) == ("running", 1, None)


@pytest.mark.parametrize("has_accounts", [True, False])
def test_what_someone_cancelled_by_hand_says_what_to_type(tmp_path: Path, has_accounts: bool) -> None:
    layout = Layout(tmp_path)
    submit(layout, TRAININGS)
    accounts = [account_line("7_0", "CANCELLED by 1000", start=1, elapsed_s=5)] if has_accounts else None
    queue = [] if has_accounts else [queue_line("7_0", "CANCELLED", start=1)]
    rows = rows_at(layout, SlurmDouble(queue, accounts))
    assert rows["train small-all-s0"].state == "cancelled by hand"
    assert rows["train small-all-s0"].reason == "type: fluence submit STUDY --site generic"
    vanished = "cancelled by hand" if has_accounts else "no longer queued"
    assert rows["train small-all-s1"].state == vanished


def test_what_was_cancelled_with_fluence_is_told_apart(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    batch = submit(layout, TRAININGS)
    Journal(layout).cancelled(batch.token, [TRAININGS[0].name])
    rows = rows_at(layout, SlurmDouble())
    assert [rows[f"train small-all-s{seed}"].state for seed in (0, 1)] == ["cancelled", "cancelled by hand"]


@pytest.mark.parametrize(
    ("state", "exit_", "words", "why"),
    [
        ("FAILED", "1:0", "failed", "exit code 1; "),
        ("OUT_OF_MEMORY", "0:125", "out of memory", ""),
        ("TIMEOUT", "0:0", "time limit", ""),
        ("NODE_FAIL", "0:0", "node lost", ""),
        ("COMPLETED", "0:0", "ended without a result", ""),
    ],
)
def test_an_end_without_an_outcome(tmp_path: Path, state: str, exit_: str, words: str, why: str) -> None:
    layout = Layout(tmp_path)
    submit(layout, TRAININGS[:1])
    double = SlurmDouble([], [account_line("7", state, start=9, elapsed_s=5, exit_=exit_)])
    row = rows_at(layout, double)["train small-all-s0"]
    assert (row.state, row.reason) == (words, f"{why}type: fluence submit STUDY --site generic")


def test_an_outcome_counts_for_more_than_anything_slurm_says(tmp_path: Path) -> None:
    layout, train = Layout(tmp_path), TRAININGS[0]
    submit(layout, [train])
    write_outcome(layout.outcome("train", train.name), Outcome("failed", train.key, "no space left"))
    double = SlurmDouble([queue_line("7", "RUNNING", start=9)])
    assert rows_at(layout, double)["train small-all-s0"].state == "failed"
    assert "fluence retry STUDY" in text_at(layout, double)


def test_a_batch_without_an_answer_is_found_by_its_token(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    batch = submit(layout, TRAININGS, job=None)
    assert rows_at(layout, SlurmDouble())["train small-all-s0"].state == "not submitted"
    double = SlurmDouble([queue_line("91_1", "RUNNING", start=9, name=f"{batch.token}-train")])
    rows = rows_at(layout, double)
    assert (rows["train small-all-s1"].state, rows["train small-all-s1"].job) == ("running", "91_1")
    old = SlurmDouble([], [account_line("91_0", "FAILED", start=9, elapsed_s=1, name=f"{batch.token}-train")])
    assert rows_at(layout, old)["train small-all-s0"].state == "failed"


def test_after_the_journal_was_lost_jobs_are_found_again(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    batch = submit(layout, TRAININGS)
    layout.journal.unlink()
    double = SlurmDouble([queue_line("7_0", "RUNNING", start=9, name=f"{batch.token}-train")])
    assert rows_at(layout, double)["train small-all-s0"].state == "running"


def test_after_everything_was_lost_jobs_of_the_folder_are_still_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    comment = f"fl-0123456789ab train {Journal(layout).mark}"
    double = SlurmDouble([queue_line("7_0", "RUNNING", start=9, comment=comment, name="fl-0123456789ab-train")])
    assert "jobs of this folder that the journal has lost: 7" in text_at(layout, double)


def test_without_an_answer_of_slurm_nothing_is_claimed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    submit(layout, TRAININGS)
    double = SlurmDouble(is_reachable=False, accounts=None)
    row = rows_at(layout, double)["train small-all-s0"]
    assert row.state == "unknown (Slurm does not answer)"
    assert "Unable to contact slurm controller" in text_at(layout, double)


def test_a_study_that_was_never_submitted_is_silent_about_slurm(tmp_path: Path) -> None:
    assert "Slurm" not in text_at(Layout(tmp_path), SlurmDouble(is_installed=False))


def test_jobs_of_an_earlier_version_keep_it_and_status_says_so(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    submit(layout, TRAININGS)
    edited = tasks_of(STUDY, {"faces": "other images"})
    double = SlurmDouble([queue_line("7_0", "RUNNING", start=9)])
    assert rows_at(layout, double, edited)["train small-all-s0"].state == "waiting"
    assert "the study was edited since: 1 queued or running tasks" in text_at(layout, double, edited)


def test_an_analysis_that_saw_other_runs_waits_for_the_next_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    submit(layout, [task for task in TASKS if task.stage == "analyse"])
    queued, ended = [queue_line("7", "PENDING", "Dependency")], [account_line("7", "COMPLETED", start=9, elapsed_s=5)]
    assert rows_at(layout, SlurmDouble(queued))["analyse study"].state == "queued (Dependency)"
    assert rows_at(layout, SlurmDouble([], ended))["analyse study"].state == "waiting"


def test_of_several_submissions_the_one_that_runs_counts(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    submit(layout, TRAININGS, job="7")
    submit(layout, TRAININGS, job="8")
    double = SlurmDouble([queue_line("7_0", "RUNNING", start=9), queue_line("8_0", "PENDING", "Dependency")])
    rows = rows_at(layout, double)
    assert (rows["train small-all-s0"].job, rows["train small-all-s1"].job) == ("7_0", "8_1")


def test_what_slurm_removed_with_the_task_before_it_waits(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    submit(layout, TRAININGS, job="7")
    submit(layout, [task for task in TASKS if task.stage == "extract"], job="8")
    accounts = [account_line("7_[0-1]", "CANCELLED by 0"), account_line("8_[0-1]", "CANCELLED")]
    rows = rows_at(layout, SlurmDouble([], accounts))
    for seed in (0, 1):
        assert rows[f"extract small-all-s{seed}"].state == "waiting"
        assert "type: fluence submit" in rows[f"extract small-all-s{seed}"].reason


def test_the_log_is_the_tasks_own_or_else_its_jobs(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    batch = submit(layout, TRAININGS)
    double = SlurmDouble([], [account_line("7_0", "FAILED", start=9), account_line("7_1", "FAILED", start=9)])
    layout.job_log(batch.token, "7_0").write_text("module: not found")
    layout.log("train", TRAININGS[1].name).parent.mkdir()
    layout.log("train", TRAININGS[1].name).touch()
    rows = rows_at(layout, double)
    assert rows["train small-all-s0"].log == str(layout.job_log(batch.token, "7_0"))
    assert rows["train small-all-s1"].log == str(layout.log("train", TRAININGS[1].name))


def test_somebody_else_may_look_at_a_study_that_is_not_theirs(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    submit(layout, TRAININGS)
    double = SlurmDouble([queue_line("7_0", "RUNNING", start=9)])
    record = layout.journal.read_text().replace(f'"user": "{os.getuid()}"', '"user": "4711"')
    layout.journal.write_text(record)
    standings(TASKS, layout, Slurm(None, double))
    (users,) = [option for option in double.calls[0] if option.startswith("--user=")]
    assert set(users.removeprefix("--user=").split(",")) == {"4711", str(os.getuid())}


def test_durations_are_hours_minutes_and_seconds() -> None:
    assert [duration(s) for s in (0, 61, 3600 * 100 + 62)] == ["0:00:00", "0:01:01", "100:01:02"]
