from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.families import benjamini_hochberg, bh_by, decide, families_of, over_cells
from analysis.statistics import Correlations, correlate, exchanges
from fluence.study import Family

N = 50
NAMES = [("conv1", "gini"), ("conv2", "gini"), ("conv1", "l1"), ("conv2", "l1"), ("mu", "dead")]
CORRECTED = ["p_bh", "p_max_r", "family_size"]


def features(seed: int) -> pd.DataFrame:
    """Five metrics of a model, one of them dead, one that goes with the ratings."""
    values = np.random.default_rng(seed).normal(size=(N, len(NAMES)))
    values[:, 0] += score()
    values[:, 4] = np.nan
    return pd.DataFrame(values, columns=pd.MultiIndex.from_tuples(NAMES, names=["layer", "metric"]))


def score() -> np.ndarray:
    return np.random.default_rng(99).normal(size=N)


ORDERS = exchanges(np.full(N, "g"), np.arange(N), 99, 0)


def judged(columns: pd.DataFrame, estimator: str = "pearson", family: Family = "cell") -> Correlations:
    return correlate(columns, score(), ORDERS, estimator=estimator, confidence=0.95, family=family)


def test_names_of_families() -> None:
    assert families_of(NAMES, "metric").tolist() == ["gini", "gini", "l1", "l1", "dead"]
    assert families_of(NAMES, "layer").tolist() == ["conv1", "conv2", "conv1", "conv2", "mu"]
    assert families_of(NAMES, "cell").tolist() == ["cell"] * 5
    assert families_of(NAMES, "study").tolist() == ["study"] * 5


@pytest.mark.parametrize("estimator", ["pearson", "spearman", "xi"])
@pytest.mark.parametrize(("family", "level"), [("metric", 1), ("layer", 0)])
def test_a_family_is_corrected_as_if_there_were_no_other(family: Family, level: int, estimator: str) -> None:
    columns = features(0)
    found = judged(columns, estimator, family).table
    for name in ("gini", "l1") if family == "metric" else ("conv1", "conv2"):
        alone = judged(columns.loc[:, columns.columns.get_level_values(level) == name], estimator).table
        own = found[found["family"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(own[CORRECTED], alone[CORRECTED])
    dead = found[found["layer"] == "mu"].iloc[0]
    assert (dead["family_size"], np.isnan(dead["p_bh"])) == (0, True)


@pytest.mark.parametrize("estimator", ["pearson", "xi"])
def test_a_family_over_the_study_is_corrected_like_one_large_cell(estimator: str) -> None:
    cells = [judged(features(seed), estimator, "study") for seed in (1, 2)]
    stacked = pd.concat([one.table.assign(subset="all") for one in cells], ignore_index=True)
    found = over_cells(stacked, [("all", {estimator: one.largest}) for one in cells])
    together = judged(pd.concat([features(1), features(2)], axis=1), estimator).table
    pd.testing.assert_frame_equal(found[CORRECTED], together[CORRECTED])
    assert (found["family_size"] == 8).all()
    assert (found["p_max_r"].dropna() >= stacked["p_max_r"].dropna()).all()


def test_other_images_are_another_family() -> None:
    cells = [judged(features(seed), family="study") for seed in (1, 2)]
    stacked = pd.concat(
        [one.table.assign(subset=name) for one, name in zip(cells, "ab", strict=True)], ignore_index=True
    )
    found = over_cells(stacked, [(name, {"pearson": one.largest}) for one, name in zip(cells, "ab", strict=True)])
    pd.testing.assert_frame_equal(found[CORRECTED], stacked[CORRECTED])


def test_benjamini_hochberg_is_scipys_and_leaves_gaps() -> None:
    p = pd.Series([0.01, np.nan, 0.04, 0.03], index=[5, 3, 1, 9])
    adjusted = benjamini_hochberg(p)
    assert adjusted[[5, 1, 9]].tolist() == stats.false_discovery_control([0.01, 0.04, 0.03]).tolist()
    assert np.isnan(adjusted[3])
    assert benjamini_hochberg(pd.Series([np.nan])).isna().all()


def test_tests_are_corrected_by_what_they_share() -> None:
    table = pd.DataFrame({"subset": ["a", "b", "a", "b"], "p": [0.02, 0.02, 0.03, np.nan]})
    found = bh_by(table, ["subset"], ["p"])
    assert found["p_bh"].tolist()[:3] == [0.03, 0.02, 0.03]
    assert found["family_size"].tolist() == [2, 1, 2, 1]


def test_the_study_decides_by_one_of_the_corrections() -> None:
    table = pd.DataFrame({"p_bh": [0.04, np.nan], "p_max_r": [0.06, np.nan]})
    assert decide(table, "bh", 0.95)["significant"].tolist() == [True, False]
    assert decide(table, "max-r", 0.95)["significant"].tolist() == [False, False]
