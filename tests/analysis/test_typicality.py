"""Typicality: every image is judged by densities that saw neither it nor its like; rows are joined by image_id."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from analysis import gram as gram_module
from analysis.typicality import Asked, Fit, judge, plan_fits, typicality_of
from fluence.errors import ArtifactError, Interrupted, StudyError
from fluence.store.activations import LayerInfo
from fluence.study import Typicality
from tests.analysis.test_gram import InMemory, reference_gram, responses, stop_at

LAYER = LayerInfo("conv1", (1, 10, 20), "post", "conv")
NUM_UNITS = 200


def table(num_images: int, **columns: object) -> pd.DataFrame:
    ids = [f"face-{number}" for number in range(num_images)]
    groups = [("a", "b")[number % 2] for number in range(num_images)]
    plain = {"group": groups, "cluster": range(num_images), "sha256": ids}
    return pd.DataFrame(plain | columns, index=pd.Index(ids, name="image_id"))


def asked(num_images: int, images: pd.DataFrame | None = None, **settings: object) -> Asked:
    chosen = Typicality.model_validate({"components": 3, "folds": 4} | settings)
    hashes = pd.Series([f"ref-{number}" for number in range(99)], [f"ref-{number}" for number in range(99)])
    return Asked(chosen, 0, table(num_images) if images is None else images, hashes)


def run(source: InMemory, wanted: Asked, folder: Path, **others: object) -> dict[str, np.ndarray]:
    return typicality_of(source, [LAYER], wanted, folder=folder, made_from="key", **others)["conv1"]


def with_hidden(num_images: int, num_units: int = NUM_UNITS, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(num_images, 4)) * np.array([8, 5, 3, 2])
    return (hidden @ rng.normal(size=(4, num_units)) + rng.normal(size=(num_images, num_units))).astype(np.float16)


# ── The numbers ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_is_what_scikit_learn_gives_fold_by_fold(tmp_path: Path) -> None:
    """Slow reference: a whole PCA of the training images of each fold, a density, and the held-out images."""
    values, wanted = with_hidden(60), asked(60)
    source = InMemory(values)
    found = run(source, wanted, tmp_path)
    wide = values.astype(np.float64)
    for fit in plan_fits(source, wanted):
        pca = PCA(svd_solver="full").fit(wide[fit.train])
        train, scores = (pca.transform(wide[rows])[:, :3] for rows in (fit.train, fit.judged))
        gaussian = multivariate_normal(np.zeros(3), LedoitWolf(assume_centered=True).fit(train).covariance_)
        np.testing.assert_allclose(found["typicality_gaussian"][fit.judged], gaussian.logpdf(scores), rtol=1e-5)
        variances = pca.explained_variance_
        noise = variances[3:].sum() / (NUM_UNITS - 3)
        squared = ((wide[fit.judged] - pca.mean_) ** 2).sum(axis=1) - (scores**2).sum(axis=1)
        residual = -0.5 * ((NUM_UNITS - 3) * np.log(2 * np.pi * noise) + squared / noise)
        np.testing.assert_allclose(found["typicality_residual"][fit.judged], residual, rtol=1e-5)
        inside = multivariate_normal(np.zeros(3), np.diag(variances[:3])).logpdf(scores)
        np.testing.assert_allclose(found["typicality_ppca"][fit.judged], inside + residual, rtol=1e-5)
    assert all(np.isfinite(column).all() for column in found.values())


def test_names_follow_the_settings(tmp_path: Path) -> None:
    source = InMemory(with_hidden(60))
    plain = run(source, asked(60, estimators=["gmm", "ppca", "gaussian"]), tmp_path / "a")
    assert set(plain) == {f"typicality_{name}" for name in ("gaussian", "residual", "ppca", "gmm")}
    several = run(source, asked(60, components=[2, 3], estimators=["gaussian"], groups=True), tmp_path / "b")
    kinds = [f"_k{k}{kind}" for k in (2, 3) for kind in ("", "_group", "_matched")]
    assert set(several) == {f"typicality_{name}{kind}" for name in ("gaussian", "residual") for kind in kinds}
    for name in ("gaussian", "residual"):
        np.testing.assert_array_equal(several[f"typicality_{name}_k3"], plain[f"typicality_{name}"])


def test_an_image_far_out_inside_the_components_or_outside_them(tmp_path: Path) -> None:
    values = with_hidden(60).astype(np.float32)
    mean = values.mean(axis=0)
    _, size, axes = np.linalg.svd(values - mean, full_matrices=False)
    inside, outside = values.copy(), values.copy()
    inside[7] = mean + size[0] * axes[0]  # √59 standard deviations
    outside[8] += 20 * np.random.default_rng(1).normal(size=NUM_UNITS)
    wanted = asked(60, estimators=["gaussian", "gmm", "ppca"])
    of_inside, of_outside = (run(InMemory(one), wanted, tmp_path / str(one[7, 0])) for one in (inside, outside))
    for name in ("typicality_gaussian", "typicality_gmm"):
        assert of_inside[name].argmin() == 7
    assert of_inside["typicality_residual"][7] > np.median(of_inside["typicality_residual"])
    for name in ("typicality_residual", "typicality_ppca"):
        assert of_outside[name].argmin() == 8


@examples(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), factor=st.floats(0.5, 50), shift=st.floats(-30, 30))
def test_scale_and_shift_of_all_values_do_not_change_who_is_typical(seed: int, factor: float, shift: float) -> None:
    values = with_hidden(40, seed=seed).astype(np.float64)
    wanted = asked(40)
    fits = plan_fits(InMemory(values), wanted)
    one = judge(reference_gram(values), LAYER, fits, 40, wanted.settings, 0)
    other = judge(reference_gram(factor * values + shift), LAYER, fits, 40, wanted.settings, 0)
    for name, size in (("gaussian", 3), ("residual", NUM_UNITS - 3), ("ppca", NUM_UNITS)):
        change = other[f"typicality_{name}"] - one[f"typicality_{name}"]
        np.testing.assert_allclose(change, -size * np.log(factor), rtol=1e-4, atol=1e-3)


def test_finds_the_density_that_the_images_were_drawn_from(tmp_path: Path) -> None:
    """Held out and fitted to 270 of 300 images, each part orders them as the truth does."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(NUM_UNITS, 3)))[0].T
    spread = np.array([30.0, 20, 10])
    hidden = rng.normal(size=(300, 3)) * spread
    noise = rng.normal(size=(300, NUM_UNITS))
    found = run(InMemory((hidden @ axes + noise).astype(np.float32)), asked(300, folds=10), tmp_path)
    outside = noise - noise @ axes.T @ axes
    inside = -0.5 * ((hidden + noise @ axes.T) ** 2 / (spread**2 + 1)).sum(axis=1)
    residual = -0.5 * (outside**2).sum(axis=1)
    for name, truth in (("gaussian", inside), ("residual", residual), ("ppca", inside + residual)):
        assert np.corrcoef(found[f"typicality_{name}"], truth)[0, 1] > 0.95


# ── Mistakes of earlier studies ──────────────────────────────────────────────────────────────────────────────────


def test_rows_are_joined_by_image_id_not_by_the_order_of_a_folder(tmp_path: Path) -> None:
    """The table lists the images as a folder would, 1, 10, 11, …; the file has them in another order."""
    values, images = with_hidden(60), table(60)
    expected = run(InMemory(values), asked(60, images, groups=True), tmp_path / "a")
    sorted_by_name = images.sort_index()
    assert list(sorted_by_name.index) != list(images.index)
    found = run(InMemory(values), asked(60, sorted_by_name, groups=True), tmp_path / "b")
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column)


def test_no_likelihood_is_scored_on_the_images_it_was_fitted_on() -> None:
    fits = plan_fits(InMemory(with_hidden(60)), asked(60, groups=True))
    for fit in fits:
        assert not set(fit.train) & set(fit.judged)
    judged = np.concatenate([fit.judged for fit in fits if fit.kind == ""])
    assert sorted(judged) == list(range(60))


def test_an_image_that_changes_does_not_change_the_density_that_judges_it(tmp_path: Path) -> None:
    """Were it among the training images, an image moved far away would draw the components towards itself."""
    values = with_hidden(60).astype(np.float32)
    before = run(InMemory(values), asked(60), tmp_path / "a")
    fit = next(fit for fit in plan_fits(InMemory(values), asked(60)) if 5 in fit.judged)
    values[5] *= 3
    after = run(InMemory(values), asked(60), tmp_path / "b")
    others = [row for row in fit.judged if row != 5]
    np.testing.assert_allclose(after["typicality_ppca"][others], before["typicality_ppca"][others], atol=0.05)
    assert after["typicality_ppca"][5] < before["typicality_ppca"][5]


def test_in_sample_likelihoods_are_far_too_high() -> None:
    """What the mistake amounts to: the same images, judged by densities that saw them."""
    values = with_hidden(60)
    wanted = asked(60)
    matrix, fits = reference_gram(values), plan_fits(InMemory(values), wanted)
    held_out = judge(matrix, LAYER, fits, 60, wanted.settings, 0)["typicality_ppca"]
    cheating = [Fit("", np.arange(60), np.arange(60))]
    in_sample = judge(matrix, LAYER, cheating, 60, wanted.settings, 0)["typicality_ppca"]
    assert (in_sample - held_out).mean() > 10


# ── Folds, clusters and groups ───────────────────────────────────────────────────────────────────────────────────


@examples(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), groups=st.booleans())
def test_persons_and_duplicates_stay_on_one_side(seed: int, groups: bool) -> None:
    clusters = np.random.default_rng(seed).integers(0, 25, 80)
    images = table(80, cluster=clusters)
    for fit in plan_fits(InMemory(with_hidden(80)), asked(80, images, groups=groups, components=2)):
        assert not set(clusters[fit.train]) & set(clusters[fit.judged])


def test_group_and_matched_see_as_many_images_and_judge_the_same() -> None:
    groups = np.array(["a"] * 50 + ["b"] * 30 + ["c"] * 6)
    wanted = asked(86, table(86, group=groups), groups=True)
    fits = plan_fits(InMemory(with_hidden(86)), wanted)
    own, matched = ([fit for fit in fits if fit.kind == kind] for kind in ("_group", "_matched"))
    sizes = {len(fit.train) for fit in (*own, *matched)}
    assert len(sizes) == 1
    assert 15 <= sizes.pop() <= 30
    for fit in own:
        assert len(set(groups[np.concatenate([fit.train, fit.judged])])) == 1
        assert len(set(fit.train)) == len(fit.train)
    assert {group for fit in matched for group in groups[fit.train]} == {"a", "b", "c"}
    judged = [np.sort(np.concatenate([fit.judged for fit in kind])) for kind in (own, matched)]
    for rows in judged:
        np.testing.assert_array_equal(rows, np.arange(80))


def test_images_of_a_group_too_small_have_no_group_typicality(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = np.array(["a"] * 50 + ["b"] * 30 + ["c"] * 6)
    found = run(InMemory(with_hidden(86)), asked(86, table(86, group=groups), groups=True), tmp_path)
    for name in ("typicality_gaussian_group", "typicality_ppca_matched"):
        np.testing.assert_array_equal(np.isnan(found[name]), groups == "c")
    assert np.isfinite(found["typicality_gaussian"]).all()
    assert "too few images for a typicality of their own: c (6)" in capsys.readouterr().out


def test_own_group_is_more_typical_where_groups_differ(tmp_path: Path) -> None:
    values = with_hidden(80).astype(np.float32)
    values[1::2] = with_hidden(80, seed=3)[1::2] + np.random.default_rng(2).normal(scale=20, size=NUM_UNITS)
    found = run(InMemory(values), asked(80, groups=True), tmp_path)
    assert np.median(found["typicality_ppca_group"]) > np.median(found["typicality_ppca_matched"]) + 100


# ── Training images as the reference ─────────────────────────────────────────────────────────────────────────────


def test_training_images_judge_all_rated_ones(tmp_path: Path) -> None:
    values, reference = with_hidden(20), with_hidden(40, seed=1)
    source, wanted = InMemory(values, reference), asked(20, reference="training")
    found = run(source, wanted, tmp_path)
    pca = PCA(3, svd_solver="full").fit(reference.astype(np.float64))
    train, scores = (pca.transform(one.astype(np.float64)) for one in (reference, values))
    covariance = LedoitWolf(assume_centered=True).fit(train).covariance_
    expected = multivariate_normal(np.zeros(3), covariance).logpdf(scores)
    np.testing.assert_allclose(found["typicality_gaussian"], expected, rtol=1e-5)


def test_a_training_image_that_is_rated_too_is_left_out() -> None:
    source = InMemory(with_hidden(20), with_hidden(40, seed=1))
    wanted = asked(20, reference="training")
    wanted.reference_sha256.loc[["ref-3", "ref-30"]] = ["face-2", "face-19"]
    (fit,) = plan_fits(source, wanted)
    assert sorted(set(range(20, 60)) - set(fit.train)) == [23, 50]
    np.testing.assert_array_equal(fit.judged, np.arange(20))


# ── Interrupted and continued ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("call", [1, 3])
def test_continues_at_the_layer_and_unit_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    monkeypatch.setattr(gram_module, "BLOCK_UNITS", 64)
    layers = [LAYER, LayerInfo("conv2", (200, 1, 1), "post", "conv")]

    def of(source: InMemory, folder: Path, stop: Callable[[], bool] = lambda: False) -> dict[str, dict]:
        return typicality_of(source, layers, asked(60), folder=folder, made_from="key", stop=stop)

    values = with_hidden(60)
    undisturbed = of(InMemory(values), tmp_path / "a")
    stopped = InMemory(values)
    with pytest.raises(Interrupted):
        of(stopped, tmp_path / "b", stop_at(call))
    continued = InMemory(values)
    found = of(continued, tmp_path / "b")
    for layer, metrics in undisturbed.items():
        for name, column in metrics.items():
            np.testing.assert_array_equal(found[layer][name], column)
    assert continued.num_read == 400 - 64 * call
    again = InMemory(values)
    of(again, tmp_path / "b")
    assert again.num_read == 0
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["conv1.typicality", "conv2.typicality"]


def test_stops_between_layers_of_a_single_block(tmp_path: Path) -> None:
    layers = [LayerInfo(f"conv{number}", (200,), "post", "conv") for number in (1, 2, 3)]
    source, wanted = InMemory(with_hidden(60)), asked(60)
    for stopped in ("conv1", "conv2"):
        with pytest.raises(Interrupted, match=f"after the typicality of layer {stopped}"):
            typicality_of(source, layers, wanted, folder=tmp_path, made_from="key", stop=lambda: True)
    found = typicality_of(source, layers, wanted, folder=tmp_path, made_from="key", stop=lambda: True)
    assert set(found) == {"conv1", "conv2", "conv3"}
    assert source.num_read == 3 * 200


def test_tells_the_layer_the_share_and_the_rate(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    layers = [LAYER, LayerInfo("conv2", (100,), "post", "conv"), LayerInfo("conv2.channels", (9,), "post", "gate")]
    typicality_of(
        InMemory(with_hidden(60)), layers, asked(60), folder=tmp_path, made_from="key",
        tell=lambda fraction, text: told.append((fraction, text)),
    )  # fmt: skip
    assert [fraction for fraction, _ in told] == pytest.approx([2 / 3, 1])
    assert told[0][1].startswith("typicality of layer conv1 (1 of 2), ")
    assert told[1][1].endswith(" MB/s")


# ── Layers and images that will not do ───────────────────────────────────────────────────────────────────────────


def test_layers_by_name_and_all_but_gates(tmp_path: Path) -> None:
    layers = [LAYER, LayerInfo("conv1.channels", (200,), "post", "gate")]
    source = InMemory(with_hidden(60))
    for names, expected in (("all", {"conv1"}), (["conv1.channels"], {"conv1.channels"}), (["mu"], set())):
        found = typicality_of(source, layers, asked(60, layers=names), folder=tmp_path, made_from=str(names))
        assert set(found) == expected


@pytest.mark.parametrize("level", [0.0, 3.0])
def test_a_layer_that_does_not_vary_has_no_typicality(
    tmp_path: Path, level: float, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.full((60, NUM_UNITS), level, np.float16)
    found = run(InMemory(values), asked(60, estimators=["gaussian", "ppca", "gmm"]), tmp_path)
    assert set(found) == {f"typicality_{name}" for name in ("gaussian", "residual", "ppca", "gmm")}
    assert all(np.isnan(column).all() for column in found.values())
    assert "layer conv1 does not vary" in capsys.readouterr().out


@pytest.mark.parametrize("num_units", [1, 2])
def test_a_layer_with_fewer_units_than_components(
    tmp_path: Path, num_units: int, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = LayerInfo("mu", (num_units,), "post", "latent")
    values = np.random.default_rng(0).normal(size=(60, num_units)).astype(np.float16)
    found = typicality_of(InMemory(values), [layer], asked(60), folder=tmp_path, made_from="key")["mu"]
    assert np.isfinite(found["typicality_gaussian"]).all()
    assert np.isnan(found["typicality_residual"]).all()
    assert f"layer mu varies in {num_units} components alone" in capsys.readouterr().out


def test_too_few_training_images_say_what_to_write() -> None:
    source = InMemory(with_hidden(60))
    with pytest.raises(
        StudyError,
        match=r"components: 20 components need 100 training images in each fold, and there are 45; write at most 9$",
    ):
        plan_fits(source, asked(60, components=20))
    with pytest.raises(StudyError, match=r"and there are 3; write `typicality: null`"):
        plan_fits(InMemory(with_hidden(4)), asked(4))
    few = InMemory(with_hidden(20), with_hidden(12))
    with pytest.raises(StudyError, match=r"there are 12; write at most 2, or `record.reference_images: 15` or more"):
        plan_fits(few, asked(20, reference="training"))


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_fewer_images_than_folds(num_images: int) -> None:
    with pytest.raises(StudyError, match=rf"folds: 4 folds need as many persons or images, and there are {num_images}"):
        plan_fits(InMemory(with_hidden(num_images)), asked(num_images))


def test_groups_that_are_all_too_small() -> None:
    groups = [("a", "b", "c")[number % 3] for number in range(60)]
    with pytest.raises(StudyError, match=r"no group has 25 training images in each fold.* largest, a, has 15; write"):
        plan_fits(InMemory(with_hidden(60)), asked(60, table(60, group=groups), components=5, groups=True))


def test_images_that_left_the_manifest() -> None:
    with pytest.raises(ArtifactError, match=r"2 of 60 recorded images are no longer packed, first face-58; extract"):
        plan_fits(InMemory(with_hidden(60)), asked(60, table(58)))
    wanted = asked(20, reference="training")
    fewer = dataclasses.replace(wanted, reference_sha256=wanted.reference_sha256.iloc[1:])
    with pytest.raises(ArtifactError, match=r"1 of 40 recorded images are no longer packed, first ref-0"):
        plan_fits(InMemory(with_hidden(20), with_hidden(40)), fewer)


def test_of_float16_responses_with_zeros(tmp_path: Path) -> None:
    found = run(InMemory(responses(60, NUM_UNITS)), asked(60, estimators=["gaussian", "ppca", "gmm"]), tmp_path)
    assert all(np.isfinite(column).all() for column in found.values())
