"""The jobs of the doctor: what they ask Slurm for, what they see on a node, and what that means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fluence.layout import Layout
from fluence.study import Study
from jobs import doctor, nodeprobe, probes
from jobs.clocks import Ahead
from jobs.findings import Finding
from jobs.nodeprobe import STUDY, NodeView, read_view
from jobs.slurm import NoAnswer, Slurm
from tests.jobs.health import FILE, GPU, Health, ask, look, program, site, words
from tests.jobs.health import STUDY as TINY


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


def test_a_site_that_does_not_requeue_is_asked_as_its_jobs_ask(tmp_path: Path, health: Health) -> None:
    health.starts = False
    ask(tmp_path, health, site(tmp_path, gpu=f"{GPU}#FLUENCE requeue=no\n"), wait_s=0.1)
    gpu, cpu, _ = health.scripts
    assert ("#SBATCH --no-requeue\n" in gpu, "#SBATCH --requeue\n" in gpu) == (True, False)
    assert ("#SBATCH --no-requeue\n" in cpu, "#SBATCH --requeue\n" in cpu) == (False, True)


def test_a_class_that_takes_no_job(tmp_path: Path, health: Health) -> None:
    health.refuses = ("#!/bin/bash", "sbatch: error: QOSMaxSubmitJobPerUserLimit")
    found = words(ask(tmp_path, health))
    assert len(found) == 3
    assert "gpu node: no job can be sent there: sbatch: error: QOSMax" in found[0]


# ── What it means ────────────────────────────────────────────────────────────────────────────────────────────────────


VIEW = NodeView(
    host="n1", python="3.12", fluence="", time=1000.0, clock=[-0.5, 0.6], home="", lock="", hdf5="", torch="2.10",
    built_for=["sm_80"], gpus=["8.0"], cuda="", requeue="1", sbatch="", internet=True, missing=[], prologue=[],
)  # fmt: skip


WINDOW = Ahead(-1.0, 1.0)


def meaning(folder: Path, caps: str = "", window: Ahead = WINDOW, **ill: object) -> list[Finding]:
    """What the doctor makes of a node that is well but for this."""
    copy = folder / "copy"
    seen = replace(VIEW, **{"fluence": str(copy / "fluence")} | ill)
    resources = site(folder, gpu=f"{GPU}#FLUENCE internet=yes\n{caps}")["gpu"]
    return list(probes.node_findings("gpu", resources, seen, copy, window))


@pytest.mark.parametrize(
    ("ill", "said"),
    [
        ({"requeue": "0"}, "#FLUENCE requeue=no"),
        ({"requeue": "there is no scontrol here"}, "cannot ask to start again"),
        ({"torch": "ImportError: libcudart"}, "torch cannot be imported: ImportError: libcudart"),
        ({"cuda": "CUDA error: no kernel image"}, "no kernel image"),
        ({"gpus": ["7.0"]}, "pip install 'fluence[v100]'"),
        ({"hdf5": "unable to lock file"}, "HDF5_USE_FILE_LOCKING"),
        ({"hdf5": "Stale file handle"}, "another file system with --output"),
        ({"home": "/home/me: Read-only file system"}, "#FLUENCE home=read-only"),
        ({"internet": False}, "#FLUENCE internet=no"),
        ({"missing": ["record.lpips: no file"]}, "record.lpips: no file"),
        ({"fluence": "/elsewhere/fluence"}, "not the copy of the code"),
        ({"clock": [199.5, 201.0]}, "200 s ahead of Slurm's"),
        ({"clock": [], "window": Ahead(-900.0, -130.0)}, "at least 130 s behind this machine's"),
        ({"lock": "could be locked here, too"}, "file locks do not reach n1: could be locked here, too"),
        ({"prologue": ["old module", "gone soon"]}, "the prologue complains: old module / gone soon"),
    ],
)
def test_each_illness_of_a_node(tmp_path: Path, ill: dict[str, object], said: str) -> None:
    assert {finding.level for finding in meaning(tmp_path)} == {"ok"}
    (found,) = [str(finding) for finding in meaning(tmp_path, **ill) if finding.level != "ok"]
    assert said in found


def test_a_node_that_may_not_submit_matters_where_jobs_are_not_requeued(tmp_path: Path) -> None:
    ill = {"sbatch": "sbatch: error: Access denied"}
    assert {finding.level for finding in meaning(tmp_path, **ill)} == {"ok"}
    (found,) = words(meaning(tmp_path, caps="#FLUENCE requeue=no\n", requeue="0", **ill))
    assert "a job cannot submit its successor there" in found
    assert "Access denied" in found
    assert "type `fluence submit` again" in found
    (found,) = words(meaning(tmp_path, caps="#SBATCH --no-requeue\n", requeue="0", **ill))
    assert "cannot submit its successor" in found


def test_a_node_that_submits_successors_is_well(tmp_path: Path) -> None:
    found = meaning(tmp_path, caps="#FLUENCE requeue=no\n", requeue="0")
    assert {finding.level for finding in found} == {"ok"}
    assert any("a job can submit its successor" in finding.message for finding in found)


def test_a_half_written_answer_is_none(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text('{"host": "n1"}')
    assert read_view(tmp_path / "gpu.json") is None


# ── What a node sees ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_slurm_that_does_not_answer_on_a_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def call(*_: object, **__: object) -> str:
        raise NoAnswer("there is no scontrol here")

    monkeypatch.setattr(Slurm, "call", call)
    monkeypatch.setattr(nodeprobe, "_internet", lambda: False)
    seen = nodeprobe.view(tmp_path, "gpu")
    assert (seen.requeue, seen.hdf5, seen.lock) == ("there is no scontrol here", "", "")
    assert (seen.clock, seen.missing, seen.prologue) == ([], [], [])
    assert seen.sbatch
    assert list(tmp_path.iterdir()) == []


def test_what_a_prologue_complains_about(tmp_path: Path) -> None:
    lines = ["Loading pytorch/2.8", "  Loading requirement: cuda/12", "", "b is old", "c" * 300, " d ", "e"]
    (tmp_path / "cpu.err").write_text("\n".join(lines))
    assert nodeprobe._prologue(tmp_path / "cpu.err") == ["b is old", "c" * 200, "d"]
    assert nodeprobe._prologue(tmp_path / "none.err") == []


def test_data_and_weights_are_sought_where_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    faces = {"kind": "csv", "root": str(tmp_path / "gone")}
    data = TINY["data"] | {"datasets": {"faces": faces}}
    study = Study.model_validate(TINY | {"data": data, "record": {"lpips": {"net": "alex"}}})
    folder = tmp_path / "doctor"
    folder.mkdir()
    (folder / STUDY).write_text(study.model_dump_json())
    (of_cpu,) = nodeprobe._missing(folder, "cpu")
    assert of_cpu.startswith(f"data.datasets.faces.root: {tmp_path / 'gone'}: no such folder")
    (of_gpu,) = nodeprobe._missing(folder, "gpu")
    assert of_gpu.startswith("record.lpips: ")
    assert nodeprobe._missing(folder, "bigmem") == []
    packed = Layout(tmp_path).packed("faces")
    packed.parent.mkdir(parents=True)
    packed.touch()
    assert nodeprobe._missing(folder, "cpu") == []


def test_what_lacks_here_may_be_on_the_nodes(tmp_path: Path, health: Health) -> None:
    """The site's prologue may say where weights are."""
    findings = look(tmp_path, health, record={"lpips": {"net": "alex"}})
    (found,) = [finding for finding in findings if finding.key == "record.lpips"]
    assert (found.level, "without the site's prologue" in found.message) == ("warning", True)


def test_an_ill_cluster_says_so_from_its_nodes(tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks stay on one machine, a prologue complains and goes on, nodes may not submit, and they see no data."""

    @contextmanager
    def held_elsewhere(path: Path) -> Iterator[str]:
        path.touch()
        yield ""

    monkeypatch.setattr(doctor, "held_lock", held_elsewhere)
    program(tmp_path, "sbatch", "echo sbatch: error: Access denied >&2; exit 1")
    program(tmp_path, "scontrol", "echo JobId=1 Requeue=0 Restarts=0")
    program(tmp_path, "sdiag", 'echo "sdiag output at now ($(($(date +%s) - 60)))"')
    ill = f"{FILE}#FLUENCE requeue=no\necho module pytorch is old >&2\n"
    data = TINY["data"] | {"datasets": {"faces": {"kind": "folder", "root": "/gone"}}}
    found = [
        word for word in map(str, ask(tmp_path, health, site(tmp_path, cpu=ill), data=data)) if " cpu node" in word
    ]
    bad = [word for word in found if not word.startswith("ok")]
    for said, word in zip(
        (
            "warning  cpu node: the prologue complains: module pytorch is old (look at the prologue of ",
            "warning  cpu node: file locks do not reach ",
            "warning  cpu node: the clock of ",
            "error    cpu node: a job cannot submit its successor there, and ends for good at its time limit: ",
            "error    cpu node: data.datasets.faces.root: /gone: no such folder",
        ),
        bad,
        strict=True,
    ):
        assert word.startswith(said)
