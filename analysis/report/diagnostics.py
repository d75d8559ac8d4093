"""The chapter that tells whether the tests can be trusted: p-values, power, trainings, raters; and R² as a table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis import figures
from analysis.report.evidence import Evidence
from analysis.report.page import Item, Section, Text, counted, drawn, interval, number
from analysis.report.summary import ALL_IMAGES, GENERAL, PREDICTOR_NAMES, Summary, controls, incomplete, labelled
from analysis.statistics import smallest_detectable_r2

POWER = 0.8
_NUM_PREDICTORS = (1, 10, 50)
_MOST_LINES = 40
_MOST_MODELS = 7  # as many as there are markers
_NOTHING = "No regression could be computed."


def diagnostics(evidence: Evidence, summary: Summary) -> Section:
    """Calibration, spread over the seeds, power, noise ceiling."""
    items = [
        *_calibration(evidence),
        *_seeds(evidence, summary),
        *_power(evidence),  # as narrow as the next, so they stand side by side
        *_ceiling(evidence, summary),
    ]
    return Section("diagnostics", "Diagnostics", items)


# ── p ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _calibration(evidence: Evidence) -> Iterator[Item]:
    table, exchanged = evidence.table("correlations"), evidence.table("exchanged_tests")
    tests = table.dropna(subset=["p_parametric", "p_permutation"]) if len(table) else table
    if tests.empty or exchanged.empty:
        yield Text("There are no tests whose p could be examined.", missing=True)
        return
    rates = exchanged.groupby(["estimator", "alpha"], sort=False)["rate"].mean().reset_index()
    at = rates[np.isclose(rates["alpha"], 0.05)].set_index("estimator")["rate"]
    found = ", ".join(f"{rate:.1%} ({name})" for name, rate in at.items())
    yield drawn(
        evidence.layout,
        "p-calibration",
        "Whether p means what it says.",
        f"Left: the two kinds of p of {counted(len(tests), 'test')}; that by permutation is at least "
        f"{1 / (1 + evidence.study.analysis.permutations):.2g}. Middle: t tests on ratings that were exchanged "
        f"within groups; at α = .05 they call {found} significant. What lies above the line is what a metric knows of "
        "the groups' mean ratings: hence the permutations within groups, and the partial correlations. Right: all "
        "tests in order; on the line if nothing is there.",
        figures.p_calibration,
        tests.assign(control=tests["model"].isin(controls(evidence))),
        rates,
    )


# ── Power ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _power(evidence: Evidence) -> Iterator[Item]:
    coverage, ridge = evidence.table("coverage"), evidence.table("ridge")
    if coverage.empty:
        yield Text("No set of images was analysed, so there is nothing to say on power.", missing=True)
        return
    alpha = 1 - evidence.study.analysis.confidence
    cells = power_of_cells(coverage, ridge)
    most = 2 * max(500, int(cells["n"].max()) if len(cells) else 0)
    sizes = np.unique(np.geomspace(20, most, 24).astype(int))
    rows = [(k, n, smallest_detectable_r2(int(n), k, alpha, POWER)) for k in _NUM_PREDICTORS for n in sizes]
    yield drawn(
        evidence.layout,
        "power",
        "How large an effect has to be.",
        f"The smallest population R² that an F test of as many predictors finds in {POWER:.0%} of samples, at "
        f"α = {alpha:.2g}, by the number of images. Marks: the sets of images of this study. What lies below the line "
        "may be there and not be seen.",
        figures.power,
        pd.DataFrame(rows, columns=["num_predictors", "n", "r2"]).dropna(),
        cells,
        f"power {POWER:g}, α = {alpha:.2g}, before any correction",
    )


def power_of_cells(coverage: pd.DataFrame, ridge: pd.DataFrame) -> pd.DataFrame:
    """Where the sets of images of a study stand: label, n, r2; for one metric and for all of them."""
    pieces = [coverage.assign(label="this study, one metric")]
    if len(ridge):
        pieces.append(ridge[ridge["predictors"] == "all"].assign(label="this study, all metrics"))
    columns = {"label": "label", "n": "n", "smallest_detectable_r2": "r2"}
    cells = pd.concat([piece[list(columns)].rename(columns=columns) for piece in pieces], ignore_index=True)
    return cells.dropna().drop_duplicates().reset_index(drop=True)


# ── Trainings ────────────────────────────────────────────────────────────────────────────────────────────────────


def _seeds(evidence: Evidence, summary: Summary) -> Iterator[Item]:
    table = evidence.table("ridge")
    if table.empty or summary.general_ridge().empty:
        yield Text(_NOTHING, missing=True)
        return
    rows = table[(table["scorer"] == GENERAL) & (table["subset"] == ALL_IMAGES)].dropna(subset=["delta_r2"])
    counts = rows.groupby("model")["seed"].nunique()
    if rows.empty or counts.max() < 2:
        yield Text("No model was trained with two seeds, so the spread over trainings is unknown.", missing=True)
        return
    rows = rows.assign(delta=rows["delta_r2"], label=[labelled(evidence, model) for model in rows["model"]])
    families = _families(rows)
    models = [model for model in evidence.study.model_names if model in counts]
    for place, chunk in enumerate(_chunks(models), start=1):
        own = rows[rows["model"].isin(chunk)]
        done = summary.general_ridge()
        lacking = incomplete(evidence, done[done["model"].isin(chunk)])
        yield drawn(
            evidence.layout,
            f"seed-spread-{place}",
            "How much depends on the training.",
            "Δ R² of each training (circle) and their mean (line), general models on all rated images. Models whose "
            f"circles overlap are not told apart by one training each.{lacking}",
            figures.seed_spread,
            own,
            families,
            figures.colour_of(evidence.study.model_names),
        )


def _families(rows: pd.DataFrame) -> dict[str, str]:
    """The families of metrics that there are, all together first, and their names."""
    present = set(rows["predictors"])
    return {key: name for key, name in PREDICTOR_NAMES.items() if key in present} | {
        key: key for key in present - set(PREDICTOR_NAMES)
    }


def _chunks(models: list[str]) -> list[list[str]]:
    return [models[start : start + _MOST_LINES] for start in range(0, len(models), _MOST_LINES)]


# ── Raters ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _ceiling(evidence: Evidence, summary: Summary) -> Iterator[Item]:
    ceilings, table = evidence.table("noise_ceiling"), summary.ridge
    known = ceilings.dropna(subset=["ceiling_r2"]) if len(ceilings) else ceilings
    if known.empty:
        reasons = sorted({reason for reason in ceilings["reason"] if reason}) if len(ceilings) else []
        yield Text(f"No noise ceiling: {'; '.join(reasons) or 'its table is missing'}.", missing=True)
        return
    rows = table[(table["scorer"] == GENERAL) & (table["predictors"] == "all")] if len(table) else table
    rows = rows.dropna(subset=["full"]) if len(rows) else rows
    if rows.empty:
        yield Text(f"{_NOTHING} There is nothing to set below the noise ceiling.", missing=True)
        return
    best = rows[rows["subset"] == ALL_IMAGES].nlargest(_MOST_MODELS, "full")["model"]
    shown = [model for model in evidence.study.model_names if model in set(best)]
    rows = rows[rows["model"].isin(shown)]
    of_shown = known[known["subset"].isin(rows["subset"])]
    some = "" if len(shown) == len(set(table["model"])) else f" The {len(shown)} models with the largest R²."
    named = {ALL_IMAGES: "all images"}
    yield drawn(
        evidence.layout,
        "ceiling",
        "What the raters leave to explain.",
        "R² of the confounds and all metrics of the general models, out of fold, for each set of rated images; lines: "
        "the R² that the raters' disagreement leaves to any model. Means over the seeds."
        f"{some}{incomplete(evidence, rows)}",
        figures.noise_ceiling,
        rows.assign(subset=rows["subset"].replace(named)),
        of_shown.assign(subset=of_shown["subset"].replace(named), ceiling=of_shown["ceiling_r2"]),
        figures.colour_of(evidence.study.model_names),
    )


# ── R² as a table ────────────────────────────────────────────────────────────────────────────────────────────────


def ridge_tables(evidence: Evidence, summary: Summary) -> Iterator[Item]:
    """R² and Δ R² of every model and family of metrics, printed in a table that is coloured by them."""
    table = evidence.table("ridge")
    if table.empty or summary.general_ridge().empty:
        return
    rows = table[(table["scorer"] == GENERAL) & (table["subset"] == ALL_IMAGES)]
    if rows["r2_metrics"].isna().all():
        return  # the chapter has said so
    level = 1 - evidence.study.analysis.confidence
    models = [model for model in evidence.study.model_names if model in set(rows["model"])]
    lacking = incomplete(evidence, summary.general_ridge())
    baseline = rows.groupby("model")["r2_baseline"].mean()
    low, high = number(baseline.min()), number(baseline.max())
    confounds = f"R² {low}" if low == high else f"R² {interval(baseline.min(), baseline.max())}"
    for place, chunk in enumerate(_chunks(models), start=1):
        own = rows[rows["model"].isin(chunk)]
        panels = {title: heat(own, column, chunk) for title, (column, _) in _PANELS.items()}
        stars = {title: heat(own, p, chunk, "max") <= level for title, (_, p) in _PANELS.items()}
        for tables in (panels, stars):
            for one in tables.values():
                one.index = [labelled(evidence, model) for model in chunk]
        yield drawn(
            evidence.layout,
            f"ridge-table-{place}",
            "R² of ridge regression by model and family of metrics.",
            "Means over the seeds, out of fold, all rated images. Left: the metrics alone, which also explain what "
            f"they share with the confounds ({confounds} by themselves). Right: what they add to these. A star: p ≤ "
            f"{level:.2g} in every seed, by permutation within groups, adjusted over the families of the model (not "
            f"over models). All but “all metrics” on the right is exploratory.{lacking}",
            figures.ridge_heat,
            panels,
            stars,
        )


_PANELS = {
    "R² of the metrics alone": ("r2_metrics", "p_metrics_bh"),
    "Δ R² over the confounds": ("delta_r2", "p_delta_bh"),
}


def heat(rows: pd.DataFrame, column: str, models: list[str], how: str = "mean") -> pd.DataFrame:
    """A column of the regressions as model × family (by its name), put together over the seeds."""
    wide = rows.pivot_table(index="model", columns="predictors", values=column, aggfunc=how, dropna=False, sort=False)
    families = _families(rows)
    return wide.reindex(index=models, columns=list(families)).rename(columns=families)
