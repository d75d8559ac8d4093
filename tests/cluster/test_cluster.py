"""That the test cluster does to jobs what a Slurm does to them, and that it comes and goes without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster import processes
from tests.cluster.cluster import DEV_MAX_SUBMIT, DEV_QOS, NODES, Cluster, ClusterError, stop_abandoned
from tests.cluster.packages import CannotInstall, install
from tests.conftest import started

ROOT = Path(__file__).resolve().parents[2]
slurm = pytest.mark.slurm

SAVES_ON_USR2 = """#!/bin/bash
#SBATCH --requeue --open-mode=append --signal=B:USR2@60 --gres=gpu:4 --partition=gpu --nodelist=v100n1
trap 'echo "saved"; exit 0' USR2
echo "run ${SLURM_RESTART_COUNT:-0}"
if [ -z "$SLURM_RESTART_COUNT" ]; then for i in $(seq 600); do sleep 0.1; done; fi
"""


def script(folder: Path, text: str) -> str:
    path = folder / "job.sh"
    path.write_text(text if text.startswith("#!") else f"#!/bin/bash\n{text}\n", encoding="utf-8")
    return str(path)


def printed(path: Path, lines: int = 1, timeout_s: float = 30) -> list[str]:
    """Lines of a job's output, once there are so many."""
    deadline = time.monotonic() + timeout_s
    while len(found := path.read_text().split("\n")[:-1] if path.exists() else []) < lines:
        assert time.monotonic() < deadline, f"{path.name} holds {found}"
        time.sleep(0.1)
    return found


def history(cluster: Cluster, job: str, runs: int = 2, timeout_s: float = 40) -> list[tuple[str, str]]:
    """What sacct says once it has heard of every run: the accounting is some seconds behind."""
    deadline = time.monotonic() + timeout_s
    while len(found := cluster.history(job)) < runs or any(state in ("PENDING", "RUNNING") for _, state in found):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return found


@slurm
def test_all_nodes_are_idle(slurm_cluster: Cluster) -> None:
    assert slurm_cluster.node_states() == dict.fromkeys(NODES, "idle")


@slurm
def test_every_port_is_on_loopback(slurm_cluster: Cluster) -> None:
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    mine = [p.pid for p in processes.of_cluster(slurm_cluster.folder, slurm_cluster.name)]
    addresses = [line.split()[3] for line in listening if any(f"pid={pid}," in line for pid in mine)]
    assert len(addresses) == 5  # slurmctld, slurmdbd and three slurmd; database and munge have none
    assert all(address.startswith("127.0.0.1:") for address in addresses)


@slurm
def test_an_array_runs(slurm_cluster: Cluster, tmp_path: Path) -> None:
    job = script(tmp_path, "echo $SLURM_ARRAY_TASK_ID")
    number = slurm_cluster.sbatch("--array=0-3", f"--output={tmp_path}/%a", "--wait", job)
    assert [printed(tmp_path / str(task)) for task in range(4)] == [["0"], ["1"], ["2"], ["3"]]
    assert sorted(history(slurm_cluster, number, 4)) == [(f"{number}_{task}", "COMPLETED") for task in range(4)]


@slurm
def test_srun_spans_two_nodes_with_their_gpus(slurm_cluster: Cluster, tmp_path: Path) -> None:
    job = script(tmp_path, "srun bash -c 'echo $SLURM_PROCID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'")
    size = "--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2"
    slurm_cluster.sbatch(*size, f"--output={tmp_path}/out", "--wait", job)
    assert sorted(printed(tmp_path / "out", 4)) == ["0 v100n1 0,1", "1 v100n1 0,1", "2 v100n2 0,1", "3 v100n2 0,1"]


@slurm
def test_two_jobs_on_a_node_get_different_gpus(slurm_cluster: Cluster, tmp_path: Path) -> None:
    job = script(tmp_path, "echo $CUDA_VISIBLE_DEVICES; sleep 3")
    for name in "ab":
        slurm_cluster.sbatch("--gres=gpu:2", "--nodelist=v100n1", f"--output={tmp_path}/{name}", job)
    assert {printed(tmp_path / name)[0] for name in "ab"} == {"0,1", "2,3"}


@slurm
def test_a_preempted_job_is_told_and_starts_again(slurm_cluster: Cluster, tmp_path: Path) -> None:
    """A job that ends in its grace time is not requeued by Slurm: it asks for that itself, and sacct says so."""
    saving = SAVES_ON_USR2.replace("exit 0", "scontrol requeue $SLURM_JOB_ID; sleep 1")
    job = slurm_cluster.sbatch(f"--output={tmp_path}/out", script(tmp_path, saving))
    printed(tmp_path / "out")
    urgent = "--partition=urgent", "--gres=gpu:4", "--nodelist=v100n1", "--output=/dev/null", "--wrap=sleep 1"
    slurm_cluster.sbatch(*urgent)
    slurm_cluster.wait_for_job(job, "COMPLETED")
    lines = printed(tmp_path / "out", 3)
    assert [line for line in lines if not line.startswith("slurmstepd")] == ["run 0", "saved", "run 1"]
    assert slurm_cluster.job(job)["Restarts"] == "1"
    assert history(slurm_cluster, job) == [(job, "REQUEUED"), (job, "COMPLETED")]


@slurm
def test_a_job_that_does_not_listen_is_preempted_all_the_same(slurm_cluster: Cluster, tmp_path: Path) -> None:
    deaf = SAVES_ON_USR2.replace('echo "saved"; exit 0', "")
    job = slurm_cluster.sbatch(f"--output={tmp_path}/out", script(tmp_path, deaf))
    printed(tmp_path / "out")
    urgent = "--partition=urgent", "--gres=gpu:4", "--nodelist=v100n1", "--output=/dev/null", "--wrap=sleep 1"
    slurm_cluster.sbatch(*urgent)
    slurm_cluster.wait_for_job(job, "COMPLETED")
    assert "run 1" in printed(tmp_path / "out", 2)
    assert history(slurm_cluster, job) == [(job, "PREEMPTED"), (job, "COMPLETED")]


@slurm
def test_a_job_past_its_time_times_out(slurm_cluster: Cluster) -> None:
    job = slurm_cluster.sbatch("--time=10", "--output=/dev/null", "--wrap=sleep 300")
    slurm_cluster.wait_for_job(job, "RUNNING")
    slurm_cluster.end_in(job, 1)
    slurm_cluster.wait_for_job(job, "TIMEOUT")
    assert history(slurm_cluster, job, 1) == [(job, "TIMEOUT")]


@slurm
def test_a_lost_node_requeues_its_job(slurm_cluster: Cluster, tmp_path: Path) -> None:
    waiting = SAVES_ON_USR2.replace(" --nodelist=v100n1", "")
    job = slurm_cluster.sbatch(f"--output={tmp_path}/out", script(tmp_path, waiting))
    printed(tmp_path / "out")
    node = slurm_cluster.job(job)["NodeList"]
    slurm_cluster.stop_node(node)
    assert not processes.of_node(processes.of_cluster(slurm_cluster.folder, slurm_cluster.name), node)
    slurm_cluster.wait_for_job(job, "COMPLETED", timeout_s=120)
    assert printed(tmp_path / "out", 2) == ["run 0", "run 1"]
    assert slurm_cluster.job(job)["NodeList"] != node
    assert history(slurm_cluster, job) == [(job, "NODE_FAIL"), (job, "COMPLETED")]


@slurm
def test_scontrol_requeues_under_the_same_id(slurm_cluster: Cluster, tmp_path: Path) -> None:
    job = slurm_cluster.sbatch(f"--output={tmp_path}/out", script(tmp_path, SAVES_ON_USR2))
    printed(tmp_path / "out")
    slurm_cluster.scontrol("requeue", job)
    slurm_cluster.wait_for_job(job, "COMPLETED")
    assert history(slurm_cluster, job) == [(job, "REQUEUED"), (job, "COMPLETED")]


@slurm
def test_the_dev_qos_takes_ten_jobs(slurm_cluster: Cluster) -> None:
    job = f"--qos={DEV_QOS}", "--begin=now+1hour", "--output=/dev/null", "--wrap=true"
    slurm_cluster.sbatch(f"--array=1-{DEV_MAX_SUBMIT}", *job)
    with pytest.raises(ClusterError, match="QOSMaxSubmitJobPerUserLimit"):
        slurm_cluster.sbatch(*job)


# ── Coming and going ─────────────────────────────────────────────────────────────────────────────────────────────


def tool(verb: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.cluster", verb, "--folder", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@slurm
def test_a_cluster_killed_while_starting_leaves_nothing(slurm_session: Cluster, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster")
    command = [sys.executable, "-m", "tests.cluster", "start", "--folder", str(cluster.folder)]
    for seconds in (0.5, 1.0, 2.0, 3.0):
        starting = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        starting.kill()
        starting.wait()
    assert processes.of_cluster(cluster.folder, cluster.name)
    assert tool("stop", cluster.folder).returncode == 0
    assert not cluster.folder.exists()
    assert not processes.of_cluster(cluster.folder, cluster.name)


@slurm
def test_a_second_cluster_starts_heals_and_goes(slurm_cluster: Cluster, tmp_path: Path) -> None:
    """Beside the first one: nothing clashes. A start of a half-dead one starts it anew; stop takes its jobs along."""
    cluster = Cluster(tmp_path / "cluster")

    def mine() -> list[processes.Process]:
        return processes.of_cluster(cluster.folder, cluster.name)

    try:
        first = tool("start", cluster.folder)
        assert first.stdout == f"export SLURM_CONF={cluster.conf}\n", first.stderr
        before = mine()
        tool("start", cluster.folder)
        assert {p.pid for p in mine()} == {p.pid for p in before}
        os.kill(next(p.pid for p in mine() if p.name == "slurmctld"), signal.SIGKILL)
        assert tool("status", cluster.folder).returncode == 1
        assert tool("start", cluster.folder).returncode == 0
        assert cluster.status() == "running"
        cluster.sbatch(f"--output={tmp_path}/out", "--wrap=echo begun; bash -c 'exec -a left-over sleep 300'")
        printed(tmp_path / "out", timeout_s=90)
        time.sleep(0.5)
        assert any("left-over" in p.command for p in mine())
    finally:
        stopped = tool("stop", cluster.folder)
    assert stopped.returncode == 0, stopped.stderr
    assert not cluster.folder.exists()
    assert not mine()
    assert slurm_cluster.status() == "running"


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ClusterError, match=r"thesis\.tex"):
        Cluster(tmp_path).stop()
    assert (tmp_path / "thesis.tex").exists()


def test_stopping_what_was_never_started_does_nothing(tmp_path: Path) -> None:
    Cluster(tmp_path / "none").stop()
    assert not (tmp_path / "none").exists()


def test_without_slurm_and_root_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.cluster.packages.missing_programs", lambda: ["slurmctld"])
    monkeypatch.setattr("tests.cluster.packages.program", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CannotInstall, match="slurmctld; type: sudo apt-get install munge"):
        install()


def test_without_slurm_tests_are_skipped_or_fail_where_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(self: Cluster) -> None:
        raise CannotInstall("no apt-get")

    monkeypatch.setattr(Cluster, "start", cannot)
    monkeypatch.delenv("FLUENCE_REQUIRE_SLURM", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Slurm here: no apt-get"):
        started(Cluster(Path("unused")))
    monkeypatch.setenv("FLUENCE_REQUIRE_SLURM", "1")
    with pytest.raises(pytest.fail.Exception, match="no apt-get"):
        started(Cluster(Path("unused")))


def test_a_cluster_of_a_killed_session_is_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUENCE_TEST_CLUSTER_FOLDER", str(tmp_path / "slurm"))
    gone = subprocess.Popen(["true"])
    gone.wait()
    for owner in (gone.pid, os.getpid()):
        (tmp_path / f"slurm-{owner}" / "log").mkdir(parents=True)
    stop_abandoned()
    assert [path.name for path in tmp_path.iterdir()] == [f"slurm-{os.getpid()}"]
