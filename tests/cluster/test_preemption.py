"""What Slurm does to jobs in the middle of their work, on a real one: the results are the same bits as without it.

Every study here has one or two tiny trainings. Its undisturbed twin ran on the same cluster with the same layout of
processes; then the weights, the log of the losses, the activations and the measures of the two must not differ.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import pandas as pd
import pytest

from fluence.errors import RunError
from fluence.layout import Layout
from fluence.store.files import read_json
from fluence.store.outcome import read_outcome, read_progress
from fluence.store.weights import read_weights
from fluence.studyfile import parse_study
from jobs.batches import Choice
from jobs.journal import Batch, Journal
from jobs.plan import plan
from jobs.sites import Site, load_site
from jobs.slurm import Answer, NoAnswer, Slurm, run_command
from jobs.snapshot import Snapshot, take_snapshot
from jobs.starts import MOST_STARTS
from jobs.submit import Options, Submission, submit
from tests.cluster import processes
from tests.cluster.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

STUDY = """
name: tiny
data:
  image_size_px: 32
  datasets:
    faces: {{kind: synthetic, num_images: 400, num_ethnicities: 2, effect: {{r2: 0.5}}, num_raters: 10, seed: 1}}
  training: faces
  rated: faces
models:
  small: {{kind: vae, width: 0.125, norm: batch}}
training: {{epochs: {epochs}, batch_size: 8}}
record: {{reference_images: 16, sample_images: 4}}
analysis: {{permutations: 99, bootstrap: 99, ridge: {{folds: 3, repeats: 1}}}}
grid: {{groups: [all], seeds: {seeds}}}
"""
TEST_SITE = Path("sbatch_templates/test-cluster")
OF_RUNS = ("pack", "train", "extract", "measure")
ALL = (*OF_RUNS, "analyse", "report")
URGENT = "--partition=urgent", "--output=/dev/null", "--wrap=sleep 1"


@dataclass
class Study:
    """A study on the test cluster."""

    cluster: Cluster
    layout: Layout
    snapshot: Snapshot
    site: Site

    @classmethod
    def make(cls, cluster: Cluster, folder: Path, site: Site, seeds: tuple[int, ...], epochs: int) -> Study:
        layout = Layout(folder)
        study = parse_study(STUDY.format(seeds=list(seeds), epochs=epochs), "tiny.yaml")
        return cls(cluster, layout, take_snapshot(study, layout), site)

    def submit(self, stages: tuple[str, ...] = OF_RUNS, interval_s: float = 2.0) -> Submission:
        options = Options(choice=Choice(stages=stages), checkpoint_interval_s=interval_s)
        return submit(self.snapshot, self.layout, self.site, options, Slurm(self.layout.slurm_answers))

    @property
    def runs(self) -> list[str]:
        return [task.name for task in self.snapshot.tasks if task.stage == "train"]

    def batch(self, stage: str) -> Batch:
        """The newest batch of a stage."""
        return [batch for batch in Journal(self.layout).read() if batch.stage == stage][-1]

    def job(self, stage: str, index: int = 0) -> str:
        return self.batch(stage).elements(index)[0]

    def log(self, stage: str, index: int = 0) -> str:
        path = self.layout.log(stage, self.runs[index])
        return path.read_text() if path.exists() else ""

    def wait(self, timeout_s: float = 240) -> None:
        """Until Slurm has no job of the study any more."""
        jobs = {batch.job for batch in Journal(self.layout).read()}
        self._until(lambda: not self._queue() & jobs, timeout_s, "the jobs do not end")

    def _queue(self) -> set[str]:
        return set(self.cluster.run("squeue", "--noheader", "--format=%F").stdout.split())

    def wait_for_checkpoint(self, index: int = 0, more_than: int = 0) -> int:
        """Until the training has come so far that it would have something to lose; returns the step."""
        self._until(lambda: self.newest_step(index) > more_than, 90, "there is no checkpoint")
        return self.newest_step(index)

    def newest_step(self, index: int = 0) -> int:
        paths = self.layout.checkpoints(self.runs[index]).glob("step-*.pt")
        return max((int(path.name.split("-")[1]) for path in paths), default=0)

    def _until(self, comes: Callable[[], bool], timeout_s: float, complaint: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not comes():
            assert time.monotonic() < deadline, f"{complaint}\n{self.said()}"
            time.sleep(0.1)

    def said(self) -> str:
        """All that the jobs have printed, for whoever looks for a mistake."""
        logs = [*self.layout.root.glob("tasks/*/*.log"), *self.layout.submissions.glob("*/*.out")]
        queue = self.cluster.run("squeue", "--array").stdout
        return "\n".join([queue, *(f"── {log.name}\n{log.read_text(errors='replace')}" for log in logs)])

    def result(self) -> dict[str, str]:
        """A hash of everything that the runs have made: every number, and not the date in a file's head."""
        states = {entry.task.id: entry.state for entry in plan(self.snapshot.tasks, self.layout) if entry.task.run}
        wrong = {task: state for task, state in states.items() if state != "done" and self._was_wanted(task)}
        assert not wrong, f"{wrong}\n{self.said()}"
        found: dict[str, str] = {}
        for run in self.runs:
            for kind, path in (
                ("weights", self.layout.weights(run)),
                ("losses", self.layout.metrics_log(run)),
                ("activations", self.layout.activations(run)),
                ("measures", self.layout.metrics(run)),
            ):
                if path.exists():
                    found[f"{kind} {run}"] = hashlib.sha256(b"".join(_numbers(path))).hexdigest()
        for table in sorted(self.layout.statistics.glob("*.csv")):
            found[f"statistics {table.stem}"] = hashlib.sha256(table.read_bytes()).hexdigest()
        return found

    def agrees_with(self, other: Study) -> bool:
        """Whether everything that this study has made is, to the last bit, what the other one has made."""
        mine, theirs = self.result(), other.result()
        differing = [name for name in mine if mine[name] != theirs[name]]
        assert not differing, f"{differing}\n{self.said()}"
        return bool(mine)

    def _was_wanted(self, task: str) -> bool:
        return task.partition("/")[0] in {batch.stage for batch in Journal(self.layout).read()}

    def history(self, stage: str, index: int = 0, runs: int = 2) -> list[str]:
        """How each run of a job ended, once the accounting knows."""
        job, found = self.job(stage, index), []

        def known() -> bool:
            found[:] = [state for _, state in self.cluster.history(job)]
            return len(found) >= runs and not {"PENDING", "RUNNING"} & set(found)

        self._until(known, 40, f"sacct tells {found}")
        return found


def _numbers(path: Path) -> Iterator[bytes]:
    """The content of a file of the study, bit by bit."""
    if path.suffix == ".pt":
        weights, facts = read_weights(path)
        yield repr(facts).encode()
        for name, values in weights.items():
            yield f"{name} {values.dtype} {tuple(values.shape)}".encode() + values.contiguous().numpy().tobytes()
    elif path.suffix == ".h5":
        with h5py.File(path) as file:
            datasets: list[h5py.Dataset] = []
            file.visititems(lambda _, found: datasets.append(found) if isinstance(found, h5py.Dataset) else None)
            for dataset in datasets:
                values = dataset[()]
                yield f"{dataset.name} {dataset.dtype} {dataset.shape}".encode()
                yield repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
    elif path.suffix == ".parquet":
        table = pd.read_parquet(path)
        yield from (
            f"{name} {column.dtype}".encode() + repr(column.tolist()).encode() for name, column in table.items()
        )
    else:
        yield path.read_bytes()


@pytest.fixture(scope="session")
def site() -> Site:
    return load_site("test-cluster")


@pytest.fixture(scope="session")
def two_node_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The test cluster's, with one process on each of two nodes for each training, and a prologue as strict as many."""
    strict = "#FLUENCE billing-unit=GPU hours\n", "#FLUENCE billing-unit=GPU hours\nset -euo pipefail\n"
    return _edited_site(tmp_path_factory.mktemp("site") / "two-nodes", "--nodes=1", "--nodes=2", *strict)


@pytest.fixture(scope="session")
def site_without_requeue(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site") / "no-requeue"
    return _edited_site(folder, "#SBATCH --requeue\n", "", "requeue=yes", "requeue=no", files="*.sbatch")


def _edited_site(folder: Path, *changes: str, files: str = "gpu.sbatch") -> Site:
    shutil.copytree(TEST_SITE, folder)
    for file in folder.glob(files):
        text = file.read_text()
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            text = text.replace(old, new)
        file.write_text(text)
    return load_site(str(folder))


@pytest.fixture(scope="session")
def undisturbed(slurm_session: Cluster, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return _run_undisturbed(slurm_session, site, tmp_path_factory.mktemp("undisturbed"), (0, 1), ALL)


@pytest.fixture(scope="session")
def undisturbed_on_two_nodes(
    slurm_session: Cluster, two_node_site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    return _run_undisturbed(slurm_session, two_node_site, tmp_path_factory.mktemp("two"), (0,), OF_RUNS[:2], epochs=4)


def _run_undisturbed(
    cluster: Cluster, site: Site, folder: Path, seeds: tuple[int, ...], stages: tuple[str, ...], epochs: int = 20
) -> Study:
    before = os.environ.copy()
    os.environ.update(cluster.environment)
    try:
        study = Study.make(cluster, folder, site, seeds, epochs)
        study.submit(stages)
        study.wait()
        files = [name for name in study.result() if not name.startswith("statistics")]
        assert len(files) == len(seeds) * (4 if "measure" in stages else 2), study.said()
        assert ("statistics ridge" in study.result()) == ("analyse" in stages)
        return study
    finally:
        os.environ.clear()
        os.environ.update(before)


FOLDERS = {"pack": "packed", "train": "runs", "extract": "activations"}


def twin(of: Study, folder: Path, done: tuple[str, ...] = ("pack",)) -> Study:
    """The same study in another folder, with its first stages done already."""
    for stage in done:
        shutil.copytree(of.layout.root / FOLDERS[stage], folder / FOLDERS[stage])
        shutil.copytree(of.layout.outcome(stage, "any").parent, folder / "tasks" / stage)
    return Study(of.cluster, Layout(folder), of.snapshot, of.site)


def preempt(study: Study, stage: str, gpus: int = 4) -> None:
    """A more urgent job wants the whole node that the first task of a stage runs on."""
    node = study.cluster.job(study.job(stage))["NodeList"]
    study.cluster.sbatch(*URGENT, f"--gres=gpu:{gpus}", f"--nodelist={node}")


# ── Training ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_preempted_by_a_more_urgent_job(slurm_cluster: Cluster, undisturbed: Study, tmp_path: Path) -> None:
    """Both runs of the array, in the middle of an epoch. They save, ask to be started again, and lose no step."""
    study = twin(undisturbed, tmp_path / "study")
    study.submit(ALL, interval_s=600)
    study.cluster.wait_for_job(study.job("train"), "RUNNING")
    study._until(lambda: all(study.layout.metrics_log(run).exists() for run in study.runs), 60, "no epoch ends")
    preempt(study, "train")
    study.wait()
    for index in (0, 1):
        assert study.history("train", index) == ["REQUEUED", "COMPLETED"]
        stopped = re.findall(r"stopped after (\d+) of (\d+) steps", study.log("train", index))
        assert len(stopped) == 1, study.log("train", index)
        steps, total = map(int, stopped[0])
        assert 0 < steps < total
    assert study.result() == undisturbed.result()


@pytest.mark.parametrize(("grace_s", "ends"), [(0, ["PREEMPTED"]), (10, ["REQUEUED", "COMPLETED"])])
def test_preempted_where_preemption_cancels(
    slurm_cluster: Cluster, undisturbed: Study, tmp_path: Path, grace_s: int, ends: list[str]
) -> None:
    """A job with time to ask for another start gets one; one that is ended at once goes on with a later submission."""
    study = twin(undisturbed, tmp_path / "study")
    slurm_cluster.scontrol("update", "PartitionName=gpu", "PreemptMode=CANCEL", f"GraceTime={grace_s}")
    try:
        study.submit()
        study.wait_for_checkpoint()
        preempt(study, "train")
        study.wait()
    finally:
        slurm_cluster.scontrol("update", "PartitionName=gpu", "PreemptMode=REQUEUE", "GraceTime=10")
    assert study.history("train", 0, runs=len(ends)) == ends
    assert bool(study.submit().sent) == (ends == ["PREEMPTED"])
    study.wait()
    assert study.agrees_with(undisturbed)


def test_requeued_by_hand(slurm_cluster: Cluster, undisturbed: Study, tmp_path: Path) -> None:
    study = twin(undisturbed, tmp_path / "study")
    study.submit()
    study.wait_for_checkpoint()
    study.cluster.scontrol("requeue", study.job("train", 0))
    study.wait()
    assert study.history("train", 0) == ["REQUEUED", "COMPLETED"]
    assert study.history("train", 1, runs=1) == ["COMPLETED"]
    assert study.agrees_with(undisturbed)


def test_cancelled_and_submitted_again(slurm_cluster: Cluster, undisturbed: Study, tmp_path: Path) -> None:
    """What was cancelled does not come back by itself; a later submission sends what is left, and no more."""
    study = twin(undisturbed, tmp_path / "study")
    study.submit()
    step = study.wait_for_checkpoint()
    first = study.job("train", 0)
    study.cluster.run("scancel", first)
    study.wait()
    assert study.history("train", 0, runs=1) == ["CANCELLED"]
    assert read_outcome(study.layout.outcome("train", study.runs[0])) is None
    assert study.newest_step(0) >= step
    again = study.submit()
    assert [(sent.draft.stage, len(sent.draft.tasks)) for sent in again.sent] == [
        ("train", 1), ("extract", 1), ("measure", 1),
    ]  # fmt: skip
    assert study.submit().sent == ()
    study.wait()
    assert study.agrees_with(undisturbed)
    assert study.submit().sent == ()


def test_a_lost_node(slurm_cluster: Cluster, undisturbed: Study, tmp_path: Path) -> None:
    study = twin(undisturbed, tmp_path / "study")
    study.submit()
    study.wait_for_checkpoint(0)
    study.wait_for_checkpoint(1)
    node = study.cluster.job(study.job("train"))["NodeList"]
    study.cluster.stop_node(node)
    study.cluster.scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=test")
    study.wait()
    assert study.history("train", 0) == ["NODE_FAIL", "COMPLETED"]
    assert study.agrees_with(undisturbed)


def test_where_jobs_are_not_requeued_another_one_takes_over(
    slurm_cluster: Cluster, undisturbed: Study, site_without_requeue: Site, tmp_path: Path
) -> None:
    """The second training is told to stop; extraction and measuring of that run wait for its successor."""
    study = twin(undisturbed, tmp_path / "study")
    study.site = site_without_requeue
    study.submit()
    first = study.job("train", 1)
    study.wait_for_checkpoint(1)
    study.cluster.run("scancel", "--signal=USR2", first)
    study.wait()
    assert [state for _, state in study.cluster.history(first)] == ["COMPLETED"]
    assert study.batch("train").tasks == (study.runs[1],)
    assert len(re.findall(r"stopped after \d+ of", study.log("train", 1))) == 1
    assert study.agrees_with(undisturbed)


@pytest.mark.slow
def test_the_time_limit_three_times(slurm_cluster: Cluster, undisturbed: Study, tmp_path: Path) -> None:
    """--signal comes 60 s before the end, so the end is moved to in a minute. Slurm looks for such jobs every 30 s; so
    that the tiny training does not end meanwhile, it stands still; with its signal, Slurm also lets it go on.
    """
    study = twin(undisturbed, tmp_path / "study")
    study.submit(stages=("train",))
    job = study.job("train")
    for restarts in range(3):
        study._until(lambda: study.cluster.job(job)["JobState"] == "RUNNING", 90, "it does not start")
        study.wait_for_checkpoint(more_than=study.newest_step())
        os.kill(rank_process(study, "train", 0).pid, signal.SIGSTOP)
        study.cluster.end_in(job, 58)
        study._until(lambda n=restarts: int(study.cluster.job(job)["Restarts"]) > n, 90, "it is not told")
    study.wait()
    assert study.history("train", runs=4) == ["REQUEUED"] * 3 + ["COMPLETED"]
    assert study.agrees_with(undisturbed)


# ── Two nodes ────────────────────────────────────────────────────────────────────────────────────────────────────


def rank_process(study: Study, stage: str, rank: int) -> processes.Process:
    """The process of one rank. The script of the job and `srun` have rank 0 in their environment, too."""
    job = study.cluster.job(study.job(stage))["JobId"]
    wanted = {f"SLURM_PROCID={rank}".encode(), f"SLURM_JOB_ID={job}".encode()}
    mine = processes.of_cluster(study.cluster.folder, study.cluster.name)
    ranks = [p for p in mine if p.name.startswith("python") and "submitit.core._submit" in p.command]
    return next(p for p in ranks if wanted <= processes._environment(p.pid))


def test_two_nodes_train_together_and_are_preempted(
    slurm_cluster: Cluster, undisturbed_on_two_nodes: Study, tmp_path: Path
) -> None:
    """A whole node goes to another job: the process on the other one agrees on the same step."""
    study = twin(undisturbed_on_two_nodes, tmp_path / "study")
    study.submit(OF_RUNS[:2], interval_s=600)
    study.cluster.wait_for_job(study.job("train"), "RUNNING")
    study._until(lambda: study.layout.metrics_log(study.runs[0]).exists(), 60, "no epoch ends")
    study.cluster.sbatch(*URGENT, "--gres=gpu:4", "--nodelist=v100n2")
    study.wait()
    assert study.history("train") == ["REQUEUED", "COMPLETED"]
    outcome = read_outcome(study.layout.outcome("train", study.runs[0]))
    assert outcome is not None
    assert outcome.provenance["facts"]["num_processes"] == 2
    assert len(set(re.findall(r"stopped after (\d+) of", study.log("train")))) == 1
    assert study.result() == undisturbed_on_two_nodes.result()


def test_one_of_two_processes_is_killed(
    slurm_cluster: Cluster, undisturbed_on_two_nodes: Study, tmp_path: Path
) -> None:
    study = twin(undisturbed_on_two_nodes, tmp_path / "study")
    study.submit(OF_RUNS[:2])
    study.wait_for_checkpoint()
    os.kill(rank_process(study, "train", 1).pid, signal.SIGKILL)
    study.wait()
    assert study.history("train") == ["REQUEUED", "COMPLETED"]
    assert study.result() == undisturbed_on_two_nodes.result()


# ── Extraction and measuring ─────────────────────────────────────────────────────────────────────────────────────


class Held:
    """The process of a later stage's first task, stopped in the middle of its work: it has something to lose."""

    def __init__(self, study: Study, stage: str) -> None:
        self._study, self.stage, self.job = study, stage, study.job(stage)
        study._until(lambda: study.cluster.job(self.job)["JobState"] == "RUNNING", 120, "it does not start")
        study._until(self._is_there, 60, "its process does not come")
        self.pid = rank_process(study, stage, 0).pid
        study._until(self._has_something_to_lose, 60, "it does not come to its work")

    def _is_there(self) -> bool:
        try:
            return bool(rank_process(self._study, self.stage, 0))
        except StopIteration:
            return False

    def _has_something_to_lose(self) -> bool:
        """Lets it go on for a moment, and looks: a block of images is written, or the activations are being read."""
        os.kill(self.pid, signal.SIGCONT)
        time.sleep(0.02)
        os.kill(self.pid, signal.SIGSTOP)
        run = self._study.runs[0]
        if self.stage == "extract":
            task = next(task for task in self._study.snapshot.tasks if task.id == f"extract/{run}")
            progress = read_progress(self._study.layout.progress("extract", run), task.key)
            return progress is not None and 0 < progress.fraction < 1
        opened = [os.readlink(link) for link in Path(f"/proc/{self.pid}/fd").iterdir() if link.is_symlink()]
        return str(self._study.layout.activations(run)) in opened

    def let_go(self) -> None:
        """If it is still there."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)


def _preempted(study: Study, held: Held) -> None:
    node = study.cluster.job(held.job)["NodeList"]
    study.cluster.sbatch(*URGENT, "--exclusive", f"--nodelist={node}")
    study._until(lambda: study.cluster.job(held.job)["PreemptTime"] != "None", 60, "it is not preempted")


def _requeued_by_hand(study: Study, held: Held) -> None:
    study.cluster.scontrol("requeue", held.job)


def _cancelled(study: Study, held: Held) -> None:
    study.cluster.run("scancel", held.job)
    held.let_go()
    study.wait()
    study.submit((held.stage,))


def _killed(study: Study, held: Held) -> None:
    os.kill(held.pid, signal.SIGKILL)


def _on_a_lost_node(study: Study, held: Held) -> None:
    node = study.cluster.job(held.job)["NodeList"]
    study.cluster.stop_node(node)
    study.cluster.scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=test")
    study.cluster.start_node(node)


def _at_its_time_limit(study: Study, held: Held) -> None:
    study.cluster.end_in(held.job, 58)
    study._until(lambda: int(study.cluster.job(held.job)["Restarts"]) > 0, 90, "it is not told")


AGAIN = ["REQUEUED", "COMPLETED"]
BLOWS = {
    _preempted: AGAIN,
    _requeued_by_hand: AGAIN,
    _cancelled: ["COMPLETED"],
    _killed: AGAIN,
    _on_a_lost_node: ["NODE_FAIL", "COMPLETED"],
    _at_its_time_limit: AGAIN,
}


@pytest.mark.parametrize("blow", BLOWS, ids=lambda blow: blow.__name__[1:])
@pytest.mark.parametrize("stage", ["extract", "measure"])
def test_a_later_stage(
    slurm_cluster: Cluster, undisturbed: Study, tmp_path: Path, stage: str, blow: Callable[[Study, Held], None]
) -> None:
    """Whatever ends it in the middle of its work: it goes on, and the result is the same."""
    done = OF_RUNS[: OF_RUNS.index(stage)]
    study = twin(undisturbed, tmp_path / "study", done)
    study.submit((stage,))
    held = Held(study, stage)
    blow(study, held)
    held.let_go()
    study.wait()
    assert study.history(stage, runs=len(BLOWS[blow])) == BLOWS[blow]
    if stage == "extract":
        assert len(re.findall(r"continues at image \d+ of 400", study.log(stage))) == 1
    assert len(study.result()) == 2 * (OF_RUNS.index(stage) + 1)
    assert study.agrees_with(undisturbed)


@pytest.mark.parametrize("stage", ["pack", "measure"])
def test_all_that_waits_for_a_stage_waits_for_its_successor(
    slurm_cluster: Cluster, undisturbed: Study, site_without_requeue: Site, tmp_path: Path, stage: str
) -> None:
    """Trainings wait for packing, and the analysis for measuring, also where another job takes over."""
    study = twin(undisturbed, tmp_path / "study", OF_RUNS[: OF_RUNS.index(stage)])
    study.site = site_without_requeue
    study.submit(("pack", "train") if stage == "pack" else ("measure", "analyse", "report"))
    first = study.job(stage)
    study._until(lambda: study.cluster.job(first)["JobState"] == "RUNNING", 120, "it does not start")
    study._until(lambda: study.layout.starts(stage, study.batch(stage).tasks[0]).exists(), 60, "it does not begin")
    study.cluster.run("scancel", "--signal=USR2", first)
    base = first.partition("_")[0]
    study._until(lambda: study.batch(stage).job not in (None, base), 60, "there is no successor")
    study.wait()
    assert study.submit(ALL if stage == "measure" else ("pack", "train")).sent == ()
    assert study.agrees_with(undisturbed)


# ── Giving up, and a lost answer ─────────────────────────────────────────────────────────────────────────────────


def test_a_task_that_never_gets_anywhere_is_given_up(
    slurm_cluster: Cluster, undisturbed: Study, tmp_path: Path
) -> None:
    """Killed again and again before its first checkpoint: a failure, and not a job that starts for ever."""
    study = twin(undisturbed, tmp_path / "study", OF_RUNS[:2])
    study.submit(stages=("extract",))
    run, starts = study.runs[0], study.layout.starts("extract", study.runs[0])
    for number in range(1, MOST_STARTS + 1):
        study._until(lambda n=number: starts.exists() and read_json(starts)["starts"] == n, 90, "it does not start")
        os.kill(rank_process(study, "extract", 0).pid, signal.SIGKILL)
    study.wait()
    outcome = read_outcome(study.layout.outcome("extract", run))
    assert outcome is not None
    assert outcome.reason == f"gave up after {MOST_STARTS} starts in a row without a new checkpoint"
    states = study.history("extract", runs=MOST_STARTS + 1)
    assert states == ["REQUEUED"] * MOST_STARTS + ["FAILED"]


def test_an_answer_of_sbatch_that_is_lost(slurm_cluster: Cluster, undisturbed: Study, tmp_path: Path) -> None:
    """sbatch takes the trainings, but its answer never comes: the next submission finds them and sends the rest."""
    study = twin(undisturbed, tmp_path / "study")

    def losing(arguments: Sequence[str], timeout_s: float) -> Answer:
        answer = run_command(arguments, timeout_s)
        if arguments[0] == "sbatch":
            raise NoAnswer("sbatch did not answer within 120 s")
        return answer

    with pytest.raises(RunError, match="did not answer"):
        options = Options(choice=Choice(stages=OF_RUNS), checkpoint_interval_s=2.0)
        submit(study.snapshot, study.layout, study.site, options, Slurm(study.layout.slurm_answers, losing))
    again = study.submit()
    assert [sent.draft.stage for sent in again.sent] == ["extract", "measure"]
    assert study.submit().sent == ()
    study.wait()
    names = study.cluster.run("sacct", "--allocations", "--noheader", "--parsable2", "--format=JobName").stdout.split()
    assert sum(name == f"{study.batch('train').token}-train" for name in names) == 2
    assert study.agrees_with(undisturbed)
