"""Trainings that wait for trainings, on a real Slurm: none starts too early, none waits for ever."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest

from fluence.layout import Layout
from fluence.store.outcome import read_outcome
from fluence.studyfile import parse_study
from jobs.journal import Journal
from jobs.plan import plan
from jobs.sites import load_site
from jobs.snapshot import take_snapshot
from tests.cluster.cluster import Cluster
from tests.cluster.studies import TEST_SITE, Study, edited_site

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

STUDY = """
name: tiny
data:
  image_size_px: 32
  datasets: {{faces: {{kind: synthetic, num_images: 200, num_ethnicities: 2, seed: 1}}}}
  training: faces
  rated: faces
models:
  student:
    kind: vae
    width: 0.125
    reconstruction: [{{loss: dfc, network: {{kind: model, model: teacher}}, weight: 100}}]
    training: {{epochs: 2}}
  teacher: {{kind: vae, width: 0.125, norm: batch, training: {{learning_rate: {rate}}}}}
training: {{epochs: 60, batch_size: 8}}
grid: {{seeds: [0, 1]}}
"""
FIRST_TWO = ("pack", "train")


def make(cluster: Cluster, folder: Path, site: str, rate: float) -> Study:
    layout = Layout(folder)
    study = parse_study(STUDY.format(rate=rate), "tiny.yaml")
    return Study(cluster, layout, take_snapshot(study, layout), load_site(site))


def teachers_job(study: Study) -> str:
    """The job of the first teacher: of the first batch of trainings."""
    batch = next(batch for batch in Journal(study.layout).read() if batch.stage == "train")
    assert batch.tasks == tuple(study.runs[:2])
    assert all(name.startswith("teacher") for name in batch.tasks)
    return next(iter(batch.elements(0)))


def started_s(study: Study, run: str) -> float:
    """When a training began, to the second."""
    outcome = read_outcome(study.layout.outcome("train", run))
    assert outcome is not None
    return datetime.strptime(outcome.provenance["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()


@pytest.mark.parametrize("requeues", [True, False])
def test_a_teacher_that_is_interrupted_is_still_waited_for(
    slurm_cluster: Cluster, tmp_path: Path, requeues: bool
) -> None:
    """It starts again as itself, or as another job: a student that came too early would be left undone."""
    site = str(TEST_SITE)
    if not requeues:
        changes = "#SBATCH --requeue\n", "", "requeue=yes", "requeue=no"
        site = str(edited_site(tmp_path / "site", *changes, files="*.sbatch").folder)
    study = make(slurm_cluster, tmp_path / "study", site, rate=1e-3)
    study.submit(FIRST_TWO)
    study.wait_for_checkpoint(0)
    study.cluster.run("scancel", "--signal=USR2", teachers_job(study))
    study.wait()
    assert len(re.findall(r"stopped after \d+ of", study.log("train", 0))) == 1
    assert len(study.result()) == 4 * 2  # weights and losses of every run
    taught = max(study.layout.weights(run).stat().st_mtime for run in study.runs[:2])
    assert min(started_s(study, run) for run in study.runs[2:]) + 1 >= taught


def test_students_of_teachers_that_diverged_end_at_once(slurm_cluster: Cluster, tmp_path: Path) -> None:
    study = make(slurm_cluster, tmp_path / "study", str(TEST_SITE), rate=1e30)
    study.submit(FIRST_TWO)
    study.wait()
    states = {entry.task.label: entry for entry in plan(study.snapshot.tasks, study.layout)}
    for seed, student in enumerate(study.runs[2:]):
        assert states[f"train teacher-all-s{seed}"].state == "diverged", study.said()
        entry = states[f"train student-all-s{seed}"]
        assert entry.state == "blocked"
        assert entry.reason.startswith(f"train teacher-all-s{seed} diverged: ")
        assert "blocked, nothing to do" in study.log("train", 2 + seed)
        assert read_outcome(study.layout.outcome("train", student)) is None
