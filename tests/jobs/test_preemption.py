"""What becomes of a preempted job, by the settings of a cluster and of its partitions."""

from __future__ import annotations

from pathlib import Path

from jobs.preemption import preemption
from jobs.sites import Site
from jobs.slurm import Slurm
from tests.jobs.health import FILE, GPU, Health, site, words


def said(health: Health, found: Site, level: str = "warning") -> list[str]:
    return words(list(preemption(found, Slurm(run=health))), level)


def test_a_cluster_that_requeues(tmp_path: Path, health: Health) -> None:
    assert said(health, site(tmp_path)) == []
    health.config["SlurmctldParameters"] = "(null)"
    (found,) = said(health, site(tmp_path))
    assert "may not be warned" in found
    assert "--checkpoint-interval" in found


def test_a_partition_that_cancels(tmp_path: Path, health: Health) -> None:
    """The GPU file goes to one, and says nothing of the others; they go to the default one."""
    health.partition = (
        "PartitionName=scavenge Default=NO GraceTime=0 PreemptMode=CANCEL State=UP\n"
        "PartitionName=main Default=YES GraceTime=0 PreemptMode=REQUEUE State=UP"
    )
    (found,) = said(health, site(tmp_path, gpu=GPU.replace("--qos", "--partition=main,scavenge --qos")))
    assert found.startswith("warning  gpu jobs: a preempted job is ended and does not come back; what it did since its")
    assert "(PreemptMode=CANCEL of partition scavenge, GraceTime=0)" in found
    assert "type `fluence submit` again" in found
    assert "here/gpu.sbatch" in found


def test_a_default_partition_that_cancels_after_a_while(tmp_path: Path, health: Health) -> None:
    health.partition = "PartitionName=main Default=YES GraceTime=90 PreemptMode=CANCEL State=UP"
    found = said(health, site(tmp_path))
    assert [word[:19] for word in found] == ["warning  gpu jobs: ", "warning  cpu jobs: ", "warning  bigmem job"]
    assert "has 90 s to save and to ask for another start" in found[0]


def test_a_cluster_that_cancels_and_shows_no_partition(tmp_path: Path, health: Health) -> None:
    health.config["PreemptMode"], health.partition = "CANCEL", ""
    assert len([word for word in said(health, site(tmp_path)) if "is ended and does not come back" in word]) == 3


def test_a_site_that_does_not_requeue(tmp_path: Path, health: Health) -> None:
    (found,) = said(health, site(tmp_path, cpu=f"{FILE}#FLUENCE requeue=no\n"), "ok")
    assert "a successor goes on instead" in found


def test_a_slurm_that_does_not_answer(tmp_path: Path, health: Health) -> None:
    health.config = {}
    assert said(health, site(tmp_path)) == []
