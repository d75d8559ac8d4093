"""The answer in sentences, written from the numbers alone: which metrics predict beauty, how much, how sure."""

from __future__ import annotations

import math

import pandas as pd

from analysis.kinds import circular
from analysis.report.evidence import Evidence
from analysis.report.page import counted, interval, listed, number, p_equals
from analysis.report.summary import (
    PREDICTOR_NAMES,
    Summary,
    controls,
    expected_sign,
    metric_name,
    pixel_models,
    seeds_done,
    untrained_networks,
)

_POWER = "with 80 % power at the 5 % level"


def verdict(evidence: Evidence, summary: Summary) -> tuple[str, ...]:
    """Sentences for the top of the report, the answer first."""
    unlearned = controls(evidence)
    primary = summary.primary(unlearned)
    if primary.empty:
        return (_no_answer(evidence, summary),)
    level = 1 - evidence.study.analysis.confidence
    found = primary[(primary["p_models"] <= level) & (primary["delta"] > 0)]
    control = _strongest(summary, untrained_networks(evidence))
    sentences = [
        _headline(evidence, found, primary, control) + _carried_by(summary, found),
        _circular(evidence, primary),
        _size(evidence, found, primary),
        _families(summary, primary.iloc[0]),
        _yardsticks(primary.iloc[0]),
        _compared(control, primary.iloc[0]),
        _pixels(_strongest(summary, pixel_models(evidence))),
        _single(evidence, summary, unlearned),
        _exploratory(len(primary)),
    ]
    return tuple(sentence for sentence in sentences if sentence)


def _no_answer(evidence: Evidence, summary: Summary) -> str:
    done, total = len(evidence.done), len(evidence.runs)
    if not total:
        return "There is no answer yet: the study has no runs."
    if not done:
        return f"There is no answer yet: none of the {counted(total, 'run')} has been completed."
    reasons = [reason for reason in summary.ridge.get("reason", pd.Series(dtype=str)) if reason]
    why = f" ({reasons[0]})" if reasons else " (no trained model was scored on all rated images)"
    return f"There is no answer yet: no regression could be computed from the {counted(done, 'completed run')}{why}."


def _headline(evidence: Evidence, found: pd.DataFrame, primary: pd.DataFrame, control: pd.Series | None) -> str:
    score = evidence.study.data.score
    if found.empty:
        return f"No: the metrics do not demonstrably predict “{score}” beyond the confounds"
    others = [model for model in primary["model"] if model not in set(found["model"])]
    not_so = f"; those of {listed(others)} do not" if others else ""
    if control is not None and control["delta"] >= found.iloc[0]["delta"]:
        not_so += ", but so do those of an untrained network: what was learned does not explain it"
    return f"Yes: the metrics of {listed(found['model'].tolist())} predict “{score}” beyond the confounds{not_so}"


def _circular(evidence: Evidence, primary: pd.DataFrame) -> str:
    seen = [model for model in circular(evidence.study) if model in set(primary["model"])]
    if not seen:
        return ""
    return f"What is said here of {listed(seen)} is circular: these very ratings were part of the training."


def _family_rows(summary: Summary, model: str) -> pd.DataFrame:
    """The regressions of one model on single families of metrics."""
    table = summary.general_ridge()
    families = [name for name in PREDICTOR_NAMES if name != "all"]
    return table[(table["model"] == model) & table["predictors"].isin(families)].dropna(subset=["delta"])


def _carried_by(summary: Summary, found: pd.DataFrame) -> str:
    """The end of the headline: which families of metrics carry the finding, if only some do."""
    if found.empty:
        return "."
    rows = _family_rows(summary, found.iloc[0]["model"])
    firm = rows["ci_low"] > 0
    if firm.all() or not firm.any():
        return "."
    carrying, not_carrying = (
        [PREDICTOR_NAMES[name] for name in rows.loc[mask, "predictors"]] for mask in (firm, ~firm)
    )
    return f", by {listed(carrying)}; not demonstrably by {listed(not_carrying)}."


def _families(summary: Summary, best: pd.Series) -> str:
    """What each family of metrics adds alone, since one number for all hides which of them matters."""
    rows = _family_rows(summary, best["model"])
    if len(rows) < 2:
        return ""
    parts = [
        f"{PREDICTOR_NAMES[row['predictors']]} {number(row['delta'])} {interval(row['ci_low'], row['ci_high'])}"
        for _, row in rows.iterrows()
    ]
    return f"Alone, the families of metrics of {best['model']} add to the confounds: {listed(parts)}."


def _size(evidence: Evidence, found: pd.DataFrame, primary: pd.DataFrame) -> str:
    """How much the best model adds, and how sure that is."""
    best, confidence = primary.iloc[0], evidence.study.analysis.confidence
    over = f" adjusted over {len(primary)} models" if len(primary) > 1 else ""
    done = seeds_done(evidence, best["num_seeds"], best["model"])
    seeds = "one seed only" if done == "1" else f"{done} seeds"
    if best["num_seeds"] > 1:
        seeds += f", from {number(best['delta_min'])} to {number(best['delta_max'])}"
    words = (
        f"On {best['n']:,.0f} images, {best['model']} adds Δ R² = {number(best['delta'])} ({confidence:.0%} interval "
        f"{interval(best['ci_low'], best['ci_high'])}, {p_equals(best['p_models'])}{over}; {seeds}) to the R² = "
        f"{number(best['baseline'])} of the confounds alone."
    )
    if found.empty:
        return f"{words} Effects below R² = {number(best['detectable'])} could not have been seen here {_POWER}."
    unsure = " The interval reaches below zero, so the size of the effect is open." if best["ci_low"] <= 0 else ""
    return words + unsure


def _yardsticks(best: pd.Series) -> str:
    """What chance reaches, and what nobody can exceed."""
    words = f"Shuffled ratings reach Δ R² = {number(best['floor'])} in one of twenty cases (the noise floor)."
    alone = f"The metrics alone reach R² = {number(best['metrics'])}"
    if not math.isfinite(best["ceiling"]):
        return f"{words} {alone}. The noise ceiling is unknown: the data do not tell how much raters disagree."
    share = best["metrics"] / best["ceiling"]
    part = f", {share:.0%} of the noise ceiling" if share > 0 else "; the noise ceiling is"
    return f"{words} {alone}{part} R² = {number(best['ceiling'])} that raters' disagreement leaves to any model."


def _single(evidence: Evidence, summary: Summary, unlearned: set[str]) -> str:
    """Which single metrics go with beauty once the confounds are taken out."""
    table = summary.general_correlations("partial")
    if not table.empty:
        table = table[~table["model"].isin(unlearned)].dropna(subset=["r"])
    if table.empty:
        return ""
    family = f"the {counted(len(table), 'partial correlation')} of single metrics with the ratings"
    firm = table[table["significant"].astype(bool)]
    if firm.empty:
        top = table.loc[table["r"].abs().idxmax()]
        return (
            f"None of {family} is significant after correction in every seed; the largest is {_one(evidence, top)}. "
            f"With n = {top['n']:,.0f}, |r| below {number(detectable_r(top['n']), 2)} is beyond reach {_POWER}, before "
            f"any correction."
        )
    top = firm.loc[firm["r"].abs().idxmax()]
    agreeing = sum((row["r"] > 0) == (expected_sign(row["metric"]) > 0) for _, row in firm.iterrows())
    return (
        f"Of {family}, {len(firm)} {'is' if len(firm) == 1 else 'are'} significant after correction in every seed, "
        f"{agreeing} of them with the sign that fluency theory expects. The strongest is {_one(evidence, top)}."
    )


def _one(evidence: Evidence, row: pd.Series) -> str:
    return (
        f"{metric_name(evidence, row['layer'], row['metric'])} in {row['model']}: r = {number(row['r'], 2, sign=True)} "
        f"{interval(row['ci_low'], row['ci_high'], 2)}, {p_equals(row['p'])} adjusted over the "
        f"{row['family_size']:.0f} of this model"
    )


def detectable_r(n: float) -> float:
    """Smallest correlation that is found with 80 % power at the two-sided 5 % level, by Fisher's z."""
    return math.tanh((1.959964 + 0.841621) / math.sqrt(n - 3)) if n > 3 else float("nan")


def _strongest(summary: Summary, models: set[str]) -> pd.Series | None:
    """The one of these models that adds most, if there is one."""
    table = summary.general_ridge()
    rows = table[table["model"].isin(models) & (table["predictors"] == "all")].dropna(subset=["delta"])
    return None if rows.empty else rows.loc[rows["delta"].idxmax()]


def _compared(control: pd.Series | None, best: pd.Series) -> str:
    if control is None:
        return ""
    name = "" if control["model"] == "untrained" else f" {control['model']}"
    if control["delta"] <= 0:
        return (
            f"The untrained network{name} (negative control) adds nothing: Δ R² = "
            f"{number(control['delta'])} {interval(control['ci_low'], control['ci_high'])}."
        )
    return (
        f"The untrained network{name} (negative control) adds Δ R² = {number(control['delta'])} "
        f"{interval(control['ci_low'], control['ci_high'])}; only what {best['model']} adds beyond that can come from "
        "learning."
    )


def _pixels(control: pd.Series | None) -> str:
    if control is None:
        return ""
    return (
        f"The same metrics of the pixels themselves, without any network, add Δ R² = {number(control['delta'])} "
        f"{interval(control['ci_low'], control['ci_high'])}."
    )


def _exploratory(num_models: int) -> str:
    tests = f"{num_models} tests, one per model" if num_models > 1 else "one test"
    return (
        f"The answer rests on {tests}: {PREDICTOR_NAMES['all']} of all layers above the confounds, on all rated "
        "images. Everything else in this report (single metrics and layers, groups, the sweep over ε) is exploratory."
    )
