"""The measure stage around the counting: histograms that are kept, layers that are sorted, processes, bad input."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from analysis import measure as module
from analysis import partial as pieces
from analysis import walk
from analysis.measure import measure
from analysis.places import gini_of_maps, gini_of_positions, lifetime_sparsity
from analysis.sparsity import METRICS, sparsity
from analysis.tables import load_metrics
from fluence.errors import ArtifactError, Interrupted
from fluence.layout import Layout
from fluence.store import histograms
from fluence.store.activations import Activations, ActivationWriter, LayerInfo
from fluence.store.files import read_table
from fluence.store.histograms import HistogramFile
from fluence.store.outcome import read_progress
from fluence.study import Epsilon, SparsityMetrics
from tests.analysis.test_measure import EPSILON, RUN

LAYERS = (
    LayerInfo("conv1", (3, 4, 4), "post", "conv"),
    LayerInfo("conv2", (6, 3, 3), "post", "conv"),
    LayerInfo("conv2.channels", (6,), "post", "gate"),
    LayerInfo("mu", (5,), "post", "latent"),
)
OTHER = Epsilon(quantiles=(0.1, 0.5, 0.9), report=0.5)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Histograms of the convolutions, blocks of a few images, shares of less, and no waiting."""
    monkeypatch.setattr(histograms, "SMALLEST_COUNTED", 48)
    monkeypatch.setattr(walk, "BLOCK_BYTES", 2 * 48 * 4)
    monkeypatch.setattr(walk, "_SHARE_BYTES", 100)
    monkeypatch.setattr(pieces, "_SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(pieces, "_POLL_S", 0.005)


def values_of(num_images: int, seed: int = 0, layers: tuple[LayerInfo, ...] = LAYERS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    drawn = {layer.name: rng.normal(size=(num_images, layer.num_units)).astype(np.float32) for layer in layers}
    return {name: values if name == "mu" else np.maximum(values, 0) for name, values in drawn.items()}


def write(
    root: Path,
    values: dict[str, np.ndarray],
    *,
    layers: tuple[LayerInfo, ...] = LAYERS,
    float32_layers: frozenset[str] = frozenset(),
    **attributes: str,
) -> Layout:
    """An activation file of these values; its reference images are drawn."""
    layout = Layout(root)
    num_images = len(values[layers[0].name])
    with ActivationWriter(
        layout.activations(RUN.id),
        key="k",
        image_ids=[f"face-{number}" for number in range(num_images)],
        reference_ids=["r0", "r1", "r2"],
        layers=layers,
        probes=("l1_error",),
        float32_layers=dict.fromkeys(float32_layers, "too large"),
        attributes=attributes,
    ) as writer:
        reference = values_of(3, 9, layers)
        writer.write_reference(0, {name: one.astype(np.float16).astype(np.float32) for name, one in reference.items()})
        if num_images:
            writer.write_block(0, values, {"l1_error": np.arange(float(num_images))})
        writer.finish()
    return layout


def table_of(layout: Layout) -> pd.DataFrame:
    return read_table(layout.metrics(RUN.id))


def fresh(tmp_path: Path, epsilon: Epsilon = EPSILON, sparsity: SparsityMetrics | None = None) -> bytes:
    """The tables of one process that was not disturbed."""
    layout = write(tmp_path / "fresh", values_of(10))
    measure(RUN, layout, epsilon, sparsity, key="k")
    return bytes_of(layout)


def bytes_of(layout: Layout) -> bytes:
    paths = (layout.metrics(RUN.id), layout.epsilon(RUN.id), layout.unit_metrics(RUN.id))
    return b"".join(path.read_bytes() for path in paths if path.is_file())


# ── Histograms that are kept ─────────────────────────────────────────────────────────────────────────────────────


def test_another_epsilon_reads_histograms_and_not_the_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = write(tmp_path, values_of(10))
    measure(RUN, layout, EPSILON, key="first")
    before = layout.histograms(RUN.id).read_bytes()
    read, reference = Activations.read, Activations.reference

    def only_small(self: Activations, layer: str, start: int, stop: int) -> np.ndarray:
        assert not layer.startswith("conv") or layer.endswith("channels") or start == stop
        return read(self, layer, start, stop)

    def no_reference(self: Activations, layer: str, *span: int) -> np.ndarray:
        assert layer not in ("conv1", "conv2")
        return reference(self, layer, *span)

    with monkeypatch.context() as patch:
        patch.setattr(Activations, "read", only_small)
        patch.setattr(Activations, "reference", no_reference)
        measure(RUN, layout, OTHER, key="k")
    assert capsys.readouterr().out == "small-all-s0: reads the histograms of 2 layers, not their activations\n"
    assert layout.histograms(RUN.id).read_bytes() == before
    assert bytes_of(layout) == fresh(tmp_path, OTHER)


def test_reading_histograms_is_stopped_and_continued(tmp_path: Path) -> None:
    layout = write(tmp_path, values_of(10))
    measure(RUN, layout, EPSILON, key="first")
    for _ in range(3):
        with pytest.raises(Interrupted):
            measure(RUN, layout, OTHER, key="k", stop=lambda: True)
    measure(RUN, layout, OTHER, key="k")
    assert bytes_of(layout) == fresh(tmp_path, OTHER)


def test_histograms_that_vanish_half_way_are_counted_again(tmp_path: Path) -> None:
    layout = write(tmp_path, values_of(10))
    measure(RUN, layout, EPSILON, key="first")
    with pytest.raises(Interrupted):
        measure(RUN, layout, OTHER, key="k", stop=after(2))
    layout.histograms(RUN.id).unlink()
    measure(RUN, layout, OTHER, key="k")
    assert bytes_of(layout) == fresh(tmp_path, OTHER)
    with HistogramFile(layout.histograms(RUN.id)) as file:
        assert file.layers == {"conv1", "conv2"}


def test_histograms_of_other_activations_are_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mistake: a cache keyed by a name, not by what made it."""
    layout = write(tmp_path, values_of(10, seed=4))
    measure(RUN, layout, EPSILON, key="k")
    layout.activations(RUN.id).unlink()
    write(tmp_path, values_of(10))
    measure(RUN, layout, EPSILON, key="k")
    assert bytes_of(layout) == fresh(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", [lambda whole: whole[:300], lambda whole: b"nonsense"])
def test_damaged_histograms_are_counted_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object
) -> None:
    layout = write(tmp_path, values_of(10))
    measure(RUN, layout, OTHER, key="first")
    path = layout.histograms(RUN.id)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    measure(RUN, layout, EPSILON, key="k")
    assert bytes_of(layout) == fresh(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith(f"{path}: damaged")
    assert said.endswith("it is counted again\n")
    with HistogramFile(path) as file:
        assert file.layers == {"conv1", "conv2"}


def test_a_kept_histogram_whose_counts_changed_is_noticed(tmp_path: Path) -> None:
    layout = write(tmp_path, values_of(10))
    measure(RUN, layout, EPSILON, key="first")
    with h5py.File(layout.histograms(RUN.id), "r+") as file:
        file["layers/conv1/counts"][7] += 1
    with pytest.raises(ArtifactError, match=r"histograms\.h5: layer conv1: .* delete it and run again"):
        measure(RUN, layout, EPSILON, key="k")


def test_every_histogram_is_there(tmp_path: Path) -> None:
    values = values_of(10)
    layout = write(tmp_path, values)
    measure(RUN, layout, EPSILON, key="k")
    with HistogramFile(layout.histograms(RUN.id)) as file:
        assert file.image_ids.tolist() == [f"face-{number}" for number in range(10)]
        found = file.read("conv2", 0, 10)
    for place, row in enumerate(values["conv2"].astype(np.float16)):
        bins = slice(*found.start[place : place + 2])
        expected, counts = np.unique(row.view(np.uint16), return_counts=True)
        np.testing.assert_array_equal(found.bits[bins], expected)
        np.testing.assert_array_equal(found.counts[bins], counts)


# ── Layers and parts of layers ───────────────────────────────────────────────────────────────────────────────────


def test_layers_of_float32_are_sorted_and_nearly_the_same(tmp_path: Path) -> None:
    values = {name: one.astype(np.float16).astype(np.float32) for name, one in values_of(10).items()}
    counted, by_sorting = write(tmp_path / "a", values), write(tmp_path / "b", values, float32_layers=frozenset(values))
    for layout in (counted, by_sorting):
        measure(RUN, layout, EPSILON, key="k")
    assert counted.histograms(RUN.id).is_file()
    assert not by_sorting.histograms(RUN.id).exists()
    found, expected = table_of(by_sorting), table_of(counted)
    names = ["image_id", "layer", "metric"]
    pd.testing.assert_frame_equal(found[names], expected[names])
    np.testing.assert_allclose(found["value"], expected["value"], rtol=1e-12, atol=1e-12)


def test_maps_and_positions_are_measured_where_there_are_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = values_of(10)
    layout = write(tmp_path, values)
    measure(RUN, layout, EPSILON, key="first")  # the histograms do not tell places apart
    measure(RUN, layout, EPSILON, SparsityMetrics(per=("layer", "map", "position")), key="k")
    wide = table_of(layout).pivot(index="image_id", columns=["layer", "metric"], values="value")
    wide = wide.loc[[f"face-{number}" for number in range(10)]]
    for layer in LAYERS[:2]:
        stored = values[layer.name].astype(np.float16)
        np.testing.assert_array_equal(wide[layer.name, "gini_map"], gini_of_maps(stored, layer.shape))
        np.testing.assert_array_equal(wide[layer.name, "gini_position"], gini_of_positions(stored, layer.shape))
    assert {layer for layer, metric in wide.columns if metric == "gini_map"} == {"conv1", "conv2"}
    assert capsys.readouterr().out == ""


def test_units_have_a_table_of_their_own_that_survives_a_stop(tmp_path: Path) -> None:
    values, asked = values_of(10), SparsityMetrics(per=("layer", "unit"))
    layout = write(tmp_path, values)
    for _ in range(40):  # a block further each time, and no block of units is too small to come further
        with pytest.raises(Interrupted):
            measure(RUN, layout, EPSILON, asked, key="k", stop=after(2))
        if layout.partial_metrics_of(RUN.id, "").is_dir() and any(
            path.name.startswith("mu.") and path.name.endswith(".units")
            for path in layout.partial_metrics(RUN.id).iterdir()
        ):
            break
    measure(RUN, layout, EPSILON, asked, key="k")
    units = read_table(layout.unit_metrics(RUN.id))
    assert units.attrs["key"] == "k"
    assert list(units.columns) == ["layer", "unit", "gini", "treves_rolls", "dead_fraction"]
    for layer in LAYERS:
        expected = lifetime_sparsity(values[layer.name].astype(np.float16))
        own = units[units["layer"] == layer.name]
        assert own["unit"].tolist() == list(range(layer.num_units))
        for name, column in expected.items():
            np.testing.assert_array_equal(own[name], column)
    assert bytes_of(layout) == fresh(tmp_path, EPSILON, asked)
    measure(RUN, layout, EPSILON, key="another")
    assert not layout.unit_metrics(RUN.id).exists()


def after(number: int) -> object:
    """Answers True when it is asked for the so-manieth time, and later."""
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= number


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_a_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    expected = fresh(tmp_path)
    monkeypatch.setattr(module, "num_threads", lambda: threads)
    layout = write(tmp_path, values_of(10))
    measure(RUN, layout, EPSILON, key="k")
    assert bytes_of(layout) == expected


# ── Several processes ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_processes_that_share_the_layers_do_not_change_a_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], world_size: int
) -> None:
    asked = SparsityMetrics(per=("layer", "unit"))
    expected = fresh(tmp_path, EPSILON, asked)
    layout = write(tmp_path, values_of(10))

    def one(rank: int) -> None:
        measure(RUN, layout, EPSILON, asked, key="k", rank=rank, world_size=world_size)

    first = threading.Thread(target=one, args=(0,))
    first.start()
    said, end = "", time.monotonic() + 20
    while "waits for the process that measures layer conv2" not in said and time.monotonic() < end:
        time.sleep(0.01)
        said += capsys.readouterr().out
    for rank in range(1, world_size):
        assert first.is_alive()
        one(rank)
    first.join(20)
    assert bytes_of(layout) == expected
    assert not layout.partial_metrics(RUN.id).exists()
    assert "waits for the process that measures layer conv2" in said


def test_the_first_process_stops_while_it_waits_and_measures_what_is_damaged(tmp_path: Path) -> None:
    layout = write(tmp_path, values_of(10))
    with pytest.raises(Interrupted, match="stopped while it waited for layer conv2"):
        measure(RUN, layout, EPSILON, key="k", rank=0, world_size=2, stop=after(9))
    measure(RUN, layout, EPSILON, key="k", rank=1, world_size=2)
    progress = read_progress(layout.progress("measure", RUN.id), "k")
    assert progress is not None
    assert progress.fraction < 1
    damaged = next(layout.partial_metrics(RUN.id).glob("mu.*-*"))
    damaged.write_bytes(b"nonsense")
    measure(RUN, layout, EPSILON, key="k", rank=0, world_size=2)
    assert bytes_of(layout) == fresh(tmp_path)


def test_the_first_process_learns_why_another_could_not(tmp_path: Path) -> None:
    values = values_of(10)
    values["mu"][6, 2] = np.nan
    layout = write(tmp_path, values_of(10))
    with h5py.File(layout.activations(RUN.id), "r+") as file:
        file["layers/mu"][6, 2] = np.nan
    said = r"4d\.h5: layer mu: 1 values are NaN or infinite, in image face-6; extract this run again"
    for rank in (1, 0):
        with pytest.raises(ArtifactError, match=said):
            measure(RUN, layout, EPSILON, key="k", rank=rank, world_size=2)
    assert not layout.metrics(RUN.id).exists()


# ── Bad input ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("float32_layers", [frozenset(), frozenset({"conv2", "mu"})])
@pytest.mark.parametrize("layer", ["conv2", "mu"])
def test_reference_images_with_nan_are_named(tmp_path: Path, layer: str, float32_layers: frozenset[str]) -> None:
    layout = write(tmp_path, values_of(3), float32_layers=float32_layers)
    with h5py.File(layout.activations(RUN.id), "r+") as file:
        file[f"reference/{layer}"][1, 2:4] = np.nan
    said = rf"4d\.h5: layer {layer}: 2 values are NaN or infinite, first in reference image r1; extract this run again"
    with pytest.raises(ArtifactError, match=said):
        measure(RUN, layout, EPSILON, key="k")
    assert not layout.partial_metrics(RUN.id).exists()


def test_no_image_is_an_error(tmp_path: Path) -> None:
    layout = write(tmp_path, values_of(3))
    with h5py.File(layout.activations(RUN.id), "r+") as file:
        for name in ("image_id", "probes/l1_error", *(f"layers/{layer.name}" for layer in LAYERS)):
            empty, attributes = file[name][:0], dict(file[name].attrs)
            del file[name]
            file.create_dataset(name, data=empty).attrs.update(attributes)
    with pytest.raises(ArtifactError, match=r"4d\.h5: holds no image, so there is nothing to measure"):
        measure(RUN, layout, EPSILON, key="k")


def test_one_image(tmp_path: Path) -> None:
    values = values_of(1)
    layout = write(tmp_path, values)
    measure(RUN, layout, EPSILON, SparsityMetrics(per=("layer", "unit")), key="k")
    metrics = table_of(layout).set_index(["layer", "metric"])["value"]
    expected, _ = sparsity(values["conv1"].astype(np.float16), np.empty(0))
    for name in METRICS:
        assert metrics["conv1", name] == expected[name][0]


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_constant_layers_and_a_layer_of_one_unit(tmp_path: Path, constant: float) -> None:
    one_unit = (*LAYERS, LayerInfo("single", (1,), "post", "latent"))
    values = values_of(10, layers=one_unit)
    values["conv1"][:] = constant
    layout = write(tmp_path, values, layers=one_unit)
    measure(RUN, layout, EPSILON, key="k")
    first = table_of(layout).query("image_id == 'face-0'").set_index(["layer", "metric"])["value"]
    assert first["conv1", "gini"] == pytest.approx(np.nan if constant == 0 else 0, nan_ok=True)
    assert first["conv1", "dead_fraction"] == (constant == 0)
    assert first["conv1", "mean"] == first["conv1", "max"] == constant
    assert np.isnan(first["conv1", "kurtosis"])
    alive = values["single"][0, 0] > 0
    assert first["single", "gini"] == pytest.approx(0 if alive else np.nan, nan_ok=True)
    assert first["single", "l0"] == alive


def test_activations_of_another_run_are_refused(tmp_path: Path) -> None:
    layout = write(tmp_path, values_of(3), run="vgg-all-s1-99999999")
    with pytest.raises(
        ArtifactError, match=r"holds the activations of vgg-all-s1-99999999, not of small-all-s0-1a2b3c4d; delete it"
    ):
        measure(RUN, layout, EPSILON, key="k")


def test_activations_of_another_version_are_refused(tmp_path: Path) -> None:
    layout = write(tmp_path, values_of(3))
    with h5py.File(layout.activations(RUN.id), "r+") as file:
        file.attrs["format"] = 77
    with pytest.raises(ArtifactError, match="in format 77, expected activations"):
        measure(RUN, layout, EPSILON, key="k")


def test_images_that_left_the_manifest_since_do_no_harm(tmp_path: Path) -> None:
    layout = write(tmp_path, values_of(10))
    measure(RUN, layout, EPSILON, key="k")
    left = load_metrics(layout.metrics(RUN.id), ["face-7", "face-2"])
    assert set(left["image_id"]) == {"face-7", "face-2"}
    with pytest.raises(ArtifactError, match="1 of 2 rated images are missing: face-77"):
        load_metrics(layout.metrics(RUN.id), ["face-7", "face-77"])
