"""Cost: every start of every job counts, by stage and model, with what had to be done again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluence.layout import Layout
from fluence.store.outcome import write_progress
from fluence.study import Study
from jobs.cost import EARLIER, Bill, Usage, _Job, _usage, cost, cost_table
from jobs.jobstate import Attempt
from jobs.journal import Journal
from jobs.pipeline import tasks_of
from jobs.slurm import Slurm
from tests.jobs.slurm_double import SlurmDouble, account_line

STUDY = Study.model_validate(
    {
        "name": "tiny",
        "data": {
            "datasets": {"faces": {"kind": "synthetic", "num_images": 60}}, "training": "faces", "rated": "faces",
            "image_size_px": 32,
        },
        "models": {"big": {"kind": "vae"}, "small": {"kind": "vae"}},
        "grid": {"seeds": [0, 1]},
    }
)  # fmt: skip
TASKS = tasks_of(STUDY, {"faces": "x"})


def submit(layout: Layout, stage: str, job: str, names: list[str] | None = None) -> list[str]:
    tasks = [task for task in TASKS if task.stage == stage]
    names = names or [task.name for task in tasks]
    batch = Journal(layout).intend("generic", stage, "gpu", names, [task.key for task in tasks][: len(names)])
    Journal(layout).submitted(batch.token, job)
    return names


def bill(layout: Layout, accounts: list[str] | None) -> Bill:
    return cost(STUDY, TASKS, layout, Slurm(None, SlurmDouble([], accounts)))


@pytest.fixture(autouse=True)
def no_estimate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting arithmetic takes seconds; one test does."""
    monkeypatch.setattr("jobs.estimate.measure_speed", lambda: (10.0, "a made-up machine"))
    if "estimate" not in request.node.name:
        monkeypatch.setattr("jobs.cost._estimates", lambda *_: ({}, ""))


def test_hours_of_all_starts_by_stage_and_model(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    submit(layout, "train", "7")  # 0, 1: big; 2, 3: small
    submit(layout, "measure", "8")
    submit(layout, "pack", "9")
    accounts = [
        account_line("7_0", "PREEMPTED", start=1000, elapsed_s=7200, gpus=4, cpus=40),
        account_line("7_0", "TIMEOUT", start=20_000, elapsed_s=3600, gpus=4, cpus=40),
        account_line("7_0", "COMPLETED", start=30_000, elapsed_s=1800, gpus=4, cpus=40),
        account_line("7_2", "COMPLETED", start=1000, elapsed_s=3600, gpus=1, cpus=10),
        account_line("7_3", "PENDING"),
        account_line("8_0", "PREEMPTED", start=1000, elapsed_s=1800, cpus=20),
        account_line("8_0", "RUNNING", start=9000, elapsed_s=1800, cpus=20),
        account_line("9", "PREEMPTED", start=1000, elapsed_s=1800, cpus=20),
        account_line("9", "RUNNING", start=9000, elapsed_s=900, cpus=20),
    ]
    pack, big, small, measure = bill(layout, accounts).usages
    assert (big.stage, big.model, big.jobs, big.starts) == ("train", "big", 1, 3)
    assert (big.gpu_hours, big.cpu_hours) == (4 * 3.5, 40 * 3.5)
    lost_h = (600 + 600) / 3600  # of the preempted one and of the one whose time was over
    assert (big.preemptions, big.lost_gpu_hours) == (1, 4 * lost_h)
    assert big.lost_cpu_hours == pytest.approx(40 * lost_h)
    assert (small.model, small.jobs, small.starts, small.gpu_hours, small.lost_gpu_hours) == ("small", 1, 1, 1.0, 0.0)
    assert (measure.stage, measure.gpu_hours, measure.cpu_hours) == ("measure", 0.0, 20.0)
    assert measure.lost_cpu_hours == 20 * 600 / 3600
    assert (pack.cpu_hours, pack.lost_cpu_hours) == (15.0, 10.0)  # it keeps no checkpoint: all of it


def test_runs_that_the_study_no_longer_has_are_counted_apart(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    submit(layout, "train", "7", ["old-all-s0-00000000"])
    (usage,) = bill(layout, [account_line("7", "COMPLETED", start=1000, elapsed_s=3600, gpus=1)]).usages
    assert (usage.model, usage.gpu_hours) == (EARLIER, 1.0)


def test_what_it_comes_to_if_the_rest_goes_as_fast(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    submit(layout, "train", "7")
    train = next(task for task in TASKS if task.stage == "train")
    write_progress(layout.progress("train", train.name), train.key, 0.5, "epoch 1 of 2")
    (usage,) = bill(layout, [account_line("7_0", "RUNNING", start=1000, elapsed_s=3600, gpus=2)]).usages
    assert usage.projected_gpu_hours == pytest.approx(2.0 / 0.25)


def test_the_estimate_stands_beside_and_covers_every_run(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    submit(layout, "train", "7")
    found = bill(layout, [account_line("7_0", "COMPLETED", start=1000, elapsed_s=3600, gpus=2)])
    assert set(found.estimates) == {"big", "small"}
    assert all(hours > 0 for hours in found.estimates.values())
    text = cost_table(found, "tiny")
    assert "on a made-up machine here: big " in text
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["stage", "train", "sum"]


def test_without_accounting_and_without_jobs_it_is_said_so(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert "nothing was submitted" in cost_table(bill(layout, []), "tiny")
    submit(layout, "train", "7")
    text = cost_table(bill(layout, None), "tiny")
    assert "no accounting: sacct: Slurm accounting storage is disabled" in text


ATTEMPTS = st.builds(
    Attempt,
    state=st.sampled_from(["COMPLETED", "PREEMPTED", "REQUEUED", "TIMEOUT", "NODE_FAIL", "RUNNING"]),
    started=st.floats(0, 1e9),
    elapsed_s=st.integers(0, 100_000).map(float),
    num_cpus=st.integers(1, 100),
    num_gpus=st.integers(0, 8),
    limit_s=st.just(72_000.0),
)


@given(st.lists(st.lists(ATTEMPTS, max_size=4).map(tuple), max_size=5), st.sampled_from(["train", "measure"]))
def test_hours_add_up_and_no_more_is_lost_than_was_used(jobs: list[tuple[Attempt, ...]], stage: str) -> None:
    usage = _usage(stage, "small", [_Job((f"t{len(job)}", "k"), 600.0, job) for job in jobs], 0.0)
    slow = sum(a.elapsed_s * a.num_gpus / 3600 for job in jobs for a in job)
    assert usage.gpu_hours == pytest.approx(slow)
    assert 0 <= usage.lost_gpu_hours <= usage.gpu_hours + 1e-9
    assert 0 <= usage.lost_cpu_hours <= usage.cpu_hours + 1e-9
    assert usage.starts == sum(map(len, jobs))


def start(state: str, started: float = 0.0, elapsed_s: float = 3600.0) -> Attempt:
    return Attempt(state, started, elapsed_s, num_cpus=10, num_gpus=1, limit_s=72_000.0)


@pytest.mark.parametrize(
    ("state", "elapsed_s", "lost_s"),
    [
        ("COMPLETED", 3600.0, 0.0),
        ("PREEMPTED", 3600.0, 600.0),
        ("PREEMPTED", 60.0, 60.0),
        ("REQUEUED", 3600.0, 600.0),
        ("REQUEUED", 71_900.0, 0.0),  # it saved when its time was over
        ("TIMEOUT", 72_000.0, 600.0),
        ("NODE_FAIL", 3600.0, 600.0),
        ("FAILED", 3600.0, 600.0),
        ("OUT_OF_MEMORY", 3600.0, 600.0),
        ("CANCELLED", 3600.0, 600.0),
    ],
)
def test_what_is_lost_by_how_a_start_ended(state: str, elapsed_s: float, lost_s: float) -> None:
    """Only what another start has done again: in the same job, or in a later one for the same task."""
    cut_off, next_one = start(state, 0.0, elapsed_s), start("RUNNING", 100_000.0)
    task, other = ("small-all-s0", "key"), ("small-all-s0", "another key")
    in_one = [_Job(task, 600.0, (cut_off, next_one))]
    in_two = [_Job(task, 900.0, (next_one,)), _Job(task, 600.0, (cut_off,))]
    for jobs in (in_one, in_two):
        usage = _usage("train", "small", jobs, 0.0)
        assert (usage.lost_gpu_hours, usage.lost_cpu_hours) == (lost_s / 3600, 10 * lost_s / 3600)
    unfollowed = [_Job(task, 600.0, (cut_off,)), _Job(other, 600.0, (next_one,))]
    assert _usage("train", "small", unfollowed, 0.0).lost_gpu_hours == 0.0


def test_a_job_that_another_submission_continues(tmp_path: Path) -> None:
    """A node is lost, and another job goes on with the same training."""
    layout = Layout(tmp_path)
    (name, *_) = submit(layout, "train", "7")
    submit(layout, "train", "8", [name])
    accounts = [
        account_line("7_0", "NODE_FAIL", start=1000, elapsed_s=7200, gpus=4, cpus=40),
        account_line("8", "COMPLETED", start=30_000, elapsed_s=1800, gpus=2, cpus=20),
    ]
    found = bill(layout, accounts)
    (usage,) = found.usages
    assert (usage.jobs, usage.starts, usage.preemptions, usage.lost_gpu_hours) == (2, 2, 0, 4 * 600 / 3600)
    assert "lost: since the last checkpoint of starts that were cut off" in cost_table(found, "tiny")


def test_the_sum_is_the_sum() -> None:
    usages = (Usage("train", "a", 1, 2, 3.0, 4.0, 1, 0.5, 0.25), Usage("measure", "a", 1, 1, 0.0, 150.0))
    lines = cost_table(Bill(usages, {}, "", ()), "tiny").splitlines()
    assert lines[4].split() == ["sum", "2", "3", "3.00", "154", "1", "0.50", "0.25"]


def test_what_preemption_cost_depends_on_the_interval_between_checkpoints(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    tasks = [task for task in TASKS if task.stage == "train"]
    names, keys = [task.name for task in tasks], [task.key for task in tasks]
    journal = Journal(layout)
    journal.submitted(journal.intend("generic", "train", "gpu", names, keys, 60.0).token, "7")
    starts = [account_line("7_0", "PREEMPTED", start=1000, elapsed_s=7200, gpus=4, cpus=40)]
    (usage,) = bill(layout, [*starts, account_line("7_0", "COMPLETED", start=9000, elapsed_s=60, gpus=4)]).usages
    assert usage.lost_gpu_hours == 4 * 60 / 3600
