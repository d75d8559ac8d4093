from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import figures
from analysis.report import write_report
from analysis.report.compared import Case, case_of, compared_terms
from analysis.report.comparisons import comparisons, mean_and_spread
from analysis.report.evidence import Evidence, compared_strips, gather, run_means
from analysis.report.page import Heading, Picture, Section, Table, Text
from analysis.report.summary import summarise
from fluence.layout import Layout
from fluence.store.activations import Activations
from tests.analysis.invented_study import MadeStudy, blurred, build
from tests.analysis.opened import Links, needs_chromium, probed, text_of
from tests.analysis.test_figures import drawn

VAE = {"kind": "vae"}
CHANGES: dict[str, object] = {
    "models": {
        "small": VAE,
        "vgg16-5": {**VAE, "architecture": "vgg16-5", "reconstruction": [{"loss": "l1"}]},
        "untrained": {**VAE, "training": {"epochs": 0}},
        "sparse": {**VAE, "sparsity": [{"penalty": "kl", "rho": 0.05, "weight": 0.3, "layers": "all but conv1"}]},
        "broken": VAE,
        "late": VAE,
        "idle": VAE,
    },
    "grid": {"models": ["small", "vgg16-5", "untrained", "sparse", "broken", "late"], "seeds": [0, 1]},
    "comparisons": {
        "size": {"question": "Does <b>depth</b> pay?", "models": ["vgg16-5", "small"]},
        "constraint": {"question": "What does sparsity cost?", "models": ["small", "sparse", "untrained"]},
        "trouble": {"question": "What if much is missing?", "models": ["late", "small", "broken", "idle"]},
        "nothing": {"question": "And if all is?", "models": ["broken", "idle"]},
    },
}
ENDS = {
    "sparse-all-s1": ("diverged", "train: the loss became NaN in epoch 3"),
    "broken-all-s0": ("failed", "train: out of memory"),
    "broken-all-s1": ("blocked", "train: a task before it failed"),
    "late-all-s0": ("unfinished", "extract: waits"),
    "late-all-s1": ("unfinished", "extract: waits"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    """An invented study with comparisons in which much went wrong, and its report."""
    made = build(tmp_path_factory.mktemp("compared"), num_images=60, ends=ENDS, **CHANGES)
    write_report(made.study, made.layout, made.runs)
    return made


@pytest.fixture(scope="module")
def evidence(made: MadeStudy) -> Evidence:
    return gather(made.study, made.layout, made.runs)


def case(evidence: Evidence, name: str) -> Case:
    means = run_means(evidence, list(evidence.study.models))
    return case_of(evidence, summarise(evidence), name, means)


@pytest.fixture(scope="module")
def section(evidence: Evidence) -> Section:
    return comparisons(evidence, summarise(evidence))


def changed(evidence: Evidence, name: str, **changes: object) -> list[object]:
    """The items of one comparison, made from other evidence."""
    study = evidence.study
    alone = study.model_copy(update={"comparisons": {name: study.comparisons[name]}})
    other = replace(evidence, study=alone, **changes)
    return part(comparisons(other, summarise(other)), name)


def part(section: Section, name: str) -> list[object]:
    """The items of one comparison."""
    starts = [place for place, item in enumerate(section.items) if isinstance(item, Heading)]
    first = next(place for place in starts if section.items[place].text == name)
    return list(section.items[first : min([place for place in starts if place > first], default=len(section.items))])


def rows_of(items: list[object], start: str) -> dict[str, dict[str, str]]:
    """The table whose caption starts so: model → column → text."""
    table = next(item for item in items if isinstance(item, Table) and item.caption.startswith(start))
    return {row[0].text: dict(zip(table.columns, [c.text for c in row], strict=True)) for row in table.rows}


def caption(items: list[object], end: str) -> str:
    return next(item.plate.caption for item in items if isinstance(item, Picture) and item.plate.name.endswith(end))


def curves(values: dict[tuple[str, str], float]) -> pd.DataFrame:
    """One row per (model, term) of a first epoch."""
    rows = [
        {"model": model, "seed": 0, "run_id": model, "phase": "train", "epoch": 1, "term": term, "value": value}
        for (model, term), value in values.items()
    ]
    return pd.DataFrame(rows).assign(group="all")


# ── The chapter ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_chapter_follows_the_models_and_is_in_the_contents(made: MadeStudy) -> None:
    html = made.layout.report_page.read_text(encoding="utf-8")
    links = Links(html)
    chapters = [name for name in links.ids if name in ("models", "comparisons", "images")]
    assert chapters == ["models", "comparisons", "images"]
    assert links.targets.index("#comparisons") == links.targets.index("#models") + 1
    assert "Does &lt;b&gt;depth&lt;/b&gt; pay?" in html
    chapter = html[html.index('<section id="comparisons">') : html.index('<section id="images">')]
    assert chapter.count("<h3>") == 4


def test_a_study_without_comparisons_has_no_such_chapter(evidence: Evidence) -> None:
    alone = replace(evidence, study=evidence.study.model_copy(update={"comparisons": {}}))
    assert comparisons(alone, summarise(alone)) is None


def test_each_comparison_shows_four_figures_and_three_tables(section: Section) -> None:
    kinds = [type(item) for item in part(section, "size")]
    assert kinds == [Heading, Text, Picture, Picture, Picture, Table, Table, Table, Picture, Text]


def test_a_comparison_of_nothing_says_so_and_still_lists_every_model(section: Section) -> None:
    items = part(section, "nothing")
    missing = [item.text for item in items if isinstance(item, Text) and item.missing]
    assert len(missing) == 4
    for start in ("Loss terms", "Reconstruction errors", "What all metrics add"):
        rows = rows_of(items, start)
        assert list(rows) == ["broken", "idle"]
        assert rows["broken"]["what is lacking"].startswith("seed 0 failed: train: out of memory; seed 1 blocked")


# ── Loss terms ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_terms_of_layers_are_summed_by_hand() -> None:
    table = curves({("a", "sparsity/kl/conv1"): 1.5, ("a", "sparsity/kl/mu"): 2.0, ("a", "sparsity/l1/mu"): 4.0})
    found = compared_terms(table).set_index("term")["value"].to_dict()
    assert found == {"sparsity/kl": 3.5, "sparsity/l1": 4.0}
    assert compared_terms(curves({("a", "attention/l1/conv4"): math.nan}))["value"].isna().all()


def test_shared_terms_go_first_and_the_loss_before_them() -> None:
    table = curves(
        {
            ("a", "kl"): 1,
            ("a", "reconstruction/l2"): 1,
            ("a", "sparsity/kl/conv1"): 1,
            ("a", "loss"): 1,
            ("b", "reconstruction/l1"): 1,
            ("b", "loss"): 1,
            ("b", "kl"): 1,
        }
    )
    order = list(dict.fromkeys(compared_terms(table)["term"]))
    assert order == ["loss", "kl", "reconstruction/l2", "reconstruction/l1", "sparsity/kl"]


def final_values(made: MadeStudy, model: str, term: str) -> list[float]:
    """A term of the last validation of each run that is done, read from the logs alone."""
    values = []
    for row in made.runs:
        if row.run.model == model and row.status == "done":
            log = made.layout.metrics_log(row.run.id).read_text(encoding="utf-8").splitlines()
            last = [entry for entry in map(json.loads, log) if entry["phase"] == "validation"][-1]
            values.append(sum(value for name, value in last.items() if name == term or name.startswith(f"{term}/")))
    return values


def test_final_losses_are_those_of_the_logs(made: MadeStudy, section: Section) -> None:
    rows = rows_of(part(section, "constraint"), "Loss terms on held-out images")
    first, second = final_values(made, "small", "reconstruction/l2")
    mean, spread = (first + second) / 2, abs(first - second) / math.sqrt(2)
    assert rows["small"]["L2 error"] == f"{mean:.1f} ± {spread:.1f}"
    [only] = final_values(made, "sparse", "sparsity/kl")
    assert rows["sparse"]["KL sparsity, sum over layers"] == f"{only:.2f}"
    assert only == pytest.approx(1.08 * (3 + 5) / 8)


def test_a_model_without_a_term_has_a_dash_and_the_term_a_panel(section: Section, evidence: Evidence) -> None:
    rows = rows_of(part(section, "constraint"), "Loss terms")
    assert rows["small"]["KL sparsity, sum over layers"] == "–"
    chosen = case(evidence, "constraint")
    figure = drawn(figures.compared_curves, chosen.curves, chosen.styles)
    lines = {axes.get_title(loc="left"): len(axes.lines) for axes in figure.axes if axes.get_visible()}
    assert lines == {"Loss": 8, "L2 error": 8, "KL divergence": 8, "KL sparsity, sum over layers": 4}


def test_terms_beyond_nine_panels_are_named_in_the_caption(evidence: Evidence) -> None:
    more = pd.concat(
        [
            evidence.curves,
            evidence.curves[evidence.curves["term"] == "kl"].assign(term="reconstruction/lpips_vgg"),
            *(evidence.curves[evidence.curves["term"] == "kl"].assign(term=f"attribute/{n}") for n in range(9)),
        ]
    )
    items = changed(evidence, "constraint", curves=more)
    left_out = ", ".join(f"Disorder along {number}" for number in range(5, 9))
    assert f"In the table only: {left_out} and KL sparsity" in caption(items, "losses")
    assert "Disorder along 8" in rows_of(items, "Loss terms")["small"]


def test_runs_that_broke_off_are_drawn_and_named_but_do_not_enter_the_means(section: Section) -> None:
    items = part(section, "constraint")
    assert "Drawn as far as they came: sparse seed 1 (diverged)." in caption(items, "losses")
    assert rows_of(items, "Loss terms")["sparse"]["epochs"] == "8"


def test_every_term_of_a_log_is_read_and_nothing_else(made: MadeStudy, tmp_path: Path) -> None:
    terms = {"loss", "kl", "codebook", "perplexity", "attention/l1/conv4", "sparsity/kl/mu", "attribute/age"}
    others = {"learning_rate", "gradient_norm", "num_images", "step"}
    log = Layout(tmp_path).metrics_log(made.runs[0].run.id)
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({"epoch": 1, "phase": "train"} | dict.fromkeys(terms | others, 1.0)), encoding="utf-8")
    assert set(gather(made.study, Layout(tmp_path), made.runs[:1]).curves["term"]) == terms


# ── Reconstructions, metrics, ratings ────────────────────────────────────────────────────────────────────────────


def test_reconstructions_are_of_the_same_images(made: MadeStudy, evidence: Evidence) -> None:
    strips = compared_strips(evidence, ["vgg16-5", "broken", "small"], 8)
    assert [strip.label for strip in strips] == ["original", "vgg16-5", "small"]
    assert all(strip.images.shape == (8, 24, 24, 3) for strip in strips)
    for strip in strips[1:]:
        np.testing.assert_array_equal(strip.images, blurred(strips[0].images))
    orders = []
    for model in ("vgg16-5", "small"):
        run = next(row.run for row in made.runs if row.run.model == model)
        with Activations(made.layout.activations(run.id)) as activations:
            orders.append(list(activations.samples("rated")[0]))
    assert orders[0] != orders[1]  # or matching by position would do as well


def test_errors_and_sparsity_against_a_slow_reference(made: MadeStudy, section: Section) -> None:
    errors, sparsity, where = [], [], ("reconstruction", "l1_error")
    for row in made.runs:
        if row.run.model == "small":
            table = pd.read_parquet(made.layout.metrics(row.run.id))
            triples = zip(table["layer"], table["metric"], table["value"], strict=True)
            errors.append(np.mean([v for layer, metric, v in triples if (layer, metric) == where]))
            layers = [
                table[(table["layer"] == name) & (table["metric"] == "gini")] for name in ("conv1", "conv2", "mu")
            ]
            sparsity.append(np.mean([layer["value"].mean() for layer in layers]))
    row = rows_of(part(section, "size"), "Reconstruction errors")["small"]
    for text, values in ((row["L1"], errors), (row["Gini"], sparsity)):
        mean, spread = map(float, text.split(" ± "))
        assert mean == pytest.approx(np.mean(values), abs=5.1e-4)
        assert spread == pytest.approx(np.std(values, ddof=1), abs=5.1e-4)
        assert spread > 0
    assert {"L2", "1 − SSIM", "Lε (q = 0.5)"} <= set(row)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1, 3], "2.00 ± 1.41"),
        ([71.43, 71.51], "71.47 ± 0.06"),  # a spread that is there is never printed as zero
        ([-1234.5], "−1234"),
        ([0.2, 0.2], "0.200 ± 0.000"),
        ([0.5, math.nan], "0.500"),
        ([1e-9, 2e-9], "0.000000 ± 0.000000"),
        ([], "–"),
    ],
)
def test_digits_follow_the_mean_and_its_spread(values: list[float], text: str) -> None:
    assert mean_and_spread(pd.Series(values, dtype=float)).text == text


def test_gains_are_those_of_the_statistics(section: Section, evidence: Evidence) -> None:
    table = evidence.table("ridge")
    own = table[(table["model"] == "small") & (table["predictors"] == "all") & (table["subset"] == "all")]
    row = rows_of(part(section, "size"), "What all metrics add")["small"]
    assert row["Δ R²"] == f"{own['delta_r2'].mean():.3f}".replace("-", "−")
    assert row["seeds"] == "2"
    assert row["strongest partial correlation"].startswith("r = ")
    control = rows_of(part(section, "constraint"), "What all metrics add")["untrained"]
    assert control["p adjusted"] == "–"


def test_what_a_model_lacks_is_in_its_row_and_in_the_captions(section: Section) -> None:
    items = part(section, "trouble")
    for start in ("Loss terms", "Reconstruction errors", "What all metrics add"):
        rows = rows_of(items, start)
        assert list(rows) == ["late", "small", "broken", "idle"]
        lacking = {model: row["what is lacking"] for model, row in rows.items()}
        assert lacking["small"] == ""
        assert lacking["late"] == "seed 0 unfinished: extract: waits; seed 1 unfinished: extract: waits"
        assert "seed 0 failed: train: out of memory" in lacking["broken"]
        assert lacking["idle"] == "no run on all groups together is planned"
        assert rows["late"]["seeds"] == "0 of 2"
        assert rows["broken"][list(rows["broken"])[3]] == "–"
    assert "Without a training log: broken and idle; the tables say why." in caption(items, "losses")
    assert "Without reconstructions: late, broken and idle; the tables say why." in caption(items, "reconstructions")
    assert "Without metrics: late, broken and idle; the tables say why." in caption(items, "layers")


def test_metrics_that_cannot_be_read_are_named(made: MadeStudy, evidence: Evidence) -> None:
    broken = case(evidence, "size")
    broken = replace(broken, means=broken.means[(broken.means["model"] != "small") | (broken.means["seed"] != 1)])
    assert broken.lacking("small") == "seed 1: its metrics cannot be read"


def test_means_that_lack_a_seed_say_so(section: Section) -> None:
    items = part(section, "constraint")
    said = "Seeds are missing: sparse (1 of 2); these means may change."
    assert [said in item.caption for item in items if isinstance(item, Table)] == [True] * 5
    assert said in caption(items, "constraint-layers")
    assert "Seeds are missing" not in " ".join(map(str, part(section, "size")))


def test_a_constraint_has_a_table_of_metrics_by_place_and_one_by_layer(section: Section, evidence: Evidence) -> None:
    by_place, by_layer = [item for item in part(section, "constraint") if "Metric ×" in getattr(item, "caption", "")]
    assert by_place.columns == ("metrics", "number", "small (none)", "sparse (all but conv1)")
    assert "Constraint: kl, rho 0.05, weight 0.3" in by_place.caption
    ridge = evidence.table("ridge_over_seeds").query("predictors == 'gini'").set_index("model")
    for number, column in (("R²", "r2_metrics_mean"), ("Δ R²", "delta_r2_mean")):
        row = next(row for row in by_place.rows if [one.text for one in row[:2]] == ["Gini", number])
        assert [one.key for one in row[2:]] == [ridge.loc[name, column] for name in ("small", "sparse")]
    assert by_layer.columns[2:] == by_place.columns[2:]
    found = evidence.table("correlations_over_seeds").query("estimator == 'partial' and metric == 'gini'")
    found = found.set_index(["model", "layer"])["estimate_mean"]
    row = next(row for row in by_layer.rows if [one.text for one in row[:2]] == ["Gini of mu", "partial"])
    assert [one.key for one in row[2:]] == [found["small", "mu"], found["sparse", "mu"]]
    assert not any("Metric ×" in getattr(item, "caption", "") for item in part(section, "size"))


def test_no_difference_is_called_significant(section: Section, evidence: Evidence) -> None:
    words = part(section, "constraint")[-1].text
    assert "means over seeds (one seed only of sparse); none was tested" in words
    assert "exploratory" in words
    once = [row for row in evidence.runs if row.run.seed == 0]
    assert "No model has more than one seed" in changed(evidence, "size", runs=once)[-1].text


# ── Metrics by layer ─────────────────────────────────────────────────────────────────────────────────────────────


def test_layers_are_named_if_the_models_share_them(evidence: Evidence) -> None:
    rows, layers = case(evidence, "constraint").by_layer("gini")
    assert layers == ("conv1", "conv2", "mu")
    assert rows.loc[rows["model"] == "sparse", "place"].tolist() == [0, 1, 2]


def test_other_layers_are_placed_by_relative_depth(evidence: Evidence, section: Section) -> None:
    rows, layers = case(evidence, "size").by_layer("gini")
    assert layers == ()
    assert rows.loc[rows["model"] == "small", "place"].tolist() == [0, 0.5, 1]
    assert rows.loc[rows["model"] == "vgg16-5", "place"].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert "placed by their relative depth" in caption(part(section, "size"), "layers")


def test_gates_are_left_out_and_seeds_spread_by_hand(evidence: Evidence) -> None:
    rows = [
        ("small", seed, layer, "gini", value + seed)
        for seed in (0, 1)
        for layer, value in (("conv1", 0.5), ("conv1.channels", 9.0), ("mu", 0.25), ("reconstruction", 7.0))
    ]
    means = pd.DataFrame(rows, columns=["model", "seed", "layer", "metric", "value"])
    found, layers = replace(case(evidence, "size"), means=means).by_layer("gini")
    assert layers == ("conv1", "mu")
    assert found[["mean", "low", "high"]].to_numpy().tolist() == [[1.0, 0.5, 1.5], [0.75, 0.25, 1.25]]


# ── In a browser ─────────────────────────────────────────────────────────────────────────────────────────────────

LOOK = """
  const images = [...document.querySelectorAll("#comparisons figure img")];
  tell("broken", await broken(images));
  tell("wide", images.filter((image) => image.width > 1000).length);
  const heading = document.querySelector("#comparisons table.sortable thead th"); heading.click();
  const rows = [...heading.closest("table").tBodies[0].rows].map((row) => row.cells[0].textContent);
  tell("rows", rows.join(" "));
"""


@needs_chromium
def test_a_browser_shows_the_comparisons(made: MadeStudy, tmp_path: Path) -> None:
    html = made.layout.report_page.read_text(encoding="utf-8")
    told, complaints = probed(html, LOOK, tmp_path)
    assert complaints == ""
    assert told == {"broken": "0 of 15", "wide": "0", "rows": "small vgg16-5"}  # the study says vgg16-5 first
    assert "seed 1 diverged: train: the loss became NaN in epoch 3" in text_of(html)


def test_every_table_that_is_linked_exists(made: MadeStudy) -> None:
    links = Links(made.layout.report_page.read_text(encoding="utf-8"))
    tables = {target for target in links.targets if ".csv" in target}
    assert "../statistics/ridge_over_seeds.csv" in tables
    for target in tables:
        assert (made.layout.report_page.parent / target).resolve().is_file(), target
