"""What one task leaves behind when the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fluence.errors import LostProcess, UnwritableError
from fluence.layout import Layout
from fluence.store.outcome import read_outcome
from fluence.study import Study
from jobs import tasks
from jobs.bodies import Execution
from jobs.snapshot import Snapshot
from jobs.status import locked
from jobs.tasks import EXIT_FAILED, EXIT_WRONG, run_task

STUDY = {
    "name": "tiny",
    "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
    "models": {"small": {"kind": "vae"}},
}


def refusal(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def run_pack(folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Layout]:
    def body(*_: object) -> None:
        raise error

    monkeypatch.setitem(tasks.BODIES, "pack", body)
    layout = Layout(folder)
    snapshot = Snapshot(Study.model_validate(STUDY), {"faces": "x"}).save(layout)
    return run_task(snapshot, "pack", "faces", Execution(), stop=lambda: False), layout


@pytest.mark.parametrize(
    "error", [refusal(errno.ENOSPC), refusal(errno.EDQUOT), UnwritableError("read-only")], ids=repr
)
def test_a_place_that_takes_no_more(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, layout = run_pack(tmp_path, error, monkeypatch)
    assert code == EXIT_WRONG
    outcome = read_outcome(layout.outcome("pack", "faces"))
    assert outcome is not None
    assert outcome.status == "failed"
    assert outcome.reason.endswith(("free some space and start again", "inodes and start again", "read-only"))


def test_not_even_the_outcome_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise UnwritableError("full")

    monkeypatch.setattr(tasks, "write_outcome", write)
    code, layout = run_pack(tmp_path, refusal(errno.ENOSPC), monkeypatch)
    assert code == EXIT_WRONG
    assert not layout.outcome("pack", "faces").exists()


def test_a_process_that_lost_another_one_leaves_its_word_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process met a full disk and says so; the second one only sees that the first has gone."""
    run_pack(tmp_path, refusal(errno.ENOSPC), monkeypatch)
    monkeypatch.setenv("RANK", "1")
    code, layout = run_pack(tmp_path, LostProcess("rank 1: another process of this training is gone"), monkeypatch)
    assert code == EXIT_FAILED
    outcome = read_outcome(layout.outcome("pack", "faces"))
    assert outcome is not None
    assert "the disk is full" in outcome.reason


def test_another_refusal_of_the_system_is_the_tasks_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, layout = run_pack(tmp_path, refusal(errno.EACCES), monkeypatch)
    assert code == EXIT_FAILED
    outcome = read_outcome(layout.outcome("pack", "faces"))
    assert outcome is not None
    assert outcome.reason.startswith("PermissionError")


def test_a_place_where_no_folder_can_be_made() -> None:
    with (
        pytest.raises(UnwritableError, match="no folder can be made there"),
        locked(Layout(Path("/proc/nobody/study"))),
    ):
        pass
