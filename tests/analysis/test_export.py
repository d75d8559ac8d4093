"""What is given away: everything where it is allowed, and no image and no rating where it is not."""

from __future__ import annotations

import errno
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from analysis.export import Exported, export, shown_in
from analysis.report import write_report
from fluence.errors import StudyError, UnwritableError
from fluence.layout import Layout
from fluence.store.packed import Packed
from fluence.study import Study
from tests.analysis.invented_study import MadeStudy, build, settings

FEW = {
    "models": {"small": {"kind": "vae"}},
    "grid": {"groups": ["all"], "seeds": [0, 1]},
}
ENDS = {"small-all-s1": ("diverged", "train: the loss became NaN")}
TASKS = [("train", "small-all-s0"), ("analyse", "study")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    made = build(tmp_path_factory.mktemp("exported"), num_images=60, ends=ENDS, **FEW)
    write_report(made.study, made.layout, made.runs)
    return made


def open_study(made: MadeStudy) -> Study:
    content = settings(**FEW)
    for dataset in content["data"]["datasets"].values():  # type: ignore[index]
        dataset["redistribute"] = True
    return Study.model_validate(content)


@pytest.fixture(scope="module")
def guarded(made: MadeStudy, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(made.study, made.layout, made.runs, TASKS, tmp_path_factory.mktemp("guarded"))


@pytest.fixture(scope="module")
def given(made: MadeStudy, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(open_study(made), made.layout, made.runs, TASKS, tmp_path_factory.mktemp("given"))


def ratings(made: MadeStudy) -> np.ndarray:
    return Packed(made.layout.packed("jury")).table["beauty"].to_numpy()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_rating_leaves_a_protected_study(made, guarded):
    """Neither in any table, as a column or a value, nor in the words of any file."""
    ours = {round(value, 6) for value in ratings(made)}
    for path in guarded.folder.rglob("*.csv"):
        table = pd.read_csv(path)
        assert not {"beauty", "beauty_sd", "n_ratings", "path"} & set(table.columns), path
        numbers = table.select_dtypes("number").to_numpy().ravel()
        assert not ours & {round(value, 6) for value in numbers}, path
    digits = [f"{value:.6f}" for value in ratings(made)]
    for name, content in files(guarded.folder).items():
        if not name.endswith((".png", ".pdf")):
            assert not any(text.encode() in content for text in digits), name


def test_no_picture_leaves_a_protected_study(made, guarded):
    shown = {path.stem: shown_in(path) for path in made.layout.figures.glob("*.png")}
    assert {"images", "ratings", "numbers"} == set(shown.values())
    left = {path.stem for path in (guarded.folder / "figures").iterdir()}
    assert left == {name for name, what in shown.items() if what == "numbers"}
    assert not (guarded.folder / "report.html").exists()
    words = "\n".join(guarded.left_out)
    assert "figures that show protected images or ratings: " in words
    assert "the report, which shows them" in words
    assert "`redistribute: false`" in words


@pytest.mark.parametrize("role", ["training", "rated"])
def test_pictures_of_either_data_set_protect_the_figures(made, role, tmp_path):
    """Reconstructions show both sets; a point for each rated image only the rated one's ratings."""
    content = settings(**FEW)
    content["data"]["datasets"]["jury" if role == "training" else "web"]["redistribute"] = True  # type: ignore[index]
    done = export(Study.model_validate(content), made.layout, made.runs, TASKS, tmp_path / "out")
    kinds = {shown_in(path) for path in (done.folder / "figures").glob("*.png")}
    assert kinds == ({"numbers", "ratings"} if role == "training" else {"numbers"})


def test_all_is_given_where_it_may_be(made, given):
    images = pd.read_csv(given.folder / "images.csv")
    assert images["beauty"].to_numpy() == pytest.approx(ratings(made))
    assert (given.folder / "report.html").read_bytes() == made.layout.report_page.read_bytes()
    assert {path.name for path in made.layout.figures.iterdir()} == {
        path.name for path in (given.folder / "figures").iterdir()
    }
    assert given.left_out == [f"run {made.runs[1].run.id}: diverged: train: the loss became NaN"]


def test_tables_are_those_of_the_study(made, given):
    run = made.runs[0].run.id
    written = pd.read_csv(given.folder / "metrics" / f"{run}.csv")
    pd.testing.assert_frame_equal(written, pd.read_parquet(made.layout.metrics(run)), check_dtype=False)
    log = [json.loads(line) for line in made.layout.metrics_log(run).read_text().splitlines()]
    training = pd.read_csv(given.folder / "training" / f"{run}.csv")
    assert training["loss"].tolist() == pytest.approx([row["loss"] for row in log])
    names = {path.name for path in made.layout.statistics.iterdir()}
    assert {"correlations.csv", "correlations.parquet"} <= names
    for path in made.layout.statistics.iterdir():
        assert (given.folder / "statistics" / path.name).read_bytes() == path.read_bytes()
    assert (given.folder / "metrics" / f"{run}.epsilon.csv").exists()


def test_another_lab_correlates_without_our_code(made, given):
    """Pearson's r of the strongest metric, from images.csv and metrics/ alone, is the one of the statistics."""
    found = pd.read_csv(given.folder / "statistics" / "correlations.csv").query("estimator == 'pearson'")
    top = found.loc[found["estimate"].abs().idxmax()]
    metrics = pd.read_csv(next((given.folder / "metrics").glob("small-all-s0*[!n].csv")))
    chosen = metrics[(metrics["layer"] == top["layer"]) & (metrics["metric"] == top["metric"])]
    both = chosen.merge(pd.read_csv(given.folder / "images.csv"), on="image_id")
    assert both["value"].corr(both["beauty"]) == pytest.approx(top["estimate"])


def test_checksums_and_readme(given, guarded):
    for done in (given, guarded):
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=done.folder, check=True)
        assert done.num_files == len(files(done.folder))
        readme = (done.folder / "README.md").read_text()
        assert all(what in readme for what in done.left_out)
        for name in ("statistics/", "metrics/", "provenance.json"):
            assert f"| `{name}` |" in readme
    assert "`report.html`" not in (guarded.folder / "README.md").read_text()


def test_the_study_is_a_study_without_folders(given):
    text = (given.folder / "study.yaml").read_text()
    assert "/jury" not in text
    content = yaml.safe_load(text)
    assert content["name"] == "invented"
    assert content["grid"]["seeds"] == [0, 1]


def test_provenance_holds_every_outcome(made, given):
    content = json.loads((given.folder / "provenance.json").read_text())
    there = [f"{stage}/{name}" for stage, name in TASKS if made.layout.outcome(stage, name).exists()]
    assert sorted(content) == sorted(there)


def test_a_folder_with_something_in_it_is_left_alone(made, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(StudyError, match=r"is not empty; name a new folder with --to"):
        export(made.study, made.layout, made.runs, TASKS, tmp_path)
    assert files(tmp_path) == {"note": b"mine"}


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_half_an_export_is_none(made, tmp_path, monkeypatch, problem):
    """The disk fills up at a figure: one line, and the same command may be given again."""

    def full(*_: object) -> None:
        raise problem

    with monkeypatch.context() as patch:
        patch.setattr("analysis.export.shutil.copyfile", full)
        with pytest.raises(UnwritableError if isinstance(problem, OSError) else KeyboardInterrupt):
            export(made.study, made.layout, made.runs, TASKS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export(made.study, made.layout, made.runs, TASKS, tmp_path / "out").num_files > 10


def test_without_statistics_there_is_nothing_to_give(made, tmp_path):
    with pytest.raises(StudyError, match="there are no statistics yet"):
        export(made.study, Layout(tmp_path / "none"), made.runs, TASKS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_figure_that_says_nothing_counts_as_pictures(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    assert shown_in(tmp_path / "x.png") == "images"
