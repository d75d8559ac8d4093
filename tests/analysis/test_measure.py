from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import gram, typicality, walk
from analysis import measure as module
from analysis.cells import predictor_sets
from analysis.histogram import nonzero_quantiles
from analysis.layers import quantile_name
from analysis.measure import measure
from analysis.sparsity import METRICS, counted, sparsity
from analysis.tables import feature_matrix
from analysis.typicality import Asked, typicality_of
from fluence.errors import ArtifactError, Interrupted, StudyError
from fluence.layout import Layout, Run
from fluence.store.activations import ActivationWriter, LayerInfo
from fluence.store.files import read_json, read_table
from fluence.study import Epsilon, Typicality

LAYERS = (LayerInfo("conv1", (3, 4, 4), "post", "conv"), LayerInfo("mu", (5,), "post", "latent"))
EPSILON = Epsilon(quantiles=(0.25, 0.5), report=0.5)
RUN = Run("small", "all", 0, "small-all-s0-1a2b3c4d")


def random_layers(num_images: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    conv = np.maximum(rng.normal(size=(num_images, 48)), 0).astype(np.float32)
    return {"conv1": conv, "mu": rng.normal(size=(num_images, 5)).astype(np.float32)}


def write_activations(layout: Layout, values: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> list[str]:
    ids = [f"face-{number}" for number in range(len(values["mu"]))]
    references = [f"ref-{number}" for number in range(len(reference["mu"]))]
    with ActivationWriter(
        layout.activations(RUN.id),
        key="k",
        image_ids=ids,
        reference_ids=references,
        layers=LAYERS,
        probes=("l1_error", "ssim_error"),
    ) as writer:
        writer.write_reference(0, reference)
        probes = {"l1_error": np.arange(len(ids)) * 0.5, "ssim_error": np.ones(len(ids))}
        writer.write_block(0, values, probes)
        writer.finish()
    return ids


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_every_value_of_the_table(layout: Layout) -> None:
    values, reference = random_layers(70, 0), random_layers(6, 1)
    values["mu"][3] = 0
    ids = write_activations(layout, values, reference)
    measure(RUN, layout, EPSILON, key="abc")

    metrics = read_table(layout.metrics(RUN.id))
    assert list(metrics.columns) == ["image_id", "layer", "metric", "value"]
    assert metrics.attrs["key"] == "abc"
    assert metrics["layer"].unique().tolist() == ["conv1", "mu", "reconstruction"]
    wide = metrics.pivot(index="image_id", columns=["layer", "metric"], values="value").loc[ids]
    epsilon = read_table(layout.epsilon(RUN.id)).set_index(["layer", "quantile"])
    assert (epsilon["num_reference"] == 6).all()
    for layer in ("conv1", "mu"):
        stored = values[layer].astype(np.float16)
        metrics_of_layer, _ = sparsity(stored, np.empty(0))
        for name in METRICS:
            np.testing.assert_array_equal(wide[layer, name], metrics_of_layer[name])
        magnitudes = np.abs(reference[layer].astype(np.float16)).astype(np.float64)
        for quantile in EPSILON.quantiles:
            chosen = epsilon.loc[(layer, quantile), "epsilon"]
            assert chosen == pytest.approx(np.quantile(magnitudes[magnitudes > 0], quantile), rel=1e-6)
            count = (np.abs(stored.astype(np.float64)) > chosen).sum(axis=1)
            name = quantile_name(quantile)
            np.testing.assert_array_equal(wide[layer, f"l_eps_count_{name}"], count)
            np.testing.assert_allclose(wide[layer, f"l_eps_fraction_{name}"], count / stored.shape[1])
    assert np.isnan(wide["mu", "gini"].iloc[3])
    assert wide["mu", "gini"].notna().sum() == 69
    assert wide["mu", "l_eps_count_q50"].iloc[3] == 0
    np.testing.assert_array_equal(wide["reconstruction", "l1_error"], np.arange(70) * 0.5)


def test_sharpness_and_gradient_are_of_the_loss_not_of_the_reconstruction(layout: Layout) -> None:
    values = random_layers(5, 0)
    probes = {"l1_error": np.ones(5), "sharpness": np.arange(5.0), "gradient_norm": 10 * np.arange(5.0)}
    ids = [f"face-{number}" for number in range(5)]
    path = layout.activations(RUN.id)
    with ActivationWriter(
        path, key="k", image_ids=ids, reference_ids=["r"], layers=LAYERS, probes=list(probes)
    ) as file:
        file.write_reference(0, random_layers(1, 1))
        file.write_block(0, values, probes)
        file.finish()
    measure(RUN, layout, EPSILON, key="k")
    metrics = read_table(layout.metrics(RUN.id))
    of_loss = metrics[metrics["layer"] == "loss"].pivot(index="image_id", columns="metric", values="value").loc[ids]
    assert of_loss.to_dict("list") == {"gradient_norm": [0, 10, 20, 30, 40], "sharpness": [0, 1, 2, 3, 4]}
    assert set(metrics.loc[metrics["layer"] == "reconstruction", "metric"]) == {"l1_error"}
    features = feature_matrix(metrics, 0.5)
    assert predictor_sets(features, 0.5)["sharpness"].shape == (5, 2)
    assert "sharpness" not in predictor_sets(features.drop(columns="loss", level="layer"), 0.5)


def test_blocks_do_not_change_the_table(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    write_activations(layout, random_layers(70, 0), random_layers(6, 1))
    measure(RUN, layout, EPSILON, key="k")
    whole = read_table(layout.metrics(RUN.id))
    for block_bytes in (1, 48 * 2 * 40):
        monkeypatch.setattr(walk, "BLOCK_BYTES", block_bytes)
        measure(RUN, layout, EPSILON, key="k")
        pd.testing.assert_frame_equal(whole, read_table(layout.metrics(RUN.id)))


def test_epsilon_ignores_zeros_and_signs() -> None:
    reference = np.array([[0, 0, -1.0, 2.0], [0, 3.0, -4.0, 5.0]], dtype=np.float16)
    assert nonzero_quantiles(counted(reference), (0.25, 0.5)).tolist() == [2.0, 3.0]
    assert np.isnan(nonzero_quantiles(counted(np.zeros((2, 3), np.float16)), (0.5,))).all()


def test_a_layer_that_is_dead_in_the_reference_has_no_l_epsilon(layout: Layout) -> None:
    reference = random_layers(6, 1)
    reference["conv1"][:] = 0
    write_activations(layout, random_layers(10, 0), reference)
    measure(RUN, layout, EPSILON, key="k")
    metrics = read_table(layout.metrics(RUN.id)).set_index(["layer", "metric"])["value"]
    assert metrics["conv1", "l_eps_fraction_q50"].isna().all()
    assert metrics["conv1", "gini"].notna().all()
    assert metrics["mu", "l_eps_fraction_q50"].notna().all()


def test_nan_names_layer_and_image_and_leaves_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    write_activations(layout, random_layers(50, 0), random_layers(6, 1))
    monkeypatch.setattr(walk, "BLOCK_BYTES", 5 * 2 * 32)
    read = module.Activations.read

    def damaged(self: module.Activations, layer: str, start: int, stop: int) -> np.ndarray:
        values = read(self, layer, start, stop)
        if layer == "mu":
            values[[place - start for place in (36, 40) if start <= place < stop], 1] = np.inf
        return values

    monkeypatch.setattr(module.Activations, "read", damaged)
    with pytest.raises(
        ArtifactError, match=r"4d\.h5: layer mu: 2 values are NaN or infinite, in image face-36 and 1 others"
    ):
        measure(RUN, layout, EPSILON, key="k")
    assert list(layout.metrics(RUN.id).parent.iterdir()) == []


def typicality_of_all(num_images: int) -> Asked:
    ids = [f"face-{number}" for number in range(num_images)]
    images = pd.DataFrame({"group": "a", "cluster": range(num_images), "sha256": ids}, index=ids)
    return Asked(Typicality(components=3, folds=4), 0, images, pd.Series(dtype=str))


def test_typicality_stands_beside_the_other_metrics_of_a_layer(layout: Layout) -> None:
    write_activations(layout, random_layers(70, 0), random_layers(6, 1))
    measure(RUN, layout, EPSILON, key="k")
    without = read_table(layout.metrics(RUN.id))
    asked = typicality_of_all(70)
    measure(RUN, layout, EPSILON, key="k", typicality=asked)
    metrics = read_table(layout.metrics(RUN.id))
    is_typicality = metrics["metric"].str.startswith("typicality_")
    pd.testing.assert_frame_equal(metrics[~is_typicality].reset_index(drop=True), without)
    with module.Activations(layout.activations(RUN.id)) as source:
        alone = typicality_of(source, LAYERS, asked, folder=layout.root / "aside", made_from="k")
        wide = metrics[is_typicality].pivot(index="image_id", columns=["layer", "metric"], values="value")
        for layer in LAYERS:
            for name, values in alone[layer.name].items():
                np.testing.assert_array_equal(wide[layer.name, name].loc[source.image_ids], values)
    assert not layout.partial_metrics(RUN.id).exists()


def test_typicality_that_was_interrupted_is_not_made_again(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    write_activations(layout, random_layers(70, 0), random_layers(6, 1))
    asked = typicality_of_all(70)
    measure(RUN, layout, EPSILON, key="k", typicality=asked)
    undisturbed = read_table(layout.metrics(RUN.id))
    monkeypatch.setattr(gram, "BLOCK_UNITS", 5)
    monkeypatch.setattr(typicality, "_TELL_EVERY_S", 0.0)
    monkeypatch.setattr(module.Activations, "chunk_units", 5)
    calls = iter(range(99))
    with pytest.raises(Interrupted, match="stopped at unit 25 of 48 of layer conv1"):
        measure(RUN, layout, EPSILON, key="k", typicality=asked, stop=lambda: next(calls) == 4)
    fraction = read_json(layout.progress("measure", RUN.id))["fraction"]
    assert fraction == pytest.approx(25 / 53, abs=1e-3)
    read, starts = module.Activations.read_units, []

    def noted(self: module.Activations, layer: str, start: int, stop: int) -> np.ndarray:
        starts.append((layer, start))
        return read(self, layer, start, stop)

    monkeypatch.setattr(module.Activations, "read_units", noted)
    measure(RUN, layout, EPSILON, key="k", typicality=asked)
    assert starts == [("conv1", start) for start in (25, 30, 35, 40, 45)] + [("mu", 0)]
    found = read_table(layout.metrics(RUN.id))
    pd.testing.assert_frame_equal(found, undisturbed, rtol=1e-5)  # in other blocks


def test_too_few_images_for_typicality_leave_no_table(layout: Layout) -> None:
    write_activations(layout, random_layers(12, 0), random_layers(6, 1))
    with pytest.raises(StudyError, match="3 components need 15 training images in each fold, and there are 9; write"):
        measure(RUN, layout, EPSILON, key="k", typicality=typicality_of_all(12))
    assert not layout.metrics(RUN.id).exists()


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        measure(RUN, Layout(tmp_path), EPSILON, key="k")


@pytest.mark.parametrize(("quantile", "name"), [(0.25, "q25"), (0.05, "q05"), (0.07, "q07"), (0.995, "q99.5")])
def test_names_of_quantiles(quantile: float, name: str) -> None:
    assert quantile_name(quantile) == name
