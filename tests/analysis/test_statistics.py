from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import FTestPowerF2

from analysis.families import permutation_p
from analysis.seeds import over_seeds
from analysis.statistics import (
    correlate,
    exchanges,
    noise_ceiling,
    permuted_correlations,
    permuted_xi,
    residualise,
    smallest_detectable_r2,
    split_half,
    untied,
)

N = 60


def one_group(n: int) -> np.ndarray:
    return np.full(n, "g")


def features_of(values: np.ndarray) -> pd.DataFrame:
    names = [(f"conv{k}", "gini") for k in range(values.shape[1])]
    return pd.DataFrame(values, columns=pd.MultiIndex.from_tuples(names, names=["layer", "metric"]))


def pearson_table(values: np.ndarray, score: np.ndarray, num: int = 199, **options: object) -> pd.DataFrame:
    orders = exchanges(one_group(len(score)), np.arange(len(score)), num, 0)
    options = {"estimator": "pearson", "confidence": 0.95} | options
    return correlate(features_of(values), score, orders, **options).table


def deviations(statistics: np.ndarray) -> np.ndarray:
    return np.abs(statistics - statistics.mean(axis=0))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6)), min_size=1, max_size=25), st.integers(0, 99))
def test_exchanges_stay_in_the_group_and_keep_clusters_whole(images: list[tuple[str, int]], seed: int) -> None:
    groups, clusters = np.array([g for g, _ in images]), np.array([c for _, c in images])
    orders = exchanges(groups, clusters, 9, seed)
    assert orders[0].tolist() == list(range(len(images)))
    for order in orders:
        assert sorted(order) == list(range(len(images)))
        np.testing.assert_array_equal(groups[order], groups)
        for cluster in np.unique(clusters):
            assert len(set(clusters[order[clusters == cluster]])) == 1


def test_every_order_is_equally_likely() -> None:
    orders = exchanges(one_group(3), np.arange(3), 6000, 1)[1:]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_permuted_correlations_are_pearsons_of_the_present_images() -> None:
    rng = np.random.default_rng(0)
    columns, score = rng.normal(size=(N, 3)), rng.normal(size=N)
    columns[:7, 1] = np.nan
    orders = exchanges(np.repeat(["a", "b"], N // 2), np.arange(N), 5, 0)
    found = permuted_correlations(columns, score, orders)
    for order, row in zip(orders, found, strict=True):
        for column, r in zip(columns.T, row, strict=True):
            present = np.isfinite(column)
            assert r == pytest.approx(stats.pearsonr(column[present], score[order][present]).statistic, abs=1e-12)


def test_permutation_p_by_hand() -> None:
    correlations = np.array([[0.5, 0.1], [-0.5, 0.2], [0.1, -0.6], [-0.1, 0.3]])  # both columns have mean 0
    away = deviations(correlations)
    assert permutation_p(away[0], away).tolist() == [2 / 4, 4 / 4]
    assert permutation_p(away[0], away.max(axis=1, keepdims=True)).tolist() == [3 / 4, 4 / 4]


def test_permutation_p_is_uniform_without_an_effect_although_group_means_differ() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(["a", "b"], 20)
    shift = np.repeat([0.0, 3.0], 20)
    orders = exchanges(groups, np.arange(40), 99, 0)
    values = []
    for _ in range(300):
        column, score = rng.normal(size=(40, 1)) + shift[:, None], rng.normal(size=40) + shift
        away = deviations(permuted_correlations(column, score, orders))
        values.append(permutation_p(away[0], away))
    p = np.ravel(values)
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert np.mean(p <= 0.05) < 0.09


def test_max_r_holds_the_family_error() -> None:
    rng = np.random.default_rng(4)
    orders = exchanges(one_group(40), np.arange(40), 99, 0)
    smallest = []
    for _ in range(200):
        away = deviations(permuted_correlations(rng.normal(size=(40, 10)), rng.normal(size=40), orders))
        smallest.append(permutation_p(away[0], away.max(axis=1, keepdims=True)).min())
    assert np.mean(np.array(smallest) <= 0.05) < 0.10


def test_a_thousand_permutations_of_300_columns_take_less_than_two_seconds() -> None:
    rng = np.random.default_rng(0)
    columns, score = rng.normal(size=(1200, 300)), rng.normal(size=1200)
    start = time.process_time()
    away = deviations(permuted_correlations(columns, score, exchanges(one_group(1200), np.arange(1200), 999, 0)))
    permutation_p(away[0], away)
    assert time.process_time() - start < 4  # of both cores together


def test_pearson_and_its_interval_are_scipys() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(N, 2))
    score = values[:, 0] + rng.normal(size=N)
    table = pearson_table(values, score)
    expected = stats.pearsonr(values[:, 0], score)
    assert table.loc[0, "estimate"] == pytest.approx(expected.statistic)
    assert table.loc[0, "p_parametric"] == pytest.approx(expected.pvalue)
    assert (table.loc[0, "ci_low"], table.loc[0, "ci_high"]) == pytest.approx(tuple(expected.confidence_interval()))
    assert table.loc[0, "p_permutation"] == 1 / 200
    np.testing.assert_allclose(table["p_bh"], stats.false_discovery_control(table["p_permutation"]))
    assert (table["family_size"] == 2).all()


def test_spearman_sees_monotone_curves_and_its_interval_covers() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(N, 1))
    assert pearson_table(x, np.exp(3 * x[:, 0]), estimator="spearman").loc[0, "estimate"] == pytest.approx(1)
    truth = 6 / np.pi * np.arcsin(0.5 / 2)  # Spearman's ρ of a Gaussian pair with r = .5
    hits = 0
    for _ in range(200):
        x = rng.normal(size=(N, 1))
        y = 0.5 * x[:, 0] + np.sqrt(0.75) * rng.normal(size=N)
        row = pearson_table(x, y, num=1, estimator="spearman").iloc[0]
        hits += row["ci_low"] <= truth <= row["ci_high"]
    assert 0.90 <= hits / 200 <= 0.99


def test_permuted_xi_is_scipys_of_the_present_images_with_their_ties() -> None:
    rng = np.random.default_rng(9)
    columns, score = rng.normal(size=(N, 3)), np.round(rng.normal(size=N), 1)
    columns[:7, 1] = np.nan
    columns[:, 2] = np.round(columns[:, 2])
    orders = exchanges(np.repeat(["a", "b"], N // 2), np.arange(N), 5, 0)
    found = permuted_xi(columns, score, orders)
    for order, row in zip(orders, found, strict=True):
        for column, xi in zip(columns.T, row, strict=True):
            present = np.isfinite(column)
            expected = stats.chatterjeexi(untied(column[present]), score[order][present])
            assert xi == pytest.approx(expected.statistic, abs=1e-12)


def test_batches_of_permutations_do_not_change_xi() -> None:
    rng = np.random.default_rng(10)
    orders = exchanges(one_group(N), np.arange(N), 599, 0)
    columns, score = rng.normal(size=(N, 2)), rng.normal(size=N)
    np.testing.assert_array_equal(permuted_xi(columns, score, orders)[400:], permuted_xi(columns, score, orders[400:]))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_ties_are_broken_at_random_but_always_alike(values: list[int]) -> None:
    column = np.array(values, dtype=np.float64)
    ranks = untied(column)
    assert sorted(ranks) == list(range(1, len(values) + 1))
    assert (np.diff(column[np.argsort(ranks)]) >= 0).all()
    np.testing.assert_array_equal(untied(column), ranks)


def test_equal_values_are_not_left_in_the_order_of_the_images() -> None:
    assert untied(np.zeros(50)).tolist() != list(range(1, 51))


def test_xi_sees_what_pearson_does_not_and_only_in_its_direction() -> None:
    x = np.random.default_rng(11).normal(size=(N, 1))
    table = pearson_table(x, x[:, 0] ** 2, estimator="xi")
    expected = stats.chatterjeexi(untied(x[:, 0]), x[:, 0] ** 2)
    assert table.loc[0, ["estimate", "p_parametric"]].tolist() == pytest.approx(list(expected))
    assert table.loc[0, "p_permutation"] == 1 / 200
    assert table.loc[0, ["ci_low", "ci_high"]].isna().all()
    assert pearson_table(x**2, x[:, 0], estimator="xi").loc[0, "estimate"] < 0.5  # the sign of x is not told by x²
    alternating = np.arange(float(N)) % 2
    one_sided = pearson_table(np.arange(float(N))[:, None], alternating, estimator="xi")
    assert one_sided.loc[0, "estimate"] < -0.4
    assert one_sided.loc[0, "p_permutation"] == 1


def test_parametric_p_are_scipys() -> None:
    rng = np.random.default_rng(12)
    x, y = rng.normal(size=(N, 1)), rng.normal(size=N)
    for estimator, test in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        assert pearson_table(x, y, estimator=estimator).loc[0, "p_parametric"] == test(x[:, 0], y).pvalue


def test_expected_is_what_groups_alone_make() -> None:
    groups = np.repeat(["a", "b"], N // 2)
    shift = np.repeat([0.0, 9.0], N // 2)
    rng = np.random.default_rng(13)
    x, y = rng.normal(size=N) + shift, rng.normal(size=N) + shift
    orders = exchanges(groups, np.arange(N), 199, 0)
    row = correlate(features_of(x[:, None]), y, orders, estimator="pearson", confidence=0.95).table.iloc[0]
    assert row["estimate"] > 0.9
    assert row["expected"] == pytest.approx(row["estimate"], abs=0.02)
    assert row["p_permutation"] > 0.01


def test_constant_and_dead_columns_keep_their_row_with_a_reason() -> None:
    values = np.random.default_rng(0).normal(size=(N, 3))
    values[:, 1] = 0.25
    values[:35, 2] = np.nan
    table = pearson_table(values, np.arange(float(N)))
    assert table["reason"].tolist() == ["", "constant metric", "25 images, fewer than 30"]
    assert table["n"].tolist() == [60, 60, 25]
    numbers = ["estimate", "ci_low", "p_parametric", "p_permutation", "p_bh", "p_max_r"]
    assert table.loc[1:, numbers].isna().all(axis=None)
    assert (table["family_size"] == 1).all()


def test_constant_ratings_are_a_reason() -> None:
    table = pearson_table(np.random.default_rng(0).normal(size=(N, 2)), np.ones(N))
    assert table["reason"].tolist() == ["constant ratings"] * 2
    assert (table["family_size"] == 0).all()


def test_partial_correlation_takes_the_confound_out() -> None:
    rng = np.random.default_rng(5)
    n = 400
    confound = rng.normal(size=n)
    folds = np.arange(n) % 10
    columns = np.stack([confound + rng.normal(size=n), rng.normal(size=n), 2 * confound], axis=1)
    score = (confound + 0.5 * columns[:, 1] + rng.normal(size=n))[:, None]
    columns[3, 1] = np.nan
    left = residualise(columns, confound[:, None], folds)
    assert np.isnan(left[:, 2]).all()  # explained entirely
    assert np.isnan(left[:, 1]).tolist() == np.isnan(columns[:, 1]).tolist()
    y = residualise(score, confound[:, None], folds)[:, 0]
    table = pearson_table(left[:, :2], y, estimator="partial", num_covariates=1)
    assert stats.pearsonr(columns[:, 0], score[:, 0]).statistic > 0.4
    assert table.loc[0, "ci_low"] < 0 < table.loc[0, "ci_high"]
    assert table.loc[1, "ci_low"] < 0.5 / np.sqrt(1.25) < table.loc[1, "ci_high"]
    assert table.loc[1, "p_permutation"] == 1 / 200


def test_residuals_come_from_the_other_folds() -> None:
    rng = np.random.default_rng(6)
    baseline, column, folds = rng.normal(size=(20, 2)), rng.normal(size=20), np.arange(20) % 4
    left = residualise(column[:, None], baseline, folds)[:, 0]
    design = np.column_stack([np.ones(20), baseline])
    for fold in range(4):
        train = folds != fold
        weights = np.linalg.lstsq(design[train], column[train], rcond=None)[0]
        np.testing.assert_allclose(left[~train], column[~train] - design[~train] @ weights, atol=1e-12)


@pytest.mark.parametrize(("n", "predictors"), [(50, 1), (52, 14), (1194, 45)])
def test_power_agrees_with_statsmodels(n: int, predictors: int) -> None:
    r2 = smallest_detectable_r2(n, predictors)
    power = FTestPowerF2().power(r2 / (1 - r2), df_num=predictors, df_denom=n - predictors - 1, alpha=0.05)
    assert power == pytest.approx(0.8, abs=1e-6)


def test_power_at_fifty_images_and_without_any() -> None:
    assert smallest_detectable_r2(50, 1) == pytest.approx(0.14, abs=0.005)
    assert np.isnan(smallest_detectable_r2(10, 9))
    assert np.isnan(smallest_detectable_r2(10, 0))


def test_noise_ceiling_recovers_the_planted_reliability_by_both_methods() -> None:
    rng = np.random.default_rng(7)
    raters, noise = 16, 2.0
    truth = rng.normal(size=1500)
    ratings = truth[:, None] + noise * rng.normal(size=(1500, raters))
    rated = pd.DataFrame(ratings, columns=[f"rater_{k:02d}" for k in range(raters)]).assign(
        score=ratings.mean(axis=1), beauty_sd=ratings.std(axis=1, ddof=1), n_ratings=float(raters)
    )
    found = noise_ceiling(rated, "beauty", 0)
    assert found["method"].tolist() == ["split-half", "sd and n"]
    assert found["ceiling_r2"].tolist() == pytest.approx([1 / (1 + noise**2 / raters)] * 2, abs=0.02)
    assert noise_ceiling(rated[["score"]], "beauty", 0).empty


def test_split_half_uses_the_raters_that_there_are() -> None:
    rng = np.random.default_rng(8)
    ratings = rng.normal(size=(800, 1)) + rng.normal(size=(800, 12))
    ratings[rng.random(ratings.shape) < 0.5] = np.nan
    assert split_half(ratings, 0) == pytest.approx(1 / (1 + 1 / 6), abs=0.04)


def test_raters_who_never_saw_the_same_images_give_no_ceiling() -> None:
    ratings = np.full((40, 2), np.nan)
    ratings[:20, 0], ratings[20:, 1] = np.arange(20), np.arange(20)
    assert np.isnan(split_half(ratings, 0))
    rated = pd.DataFrame(ratings, columns=["rater_0", "rater_1"]).assign(score=1.0)
    assert noise_ceiling(rated, "beauty", 0).empty


def test_over_seeds_by_hand() -> None:
    table = pd.DataFrame(
        {
            "model": ["a", "a", "a", "b"],
            "seed": [0, 1, 2, 1],
            "n": [50, 40, 50, 9],
            "r": [0.1, 0.3, np.nan, -0.5],
            "q": [1.0, 2, 3, 4],
        }
    )
    planned = {"a": (0, 1, 2), "b": (1, 3)}
    summed = over_seeds(table, ["model"], ["r", "q"], planned=lambda where: planned[where["model"]]).set_index("model")
    assert summed.loc["a", ["num_seeds", "missing_seeds", "n"]].tolist() == [2, "2", 40]
    assert summed.loc["b", ["num_seeds", "missing_seeds"]].tolist() == [1, "3"]
    spread = summed.loc["a", ["r_mean", "r_sd", "r_min", "r_max"]].tolist()
    assert spread == pytest.approx([0.2, np.sqrt(0.02), 0.1, 0.3])
    assert summed.loc["a", "q_mean"] == 2
    assert summed.loc["b", "num_seeds"] == 1
    assert np.isnan(summed.loc["b", "r_sd"])
