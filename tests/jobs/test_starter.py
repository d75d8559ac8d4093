"""`fluence new`: the starter study is valid, short, and never overwrites anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluence.errors import StudyError
from fluence.studyfile import load_study
from jobs.starter import write_starter


@pytest.mark.parametrize("name", ["animals", "true", "123", "1e5", "a.b+c-d_e", "x" * 64])
def test_the_starter_is_a_valid_study_with_its_name(tmp_path: Path, name: str) -> None:
    path = write_starter(name, tmp_path)
    assert path == tmp_path / f"{name}.yaml"
    study = load_study(path)
    assert study.name == name
    assert study.training_of("untrained").epochs == 0  # the negative control
    assert study.training_of("trained").epochs > 0


def test_the_starter_reads_like_a_methods_section(tmp_path: Path) -> None:
    text = write_starter("animals", tmp_path).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 70
    assert "NAME" not in text
    assert max(map(len, text.splitlines())) <= 110
    for part in ("# Images.", "# Models.", "# Training.", "# Record.", "# Analysis.", "# Grid."):
        assert f"\n{part}" in text


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "animals.yaml").write_text("mine")
    with pytest.raises(StudyError, match="exists already"):
        write_starter("animals", tmp_path)
    assert (tmp_path / "animals.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "a b", "../up", "a/b", "-x", ".hidden", "x" * 65, "été", "a\n"])
def test_a_name_that_is_no_name_writes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyError, match="cannot be the name of a study; it must be a name of at most 64 letters"):
        write_starter(name, tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"cannot be written \(No such file or directory\)"):
        write_starter("animals", tmp_path / "nowhere")
