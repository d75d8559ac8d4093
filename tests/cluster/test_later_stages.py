"""What Slurm does to extraction and measuring in the middle of their work: they go on, and end with the same bits."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.sites import Site
from tests.cluster import processes
from tests.cluster.cluster import Cluster
from tests.cluster.studies import ALL, OF_RUNS, URGENT, Study, rank_process, twin

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

PLACE = r"(?:layer \w+ \((\d+) of \d+\), )?image (\d+) of (\d+)"


class Held:
    """The process of a later stage's first task, stopped in the middle of its work: it has something to lose.

    Args:
        study: the study.
        stage: the stage.
        done: share of the work that earlier starts have done; it is held when it has done more.
    """

    def __init__(self, study: Study, stage: str, done: float = 0.0) -> None:
        self._study, self.stage, self._done, self.job = study, stage, done, study.job(stage)
        study.until(lambda: study.cluster.job(self.job)["JobState"] == "RUNNING", 120, "it does not start")
        study.until(self._is_there, 60, "its process does not come")
        self.pid = rank_process(study, stage, 0).pid
        study.until(self._is_at_work, 60, "it does not come to its work", every_s=0.01)
        study.until(self._has_something_to_lose, 60, "no block is done")

    def _is_there(self) -> bool:
        try:
            return bool(rank_process(self._study, self.stage, 0))
        except StopIteration:
            return False

    def _is_at_work(self) -> bool:
        """It has the activations open, to write or to read: from here on it does one block after the other."""
        activations = str(self._study.layout.activations(self._study.runs[0]).with_suffix(""))
        return processes.holds(self.pid, lambda path: path.startswith(f"{activations}."))

    def _has_something_to_lose(self) -> bool:
        """Lets it go on for a moment, and looks whether it has done another block."""
        os.kill(self.pid, signal.SIGCONT)
        time.sleep(0.02)
        os.kill(self.pid, signal.SIGSTOP)
        return self._done < self._study.fraction(self.stage) < 1

    def let_go(self) -> None:
        """If it is still there."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)


def places(study: Study, stage: str, verb: str) -> list[tuple[int, int]]:
    """(layer, image) where the starts of a task have `stopped` or `continues`, as its log tells.

    The end of a layer is the beginning of the next one. Extraction takes all layers at once: its layer is 0.
    """
    found = re.findall(f"{verb} at {PLACE}", study.log(stage))
    return [(int(layer) + 1, 0) if image == total else (int(layer or 0), int(image)) for layer, image, total in found]


def _preempted(study: Study, held: Held) -> None:
    node = study.cluster.job(held.job)["NodeList"]
    study.cluster.sbatch(*URGENT, "--exclusive", f"--nodelist={node}")
    study.until(lambda: study.cluster.job(held.job)["PreemptTime"] != "None", 60, "it is not preempted")


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


AGAIN = ["REQUEUED", "COMPLETED"]
BLOWS = {
    _preempted: AGAIN,
    _requeued_by_hand: AGAIN,
    _cancelled: ["COMPLETED"],
    _killed: AGAIN,
    _on_a_lost_node: ["NODE_FAIL", "COMPLETED"],
}


@pytest.mark.parametrize("blow", BLOWS, ids=lambda blow: blow.__name__[1:])
@pytest.mark.parametrize("stage", ["extract", "measure"])
def test_a_later_stage(
    slurm_cluster: Cluster,
    undisturbed_of_many_blocks: Study,
    tmp_path: Path,
    stage: str,
    blow: Callable[[Study, Held], None],
) -> None:
    """Whatever ends it in the middle of its work: it goes on behind what it has done, and the result is the same."""
    study = twin(undisturbed_of_many_blocks, tmp_path / "study", OF_RUNS[: OF_RUNS.index(stage)])
    study.submit((stage,))
    held = Held(study, stage)
    blow(study, held)
    held.let_go()
    study.wait()
    assert study.history(stage, runs=len(BLOWS[blow])) == BLOWS[blow]
    assert len(places(study, stage, "continues")) == 1, study.log(stage)
    assert len(study.result()) == OF_RUNS.index(stage) + 1
    assert study.agrees_with(undisturbed_of_many_blocks)


def other_process(study: Study, stage: str) -> int:
    """The second process of a stage's first task, as soon as it is there."""
    found: list[int] = []

    def is_there() -> bool:
        with suppress(StopIteration, KeyError):
            found.append(rank_process(study, stage, 1).pid)
        return bool(found)

    study.until(is_there, 120, "the second process does not come")
    return found[0]


@pytest.mark.parametrize("stage", ["extract", "measure"])
def test_two_processes_share_a_task_and_one_is_killed(
    slurm_cluster: Cluster, undisturbed_of_many_blocks: Study, shared_site: Site, tmp_path: Path, stage: str
) -> None:
    """Half of the images, or every other layer, each: with the values of one process, also after a new start."""
    study = twin(undisturbed_of_many_blocks, tmp_path / "study", OF_RUNS[: OF_RUNS.index(stage)])
    study.site = shared_site
    study.submit((stage,))
    other = other_process(study, stage)
    os.kill(other, signal.SIGSTOP)  # or it would have done its share before the first one has done anything
    held = Held(study, stage)
    os.kill(other, signal.SIGKILL)
    held.let_go()
    study.wait()
    assert study.history(stage, runs=2) == AGAIN
    assert study.agrees_with(undisturbed_of_many_blocks)
    if stage == "extract":
        assert len(list(study.layout.activation_parts(study.runs[0]).glob("*.h5"))) == 2


@pytest.mark.slow
def test_the_time_limit_three_times(slurm_cluster: Cluster, undisturbed_of_many_blocks: Study, tmp_path: Path) -> None:
    """An extraction and a measuring side by side: each start goes on where the one before has ended.

    --signal comes 60 s before the end, so the end is moved to in a minute. Slurm looks for such jobs every 30 s;
    until then they stand still, with a block of their own done. With its signal, Slurm also lets them go on.
    """
    studies = {
        stage: twin(undisturbed_of_many_blocks, tmp_path / stage, OF_RUNS[: OF_RUNS.index(stage)])
        for stage in ("extract", "measure")
    }
    for stage, study in studies.items():
        study.submit((stage,))
    done = dict.fromkeys(studies, 0.0)
    for restarts in range(3):
        with ThreadPoolExecutor() as both:  # neither may end while the other one is waited for
            held = dict(zip(studies, both.map(Held, studies.values(), studies, done.values()), strict=True))
        for stage in studies:
            slurm_cluster.end_in(held[stage].job, 58)
        for stage, study in studies.items():
            job = held[stage].job
            study.until(lambda j=job, n=restarts: int(slurm_cluster.job(j)["Restarts"]) > n, 90, "it is not told")
            done[stage] = study.fraction(stage)
    for stage, study in studies.items():
        study.wait()
        assert study.history(stage, runs=4) == ["REQUEUED"] * 3 + ["COMPLETED"]
        found = places(study, stage, "continues")
        assert found == places(study, stage, "stopped") == sorted(set(found)), study.log(stage)
        assert len(found) == 3
        assert study.agrees_with(undisturbed_of_many_blocks)


@pytest.mark.parametrize("stage", ["pack", "measure"])
def test_all_that_waits_for_a_stage_waits_for_its_successor(
    slurm_cluster: Cluster, undisturbed: Study, site_without_requeue: Site, tmp_path: Path, stage: str
) -> None:
    """Trainings wait for packing, and the analysis for measuring, also where another job takes over."""
    study = twin(undisturbed, tmp_path / "study", OF_RUNS[: OF_RUNS.index(stage)])
    study.site = site_without_requeue
    study.submit(("pack", "train") if stage == "pack" else ("measure", "analyse", "report"))
    first = study.job(stage)
    study.until(lambda: study.cluster.job(first)["JobState"] == "RUNNING", 120, "it does not start")
    study.until(lambda: study.layout.starts(stage, study.batch(stage).tasks[0]).exists(), 60, "it does not begin")
    study.cluster.run("scancel", "--signal=USR2", first)
    base = first.partition("_")[0]
    study.until(lambda: study.batch(stage).job not in (None, base), 60, "there is no successor")
    study.wait()
    assert study.submit(ALL if stage == "measure" else ("pack", "train")).sent == ()
    assert study.agrees_with(undisturbed)
