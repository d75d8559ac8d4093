"""Typicality from a study's settings to its report, on an invented study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.report import write_report
from analysis.report.evidence import gather
from analysis.report.summary import metric_name, untrained_networks
from analysis.tables import asked_typicality
from analysis.typicality import plan_fits
from fluence.errors import ArtifactError
from fluence.layout import Layout
from fluence.store.activations import Activations
from fluence.store.files import read_table
from fluence.study import Study
from tests.analysis.invented_study import MadeStudy, build, settings


def with_typicality(**typicality: object) -> dict[str, object]:
    statistics = {"permutations": 99, "bootstrap": 99, "ridge": {"folds": 3, "repeats": 1}}
    return {
        "analysis": statistics | {"typicality": {"components": 3, "folds": 4} | typicality},
        "models": {"small": {"kind": "vae"}},
        "grid": {"models": ["small"], "seeds": [0]},
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    return build(tmp_path_factory.mktemp("study"), ends={}, **with_typicality(groups=True))


def test_every_layer_and_image_has_it(made: MadeStudy) -> None:
    metrics = read_table(made.layout.metrics(made.runs[0].run.id))
    typical = metrics[metrics["metric"].str.startswith("typicality_")]
    assert np.isfinite(typical["value"]).all()
    counts = typical.groupby(["layer", "metric"]).size()
    assert set(counts) == {metrics["image_id"].nunique()}
    assert set(typical["metric"].str.split("_").str[1]) == {"gaussian", "residual", "ppca"}


def test_it_is_correlated_with_the_ratings_and_a_set_of_predictors(made: MadeStudy) -> None:
    correlations = pd.read_csv(made.layout.statistics / "correlations.csv")
    typical = correlations[correlations["metric"].str.startswith("typicality_")]
    assert {"typicality_ppca", "typicality_ppca_group", "typicality_ppca_matched"} <= set(typical["metric"])
    assert typical["estimate"].notna().all()
    ridge = pd.read_csv(made.layout.statistics / "ridge.csv").set_index(["subset", "predictors"])
    num_layers = metrics_layers(made)
    assert ridge.loc[("all", "typicality"), "num_predictors"] == 9 * num_layers


def metrics_layers(made: MadeStudy) -> int:
    with Activations(made.layout.activations(made.runs[0].run.id)) as file:
        return len(file.layers)


def test_the_report_names_it(made: MadeStudy) -> None:
    write_report(made.study, made.layout, made.runs)
    page = made.layout.report_page.read_text(encoding="utf-8")
    assert "typicality (PPCA, own group)" in page
    assert "positive values for Gini and typicality, negative ones for all others" in page
    assert "fitted to the images of the other folds (4 folds" in page
    evidence = gather(made.study, made.layout, made.runs)
    assert metric_name(evidence, "conv1", "typicality_residual_matched") == ("typicality (residual, matched) of conv1")


def test_images_of_one_person_and_their_groups_come_from_the_packed_table(made: MadeStudy) -> None:
    asked = asked_typicality(made.study, made.layout)
    assert asked is not None
    groups = asked.images["group"]
    assert set(groups.str.split("-").str[0]) == {"asian", "black", "white"}
    with Activations(made.layout.activations(made.runs[0].run.id)) as file:
        fits = plan_fits(file, asked)
        judged = [set(groups.loc[file.image_ids[fit.judged]]) for fit in fits if fit.kind == "_group"]
    assert {len(each) for each in judged} == {1}


def test_nothing_is_asked_by_default(made: MadeStudy) -> None:
    assert asked_typicality(Study.model_validate(settings()), made.layout) is None


def test_images_that_are_no_longer_packed_are_one_line(made: MadeStudy, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"jury\.h5: no such file"):
        asked_typicality(made.study, Layout(tmp_path))


def test_a_network_with_the_weights_of_others_is_no_negative_control(tmp_path: Path) -> None:
    models = {
        "untrained": {"kind": "vae", "training": {"epochs": 0}},
        "imagenet": {"kind": "ae", "architecture": "vgg16-5", "pretrained": "imagenet", "training": {"epochs": 0}},
    }
    study = Study.model_validate(settings(models=models))
    assert untrained_networks(gather(study, Layout(tmp_path), [])) == {"untrained"}
