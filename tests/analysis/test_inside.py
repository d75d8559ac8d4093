"""What networks do inside, in the report: which figures, of which run, and what they show to whom."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from analysis import figures
from analysis.export import shown_in
from analysis.figures.inside import LayerHistogram, MapRow, UnitPanel
from analysis.report.compared import Case
from analysis.report.evidence import Evidence
from analysis.report.inside import differing_by_constraint, inside, with_and_without
from analysis.report.page import Item, Picture, Text
from analysis.report.summary import Summary
from fluence.layout import Layout
from fluence.store.activations import ActivationWriter, LayerInfo
from fluence.store.exhibits import Exhibits, LayerShown
from fluence.study import Study
from tests.analysis.invented_study import SIZE_PX, faces, grid, manifest, settings, write_activations
from tests.analysis.test_figures import drawn, texts

NO_NUMBERS = Summary(pd.DataFrame(), pd.DataFrame())
VAE = {"kind": "vae"}
KL = [{"penalty": "kl", "layers": "all but conv1"}]
MODELS: dict[str, object] = {
    "free": VAE,
    "sparse": {**VAE, "sparsity": KL},
    "wide-sparse": {**VAE, "width": 2.0, "sparsity": KL},
    "nowhere": {**VAE, "sparsity": [{**KL[0], "layers": "none"}]},
    "slow-sparse": {**VAE, "sparsity": KL, "training": {"learning_rate": 1e-5}},
    "late": {**VAE, "sparsity": [{**KL[0], "weight": 3.0}]},
    "untrained": {**VAE, "training": {"epochs": 0}},
}


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A study of which nothing exists but what extraction has kept."""
    study = Study.model_validate(settings(models=MODELS, grid={"groups": ["all"], "seeds": [0, 1]}))
    layout, rng = Layout(tmp_path_factory.mktemp("inside")), np.random.default_rng(1)
    table, hidden = manifest(rng, 40, 0.0, "j")
    pixels = faces(rng, 40, np.ones(40))
    runs = grid(study, {f"late-all-s{seed}": ("unfinished", "") for seed in (0, 1)})
    for row in runs:
        if row.status == "done" and row.run.seed == 0 and row.run.model != "nowhere":
            write_activations(layout, row.run, list(table["image_id"]), hidden, pixels, pixels)
    return Evidence(study, layout, runs)


def names(items: list[Item]) -> list[str]:
    return [item.plate.name for item in items if isinstance(item, Picture)]


def compared(evidence: Evidence, *models: str) -> Case:
    nothing = pd.DataFrame()
    return Case(evidence, None, "places", models, nothing, nothing, figures.style_of(models))  # type: ignore[arg-type]


def test_a_model_has_its_maps_units_layers_and_ways(evidence: Evidence) -> None:
    items = list(inside(evidence, NO_NUMBERS, "sparse"))
    assert names(items) == ["inside-maps-sparse", "inside-units-sparse", "inside-layers-sparse", "inside-ways-sparse"]
    captions = [item.plate.caption for item in items if isinstance(item, Picture)]
    assert "on image j0000, recorded after its non-linearity (run sparse-all-s0)" in captions[0]
    assert all("run sparse-all-s0" in caption for caption in captions)
    assert "Outside: images j0000, j0020 and j0039" in captions[-1]


def test_an_untrained_network_has_no_ways_between_its_codes(evidence: Evidence) -> None:
    found = names(list(inside(evidence, NO_NUMBERS, "untrained")))
    assert found == ["inside-maps-untrained", "inside-units-untrained", "inside-layers-untrained"]


def test_what_was_not_kept_is_said_and_what_was_not_run_is_not_asked_for(evidence: Evidence) -> None:
    (said,) = inside(evidence, NO_NUMBERS, "nowhere")
    assert isinstance(said, Text)
    assert said.missing
    assert any(line.startswith("nowhere-all-s0, its layers: activations/") for line in evidence.missing)
    assert list(inside(evidence, NO_NUMBERS, "late")) == []


def test_a_file_without_exhibits_is_said_to_have_none(evidence: Evidence, tmp_path: Path) -> None:
    run = next(row.run for row in evidence.runs if row.run.model == "free")
    path, other = evidence.layout.activations(run.id), Layout(tmp_path)
    other.activations(run.id).parent.mkdir()
    other.activations(run.id).write_bytes(path.read_bytes())
    with h5py.File(other.activations(run.id), "r+") as file:
        del file["exhibits"]
    (said,) = inside(Evidence(evidence.study, other, evidence.runs), NO_NUMBERS, "free")
    assert isinstance(said, Text)
    assert said.missing


def test_figures_of_faces_say_that_they_show_images(evidence: Evidence) -> None:
    list(inside(evidence, NO_NUMBERS, "free"))
    shown = {path.stem: shown_in(path) for path in evidence.layout.figures.glob("inside-*-free.png")}
    images, numbers = dict.fromkeys(("maps", "ways"), "images"), dict.fromkeys(("units", "layers"), "numbers")
    assert shown == {f"inside-{name}-free": what for name, what in (images | numbers).items()}


def test_a_network_with_gates_has_attention_maps_and_its_gates(evidence: Evidence, tmp_path: Path) -> None:
    run = next(row.run for row in evidence.runs if row.run.model == "free")
    layout, rng, originals = Layout(tmp_path), np.random.default_rng(0), faces(np.random.default_rng(0), 3, np.ones(3))
    shapes = {"conv3": (2, 4, 4), "conv3.channels": (2,), "conv3.places": (1, 4, 4)}
    layers = [LayerInfo(name, shape, "post", "gate" if "." in name else "conv") for name, shape in shapes.items()]
    counts, edges, zeros = np.ones((3, 4), int), np.tile(np.arange(5.0), (3, 1)), np.zeros(3, int)
    shown = {
        one.name: LayerShown(rng.uniform(size=(3, *one.shape)).astype(np.float16), 1, counts, edges, zeros)
        for one in layers
    }
    ids, values = ["a", "b", "c"], {one.name: rng.uniform(size=(3, one.num_units)) for one in layers}
    units = {one.name: np.arange(one.num_units) for one in layers}
    with ActivationWriter(
        layout.activations(run.id), key="k", image_ids=ids, reference_ids=[], layers=layers, probes=[], units=units
    ) as writer:
        writer.write_exhibits(Exhibits(ids, originals, shown, np.empty((0, 8, SIZE_PX, SIZE_PX, 3), np.uint8)))
        writer.write_block(0, values, {}, values)
        writer.finish()
    items = list(inside(Evidence(evidence.study, layout, evidence.runs), NO_NUMBERS, "free"))
    assert names(items) == [f"inside-{what}-free" for what in ("maps", "attention", "gates", "units", "layers")]
    assert shown_in(layout.figures / "inside-attention-free.png") == "images"
    assert shown_in(layout.figures / "inside-gates-free.png") == "numbers"


# ── With and without a constraint ────────────────────────────────────────────────────────────────────────────────


def test_only_models_that_differ_by_nothing_but_their_constraint_are_set_side_by_side(evidence: Evidence) -> None:
    study = evidence.study
    assert differing_by_constraint(study, list(MODELS)) == ("free", "sparse", "late")
    assert differing_by_constraint(study, ["nowhere", "sparse"]) == ("nowhere", "sparse")
    assert differing_by_constraint(study, ["free", "wide-sparse", "slow-sparse"]) == ()
    assert differing_by_constraint(study, ["untrained", "sparse"]) == ()
    assert differing_by_constraint(study, ["sparse", "late"]) == ()


def test_they_share_figures_of_maps_layers_and_units(evidence: Evidence) -> None:
    items = list(with_and_without(compared(evidence, "sparse", "free", "late")))
    assert names(items) == [f"comparison-places-inside-{what}" for what in ("maps", "layers", "units")]


def test_without_the_network_without_a_constraint_there_is_nothing_to_compare(evidence: Evidence) -> None:
    assert list(with_and_without(compared(evidence, "nowhere", "sparse"))) == []
    assert list(with_and_without(compared(evidence, "free", "late"))) == []


# ── Figures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def polygons(figure: Figure) -> list[int]:
    """How many outlines each collection of a figure has."""
    return [len(found.get_paths()) for found in figure.findobj(PolyCollection)]


def test_units_that_never_change_are_drawn_in_another_colour() -> None:
    values = np.random.default_rng(0).normal(size=(30, 7))
    values[:, 2], values[:, 5] = 0, 1.5
    figure = drawn(figures.unit_histograms, [UnitPanel("conv1", values), UnitPanel("mu", values[:, :1], (-9, 9.0))])
    assert polygons(figure) == [6, 2]
    assert {"conv1", "mu", "−9", "9"} <= set(texts(figure))


def test_a_units_outline_is_the_histogram_of_its_values() -> None:
    values = np.array([[0.0], [0.0], [0.0], [1.0]])
    figure = drawn(figures.unit_histograms, [UnitPanel("u", values)])
    outline = figure.findobj(PolyCollection)[0].get_paths()[0].vertices
    heights = outline[:, 1].max() - outline[1:41:2, 1]
    np.testing.assert_allclose(heights / heights.max(), [1, *[0] * 18, 1 / 3], atol=1e-6)


def test_the_area_under_a_layers_histogram_is_the_share_of_values_that_are_not_zero() -> None:
    rng = np.random.default_rng(0)
    many, few = (np.histogram(rng.exponential(size=size), 64) for size in (100_000, 40))
    rows = [("conv1", [LayerHistogram("a", *many, 0.25), LayerHistogram("b", *few, 1.0)])]
    figure = drawn(figures.layer_histograms, rows, figures.style_of(["a", "b"]))
    stairs = [patch.get_data() for patch in figure.axes[0].patches]
    areas = [np.nansum(one.values * np.diff(one.edges)) for one in stairs]
    np.testing.assert_allclose(areas, [0.25, 1.0])
    assert [len(one.values) for one in stairs] == [64, 8]  # forty values in 64 bins are no picture
    assert {"75%", "0%"} <= set(texts(figure))


def test_maps_fill_their_row_from_dark_to_bright_and_flat_ones_are_no_error() -> None:
    maps = np.arange(8.0).reshape(2, 2, 2)
    original = np.zeros((100, 100, 3), np.uint8)
    figure = drawn(figures.feature_maps, original, [MapRow("conv1", maps, "50%"), MapRow("conv2", 0 * maps)])
    sheet = figure.axes[0].images[0].get_array()
    rows = [sheet[68:132, :132], sheet[136:200, :132]]
    assert len(np.unique(rows[0].reshape(-1, 3), axis=0)) == 9  # eight values and the white between the maps
    assert len(np.unique(rows[1].reshape(-1, 3), axis=0)) == 2
    assert {"image", "conv1", "50%"} <= set(texts(figure))


def test_attention_and_gates_name_their_layers_and_ranges() -> None:
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (3, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    maps = np.linspace(0.25, 0.75, 48).reshape(3, 4, 4)
    attention = drawn(figures.attention_maps, originals, [("conv3", maps)])
    assert "conv3\n0.25–0.75" in texts(attention)
    gates = drawn(figures.gate_values, [("conv3", rng.uniform(size=(3, 8)))])
    assert {"conv3", "image 1", "image 3"} <= set(texts(gates))


def test_a_way_stands_between_its_two_images() -> None:
    originals = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 100)])
    figure = drawn(figures.ways_between, originals, np.full((1, 8, 16, 16, 3), 50, np.uint8))
    middle = figure.axes[0].images[0].get_array()[8, :, 0]
    shades = [int(value) for value in middle[np.flatnonzero(np.diff(middle, prepend=255.0))] if value != 255]
    assert shades == [0, *[50] * 8, 100]
