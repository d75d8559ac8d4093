from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.analyse import analyse
from analysis.dictionary import TABLES
from fluence.errors import StudyError
from fluence.layout import Layout, Run, RunRow
from fluence.store.files import read_table, write_table
from fluence.store.packed import PackedWriter
from fluence.study import Study

GROUPS = ("asian-f", "asian-m", "black-f")
LAYERS = ("conv1", "mu")
N = 180
IDS = [f"face-{number:03d}" for number in range(N)]


def rng_of(*key: object) -> np.random.Generator:
    return np.random.default_rng(list(repr(key).encode()))


def manifest() -> pd.DataFrame:
    rng = rng_of("manifest")
    ethnicity = np.repeat(["Asian", "Asian", "Black", "Black"], [60, 60, 55, 5])
    sex = np.repeat(["F", "M", "F", "M"], [60, 60, 55, 5])
    truth = rng.normal(size=N)
    return pd.DataFrame(
        {
            "image_id": IDS,
            "ethnicity": ethnicity,
            "sex": sex,
            "truth": truth,
            "beauty": truth + (ethnicity == "Black") + 0.3 * rng.normal(size=N),
            "beauty_sd": 1.2,
            "n_ratings": 16.0,
            "luminance_mean": rng.normal(size=N),
            "duplicate_of": [""] * 2 + ["face-000"] + [""] * (N - 3),
        }
    ).sample(frac=1, random_state=0)  # rows in no order


def metrics_of(run: Run) -> pd.DataFrame:
    """conv1's Gini follows the truth; all else is noise; one layer is dead."""
    rng = rng_of(run.label)
    truth = manifest().set_index("image_id").loc[IDS, "truth"].to_numpy()
    columns = {("conv1", "gini"): truth + rng.normal(size=N), ("mu", "gini"): np.full(N, np.nan)}
    for layer in LAYERS:
        for quantile in ("q25", "q50", "q75"):
            share = rng.random(N)
            columns |= {(layer, f"l_eps_count_{quantile}"): share * 100, (layer, f"l_eps_fraction_{quantile}"): share}
    columns |= {("reconstruction", name): rng.random(N) for name in ("l1_error", "ssim_error")}
    parts = [
        pd.DataFrame({"image_id": IDS, "layer": layer, "metric": metric, "value": values})
        for (layer, metric), values in columns.items()
    ]
    return pd.concat(parts, ignore_index=True)


def study_of(**analysis: object) -> Study:
    return Study.model_validate(
        {
            "name": "test",
            "data": {"datasets": {"rated": {"kind": "csv", "root": "x"}}, "training": "rated", "rated": "rated"},
            "models": {"small": {"kind": "vae"}},
            "analysis": {"permutations": 99, "bootstrap": 99, "ridge": {"folds": 3, "repeats": 1}} | analysis,
        }
    )


def write_packed(layout: Layout, table: pd.DataFrame) -> None:
    with PackedWriter(layout.packed("rated"), 8, {}) as writer:
        writer.append(np.zeros((len(table), 8, 8, 3), np.uint8))
        writer.finish(table, pd.DataFrame(columns=["image_id"]))


def write_run(layout: Layout, run: Run) -> None:
    write_table(layout.metrics(run.id), metrics_of(run).sample(frac=1, random_state=run.seed))
    rows = [(layer, quantile, quantile, 64) for layer in LAYERS for quantile in (0.25, 0.5, 0.75)]
    table = pd.DataFrame(rows, columns=["layer", "quantile", "epsilon", "num_reference"])
    write_table(layout.epsilon(run.id), table)


def run_of(group: str, seed: int) -> Run:
    return Run("small", group, seed, f"small-{group}-s{seed}-00")


def finished(layout: Layout) -> list[RunRow]:
    """Two seeds of a general model and three specialised ones, of which one failed and one was skipped."""
    rows = [RunRow(run_of(group, seed), "done") for seed in (0, 1) for group in ("all", *GROUPS)]
    rows[5] = RunRow(rows[5].run, "failed", "out of memory")
    rows.append(RunRow(run_of("black-m", 0), "skipped", "5 images, fewer than 20"))
    for row in rows:
        if row.status == "done":
            write_run(layout, row.run)
    return rows


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout(tmp_path_factory.mktemp("study"))
    write_packed(layout, manifest())
    analyse(study_of(), layout, finished(layout), num_workers=1)
    return layout


@pytest.fixture(scope="module")
def tables(study_folder: Layout) -> dict[str, pd.DataFrame]:
    return {path.stem: read_table(path) for path in study_folder.statistics.glob("*.parquet")}


def one_row(table: pd.DataFrame, **where: object) -> pd.Series:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_every_column_of_every_table_is_in_the_dictionary(tables: dict[str, pd.DataFrame]) -> None:
    assert set(tables) == set(TABLES)
    dictionary = tables["data_dictionary"]
    for name, table in tables.items():
        assert dictionary.loc[dictionary["table"] == name, "column"].tolist() == list(table.columns)
    assert dictionary["meaning"].str.len().min() > 5


def test_every_scorer_has_its_images(tables: dict[str, pd.DataFrame]) -> None:
    coverage = tables["coverage"][lambda t: t["reason"] == ""]
    found = {tuple(row) for row in coverage[["trained_on", "scorer", "seed", "subset", "n"]].to_numpy()}
    sizes = {"asian-f": 60, "asian-m": 60, "black-f": 55}
    expected = {("all", "general", seed, "all", N) for seed in (0, 1)}
    expected |= {("all", "general", seed, group, size) for seed in (0, 1) for group, size in sizes.items()}
    expected |= {(group, "own-group", seed, group, size) for seed in (0, 1) for group, size in sizes.items()}
    expected -= {("asian-f", "own-group", 1, "asian-f", 60)}
    for scorer, trained_on in (("general", "all"), ("own-group", "own-group")):
        expected |= {(trained_on, scorer, 0, "pooled without black-m", 175)}
        expected |= {(trained_on, scorer, 1, "pooled without asian-f, black-m", 115)}
    assert found == expected


def test_what_is_missing_is_named(tables: dict[str, pd.DataFrame]) -> None:
    assert one_row(tables["runs"], trained_on="asian-f", seed=1)[["status", "reason"]].tolist() == [
        "failed",
        "out of memory",
    ]
    coverage = tables["coverage"]
    failed = one_row(coverage, trained_on="asian-f", seed=1)
    assert (failed["n"], failed["reason"]) == (60, "run failed: out of memory")
    assert one_row(coverage, trained_on="black-m")["reason"] == "run skipped: 5 images, fewer than 20"
    general = one_row(coverage, trained_on="all", seed=1, subset="all")
    assert general["missing_runs"] == "asian-f (failed)"
    assert (general["covariates"], general["covariates_missing"]) == (
        "group; luminance_mean",
        "luminance_contrast; pixel_gini; age",
    )
    assert general["num_clusters"] == N - 1
    tiny = one_row(tables["ridge"], trained_on="all", seed=0, subset="black-m", predictors="all")
    assert tiny["reason"] == "5 images, fewer than 30"
    assert tiny["population_reason"] == tiny["reason"]
    assert np.isnan(tiny[["r2_full", "population_delta_r2"]].astype(float)).all()


def test_the_planted_metric_is_found_and_the_noise_is_not(tables: dict[str, pd.DataFrame]) -> None:
    where = {"trained_on": "all", "subset": "all", "seed": 0}
    for estimator in ("pearson", "spearman", "partial"):
        row = one_row(tables["correlations"], **where, layer="conv1", metric="gini", estimator=estimator)
        assert row["ci_low"] > 0.3
        assert row["significant"]
        assert row["p_permutation"] == 0.01
        assert row["family_size"] == 5
    xi = one_row(tables["correlations"], **where, layer="conv1", metric="gini", estimator="xi")
    assert xi["p_permutation"] < 0.1  # it sees curves, and straight lines less well
    gini = one_row(tables["ridge"], **where, predictors="gini")
    assert gini["delta_r2_low"] > 0.1
    assert gini["delta_r2"] > gini["delta_r2_noise_high"]
    assert gini["p_delta"] == 0.01
    assert gini["left_out"] == "mu gini"
    assert 0.1 < gini["population_delta_r2_low"] < gini["population_delta_r2"] < gini["population_delta_r2_high"]
    assert (gini["population_n"], gini["population_rank"]) == (N - 1, 1)
    noise = one_row(tables["ridge"], **where, predictors="reconstruction")
    assert noise["delta_r2"] < 0.03
    assert noise["p_delta"] > 0.01
    assert noise["num_predictors"] == 2


def test_groups_are_compared_where_images_of_several_are_together(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["interactions"]
    assert set(table["subset"]) == {"all", "pooled without black-m", "pooled without asian-f, black-m"}
    row = one_row(table, trained_on="all", subset="all", seed=0, layer="conv1", metric="gini")
    assert (row["num_groups"], row["groups_left_out"], row["n"], row["df_num"]) == (3, "black-m (5)", 175, 2)
    assert row["estimator"] == "Wald F, OLS with cluster-robust errors"  # there is a duplicate
    assert row["p"] > 0.01
    over = one_row(tables["interactions_over_seeds"], trained_on="all", subset="all", layer="conv1", metric="gini")
    assert (over["num_seeds"], over["family_size"]) == (2, 5)


def test_csv_and_parquet_hold_the_same_columns(tables: dict[str, pd.DataFrame], study_folder: Layout) -> None:
    for name, table in tables.items():
        from_csv = read_table(study_folder.statistics / f"{name}.csv")
        assert list(from_csv.columns) == list(table.columns)
        assert len(from_csv) == len(table)
        numbers = table.select_dtypes("number")
        pd.testing.assert_frame_equal(from_csv[list(numbers)], numbers, check_dtype=False)


def test_every_number_says_what_it_is(tables: dict[str, pd.DataFrame]) -> None:
    of_runs = {"model", "trained_on", "scorer", "seed", "subset", "n", "estimator", "family", "family_size"}
    over_seeds = (of_runs - {"seed"}) | {"num_seeds", "missing_seeds"}
    single, several = {"layer", "metric"}, {"predictors"}
    assert of_runs | single | {"p_parametric", "p_permutation", "p_adjusted"} <= set(tables["correlations"])
    assert of_runs | single | {"p_parametric", "p_permutation", "p_adjusted"} <= set(tables["epsilon_sweep"])
    assert of_runs | single | {"p", "p_bh"} <= set(tables["interactions"])
    assert of_runs | several | {"p_delta", "p_delta_bh"} <= set(tables["ridge"])
    assert over_seeds | single | {"p_permutation_max", "p_adjusted_max"} <= set(tables["correlations_over_seeds"])
    assert over_seeds | single | {"p_max", "p_bh_max"} <= set(tables["interactions_over_seeds"])
    assert over_seeds | several | {"p_delta_max", "p_delta_bh_max"} <= set(tables["ridge_over_seeds"])
    assert over_seeds | single | {"p_permutation", "p_adjusted"} <= set(tables["summary_layers"])
    assert over_seeds | several | {"p_delta", "p_delta_bh"} <= set(tables["summary_constraint"])


def test_dead_layers_keep_their_row(tables: dict[str, pd.DataFrame]) -> None:
    dead = tables["correlations"][lambda t: (t["layer"] == "mu") & (t["metric"] == "gini")]
    assert len(dead) == 4 * len(tables["coverage"][lambda t: ~t["reason"].str.startswith("run")])
    assert (dead["reason"] == "no value for any image (a dead layer)").all()
    assert dead["estimate"].isna().all()


def test_own_group_scores_come_from_each_images_own_model(tables: dict[str, pd.DataFrame]) -> None:
    rated = manifest().set_index("image_id")
    values = []
    for group, ethnicity, sex in (("asian-f", "Asian", "F"), ("asian-m", "Asian", "M"), ("black-f", "Black", "F")):
        metrics = metrics_of(run_of(group, 0)).query("layer == 'conv1' and metric == 'gini'").set_index("image_id")
        values.append(metrics.loc[rated.index[(rated["ethnicity"] == ethnicity) & (rated["sex"] == sex)], "value"])
    pooled = pd.concat(values)
    where = {"trained_on": "own-group", "seed": 0, "layer": "conv1", "metric": "gini", "estimator": "pearson"}
    row = one_row(tables["correlations"], **where)
    assert row["estimate"] == pytest.approx(np.corrcoef(pooled, rated.loc[pooled.index, "beauty"])[0, 1])
    sweep = tables["epsilon_sweep"][lambda t: t["trained_on"] == "own-group"]
    assert sweep["epsilon"].isna().all()


def test_seeds_are_summed_up_only_over_the_same_images(tables: dict[str, pd.DataFrame]) -> None:
    where = {"layer": "conv1", "metric": "gini", "estimator": "pearson", "trained_on": "all"}
    row = one_row(tables["correlations_over_seeds"], **where, subset="all")
    single = tables["correlations"].query(
        "layer == 'conv1' and metric == 'gini' and estimator == 'pearson' and trained_on == 'all' and subset == 'all'"
    )["estimate"]
    assert row["num_seeds"] == 2
    assert row["num_significant"] == 2
    assert row["estimate_mean"] == pytest.approx(single.mean())
    assert row["estimate_sd"] == pytest.approx(single.std())
    assert one_row(tables["correlations_over_seeds"], **where, subset="pooled without black-m")["num_seeds"] == 1
    assert one_row(tables["ridge_over_seeds"], trained_on="all", subset="all", predictors="all")["num_seeds"] == 2


def test_sweep_holds_every_quantile_with_its_epsilon(tables: dict[str, pd.DataFrame]) -> None:
    sweep = tables["epsilon_sweep"].query("trained_on == 'all' and subset == 'all' and seed == 0 and layer == 'mu'")
    assert sorted(sweep["quantile"]) == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    assert (sweep["epsilon"] == sweep["quantile"]).all()
    assert sweep["mean_fraction"].between(0.4, 0.6).all()


def test_noise_ceiling_of_every_sample(tables: dict[str, pd.DataFrame]) -> None:
    beauty = manifest()["beauty"]
    row = one_row(tables["noise_ceiling"], subset="all")
    assert row["ceiling_r2"] == pytest.approx(1 - 1.2**2 / 16 / beauty.var())
    assert one_row(tables["noise_ceiling"], subset="black-m")["method"] == "none"


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_packed(layout, manifest())
    runs = [RunRow(run_of(group, 0), "done") for group in ("all", "asian-f")]
    for row in runs:
        write_run(layout, row.run)
    analyse(study_of(), layout, runs, num_workers=1)
    before = {path.name: path.read_bytes() for path in layout.statistics.iterdir()}
    analyse(study_of(), layout, runs, num_workers=2)
    assert {path.name: path.read_bytes() for path in layout.statistics.iterdir()} == before


def test_a_run_whose_metrics_miss_images_is_a_row_and_no_number(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_packed(layout, manifest())
    run = run_of("all", 0)
    write_run(layout, run)
    metrics = read_table(layout.metrics(run.id))
    write_table(layout.metrics(run.id), metrics[metrics["image_id"] != "face-007"])
    analyse(study_of(), layout, [RunRow(run, "done")], num_workers=1)
    row = read_table(layout.statistics / "runs.csv").iloc[0]
    assert row["status"] == "unreadable"
    assert "1 of 180 rated images are missing: face-007" in row["reason"]
    for name in TABLES:  # every table is there, with its columns
        assert list(read_table(layout.statistics / f"{name}.csv").columns) == list(TABLES[name])
    assert read_table(layout.statistics / "correlations.csv").empty


def test_without_ratings_nothing_is_written(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_packed(layout, manifest().assign(beauty=np.nan))
    with pytest.raises(StudyError, match="no image has a rating"):
        analyse(study_of(), layout, [], num_workers=1)
    assert not layout.statistics.exists()


def test_covariates_that_explain_everything_leave_reasons_not_numbers(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    table = manifest()
    write_packed(layout, table.assign(copy=table["beauty"]))
    write_run(layout, run_of("all", 0))
    analyse(study_of(covariates=("copy",)), layout, [RunRow(run_of("all", 0), "done")], num_workers=1)
    partial = read_table(layout.statistics / "correlations.csv").query("estimator == 'partial' and layer == 'conv1'")
    assert (partial["reason"] == "the covariates explain the ratings entirely").all()
    assert partial["estimate"].isna().all()
