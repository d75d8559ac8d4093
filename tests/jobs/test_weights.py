"""The verb `weights`: what it shows, what it fetches from a real server on this machine, and what submit refuses."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from fluence.errors import StudyError
from fluence.store import pretrained
from fluence.study import Study
from jobs import cli
from jobs.pipeline import datasets_in_use, tasks_of
from jobs.plan import Planned
from jobs.sites import Site, load_site
from jobs.weights import refuse_absent_weights, refuse_to_run_without_weights, weights_rows

CONTENT = b"weights of a network"
NAME = f"vgg19-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
VGG19 = {"kind": "vae", "reconstruction": [{"loss": "dfc", "network": {"kind": "vgg19"}}]}
FACE = {"kind": "vae", "reconstruction": [{"loss": "dfc", "network": {"kind": "vggface", "weights": "face.pth"}}]}
RANDOM = {"kind": "vae", "reconstruction": [{"loss": "lpips", "weights": "random"}]}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; promises more than it sends of files called `cut`."""

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def send_header(self, keyword: str, value: str) -> None:
        """Twice the length of what is cut."""
        doubled = keyword == "Content-Length" and "cut" in self.path
        super().send_header(keyword, str(2 * int(value)) if doubled else value)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a server on this machine serves as torchvision's, with one file."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(pretrained, "_URL", f"http://127.0.0.1:{server.server_port}")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torchvision's files are looked for; VGG19's is the small one of this test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setitem(pretrained.IMAGENET_FILES, "vgg19", NAME)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "torch" / "hub" / "checkpoints"


def content(**models: Any) -> dict[str, Any]:
    data = {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"}
    return {"name": "tiny", "data": data, "models": models}


def study_file(folder: Path, **models: Any) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content(**models)), encoding="utf-8")
    return str(path)


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["weights", *arguments])
    return code, capsys.readouterr().out


# ── What it shows ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_study_that_needs_none(tmp_path, capsys):
    assert show(capsys, study_file(tmp_path, plain={"kind": "vae"})) == (0, "the study needs no weights\n")


def test_random_weights_need_no_file(tmp_path, hub, capsys):
    code, said = show(capsys, study_file(tmp_path, m=RANDOM))
    assert code == 0
    row = "vgg16 random LPIPS (vgg) in models.m.reconstruction no file needed"
    assert " ".join(said.splitlines()[1].split()) == row


def test_one_row_for_a_file_that_several_need(tmp_path, hub, capsys):
    path = study_file(tmp_path, a=VGG19, b=VGG19, c=VGG19)
    code, said = show(capsys, path)
    assert code == 1
    head, row, empty, reason = said.splitlines()
    assert head.split() == ["file", "state", "needed", "by", "looked", "for", "in"]
    both = "DFC (vgg19) in models.a.reconstruction, models.b.reconstruction and 1 more"
    assert row.split() == [NAME, "missing", *both.split(), str(hub)]
    assert not empty
    assert "fluence weights STUDY --fetch" in reason
    hub.mkdir(parents=True)
    (hub / NAME).write_bytes(CONTENT)
    code, said = show(capsys, path)
    assert (code, said.splitlines()[1].split()[1]) == (0, "there")


def test_a_damaged_file_is_not_there(tmp_path, hub, capsys):
    hub.mkdir(parents=True)
    (hub / NAME).write_bytes(CONTENT[:-1])
    code, said = show(capsys, study_file(tmp_path, m=VGG19))
    assert (code, said.splitlines()[1].split()[1]) == (1, "damaged")
    assert "its SHA-256 begins with" in said


def test_wrong_usage(tmp_path):
    assert cli.main(["weights", str(tmp_path / "none.yaml")]) == 2


# ── Fetching ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_published_is_fetched_once(tmp_path, hub, served, capsys):
    path = study_file(tmp_path, m=VGG19, n=RANDOM)
    code, said = show(capsys, path, "--fetch")
    assert code == 0
    assert f"fetching {pretrained._URL}/{NAME}" in said
    assert (hub / NAME).read_bytes() == CONTENT
    assert [place.name for place in hub.iterdir()] == [NAME]
    (served / NAME).unlink()
    code, said = show(capsys, path, "--fetch")
    assert (code, "fetching" in said) == (0, False)


def test_a_damaged_file_is_fetched_again(tmp_path, hub, served, capsys):
    hub.mkdir(parents=True)
    (hub / NAME).write_bytes(b"half")
    assert show(capsys, study_file(tmp_path, m=VGG19), "--fetch")[0] == 0
    assert (hub / NAME).read_bytes() == CONTENT


def test_what_nobody_publishes_stays_missing(tmp_path, hub, served, capsys):
    code, said = show(capsys, study_file(tmp_path, m=VGG19, n=FACE), "--fetch")
    assert code == 1
    assert "face.pth: DFC (vggface): there is no weights file face.pth" in said
    assert (hub / NAME).exists()


def test_what_comes_with_another_hash_is_thrown_away(tmp_path, hub, served, capsys):
    (served / NAME).write_bytes(b"something else")
    code, said = show(capsys, study_file(tmp_path, m=VGG19), "--fetch")
    assert code == 1
    assert f"{hub / NAME} is damaged or not what its name says" in said
    assert list(hub.iterdir()) == []


def test_a_connection_that_breaks_leaves_nothing(tmp_path, hub, served, monkeypatch, capsys):
    monkeypatch.setitem(pretrained.IMAGENET_FILES, "vgg19", "cut.pth")
    (served / "cut.pth").write_bytes(CONTENT)
    code, said = show(capsys, study_file(tmp_path, m=VGG19), "--fetch")
    assert code == 1
    assert "cut.pth" in said
    assert "broke after 20 of 40 bytes" in said
    assert list(hub.iterdir()) == []


def test_a_file_that_the_server_does_not_have(tmp_path, hub, served, capsys):
    (served / NAME).unlink()
    code, said = show(capsys, study_file(tmp_path, m=VGG19), "--fetch")
    assert code == 1
    assert "the server says 404" in said


def test_without_internet(tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "_URL", "http://127.0.0.1:9")  # nobody listens there
    code, said = show(capsys, study_file(tmp_path, m=VGG19), "--fetch")
    assert code == 1
    assert f"fetch it on a machine with internet, and copy it to {hub / NAME}" in said
    assert list(hub.iterdir()) == []


# ── Submitting ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def site() -> Site:
    return load_site("test-cluster")


def with_prologue(tmp_path: Path, site: Site, line: str) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    for path in site.folder.iterdir():
        (folder / path.name).write_text(path.read_text() + (f"{line}\n" if path.name == "gpu.sbatch" else ""))
    return load_site(str(folder))


def test_nothing_is_sent_without_weights(hub, site):
    study = Study.model_validate(content(m=VGG19, n=FACE))
    with pytest.raises(StudyError) as error:
        refuse_absent_weights(study, site)
    assert f"{NAME}: DFC (vgg19) needs the ImageNet weights" in str(error.value)
    assert "face.pth: DFC (vggface): there is no weights file" in str(error.value)


def test_the_verb_submit_refuses_before_sbatch(tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setattr("jobs.submitverb.submit", lambda *_, **__: pytest.fail("something was sent"))
    arguments = ["submit", study_file(tmp_path, m=VGG19), "--site", "test-cluster", "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "weights are not there, so nothing is sent" in capsys.readouterr().err


def test_the_verb_run_refuses_before_anything_is_packed(tmp_path, hub, capsys):
    arguments = ["run", study_file(tmp_path, m=VGG19, n=FACE), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    refusal = capsys.readouterr().err
    assert "weights are not there, so nothing is run" in refusal
    assert "face.pth" in refusal
    assert not (tmp_path / "out" / "packed").exists()


def test_what_is_done_needs_no_weights(hub):
    study = Study.model_validate(content(m=VGG19))
    tasks = tasks_of(study, dict.fromkeys(datasets_in_use(study), "as on disk"))
    refuse_to_run_without_weights(study, tuple(Planned(task, "done", "") for task in tasks))
    with pytest.raises(StudyError, match="nothing is run"):
        refuse_to_run_without_weights(study, tuple(Planned(task, "waiting", "") for task in tasks))


def test_what_is_there_or_random_is_sent(hub, site):
    hub.mkdir(parents=True)
    (hub / NAME).write_bytes(CONTENT)
    assert refuse_absent_weights(Study.model_validate(content(m=VGG19, n=RANDOM)), site) == ()


def test_where_the_nodes_look_elsewhere_the_doctor_is_asked(tmp_path, hub, site):
    """Only for files whose place the prologue can change; a path of the user's own is the same everywhere."""
    there = with_prologue(tmp_path, site, "export TORCH_HOME=/scratch/torch")
    (note,) = refuse_absent_weights(Study.model_validate(content(m=VGG19)), there)
    assert f"{NAME} is not in {hub}, but" in note
    assert "`fluence doctor` asks the nodes" in note
    with pytest.raises(StudyError, match=r"face\.pth"):
        refuse_absent_weights(Study.model_validate(content(n=FACE)), there)


def test_rows_say_where_to_get_a_file(hub):
    (row,) = weights_rows(Study.model_validate(content(m=VGG19)))
    assert (row.name, row.folder, row.state, row.is_there) == (NAME, str(hub), "missing", False)
    assert row.url == f"https://download.pytorch.org/models/{NAME}"
