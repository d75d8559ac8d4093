"""The pages of models, and what keeps a report of many models small and quick."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis.figures import Plate
from analysis.report import record
from analysis.report.budget import within_budget
from analysis.report.evidence import Evidence, gather
from analysis.report.findings import _largest
from analysis.report.modelpage import model_page
from analysis.report.models import models
from analysis.report.page import Code, Item, ModelPage, Page, Picture, Section, Table, cell, render
from analysis.report.summary import models_in_full, shown_models, summarise
from analysis.report.workers import make_parts
from fluence.store.outcome import Outcome
from fluence.study import Study
from tests.analysis.invented_study import MadeStudy, settings


@pytest.fixture
def evidence(reported: MadeStudy) -> Evidence:
    return gather(reported.study, reported.layout, reported.runs)


def test_the_overview_says_what_is_special_about_each_model(evidence: Evidence) -> None:
    _, table = models(evidence, summarise(evidence)).items
    rows = {row[0].text: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert [row["model"].link for row in rows.values()] == ["model-small", "model-vgg16-5", "model-untrained"]
    assert rows["small"]["differs in"].text == "–"
    assert "architecture vgg16-5" in rows["vgg16-5"]["differs in"].text
    assert rows["untrained"]["differs in"].text == "training.epochs 0"
    assert rows["untrained"]["kind"].text == "vae, untrained"
    assert rows["small"]["runs"].text == "5 of 6 done, 1 diverged"
    deltas = evidence.table("ridge").query("model == 'small' and subset == 'all' and predictors == 'all'")["delta_r2"]
    assert rows["small"]["Δ R²"].key == pytest.approx(deltas.mean())


def test_the_loss_in_the_overview_is_the_mean_of_the_last_epochs_on_held_out_images(evidence: Evidence) -> None:
    _, table = models(evidence, summarise(evidence)).items
    ends = []
    for row in evidence.runs:
        if row.run.model == "small" and row.run.group == "all":
            lines = map(json.loads, evidence.layout.metrics_log(row.run.id).read_text().splitlines())
            ends.append([line["loss"] for line in lines if line["phase"] == "validation"][-1])
    assert table.rows[0][table.columns.index("loss at the end")].key == pytest.approx(sum(ends) / len(ends))


def test_the_settings_of_a_model_can_be_pasted_into_a_study(evidence: Evidence) -> None:
    page = model_page(evidence, summarise(evidence), "vgg16-5")
    (code,) = (item for item in page.items if isinstance(item, Code))
    pasted = Study.model_validate(settings(**yaml.safe_load(code.text)))
    assert pasted.models["vgg16-5"].architecture == "vgg16-5"
    assert pasted.training_of("vgg16-5") == evidence.study.training_of("vgg16-5")


def test_the_runs_of_a_model_say_how_long_they_took_and_how_they_ended(evidence: Evidence, reported: MadeStudy) -> None:
    run = reported.runs[0].run
    facts = {"epochs": 8, "num_training_images": 60, "device": "NVIDIA H200"}
    ended = Outcome("done", "0a1b", "", {}, {"seconds": 12.5, "facts": facts})
    evidence.outcomes = [("train", run.id, ended), ("measure", run.id, replace(ended, provenance={"seconds": 3.0}))]
    items = model_page(evidence, summarise(evidence), "small").items
    (table,) = (item for item in items if isinstance(item, Table) and item.caption == "Every run")
    first = dict(zip(table.columns, (one.text for one in table.rows[0]), strict=True))
    assert (first["training, s"], first["extraction, s"], first["measuring, s"]) == ("12.5", "–", "3")
    assert (first["epochs"], first["images"], first["device"]) == ("8", "60", "NVIDIA H200")
    assert "the loss became NaN" in table.rows[5][-1].text


def test_many_models_have_their_figures_in_their_own_pages(evidence: Evidence) -> None:
    """The chapters show six: the control, and those that add most."""
    changes = settings()
    names = [f"m{number}" for number in range(9)]
    every = {name: {"kind": "vae"} for name in names} | {"untrained": {"kind": "vae", "training": {"epochs": 0}}}
    table = evidence.table("ridge").query("model == 'small'")
    gains = [table.assign(model=name, delta_r2=0.01 * place) for place, name in enumerate(names)]
    evidence.tables["ridge"] = pd.concat(gains, ignore_index=True)
    evidence.study = Study.model_validate(changes | {"models": every})
    assert shown_models(evidence, summarise(evidence)) == ("m4", "m5", "m6", "m7", "m8", "untrained")


def test_of_many_models_only_those_shown_have_every_figure(evidence: Evidence) -> None:
    names = [f"m{number}" for number in range(13)]
    evidence.study = Study.model_validate(settings() | {"models": {name: {"kind": "vae"} for name in names[:12]}})
    assert models_in_full(evidence, summarise(evidence)) == tuple(names[:12])
    evidence.study = Study.model_validate(settings() | {"models": {name: {"kind": "vae"} for name in names}})
    assert models_in_full(evidence, summarise(evidence)) == shown_models(evidence, summarise(evidence))


def test_a_page_without_details_says_how_to_have_them(evidence: Evidence) -> None:
    whole, short = (model_page(evidence, summarise(evidence), "small", in_full=full).items for full in (True, False))
    left_out = figures_of(whole) - figures_of(short)
    assert left_out >= {"inside-maps-small", "inside-units-small", "matrix-small", "latents-small"}
    assert figures_of(short) >= {"loss-small", "reconstructions-rated-small", "correlations-small"}
    assert "fluence report STUDY --all-figures" in str(short[-1])
    assert "--all-figures" not in str(whole[-1])


def figures_of(items: Sequence[Item]) -> set[str]:
    return {item.plate.name for item in items if isinstance(item, Picture)}


def test_a_figure_has_as_many_lines_as_fit_and_names_the_rest() -> None:
    rows = pd.DataFrame({"delta": np.arange(40.0), "control": [True, *[False] * 39]}, index=range(100, 140))
    chosen, words = _largest(rows)
    assert list(chosen["delta"]) == [0.0, *np.arange(17.0, 40.0)]
    assert words == " Of 40 lines the 24 with the largest Δ R²; the table has all."
    assert _largest(rows.head(24))[1] == ""


def picture(name: str, num_bytes: int) -> Picture:
    return Picture(Plate(name, f"Figure {name}.", "", b"x" * num_bytes, 100, 100))


def test_what_does_not_fit_into_the_page_is_led_to() -> None:
    pages = [ModelPage(name, "", [picture(f"{name}1", 40), picture(f"{name}2", 12)]) for name in ("a", "b", "c")]
    page = Page("t", "", "", (), [picture("answer", 60)], (), [Section("s", "S", [picture("s", 40)])], pages)
    cut = within_budget(page, 100 + 135)  # 45 for each model, and what is left over for the next
    shown = [[item for item in one.items if isinstance(item, Picture) and item.held] for one in cut.model_pages]
    assert [[item.plate.name for item in own] for own in shown] == [["a1"], ["b1"], ["c1", "c2"]]
    html = render(cut)
    assert html.count("1 of the 2 figures of this model are not in this file") == 2
    assert 'href="figures/a2.png"' in html
    assert within_budget(page, 256) == replace(page, model_pages=tuple(pages))
    none = within_budget(page, 0)  # the chapters hold theirs all the same
    assert [item.held for one in none.model_pages for item in one.items if isinstance(item, Picture)] == [False] * 6


def test_a_long_table_says_how_much_of_it_is_shown() -> None:
    table = Table("Every r", ("r",), ((cell(0.5),),), file="../r.csv", folded=True, num_all=9000)
    html = render(Page("t", "", "", (), [table], ()))
    assert "Every r (1 of 9,000)" in html
    assert "CSV with all 9,000" in html


@pytest.mark.slow
def test_several_processes_make_the_same_parts(evidence: Evidence) -> None:
    parts = [record.methods, record.failures, partial(model_page, model="untrained")]
    alone = make_parts(parts, evidence, summary := summarise(evidence))
    noted = list(evidence.missing)
    evidence.missing.clear()
    assert make_parts(parts, evidence, summary, num_workers=2) == alone
    assert evidence.missing == noted
