"""The synthetic faces: what is planted is there, in the stated size, and nowhere else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold, cross_val_predict

from fluence.data.covariates import covariates
from fluence.data.synthetic import SCALE_SD, edge_sparsity, face_of, group_of, rate, render_face, synthetic_table
from fluence.models import build
from fluence.study import Effect, SyntheticDataset, VaeModel


def dataset(**changes: object) -> SyntheticDataset:
    return SyntheticDataset(kind="synthetic", **{"num_images": 120, **changes})


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return synthetic_table(dataset(num_images=240))


def within(values: pd.Series, table: pd.DataFrame) -> np.ndarray:
    return (values - values.groupby([table["ethnicity"], table["sex"]]).transform("mean")).to_numpy()


def share_explained(score: np.ndarray, table: pd.DataFrame) -> float:
    """Squared correlation of a score and the property, both around their groups' means."""
    score = within(pd.Series(score), table)
    return float(np.corrcoef(score, within(table["edge_sparsity"], table))[0, 1] ** 2)


def simulations(table: pd.DataFrame, **changes: object) -> list[tuple[np.ndarray, np.ndarray]]:
    return [rate(dataset(seed=seed, **changes), table) for seed in range(40)]


def test_the_table_has_the_promised_columns(table: pd.DataFrame) -> None:
    raters = [f"rater_{j:02d}" for j in range(20)]
    assert set(table.columns) == {
        *("image_id", "ethnicity", "sex", "age", "person_id", "edge_sparsity"),
        *("beauty", "beauty_sd", "n_ratings", "true_beauty", *raters),
    }
    assert table["image_id"].iloc[12] == "synthetic-000012"
    assert table["image_id"].is_unique
    assert table["person_id"].is_unique
    assert not table.isna().any(axis=None)
    assert table["age"].between(18, 65).all()


def test_the_groups_are_balanced(table: pd.DataFrame) -> None:
    counts = table.groupby(["ethnicity", "sex"]).size()
    assert list(counts) == [40] * 6
    groups = {group_of(dataset(num_ethnicities=6), index) for index in range(12)}
    assert len(groups) == 12


def test_the_same_settings_give_the_same_table_and_faces() -> None:
    one, two = synthetic_table(dataset(num_images=12)), synthetic_table(dataset(num_images=12))
    pd.testing.assert_frame_equal(one, two)
    assert np.array_equal(render_face(dataset(), 5, 32), render_face(dataset(), 5, 32))


def test_a_face_and_its_errors_do_not_depend_on_how_many_there_are() -> None:
    few = synthetic_table(dataset(num_images=12, effect=None))
    many = synthetic_table(dataset(num_images=24, effect=None))
    pd.testing.assert_frame_equal(few, many.head(12))


def test_neighbouring_seeds_and_indices_share_no_face() -> None:
    faces = {(s, i): face_of(dataset(seed=s), i) for s in (0, 1, 2, 2**32, 2**32 + 1) for i in range(40)}
    assert len({(face.texture.amount, face.head.width) for face in faces.values()}) == len(faces)


def test_ratings_of_different_faces_and_raters_are_unrelated_beyond_the_truth(table: pd.DataFrame) -> None:
    truth, ratings = rate(dataset(num_raters=12), table)
    correlations = np.corrcoef((ratings - truth[:, None]).T)[np.triu_indices(12, k=1)]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(len(table))


def test_the_score_does_not_depend_on_the_size_that_is_rendered(table: pd.DataFrame) -> None:
    assert table["edge_sparsity"].iloc[7] == edge_sparsity(render_face(dataset(num_images=240), 7, 64))


@pytest.mark.parametrize("r2", [0.2, 0.5])
def test_the_planted_share_is_recovered(table: pd.DataFrame, r2: float) -> None:
    shares = [share_explained(truth, table) for truth, _ in simulations(table, effect=Effect(r2=r2))]
    standard_error = np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) == pytest.approx(r2, abs=4 * standard_error + 1 / len(table))


@pytest.mark.parametrize("effect", [None, Effect(r2=0)])
def test_nothing_is_found_where_nothing_is_planted(table: pd.DataFrame, effect: Effect | None) -> None:
    means = [ratings.mean(axis=1) for _, ratings in simulations(table, effect=effect)]
    shares = np.array([share_explained(mean, table) for mean in means])
    assert np.mean(shares) == pytest.approx(1 / (len(table) - 6), rel=0.6)  # the expectation under chance
    assert shares.max() < 0.07


def test_the_effect_points_upwards(table: pd.DataFrame) -> None:
    truth, _ = rate(dataset(effect=Effect(r2=0.5)), table)
    assert np.corrcoef(truth, table["edge_sparsity"])[0, 1] > 0.5


def test_the_scores_are_those_of_the_raters(table: pd.DataFrame) -> None:
    ratings = table.filter(like="rater_")
    assert np.allclose(table["beauty"], ratings.mean(axis=1))
    assert np.allclose(table["beauty_sd"], ratings.std(axis=1))
    assert (table["n_ratings"] == 20).all()


def test_without_noise_every_rater_says_the_truth() -> None:
    table = synthetic_table(dataset(num_images=6, num_raters=3, rater_noise_sd=0))
    for rater in ("rater_00", "rater_01", "rater_02", "beauty"):
        assert np.allclose(table[rater], table["true_beauty"])
    assert np.allclose(table["beauty_sd"], 0)


def test_the_noise_of_one_rater_has_the_chosen_size(table: pd.DataFrame) -> None:
    truth, ratings = rate(dataset(rater_noise_sd=1.5), table)
    assert np.std(ratings - truth[:, None]) == pytest.approx(1.5 * SCALE_SD, rel=0.05)


def test_the_noise_ceiling_is_the_one_stated(table: pd.DataFrame) -> None:
    """The truth explains 1 / (1 + s²/m) of the mean rating within groups: 0.8 for s = 1 and m = 4."""
    shares = []
    for truth, ratings in simulations(table, num_raters=4):
        mean, truth = within(pd.Series(ratings.mean(axis=1)), table), within(pd.Series(truth), table)
        shares.append(np.corrcoef(mean, truth)[0, 1] ** 2)
    assert np.mean(shares) == pytest.approx(0.8, abs=0.015)


def test_one_face_and_one_rater_are_enough() -> None:
    table = synthetic_table(dataset(num_images=1, num_raters=1))
    assert len(table) == 1
    assert np.isfinite(table["beauty"].iloc[0])
    assert table["beauty_sd"].isna().all()


@pytest.fixture(scope="module")
def pixels(table: pd.DataFrame) -> np.ndarray:
    return np.stack([render_face(dataset(), index, 64) for index in range(len(table))])


def test_the_property_is_no_matter_of_brightness_contrast_or_pixel_sparsity(
    table: pd.DataFrame, pixels: np.ndarray
) -> None:
    measures = covariates(pixels)
    for name in ("luminance_mean", "luminance_contrast", "pixel_gini"):
        confound = within(pd.Series(measures[name]), table)
        assert abs(np.corrcoef(confound, within(table["edge_sparsity"], table))[0, 1]) < 0.3, name


def test_layers_of_an_untrained_encoder_can_read_the_property(table: pd.DataFrame, pixels: np.ndarray) -> None:
    """Out-of-fold R² of a regression on one Gini per layer: what makes the faces a positive control."""
    net = build(VaeModel(kind="vae"), 64, seed=0).eval()
    layers: list[torch.Tensor] = []
    for name in (layer.name for layer in net.recordable if layer.kind == "conv"):
        net.place(name, "post").register_forward_hook(lambda _, __, output: layers.append(output.flatten(1)))
    ginis = []
    with torch.no_grad():
        for batch in torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).split(40):
            layers.clear()
            net.encode(batch)
            ginis.append(np.column_stack([gini_of_rows(layer.double().numpy()) for layer in layers]))
    score = within(table["edge_sparsity"], table)
    predicted = cross_val_predict(
        LinearRegression(), np.concatenate(ginis), score, cv=KFold(10, shuffle=True, random_state=0)
    )
    assert 1 - np.sum((score - predicted) ** 2) / np.sum(score**2) > 0.6


def gini_of_rows(values: np.ndarray) -> np.ndarray:
    values, count = np.sort(values, axis=1), values.shape[1]
    return values @ (2 * np.arange(1, count + 1) - count - 1) / (count * values.sum(axis=1))


# ── Edge sparsity ────────────────────────────────────────────────────────────────────────────────────────────────


def slow_edge_sparsity(pixels: np.ndarray) -> float:
    """Half the relative mean difference of the gradient magnitudes, pixel by pixel."""
    grey = 0.2126 * pixels[..., 0] + 0.7152 * pixels[..., 1] + 0.0722 * pixels[..., 2]
    height, width = grey.shape
    magnitudes = []
    for y in range(height):
        for x in range(width):
            top, bottom, left, right = (max(y - 1, 0), min(y + 1, height - 1), max(x - 1, 0), min(x + 1, width - 1))
            down = (grey[bottom, x] - grey[top, x]) / (bottom - top)
            across = (grey[y, right] - grey[y, left]) / (right - left)
            magnitudes.append((down**2 + across**2) ** 0.5)
    differences = sum(abs(a - b) for a in magnitudes for b in magnitudes)
    return differences / (2 * len(magnitudes) * sum(magnitudes))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(2, 7), width=st.integers(2, 7))
def test_edge_sparsity_agrees_with_its_definition(seed: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert edge_sparsity(pixels) == pytest.approx(slow_edge_sparsity(pixels), abs=1e-5)


def test_edge_sparsity_by_hand() -> None:
    ramp = np.repeat(np.arange(8, dtype=np.uint8)[None, :, None] * 10, 8, axis=0).repeat(3, axis=2)
    assert edge_sparsity(ramp) == pytest.approx(0, abs=1e-6)  # the same slope everywhere
    step = np.zeros((4, 8, 3), dtype=np.uint8)
    step[:, 4:] = 200
    assert edge_sparsity(step) == pytest.approx(0.75, abs=1e-6)  # 2 of 8 columns slope, equally
    assert edge_sparsity(np.full((4, 4, 3), 9, dtype=np.uint8)) == 0
