"""The chapter on the models: a row for each, which leads to its page."""

from __future__ import annotations

import pandas as pd

from analysis.report.compared import compared_terms
from analysis.report.evidence import Evidence
from analysis.report.page import NOTHING, Cell, Section, Table, Text, cell, interval, listed, model_id, number
from analysis.report.settings import peculiarities
from analysis.report.summary import ALL_METRICS, Summary, seeds_done, untrained_networks

_MOST_SETTINGS = 5
_COLUMNS = ("model", "kind", "differs in", "runs", "seeds", "loss at the end", "Δ R²", "interval")


def models(evidence: Evidence, summary: Summary) -> Section:
    """What the models are, how far they came and what they add: an overview that leads to their pages."""
    names = evidence.study.model_names
    special, loss = peculiarities(evidence.study), _losses(evidence)
    rows = tuple(_row(evidence, summary, name, special[name], loss) for name in names)
    lead = Text(
        "Each model has a page: settings, runs, loss curves, reconstructions, and its own results. The loss is that of "
        "the models of all groups, on held-out images where there are any, mean over the seeds; it is comparable only "
        "between models with the same terms and weights. Δ R² is what all metrics add to the confounds."
    )
    caption = "Every model" if len(names) > 1 else "The model"
    return Section("models", "Models", [lead, Table(caption, _COLUMNS, rows, file="../statistics/runs.csv")])


def _row(evidence: Evidence, summary: Summary, name: str, special: dict[str, str], loss: pd.Series) -> tuple[Cell, ...]:
    kind = evidence.study.models[name].kind
    own = f"{kind}, untrained" if name in untrained_networks(evidence) else kind
    ridge = ridge_of(summary, name)
    seeds = 0.0 if ridge is None else float(ridge["num_seeds"])
    return (
        Cell(name, link=model_id(name)),
        cell(own),
        cell(_special(special)),
        _runs(evidence, name),
        Cell(seeds_done(evidence, seeds, name), seeds),
        cell(float(loss[name]) if name in loss.index else None),
        cell(None if ridge is None else float(ridge["delta"])),
        cell(None) if ridge is None else Cell(interval(ridge["ci_low"], ridge["ci_high"]), float(ridge["ci_low"])),
    )


def ridge_of(summary: Summary, name: str) -> pd.Series | None:
    """The regression on all metrics of a model on all rated images; None if it could not be done."""
    table = summary.general_ridge()
    if table.empty:
        return None
    rows = table[(table["model"] == name) & (table["predictors"] == ALL_METRICS)].dropna(subset=["delta"])
    return rows.iloc[0] if len(rows) else None


def _special(special: dict[str, str]) -> str:
    """`width 0.5, norm batch`, without the kind, which stands beside it."""
    words = [f"{key} {value}" for key, value in special.items() if key != "kind"]
    more = f" and {len(words) - _MOST_SETTINGS} more" if len(words) > _MOST_SETTINGS else ""
    return "; ".join(words[:_MOST_SETTINGS]) + more if words else NOTHING


def _runs(evidence: Evidence, name: str) -> Cell:
    """`4 done`, or `3 of 4 done, 1 diverged`."""
    ends = [row.status for row in evidence.runs if row.run.model == name]
    done = ends.count("done")
    others = [f"{ends.count(end)} {end}" for end in dict.fromkeys(ends) if end != "done"]
    text = f"{done} of {len(ends)} done, {listed(others)}" if others else f"{number(done, 0)} done"
    return Cell(text, float(done))


def _losses(evidence: Evidence) -> pd.Series:
    """Loss at the end of training of the models of all groups, mean over the seeds, by model."""
    done = {run.id for run in evidence.done if run.group == "all"}
    curves = evidence.curves[(evidence.curves["term"] == "loss") & evidence.curves["run_id"].isin(done)]
    return pd.Series(dtype=float) if curves.empty else loss_terms(curves)["loss"].groupby("model").mean()


def loss_terms(curves: pd.DataFrame) -> pd.DataFrame:
    """Loss terms at the end of each training: columns are terms, indexed by model, group, seed and run_id.

    Of held-out images where a run has any, else of training images.
    """
    terms = compared_terms(curves)
    held_out = terms["phase"] == "validation"
    with_held_out = set(terms.loc[held_out, "run_id"])
    chosen = terms[held_out | ~terms["run_id"].isin(with_held_out)].sort_values("epoch", kind="stable")
    last = chosen.groupby(["run_id", "term"], sort=False).tail(1)
    order = list(dict.fromkeys(terms["term"]))
    wide = last.pivot_table(index=["model", "group", "seed", "run_id"], columns="term", values="value", sort=False)
    return wide.reindex(columns=order)
