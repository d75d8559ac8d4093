"""Studies side by side: the numbers are each study's own, and what forbids to subtract them is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from analysis.report.across import Side, _sides, compare, correlations_of, differences, regressions_of
from fluence.errors import StudyError
from fluence.layout import Layout
from tests.analysis.invented_study import build, settings

FEW = {"models": {"small": {"kind": "vae"}}, "grid": {"groups": ["all"], "seeds": [0]}}


def make(folder: Path, name: str, num_images: int, ends: dict[str, tuple[str, str]] | None = None, **changes) -> Layout:
    content = FEW | {"name": name} | changes
    made = build(folder / name, num_images=num_images, ends=ends or {}, **content)
    made.layout.study.write_text(yaml.safe_dump(settings(**content)))
    return made.layout


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> list[Layout]:
    """Two studies on the same images, the second with an untrained model and a failure, and one on others."""
    folder = tmp_path_factory.mktemp("studies")
    two = FEW["models"] | {"control": {"kind": "vae", "training": {"epochs": 0}}}  # type: ignore[operator]
    ends = {"small-all-s1": ("failed", "a node was lost")}
    return [
        make(folder, "faces", 60),
        make(folder, "again", 60, ends, models=two, grid={"groups": ["all"], "seeds": [0, 1]}),
        make(folder, "animals", 72, data=settings()["data"] | {"image_size_px": 24}),  # type: ignore[operator]
    ]


@pytest.fixture(scope="module")
def sides(layouts: list[Layout]) -> list[Side]:
    return _sides(layouts)


def test_regressions_are_those_of_each_study(layouts, sides):
    table = regressions_of(sides)
    for layout, side in zip(layouts, sides, strict=True):
        own = pd.read_csv(layout.statistics / "ridge.csv").query("subset == 'all' and model == 'small'")
        mean = own.groupby("predictors")["delta_r2"].mean()
        ours = table[(table["study"] == side.name) & (table["model"] == "small")].set_index("predictors")["delta"]
        pd.testing.assert_series_equal(ours.sort_index(), mean.sort_index(), check_names=False)
    assert set(table.loc[table["model"] == "control", "label"]) == {"again: control (untrained)"}
    assert table.loc[table["model"] == "control", "p_models"].isna().all()
    assert set(table.loc[(table["study"] == "again") & (table["model"] == "small"), "seeds"]) == {"1 of 2"}


def test_correlations_are_those_that_two_studies_share(layouts, sides):
    table = correlations_of(sides)
    assert set(table["model"]) == {"small"}  # only one study has a control
    one = table[(table["estimator"] == "pearson") & (table["layer"] == "conv1") & (table["metric"] == "gini")]
    assert list(one["study"]) == ["faces", "again", "animals"]
    own = pd.read_csv(layouts[2].statistics / "correlations.csv").query(
        "estimator == 'pearson' and layer == 'conv1' and metric == 'gini'"
    )
    assert one["r"].iloc[2] == pytest.approx(own["estimate"].iloc[0])


def test_other_images_are_said_first_and_loudly(sides):
    found = list(differences(sides))
    severe = [caveat.text for caveat in found if caveat.severe]
    assert len(severe) == 2
    assert severe[0].startswith("faces and animals are judged on different images: 60 and 72, of which ")
    assert "Whether two of them differ is not tested" in found[-1].text


def test_the_same_images_are_no_caveat(sides):
    texts = [caveat.text for caveat in differences(sides[:2])]
    assert len(texts) == 2
    assert texts[0] == "1 run of again came to nothing."


def test_other_ratings_of_the_same_images_are_a_caveat(sides, monkeypatch):
    changed = sides[1].evidence.ratings()
    changed.loc[changed.index[:3], "score"] += 1
    monkeypatch.setattr(sides[1].evidence, "ratings", lambda: changed)
    severe = [caveat.text for caveat in differences(sides[:2]) if caveat.severe]
    assert severe == ["faces and again have the same images, but 3 of them with another rating."]


def test_the_page_and_the_tables(layouts, tmp_path):
    target = Layout(tmp_path / "side")
    lines = compare(layouts, target)
    assert lines[0].startswith("faces: above the confounds (R² ")
    assert lines[-1] == f"report   {target.report_page}"
    page = target.report_page.read_text(encoding="utf-8")
    title, words = "<h1>faces · again · animals</h1>", ("models.control.kind", "small-all-s1: failed")
    assert all(word in page for word in (title, *words))
    assert page.count('<img src="data:') == 1
    written = pd.read_csv(target.statistics / "ridge.csv")
    assert set(written["study"]) == {"faces", "again", "animals"}
    assert {path.suffix for path in target.figures.iterdir()} == {".png", ".pdf"}


def test_settings_that_differ_are_listed(layouts, tmp_path):
    compare(layouts[:2], Layout(tmp_path))
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    settings_part = page[page.index("What differs in the settings</h2>") :]
    assert "grid.seeds" in settings_part
    assert "<td>0</td>" in settings_part
    assert "<td>0, 1</td>" in settings_part
    assert "training.epochs" not in settings_part.replace("models.control.training.epochs", "")


def test_bad_choices_are_refused(layouts, tmp_path):
    with pytest.raises(StudyError, match="two studies or more"):
        compare(layouts[:1], Layout(tmp_path))
    with pytest.raises(StudyError, match="there are no statistics yet"):
        compare([layouts[0], Layout(tmp_path / "none")], Layout(tmp_path))
    shutil.copytree(layouts[0].root, tmp_path / "copy")
    with pytest.raises(StudyError, match="several studies of the name faces"):
        compare([layouts[0], Layout(tmp_path / "copy")], Layout(tmp_path))
    assert not (tmp_path / "report").exists()
