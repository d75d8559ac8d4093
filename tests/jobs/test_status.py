"""The status table: states in plain words, from files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluence.errors import StudyError
from fluence.layout import Layout
from fluence.store.outcome import Outcome, write_outcome, write_progress
from fluence.study import Study
from jobs.pipeline import tasks_of
from jobs.plan import plan
from jobs.status import is_locked, locked, state_rows, status_table

STUDY = Study.model_validate(
    {
        "name": "tiny",
        "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
        "models": {"small": {"kind": "vae"}},
        "grid": {"seeds": [0, 1]},
    }
)
TASKS = tasks_of(STUDY, {"faces": "x"})


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
    assert "37" not in table(layout)


def test_a_diverged_run_says_why_and_the_head_counts_states(tmp_path: Path) -> None:
    layout, train = Layout(tmp_path), TASKS[1]
    write_outcome(layout.outcome("train", train.name), Outcome("diverged", train.key, "loss became NaN\nmore"))
    lines = table(layout).splitlines()
    assert lines[0].startswith(f"tiny in {tmp_path}: ")
    assert "1 diverged" in lines[0]
    assert "2 blocked" in lines[0]
    (line,) = [line for line in lines if "small-all-s0" in line]
    assert line.split()[:4] == ["small-all-s0", "diverged", "blocked", "blocked"]
    assert line.endswith("loss became NaN")


def test_the_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "new")
    assert not is_locked(layout)
    with locked(layout):
        assert is_locked(layout)
        with pytest.raises(StudyError, match="another `fluence run`"), locked(layout):
            pass
    assert not is_locked(layout)
