"""Data that go wrong: each time the right numbers, or a row with the reason. Warnings are errors here as everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.analyse import analyse
from analysis.dictionary import TABLES
from analysis.tablefiles import read_statistics
from fluence.errors import StudyError
from fluence.layout import Layout, Run, RunRow
from fluence.store.files import write_table
from fluence.store.packed import PackedWriter
from fluence.study import Study

N = 72
IDS = [f"face-{number:02d}" for number in range(N)]
Columns = dict[tuple[str, str], np.ndarray]
Tables = dict[str, pd.DataFrame]
RNG = np.random.default_rng(1)
TRUTH, NOISE, LIGHT = RNG.normal(size=(3, N))


def manifest(**changes: object) -> pd.DataFrame:
    table = {
        "image_id": IDS,
        "ethnicity": np.where(np.arange(N) % 2, "a", "b"),
        "sex": "f",
        "beauty": TRUTH + 0.5 * NOISE,
        "luminance_mean": LIGHT,
    }
    return pd.DataFrame(table | changes)


def columns(**changes: np.ndarray) -> Columns:
    """Gini of layers by their names; conv1 follows the ratings."""
    layers = {"conv1": TRUTH, "conv2": RNG.normal(size=N)} | changes
    share = np.random.default_rng(0).random(N)
    return {(layer, "gini"): values for layer, values in layers.items()} | {("conv1", "l_eps_fraction_q50"): share}


def analysed(folder: Path, table: pd.DataFrame, metrics: Columns, seeds: int = 1, **settings: object) -> Tables:
    """The tables of a study with one model of all groups, and the same metrics with every seed."""
    layout = Layout(folder)
    with PackedWriter(layout.packed("faces"), 8, {}) as writer:
        writer.append(np.zeros((len(table), 8, 8, 3), np.uint8))
        writer.finish(table, pd.DataFrame(columns=["image_id"]))
    parts = [
        pd.DataFrame({"image_id": IDS, "layer": layer, "metric": metric, "value": values})
        for (layer, metric), values in metrics.items()
    ]
    epsilon = pd.DataFrame([("conv1", 0.5, 0.1, 9)], columns=["layer", "quantile", "epsilon", "num_reference"])
    runs = [RunRow(Run("small", "all", seed, f"small-all-s{seed}"), "done") for seed in range(seeds)]
    for row in runs:
        write_table(layout.metrics(row.run.id), pd.concat(parts, ignore_index=True))
        write_table(layout.epsilon(row.run.id), epsilon)
    small = {"permutations": 99, "bootstrap": 99, "ridge": {"folds": 3, "repeats": 1}, "metrics": ["gini"]}
    study = {
        "name": "test",
        "data": {"datasets": {"faces": {"kind": "csv", "root": "x"}}, "training": "faces", "rated": "faces"},
        "models": {"small": {"kind": "vae"}},
        "grid": {"seeds": list(range(seeds))},
        "analysis": small | settings,
    }
    analyse(Study.model_validate(study), layout, runs, num_workers=1)
    return {name: read_statistics(layout.statistics, name) for name in TABLES}


def row_of(table: pd.DataFrame, **where: object) -> pd.Series:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


@pytest.mark.parametrize(
    ("ratings", "message"), [(np.nan, "no image has a rating"), (3.0, "all 72 ratings in column 'beauty' are equal")]
)
def test_no_ratings_and_constant_ratings_are_refused(ratings: float, message: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=message):
        analysed(tmp_path, manifest(beauty=ratings), columns())
    assert not Layout(tmp_path).statistics.exists()


def test_missing_values_cost_what_they_must_and_no_more(tmp_path: Path) -> None:
    unrated, unknown = np.arange(N) < 5, np.arange(N) == 40
    table = manifest()
    table["beauty"] = table["beauty"].mask(unrated)
    table["luminance_mean"] = table["luminance_mean"].mask(unknown)
    gaps = np.where(np.arange(N) % 9 == 0, np.nan, TRUTH)
    found = analysed(tmp_path, table, columns(conv2=gaps))
    whole = row_of(found["correlations"], layer="conv1", metric="gini", estimator="pearson")
    rated = table[~unrated]
    expected = stats.pearsonr(TRUTH[~unrated], rated["beauty"])
    assert whole["n"] == 67
    assert (whole["estimate"], whole["p_parametric"]) == pytest.approx(tuple(expected))
    both = ~unrated & np.isfinite(gaps)
    for estimator, test in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        part = row_of(found["correlations"], layer="conv2", estimator=estimator)
        assert part["n"] == both.sum()
        assert part["estimate"] == pytest.approx(test(TRUTH[both], table["beauty"][both]).statistic)
    assert row_of(found["correlations"], layer="conv2", estimator="xi")["n"] == both.sum()
    coverage = found["coverage"].iloc[0]
    assert (coverage["n"], coverage["covariates_filled"]) == (67, "luminance_mean")
    ridge = row_of(found["ridge"], predictors="gini")
    assert (ridge["num_predictors"], ridge["left_out"], ridge["n"]) == (1, "conv2 gini", 67)
    assert row_of(found["interactions"], layer="conv2")["n"] == both.sum() - 1  # face-40 has a covariate for itself


def test_a_group_smaller_than_the_folds_is_named_and_its_images_count(tmp_path: Path) -> None:
    ethnicity = np.where(np.arange(N) < 2, "rare", np.where(np.arange(N) % 2, "a", "b"))
    found = analysed(tmp_path, manifest(ethnicity=ethnicity), columns())
    ridge = row_of(found["ridge"], predictors="all")
    assert "not stratified by rare-f: fewer images than the 3 folds" in ridge["note"]
    assert ridge["n"] == N
    assert ridge["r2_full"] > 0.5
    interaction = row_of(found["interactions"], layer="conv1", metric="gini")
    assert (interaction["num_groups"], interaction["groups_left_out"], interaction["n"]) == (2, "rare-f (2)", N - 2)


def test_more_predictors_than_images(tmp_path: Path) -> None:
    many = {f"layer{number}": np.random.default_rng(number).normal(size=N) for number in range(2 * N)}
    found = analysed(tmp_path, manifest(), columns(**many), bootstrap=99)
    ridge = row_of(found["ridge"], predictors="all")
    assert (ridge["reason"], ridge["num_predictors"]) == ("", 2 * N + 2)
    assert np.isfinite(ridge[["r2_full", "delta_r2", "delta_r2_low", "p_delta"]].astype(float)).all()
    assert ridge["naive_in_sample_r2"] == pytest.approx(1)  # which the honest estimate beside it belies
    assert ridge["naive_in_sample_noise"] == 1
    assert ridge["r2_metrics"] < 0.6
    assert np.isnan(ridge["smallest_detectable_r2"])
    assert (found["correlations"]["family_size"] == 2 * N + 2).all()


def test_perfectly_collinear_layers(tmp_path: Path) -> None:
    found = analysed(tmp_path, manifest(), columns(conv2=TRUTH, conv3=-3 * TRUTH + 1))
    for estimator in ("pearson", "spearman", "partial"):
        r = [row_of(found["correlations"], layer=f"conv{k}", metric="gini", estimator=estimator) for k in (1, 2, 3)]
        assert r[0]["estimate"] == pytest.approx(r[1]["estimate"])
        assert r[0]["estimate"] == pytest.approx(-r[2]["estimate"])
        assert len({one["p_permutation"] for one in r}) == 1
    ridge = row_of(found["ridge"], predictors="gini")
    assert ridge["r2_metrics"] == pytest.approx(np.corrcoef(TRUTH, manifest()["beauty"])[0, 1] ** 2, abs=0.1)
    assert ridge["p_delta"] == 0.01


def test_a_layer_that_is_the_covariate_leaves_a_reason(tmp_path: Path) -> None:
    found = analysed(tmp_path, manifest(), columns(conv2=2 * LIGHT + 1))
    partial = row_of(found["correlations"], layer="conv2", estimator="partial")
    assert partial["reason"] == "the covariates explain this metric entirely"
    assert row_of(found["interactions"], layer="conv2")["reason"] == ""  # its slope may differ between groups


def test_dead_layers_only(tmp_path: Path) -> None:
    dead = {layer: np.full(N, np.nan) for layer in ("conv1", "conv2")} | {"conv3": np.full(N, 0.5)}
    metrics = {key: values for key, values in columns(**dead).items() if key[1] == "gini"}
    metrics[("conv1", "l_eps_fraction_q50")] = np.zeros(N)
    found = analysed(tmp_path, manifest(), metrics)
    reasons = found["correlations"].groupby("layer")["reason"].unique()
    assert reasons["conv1"].tolist() == ["no value for any image (a dead layer)"]
    assert reasons["conv3"].tolist() == ["constant metric"]
    assert set(found["ridge"]["reason"]) == {"no metric varies over these images"}
    assert not found["correlations"]["significant"].any()
    assert (found["correlations"]["family_size"] == 0).all()
    assert (found["interactions"]["reason"] != "").all()
    assert found["correlations_over_seeds"]["num_seeds"].eq(0).all()
    assert (found["epsilon_sweep"]["reason"] == "constant metric").all()


def test_one_run_only_has_no_spread(tmp_path: Path) -> None:
    found = analysed(tmp_path, manifest(), columns())
    row = row_of(found["correlations_over_seeds"], layer="conv1", estimator="pearson")
    single = row_of(found["correlations"], layer="conv1", metric="gini", estimator="pearson")
    assert (row["num_seeds"], row["estimate_mean"], row["ci_low_mean"]) == (1, single["estimate"], single["ci_low"])
    assert np.isnan(row["estimate_sd"])
    assert found["ridge_over_seeds"]["delta_r2_sd"].isna().all()
    assert found["interactions_over_seeds"]["f_sd"].isna().all()


@pytest.mark.parametrize(("family", "size"), [("layer", 1), ("study", 4)])
def test_the_family_is_the_one_that_the_study_declares(family: str, size: int, tmp_path: Path) -> None:
    found = analysed(tmp_path, manifest(), columns(), seeds=2, family=family, correction="max-r")
    table = found["correlations"]
    assert (table["family"] == (table["layer"] if family == "layer" else family)).all()
    assert (table["family_size"] == size).all()
    over = ["seed", "estimator"] if family != "study" else ["estimator"]
    for _, rows in table.groupby([*over, "family"]):
        assert rows["p_bh"].tolist() == pytest.approx(stats.false_discovery_control(rows["p_permutation"]))
    assert (table["p_adjusted"] == table["p_max_r"]).all()
    is_of_study = family == "study"
    assert set(found["ridge"]["family"]) == {"study" if is_of_study else "cell"}
    assert (found["ridge"]["family_size"] == (4 if is_of_study else 2)).all()
    assert (found["interactions"]["family_size"] == size).all()
    assert (found["correlations_over_seeds"]["family_size"] == size).all()
