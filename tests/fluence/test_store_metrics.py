"""Extraction that keeps histograms in the place of activations: the same metrics, whatever happened on the way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

import fluence.activations
from analysis.measure import measure
from fluence.activations import ExtractSpec, extract
from fluence.counting import count
from fluence.errors import ArtifactError, Interrupted
from fluence.models import build
from fluence.rows import Rows, count_on_gpu
from fluence.store import histograms
from fluence.store.activation_writer import ActivationWriter
from fluence.store.activations import Activations
from fluence.store.histograms import HistogramFile, Histograms
from fluence.store.precision import NeedsFloat32
from fluence.store.weights import write_weights
from fluence.study import Analysis, Record
from tests.fluence.test_activations import MODEL, NUM_IMAGES, RUN, SIZE_PX, make_spec
from tests.fluence.test_study import study

STORED = Record(reference_images=5, sample_images=3)
COUNTED = STORED.model_copy(update={"store": "metrics"})
EPSILON = Analysis().epsilon


@pytest.fixture(autouse=True)
def small_layers_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """conv1 has 1,024 units, conv2 and conv3 have 512 each: the networks of these tests are tiny."""
    monkeypatch.setattr(histograms, "SMALLEST_COUNTED", 512)


def metrics_of(spec: ExtractSpec) -> pd.DataFrame:
    measure(RUN, spec.layout, EPSILON, key="measured")
    return pd.read_parquet(spec.layout.metrics(RUN.id))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    spec = make_spec(tmp_path_factory.mktemp("stored"), record=STORED)
    extract(spec)
    return metrics_of(spec)


def assert_same_metrics(spec: ExtractSpec, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(metrics_of(spec), expected, check_exact=True)
    assert not spec.layout.counted_parts(RUN.id).exists()


def test_metrics_are_those_of_activations_to_the_last_bit(tmp_path: Path, expected: pd.DataFrame) -> None:
    spec = make_spec(tmp_path, record=COUNTED)
    extract(spec)
    assert_same_metrics(spec, expected)
    with Activations(spec.layout.activations(RUN.id)) as file:
        assert [layer.name for layer in file.layers] == ["conv1", "conv2", "conv3", "conv4", "conv5", "mu"]
        assert "conv1" not in [layer.name for layer in file.stored]
        assert "mu" in [layer.name for layer in file.stored]
        assert file.layers[0].num_units == 1024
    with h5py.File(spec.layout.activations(RUN.id)) as file, h5py.File(spec.layout.counted(RUN.id)) as counted:
        assert "conv1" not in file["layers"]
        start = counted["layers/conv1/start"][:]
        assert [counted["layers/conv1/counts"][a:b].sum() for a, b in pairwise(start)] == [1024] * NUM_IMAGES
    thresholds = pd.read_csv(spec.layout.epsilon(RUN.id))
    assert thresholds["epsilon"].notna().all()


def test_another_epsilon_needs_no_extraction(tmp_path: Path) -> None:
    spec, stored = make_spec(tmp_path / "a", record=COUNTED), make_spec(tmp_path / "b", record=STORED)
    other = EPSILON.model_copy(update={"quantiles": (0.5, 0.9)})
    tables = []
    for one in (spec, stored):
        extract(one)
        measure(RUN, one.layout, EPSILON, key="first")
        measure(RUN, one.layout, other, key="second")
        tables.append(pd.read_parquet(one.layout.metrics(RUN.id)))
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert "l_eps_count_q90" in set(tables[0]["metric"])


def test_stopped_again_and_again_it_ends_with_the_same_metrics(tmp_path: Path, expected: pd.DataFrame) -> None:
    spec = make_spec(tmp_path, record=COUNTED)
    for _ in range(2):
        with pytest.raises(Interrupted):
            extract(spec, stop=lambda: True)
        assert not spec.layout.activations(RUN.id).exists()
        assert not spec.layout.counted(RUN.id).exists()
    extract(spec)
    assert_same_metrics(spec, expected)


@pytest.mark.parametrize("moment", ["_sync", "_count", "finish"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_killed_at_any_moment_it_ends_with_the_same_metrics(
    tmp_path: Path, expected: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, moment: str, number: int
) -> None:
    """Between any two of the writes: histograms may be ahead of what counts, and never behind it."""
    spec, calls = make_spec(tmp_path, record=COUNTED), 0
    original = getattr(ActivationWriter, moment)

    def killed(self: ActivationWriter, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ActivationWriter, moment, killed)
        if moment == "finish" and number > 1:
            extract(spec)
        else:
            with pytest.raises(KeyboardInterrupt):
                extract(spec)
    extract(spec)
    assert_same_metrics(spec, expected)


def test_killed_before_the_file_has_its_name(
    tmp_path: Path, expected: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(tmp_path, record=COUNTED)
    with monkeypatch.context() as patch:
        patch.setattr("fluence.store.activation_writer.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extract(spec)
    assert not spec.layout.activations(RUN.id).exists()
    extract(spec)
    assert_same_metrics(spec, expected)


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_give_the_same_metrics(tmp_path: Path, expected: pd.DataFrame, world_size: int) -> None:
    spec = make_spec(tmp_path, record=COUNTED)
    with ThreadPoolExecutor(world_size) as pool:
        ranks = [pool.submit(extract, spec, lambda: False, rank, world_size) for rank in range(world_size)]
    assert [rank.result() for rank in ranks] == [None] * world_size
    assert_same_metrics(spec, expected)


def test_what_was_counted_before_is_forgotten_when_activations_are_stored_again(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, record=COUNTED)
    extract(spec)
    assert spec.layout.counted(RUN.id).exists()
    extract(make_spec(tmp_path, record=STORED))
    assert not spec.layout.counted(RUN.id).exists()


def test_a_layer_too_large_for_float16_is_stored(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, record=COUNTED)
    network = build(MODEL, SIZE_PX, seed=0)
    with torch.no_grad():
        weights = [weight for name, weight in network.encoder_parameters() if name.endswith("weight")]
        weights[0].mul_(1e7)
        weights[1].mul_(1e-7)
    write_weights(spec.layout.weights(RUN.id), network.state_dict(), {"epoch": 0})
    extract(spec)
    with Activations(spec.layout.activations(RUN.id)) as file:
        dtype, reason = file.dtype("conv1")
        assert dtype == np.float32
        assert "float16" in reason
    with HistogramFile(spec.layout.counted(RUN.id)) as counted:
        assert "conv1" not in counted.layers
    assert set(metrics_of(spec)["layer"]) >= {"conv1", "conv2"}


def test_histograms_that_are_gone_or_foreign_are_refused(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, record=COUNTED)
    extract(spec)
    path = spec.layout.counted(RUN.id)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ArtifactError, match=r"no such file; delete .*\.h5 and run again"):
        metrics_of(spec)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=r"damaged.*this run is then extracted again"):
        metrics_of(spec)
    with histograms.HistogramWriter(path, made_from="else", image_ids=["x"]):
        pass
    with pytest.raises(ArtifactError, match="belongs to another extraction"):
        metrics_of(spec)


@pytest.mark.parametrize(
    "analysis",
    [
        {"typicality": {"components": 5}},
        {"sparsity": {"per": ["layer", "map"]}},
        {"sparsity": {"per": ["layer", "unit"]}},
    ],
)
def test_what_needs_activations_is_refused(analysis: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"record\.store: metrics keeps no activations"):
        study(record={"store": "metrics"}, analysis=analysis)
    study(record={"store": "activations"}, analysis=analysis)


# ── Counting where the values are ────────────────────────────────────────────────────────────────────────────────


def halves(num_images: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    values = torch.randn(num_images, *shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(values > 0.3, values, torch.zeros_like(values)).half()


def assert_same(one: Histograms, other: Histograms) -> None:
    for name in ("bits", "counts", "start"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert getattr(one, name).dtype == getattr(other, name).dtype


def test_the_gpus_way_of_counting_gives_the_same_histograms() -> None:
    values = halves(3, (5000,)) * torch.tensor([[1.0], [-1.0], [0.0]])
    found, unfinite = count_on_gpu(values)
    assert_same(found, count(values.numpy())[0])
    assert unfinite == 0
    values[1, 7], values[2, :3] = float("nan"), float("-inf")
    assert count_on_gpu(values)[1] == 4


def test_histograms_do_not_depend_on_how_maps_lie_in_memory() -> None:
    values = halves(4, (8, 20, 20)).float()
    ids = ["a", "b", "c", "d"]
    last = values.contiguous(memory_format=torch.channels_last)
    rows = [Rows({"conv": one, "mu": values[:, 0, 0]}, {}, ids, {"conv"}) for one in (values, last)]
    assert list(rows[0]) == ["mu"]
    assert_same(rows[0].histograms()["conv"], rows[1].histograms()["conv"])
    assert_same(rows[0].histograms()["conv"], count(values.half().flatten(1).numpy())[0])


def test_values_that_are_not_finite_are_named() -> None:
    values = halves(2, (600,)).float() + 1
    values[1, 3] = 1e6
    with pytest.raises(NeedsFloat32, match="more than float16 can hold"):
        Rows({"conv": values}, {}, ["a", "b"], {"conv"}).histograms()
    values[1, 3] = float("nan")
    with pytest.raises(ArtifactError, match=r"layer conv: 1 values are NaN or infinite, first in image b"):
        Rows({"conv": values}, {}, ["a", "b"], {"conv"}).histograms()


def test_blocks_of_the_test_are_smaller_than_the_set() -> None:
    """Or nothing would be interrupted above."""
    assert fluence.activations.block_images(4 * 3000) < NUM_IMAGES
