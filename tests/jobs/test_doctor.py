"""The doctor: what it finds on a cluster in good health, and each illness by its own words.

Slurm is a double that runs what it is given at once, as a node would; on the real one the doctor is tried below.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from fluence.layout import Layout
from jobs import cli, doctor, probes
from jobs.doctor import Doctor
from jobs.resources import CLASSES
from jobs.sites import TEMPLATES
from jobs.slurm import Slurm
from tests.cluster.cluster import Cluster
from tests.jobs.health import FILE, GPU, STUDY, Health, look, site, words

MODULES = doctor._MODULES
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


def test_the_disk_is_measured_by_the_study(tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same study that fits into 15 GB does not with a thousand seeds; no fixed number is the limit."""
    free_is(tmp_path, monkeypatch, 15e9)
    (found,) = [finding for finding in look(tmp_path, health) if finding.key == "disk"]
    assert (found.level, "quota" in found.hint) == ("ok", True)
    (found,) = [f for f in look(tmp_path, health, grid={"seeds": list(range(1000))}) if f.key == "disk"]
    assert found.level == "error"
    assert "15 GB are free" in found.message
    assert "checkpoints" in found.message
    assert "--output" in found.hint


def test_the_disk_without_a_study_or_its_images(
    tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_is(tmp_path, monkeypatch, 15e9)
    findings = list(Doctor(site(tmp_path), Layout(tmp_path / "results"), None, Slurm(run=health)).from_here())
    (found,) = [finding for finding in findings if finding.key == "disk"]
    assert (found.level, found.message) == ("warning", "15 GB free")
    gone = STUDY["data"] | {"datasets": {"faces": {"kind": "folder", "root": "/gone"}}}
    (found,) = [finding for finding in look(tmp_path, health, data=gone) if finding.key == "disk"]
    assert "what the study needs is unknown: " in found.message
    assert "/gone: no such folder" in found.message
    assert "fluence check" in found.hint


def free_is(folder: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: float) -> None:
    real = os.statvfs(folder)
    values = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")}
    status = type("Status", (), values | {"f_frsize": 1, "f_bavail": int(num_bytes), "f_bfree": int(num_bytes)})
    monkeypatch.setattr(os, "statvfs", lambda _: status)


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


def test_this_machines_clock(tmp_path: Path, health: Health) -> None:
    health.clock_s = 60.0
    assert any(
        "clock: the clock of this machine is at least" in word for word in words(look(tmp_path, health), "warning")
    )
    health.clock_s = None
    assert "clock" not in {finding.key for finding in look(tmp_path, health)}


def test_a_file_system_without_locks() -> None:
    (finding,) = probes.hdf5_finding("Unable to lock file, errno = 37", "hdf5")
    assert finding.level == "error"
    assert "HDF5_USE_FILE_LOCKING=FALSE" in finding.hint


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
        assert re.search(rf"ok       {node} node: the clock of \S+ agrees with Slurm's to [0-5]\.\d s", printed)
    assert "ok       clock: the clock of this machine agrees with Slurm's to" in printed
    assert not any(word in printed for word in ("file locks do not reach", "prologue complains", "PreemptMode=CANCEL"))
    assert not (tmp_path / "results").exists()
    deadline = time.monotonic() + 30
    while slurm_cluster.run("squeue", "--noheader").stdout:
        assert time.monotonic() < deadline, "a job of the doctor goes on"
        time.sleep(0.2)


@pytest.mark.slurm
def test_an_ill_site_on_a_real_cluster(
    slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Preemption cancels, jobs are not requeued, a prologue complains, and the images are gone."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    here = tmp_path / "here"
    shutil.copytree(TEMPLATES / "test-cluster", here)
    for name in CLASSES:
        text = (here / f"{name}.sbatch").read_text().replace("#SBATCH --requeue\n", "")
        text = text.replace("requeue=yes", "requeue=no")
        (here / f"{name}.sbatch").write_text(f"{text}echo this module is old >&2\n")
    data = STUDY["data"] | {"datasets": {"faces": {"kind": "folder", "root": str(tmp_path / "gone")}}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(STUDY | {"data": data}))
    slurm_cluster.scontrol("update", "PartitionName=gpu", "PreemptMode=CANCEL", "GraceTime=0")
    try:
        cli.main(["doctor", str(tmp_path / "tiny.yaml"), "--site", str(here), "--output", str(tmp_path / "results")])
    finally:
        slurm_cluster.scontrol("update", "PartitionName=gpu", "PreemptMode=REQUEUE", "GraceTime=10")
    printed = capsys.readouterr().out
    assert "warning  gpu jobs: a preempted job is ended and does not come back" in printed
    assert "(PreemptMode=CANCEL of partition gpu, GraceTime=0)" in printed
    assert "cpu jobs: a preempted job" not in printed
    assert "error    cpu node: data.datasets.faces.root: " in printed
    assert "gpu node: data.datasets" not in printed
    for node in CLASSES:
        assert f"warning  {node} node: the prologue complains: this module is old" in printed
        assert f"ok       {node} node: sbatch answers there; a job can submit its successor" in printed
