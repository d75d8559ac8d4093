from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from analysis import figures
from analysis.figures.fonts import families
from analysis.figures.plate import look

MODELS = {"small": "#0072B2", "vgg": "#D55E00"}


def correlations(**changes: object) -> pd.DataFrame:
    rows = [
        {"model": model, "metric": metric, "layer": layer, "r": 0.1 * number, "significant": number > 1}
        for model in MODELS
        for metric in ("gini", "l_eps")
        for number, layer in enumerate(("conv1", "conv2", "mu"))
    ]
    table = pd.DataFrame(rows)
    spread = {"r_min": -0.1, "r_max": 0.1, "ci_low": -0.2, "ci_high": 0.2}
    return table.assign(**{name: table["r"] + value for name, value in spread.items()}).assign(**changes)


def regressions() -> pd.DataFrame:
    row = {"baseline": 0.1, "full": 0.05, "delta": -0.05, "ci_low": -0.1, "ci_high": 0.01, "floor": 0.02}
    return pd.DataFrame([{"label": model, "model": model, **row} for model in MODELS])


def groups() -> pd.DataFrame:
    rows = [
        ("all images", "general", 0.2, 0.1, 0.3, 90),
        ("a", "general", 0.1, -0.2, 0.4, 30),
        ("a", "own", 0, -1, 1, 30),
    ]
    return pd.DataFrame(rows, columns=["group", "scorer", "r", "ci_low", "ci_high", "n"])


def curves() -> pd.DataFrame:
    rows = [
        {"group": group, "seed": 0, "phase": phase, "epoch": epoch, "term": term, "value": 1000 / epoch**2}
        for group in ("all", "a")
        for phase in ("train", "validation")
        for term in ("loss", "reconstruction/l2", "kl", "reconstruction/lpips_alex_random")
        for epoch in range(1, 6)
    ]
    return pd.DataFrame(rows)


def drawn(figure_of: object, *args: object) -> Figure:
    with look():
        figure = figure_of(*args)  # type: ignore[operator]
        figure.draw_without_rendering()
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def test_a_figure_reaches_disk_and_report(tmp_path: Path) -> None:
    plate = figures.draw(tmp_path, "gain", "t", "c", figures.gain_over_confounds, regressions(), 0.3, MODELS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gain.pdf", "gain.png"]
    with Image.open(tmp_path / "gain.png") as image:
        assert image.size == (plate.width_px, plate.height_px)
    assert (tmp_path / "gain.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(io.BytesIO(plate.image)) as shown, Image.open(tmp_path / "gain.png") as kept:
        assert shown.format == "WEBP"
        assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(kept.convert("RGB")))
    assert len(plate.image) < 0.9 * (tmp_path / "gain.png").stat().st_size


def test_few_colours_are_enough_for_a_drawing(tmp_path: Path) -> None:
    figures.draw(tmp_path, "f", "t", "c", figures.loss_curves, curves(), ("all", "a"))
    figure = drawn(figures.loss_curves, curves(), ("all", "a"))
    figure.set_layout_engine("none")
    with look():
        figure.savefig(tmp_path / "all.png", dpi=200, facecolor="white")
    with Image.open(tmp_path / "f.png") as few, Image.open(tmp_path / "all.png") as every:
        assert few.mode == "P"
        difference = np.abs(np.asarray(few.convert("RGB"), float) - np.asarray(every.convert("RGB"), float))
        assert few.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert difference.mean() < 0.1
    assert (tmp_path / "f.png").stat().st_size < 0.5 * (tmp_path / "all.png").stat().st_size


def test_the_same_figure_has_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        figures.draw(tmp_path / folder, "f", "", "", figures.forest, groups(), "Gini")
    for name in ("f.png", "f.pdf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_photographs_are_small_in_the_report_and_keep_their_colours(tmp_path: Path) -> None:
    red = np.zeros((4, 16, 16, 3), dtype=np.uint8)
    red[..., 0] = 200
    strips = [figures.Strip("original", red), figures.Strip("all groups", red[:3])]
    plate = figures.draw(tmp_path, "faces", "", "", figures.reconstructions, strips)
    with Image.open(io.BytesIO(plate.image)) as shown:
        assert shown.width == pytest.approx(0.75 * plate.width_px, abs=1)
        close = np.abs(np.asarray(shown.convert("RGB"), float) - (200, 0, 0)).max(axis=2) < 12
    assert close.mean() == pytest.approx(6 / 16, abs=0.05)
    with Image.open(tmp_path / "faces.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    share = (pixels == (200, 0, 0)).all(axis=1).mean()
    assert share == pytest.approx(7 * 16**2 / (2 * 8 * 17**2) * 6.25 / 7, abs=0.02)


def test_correlations_fill_only_what_is_significant() -> None:
    figure = drawn(figures.correlations_by_layer, correlations(), {"gini": "Gini", "l_eps": "Lε"}, MODELS)
    assert len(figure.axes) == 4
    filled, hollow = figure.axes[0].lines[0], figure.axes[0].lines[1]
    assert list(filled.get_xdata()) == [2]
    assert list(hollow.get_xdata()) == [0, 1]
    assert hollow.get_markerfacecolor() == "white"
    names = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in figure.axes]
    assert names == [["", "", ""]] * 2 + [["conv1", "conv2", "mu"]] * 2, "layers are named once below each column"


def test_other_layers_below_have_their_own_names() -> None:
    rows = correlations()
    rows = pd.concat([rows, rows.query("metric == 'gini' and layer == 'mu'").assign(metric="errors", layer="L1")])
    figure = drawn(figures.correlations_by_layer, rows, {"gini": "Gini", "l_eps": "Lε", "errors": "error"}, MODELS)
    names = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in figure.axes[::2]]
    assert names == [["", "", ""], ["conv1", "conv2", "mu"], ["L1"]]


def test_negative_gains_are_drawn_as_negative() -> None:
    figure = drawn(figures.gain_over_confounds, regressions(), None, MODELS)
    gains = [line.get_xdata()[0] for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert gains == [-0.05, -0.05]


def test_forest_keeps_the_order_and_names_n() -> None:
    figure = drawn(figures.forest, groups(), "Gini of mu")
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == ["all images (90)", "a (30)"]
    heights = figure.axes[0].get_yticks()
    assert heights[0] > heights[1]


def test_loss_curves_have_a_panel_per_term_and_a_line_per_run_and_phase() -> None:
    figure = drawn(figures.loss_curves, curves(), ("all", "a"))
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert [len(axes.lines) for axes in visible] == [4, 4, 4, 4]
    assert visible[0].get_yscale() == "log"
    assert "100" in texts(figure)
    assert "LPIPS (alex, random weights)" in texts(figure)
    assert not any("$" in text for text in texts(figure))


def test_many_groups_share_one_entry_of_the_legend() -> None:
    names = ["all", *(f"southeast_asian-female-{number}" for number in range(12))]
    table = pd.concat([curves().query("group == 'all'").assign(group=name) for name in names])
    figure = drawn(figures.loss_curves, table, names)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["all", "single groups", "train", "validation"]


def test_a_single_epoch_has_a_single_tick() -> None:
    figure = drawn(figures.loss_curves, curves().query("epoch == 1"), ("all", "a"))
    assert [tick for tick in figure.axes[0].get_xticks() if 0.5 <= tick <= 1.5] == [1]


def test_a_single_row_still_has_room() -> None:
    naive = pd.DataFrame({"label": "m", "estimator": [f"estimator {n}" for n in range(5)], "value": 0.1})
    covariates = pd.DataFrame({"covariate": ["age"], "r": [0.1], "ci_low": [0.0], "ci_high": [0.2]})
    for figure in (
        drawn(figures.estimators, naive),
        drawn(figures.covariate_correlations, covariates),
        drawn(figures.forest, groups().iloc[:1], "Gini"),
        drawn(figures.gain_over_confounds, regressions().iloc[:1], 0.3, MODELS),
    ):
        assert all(axes.get_position().height * figure.get_figheight() > 0.15 for axes in figure.axes)


@pytest.mark.parametrize("name", ["$x_{1", "<script>", "日本", r"\frac{1}", "a" * 200])
def test_strange_names_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    table = groups().assign(group=name)
    figures.draw(tmp_path, "f", name, name, figures.forest, table, name)
    figure = drawn(figures.forest, table, name)
    assert any(text.startswith(name[:18]) for text in texts(figure))


def test_every_other_figure_can_be_drawn() -> None:
    rng = np.random.default_rng(0)
    ratings = pd.DataFrame({"group": ["a", "b"] * 20, "score": rng.normal(size=40)})
    covariates = pd.DataFrame({"covariate": ["age"], "r": [0.1], "ci_low": [0.0], "ci_high": [0.2]})
    quantiles = correlations().assign(q05=0.1, q50=0.2, q95=0.3)
    sweep = pd.concat([correlations().assign(quantile=quantile) for quantile in (0.25, 0.5)])
    naive = pd.DataFrame({"label": ["m", "m"], "estimator": ["honest", "naive"], "value": [-0.1, 0.3]})
    assert "Share of images" in texts(drawn(figures.ratings_by_group, ratings, "beauty"))
    assert "age" in texts(drawn(figures.covariate_correlations, covariates))
    assert "small" in texts(drawn(figures.distributions, quantiles, {"gini": "Gini"}, MODELS))
    assert "0.25" in texts(drawn(figures.epsilon_sweep, sweep[sweep["metric"] == "l_eps"], list(MODELS)))
    assert "naive" in texts(drawn(figures.estimators, naive))


def many_curves(num_models: int, num_terms: int) -> pd.DataFrame:
    rows = [
        (f"model-{model}", seed, phase, epoch, f"reconstruction/term{term}", (model + 1) * 100 / epoch**2)
        for model in range(num_models)
        for seed in (0, 1)
        for phase in ("train", "validation")
        for epoch in range(1, 6)
        for term in range(num_terms)
    ]
    return pd.DataFrame(rows, columns=["model", "seed", "phase", "epoch", "term", "value"])


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("num_models", [2, 8, 12])
def test_models_are_told_apart_by_colour_and_marker(num_models: int) -> None:
    names = [f"model-{number}" for number in range(num_models)]
    styles = figures.style_of(names)
    assert len(set(styles.values())) == num_models
    assert len({colour for colour, _ in styles.values()}) == min(num_models, 8)
    figure = drawn(figures.compared_curves, many_curves(num_models, 2), styles)
    assert labels(figure) == [*names, "train", "validation"]
    solid = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    assert len(solid) == 2 * num_models
    assert {(line.get_color(), line.get_marker()) for line in solid} == set(styles.values())
    assert figure.axes[0].get_yscale() == "log"


def test_every_model_has_a_panel_before_the_others_in_grey() -> None:
    names = [f"model-{number}" for number in range(6)]
    values = [(model, place, 0.5, 0.4, 0.6) for model in names for place in range(3)]
    rows = pd.DataFrame(values, columns=["model", "place", "mean", "low", "high"])
    figure = drawn(figures.metric_by_layer, rows, "Gini", figures.style_of(names), ("conv1", "conv2", "mu"))
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in visible] == names
    assert all(len(axes.lines) == 6 for axes in visible)
    assert [sum(line.get_color() == "#cccccc" for line in axes.lines) for axes in visible] == [5] * 6
    assert "conv2" in texts(figure)


def test_without_room_for_the_parts_of_a_font_the_whole_one_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.figures.fonts.mpl.get_cachedir", lambda: "/proc/nowhere")
    assert families.__wrapped__() == ["DejaVu Sans"]
