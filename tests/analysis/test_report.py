from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.report import write_report
from analysis.report.caveats import caveats
from analysis.report.evidence import Evidence, gather
from analysis.report.findings import key_items, metrics, regression
from analysis.report.groups import groups
from analysis.report.page import Cell, cell, interval, number, p_value
from analysis.report.summary import expected_sign, metric_name, summarise
from analysis.report.verdict import detectable_r, verdict
from fluence.layout import Layout, Run, RunRow
from fluence.store.files import write_table
from fluence.study import Study
from tests.analysis.invented_study import MadeStudy, settings
from tests.analysis.opened import Links, text_of


@pytest.fixture(scope="module")
def made(reported: MadeStudy) -> MadeStudy:
    return reported


@pytest.fixture(scope="module")
def html(made: MadeStudy) -> str:
    return made.layout.report_page.read_text(encoding="utf-8")


@pytest.fixture
def evidence(made: MadeStudy) -> Evidence:
    return gather(made.study, made.layout, made.runs)


def test_the_page_needs_no_other_file(made: MadeStudy, html: str) -> None:
    links = Links(html)
    assert len(links.sources) > 10
    assert all(source.startswith("data:image/") for source in links.sources)
    for target in links.targets:
        if target.startswith("#"):
            assert target[1:] in links.ids
        elif not target.startswith("data:"):
            assert (made.layout.report / target).resolve().is_file(), target
    assert "http://" not in html.replace("http-equiv", "")
    assert "https://" not in html


def test_the_page_is_small(made: MadeStudy) -> None:
    assert made.layout.report_page.stat().st_size < 10e6


def test_figures_lie_beside_the_page_in_both_formats(made: MadeStudy) -> None:
    files = list((made.layout.report / "figures").iterdir())
    stems = {suffix: {path.stem for path in files if path.suffix == suffix} for suffix in (".png", ".pdf")}
    assert stems[".png"] == stems[".pdf"]
    expected = {"answer", "ridge", "ratings", "covariates", "estimators", "epsilon-sweep", "loss-small", "groups-small"}
    assert expected | {"reconstructions-rated-small", "correlations-partial-1", "distributions-1"} <= stems[".png"]
    expected = {f"{kind}-small" for kind in ("matrix", "joint", "latents")} | {"p-calibration", "power", "ceiling"}
    assert expected | {"seed-spread-1", "ridge-table-1"} <= stems[".png"]


def test_names_from_the_study_are_escaped(html: str) -> None:
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in html
    assert "&lt;img src=x onerror=alert(1)&gt;.jpg" in html
    assert "epoch 3 &amp; &lt;b&gt;stopped&lt;/b&gt;" in html
    assert "<script>alert" not in html
    assert "<img src=x" not in html


def test_groups_are_compared_in_words_and_in_a_table(html: str, evidence: Evidence) -> None:
    text = text_of(html)
    table = evidence.table("interactions_over_seeds")
    tests = int((table["num_seeds"] > 0).sum())
    assert "Differences between groups" in text
    assert f"{tests:,} tests" in text
    assert "../statistics/interactions_over_seeds.csv" in Links(html).targets
    assert "MacKinnon JG" in text


def test_every_chapter_is_there(html: str) -> None:
    ids = Links(html).ids
    chapters = ["metrics", "regression", "groups", "models", "diagnostics", "images", "failures", "methods"]
    chapters += ["provenance", "tables", "model-small", "model-vgg16-5", "model-untrained"]
    assert [name for name in ids if name in chapters] == chapters


def test_runs_without_a_result_are_named_with_their_reason(html: str) -> None:
    text = text_of(html)
    assert "small-white-male-s1: train: the loss became NaN in epoch 3" in text
    assert "vgg16-5-white-male-s0: train: 12 training images, fewer than data.min_group_size = 20" in text


def test_a_mean_that_lacks_a_seed_says_so_wherever_it_stands(evidence: Evidence, made: MadeStudy) -> None:
    grid = evidence.study.grid.model_copy(update={"seeds": (*evidence.study.grid.seeds, 7)})
    early = replace(evidence, study=evidence.study.model_copy(update={"grid": grid}))
    summary = summarise(early)
    assert "; 2 of 3 seeds, from" in verdict(early, summary)[1]
    items = [item for section in (metrics, regression, groups) for item in section(early, summary).items]
    captions = " ".join(map(str, [*items, *key_items(early, summary)]))
    assert captions.count("Seeds are missing: ") >= 5
    assert "(2 of 3)" in captions
    assert "Seeds are missing" not in " ".join(map(str, key_items(evidence, summarise(evidence))))


def test_a_planted_effect_is_found_and_its_numbers_are_given(evidence: Evidence) -> None:
    words = verdict(evidence, summarise(evidence))
    assert words[0].startswith("Yes: the metrics of ")
    assert re.search(r"On 198 images, \S+ adds Δ R² = 0\.\d{3} \(95% interval \[", words[1])
    assert re.search(r"p = 0\.\d+ adjusted over 2 models; 2 seeds, from", words[1])
    assert any("noise floor" in sentence and "noise ceiling" in sentence for sentence in words)
    assert any("negative control" in sentence for sentence in words)
    assert any("exploratory" in sentence for sentence in words)


def test_nothing_found_is_said_plainly(evidence: Evidence) -> None:
    nothing = {"delta_r2": -0.02, "delta_r2_low": -0.05, "delta_r2_high": 0.01, "p_delta": 0.6, "r2_metrics": -0.03}
    evidence.tables["ridge"] = evidence.table("ridge").assign(**nothing)
    table = evidence.table("correlations")
    evidence.tables["correlations"] = table.assign(significant=False)
    words = verdict(evidence, summarise(evidence))
    assert words[0] == "No: the metrics do not demonstrably predict “beauty” beyond the confounds."
    assert "Δ R² = −0.020 (95% interval [−0.050, 0.010], p = 0.60" in words[1]
    assert re.search(r"Effects below R² = 0\.\d{3} could not have been seen here", words[1])
    assert any(sentence.startswith("None of the ") for sentence in words)


def test_a_negative_gain_is_never_a_finding(evidence: Evidence) -> None:
    # Noise predictors cost R², so a shuffled data set can be worse still and p be small.
    evidence.tables["ridge"] = evidence.table("ridge").assign(delta_r2=-0.01, p_delta=0.001)
    assert verdict(evidence, summarise(evidence))[0].startswith("No: ")


def test_an_untrained_network_that_does_as_well_is_in_the_first_sentence(evidence: Evidence) -> None:
    table = evidence.table("ridge")
    evidence.tables["ridge"] = table.assign(delta_r2=table["delta_r2"].where(table["model"] != "untrained", 0.9))
    assert "so do those of an untrained network" in verdict(evidence, summarise(evidence))[0]


def test_p_is_adjusted_over_the_models_by_its_largest_seed(evidence: Evidence) -> None:
    table = evidence.table("ridge")
    p = {("small", 0): 0.001, ("small", 1): 0.04, ("vgg16-5", 0): 0.03, ("vgg16-5", 1): 0.03}
    raw = [p.get((row.model, row.seed), 0.5) for row in table.itertuples()]
    evidence.tables["ridge"] = table.assign(p_delta=raw)
    primary = summarise(evidence).primary({"untrained"}).set_index("model")["p_models"]
    assert primary.to_dict() == pytest.approx({"small": 0.04, "vgg16-5": 0.04})  # BH of .04 and .03


def caveat_text(evidence: Evidence) -> str:
    return "\n".join("\n".join((caveat.text, *caveat.details)) for caveat in caveats(evidence))


def test_what_qualifies_the_results_is_said(evidence: Evidence) -> None:
    text = caveat_text(evidence)
    assert "1 of 18 runs diverged" in text
    assert "1 of 18 runs skipped" in text
    assert "lacks age" in text
    assert "1 image of “jury” could not be used; 198 were.\n<img src=x onerror=alert(1)>.jpg: truncated" in text
    assert "1 image of “jury” was kept with a reservation" in text
    assert "untrained was left untrained on purpose" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"record": {"lpips": {"weights": "random"}}}, "LPIPS error was measured with random weights"),
        (
            {"models": {"m": {"kind": "vae", "reconstruction": [{"loss": "lpips", "weights": "random"}]}}},
            "LPIPS was trained on with random weights in m",
        ),
        (
            {"models": {"m": {"kind": "vae", "norm": "instance", "sparsity": [{"penalty": "kl"}]}}},
            "In m a KL sparsity constraint holds for layers under instance normalisation",
        ),
        ({"grid": {"seeds": [3]}}, "trained once"),
        ({"models": {"small": {"kind": "vae"}}}, "There is no untrained network in this study"),
        (
            {"data": {"datasets": {"d": {"kind": "synthetic"}}, "training": "d", "rated": "d"}},
            "trained on the rated images themselves",
        ),
    ],
)
def test_settings_that_qualify_the_results_are_said(changes: dict[str, object], expected: str, tmp_path: Path) -> None:
    study = Study.model_validate(settings(**changes))
    assert expected in caveat_text(gather(study, Layout(tmp_path), []))


@pytest.mark.parametrize(("training", "severe"), [("jury", True), ("web", False)])
def test_a_model_that_was_taught_the_ratings_is_circular(training: str, severe: bool, tmp_path: Path) -> None:
    changes = settings()
    taught = {"kind": "ar-vae", "attributes": [{"column": "beauty", "unit": 0}]}
    changes |= {
        "models": {"small": {"kind": "vae"}, "taught": taught},
        "data": changes["data"] | {"training": training},
    }
    found = caveats(gather(Study.model_validate(changes), Layout(tmp_path), []))
    (caveat,) = (caveat for caveat in found if "latent unit was made to follow “beauty”" in caveat.text)
    assert caveat.severe is severe
    assert ("taught has seen the ratings" in caveat.text) is severe
    assert ("circular" in caveat.text) is severe
    text = "\n".join(caveat.text for caveat in found)
    assert ("(not on their ratings, but for taught)" in text) is severe


def test_the_verdict_says_that_it_is_circular(evidence: Evidence) -> None:
    taught = {"kind": "ar-vae", "attributes": [{"column": "beauty", "unit": 0}]}
    changes = settings()
    changes |= {"models": changes["models"] | {"small": taught}}  # type: ignore[operator]
    seen = {"data": changes["data"] | {"training": "jury"}}  # type: ignore[operator]
    for more, expected in ((seen, True), ({}, False)):
        evidence.study = Study.model_validate(changes | more)
        assert ("of small is circular" in " ".join(verdict(evidence, summarise(evidence)))) is expected


@pytest.mark.parametrize(("noise", "said"), [(0.01, True), (3.0, False)])
def test_sharpness_that_is_the_gradient_alone_is_named_so(tmp_path: Path, noise: float, said: bool) -> None:
    study = Study.model_validate(settings(record={"sharpness": {}}, grid={"models": ["small"], "seeds": [0]}))
    layout, rng = Layout(tmp_path), np.random.default_rng(0)
    run = Run("small", "all", 0, "small-all-s0-1a2b3c4d")
    gradient = rng.normal(10, 1, 50)
    values = {"gradient_norm": gradient, "sharpness": 0.05 * (gradient + noise * rng.normal(size=50))}
    ids = [f"i{number}" for number in range(50)]
    pieces = [pd.DataFrame({"image_id": ids, "layer": "loss", "metric": m, "value": v}) for m, v in values.items()]
    write_table(layout.metrics(run.id), pd.concat(pieces, ignore_index=True))
    evidence = gather(study, layout, [RunRow(run, "done", "")])
    assert ("Sharpness and the norm of the gradient say the same" in caveat_text(evidence)) == said
    assert metric_name(evidence, "loss", "sharpness") == "sharpness of the loss"
    assert expected_sign("sharpness") == expected_sign("gradient_norm") == -1


def test_lpips_with_random_weights_is_named_so_wherever_it_appears(tmp_path: Path) -> None:
    random, real = (
        gather(Study.model_validate(settings(record={"lpips": {"weights": weights}})), Layout(tmp_path), [])
        for weights in ("random", "imagenet")
    )
    assert metric_name(random, "reconstruction", "lpips_error") == "LPIPS (random weights) reconstruction error"
    assert metric_name(real, "reconstruction", "lpips_error") == "LPIPS reconstruction error"


def test_the_gravest_caveats_come_first(tmp_path: Path) -> None:
    study = Study.model_validate(settings(record={"lpips": {"weights": "random"}}, grid={"seeds": [3]}))
    severe = [caveat.severe for caveat in caveats(gather(study, Layout(tmp_path), []))]
    assert severe == sorted(severe, reverse=True)
    assert severe[0]
    assert not severe[-1]


@pytest.mark.parametrize("runs", [[], [RunRow(Run("small", "all", 0, "small-all-s0-x"), "failed", "out of memory")]])
def test_a_report_of_nothing_says_what_is_missing(runs: list[RunRow], tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_report(Study.model_validate(settings()), layout, runs)
    text = text_of(layout.report_page.read_text(encoding="utf-8"))
    assert "There is no answer yet" in text
    assert "statistics/correlations.parquet: no such file" in text
    assert "packed/jury.h5: no such file" in text
    assert ("out of memory" in text) == bool(runs)
    assert str(tmp_path) not in text


def test_a_damaged_log_costs_only_its_bad_lines(made: MadeStudy, tmp_path: Path) -> None:
    run = made.runs[0].run
    log = Layout(tmp_path).metrics_log(run.id)
    log.parent.mkdir(parents=True)
    whole = made.layout.metrics_log(run.id).read_text(encoding="utf-8")
    log.write_text(whole + '{"epoch": 9, "phase": "tr', encoding="utf-8")
    curves = gather(made.study, Layout(tmp_path), made.runs).curves
    assert sorted(curves["epoch"].unique()) == list(range(1, 9))


def test_figures_of_an_earlier_report_are_removed(made: MadeStudy, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    old = layout.report / "figures" / "loss-gone.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    os.utime(old, (0, 0))
    write_report(made.study, layout, [])
    assert not old.exists()


def test_a_study_without_groups_and_control_is_reported(made: MadeStudy, evidence: Evidence) -> None:
    study = made.study.model_copy(update={"grid": made.study.grid.model_copy(update={"groups": ("all",)})})
    section = groups(replace(evidence, study=study), summarise(evidence))
    assert "No group has a model of its own" in section.items[0].text


def test_numbers_are_written_for_people() -> None:
    assert number(-0.0123) == "−0.012"
    assert number(float("nan")) == "–"
    assert interval(-1, 0.5, 1) == "[−1.0, 0.5]"
    assert interval(float("nan"), 0.5) == "–"
    assert [p_value(p) for p in (0.0001, 0.0123, 0.5, float("nan"))] == ["< 0.001", "0.012", "0.50", "–"]
    assert cell(1200) == Cell("1,200", 1200)
    assert cell(pd.Series([3]).iloc[0]) == Cell("3", 3)
    assert cell(-0.5) == Cell("−0.500", -0.5)
    assert cell(None).text == "–"
    assert cell("a") == Cell("a")


def test_detectable_correlation_against_power_tables() -> None:
    # Cohen 1988, table 3.3.5: n = 84 for r = .30 at two-sided .05 and power .80.
    assert detectable_r(84) == pytest.approx(0.30, abs=0.005)
