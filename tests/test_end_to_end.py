"""The whole chain on synthetic faces: the positive and the negative control of the suite.

Beauty of the rated faces depends on a property of the images (planted), or on nothing (null). The study has to find
the first and nothing of the second; run again, it has to do nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.tables import feature_matrix
from fluence.layout import Layout
from fluence.store.packed import Packed
from jobs.status import locked

PLANTED_R2 = 0.5
STUDY = """
name: {name}
data:
  image_size_px: 64
  datasets:
    seen: {{kind: synthetic, num_images: 240, num_ethnicities: 2, effect: null, seed: 1}}
    judged: {{kind: synthetic, num_images: 400, num_ethnicities: 2, effect: {effect}, num_raters: 40, seed: 2}}
  training: seen
  rated: judged
models:
  small: {{kind: vae, width: {width}, norm: batch, kl_weight: 0.05}}
  doomed: {{kind: vae, width: 0.125, training: {{learning_rate: 1e30}}}}
training: {{epochs: {epochs}, batch_size: 32, gradient_clip_norm: null}}
record: {{reference_images: 16, sample_images: 4}}
analysis: {{permutations: 199, bootstrap: 199, ridge: {{folds: 5, repeats: 2}}}}
grid: {{groups: {groups}, seeds: [0]}}
"""
ALL_GROUPS = "[all, a-female, e-male]"
"""There is no group e-male among faces of two clusters: its runs are to be skipped, and to say so."""


def fluence(*arguments: str, expect: int = 0) -> str:
    """Runs the command line as a user does; returns what it printed."""
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def write_study(path: Path, effect: str, width: float = 0.5, epochs: int = 3, groups: str = ALL_GROUPS) -> Path:
    path.write_text(STUDY.format(name=path.stem, effect=effect, width=width, epochs=epochs, groups=groups))
    return path


def run(study: Path, *arguments: str, expect: int = 0) -> str:
    return fluence("run", str(study), "--output", str(study.with_suffix("")), *arguments, expect=expect)


def layout_of(study: Path) -> Layout:
    return Layout(study.with_suffix(""))


def ridge_of(study: Path) -> pd.Series:
    """Δ R² of the general model's sparseness over the confounds, on all rated images."""
    ridge = pd.read_csv(layout_of(study).statistics / "ridge.csv").query("trained_on == 'all' and predictors == 'all'")
    return ridge.sort_values("n").iloc[-1]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = write_study(tmp_path_factory.mktemp("planted") / "planted.yaml", f"{{r2: {PLANTED_R2}}}")
    printed = run(study)
    assert "22 of 22 tasks to do" in printed
    assert str(layout_of(study).report_page) in printed
    return study


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = write_study(tmp_path_factory.mktemp("nothing") / "nothing.yaml", "null", groups="[all]")
    run(study)
    return study


def test_a_planted_effect_is_found_within_its_interval(planted: Path) -> None:
    found = ridge_of(planted)
    ratings = Packed(layout_of(planted).packed("judged")).table
    of_mean = PLANTED_R2 * _within_groups(ratings["true_beauty"], ratings).var() / ratings["beauty"].var()
    readable = _readable_share(planted)
    assert found["p_delta"] <= 0.01
    assert found["delta_r2_low"] > 0
    assert found["delta_r2_low"] <= readable * of_mean <= found["delta_r2_high"]


def _within_groups(values: pd.Series, table: pd.DataFrame) -> pd.Series:
    return values - values.groupby(table["group"]).transform("mean")


def _readable_share(study: Path) -> float:
    """How much of the planted property the layers tell at all: out-of-fold R² of the property itself."""
    layout = layout_of(study)
    (path,) = layout.metrics("*").parent.glob("small-all-s0-????????.parquet")
    features = feature_matrix(pd.read_parquet(path), 0.5)
    table = Packed(layout.packed("judged")).table.set_index("image_id").loc[features.index]
    target = _within_groups(table["edge_sparsity"], table)
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13)))
    predicted = cross_val_predict(model, features.to_numpy(), target, cv=KFold(5, shuffle=True, random_state=0))
    return float(np.corrcoef(predicted, target)[0, 1] ** 2)


def test_what_is_exported_can_be_analysed_by_anybody(planted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    printed = fluence("export", str(planted), "--output", str(layout_of(planted).root), "--to", str(folder))
    assert f"export   {folder}: " in printed
    assert "note " not in printed
    assert "left out run doomed-all-s0-" in printed
    images = pd.read_csv(folder / "images.csv")
    (path,) = folder.glob("metrics/small-all-s0-????????.csv")
    gini = pd.read_csv(path).query("metric == 'gini' and layer == 'conv1'").merge(images, on="image_id")
    published = pd.read_csv(folder / "statistics" / "correlations.csv")
    published = published.query("trained_on == 'all' and subset == 'all' and layer == 'conv1' and metric == 'gini'")
    of_pearson = published[published["estimator"] == "pearson"]["estimate"]
    assert of_pearson.tolist() == pytest.approx([gini["value"].corr(gini["beauty"])])
    nowhere = fluence("export", str(planted), "--output", str(layout_of(planted).root), "--to", "/proc/x", expect=2)
    assert "choose another one with --to" in nowhere
    provenance = json.loads((folder / "provenance.json").read_text())
    assert {task.split("/")[0] for task in provenance} >= {"pack", "train", "extract", "measure", "analyse", "report"}


def test_nothing_is_found_where_nothing_was_planted(null: Path) -> None:
    found = ridge_of(null)
    assert found["p_delta"] > 0.05
    assert found["delta_r2"] < 0.03
    tests = pd.read_csv(layout_of(null).statistics / "correlations.csv")
    assert not tests.query("estimator == 'partial'")["significant"].any()
    page = layout_of(null).report_page.read_text(encoding="utf-8")
    assert "<h1" in page


def test_a_second_run_does_nothing_and_says_why(planted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in layout_of(planted).root.rglob("*") if path.is_file()}
    printed = run(planted)
    assert "nothing to do" in printed
    lines = [line for line in printed.splitlines() if line.startswith("done ")]
    assert len(lines) == 2 + 2 * 3 + 2  # data sets, runs that came through, analysis and report
    assert all(line.endswith("nothing changed since it was done") for line in lines)
    after = {path: path.stat().st_mtime_ns for path in before}
    kept = {layout_of(planted).study}
    assert {path for path in before if before[path] != after[path]} <= kept


def test_failures_are_rows_with_a_reason(planted: Path) -> None:
    runs = pd.read_csv(layout_of(planted).statistics / "runs.csv").set_index(["model", "trained_on"])
    assert set(runs.loc["small"].query("status == 'done'").index) == {"all", "a-female"}
    assert runs.loc[("small", "e-male"), "status"] == "skipped"
    assert "fewer than the 20 of data.min_group_size" in runs.loc[("small", "e-male"), "reason"]
    assert runs.loc[("doomed", "all"), "status"] == "diverged"
    assert "training.learning_rate" in runs.loc[("doomed", "all"), "reason"]
    page = layout_of(planted).report_page.read_text(encoding="utf-8")
    assert "doomed" in page
    assert "e-male" in page


def test_status_shows_each_run_in_words_and_as_json(planted: Path) -> None:
    output = ("--output", str(layout_of(planted).root))
    table = fluence("status", str(planted), *output)
    assert "small-a-female-s0" in table
    assert "diverged" in table
    rows = json.loads(fluence("status", str(planted), "--json", *output))
    states = {(row["stage"], row["run"] or row["task"]): row["state"] for row in rows}
    assert states["measure", "small-all-s0"] == "done"
    assert states["train", "doomed-all-s0"] == "diverged"
    assert states["extract", "doomed-all-s0"] == "blocked"


def test_only_what_a_change_concerns_runs_again(planted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "planted"
    subprocess.run(["cp", "-r", str(layout_of(planted).root), str(folder)], check=True)
    text = planted.read_text().replace("width: 0.125", "width: 0.25")
    (tmp_path / "planted.yaml").write_text(text)
    printed = run(tmp_path / "planted.yaml")
    to_do = [line.split(":")[0].removeprefix("to do").strip() for line in printed.splitlines() if line[:5] == "to do"]
    assert all("doomed" in task or task in ("analyse study", "report study") for task in to_do)
    assert "changed: model.width 0.125 → 0.25" in printed


@pytest.mark.parametrize("seconds", [4.0, 9.0])
def test_ctrl_c_ends_everything_within_seconds_and_the_next_run_continues(tmp_path: Path, seconds: float) -> None:
    study = write_study(tmp_path / "stopped.yaml", "null", width=0.25, epochs=200, groups="[all]")
    command = [sys.executable, "-m", "jobs.cli", "run", str(study), "--output", str(tmp_path / "stopped")]
    process = subprocess.Popen(
        [*command, "--processes", "2"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    time.sleep(seconds)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert time.monotonic() - asked < 30
    assert "the same command continues" in printed
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout == b""
    assert not list((tmp_path / "stopped").rglob("*.tmp"))
    rows = json.loads(fluence("status", str(study), "--json", "--output", str(tmp_path / "stopped")))
    assert {row["state"].split()[0] for row in rows} <= {"waiting", "paused", "done", "diverged"}


BAD_STUDIES = {
    "an unknown model": ("kind: vae, width: {width}", "kind: vea, width: 1", "did you mean"),
    "a negative learning rate": ("epochs: {epochs}", "learning_rate: -1, epochs: 1", "learning_rate"),
    "a missing folder": ("kind: synthetic, num_images: 240, num_ethnicities: 2, effect: null, seed: 1",
                         "kind: folder, root: /nowhere/at/all", "/nowhere/at/all"),
    "a misspelt key": ("image_size_px", "image_size", "image_size_px"),
    "an unset variable": ("kind: synthetic, num_images: 240, num_ethnicities: 2, effect: null, seed: 1",
                          "kind: folder, root: '${{NOT_SET_ANYWHERE}}'", "NOT_SET_ANYWHERE"),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after", "word"), BAD_STUDIES.values(), ids=BAD_STUDIES)
@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_wrong_study_is_one_clear_message_and_leaves_nothing(
    tmp_path: Path, verb: str, before: str, after: str, word: str
) -> None:
    assert before in STUDY
    study = tmp_path / "wrong.yaml"
    study.write_text(STUDY.replace(before, after).format(name="w", effect="null", width=1, epochs=1, groups="[all]"))
    message = fluence(verb, str(study), "--output", str(tmp_path / "out"), expect=2)
    assert word in message
    assert not (tmp_path / "out").exists()


def bad_manifest(folder: Path, rows: str) -> Path:
    """A study on a CSV manifest with these rows, and two images."""
    for name in ("a", "b"):
        Image.new("RGB", (64, 64), "red" if name == "a" else "blue").save(folder / f"{name}.png")
    (folder / "manifest.csv").write_text(rows)
    study = write_study(folder / "bad.yaml", "null", groups="[all]")
    text = re.sub(r"judged: \{kind.*", f"judged: {{kind: csv, root: '{folder}'}}", study.read_text())
    study.write_text(text)
    return study


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("image,beauty\na.png,3\n", "path"),
        ("path,beauty,ethnicity,sex\na.png,pretty,x,f\nb.png,2,x,f\n", "pretty"),
        ("path,image_id,beauty,ethnicity,sex\na.png,same,3,x,f\nb.png,same,2,x,f\n", "same"),
        ("path,beauty\na.png,3\nb.png,2\n", "ethnicity"),
        ("", "empty"),
    ],
    ids=["no path", "no number", "one id twice", "no group columns", "empty"],
)
def test_a_wrong_manifest_is_one_clear_message_and_leaves_nothing(tmp_path: Path, rows: str, words: str) -> None:
    study = bad_manifest(tmp_path, rows)
    for verb in ("check", "run"):
        assert words in fluence(verb, str(study), "--output", str(tmp_path / "out"), expect=2)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    study = write_study(tmp_path / "x.yaml", "null", groups="[all]")
    message = fluence("run", str(study), "--output", str(tmp_path / "file" / "out"), expect=2)
    assert str(tmp_path / "file") in message


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    study = write_study(tmp_path / "x.yaml", "null", groups="[all]")
    layout = Layout(tmp_path / "out")
    with locked(layout):
        message = fluence("run", str(study), "--output", str(layout.root), expect=2)
    assert "another fluence is at work there" in message
