"""The verbs about work at Slurm, through the command line, with squeue, sacct and scancel that are shell scripts."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fluence.layout import Layout
from fluence.store.outcome import Outcome, write_outcome
from fluence.studyfile import load_study
from jobs.cli import main
from jobs.journal import Journal
from jobs.pipeline import Task
from jobs.snapshot import take_snapshot
from tests.jobs.slurm_double import account_line, queue_line

STUDY = """\
name: tiny
data: {datasets: {faces: {kind: synthetic}}, training: faces, rated: faces}
models: {small: {kind: vae}}
grid: {seeds: [0, 1]}
"""


class Cluster:
    """Programs that print what the test says, and write down that they were called, and with what."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        for name in ("squeue", "sacct", "scancel"):
            self.says(name, "")

    def says(self, name: str, *lines: str) -> None:
        (self._folder / f"{name}.out").write_text("".join(f"{line}\n" for line in lines))
        path = self._folder / name
        path.write_text(f"#!/bin/sh\necho {name} \"$@\" >> '{self._folder}/calls'\ncat '{self._folder}/{name}.out'\n")
        path.chmod(0o755)

    def calls(self) -> list[str]:
        path = self._folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("FLUENCE_OUTPUT", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(STUDY)
    return cluster


@pytest.fixture
def trainings(cluster: Cluster) -> list[Task]:
    """Both trainings are submitted as array 7; the first one runs, the second one waits."""
    layout = Layout(Path("results/tiny").absolute())
    tasks = take_snapshot(load_study(Path("tiny.yaml"), {}), layout).tasks
    trainings = [task for task in tasks if task.stage == "train"]
    journal = Journal(layout)
    batch = journal.intend("generic", "train", "gpu", [t.name for t in trainings], [t.key for t in trainings])
    journal.submitted(batch.token, "7")
    start = int(time.time()) - 60
    cluster.says("squeue", queue_line("7_0", "RUNNING", start=start), queue_line("7_1", "PENDING", "Resources"))
    cluster.says("sacct", account_line("7_0", "RUNNING", start=start, elapsed_s=3600, gpus=2))
    return trainings


def test_status_asks_slurm_once_a_minute(
    cluster: Cluster, trainings: list[Task], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "tiny.yaml", "--json"]) == 0
    rows = {(row["stage"], row["run"]): row for row in json.loads(capsys.readouterr().out)}
    assert rows["train", "small-all-s0"]["state"] == "running"
    assert rows["train", "small-all-s1"]["state"] == "queued (Resources)"
    assert rows["train", "small-all-s1"]["job"] == "7_1"
    assert main(["status", "tiny.yaml"]) == 0
    assert "waits for free nodes" in capsys.readouterr().out
    assert [call.split()[0] for call in cluster.calls()] == ["squeue", "sacct"]


def test_watching_ends_with_ctrl_c_and_when_all_is_done(
    trainings: list[Task], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.cli.time", SimpleNamespace(sleep=interrupt))
    assert main(["status", "tiny.yaml", "--watch"]) == 130
    assert "1 running" in capsys.readouterr().out
    monkeypatch.setattr("jobs.cli._show_status", lambda *_: False)
    assert main(["status", "tiny.yaml", "--watch"]) == 0


def test_cancel_and_status_afterwards(
    cluster: Cluster, trainings: list[Task], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cancel", "tiny.yaml", "small-all-s1"]) == 0
    assert capsys.readouterr().out == "cancelled: 1\n"
    assert cluster.calls()[-1] == "scancel 7_[1]"
    cluster.says("squeue", queue_line("7_0", "RUNNING", start=1))
    assert main(["status", "tiny.yaml", "--json"]) == 0
    states = {(row["stage"], row["run"]): row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states["train", "small-all-s1"] == "cancelled"
    assert main(["cancel", "tiny.yaml", "--output", "results/tiny", "small-all-s0"]) == 0
    assert cluster.calls()[-1] == "scancel 7_[0]"
    with pytest.raises(SystemExit):
        main(["status", "tiny.yaml", "small-all-s0"])
    assert "unrecognized arguments: small-all-s0" in capsys.readouterr().err
    assert main(["cancel", "tiny.yaml", "$(touch x); --help"]) == 2
    assert "the study has no run of that name" in capsys.readouterr().err
    assert not Path("x").exists()


def test_retry_says_what_will_run_and_how(trainings: list[Task], capsys: pytest.CaptureFixture[str]) -> None:
    task, layout = trainings[0], Layout(Path("results/tiny").absolute())
    assert main(["retry", "tiny.yaml"]) == 0
    assert capsys.readouterr().out == "nothing has failed\n"
    write_outcome(layout.outcome("train", task.name), Outcome("failed", task.key, "no space left"))
    assert main(["retry", "tiny.yaml"]) == 0
    out = capsys.readouterr().out
    assert "to do    train small-all-s0" in out
    assert "fluence submit tiny.yaml --site SITE" in out


def test_cost(trainings: list[Task], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("jobs.cost._estimates", lambda *_: ({"small": 12.0}, "cpu"))
    assert main(["cost", "tiny.yaml"]) == 0
    out = capsys.readouterr().out
    assert "estimate of training and extraction, all runs, on cpu here: small 12.00 h" in out
    assert main(["cost", "tiny.yaml", "--json"]) == 0
    bill = json.loads(capsys.readouterr().out)
    assert bill["usages"][0]["gpu_hours"] == 2.0


def test_status_of_a_study_that_never_ran_asks_nobody(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "tiny.yaml"]) == 0
    assert "9 waiting" in capsys.readouterr().out
    assert cluster.calls() == []
