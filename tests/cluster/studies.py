"""Tiny studies on the test cluster, and what becomes of them: each has an undisturbed twin with the same bits."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import pandas as pd

from fluence.layout import Layout
from fluence.store.outcome import read_progress
from fluence.store.weights import read_weights
from fluence.studyfile import parse_study
from jobs.batches import Choice
from jobs.journal import Batch, Journal
from jobs.plan import plan
from jobs.sites import Site, load_site
from jobs.slurm import Slurm
from jobs.snapshot import Snapshot, take_snapshot
from jobs.submit import Options, Submission, submit
from tests.cluster import processes
from tests.cluster.cluster import Cluster

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
TWO_SEEDS = STUDY.format(seeds=[0, 1], epochs=20)
FEW_EPOCHS = STUDY.format(seeds=[0], epochs=4)
MANY_BLOCKS = """
name: blocks
data:
  image_size_px: 32
  datasets:
    few: {kind: synthetic, num_images: 64, num_ethnicities: 2, seed: 1}
    many: {kind: synthetic, num_images: 1100, num_ethnicities: 2, effect: {r2: 0.5}, num_raters: 10, seed: 2}
  training: few
  rated: many
models:
  deep: {kind: vae, architecture: vgg16-5, width: 0.125, norm: batch}
training: {epochs: 1, batch_size: 16}
record: {reference_images: 16, sample_images: 4}
grid: {groups: [all], seeds: [0]}
"""
"""9 blocks of images to extract, and more than 14 of layers and images to measure."""
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
    def make(cls, cluster: Cluster, folder: Path, site: Site, text: str) -> Study:
        layout = Layout(folder)
        return cls(cluster, layout, take_snapshot(parse_study(text, "study.yaml"), layout), site)

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

    def fraction(self, stage: str, index: int = 0) -> float:
        """How much of a task has been done and kept, 0 … 1."""
        task = next(task for task in self.snapshot.tasks if task.id == f"{stage}/{self.runs[index]}")
        progress = read_progress(self.layout.progress(stage, task.name), task.key)
        return progress.fraction if progress else 0.0

    def wait(self, timeout_s: float = 240) -> None:
        """Until Slurm has no job of the study any more."""
        jobs = {batch.job for batch in Journal(self.layout).read()}
        self.until(lambda: not self._queue() & jobs, timeout_s, "the jobs do not end")

    def _queue(self) -> set[str]:
        return set(self.cluster.run("squeue", "--noheader", "--format=%F").stdout.split())

    def wait_for_checkpoint(self, index: int = 0, more_than: int = 0) -> int:
        """Until the training has come so far that it would have something to lose; returns the step."""
        self.until(lambda: self.newest_step(index) > more_than, 90, "there is no checkpoint")
        return self.newest_step(index)

    def newest_step(self, index: int = 0) -> int:
        paths = self.layout.checkpoints(self.runs[index]).glob("step-*.pt")
        return max((int(path.name.split("-")[1]) for path in paths), default=0)

    def until(self, comes: Callable[[], bool], timeout_s: float, complaint: str, every_s: float = 0.1) -> None:
        """Waits until something comes, or complains with all that the jobs have printed."""
        deadline = time.monotonic() + timeout_s
        while not comes():
            assert time.monotonic() < deadline, f"{complaint}\n{self.said()}"
            time.sleep(every_s)

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

        self.until(known, 40, f"sacct tells {found}")
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


def edited_site(folder: Path, *changes: str, files: str = "gpu.sbatch") -> Site:
    """The test cluster's site with other words in its files: old, new, old, new, …"""
    shutil.copytree(TEST_SITE, folder)
    for file in folder.glob(files):
        text = file.read_text()
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            text = text.replace(old, new)
        file.write_text(text)
    return load_site(str(folder))


def run_undisturbed(cluster: Cluster, site: Site, folder: Path, text: str, stages: tuple[str, ...]) -> Study:
    """Runs these stages of a study, and sees to it that each has left what it should."""
    before = os.environ.copy()
    os.environ.update(cluster.environment)
    try:
        study = Study.make(cluster, folder, site, text)
        study.submit(stages)
        study.wait()
        files = [name for name in study.result() if not name.startswith("statistics")]
        assert len(files) == len(study.runs) * (4 if "measure" in stages else 2), study.said()
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


def rank_process(study: Study, stage: str, rank: int) -> processes.Process:
    """The process of one rank. The script of the job and `srun` have rank 0 in their environment, too."""
    job = study.cluster.job(study.job(stage))["JobId"]
    wanted = {f"SLURM_PROCID={rank}".encode(), f"SLURM_JOB_ID={job}".encode()}
    mine = processes.of_cluster(study.cluster.folder, study.cluster.name)
    ranks = [p for p in mine if p.name.startswith("python") and "submitit.core._submit" in p.command]
    return next(p for p in ranks if wanted <= processes.environment(p.pid))
