"""What a comparison of models is made from: their general runs, in an order and with names that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import figures
from analysis.measure import RECONSTRUCTION
from analysis.report.evidence import Evidence
from analysis.report.summary import ALL_IMAGES, Summary, incomplete, labelled
from fluence.layout import RunRow

_STYLES_OF_REPORT = 8  # models of a study that keep their colours from one comparison to the next
_GATES = (".channels", ".places")  # ends of the names of gates


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        evidence: of the study.
        summary: the statistics with the seeds put together.
        name: of the comparison.
        models: the models, in the order of the comparison.
        means: metrics of their general runs, means over the images: model, seed, layer, metric, value.
        curves: loss terms of their general runs, summed over layers: model, seed, run_id, phase, epoch, term, value.
        styles: colour and marker of each model.
    """

    evidence: Evidence
    summary: Summary
    name: str
    models: tuple[str, ...]
    means: pd.DataFrame
    curves: pd.DataFrame
    styles: dict[str, figures.Style]

    def runs_of(self, model: str) -> list[RunRow]:
        """The runs of a model on all groups, done or not."""
        return [row for row in self.evidence.runs if (row.run.model, row.run.group) == (model, ALL_IMAGES)]

    def num_done(self, model: str) -> int:
        """How many of them are done."""
        return sum(row.status == "done" for row in self.runs_of(model))

    def num_measured(self, model: str) -> int:
        """How many of them have metrics that can be read."""
        return int(self.means.loc[self.means["model"] == model, "seed"].nunique())

    def label(self, model: str) -> str:
        """The name of a model, which says so if it was left untrained."""
        return labelled(self.evidence, model)

    def ridge(self, model: str) -> pd.Series | None:
        """The regression on all metrics of a model above the confounds, on all rated images."""
        table = self.summary.general_ridge()
        rows = table[(table["model"] == model) & (table["predictors"] == "all")] if not table.empty else table
        return rows.iloc[0] if len(rows) else None

    def missing_seeds(self, counts: dict[str, int]) -> str:
        """A sentence that names the models with fewer seeds than planned; empty if there are none."""
        rows = pd.DataFrame({"model": list(counts), "num_seeds": list(counts.values())})
        return incomplete(self.evidence, rows)

    def of_layers(self) -> pd.DataFrame:
        """The means of layers: without reconstruction errors, and without gates, which not every model has."""
        layers = self.means["layer"].astype(str)
        return self.means[~layers.str.endswith(_GATES) & (layers != RECONSTRUCTION)]

    def of_gates(self) -> pd.DataFrame:
        """The means of gates."""
        return self.means[self.means["layer"].astype(str).str.endswith(_GATES)]

    def by_layer(self, metric: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """Mean and range over the seeds of a metric by place, and the names of the layers if all models share them.

        Returns:
            model, place, mean, low, high. The place is the number of the layer from 0, or its relative depth in
            [0, 1] if the layers differ.
        """
        rows = self.of_layers()
        grouped = rows[rows["metric"] == metric].groupby(["model", "layer"], sort=False)["value"]
        found = grouped.agg(mean="mean", low="min", high="max").reset_index()
        names = {model: tuple(own["layer"]) for model, own in found.groupby("model", sort=False)}
        agreed = next(iter(names.values())) if len(set(names.values())) == 1 else ()
        by_model = found.groupby("model", sort=False)["layer"]
        position, deepest = by_model.cumcount(), by_model.transform("size").astype(int) - 1
        return found.assign(place=position if agreed else position / deepest.clip(lower=1)), agreed

    def lacking(self, model: str) -> str:
        """What stands in the way of a model's numbers: runs that came to nothing, with their reason; else empty."""
        runs = self.runs_of(model)
        if not runs:
            return "no run on all groups together is planned"
        measured = set(self.means.loc[self.means["model"] == model, "seed"])
        words = [_trouble(row) for row in runs if row.run.seed not in measured]
        ridge = self.ridge(model)
        words += [f"no regression: {ridge['reason']}"] if ridge is not None and ridge["reason"] else []
        return "; ".join(words)


def case_of(evidence: Evidence, summary: Summary, name: str, means: pd.DataFrame) -> Case:
    """The comparison of a study that has this name.

    Args:
        evidence: of the study.
        summary: the statistics with the seeds put together.
        name: of the comparison.
        means: `run_means` of its models, and of others.
    """
    models = tuple(dict.fromkeys(evidence.study.comparisons[name].models))
    curves = evidence.curves[evidence.curves["group"] == ALL_IMAGES]
    return Case(
        evidence,
        summary,
        name,
        models,
        means[means["model"].isin(models)],
        compared_terms(curves[curves["model"].isin(models)]),
        _styles(evidence.study.model_names, models),
    )


_SHARES = "sparsity/clamped/"
"""Terms that are shares of units: in the log, to look for mistakes, and in no sum."""


def compared_terms(curves: pd.DataFrame) -> pd.DataFrame:
    """Loss terms as they can be compared: those of single layers summed, the ones that several models have first.

    Args:
        curves: model, group, seed, run_id, phase, epoch, term, value.
    """
    curves = curves[~curves["term"].str.startswith(_SHARES)]
    families = curves.assign(term=curves["term"].map(figures.family_of)).astype({"value": float})
    where = ["model", "group", "seed", "run_id", "phase", "epoch", "term"]
    summed = families.groupby(where, sort=False)["value"].sum(min_count=1).reset_index()
    models = summed.groupby("term", sort=False)["model"].nunique()
    order = sorted(models.index, key=lambda term: _rank(term, models[term]))
    places = {term: place for place, term in enumerate(order)}
    return summed.sort_values("term", key=lambda terms: terms.map(places), kind="stable", ignore_index=True)


def _rank(term: str, num_models: int) -> tuple[bool, bool, bool, bool]:
    """Terms of several models go first; among them the loss, then reconstruction, then KL."""
    return num_models < 2, term != "loss", not term.startswith("reconstruction/"), term != "kl"


def _styles(of_report: Sequence[str], models: Sequence[str]) -> dict[str, figures.Style]:
    """The colours of the report, if they tell all of its models apart; else colours of this comparison alone."""
    keep = len(of_report) <= _STYLES_OF_REPORT and set(models) <= set(of_report)
    styles = figures.style_of(of_report if keep else models)
    return {model: styles[model] for model in models}


def _trouble(row: RunRow) -> str:
    if row.status == "done":
        return f"seed {row.run.seed}: its metrics cannot be read"
    return f"seed {row.run.seed} {row.status}: {row.reason or 'no reason given'}"
