"""Logs: found by the name of a run, shown in the order of the stages, followed into the next stage."""

from __future__ import annotations

import io
import os
import threading
import time
from pathlib import Path

import pytest

from fluence.errors import StudyError
from fluence.layout import Layout
from jobs import logs as logs_module
from jobs.cli import main
from jobs.journal import Journal
from jobs.logs import find_logs, follow, show, studies_in

RUN = "small-asian-female-s0-1a2b3c4d"


def write(layout: Layout, stage: str, task: str, text: str, age_s: float = 0) -> Path:
    path = layout.log(stage, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "results" / "animals")
    write(layout, "extract", RUN, "extracted\n")
    write(layout, "train", RUN, "trained\n", age_s=60)
    write(layout, "train", "small-asian-female-s1-1a2b3c4d", "another\n")
    write(layout, "pack", "faces", "packed\n")
    write(layout, "analyse", "study", "analysed\n")
    return layout


def shown(*studies: Layout, name: str, stage: str | None = None) -> str:
    out = io.BytesIO()
    show(find_logs(studies, name, stage), out)
    return out.getvalue().decode()


@pytest.mark.parametrize("name", ["small-asian-female-s0", RUN])
def test_the_logs_of_a_run_come_in_the_order_of_its_stages(layout: Layout, name: str) -> None:
    text = shown(layout, name=name)
    assert text.index("==> train") < text.index("trained") < text.index("==> extract") < text.index("extracted")
    assert "another" not in text


@pytest.mark.parametrize(
    ("name", "text"), [("faces", "packed\n"), ("analyse", "analysed\n"), (f"train/{RUN}", "trained\n")]
)
def test_one_log_alone_needs_no_heading(layout: Layout, name: str, text: str) -> None:
    assert shown(layout, name=name) == text
    assert shown(layout, name="small-asian-female-s0", stage="train") == "trained\n"


def test_of_several_studies_the_one_written_last_counts(layout: Layout, tmp_path: Path) -> None:
    older = Layout(tmp_path / "results" / "older")
    write(older, "train", RUN, "long ago\n", age_s=1000)
    assert studies_in(tmp_path / "results") == [layout, older]
    assert "long ago" not in shown(older, layout, name=RUN)


@pytest.mark.parametrize("name", ["../../etc/passwd", "*", "", "nobody", "a\nb"])
def test_a_name_that_nothing_has_is_an_error_that_says_which_there_are(layout: Layout, name: str) -> None:
    with pytest.raises(StudyError, match=r"there are: .*small-asian-female-s0"):
        find_logs([layout], name)


def test_nothing_has_run_yet(tmp_path: Path) -> None:
    assert studies_in(tmp_path / "nowhere") == []
    with pytest.raises(StudyError, match="no study has run there"):
        find_logs([], "x")


def test_what_the_job_itself_printed_is_shown_too(layout: Layout) -> None:
    journal = Journal(layout)
    batch = journal.intend("generic", "train", "gpu", [RUN], ["key"])
    journal.submitted(batch.token, "42")
    layout.job_log(batch.token, "42").write_text("module: command not found\n")
    assert "module: command not found" in shown(layout, name=RUN, stage="train")


class Sink(io.BytesIO):
    """Takes what is printed; stops the reader when it holds a word."""

    def __init__(self, last: bytes) -> None:
        super().__init__()
        self._last = last

    def flush(self) -> None:
        if self._last in self.getvalue():
            raise KeyboardInterrupt


def test_following_shows_what_comes_from_the_next_stage_too(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(logs_module, "_POLL_S", 0.01)
    layout.log("extract", RUN).unlink()
    out = Sink(b"last word")

    def work() -> None:
        time.sleep(0.1)
        with layout.log("train", RUN).open("a") as file:
            file.write("epoch 2\n")
        time.sleep(0.1)
        write(layout, "extract", RUN, "last word\n")

    worker = threading.Thread(target=work)
    worker.start()
    with pytest.raises(KeyboardInterrupt):
        follow([layout], RUN, None, out)
    worker.join()
    text = out.getvalue().decode()
    assert text.count("trained") == 1
    assert text.index("trained") < text.index("epoch 2") < text.index("==> extract") < text.index("last word")


def test_a_log_that_begins_anew_is_shown_from_its_beginning(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "_POLL_S", 0.01)
    path, out = write(layout, "train", RUN, "a long first text\n"), Sink(b"second")
    timer = threading.Timer(0.1, path.write_text, ["second\n"])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        follow([layout], RUN, "train", out)
    timer.join()
    assert out.getvalue().decode().endswith("second\n")


def test_the_command_line_finds_the_study_by_itself(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLUENCE_OUTPUT", raising=False)
    assert main(["logs", "faces"]) == 0
    assert main(["logs", "faces", "--output", str(layout.root)]) == 0
    assert capfdbinary.readouterr().out == b"packed\n" * 2
    assert main(["logs", "nobody"]) == 2
    assert b"'nobody': nothing of that name" in capfdbinary.readouterr().err
