"""Exhibits: what the stored activations say, whatever else is stored, and codes on the arc between two."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluence.activations import ExtractSpec, extract
from fluence.errors import ArtifactError
from fluence.exhibits import LARGEST_MAP_PX, NUM_STEPS, show, slerp, units_of
from fluence.models import build
from fluence.models.recording import record
from fluence.store import histograms
from fluence.store.activations import Activations, ActivationWriter, LayerInfo
from fluence.store.packed import Packed
from fluence.store.weights import write_weights
from fluence.study import CbamAttention, Record, VaeModel, VqVaeModel
from tests.fluence.test_activations import MODEL, RUN, SIZE_PX, make_spec, same_exhibits
from tests.fluence.test_shared_extraction import together

NUM_IMAGES = 140
STORED = Record(reference_images=2, sample_images=1)
GATED = VaeModel(kind="vae", width=0.25, attention=CbamAttention(kind="cbam", layers=(2,)))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> ExtractSpec:
    spec = make_spec(tmp_path_factory.mktemp("stored"), NUM_IMAGES, STORED)
    extract(spec)
    return spec


def shown_by(model: VaeModel | VqVaeModel, size_px: int = SIZE_PX) -> tuple[dict[str, torch.Tensor], object]:
    """What a fresh network shows of two images, and its layers' values of the first one."""
    network = build(model, size_px, seed=0).eval()
    originals = np.random.default_rng(1).integers(0, 256, (2, size_px, size_px, 3), dtype=np.uint8)
    images = torch.from_numpy(originals).permute(0, 3, 1, 2) / 255
    with record(network, "encoder", "post") as recorder:
        shown = show(network, recorder, images, originals, ["a", "b"], {})
        with torch.inference_mode():
            network(images[:1])
        return {name: value[0] for name, value in recorder.take().items()}, shown


def test_the_shown_images_are_the_first_one_the_last_one_and_one_between(stored: ExtractSpec) -> None:
    with Activations(stored.layout.activations(RUN.id)) as file:
        exhibits = file.exhibits()
        assert exhibits is not None
        assert list(exhibits.image_ids) == ["image-000", "image-070", "image-139"]
        assert np.array_equal(exhibits.originals, Packed(stored.rated).read(np.array([0, 70, 139])))


def test_maps_and_histograms_are_those_of_the_stored_activations(stored: ExtractSpec) -> None:
    with Activations(stored.layout.activations(RUN.id)) as file:
        exhibits = file.exhibits()
        assert exhibits is not None
        assert list(exhibits.layers) == [layer.name for layer in file.layers]
        rows = [list(file.image_ids).index(image) for image in exhibits.image_ids]
        for layer in file.layers:
            values = np.concatenate([file.read(layer.name, row, row + 1) for row in rows]).astype(float)
            one = exhibits.layers[layer.name]
            assert one.maps.dtype == np.float16
            assert one.pooled_px == 1
            whole = values.reshape(3, *layer.shape)[:, :16]
            np.testing.assert_allclose(one.maps, whole, rtol=2e-3, atol=1e-4)  # a batch of one sums in another order
            for image in range(3):
                other = values[image][values[image] != 0]
                assert abs(one.zeros[image] - (layer.num_units - len(other))) <= 2
                assert one.counts[image].sum() + one.zeros[image] == layer.num_units
                np.testing.assert_allclose(one.edges[image][[0, -1]], [other.min(), other.max()], rtol=2e-3, atol=1e-4)
                expected, _ = np.histogram(other, one.edges[image])
                assert np.abs(one.counts[image] - expected).sum() <= 0.02 * layer.num_units + 4
            np.testing.assert_allclose(one.active, (values != 0).mean(1), atol=2 / layer.num_units + 1e-12)


def test_units_are_those_of_the_stored_activations_to_the_last_bit(stored: ExtractSpec) -> None:
    with Activations(stored.layout.activations(RUN.id)) as file:
        for layer in file.layers:
            units, values = file.shown_units(layer.name)
            assert len(units) == min(25, layer.num_units)
            assert np.array_equal(values, file.read(layer.name, 0, NUM_IMAGES)[:, units])
            assert values.dtype == file.dtype(layer.name)[0]


def test_exhibits_do_not_depend_on_what_is_stored_or_on_the_number_of_processes(
    stored: ExtractSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histograms, "SMALLEST_COUNTED", 512)
    counted = make_spec(tmp_path, NUM_IMAGES, STORED.model_copy(update={"store": "metrics"}))
    assert [rank.result() for rank in together(counted, 2)] == [None, None]
    with (
        Activations(counted.layout.activations(RUN.id)) as one,
        Activations(stored.layout.activations(RUN.id)) as other,
    ):
        assert len(one.stored) < len(other.stored)
        assert same_exhibits(one, other)


def test_a_friend_reads_them_without_this_software(stored: ExtractSpec) -> None:
    with h5py.File(stored.layout.activations(RUN.id)) as file:
        assert file["exhibits/maps/conv2"].shape == (3, 8, 8, 8)
        assert file["exhibits/units/conv2"].shape == (NUM_IMAGES, 25)
        assert file["exhibits/interpolations"].shape == (2, NUM_STEPS, SIZE_PX, SIZE_PX, 3)


def test_a_float32_layer_has_float32_exhibits(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, 4, STORED)
    state = build(MODEL, SIZE_PX, seed=0).state_dict()
    state[next(name for name in state if "conv3" in name and name.endswith("weight"))] *= 1e7
    write_weights(spec.layout.weights(RUN.id), state, {})
    extract(spec)
    with Activations(spec.layout.activations(RUN.id)) as file:
        exhibits = file.exhibits()
        assert exhibits is not None
        assert exhibits.layers["conv3"].maps.dtype == file.shown_units("conv3")[1].dtype == np.float32
        assert exhibits.layers["conv3"].maps.max() > 65504


def test_a_single_image_has_no_other_to_go_to(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, 1, STORED)
    extract(spec)
    with Activations(spec.layout.activations(RUN.id)) as file:
        exhibits = file.exhibits()
        assert exhibits is not None
        assert exhibits.interpolations.shape == (0, NUM_STEPS, SIZE_PX, SIZE_PX, 3)


def test_large_maps_are_means_of_squares() -> None:
    values, shown = shown_by(VaeModel(kind="vae", width=0.125, architecture="vgg16-5"), 2 * LARGEST_MAP_PX)
    one = shown.layers["conv1_1"]  # type: ignore[attr-defined]
    assert one.pooled_px == 2
    expected = values["conv1_1"][:16].unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean((2, 4))
    np.testing.assert_allclose(one.maps[0], expected, rtol=2e-3, atol=1e-4)


def test_attention_maps_and_gates_are_kept_whole() -> None:
    values, shown = shown_by(GATED)
    maps = {name: one.maps for name, one in shown.layers.items()}  # type: ignore[attr-defined]
    assert maps["conv2.places"].shape == (2, 1, 8, 8)
    assert maps["conv2.channels"].shape == (2, 16)
    np.testing.assert_allclose(maps["conv2.places"][0], values["conv2.places"], rtol=1e-3)


def test_ways_begin_and_end_with_reconstructions() -> None:
    _, shown = shown_by(MODEL)
    network = build(MODEL, SIZE_PX, seed=0).eval()
    images = torch.from_numpy(shown.originals).permute(0, 3, 1, 2) / 255  # type: ignore[attr-defined]
    with torch.no_grad():
        made = (network(images).reconstruction * 255).permute(0, 2, 3, 1).numpy()
    ends = shown.interpolations[0, [0, -1]].astype(float)  # type: ignore[attr-defined]
    np.testing.assert_allclose(ends, made, atol=0.51)


def test_between_codes_of_a_codebook_there_is_nothing() -> None:
    _, shown = shown_by(VqVaeModel(kind="vq-vae", width=0.125))
    assert len(shown.interpolations) == 0  # type: ignore[attr-defined]


def test_a_block_without_its_units_is_refused(tmp_path: Path) -> None:
    layer = LayerInfo("mu", (30,), "post", "latent")
    with (
        ActivationWriter(
            tmp_path / "a.h5", key="k", image_ids=["a"], reference_ids=[], layers=[layer], probes=[],
            units={"mu": units_of(layer)},
        ) as writer,
        pytest.raises(ArtifactError, match="the units of mu were not given"),
    ):  # fmt: skip
        writer.write_block(0, {"mu": np.zeros((1, 30), np.float16)}, {})


def test_units_are_chosen_by_name_and_size_alone() -> None:
    layer = LayerInfo("conv1", (8, 16, 16), "post", "conv")
    units = units_of(layer)
    assert np.array_equal(units, units_of(LayerInfo("conv1", (2048,), "pre", "latent")))
    assert len(np.unique(units)) == 25
    assert (np.diff(units) > 0).all()
    assert not np.array_equal(units, units_of(LayerInfo("conv2", (8, 16, 16), "post", "conv")))
    assert np.array_equal(units_of(LayerInfo("mu", (7,), "post", "latent")), np.arange(7))


# ── slerp ────────────────────────────────────────────────────────────────────────────────────────────────────────

codes = st.lists(st.floats(-5, 5), min_size=3, max_size=3).map(lambda xs: torch.tensor(xs, dtype=torch.float64))


def by_the_cosine(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """The textbook's formula, which is as good where the angle is far from 0 and π."""
    angle = math.acos(float(a @ b / (a.norm() * b.norm())))
    return (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)


@settings(deadline=None)
@given(codes, codes, st.floats(0, 1))
def test_slerp_is_the_textbooks_where_that_is_exact(a: torch.Tensor, b: torch.Tensor, share: float) -> None:
    if min(a.norm(), b.norm()) > 1e-3 and abs(float(a @ b / (a.norm() * b.norm()))) < 0.999:
        torch.testing.assert_close(slerp(a, b, share), by_the_cosine(a, b, share), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(codes, codes, st.floats(0, 1))
def test_slerp_reaches_its_ends_and_has_no_direction_of_its_own(a: torch.Tensor, b: torch.Tensor, share: float) -> None:
    exact = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(slerp(a, b, 0.0), a, **exact)
    torch.testing.assert_close(slerp(a, b, 1.0), b, **exact)
    torch.testing.assert_close(slerp(a, b, share), slerp(b, a, 1 - share), **exact)


@settings(deadline=None)
@given(st.floats(0.01, 3.1), st.floats(0, 1))
def test_slerp_stays_on_the_sphere_and_turns_evenly(angle: float, share: float) -> None:
    a, b, expected = (
        torch.tensor([2 * math.cos(turn), 2 * math.sin(turn)], dtype=torch.float64)
        for turn in (0.0, angle, share * angle)
    )
    torch.testing.assert_close(slerp(a, b, share), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("a", "b"),
    [([1.0, 2.0], [2.0, 4.0]), ([1.0, 2.0], [-1.0, -2.0]), ([0.0, 0.0], [1.0, 0.0]), ([1.0, 0.0], [0.0, 0.0])],
)
def test_where_there_is_no_arc_the_way_is_straight(a: list[float], b: list[float]) -> None:
    first, second = torch.tensor(a), torch.tensor(b)
    assert torch.equal(slerp(first, second, 0.25), torch.lerp(first, second, 0.25))


def test_a_way_by_hand() -> None:
    middle = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), 0.5)
    torch.testing.assert_close(middle, torch.tensor([1.0, 3.0]) / math.sqrt(2))
