"""Every path under a study's folder. Nobody else joins paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One training: model × group × seed.

    Attributes:
        model: name of the model in the study.
        group: `all`, or the name of a group such as `asian-female`.
        seed: seed of the training.
        id: readable name and the hash of everything that made the run, `small-all-s0-1a2b3c4d`.
    """

    model: str
    group: str
    seed: int
    id: str

    @property
    def label(self) -> str:
        """The readable part of the id."""
        return f"{self.model}-{self.group}-s{self.seed}"


@dataclass(frozen=True)
class RunRow:
    """A run of the grid and what became of it: `done`, `skipped`, `failed` or `diverged`, with the reason."""

    run: Run
    status: str
    reason: str = ""


@dataclass(frozen=True)
class Layout:
    """The folder of one study.

    Attributes:
        root: the study's folder.
    """

    root: Path

    @property
    def study(self) -> Path:
        """The copy of the study file that the results belong to."""
        return self.root / "study.yaml"

    @property
    def statistics(self) -> Path:
        """Folder of the CSV tables of the analysis."""
        return self.root / "statistics"

    @property
    def report(self) -> Path:
        """Folder of the report and its figures."""
        return self.root / "report"

    @property
    def figures(self) -> Path:
        """Folder of the report's figures, as PNG and PDF."""
        return self.report / "figures"

    @property
    def report_page(self) -> Path:
        """The report itself: one HTML file that opens offline."""
        return self.report / "index.html"

    @property
    def report_pdf(self) -> Path:
        """The report as PDF, if it was asked for."""
        return self.report / "report.pdf"

    def packed(self, dataset: str) -> Path:
        """Pixels and manifest of one data set."""
        return self.root / "packed" / f"{dataset}.h5"

    def run(self, run_id: str) -> Path:
        """Folder of one training."""
        return self.root / "runs" / run_id

    def metrics_log(self, run_id: str) -> Path:
        """Loss terms of each epoch, one JSON object per line."""
        return self.run(run_id) / "metrics.jsonl"

    def checkpoints(self, run_id: str) -> Path:
        """Folder of one training's checkpoints."""
        return self.run(run_id) / "checkpoints"

    def weights(self, run_id: str) -> Path:
        """The weights that a finished training hands on."""
        return self.root.joinpath("runs", run_id, "weights.pt")

    def activations(self, run_id: str) -> Path:
        """Activations of the rated images."""
        return self.root / "activations" / f"{run_id}.h5"

    def activation_parts(self, run_id: str) -> Path:
        """Folder of what several processes write of a run's activations, and tell each other."""
        return self.root / "activations" / f"{run_id}.parts"

    def counted(self, run_id: str) -> Path:
        """Histograms of layers whose activations are not stored."""
        return self.root / "activations" / f"{run_id}.histograms.h5"

    def counted_parts(self, run_id: str) -> Path:
        """Folder of the parts of these histograms, until they are one file."""
        return self.root / "activations" / f"{run_id}.histograms.parts"

    def metrics(self, run_id: str) -> Path:
        """Metrics per image and layer."""
        return self.root / "metrics" / f"{run_id}.parquet"

    def epsilon(self, run_id: str) -> Path:
        """The ε chosen for each layer of one run."""
        return self.root / "metrics" / f"{run_id}.epsilon.csv"

    def histograms(self, run_id: str) -> Path:
        """Histograms of each image's activations, from which metrics with another ε are computed."""
        return self.root / "metrics" / f"{run_id}.histograms.h5"

    def unit_metrics(self, run_id: str) -> Path:
        """Metrics of each unit over the images, if the study asks for them."""
        return self.root / "metrics" / f"{run_id}.units.parquet"

    def embedding(self, run_id: str) -> Path:
        """Where the latents of each image lie in the plane, if the study asks for it."""
        return self.root / "metrics" / f"{run_id}.embedding.parquet"

    def partial_metrics(self, run_id: str) -> Path:
        """Folder of what is finished while a run is being measured; gone when it is measured."""
        return self.root / "metrics" / f"{run_id}.partial"

    def partial_metrics_of(self, run_id: str, piece: str) -> Path:
        """A finished piece of one layer."""
        return self.partial_metrics(run_id) / piece

    def outcome(self, stage: str, task: str) -> Path:
        """How a task ended: the only proof that it is done."""
        return self.root.joinpath("tasks", stage, f"{task}.outcome.json")

    def progress(self, stage: str, task: str) -> Path:
        """How far a task has come."""
        return self.root.joinpath("tasks", stage, f"{task}.progress.json")

    def log(self, stage: str, task: str) -> Path:
        """What a task printed."""
        return self.root.joinpath("tasks", stage, f"{task}.log")

    def snapshot(self, digest: str) -> Path:
        """A study as it was when tasks were planned from it."""
        return self.root / "tasks" / "snapshots" / f"{digest}.json"

    @property
    def journal(self) -> Path:
        """What was handed to Slurm, one JSON object per line."""
        return self.root / "tasks" / "journal.jsonl"

    @property
    def submissions(self) -> Path:
        """Folder of everything handed to Slurm at once: a folder for each batch."""
        return self.root / "tasks" / "submissions"

    def submission(self, token: str) -> Path:
        """Folder of one batch: its list of tasks, scripts and what Slurm itself has to say."""
        return self.submissions / token

    def job_log(self, token: str, element: str) -> Path:
        """What a job printed before and after its task: the site's prologue, and Slurm's own words."""
        return self.submission(token) / f"{element}_0_log.out"

    @property
    def slurm_answers(self) -> Path:
        """What Slurm answered last, so that it is not asked more often than once a minute."""
        return self.root / "tasks" / "slurm.json"

    def code(self, digest: str) -> Path:
        """The code that submitted tasks run with, as it was when they were submitted."""
        return self.root / "tasks" / "code" / digest

    def starts(self, stage: str, task: str) -> Path:
        """How often a task was started on a cluster since it last came any further."""
        return self.root / "tasks" / stage / f"{task}.starts.json"

    @property
    def lock(self) -> Path:
        """Held while `fluence run` works on this folder."""
        return self.root / "tasks" / "run.lock"
