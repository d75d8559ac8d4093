"""What runs inside a job: who each process is, when to start again, when to give up, and with which code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fluence.layout import Layout
from fluence.store.outcome import Outcome, read_outcome, write_outcome, write_progress
from fluence.study import Study
from jobs import again, tasks
from jobs.bodies import Execution
from jobs.code import PACKAGES, code_folder, freeze_code
from jobs.journal import Journal
from jobs.pipeline import Task
from jobs.ranks import first_host, slurm_ranks
from jobs.slurm import Answer, Slurm
from jobs.snapshot import Snapshot
from jobs.starts import MOST_STARTS, is_hopeless
from jobs.tasks import EXIT_FAILED, EXIT_INTERRUPTED, ClusterTask

STUDY = {
    "name": "tiny",
    "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
    "models": {"small": {"kind": "vae"}},
    "grid": {"seeds": [0, 1]},
}


@pytest.fixture
def snapshot() -> Snapshot:
    return Snapshot(Study.model_validate(STUDY), {"faces": "0" * 16})


def task_of(snapshot: Snapshot, stage: str, seed: int = 0) -> Task:
    return [task for task in snapshot.tasks if task.stage == stage][seed]


# ── Ranks ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("v100n1", "v100n1"), ("v100n[1-2]", "v100n1"), ("a,b", "a"), ("r[07-09,12]i3,x", "r07i3"),
        ("jean-zay-ia[801,803]", "jean-zay-ia801"), ("r[1-2]n[03,05]", "r1n03"), ("", ""),
    ],
)  # fmt: skip
def test_the_first_host(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def environment(**others: str) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "42", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4",
        "SLURM_JOB_NODELIST": "localhost", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", **others,
    }  # fmt: skip


def test_ranks_are_slurms() -> None:
    found = slurm_ranks(environment())
    assert {name: found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")} == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost",
    }  # fmt: skip


def test_a_process_that_sees_one_gpu_takes_it() -> None:
    assert slurm_ranks(environment(CUDA_VISIBLE_DEVICES="2"))["LOCAL_RANK"] == "0"
    assert slurm_ranks(environment(CUDA_VISIBLE_DEVICES="2,3"))["LOCAL_RANK"] == "1"


def test_where_a_host_has_no_address_the_launching_node_counts() -> None:
    assert slurm_ranks(environment(SLURM_JOB_NODELIST="nowhere.invalid"))["MASTER_ADDR"] == "127.0.0.1"


def test_every_run_of_every_job_has_its_own_port() -> None:
    ports = {
        int(slurm_ranks(environment(SLURM_JOB_ID=str(job), SLURM_RESTART_COUNT=str(restarts)))["MASTER_PORT"])
        for job in range(4000, 4100)
        for restarts in range(4)
    }
    assert len(ports) >= 396  # two may meet by chance, but not those of one job
    assert min(ports) >= 1024
    assert max(ports) < 32_768


# ── Giving up ────────────────────────────────────────────────────────────────────────────────────────────────────


def starts_until_hopeless(task: Task, layout: Layout, submission: str = "fl-0") -> int:
    return next(number for number in range(1, 100) if is_hopeless(task, layout, submission))


def test_a_task_that_stays_where_it_is_is_given_up(snapshot: Snapshot, tmp_path: Path) -> None:
    for stage in ("pack", "train", "extract", "measure"):
        assert starts_until_hopeless(task_of(snapshot, stage), Layout(tmp_path)) == MOST_STARTS + 1


def test_a_new_checkpoint_begins_a_new_count(snapshot: Snapshot, tmp_path: Path) -> None:
    layout, task = Layout(tmp_path), task_of(snapshot, "train")
    for step in range(20):
        assert not is_hopeless(task, layout, "fl-0")
        layout.checkpoints(task.name).mkdir(parents=True, exist_ok=True)
        (layout.checkpoints(task.name) / f"step-{step:08d}-{'0' * 16}.pt").touch()


@pytest.mark.parametrize("stage", ["extract", "measure"])
def test_extraction_and_measuring_count_their_blocks(snapshot: Snapshot, tmp_path: Path, stage: str) -> None:
    layout, task = Layout(tmp_path), task_of(snapshot, stage)
    for block in range(20):
        assert not is_hopeless(task, layout, "fl-0")
        write_progress(layout.progress(stage, task.name), task.key, block / 20, "")


def test_a_block_too_small_for_the_share_counts_too(snapshot: Snapshot, tmp_path: Path) -> None:
    layout, task = Layout(tmp_path), task_of(snapshot, "measure")
    for block in range(20):
        assert not is_hopeless(task, layout, "fl-0")
        write_progress(layout.progress("measure", task.name), task.key, 0.0, f"image {block} of 1000000")


def test_a_new_submission_begins_a_new_count(snapshot: Snapshot, tmp_path: Path) -> None:
    task = task_of(snapshot, "measure")
    assert starts_until_hopeless(task, Layout(tmp_path), "fl-0") == MOST_STARTS + 1
    assert starts_until_hopeless(task, Layout(tmp_path), "fl-1") == MOST_STARTS + 1


# ── The task itself ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snapshot: Snapshot) -> Layout:
    """A process of a job, without its signals and with the output left to pytest."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    for name, value in environment(SLURM_PROCID="0", SLURM_NTASKS="1", SLURM_ARRAY_TASK_ID="1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tasks.StopFlag, "install", lambda self: None)
    monkeypatch.setattr(tasks, "_print_to", lambda log: None)
    monkeypatch.setattr(tasks, "_SHOWS_WITHIN_S", 0.0)
    return Layout(tmp_path / "study")


def cluster_task(snapshot: Snapshot, layout: Layout, stage: str) -> ClusterTask:
    names = tuple(task.name for task in snapshot.tasks if task.stage == stage)
    return ClusterTask(snapshot.save(layout), stage, names, Execution(), "fl-0")


def test_a_task_is_chosen_by_its_place_in_the_array(
    job: Layout, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = task_of(snapshot, "pack")
    write_outcome(job.outcome("pack", "faces"), Outcome("done", pack.key))
    job.packed("faces").parent.mkdir(parents=True)
    job.packed("faces").touch()
    ran = []
    monkeypatch.setattr(tasks, "run_task", lambda *given: ran.append(given[1:3]) or 0)
    cluster_task(snapshot, job, "train")()
    assert ran == [("train", task_of(snapshot, "train", 1).name)]


def test_without_its_input_it_ends_well(job: Layout, snapshot: Snapshot, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever came before has written why; the chain is not to be torn."""
    cluster_task(snapshot, job, "extract")()
    assert "waiting, nothing to do" in capsys.readouterr().out
    assert not job.outcome("extract", task_of(snapshot, "extract", 1).name).exists()


@pytest.mark.parametrize("code", [EXIT_INTERRUPTED, EXIT_FAILED])
def test_its_code_says_how_it_ended(
    job: Layout, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(tasks, "run_task", lambda *_: code)
    with pytest.raises(SystemExit) as ended:
        cluster_task(snapshot, job, "pack")()
    assert ended.value.code == code


def test_a_hopeless_task_fails_with_a_reason(job: Layout, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "run_task", lambda *_: EXIT_INTERRUPTED)
    task = cluster_task(snapshot, job, "pack")
    codes = []
    for _ in range(MOST_STARTS + 1):
        with pytest.raises(SystemExit) as ended:
            task()
        codes.append(ended.value.code)
    assert codes == [EXIT_INTERRUPTED] * MOST_STARTS + [EXIT_FAILED]
    outcome = read_outcome(job.outcome("pack", "faces"))
    assert outcome is not None
    assert (outcome.status, outcome.reason) == ("failed", "gave up after 5 starts in a row without a new checkpoint")


def test_submitit_would_start_the_same_again(snapshot: Snapshot, tmp_path: Path) -> None:
    task = cluster_task(snapshot, Layout(tmp_path), "pack")
    assert task.checkpoint().function == task


# ── After the end ────────────────────────────────────────────────────────────────────────────────────────────────


class Commands:
    """squeue, scontrol and sbatch inside a job."""

    def __init__(self, state: str = "RUNNING", requeue: int = 1) -> None:
        self.state, self.requeue = state, requeue
        self.calls: list[list[str]] = []

    def __call__(self, arguments: Sequence[str], timeout_s: float) -> Answer:
        self.calls.append(list(arguments))
        words = {"squeue": f"{self.state}\n", "sbatch": "77\n"}
        return Answer(0, words.get(arguments[0], f"JobId=42 Requeue={self.requeue} Restarts=0\n"))

    @property
    def acts(self) -> list[list[str]]:
        return [call for call in self.calls if call[:2] in (["scontrol", "requeue"], ["scontrol", "update"])]


def ended(
    snapshot: Snapshot,
    layout: Layout,
    commands: Commands,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    counted: bool = True,
) -> tuple[int, str]:
    """The job's exit code after a batch of both trainings ended in its second task, and the batch's token."""
    names = [task.name for task in snapshot.tasks if task.stage == "train"]
    keys = [task.key for task in snapshot.tasks if task.stage == "train"]
    batch = Journal(layout).intend("generic", "train", "gpu", names, keys)
    Journal(layout).submitted(batch.token, "40")
    folder = layout.submission(batch.token)
    (folder / "job.sh").write_text(
        f"#SBATCH --array=0-1%2\n#SBATCH --dependency=afterok:1\n#SBATCH --output={folder}/%A_%a_0_log.out\n"
    )
    _pickle(cluster_task(snapshot, layout, "train"), folder / "task.pkl")
    monkeypatch.setattr(again, "Slurm", lambda: Slurm(run=commands))
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    if counted:
        is_hopeless(task_of(snapshot, "train", 1), layout, batch.token)
    return again.end(folder, snapshot.save(layout), code), batch.token


def _pickle(task: ClusterTask, path: Path) -> None:
    from submitit.helpers import DelayedSubmission

    DelayedSubmission(task).dump(path)


@pytest.mark.parametrize("code", [75, 137, 143])
def test_an_interrupted_or_killed_task_is_requeued_by_its_own_element(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Never by the number of the job: the last element of an array has the array's."""
    commands = Commands()
    assert ended(snapshot, Layout(tmp_path), commands, code, monkeypatch)[0] == 0
    assert commands.acts == [["scontrol", "requeue", "40_1"]]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING", ""])
def test_a_job_that_was_ended_from_outside_does_not_come_back(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    commands = Commands(state)
    assert ended(snapshot, Layout(tmp_path), commands, 75, monkeypatch)[0] == 75
    assert commands.acts == []


def test_an_end_without_a_word_is_a_failure_with_a_reason(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path)
    write_outcome(layout.outcome("pack", "faces"), Outcome("done", task_of(snapshot, "pack").key))
    layout.packed("faces").parent.mkdir(parents=True)
    layout.packed("faces").touch()
    assert ended(snapshot, layout, Commands(), 1, monkeypatch)[0] == 1
    outcome = read_outcome(layout.outcome("train", task_of(snapshot, "train", 1).name))
    assert outcome is not None
    assert (outcome.status, outcome.key) == ("failed", task_of(snapshot, "train", 1).key)
    assert "exit code 1" in outcome.reason


def test_what_is_killed_before_its_start_was_counted_has_failed(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that cannot even begin takes the others along; it would be started again for ever."""
    commands = Commands()
    assert ended(snapshot, Layout(tmp_path), commands, 137, monkeypatch, counted=False)[0] == 1
    assert commands.acts == []
    assert read_outcome(Layout(tmp_path).outcome("train", task_of(snapshot, "train", 1).name)) is not None


def test_a_failure_that_was_written_down_is_no_reason_to_start_again(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank failed and said why; the others were killed."""
    commands, task = Commands(), task_of(snapshot, "train", 1)
    write_outcome(Layout(tmp_path).outcome("train", task.name), Outcome("failed", task.key, "no memory"))
    assert ended(snapshot, Layout(tmp_path), commands, 137, monkeypatch)[0] == 1
    assert commands.calls == []


def test_where_nothing_is_requeued_another_job_takes_its_place(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what waited for the second training waits for the new job."""
    layout, commands = Layout(tmp_path), Commands(requeue=0)
    later = [task for task in snapshot.tasks if task.stage == "extract"]
    batch = Journal(layout).intend("generic", "extract", "gpu", [t.name for t in later], [t.key for t in later])
    Journal(layout).submitted(batch.token, "50")
    code, token = ended(snapshot, layout, commands, 75, monkeypatch)
    assert code == 0
    assert commands.acts == [["scontrol", "update", "JobId=50_1", "Dependency=afterok:77"]]
    successor = Journal(layout).read()[-1]
    assert (successor.job, successor.tasks) == ("77", (task_of(snapshot, "train", 1).name,))
    folder = layout.submission(successor.token)
    assert (folder / "job.sh").read_text() == f"#SBATCH --output={folder}/%j_0_log.out\n"
    assert token not in (folder / "job.sh").read_text()
    from submitit.core.utils import DelayedSubmission

    function = DelayedSubmission.load(folder / "task.pkl").function
    assert (function.names, function.submission) == (successor.tasks, "fl-0")


# ── Code ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_copy_of_the_code_is_what_runs(tmp_path: Path) -> None:
    """From a folder with other packages of the same names, as a checkout that was edited would be."""
    folder = freeze_code(Layout(tmp_path))
    edited = tmp_path / "edited"
    for package in PACKAGES:
        (edited / package).mkdir(parents=True)
        (edited / package / "__init__.py").write_text("raise SystemExit('edited')")
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    code = "import fluence, analysis, jobs.tasks; print(jobs.tasks.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=edited, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(folder / "jobs" / "tasks.py")


def test_another_code_is_another_copy(tmp_path: Path) -> None:
    root, layout = tmp_path / "root", Layout(tmp_path / "study")
    for package in PACKAGES:
        (root / package / "__pycache__").mkdir(parents=True)
        (root / package / "__init__.py").write_text("one = 1\n")
    first = freeze_code(layout, root)
    (root / "jobs" / "__pycache__" / "x.pyc").touch()
    assert freeze_code(layout, root) == first
    (root / "jobs" / "__init__.py").write_text("one = 2\n")
    assert code_folder(layout, root) != first
    second = freeze_code(layout, root)
    assert (first / "jobs" / "__init__.py").read_text() == "one = 1\n"
    assert (second / "jobs" / "__init__.py").read_text() == "one = 2\n"
    assert sorted(path.name for path in second.iterdir()) == ["COMMIT", *sorted(PACKAGES)]
    shutil.rmtree(second)
    assert freeze_code(layout, root) == second


def test_an_outcome_knows_where_a_copy_came_from(tmp_path: Path) -> None:
    folder = freeze_code(Layout(tmp_path))
    code = "from fluence.store.outcome import code_commit; print(code_commit())"
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == (folder / "COMMIT").read_text()
