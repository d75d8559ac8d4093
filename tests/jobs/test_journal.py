"""The journal: what is written is read again, whatever happened to the file in between."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from fluence.errors import UnwritableError
from fluence.layout import Layout
from jobs.journal import TOKEN, Batch, Journal

TASKS = ("small-all-s0-1a2b3c4d", "small-all-s1-5e6f7a8b")


def intend(journal: Journal, tasks: tuple[str, ...] = TASKS) -> Batch:
    return journal.intend("generic", "train", "gpu", tasks, [f"key of {task}" for task in tasks])


def test_a_batch_is_known_before_and_after_slurm_has_answered(tmp_path: Path) -> None:
    journal = Journal(Layout(tmp_path))
    assert journal.read() == []
    batch = intend(journal)
    assert batch.checkpoint_interval_s == 600
    assert TOKEN.fullmatch(batch.token)
    assert journal.read() == [batch]
    assert batch.job is None
    journal.submitted(batch.token, "4242")
    journal.cancelled(batch.token, TASKS[:1])
    (found,) = journal.read()
    assert (found.job, found.tasks, found.cancelled) == ("4242", TASKS, {TASKS[0]})
    assert found.keys == tuple(f"key of {task}" for task in TASKS)
    assert found.user == str(os.getuid())


def test_one_task_alone_is_no_array(tmp_path: Path) -> None:
    journal = Journal(Layout(tmp_path))
    for tasks in (TASKS, TASKS[:1]):
        journal.submitted(intend(journal, tasks).token, "7")
    array, single = journal.read()
    assert array.elements(1) == ("7_1",)
    assert single.elements(0)[0] == "7"


def test_a_line_that_was_cut_off_takes_no_other_along(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    journal = Journal(layout)
    first = intend(journal)
    journal.submitted(first.token, "1")
    whole = layout.journal.read_bytes()
    layout.journal.write_bytes(whole + b'{"event": "submitted", "tok')
    assert journal.read()[0].job == "1"
    second = intend(journal)
    assert [batch.token for batch in journal.read()] == [first.token, second.token]


@pytest.mark.parametrize(
    "line", ["[]", "7", "{}", '{"event": "submitted", "token": "fl-0"}', '{"event": [], "token": []}']
)
def test_lines_that_mean_nothing_are_passed_over(tmp_path: Path, line: str) -> None:
    layout = Layout(tmp_path)
    batch = intend(Journal(layout))
    with layout.journal.open("a") as file:
        file.write(line + "\n")
    assert Journal(layout).read() == [batch]


def test_batches_are_known_after_the_journal_was_lost(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    batches = [intend(Journal(layout)) for _ in range(3)]
    layout.journal.unlink()
    assert Journal(layout).read() == batches
    Journal(layout).submitted(batches[0].token, "7")
    Journal(layout).cancelled(batches[1].token, TASKS[:1])
    first, second, third = Journal(layout).read()
    assert (first.job, second.cancelled, third) == ("7", {TASKS[0]}, batches[2])


def test_names_of_any_kind_come_back_unchanged(tmp_path: Path) -> None:
    journal = Journal(Layout(tmp_path))
    hostile = ("a\nb", '"; rm -rf ~', "ü\u2028\x85", "..")
    intend(journal, hostile)
    assert journal.read()[0].tasks == hostile


def test_two_who_write_at_once_lose_no_line(tmp_path: Path) -> None:
    journal = Journal(Layout(tmp_path))
    threads = [threading.Thread(target=lambda: [intend(journal) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(journal.read()) == 20
    lines = Layout(tmp_path).journal.read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["intent"] * 20


def test_the_comment_tells_one_folder_from_another(tmp_path: Path) -> None:
    here, there = Journal(Layout(tmp_path / "here")), Journal(Layout(tmp_path / "there"))
    batch = intend(here)
    assert here.comment(batch) == f"{batch.token} train {here.mark}"
    assert here.mark != there.mark
    assert here.mark == Journal(Layout(tmp_path / "there" / ".." / "here")).mark


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_submitted(tmp_path: Path) -> None:
    (tmp_path / "tasks").write_text("a file")
    with pytest.raises(UnwritableError, match="a file stands where a folder is needed"):
        intend(Journal(Layout(tmp_path)))
