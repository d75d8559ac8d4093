"""Everything that a report is made from, read once. What cannot be read is named, and the report goes on without it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.figures import Strip
from analysis.tablefiles import read_statistics
from analysis.tables import rated_images
from fluence.errors import FluenceError
from fluence.layout import Layout, Run, RunRow
from fluence.store.activations import Activations, Which
from fluence.store.files import read_table
from fluence.store.outcome import Outcome, read_outcome
from fluence.store.packed import Packed
from fluence.study import Study

TABLES = (
    "correlations",
    "correlations_over_seeds",
    "ridge",
    "ridge_over_seeds",
    "interactions_over_seeds",
    "summary_constraint",
    "summary_layers",
    "epsilon_sweep",
    "metric_correlations",
    "exchanged_tests",
    "runs",
    "coverage",
    "noise_ceiling",
    "data_dictionary",
)
_SAMPLES_SHOWN = 10
_RUN_STAGES = ("train", "extract", "measure")
_CURVE_COLUMNS = ["model", "group", "seed", "run_id", "phase", "epoch", "term", "value"]


@dataclass
class Evidence:
    """What lies in a study's folder.

    Attributes:
        study: the study.
        layout: where its files lie.
        runs: every run of the grid, and what became of it.
        tables: the statistics that could be read, by the stem of their file.
        packed: the packed data sets that could be read, by name.
        curves: every loss term of every run: model, group, seed, run_id, phase, epoch, term, value.
        outcomes: how every task ended: stage, name, outcome.
        missing: what could not be read, one line each.
    """

    study: Study
    layout: Layout
    runs: list[RunRow]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    packed: dict[str, Packed] = field(default_factory=dict)
    curves: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_CURVE_COLUMNS))
    outcomes: list[tuple[str, str, Outcome]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def done(self) -> list[Run]:
        """The runs that have metrics."""
        return [row.run for row in self.runs if row.status == "done"]

    @property
    def rated(self) -> Packed | None:
        """The rated images, or None if they cannot be read."""
        return self.packed.get(self.study.data.rated)

    def table(self, name: str) -> pd.DataFrame:
        """A table of the statistics; empty and without columns if it is missing."""
        return self.tables.get(name, pd.DataFrame())

    def ratings(self) -> pd.DataFrame:
        """The rated images with a rating, with `score` and `group`; empty if there are none."""
        if self.rated is None:
            return pd.DataFrame(columns=["image_id", "score", "group"])
        try:
            return rated_images(self.rated.table, self.study.data.score, self.study.data.group_by)
        except FluenceError as error:
            self.note(str(error))
            return pd.DataFrame(columns=["image_id", "score", "group"])

    def note(self, line: str) -> None:
        """Remembers that something is missing, once."""
        if line not in self.missing:
            self.missing.append(line)


def gather(study: Study, layout: Layout, runs: list[RunRow]) -> Evidence:
    """Reads everything but images and metrics of single runs."""
    evidence = Evidence(study, layout, runs)
    for name in TABLES:
        try:
            evidence.tables[name] = read_statistics(layout.statistics, name)
        except FluenceError as error:
            evidence.note(short(error, layout))
    for name in dict.fromkeys((study.data.training, study.data.rated)):
        try:
            evidence.packed[name] = Packed(layout.packed(name))
        except FluenceError as error:
            evidence.note(short(error, layout))
    rows = [row for entry in runs for row in _curve_rows(layout, entry.run)]
    evidence.curves = pd.DataFrame(rows, columns=_CURVE_COLUMNS)
    evidence.outcomes = list(_outcomes(evidence))
    return evidence


def short(error: FluenceError, layout: Layout) -> str:
    """An error with the path relative to the study's folder: reports are passed on."""
    return str(error).replace(f"{layout.root}/", "")


def _curve_rows(layout: Layout, run: Run) -> Iterator[tuple[object, ...]]:
    """The metrics log of a run as rows; a last line that was cut off by a crash is left out."""
    path = layout.metrics_log(run.id)
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            head = (run.model, run.group, run.seed, run.id, str(row["phase"]), int(row["epoch"]))
        except (ValueError, KeyError, TypeError):
            continue
        for term, value in row.items():
            if _is_term(term) and isinstance(value, int | float):
                yield (*head, term, float(value))


def _is_term(name: str) -> bool:
    named = ("loss", "kl", "codebook", "commitment", "perplexity", "sharpness")
    return name in named or "/" in name


def _outcomes(evidence: Evidence) -> Iterator[tuple[str, str, Outcome]]:
    names = [("pack", name) for name in dict.fromkeys((evidence.study.data.training, evidence.study.data.rated))]
    names += [(stage, row.run.id) for row in evidence.runs for stage in _RUN_STAGES]
    for stage, name in [*names, ("analyse", "study")]:
        outcome = read_outcome(evidence.layout.outcome(stage, name))
        if outcome is not None:
            yield stage, name, outcome


def sample_strips(evidence: Evidence, model: str, which: Which) -> list[Strip]:
    """Originals and reconstructions of one model, smallest seed that is done.

    Args:
        evidence: of the study.
        model: name of the model.
        which: `rated` or `training` images.

    Returns:
        Two rows for the model of all groups, two for the models of single groups, a few images of each; what does not
        exist is left out.
    """
    first = first_runs(evidence, model)
    own = [run for group, run in first.items() if group != "all"]
    strips = _pair(evidence, [first["all"]] if "all" in first else [], which, "all groups")
    return strips + _pair(evidence, own, which, "own group")


def first_runs(evidence: Evidence, model: str) -> dict[str, Run]:
    """The run with the smallest seed that is done, by group, in the order of the study."""
    groups = evidence.study.group_names
    runs = sorted((run for run in evidence.done if run.model == model), key=lambda run: -run.seed)
    found = {run.group: run for run in runs}
    return {group: found[group] for group in groups if group in found}


def _pair(evidence: Evidence, runs: list[Run], which: Which, label: str) -> list[Strip]:
    """A row of originals above a row of reconstructions, as many from each run as fit."""
    kept = [samples for run in runs if (samples := _samples(evidence, run, which)) is not None and len(samples[0])]
    if not kept:
        return []
    each = max(1, _SAMPLES_SHOWN // len(kept))
    originals, reconstructed = (
        np.concatenate([samples[part][:each] for samples in kept])[:_SAMPLES_SHOWN] for part in (1, 2)
    )
    return [Strip("original", originals), Strip(label, reconstructed)]


def _samples(evidence: Evidence, run: Run, which: Which) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    try:
        with Activations(evidence.layout.activations(run.id)) as activations:
            return activations.samples(which)
    except (FluenceError, KeyError) as error:
        reason = short(error, evidence.layout) if isinstance(error, FluenceError) else "no samples kept"
        evidence.note(f"{run.label}, {which} images: {reason}")
        return None


def compared_strips(evidence: Evidence, models: Sequence[str], count: int) -> list[Strip]:
    """The same rated images in every row: the originals, then what each model makes of them.

    Args:
        evidence: of the study.
        models: names of the models, in the order of the rows.
        count: how many images.

    Returns:
        A row of originals and one per model, of its general run with the smallest seed that is done. Images are
        matched by their ids. A model without samples has no row; nothing is returned if no image is in all of them.
    """
    first = {model: first_runs(evidence, model).get("all") for model in models}
    read = {model: _samples(evidence, run, "rated") for model, run in first.items() if run}
    kept = {model: samples for model, samples in read.items() if samples is not None and len(samples[0])}
    if not kept:
        return []
    ids = [name for name in next(iter(kept.values()))[0] if all(name in samples[0] for samples in kept.values())]
    chosen = [ids[place] for place in np.unique(np.linspace(0, len(ids) - 1, count).round().astype(int))] if ids else []
    places = {model: [list(samples[0]).index(name) for name in chosen] for model, samples in kept.items()}
    strips = [Strip(model, samples[2][places[model]]) for model, samples in kept.items()]
    model, samples = next(iter(kept.items()))
    return [Strip("original", samples[1][places[model]]), *strips] if chosen else []


def run_means(evidence: Evidence, models: Sequence[str]) -> pd.DataFrame:
    """Every metric of the general runs of some models, as means over the rated images.

    Args:
        evidence: of the study.
        models: names of the models.

    Returns:
        model, seed, layer, metric, value; layers in the order of the network, reconstruction errors as a layer of
        their own. Runs that are not done, or whose metrics cannot be read, have no rows.
    """
    pieces = []
    for run in evidence.done:
        values = metrics_of(evidence, run) if run.group == "all" and run.model in models else None
        if values is not None:
            means = values.groupby(["layer", "metric"], sort=False)["value"].mean().reset_index()
            pieces.append(means.assign(model=run.model, seed=run.seed))
    columns = ["model", "seed", "layer", "metric", "value"]
    return pd.concat(pieces, ignore_index=True)[columns] if pieces else pd.DataFrame(columns=columns)


def metric_quantiles(evidence: Evidence, metrics: tuple[str, ...], models: Sequence[str]) -> pd.DataFrame:
    """5 %, 50 % and 95 % of some metrics over the images: model, metric, layer, q05, q50, q95; first general run."""
    pieces = []
    for model in models:
        run = first_runs(evidence, model).get("all")
        values = metrics_of(evidence, run) if run else None
        if values is not None:
            chosen = values[values["metric"].isin(metrics)]
            spread = chosen.groupby(["metric", "layer"], sort=False)["value"].quantile([0.05, 0.5, 0.95]).unstack()
            pieces.append(spread.set_axis(["q05", "q50", "q95"], axis=1).reset_index().assign(model=model))
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame()


def correlation_over_images(evidence: Evidence, first: str, second: str) -> dict[str, float]:
    """Pearson's r of two metrics of one image over the rated images, by model: of its first run that has both."""
    found = {}
    for model in evidence.study.model_names:
        run = next((run for run in evidence.done if run.model == model), None)
        values = metrics_of(evidence, run) if run else None
        if values is not None and {first, second} <= set(values["metric"]):
            columns = [values[values["metric"] == name].set_index("image_id")["value"] for name in (first, second)]
            found[model] = float(columns[0].corr(columns[1]))
    return found


def metrics_of(evidence: Evidence, run: Run) -> pd.DataFrame | None:
    """The metrics of every image in one run, or None if they cannot be read."""
    try:
        return read_table(Path(evidence.layout.metrics(run.id)))
    except FluenceError as error:
        evidence.note(f"{run.label}: {short(error, evidence.layout)}")
        return None
