from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.figure import Figure
from statsmodels.api import OLS, add_constant

from analysis import embedding, figures
from analysis.figures.maps import DIVERGING
from analysis.report import plates
from analysis.report.evidence import Evidence, gather
from analysis.report.page import Text
from analysis.report.summary import summarise
from fluence.layout import Layout
from fluence.store.files import read_table
from tests.analysis.invented_study import MadeStudy, build
from tests.analysis.test_figures import drawn, texts

diagnostics = import_module("analysis.report.diagnostics")  # the package has the chapter by that name
MODELS = {"small": {"kind": "vae"}, "untrained": {"kind": "vae", "training": {"epochs": 0}}}
Asked = dict[str, tuple[str, str, Callable[..., Figure], tuple[Any, ...]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    grid = {"groups": ["all", "asian-female", "white-male"], "seeds": [0, 1]}
    return build(tmp_path_factory.mktemp("plates"), num_images=96, ends={}, models=MODELS, grid=grid)


@pytest.fixture
def evidence(made: MadeStudy) -> Evidence:
    return gather(made.study, made.layout, made.runs)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What was to be drawn: title, caption, function and arguments by name. Nothing is."""
    found: Asked = {}

    def remember(
        _: Layout, name: str, title: str, caption: str, figure_of: Callable[..., Figure], *args: Any, shows: str = ""
    ) -> Text:
        found[name] = (title, caption, figure_of, args)
        return Text(caption)

    for module in (plates, diagnostics):
        monkeypatch.setattr(module, "drawn", remember)
    return found


def said(items: list[Any]) -> str:
    return " ".join(item.text for item in items if item.missing)


# ── What the report asks to be drawn ─────────────────────────────────────────────────────────────────────────────


def test_a_model_has_a_matrix_a_joint_distribution_and_a_map(evidence: Evidence, asked: Asked) -> None:
    for model in MODELS:
        assert said(list(plates.plates_of(evidence, summarise(evidence), model))) == ""
    assert list(asked) == ["matrix-small", "joint-small", "latents-small", "matrix-untrained", "latents-untrained"]


def test_the_matrix_holds_the_numbers_of_the_table(evidence: Evidence, asked: Asked) -> None:
    list(plates.plates_of(evidence, summarise(evidence), "small"))
    r, p, blocks, words = asked["matrix-small"][3]
    table = evidence.table("correlations").query("model == 'small' and seed == 0 and subset == 'all'")
    row = table.query("scorer == 'general' and estimator == 'pearson' and layer == 'conv2' and metric == 'gini'").iloc[
        0
    ]
    assert r.index[0] == "beauty"
    assert r.loc["beauty", "Gini of conv2"] == r.loc["Gini of conv2", "beauty"] == pytest.approx(row["estimate"])
    assert p.loc["beauty", "Gini of conv2"] == pytest.approx(row["p_parametric"])
    assert (np.diag(r) == 1).all()
    assert words == "n = 96"
    assert blocks == [1, 3, 3, 3]  # ratings, Gini, Lε, errors
    assert sum(blocks) == len(r)


def test_a_matrix_of_very_many_metrics_keeps_those_that_go_with_the_ratings(
    evidence: Evidence, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plates, "MOST_ROWS", 4)
    list(plates.plates_of(evidence, summarise(evidence), "small"))
    _, caption, _, (r, _, blocks, _) = asked["matrix-small"]
    table = evidence.table("metric_correlations").query("model == 'small' and other_layer == 'rating'")
    assert sorted(r.iloc[0, 1:].abs()) == pytest.approx(sorted(table["estimate"].abs().nlargest(3)))
    assert sum(blocks) == 4
    assert f"The {len(table) - 3} metrics least correlated with the ratings left out." in caption


def test_the_joint_distribution_is_of_the_strongest_metric_and_says_so(evidence: Evidence, asked: Asked) -> None:
    summary = summarise(evidence)
    list(plates.plates_of(evidence, summary, "small"))
    _, caption, _, (points, name, score, r, line) = asked["joint-small"]
    table = summary.general_correlations("pearson").query("model == 'small'")
    top = table.loc[table["r"].abs().idxmax()]
    assert (name, score) == (plates.metric_name(evidence, top["layer"], top["metric"]), "beauty")
    assert r == pytest.approx(points["x"].corr(points["y"]))
    assert len(points) == 96
    assert f"largest |r| of {len(table)}: its size is exaggerated" in caption
    assert (line["low"] < line["mean"]).all()
    assert (line["mean"] < line["high"]).all()


def test_the_line_is_that_of_statsmodels_and_none_without_spread() -> None:
    rng = np.random.default_rng(0)
    points = pd.DataFrame({"x": rng.normal(size=20), "y": rng.normal(size=20)})
    line = plates.regression_line(points, 0.9)
    fit = OLS(points["y"], add_constant(points["x"])).fit()
    ends = fit.predict(add_constant(pd.Series([points["x"].min(), points["x"].max()])))
    assert line["mean"].iloc[[0, -1]].to_numpy() == pytest.approx(ends.to_numpy())
    assert plates.regression_line(points.assign(x=1.0), 0.9).empty
    assert plates.regression_line(points.iloc[:2], 0.9).empty


def test_the_map_is_coloured_by_ratings_and_groups_and_names_its_trust(evidence: Evidence, asked: Asked) -> None:
    list(plates.plates_of(evidence, summarise(evidence), "small"))
    _, caption, _, (panels, known) = asked["latents-small"]
    run = next(run for run in evidence.done if run.model == "small")
    file = read_table(evidence.layout.embedding(run.id))
    assert [panel.title for panel in panels] == ["PCA"]
    assert panels[0].points["x"].to_numpy() == pytest.approx(file["x"].to_numpy())
    assert list(known) == ["beauty", "ethnicity", "sex"]
    assert f"PCA {file.attrs['facts']['pca']['trustworthiness']:.2f}" in caption
    assert "distances between clusters" in caption


def test_a_map_that_is_not_there_is_missed_with_its_reason(evidence: Evidence, asked: Asked, tmp_path: Path) -> None:
    summary = summarise(evidence)
    early = replace(evidence, layout=Layout(tmp_path))
    assert "measured before maps were asked for" in said(list(plates.plates_of(early, summary, "small")))
    undone = [replace(row, status="failed") if row.run.seed == 0 else row for row in evidence.runs]
    without = replace(evidence, runs=undone)
    assert "its general run with seed 0 is not done" in said(list(plates.plates_of(without, summary, "small")))
    for model in MODELS:
        assert said(list(plates.compared_maps(without, "c", [model]))).startswith("There are no maps of their latents")


def test_a_study_of_a_few_images_says_why_there_is_next_to_nothing(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "MIN_IMAGES", 13)
    small = build(tmp_path, num_images=12, ends={}, models={"small": {"kind": "vae"}}, grid={"seeds": [0]})
    evidence = gather(small.study, small.layout, small.runs)
    words = said(list(plates.plates_of(evidence, summarise(evidence), "small")))
    assert "no map of its latents: 12 images, fewer than 13." in words
    assert "no metric of it could be correlated with the ratings" in words
    words = said(list(diagnostics.diagnostics(evidence, summarise(evidence)).items))
    assert "There are no tests whose p could be examined." in words
    assert "No noise ceiling: fewer than two columns rater_…" in words
    assert list(diagnostics.ridge_tables(evidence, summarise(evidence))) == []


def test_no_map_is_missed_where_none_was_asked_for(evidence: Evidence, asked: Asked) -> None:
    analysis = evidence.study.analysis.model_copy(update={"embeddings": ()})
    without = replace(evidence, study=evidence.study.model_copy(update={"analysis": analysis}))
    assert said(list(plates.plates_of(without, summarise(without), "small"))) == ""
    assert "latents-small" not in asked


def test_models_of_a_comparison_are_set_side_by_side(evidence: Evidence, asked: Asked) -> None:
    list(plates.compared_maps(evidence, "size", ["untrained", "small"]))
    panels, _ = asked["comparison-size-latents"][3]
    assert [panel.title for panel in panels] == ["untrained", "small"]


def test_the_diagnostics_hold_the_numbers_of_the_tables(evidence: Evidence, asked: Asked) -> None:
    summary = summarise(evidence)
    assert said(list(diagnostics.diagnostics(evidence, summary).items)) == ""
    assert list(asked) == ["p-calibration", "seed-spread-1", "power", "ceiling"]
    tests, rates = asked["p-calibration"][3]
    assert set(tests["control"]) == {True, False}
    pearson = evidence.table("exchanged_tests").query("estimator == 'pearson' and alpha == 0.05")["rate"].mean()
    assert rates.query("estimator == 'pearson' and alpha == 0.05")["rate"].item() == pytest.approx(pearson)
    assert f"{pearson:.1%} (pearson)" in asked["p-calibration"][1]
    spread, families, _ = asked["seed-spread-1"][3]
    ridge = evidence.table("ridge").query("scorer == 'general' and subset == 'all'")
    assert sorted(spread["delta"]) == pytest.approx(sorted(ridge["delta_r2"]))
    assert next(iter(families)) == "all"
    rows, ceilings, _ = asked["ceiling"][3]
    assert set(rows["subset"]) == {"all images", "pooled"}  # the groups have too few images
    known = evidence.table("noise_ceiling").query("subset == ['all', 'pooled']")
    assert ceilings["ceiling"].to_list() == pytest.approx(known["ceiling_r2"].to_list())


def test_one_seed_has_no_spread(evidence: Evidence, asked: Asked) -> None:
    evidence.tables["ridge"] = evidence.table("ridge").query("seed == 0")
    words = said(list(diagnostics.diagnostics(evidence, summarise(evidence)).items))
    assert words == "No model was trained with two seeds, so the spread over trainings is unknown."


def test_the_cells_of_the_study_lie_where_the_tables_say() -> None:
    coverage = pd.DataFrame({"n": [50, 50, 10], "smallest_detectable_r2": [0.14, 0.14, np.nan]})
    ridge = pd.DataFrame({"predictors": ["all", "gini"], "n": [50, 50], "smallest_detectable_r2": [0.3, 0.2]})
    cells = diagnostics.power_of_cells(coverage, ridge)
    assert cells.to_numpy().tolist() == [["this study, one metric", 50, 0.14], ["this study, all metrics", 50, 0.3]]


def test_the_ridge_table_holds_means_over_the_seeds_and_stars_where_every_seed_is_significant(
    evidence: Evidence, asked: Asked
) -> None:
    table = evidence.table("ridge")
    evidence.tables["ridge"] = table.assign(p_delta_bh=np.where(table["seed"] == 0, 0.01, 0.2), p_metrics_bh=0.01)
    list(diagnostics.ridge_tables(evidence, summarise(evidence)))
    panels, stars = asked["ridge-table-1"][3]
    own = table.query("model == 'small' and scorer == 'general' and subset == 'all' and predictors == 'gini'")
    assert panels["Δ R² over the confounds"].loc["small", "Gini"] == pytest.approx(own["delta_r2"].mean())
    assert panels["R² of the metrics alone"].loc["small", "Gini"] == pytest.approx(own["r2_metrics"].mean())
    assert not stars["Δ R² over the confounds"].any(axis=None)
    assert stars["R² of the metrics alone"].all(axis=None)


# ── How it is drawn ──────────────────────────────────────────────────────────────────────────────────────────────


def squares(size: int) -> tuple[pd.DataFrame, pd.DataFrame, list[int], str]:
    names = ["beauty", *(f"Gini of conv{number}" for number in range(1, size))]
    values = np.corrcoef(np.random.default_rng(0).normal(size=(size, 30)))
    return pd.DataFrame(values, names, names), pd.DataFrame(values**2, names, names), [1, size - 1], "n = 30"


@pytest.mark.parametrize("size", [2, 12, 40])
def test_every_name_of_a_matrix_lies_within_the_figure(size: int) -> None:
    figure = drawn(figures.correlation_matrix, *squares(size))
    edge = figure.bbox
    for axes in figure.axes[:2]:
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            box = label.get_window_extent()
            assert box.x0 >= edge.x0 - 1
            assert box.y0 >= edge.y0 - 1
    left = next(artist for artist in figure.axes[0].collections if isinstance(artist, QuadMesh))
    assert np.asarray(left.get_array()) == pytest.approx(squares(size)[0].to_numpy())


def test_p_is_shown_in_steps_that_its_legend_names() -> None:
    r, p, blocks, n = squares(5)
    p.iloc[0, 1:] = [0.0009, 0.001, 0.049, 0.05]
    p.iloc[1, 2] = np.nan
    figure = drawn(figures.correlation_matrix, r, p, blocks, n)
    steps = next(artist for artist in figure.axes[1].collections if isinstance(artist, QuadMesh)).get_array()
    assert steps[0, 1:].tolist() == [0.5, 1.5, 2.5, 3.5]
    assert np.ma.getmaskarray(steps)[1, 2]
    assert {"p < .001", "not below .05"} <= set(texts(figure))


def test_a_dead_metric_is_grey_and_not_white() -> None:
    r, p, blocks, n = squares(4)
    r.iloc[2], p.iloc[2] = np.nan, np.nan
    figure = drawn(figures.correlation_matrix, r, p, blocks, n)
    assert figure.axes[0].get_facecolor()[:3] != (1, 1, 1)
    assert DIVERGING(0.5)[:3] != figure.axes[0].get_facecolor()[:3]


def test_numbers_of_the_ridge_table_are_printed_as_they_are() -> None:
    table = pd.DataFrame({"Gini": [0.1064, -0.0213], "Lε": [np.nan, 0.04]}, ["free", "everywhere"])
    stars = pd.DataFrame({"Gini": [True, False], "Lε": [False, False]}, table.index)
    figure = drawn(figures.ridge_heat, {"R²": table}, {"R²": stars})
    assert {".106*", "−.021", ".040", "free", "everywhere"} <= set(texts(figure))
    assert not any("nan" in text for text in texts(figure))


@pytest.mark.parametrize("num_images", [0, 1, 2, 40, 501])
def test_a_joint_distribution_of_any_number_of_images_can_be_drawn(num_images: int) -> None:
    points = pd.DataFrame(np.random.default_rng(0).normal(size=(num_images, 2)), columns=["x", "y"])
    r = points["x"].corr(points["y"]) if num_images > 2 else float("nan")
    figure = drawn(figures.joint, points, "Gini of mu", "beauty", r, plates.regression_line(points, 0.95))
    words = next(text for text in texts(figure) if text.startswith("r = "))
    assert words.endswith(f"n = {num_images:,}")
    assert ("not defined" in words) == (num_images < 3)
    hexagons = [artist for artist in figure.axes[0].collections if isinstance(artist, PolyCollection)]
    if num_images > figures.MOST_POINTS:
        assert hexagons[0].get_array().sum() == num_images


def panel(num_images: int, seed: int = 0) -> figures.Panel:
    points = np.random.default_rng(seed).normal(size=(num_images, 2))
    index = [f"j{number}" for number in range(num_images)]
    return figures.Panel("PCA", pd.DataFrame(points, index, ["x", "y"]), ("PC 1", "PC 2"))


def test_marks_are_joined_to_what_is_known_by_image_and_not_by_order() -> None:
    one = panel(3)
    known = {
        "beauty": pd.Series([3.0, 1.0, np.nan], ["j2", "j0", "j1"]),
        "sex": pd.Series(["Female", "Male", None], ["j2", "j0", "j1"], dtype=object),
    }
    figure = drawn(figures.latent_maps, [one], known)
    unknown, shaded = figure.axes[0].collections
    assert np.asarray(shaded.get_array()).tolist() == [1.0, 3.0]
    assert np.asarray(shaded.get_offsets()) == pytest.approx(one.points.loc[["j0", "j2"]].to_numpy())
    assert np.asarray(unknown.get_offsets()) == pytest.approx(one.points.loc[["j1"]].to_numpy())
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == ["Female", "Male", "others"]


def test_rare_kinds_share_the_grey() -> None:
    kinds = [f"group {min(number // 6, 8)}" for number in range(60)]
    figure = drawn(figures.latent_maps, [panel(60)], {"ethnicity": pd.Series(kinds, panel(60).points.index)})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(labels) == 8
    assert labels[-1] == "others"


def test_a_map_without_any_rating_can_be_drawn() -> None:
    figure = drawn(figures.latent_maps, [panel(12)], {"beauty": pd.Series(dtype=float)})
    assert len(figure.axes[0].collections[0].get_offsets()) == 12


def test_circles_of_the_seeds_stand_where_the_table_says() -> None:
    rows = pd.DataFrame(
        [("a", "a", "all", seed, 0.1 * seed) for seed in (0, 1)] + [("b", "b", "all", 0, -0.02)],
        columns=["model", "label", "predictors", "seed", "delta"],
    )
    figure = drawn(figures.seed_spread, rows, {"all": "all metrics"}, {"a": "#0072B2", "b": "#D55E00"})
    marks = [line.get_xdata().tolist() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert marks == [[-0.02], [0.0, 0.1]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b", "a"]


def test_p_that_are_too_small_for_the_axis_stay_in_it() -> None:
    tests = pd.DataFrame({"estimator": "pearson", "p_parametric": [1e-30, 0.5], "p_permutation": [0.01, 0.6]})
    rates = pd.DataFrame({"estimator": "pearson", "alpha": [0.01, 0.1], "rate": [0.0, 0.1]})
    figure = drawn(figures.p_calibration, tests.assign(control=False), rates)
    marks = next(line for line in figure.axes[0].lines if line.get_marker() == "o")
    assert (marks.get_xdata() >= figure.axes[0].get_xlim()[0]).all()
    assert not any("$" in text or "mathdefault" in text for text in texts(figure))


def test_the_ceiling_and_power_of_a_study_can_be_drawn() -> None:
    rows = pd.DataFrame({"subset": ["all images", "a"], "model": ["m", "m"], "full": [0.2, -0.3]})
    ceilings = pd.DataFrame({"subset": ["all images"], "method": ["split-half"], "ceiling": [0.9]})
    figure = drawn(figures.noise_ceiling, rows, ceilings, {"m": "#0072B2"})
    assert figure.axes[0].get_xlim()[0] <= -0.3
    assert "ceiling (split-half)" in texts(figure)
    curves = pd.DataFrame({"num_predictors": [1, 1, 10, 10], "n": [20, 1000] * 2, "r2": [0.3, 0.01, 0.6, 0.02]})
    cells = pd.DataFrame({"label": ["this study"], "n": [50], "r2": [0.14]})
    figure = drawn(figures.power, curves, cells, "power .8")
    assert {"1 predictor", "10 predictors", "this study", "1,000"} <= set(texts(figure))
