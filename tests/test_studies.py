"""Every example study is a study, and says what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluence.studyfile import load_study

STUDIES = sorted((Path(__file__).parent.parent / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_an_example_study_loads_and_is_named_like_its_file(path: Path) -> None:
    study = load_study(path)
    assert study.name == path.stem
    assert study.description
    assert path.read_text().startswith("# ")


def test_the_original_study_maps_fairface_onto_the_rated_groups() -> None:
    study = load_study(STUDIES[0].parent / "cfd.yaml")
    mapped = set(study.data.datasets["fairface"].values["ethnicity"].values())
    assert mapped == {group.split("-")[0] for group in study.group_names if group != "all"}
