from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from analysis.cells import predictor_sets
from analysis.measures import SAID
from analysis.report.summary import METRIC_NAMES, SIGNS, expected_sign
from analysis.sparsity import METRICS
from analysis.tables import (
    clusters,
    covariate_design,
    feature_matrix,
    grouped_images,
    load_metrics,
    rated_images,
    sweep_matrix,
)
from fluence.errors import ArtifactError, StudyError
from fluence.store.files import write_table
from fluence.study import Metric

GROUP_BY = ("ethnicity", "sex")


def manifest() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": ["a", "b", "c", "d", "e"],
            "ethnicity": ["Asian", "Asian", "Black", "", "Black"],
            "sex": ["F", "M", "F", "F", "F"],
            "beauty": [1.0, 2.0, np.nan, 4.0, 5.0],
            "age": [20.0, np.nan, 40.0, 50.0, 31.0],
            "camera": ["x", "y", "x", "x", "x"],
            "flat": 3.0,
        }
    )


def long_metrics(ids: list[str]) -> pd.DataFrame:
    rows = [
        (image, layer, metric, 100.0 * position + 10 * number + column)
        for position, image in enumerate(ids)
        for number, layer in enumerate(["conv2", "conv1"])
        for column, metric in enumerate(["gini", "l_eps_count_q50", "l_eps_fraction_q50", "l_eps_fraction_q25"])
    ]
    rows += [(image, "reconstruction", "l1_error", float(position)) for position, image in enumerate(ids)]
    return pd.DataFrame(rows, columns=["image_id", "layer", "metric", "value"])


def test_rated_images_have_a_score_a_group_and_a_cluster() -> None:
    rated = rated_images(manifest(), "beauty", GROUP_BY)
    assert rated["score"].to_dict() == {"a": 1.0, "b": 2.0, "d": 4.0, "e": 5.0}
    assert rated["group"].tolist() == ["asian-f", "asian-m", "unknown", "black-f"]
    assert rated["cluster"].nunique() == 4


def test_ratings_read_as_text_are_numbers() -> None:
    table = manifest().assign(beauty=["1", "", "3.5", "4", "2"])
    assert rated_images(table, "beauty", GROUP_BY)["score"].tolist() == [1.0, 3.5, 4.0, 2.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beauty": np.nan}, "no image has a rating in column 'beauty'"),
        ({"beauty": 3.0}, "all 5 ratings in column 'beauty' are equal"),
        ({"beauty": ["1", "2", "nice", "4", "5"]}, "1 ratings .* are not numbers, first 'nice' of image c"),
    ],
)
def test_useless_ratings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        rated_images(manifest().assign(**change), "beauty", GROUP_BY)


def test_missing_columns_are_named() -> None:
    with pytest.raises(StudyError, match=r"data\.score: the rated images have no column 'charm'; there are: image_id"):
        rated_images(manifest(), "charm", GROUP_BY)
    with pytest.raises(StudyError, match=r"data\.group_by: .* no column 'tribe'"):
        rated_images(manifest(), "beauty", ("tribe",))


def test_clusters_follow_chains_of_persons_and_duplicates() -> None:
    table = pd.DataFrame(
        {
            "image_id": ["a", "b", "c", "d", "e", "f"],
            "person_id": ["p", "", "p", "q", None, ""],
            "duplicate_of": ["", "c", "", "", "gone", "gone"],
        }
    )
    found = clusters(table)
    assert found[0] == found[1] == found[2]
    assert found[4] == found[5]
    assert len(set(found)) == 3
    assert len(set(clusters(table[["image_id"]]))) == 6


def test_metrics_are_joined_by_id_whatever_their_order(tmp_path: Path) -> None:
    """Mistake: rows joined to ratings by directory order."""
    shuffled = long_metrics(["a", "b", "c"]).sample(frac=1, random_state=0)
    write_table(tmp_path / "m.parquet", shuffled)
    features = feature_matrix(load_metrics(tmp_path / "m.parquet", ["c", "a"]), 0.5).loc[["c", "a"]]
    assert features["conv2", "gini"].tolist() == [200.0, 0.0]
    assert features["conv1", "l_eps_fraction_q50"].tolist() == [212.0, 12.0]
    assert features["reconstruction", "l1_error"].tolist() == [2.0, 0.0]


def test_feature_matrix_keeps_the_networks_order_and_only_what_is_tested(tmp_path: Path) -> None:
    metrics = long_metrics(["a", "b"])
    assert feature_matrix(metrics, 0.5).columns.tolist() == [
        ("conv2", "gini"),
        ("conv2", "l_eps_fraction_q50"),
        ("conv1", "gini"),
        ("conv1", "l_eps_fraction_q50"),
        ("reconstruction", "l1_error"),
    ]
    assert [metric for _, metric in sweep_matrix(metrics)] == ["l_eps_fraction_q50", "l_eps_fraction_q25"] * 2


def test_the_mean_and_entropy_of_gates_are_tested_and_are_a_family_of_their_own() -> None:
    """e^H is a function of H, and would only enlarge the family of tests."""
    rows = [(image, layer, metric, 1.0) for image in "ab" for layer, metric in (
        ("conv1", "gini"), ("conv1.channels", "gini"), ("conv1.channels", "gate_l1"),
        ("conv1.channels", "gate_entropy"), ("conv1.channels", "gate_effective"),
    )]  # fmt: skip
    features = feature_matrix(pd.DataFrame(rows, columns=["image_id", "layer", "metric", "value"]), 0.5)
    gates = [("conv1.channels", "gate_l1"), ("conv1.channels", "gate_entropy")]
    assert features.columns.tolist() == [("conv1", "gini"), ("conv1.channels", "gini"), *gates]
    sets = predictor_sets(features, 0.5)
    assert list(sets) == ["gini", "gates", "all"]
    assert sets["gates"].columns.tolist() == gates
    assert [expected_sign(metric) for metric in ("gini", "gate_l1", "gate_entropy")] == [1, -1, -1]


def test_typicality_is_tested_and_is_a_family_that_should_be_positive() -> None:
    names = ["typicality_ppca", "typicality_gaussian_k10_group"]
    rows = [(image, "conv1", metric, 1.0) for image in "ab" for metric in ("gini", *names)]
    features = feature_matrix(pd.DataFrame(rows, columns=["image_id", "layer", "metric", "value"]), 0.5)
    assert predictor_sets(features, 0.5)["typicality"].columns.tolist() == [("conv1", name) for name in names]
    assert [expected_sign(name) for name in names] == [1, 1]


def test_all_images_are_grouped_also_those_without_a_rating() -> None:
    table = pd.DataFrame(
        {
            "image_id": ["b", "a", "c"],
            "sex": ["F", "M", ""],
            "beauty": [1.0, np.nan, 2.0],
            "duplicate_of": ["", "b", ""],
        }
    )
    grouped = grouped_images(table, ["sex"])
    assert grouped["group"].to_dict() == {"b": "f", "a": "m", "c": "unknown"}
    assert grouped.loc["a", "cluster"] == grouped.loc["b", "cluster"] != grouped.loc["c", "cluster"]
    assert rated_images(table, "beauty", ["sex"]).index.tolist() == ["b", "c"]


def test_missing_images_are_named_never_replaced(tmp_path: Path) -> None:
    write_table(tmp_path / "m.parquet", long_metrics(["a", "b"]))
    with pytest.raises(ArtifactError, match=r"2 of 3 rated images are missing: x, y; extract"):
        load_metrics(tmp_path / "m.parquet", ["x", "a", "y"])


def test_doubled_and_foreign_tables_are_refused(tmp_path: Path) -> None:
    metrics = long_metrics(["a", "b"])
    write_table(tmp_path / "twice.parquet", pd.concat([metrics, metrics.iloc[:1]]))
    with pytest.raises(ArtifactError, match="1 values occur twice, first for image a"):
        load_metrics(tmp_path / "twice.parquet", ["a", "b"])
    write_table(tmp_path / "other.parquet", manifest())
    with pytest.raises(ArtifactError, match="no table of metrics"):
        load_metrics(tmp_path / "other.parquet", ["a"])


def test_covariates_become_dummies_and_standard_numbers() -> None:
    rated = rated_images(manifest(), "beauty", GROUP_BY)
    design = covariate_design(rated, ("group", "camera", "age", "flat", "luminance"))
    assert design.used == ("group", "camera", "age")
    assert design.missing == ("luminance",)
    assert design.constant == ("flat",)
    assert design.filled == ("age",)
    columns = ["group_asian-m", "group_black-f", "group_unknown", "camera_y", "age", "age_missing"]
    assert design.matrix.columns.tolist() == columns
    assert design.matrix["age"].mean() == pytest.approx(0)
    assert design.matrix["age_missing"].tolist() == [0, 1, 0, 0]
    assert design.matrix["group_unknown"].tolist() == [0, 0, 1, 0]


def test_a_design_without_columns_keeps_its_images() -> None:
    rated = rated_images(manifest(), "beauty", GROUP_BY)
    assert covariate_design(rated.iloc[:1], ("group", "flat")).matrix.shape == (1, 0)


def test_the_study_chooses_the_metrics_that_enter_and_each_is_a_family() -> None:
    names = ("gini", "hoyer", "l0", "gini_map", "l_eps_fraction_q50", "l_eps_count_q50", "gate_l1")
    rows = [(image, "conv1", metric, 1.0) for image in "ab" for metric in names]
    rows += [(image, "reconstruction", "l1_error", 2.0) for image in "ab"]
    metrics = pd.DataFrame(rows, columns=["image_id", "layer", "metric", "value"])
    chosen = ("hoyer", "l_eps", "gini_map")
    features = feature_matrix(metrics, 0.5, chosen)
    assert [metric for _, metric in features.columns] == [
        "hoyer", "gini_map", "l_eps_fraction_q50", "gate_l1", "l1_error",
    ]  # fmt: skip
    sets = predictor_sets(features, 0.5, chosen)
    assert list(sets) == ["hoyer", "l_eps", "gini_map", "gates", "reconstruction", "all"]
    assert sets["hoyer"].columns.tolist() == [("conv1", "hoyer")]
    assert [expected_sign(name) for name in chosen] == [1, -1, 1]


def test_every_metric_of_a_study_is_computed_has_a_name_a_sign_and_a_sentence() -> None:
    known = set(get_args(Metric))
    assert set(METRICS) | {"l_eps", "gini_map", "gini_position"} == known
    assert set(METRIC_NAMES) == known
    assert set(SIGNS) | {"l_eps"} == known
    assert set(SAID) == known
