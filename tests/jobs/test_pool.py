"""The local pool: bounded, in order, with its own GPUs, and no process left behind. Real processes, small scripts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fluence.errors import UnwritableError
from fluence.layout import Layout
from fluence.study import Study
from jobs import pool
from jobs.bodies import Execution
from jobs.plan import Planned
from jobs.pool import Machine, Pool
from jobs.snapshot import Snapshot

STUDY = {
    "name": "tiny",
    "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
    "models": {"small": {"kind": "vae"}},
    "grid": {"seeds": [0, 1, 2]},
}
WORKER = """
import json, os, sys, time
from pathlib import Path
from jobs.pipeline import output_of
from jobs.plan import plan
from jobs.snapshot import Snapshot
from fluence.errors import UnwritableError
from fluence.layout import Layout
from fluence.store.outcome import Outcome, write_outcome
snapshot, stage, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
layout, rank = Layout(snapshot.parents[2]), os.environ["RANK"]
wanted = ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MASTER_PORT")
row = {"stage": stage, "name": name, "pid": os.getpid(), "start": time.time(), **{k: os.environ.get(k) for k in wanted}}
{extra}
time.sleep(0.3)
row["end"] = time.time()
with (layout.root / "trace.jsonl").open("a") as trace:
    trace.write(json.dumps(row) + "\\n")
if rank == "0":
    task = next(p.task for p in plan(Snapshot.load(snapshot).tasks, layout) if p.task.id == f"{stage}/{name}")
    output = output_of(task, layout)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.mkdir() if stage == "analyse" else output.touch()
    write_outcome(layout.outcome(stage, name), Outcome("done", task.key))
"""


def run_pool(
    folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, extra: str = ""
) -> tuple[tuple[Planned, ...], list[dict], list[str]]:
    """The final plan, what each process noted down, and what the pool said."""
    script = WORKER.replace("{extra}", extra)
    monkeypatch.setattr(pool, "task_command", lambda *args: [sys.executable, "-c", script, *map(str, args[:3])])
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    layout, said = Layout(folder), []
    snapshot = Snapshot(Study.model_validate(STUDY), {"faces": "x"})
    planned = Pool(snapshot, layout, machine, Execution(), said.append).run()
    trace = folder / "trace.jsonl"
    rows = [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []
    return planned, rows, said


TOGETHER = """
if stage == "train" and rank == "0" or stage == "extract":
    meeting = layout.root / "meeting" / stage
    meeting.mkdir(parents=True, exist_ok=True)
    (meeting / name).touch()
    until = time.time() + 60
    while len(list(meeting.iterdir())) < expected[stage] and time.time() < until:
        time.sleep(0.05)
    assert time.time() < until, "the other did not come"
"""
"""Tasks of a stage that wait for each other: they only come through if they run at the same time."""


def most_at_once(rows: list[dict]) -> int:
    return max(sum(a["start"] <= b["start"] < a["end"] for a in rows) for b in rows)


def test_tasks_run_in_order_and_never_more_than_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = "expected = {'train': 2, 'extract': 1}" + TOGETHER
    planned, rows, said = run_pool(tmp_path, Machine(2, (), processes=1, places=2), monkeypatch, together)
    assert {entry.state for entry in planned} == {"done"}
    assert len(rows) == len(planned)
    assert most_at_once(rows) == 2
    ends = {(row["stage"], row["name"]): row["end"] for row in rows}
    for row in rows:
        if row["stage"] == "measure":
            assert row["start"] > ends["extract", row["name"]] > ends["train", row["name"]]
    assert rows[-1]["stage"] == "report"
    assert {row["OMP_NUM_THREADS"] for row in rows} == {"1"}
    assert said[0] == "start  pack faces"


def test_a_training_takes_as_many_places_as_it_has_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = "expected = {'train': 1, 'extract': 2}" + TOGETHER
    _, rows, _ = run_pool(tmp_path, Machine(4, (), processes=2, places=2), monkeypatch, together)
    training = [row for row in rows if row["stage"] == "train"]
    assert sorted(row["RANK"] for row in training) == ["0", "0", "0", "1", "1", "1"]
    assert most_at_once(rows) == 2
    assert {row["OMP_NUM_THREADS"] for row in rows} == {"2"}
    ports = [{row["MASTER_PORT"] for row in training if row["name"] == name} for name in {r["name"] for r in training}]
    assert all(len(port) == 1 for port in ports)


def test_each_training_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows, _ = run_pool(tmp_path, Machine(4, ("0", "1"), processes=1, places=2), monkeypatch)
    on_gpu = [row for row in rows if row["stage"] in ("train", "extract")]
    for one in on_gpu:
        others = [row for row in on_gpu if row is not one and row["start"] < one["end"] and one["start"] < row["end"]]
        assert one["CUDA_VISIBLE_DEVICES"] in ("0", "1")
        assert one["CUDA_VISIBLE_DEVICES"] not in {row["CUDA_VISIBLE_DEVICES"] for row in others}
    assert {row["CUDA_VISIBLE_DEVICES"] for row in rows if row["stage"] == "measure"} == {""}


def test_a_rank_that_is_killed_takes_the_others_along_and_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = (
        "if stage == 'train':\n"
        "    import signal\n"
        "    time.sleep(0.2) if rank == '1' else None\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if rank == '1' else time.sleep(60)"
    )
    started = time.monotonic()
    planned, _, said = run_pool(tmp_path, Machine(2, (), processes=2, places=2), monkeypatch, extra)
    assert time.monotonic() - started < 40
    states = {entry.task.stage: entry for entry in planned if entry.task.run and entry.task.run.seed == 0}
    assert states["train"].state == "failed"
    assert "SIGKILL (out of memory?)" in states["train"].reason
    assert states["extract"].state == "blocked"
    assert any(line.startswith("failed train small-all-s0") and ".log" in line for line in said)


def test_ctrl_c_insists_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_PATIENCE_S", 1.0)
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_pool(tmp_path, Machine(2, (), processes=1, places=2), monkeypatch, stubborn)
    assert time.monotonic() - started < 20
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False)
    assert left.stdout == b""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_places_default_to_gpus_or_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(40)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cpu = Machine.detect(None, None)
    assert (cpu.gpus, cpu.processes, cpu.places, cpu.threads) == ((), 1, 8, 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    gpu = Machine.detect(2, None)
    assert (gpu.gpus, gpu.processes, gpu.places) == (("0", "1", "2", "3"), 2, 4)
    assert Machine.detect(2, 1).places == 2


def test_a_full_disk_ends_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that met it could not even write down how it ended; the others are asked to stop, and none starts."""
    extra = (
        "if stage == 'train':\n"
        "    time.sleep(0.5) if row['name'].startswith('small-all-s0') else time.sleep(60)\n"
        "    sys.exit(2)"
    )
    started = time.monotonic()
    with pytest.raises(UnwritableError, match="train small-all-s0 could write no more below"):
        run_pool(tmp_path, Machine(2, (), processes=1, places=2), monkeypatch, extra)
    assert time.monotonic() - started < 40
    assert not list((tmp_path / "train").rglob("*.outcome.json"))


def test_a_task_that_dies_without_a_word_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = "sys.exit(3) if stage == 'train' else None"
    planned, _, said = run_pool(tmp_path, Machine(2, (), processes=1, places=2), monkeypatch, extra)
    training = [entry for entry in planned if entry.task.stage == "train"]
    assert {(entry.state, entry.reason) for entry in training} == {("failed", "ended with exit code 3")}
    assert sum(line.startswith("start  train") for line in said) == 3
