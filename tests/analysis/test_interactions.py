from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from analysis.interactions import CLUSTERED, HC3, interactions
from fluence.study import Analysis

N = 150
ANALYSIS = Analysis.model_validate({"covariates": ["group", "light"]})


def rated(n: int = N, *, slopes: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> tuple[pd.DataFrame, np.ndarray]:
    """Images of three groups whose ratings grow with a metric at the given slopes, and that metric."""
    rng = np.random.default_rng(3)
    group = np.array(["a", "b", "c"])[np.arange(n) % 3]
    metric = rng.normal(5, 2, size=n)
    light = rng.normal(size=n)
    slope = np.array(slopes)[np.arange(n) % 3]
    error = rng.normal(size=n) * (1 + (group == "b"))
    table = pd.DataFrame({"group": group, "light": light, "cluster": np.arange(n)})
    return table.assign(score=slope * metric + 0.5 * light + (group == "c") + error), metric


def judged(table: pd.DataFrame, *columns: np.ndarray) -> pd.DataFrame:
    names = pd.MultiIndex.from_tuples([(f"conv{number}", "gini") for number in range(len(columns))])
    names.names = ["layer", "metric"]
    return interactions(pd.DataFrame(np.column_stack(columns), table.index, names), table, ANALYSIS)


def reference(table: pd.DataFrame, metric: np.ndarray, **options: object) -> tuple[float, float]:
    fitted = smf.ols("score ~ C(group) * metric + light", table.assign(metric=metric)).fit(use_t=True, **options)
    terms = [name for name in fitted.params.index if "metric" in name and ":" in name]
    found = fitted.wald_test(", ".join(f"{name} = 0" for name in terms), use_f=True, scalar=True)
    return float(found.statistic), float(found.pvalue)


def test_the_test_is_the_one_of_statsmodels_formulas() -> None:
    table, metric = rated(slopes=(0.0, 0.1, 0.2))
    row = judged(table, metric).iloc[0]
    assert (row["f"], row["p"]) == pytest.approx(reference(table, metric, cov_type="HC3"))
    assert (row["estimator"], row["n"], row["num_groups"], row["df_num"]) == (HC3, N, 3, 2)
    assert row["df_denom"] == N - 7


def test_a_person_with_several_photographs_makes_errors_cluster_robust() -> None:
    table, metric = rated(slopes=(0.0, 0.1, 0.2))
    table["cluster"] = np.arange(N) // 2
    row = judged(table, metric).iloc[0]
    expected = reference(table, metric, cov_type="cluster", cov_kwds={"groups": table["cluster"]})
    assert (row["f"], row["p"]) == pytest.approx(expected)
    assert (row["estimator"], row["df_denom"]) == (CLUSTERED, N // 2 - 1)


def test_unlike_slopes_are_found_and_like_ones_are_not() -> None:
    unlike, metric = rated(slopes=(0.5, -0.5, 0.0))
    alike, _ = rated(slopes=(0.5, 0.5, 0.5))
    assert judged(unlike, metric).loc[0, "p"] < 1e-6
    assert judged(alike, metric).loc[0, "p"] > 0.05
    noise = [np.random.default_rng(seed).normal(size=N) for seed in range(60)]
    table = judged(alike, *noise)
    assert (table["p"] < 0.05).mean() < 0.15
    assert table["significant"].tolist() == (table["p_bh"] <= 0.05).tolist()
    assert (table["family_size"] == 60).all()


def test_what_cannot_be_tested_says_why() -> None:
    table, metric = rated()
    in_one = np.where(table["group"] == "a", metric, 1.0)
    found = judged(table, np.full(N, np.nan), np.full(N, 2.0), in_one, metric)
    assert found["reason"].tolist() == [
        "no value for any image (a dead layer)",
        "constant metric",
        "fewer than two groups with 10 images among which the metric varies",
        "",
    ]
    assert found.loc[:2, ["f", "df_num", "p", "p_bh"]].isna().all(axis=None)
    assert (found["family_size"] == 1).all()
    assert found.loc[2, "groups_left_out"] == "b (50); c (50)"


def test_a_group_that_is_too_small_is_left_out_and_named() -> None:
    table, metric = rated()
    few = table["group"].eq("c") & (np.arange(N) > 20)
    row = judged(table[~few], metric[~few]).iloc[0]
    assert (row["num_groups"], row["groups_left_out"], row["df_num"], row["reason"]) == (2, "c (7)", 1, "")
    two = table["group"] != "c"
    assert row["p"] == pytest.approx(judged(table[two], metric[two]).loc[0, "p"])


def test_images_of_one_group_have_no_interaction() -> None:
    table, metric = rated()
    one = (table["group"] == "a").to_numpy()
    assert judged(table[one], metric[one]).empty


def test_an_image_that_has_a_covariate_for_itself_changes_nothing() -> None:
    table, metric = rated(slopes=(0.0, 0.1, 0.2))
    gap = table.assign(light=table["light"].where(np.arange(N) != 4))  # its gap is a column of its own
    row = judged(gap, metric).iloc[0]
    kept = np.arange(N) != 4
    assert row["n"] == N - 1
    assert row["f"] == pytest.approx(reference(table[kept], metric[kept], cov_type="HC3")[0], rel=1e-6)


def test_ratings_that_are_explained_entirely_have_no_test() -> None:
    table, metric = rated()
    row = judged(table.assign(score=2 * metric), metric).iloc[0]
    assert row["reason"] == "groups, metric and covariates explain the ratings entirely"
    row = judged(table.assign(light=table["score"]), metric).iloc[0]
    assert row["reason"] == "groups, metric and covariates explain the ratings entirely"


def test_a_metric_that_the_covariates_explain_in_a_group_has_no_test() -> None:
    table, metric = rated()
    of_light = np.where(table["group"] == "a", table["light"], metric)
    only_in_a = table.assign(light=np.where(table["group"] == "a", table["light"], 0.0))
    assert judged(only_in_a, of_light).loc[0, "reason"] == "the covariates explain the metric within a group"


def test_more_coefficients_than_images() -> None:
    table, metric = rated(36)
    few = table.assign(cluster=np.arange(36) // 6)
    assert judged(few, metric).loc[0, "reason"] == "6 independent images for 7 coefficients"


def test_a_test_takes_less_than_ten_milliseconds() -> None:
    table, _ = rated(1000)
    columns = np.random.default_rng(0).normal(size=(1000, 40))
    start = time.process_time()
    judged(table, *columns.T)
    assert (time.process_time() - start) / 40 < 0.010
