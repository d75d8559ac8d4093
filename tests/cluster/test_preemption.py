"""What Slurm does to jobs in the middle of their work, on a real one: the results are the same bits as without it.

Every study here has one or two tiny trainings. Its undisturbed twin ran on the same cluster with the same layout of
processes; then the weights, the log of the losses, the activations and the measures of the two must not differ.
What happens to the stages after training is in test_later_stages.py.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from fluence.errors import RunError
from fluence.store.files import read_json
from fluence.store.outcome import read_outcome
from jobs.batches import Choice
from jobs.sites import Site
from jobs.slurm import Answer, NoAnswer, Slurm, run_command
from jobs.starts import MOST_STARTS
from jobs.submit import Options, submit
from tests.cluster.cluster import Cluster
from tests.cluster.studies import ALL, OF_RUNS, URGENT, Study, preempt, rank_process, twin

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

# ── Training ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_preempted_by_a_more_urgent_job(slurm_cluster: Cluster, undisturbed: Study, tmp_path: Path) -> None:
    """Both runs of the array, in the middle of an epoch. They save, ask to be started again, and lose no step."""
    study = twin(undisturbed, tmp_path / "study")
    study.submit(ALL, interval_s=600)
    study.cluster.wait_for_job(study.job("train"), "RUNNING")
    study.until(lambda: all(study.layout.metrics_log(run).exists() for run in study.runs), 60, "no epoch ends")
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
    study.submit(stages=("train",), interval_s=0.3)  # three starts have to leave something for the fourth
    job = study.job("train")
    for restarts in range(3):
        study.until(lambda: study.cluster.job(job)["JobState"] == "RUNNING", 90, "it does not start")
        study.wait_for_checkpoint(more_than=study.newest_step())
        os.kill(rank_process(study, "train", 0).pid, signal.SIGSTOP)
        study.cluster.end_in(job, 58)
        study.until(lambda n=restarts: int(study.cluster.job(job)["Restarts"]) > n, 90, "it is not told")
    study.wait()
    assert study.history("train", runs=4) == ["REQUEUED"] * 3 + ["COMPLETED"]
    assert study.agrees_with(undisturbed)


# ── Two nodes ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_nodes_train_together_and_are_preempted(
    slurm_cluster: Cluster, undisturbed_on_two_nodes: Study, tmp_path: Path
) -> None:
    """A whole node goes to another job: the process on the other one agrees on the same step."""
    study = twin(undisturbed_on_two_nodes, tmp_path / "study")
    study.submit(OF_RUNS[:2], interval_s=600)
    study.cluster.wait_for_job(study.job("train"), "RUNNING")
    study.until(lambda: study.layout.metrics_log(study.runs[0]).exists(), 60, "no epoch ends")
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


# ── Giving up, and a lost answer ─────────────────────────────────────────────────────────────────────────────────


def test_a_task_that_never_gets_anywhere_is_given_up(
    slurm_cluster: Cluster, undisturbed: Study, tmp_path: Path
) -> None:
    """Killed again and again before its first checkpoint: a failure, and not a job that starts for ever."""
    study = twin(undisturbed, tmp_path / "study", OF_RUNS[:2])
    study.submit(stages=("extract",))
    run, starts = study.runs[0], study.layout.starts("extract", study.runs[0])
    for number in range(1, MOST_STARTS + 1):
        study.until(lambda n=number: starts.exists() and read_json(starts)["starts"] == n, 90, "it does not start")
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
