"""The doctor: what it finds on a cluster in good health, and each illness by its own words.

Slurm is a double that runs what it is given at once, as a node would; on the real one the doctor is tried below.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from fluence.layout import Layout
from fluence.study import Study
from jobs import cli, doctor, nodeprobe, probes
from jobs.doctor import Doctor
from jobs.findings import Finding
from jobs.nodeprobe import NodeView, read_view
from jobs.sites import Site, load_site
from jobs.slurm import Answer, NoAnswer, Slurm
from tests.cluster.cluster import Cluster

MODULES = doctor._MODULES
CONFIG = {
    "ClusterName": "big",
    "SLURM_VERSION": "22.05.8",
    "MaxArraySize": "1001",
    "PreemptMode": "REQUEUE",
    "SlurmctldParameters": "preempt_send_user_signal",
}
FILE = "#!/bin/bash\n#SBATCH --time=60 --account=mine --qos=normal\n"
GPU = f"{FILE}#SBATCH --gres=gpu:1\n#FLUENCE gpu-sm=80\n"
STUDY = {
    "name": "tiny",
    "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
    "models": {"small": {"kind": "vae"}},
    "grid": {"seeds": [0, 1]},
}


@dataclass
class Health:
    """A Slurm, and what ails it.

    Attributes:
        config: what scontrol shows.
        refuses: what sbatch says to a script that holds this word.
        starts: whether jobs start; else they wait in the queue.
        has_accounting: whether sacct answers.
        max_submit: limit of the QoS.
        requeue: what Slurm says of a job.
        cancelled: ids given to scancel.
        state: of jobs that do not start.
        scripts: what was submitted.
    """

    config: dict[str, str] = field(default_factory=lambda: dict(CONFIG))
    refuses: tuple[str, str] = ("never", "")
    starts: bool = True
    has_accounting: bool = True
    max_submit: str = "10"
    requeue: str = "1"
    cancelled: list[str] = field(default_factory=list)
    state: str = "PENDING Priority"
    scripts: list[str] = field(default_factory=list)
    _jobs: int = 0

    def __call__(self, arguments: Sequence[str], timeout_s: float) -> Answer:
        program, *options = arguments
        if program == "sbatch":
            return self._sbatch(options)
        if program == "scontrol":
            lines = "".join(f"{name:<24}= {value}\n" for name, value in self.config.items())
            return Answer(0, lines) if self.config else Answer(1, "", "Unable to contact slurm controller")
        if program == "sacctmgr":
            qos = "qos" in options
            return Answer(0, f"normal|{self.max_submit}\n" if qos else "mine||normal\n")
        if program == "sacct":
            return Answer(0, "") if self.has_accounting else Answer(1, "", "Slurm accounting storage is disabled")
        if program == "squeue" and any(option.startswith("--jobs") for option in options):
            waiting = [f"{job} {self.state}\n" for job in range(1, self._jobs + 1)]
            return Answer(0, "" if self.starts else "".join(waiting))
        if program == "scancel":
            self.cancelled += options
        return Answer(0, "")

    def _sbatch(self, options: Sequence[str]) -> Answer:
        script = Path(options[-1]).read_text()
        word, said = self.refuses
        if word in script:
            return Answer(1, "", said)
        if "--test-only" in options:
            return Answer(0, "", "sbatch: Job 9 to start at 1 using 1 processors on nodes n1 in partition gpu")
        self._jobs += 1
        self.scripts.append(script)
        if self.starts:
            output = next(line.partition("=")[2] for line in script.splitlines() if line.startswith("#SBATCH --output"))
            with open(output.strip("'"), "w") as log:
                environment = {**os.environ, "SLURM_JOB_ID": "1", "PATH": f"{self.bin}:{os.environ['PATH']}"}
                subprocess.run(["bash", options[-1]], stdout=log, stderr=log, env=environment, check=False)
        return Answer(0, f"{self._jobs}\n")

    bin: str = "/nowhere"


@pytest.fixture
def health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Health:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(probes, "_POLL_S", 0.01)
    monkeypatch.setattr(probes, "_ASK_S", 0.0)
    monkeypatch.setattr(probes, "_SHOWS_WITHIN_S", 0.0)
    monkeypatch.setattr(doctor, "_MODULES", "fluence")  # one test imports all of them; torch takes seconds
    found = Health(bin=str(tmp_path / "bin"))
    scontrol(tmp_path, "1")
    return found


def scontrol(folder: Path, requeue: str) -> None:
    path = folder / "bin" / "scontrol"
    path.write_text(f"#!/bin/sh\necho JobId=1 Requeue={requeue} Restarts=0\n")
    path.chmod(0o755)


def site(folder: Path, gpu: str = GPU, cpu: str = FILE) -> Site:
    here = folder / "here"
    here.mkdir(exist_ok=True)
    for name, text in (("gpu", gpu), ("cpu", cpu), ("bigmem", FILE)):
        (here / f"{name}.sbatch").write_text(text, encoding="utf-8")
    return load_site(str(here))


def look(folder: Path, health: Health, found: Site | None = None, root: Path | None = None) -> list[Finding]:
    layout = Layout(root or folder / "results" / "tiny")
    study = Study.model_validate(STUDY)
    return list(Doctor(found or site(folder), layout, study, Slurm(run=health)).from_here())


def ask(folder: Path, health: Health, found: Site | None = None, wait_s: float = 60) -> list[Finding]:
    layout = Layout(folder / "results" / "tiny")
    examination = Doctor(found or site(folder), layout, Study.model_validate(STUDY), Slurm(run=health))
    return list(examination.from_nodes(wait_s))


def words(findings: list[Finding], level: str = "error") -> list[str]:
    return [str(finding) for finding in findings if finding.level == level]


# ── From here ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cluster_in_good_health(tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_MODULES", MODULES)
    findings = look(tmp_path, health)
    keys = {finding.key for finding in findings if finding.level == "ok"}
    assert {"slurm", "accounting", "gpu jobs", "cpu jobs", "bigmem jobs", "limits", "folder", "hdf5", "clock"} <= keys
    assert {finding.key for finding in findings if finding.level == "error"} <= {"torch", "inodes", "disk"}
    assert "10 more jobs may be submitted for mine/normal now" in [f.message for f in findings]
    assert not (tmp_path / "results").exists()


def test_no_slurm_here(tmp_path: Path, health: Health) -> None:
    health.config = {}
    assert any(
        "slurm: cannot be reached: scontrol: Unable to contact" in word for word in words(look(tmp_path, health))
    )


def test_slurms_own_words_about_a_script(tmp_path: Path, health: Health) -> None:
    health.refuses = ("gres=gpu:1", "sbatch: error: Invalid account or account/partition combination specified")
    (found,) = [word for word in words(look(tmp_path, health)) if "gpu jobs" in word]
    assert "Invalid account" in found
    assert "edit" in found
    assert "here/gpu.sbatch" in found


def test_no_slot_is_free(tmp_path: Path, health: Health) -> None:
    health.max_submit = "0"
    assert len([word for word in words(look(tmp_path, health), "warning") if "0 more jobs" in word]) == 3


def test_what_is_missing_is_a_warning(tmp_path: Path, health: Health) -> None:
    health.has_accounting, health.config["SlurmctldParameters"] = False, "(null)"
    found = words(look(tmp_path, health, site(tmp_path, gpu=GPU.replace("#FLUENCE gpu-sm=80\n", ""))), "warning")
    assert any("accounting" in word and "fluence cost" in word for word in found)
    assert any("preemption" in word and "--checkpoint-interval" in word for word in found)
    assert any("torch" in word and "gpu-sm=70" in word for word in found)


def test_below_home(tmp_path: Path, health: Health) -> None:
    root = tmp_path / "home" / "results"
    assert any(
        "below $HOME" in word and "--output" in word for word in words(look(tmp_path, health, root=root), "warning")
    )
    read_only = site(tmp_path, cpu=f"{FILE}#FLUENCE home=read-only\n")
    assert any("nodes for cpu cannot write" in word for word in words(look(tmp_path, health, read_only, root)))


def test_a_folder_that_cannot_be_made(tmp_path: Path, health: Health) -> None:
    (tmp_path / "file").touch()
    (found,) = [word for word in words(look(tmp_path, health, root=tmp_path / "file" / "tiny")) if "folder" in word]
    assert "a file stands where a folder is needed" in found


def test_too_few_inodes(tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    values = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")} | {"f_files": 9, "f_favail": 5}
    monkeypatch.setattr(os, "statvfs", lambda _: type("Status", (), values))
    assert any("inodes: 5 inodes free; the study needs about 24" in word for word in words(look(tmp_path, health)))


def test_a_torch_without_code_for_the_sites_gpu(
    tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_75 sm_80")
    (found,) = words(look(tmp_path, health, site(tmp_path, gpu=GPU.replace("80", "70"))))
    assert "no kernel image" in found
    assert "[v100]" in found
    assert words(look(tmp_path, health)) == []


def test_code_that_cannot_be_imported(tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_MODULES", "fluence.nothing_like_it")
    assert any("code: the copy for jobs cannot be imported: ModuleNotFound" in w for w in words(look(tmp_path, health)))


@pytest.mark.parametrize(("ahead_s", "level"), [(0.5, "ok"), (-30.0, "warning"), (400.0, "error")])
def test_clocks(ahead_s: float, level: str) -> None:
    (finding,) = probes.clock_finding(ahead_s, "clock", "n1")
    assert finding.level == level
    if level != "ok":
        assert ("behind" if ahead_s < 0 else "ahead of") in finding.message


def test_a_file_system_without_locks() -> None:
    (finding,) = probes.hdf5_finding("Unable to lock file, errno = 37", "hdf5")
    assert finding.level == "error"
    assert "HDF5_USE_FILE_LOCKING=FALSE" in finding.hint


# ── From the nodes ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_nodes_answer_each_for_itself(tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is well, one has no GPU for its job, and on one the prologue fails."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    broken = site(tmp_path, cpu=f"{FILE}echo 'module: no such module' >&2; exit 1\n")
    findings = ask(tmp_path, health, broken)
    answered = [finding.key for finding in findings if "can write to the folder" in finding.message]
    assert answered == ["gpu node", "bigmem node"]
    gpu, cpu = sorted(words(findings), reverse=True)
    assert "gpu node: torch " in gpu
    assert "sees 0 of 1 GPUs" in gpu
    assert "cpu node: the job has failed: module: no such module" in cpu
    assert not (tmp_path / "results").exists()


def test_a_job_that_does_not_start_is_withdrawn(tmp_path: Path, health: Health) -> None:
    health.starts = False
    found = words(ask(tmp_path, health, wait_s=0.1), "warning")
    assert len(found) == 3
    assert all("did not start" in word and "PENDING Priority" in word and "--wait" in word for word in found)
    assert health.cancelled == ["1", "2", "3"]


def test_a_job_that_is_not_done_in_time_is_told_apart(tmp_path: Path, health: Health) -> None:
    health.starts, health.state = False, "RUNNING None"
    assert all("the job is not done within" in word for word in words(ask(tmp_path, health, wait_s=0.1), "warning"))


def test_the_probe_asks_for_what_a_job_asks_for(tmp_path: Path, health: Health) -> None:
    health.starts = False
    wide = "#!/bin/bash\n#SBATCH --time=5 --nodes=2 --ntasks-per-node=4 --gpus=8 --signal=USR2@60\n"
    ask(tmp_path, health, site(tmp_path, gpu=wide), wait_s=0.1)
    options = [line.removeprefix("#SBATCH ") for line in health.scripts[0].splitlines() if line.startswith("#SBATCH")]
    assert {"--time=5", "--nodes=1", "--ntasks-per-node=1", "--gpus=4", "--requeue"} <= set(options)
    assert not any("signal" in option for option in options)


def test_what_lacks_here_may_be_on_the_nodes(tmp_path: Path, health: Health) -> None:
    """The site's prologue may say where weights are."""
    lpips = Study.model_validate(STUDY | {"record": {"lpips": {"net": "alex"}}})
    layout = Layout(tmp_path / "results" / "tiny")
    findings = list(Doctor(site(tmp_path), layout, lpips, Slurm(run=health)).from_here())
    (found,) = [finding for finding in findings if finding.key == "record.lpips"]
    assert (found.level, "without the site's prologue" in found.message) == ("warning", True)


def test_a_class_that_takes_no_job(tmp_path: Path, health: Health) -> None:
    health.refuses = ("#!/bin/bash", "sbatch: error: QOSMaxSubmitJobPerUserLimit")
    found = words(ask(tmp_path, health))
    assert len(found) == 3
    assert "gpu node: no job can be sent there: sbatch: error: QOSMax" in found[0]


VIEW = NodeView("n1", "3.12", "", 0.0, "", "", "2.10", ["sm_80"], ["8.0"], "", "1", True, [])


@pytest.mark.parametrize(
    ("ill", "said"),
    [
        ({"requeue": "0"}, "#FLUENCE requeue=no"),
        ({"requeue": "there is no scontrol here"}, "cannot ask to start again"),
        ({"torch": "ImportError: libcudart"}, "torch cannot be imported: ImportError: libcudart"),
        ({"cuda": "CUDA error: no kernel image"}, "no kernel image"),
        ({"gpus": ["7.0"]}, "no kernel image is available"),
        ({"hdf5": "unable to lock file"}, "HDF5_USE_FILE_LOCKING"),
        ({"home": "/home/me: Read-only file system"}, "#FLUENCE home=read-only"),
        ({"internet": False}, "#FLUENCE internet=no"),
        ({"weights": ["record.lpips: no file"]}, "record.lpips: no file"),
        ({"fluence": "/elsewhere/fluence"}, "not the copy of the code"),
        ({"clock_ahead_s": 200.0}, "200 s ahead of"),
    ],
)
def test_each_illness_of_a_node(tmp_path: Path, ill: dict[str, object], said: str) -> None:
    copy = tmp_path / "copy"
    resources = site(tmp_path, gpu=f"{GPU}#FLUENCE internet=yes\n")["gpu"]
    healthy = replace(VIEW, fluence=str(copy / "fluence"))
    assert {finding.level for finding in probes.node_findings("gpu", resources, healthy, copy)} == {"ok"}
    findings = probes.node_findings("gpu", resources, replace(healthy, **ill), copy)
    (found,) = [str(finding) for finding in findings if finding.level != "ok"]
    assert said in found


def test_a_half_written_answer_is_none(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text('{"host": "n1"}')
    assert read_view(tmp_path / "gpu.json") is None


def test_slurm_that_does_not_answer_on_a_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def call(*_: object, **__: object) -> str:
        raise NoAnswer("there is no scontrol here")

    monkeypatch.setattr(Slurm, "call", call)
    monkeypatch.setattr(nodeprobe, "_internet", lambda: False)
    seen = nodeprobe.view(tmp_path)
    assert (seen.requeue, seen.hdf5, seen.weights) == ("there is no scontrol here", "", [])
    assert abs(seen.clock_ahead_s) < 5
    assert list(tmp_path.iterdir()) == []


# ── On a real Slurm ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slurm
def test_the_doctor_on_a_real_cluster(
    slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pretended GPUs are the one illness of the test cluster."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "tiny.yaml").write_text(json.dumps(STUDY))
    output = str(tmp_path / "results")
    code = cli.main(
        ["doctor", str(tmp_path / "tiny.yaml"), "--site", "test-cluster", "--output", output, "--wait", "3"]
    )
    printed = capsys.readouterr().out
    errors = [line for line in printed.splitlines() if line.startswith("error")]
    assert code == 2
    assert len(errors) == 1
    assert "gpu node: " in errors[0]
    assert "sees 0 of 1 GPUs" in errors[0] or "does not work" in errors[0]
    for node in ("gpu", "cpu", "bigmem"):
        assert f"ok       {node} node: " in printed
        assert f"ok       {node} jobs: sbatch takes them; one would start at once" in printed
    assert not (tmp_path / "results").exists()
    deadline = time.monotonic() + 30
    while slurm_cluster.run("squeue", "--noheader").stdout:
        assert time.monotonic() < deadline, "a job of the doctor goes on"
        time.sleep(0.2)
