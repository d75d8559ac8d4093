from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.ridge import (
    ALPHAS,
    Fit,
    bootstrap_intervals,
    divide,
    exchanged,
    exchanged_residuals,
    fit,
    naive_fold_r2,
    naive_in_sample_r2,
    noise_floor,
    out_of_fold,
    p_of,
    permuted_r2,
)
from analysis.statistics import exchanges


def plain(n: int, repeats: int = 1, seed: int = 0, folds: int = 10):  # type: ignore[no-untyped-def]
    return divide(np.full(n, "g"), np.arange(n), folds, repeats, seed)


def planted(rng: np.random.Generator, n: int, p: int, r2: float) -> tuple[np.ndarray, np.ndarray]:
    """Independent predictors that together explain the share `r2` of the variance."""
    features = rng.normal(size=(n, p))
    signal = features.sum(axis=1) / np.sqrt(p)
    return features, np.sqrt(r2) * signal + np.sqrt(1 - r2) * rng.normal(size=n)


def interval_of(one: Fit, score: np.ndarray) -> tuple[float, float]:
    errors = {"baseline": one.errors, "full": one.errors}
    clusters = np.arange(len(score))
    return bootstrap_intervals(score, errors, clusters, num_samples=299, confidence=0.95, seed=0)["full"]


def test_folds_are_stratified_and_keep_clusters_whole() -> None:
    groups = np.repeat(["a", "b"], [100, 50])
    clusters = np.arange(150)
    clusters[1:20] = np.arange(19) // 2
    division = divide(groups, clusters, 5, 3, 0)
    assert division.note == ""
    assert len({tuple(folds) for folds in division.folds}) == 3
    for folds in division.folds:
        assert all(len(set(folds[clusters == cluster])) == 1 for cluster in np.unique(clusters))
        assert np.bincount(folds[groups == "b"]).tolist() == pytest.approx([10] * 5, abs=2)
    single = divide(groups, np.arange(150), 5, 1, 0).folds[0]
    assert np.bincount(single[groups == "b"]).tolist() == [10] * 5


@pytest.mark.parametrize("sizes", [[40, 2, 3, 9], [40, 2], [60]])
def test_groups_smaller_than_the_folds_are_put_together_and_named(sizes: list[int]) -> None:
    groups = np.repeat([f"group{k}" for k in range(len(sizes))], sizes)
    division = divide(groups, np.arange(len(groups)), 10, 1, 0)
    small = [f"group{k}" for k, size in enumerate(sizes) if size < 10]
    assert division.note == (f"not stratified by {', '.join(small)}: fewer images than the 10 folds" if small else "")
    assert sorted(set(division.folds[0])) == list(range(10))


def test_out_of_fold_predictions_are_nested_and_pooled() -> None:
    rng = np.random.default_rng(1)
    features, score = planted(rng, 60, 4, 0.5)
    folds = np.arange(60) % 5
    expected = np.empty(60)
    for fold in range(5):
        train = folds != fold
        model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(features[train], score[train])
        expected[~train] = model.predict(features[~train])
    np.testing.assert_allclose(out_of_fold(features, score, folds), expected)


def test_many_targets_at_once_are_scikit_learns_ridge() -> None:
    rng = np.random.default_rng(2)
    for n, p in ((50, 4), (40, 60)):  # more images than predictors, and fewer
        features, targets, folds = rng.normal(size=(n, p)), rng.normal(size=(n, 7)), np.arange(n) % 4
        features[:, 1] = features[:, 0]  # collinear
        features[:, 2] = 3.0  # constant
        targets[:, 0] += features[:, 0]
        predicted = np.empty_like(targets)
        for fold in range(4):
            train = folds != fold
            model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS, alpha_per_target=True))
            predicted[~train] = model.fit(features[train], targets[train]).predict(features[~train])
        expected = [r2_score(targets[:, k], predicted[:, k]) for k in range(7)]
        np.testing.assert_allclose(permuted_r2(features, targets, folds), expected, atol=1e-9)


def test_without_predictors_the_mean_of_the_other_folds_is_predicted() -> None:
    score = np.random.default_rng(3).normal(size=40)
    one = fit(np.empty((40, 0)), score[:, None], plain(40))
    assert -0.1 < one.r2[0] < 0
    assert one.permuted[0] == pytest.approx(one.r2[0])


def test_errors_and_r2_agree_over_repeats() -> None:
    features, score = planted(np.random.default_rng(4), 80, 3, 0.3)
    one = fit(features, score[:, None], plain(80, repeats=4))
    assert one.r2.shape == (4,)
    assert one.r2.mean() == pytest.approx(1 - one.errors.sum() / ((score - score.mean()) ** 2).sum())
    assert one.permuted[0] == pytest.approx(one.r2[0], abs=1e-9)


def test_planted_r2_is_recovered() -> None:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(40):
        features, score = planted(rng, 400, 2, 0.2)
        one = fit(features, score[:, None], plain(400, seed=int(rng.integers(1000))))
        low, high = interval_of(one, score)
        found.append((one.r2[0], low <= 0.2 <= high))
    estimates, covered = np.transpose(found)
    assert estimates.mean() == pytest.approx(0.2, abs=0.025)
    assert covered.mean() >= 0.85


def test_pure_noise_is_not_rewarded_but_the_naive_estimates_reward_it() -> None:
    """52 images per fold: the mean squared correlation per fold is 1/51 ≈ .02 although there is nothing."""
    rng = np.random.default_rng(6)
    honest, folds_r2, in_sample = [], [], []
    for _ in range(30):
        features, score = planted(rng, 520, 5, 0.0)
        division = plain(520, seed=int(rng.integers(1000)))
        one = fit(features, score[:, None], division)
        honest.append(one.r2[0])
        folds_r2.append(naive_fold_r2(one.predicted, score, division.folds[0]))
        in_sample.append(naive_in_sample_r2(features, score))
    assert np.mean(honest) <= 0
    naive, expected = np.mean(folds_r2, axis=0)
    assert expected == pytest.approx(1 / 51)
    assert naive == pytest.approx(expected, rel=0.25)
    naive, expected = np.mean(in_sample, axis=0)
    assert expected == pytest.approx(5 / 519)
    assert naive == pytest.approx(expected, rel=0.3)


def test_a_signal_that_the_confounds_carry_adds_nothing() -> None:
    rng = np.random.default_rng(7)
    deltas, ps = [], []
    for seed in range(20):
        confound = rng.normal(size=(200, 1))
        metrics = confound + 0.5 * rng.normal(size=(200, 3))
        score = confound[:, 0] + rng.normal(size=200)
        division = plain(200, seed=seed)
        orders = exchanges(np.full(200, "g"), np.arange(200), 99, seed)
        targets = exchanged_residuals(score, confound, orders)
        full, baseline = (fit(x, targets, division) for x in (np.hstack([confound, metrics]), confound))
        deltas.append(full.r2[0] - baseline.r2[0])
        ps.append(p_of(full.permuted - baseline.permuted))
        assert fit(metrics, score[:, None], division).r2[0] > 0.2
    assert abs(np.mean(deltas)) < 0.02
    assert np.mean(np.array(ps) <= 0.05) <= 0.2


def test_a_signal_beyond_the_confounds_is_found() -> None:
    rng = np.random.default_rng(8)
    confound, metrics = rng.normal(size=(300, 2)), rng.normal(size=(300, 3))
    score = confound[:, 0] + metrics[:, 0] + rng.normal(size=300)
    orders = exchanges(np.full(300, "g"), np.arange(300), 99, 0)
    targets = exchanged_residuals(score, confound, orders)
    np.testing.assert_allclose(targets[:, 0], score)
    full, baseline = (fit(x, targets, plain(300)) for x in (np.hstack([confound, metrics]), confound))
    delta = full.permuted - baseline.permuted
    assert p_of(delta) == 1 / 100
    assert noise_floor(delta)[1] < delta[0]
    errors = {"baseline": baseline.errors, "full": full.errors}
    found = bootstrap_intervals(score, errors, np.arange(300), num_samples=199, confidence=0.95, seed=0)
    assert list(found) == ["baseline", "full", "delta"]
    assert found["delta"][0] < 1 / 3 < found["delta"][1]


def test_permutation_p_of_pure_noise_is_valid() -> None:
    rng = np.random.default_rng(9)
    orders = exchanges(np.full(60, "g"), np.arange(60), 39, 0)
    ps = []
    for seed in range(100):
        features, score = planted(rng, 60, 3, 0.0)
        ps.append(p_of(permuted_r2(features, exchanged(score, orders), plain(60, seed=seed, folds=5).folds[0])))
    assert np.mean(np.array(ps) <= 0.1) <= 0.2
    assert 0.4 < np.mean(ps) < 0.6


def test_duplicates_do_not_leak_when_grouped() -> None:
    rng = np.random.default_rng(10)
    faces = rng.normal(size=(60, 50))  # nearly as many predictors as faces: a copy can be recognised
    score = rng.normal(size=60)
    features, doubled = np.tile(faces, (2, 1)), np.tile(score, 2)
    groups = np.full(120, "g")
    leaking = fit(features, doubled[:, None], divide(groups, np.arange(120), 10, 2, 0)).r2.mean()
    grouped = fit(features, doubled[:, None], divide(groups, np.tile(np.arange(60), 2), 10, 2, 0)).r2.mean()
    assert leaking > 0.3
    assert grouped < 0.05


def test_bootstrap_moves_clusters_as_wholes() -> None:
    rng = np.random.default_rng(11)
    score = rng.normal(size=100)
    errors = rng.uniform(0.2, 1.0, size=100)
    four_times = {"baseline": np.tile(errors, 4), "full": np.tile(errors, 4)}
    options = {"num_samples": 999, "confidence": 0.95, "seed": 0}
    once = bootstrap_intervals(score, {"baseline": errors, "full": errors}, np.arange(100), **options)["full"]
    whole = bootstrap_intervals(np.tile(score, 4), four_times, np.tile(np.arange(100), 4), **options)["full"]
    apart = bootstrap_intervals(np.tile(score, 4), four_times, np.arange(400), **options)["full"]
    assert whole == pytest.approx(once)
    assert apart[1] - apart[0] < 0.7 * (once[1] - once[0])
