from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.cells import Cell, Sample, prepare
from analysis.diagnostics import ALPHAS, RATING, exchanged_tests, first_general, metric_correlations
from fluence.study import Analysis


def cell_of(features: pd.DataFrame, **where: object) -> Cell:
    place = {"model": "m", "trained_on": "all", "scorer": "general", "seed": 0, "sample": "all"} | where
    return Cell(**place, features=features, sweep=features.iloc[:, :0], epsilon=pd.DataFrame())  # type: ignore[arg-type]


def made(num_images: int, group_effect: float = 0.0) -> tuple[pd.DataFrame, Sample]:
    """Metrics that know the group and nothing else of the ratings, and the rated images."""
    rng = np.random.default_rng(1)
    group = np.arange(num_images) % 2
    rated = pd.DataFrame(
        {
            "image_id": [f"j{k}" for k in range(num_images)],
            "group": np.where(group, "a", "b"),
            "cluster": np.arange(num_images),
            "score": rng.normal(size=num_images) + group_effect * group,
        }
    ).set_index("image_id", drop=False)
    values = rng.normal(size=(num_images, 3)) + group_effect * group[:, None]
    columns = pd.MultiIndex.from_tuples([("conv1", "gini"), ("conv2", "gini"), ("conv1", "l_eps")])
    features = pd.DataFrame(values, rated.index, columns)
    analysis = Analysis(permutations=999, covariates=("group",), ridge={"folds": 5, "repeats": 1})  # type: ignore[arg-type]
    return features, prepare("all", rated, "score", analysis)


def test_every_pair_has_the_correlation_of_scipy() -> None:
    features, sample = made(40)
    features.iloc[3, 0] = np.nan
    table = metric_correlations(cell_of(features), sample, "beauty").set_index(
        ["other_layer", "other_metric", "layer", "metric"]
    )
    assert len(table) == 6  # three metrics and the ratings
    expected = stats.pearsonr(features.iloc[:, 1], sample.score)
    row = table.loc[RATING, "beauty", "conv2", "gini"]
    assert (row["estimate"], row["p_parametric"]) == pytest.approx((expected.statistic, expected.pvalue))
    with_gap = features.iloc[:, [0, 2]].dropna()
    expected = stats.pearsonr(with_gap.iloc[:, 0], with_gap.iloc[:, 1])
    row = table.loc["conv1", "gini", "conv1", "l_eps"]
    assert (row["n"], row["estimate"]) == (39, pytest.approx(expected.statistic))


def test_pairs_that_cannot_be_tested_say_why() -> None:
    features, sample = made(40)
    features.iloc[:, 1] = 2.0
    table = metric_correlations(cell_of(features), sample, "beauty")
    dead = table[(table["layer"] == "conv2") | (table["other_layer"] == "conv2")]
    assert len(dead) == 3
    assert set(dead["reason"]) == {"constant metric"}
    assert dead["estimate"].isna().all()
    assert table.drop(dead.index)["estimate"].notna().all()


def test_two_images_give_a_reason_and_no_number() -> None:
    features, sample = made(40)
    few = features.copy()
    few.iloc[2:] = np.nan
    table = metric_correlations(cell_of(few), sample, "beauty")
    assert set(table["reason"]) == {"2 images, fewer than 30"}
    assert exchanged_tests(cell_of(few), sample).empty


def test_t_tests_of_exchanged_ratings_hold_their_level_where_groups_do_not_differ() -> None:
    table = exchanged_tests(*_cell_and_sample(made(120)))
    assert set(table["estimator"]) == {"pearson", "spearman", "partial"}
    assert list(table.query("estimator == 'pearson'")["alpha"]) == list(ALPHAS)
    assert (table["num_tests"] == 3 * 999).all()
    at = table[table["alpha"].isin([0.05, 0.2, 0.5])]
    assert at["rate"].to_numpy() == pytest.approx(at["alpha"].to_numpy(), abs=0.04)


def test_where_groups_differ_only_the_partial_ones_do() -> None:
    at = exchanged_tests(*_cell_and_sample(made(120, group_effect=2.0))).query("alpha == 0.05").set_index("estimator")
    assert at.loc["pearson", "rate"] > 0.9
    assert at.loc["partial", "rate"] == pytest.approx(0.05, abs=0.03)


def _cell_and_sample(one: tuple[pd.DataFrame, Sample]) -> tuple[Cell, Sample]:
    return cell_of(one[0]), one[1]


def test_the_first_general_run_stands_for_its_model() -> None:
    features, _ = made(40)
    cells = [
        cell_of(features, model=model, seed=seed, sample=sample, scorer=scorer)
        for model in ("b", "a")
        for seed in (4, 2)
        for sample, scorer in (("all", "general"), ("a-f", "general"), ("a-f", "own-group"))
    ]
    assert sorted((cell.model, cell.seed, cell.sample) for cell in first_general(cells)) == [
        ("a", 2, "all"),
        ("b", 2, "all"),
    ]
