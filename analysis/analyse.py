"""The analyse stage: which runs score which images, and every table that comes of it.

A general model (trained on all groups) is judged on all rated images, and on each group that has a model of its own;
a specialised model on its own group. All specialised models of one seed together score a pool of images, each image
by its own group's model, and the general model of that seed scores the same pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import joblib
import pandas as pd

from analysis.cells import Cell, CellTables, Sample, analyse_cell, prepare
from analysis.diagnostics import exchanged_tests, first_general, metric_correlations
from analysis.dictionary import TABLES, data_dictionary
from analysis.families import bh_by, decide, over_cells
from analysis.interactions import decided
from analysis.seeds import over_seeds
from analysis.statistics import smallest_detectable_r2
from analysis.summaries import summary_constraint, summary_layers
from analysis.tablefiles import write_statistics
from analysis.tables import feature_matrix, load_metrics, rated_images, sweep_matrix
from fluence.errors import ArtifactError
from fluence.layout import Layout, Run, RunRow
from fluence.store.files import read_table
from fluence.store.packed import Packed
from fluence.study import OWN_GROUP, Analysis, Study

ALL = "all"
POOLED = "pooled"

_NO_CEILING = "fewer than two columns rater_…, no columns of sd and n_ratings, or too few images"


@dataclass(frozen=True)
class Measured:
    """The metrics of one run for the images that it scores: image × (layer, metric), and its ε."""

    features: pd.DataFrame
    sweep: pd.DataFrame
    epsilon: pd.DataFrame


def analyse(study: Study, layout: Layout, runs: list[RunRow], *, num_workers: int | None = None) -> None:
    """Relates the metrics of all finished runs to the ratings and writes the tables to `layout.statistics`.

    Args:
        study: the study.
        layout: its folder.
        runs: every run of the grid, also those that failed; these become rows that say so.
        num_workers: processes; as many as there are cores by default. The numbers do not depend on it.

    Raises:
        StudyError: there are no ratings, or they are all equal.
        ArtifactError: the packed images are missing or damaged, or a table cannot be written.
    """
    table = Packed(layout.packed(study.data.rated)).table
    rated = rated_images(table, study.data.score, study.data.group_by)
    measured, runs = _load(study, layout, runs, rated)
    cells, members = plan_cells(measured, rated, [row.run.group for row in runs])
    names = list(dict.fromkeys([ALL, *(cell.sample for cell in cells)]))
    parallel = joblib.Parallel(n_jobs=num_workers or joblib.cpu_count())
    prepared = parallel(
        joblib.delayed(prepare)(name, rated.loc[members[name]], study.data.score, study.analysis) for name in names
    )
    samples = dict(zip(names, prepared, strict=True))
    results = parallel(joblib.delayed(analyse_cell)(cell, samples[cell.sample], study.analysis) for cell in cells)
    tables = _tables(cells, samples, results, runs, rated, study) | _diagnostics(cells, samples[ALL], study, parallel)
    for name, written in tables.items():
        _write(layout, name, written)


def plan_cells(
    measured: dict[Run, Measured], rated: pd.DataFrame, grid_groups: Iterable[str]
) -> tuple[list[Cell], dict[str, pd.Index]]:
    """Which scorer is judged on which images.

    Args:
        measured: the runs that are done.
        rated: rows of `tables.rated_images`.
        grid_groups: groups of the runs of the grid, done or not.

    Returns:
        The cells, and the image ids of each sample by its name.
    """
    specialised = [group for group in dict.fromkeys(grid_groups) if group != ALL]
    members = {ALL: rated.index} | {group: rated.index[rated["group"] == group] for group in specialised}
    cells = []
    for model, seed in dict.fromkeys((run.model, run.seed) for run in measured):
        by_group = {run.group: run for run in measured if (run.model, run.seed) == (model, seed)}
        own = [group for group in specialised if group in by_group and len(members[group])]
        pool = _pool_name(own, specialised)
        if len(own) > 1:
            members[pool] = rated.index[rated["group"].isin(own)]
        if ALL in by_group:
            on = [ALL, *(group for group in specialised if len(members[group])), *([pool] if len(own) > 1 else [])]
            cells += [_cell(by_group[ALL], measured[by_group[ALL]], name, members[name]) for name in on]
        cells += [_cell(by_group[group], measured[by_group[group]], group, members[group]) for group in own]
        if len(own) > 1:
            cells.append(_pooled_cell([(by_group[group], measured[by_group[group]]) for group in own], pool, members))
    return cells, members


def _pool_name(own: list[str], specialised: list[str]) -> str:
    """The pool's name says which groups are not in it, so that unlike pools are never set side by side unnoticed."""
    absent = [group for group in specialised if group not in own]
    return f"{POOLED} without {', '.join(absent)}" if absent else POOLED


def _cell(run: Run, one: Measured, sample: str, image_ids: pd.Index) -> Cell:
    scorer = "general" if run.group == ALL else OWN_GROUP
    features, sweep = one.features.loc[image_ids], one.sweep.loc[image_ids]
    return Cell(run.model, run.group, scorer, run.seed, sample, features, sweep, one.epsilon)


def _pooled_cell(own: list[tuple[Run, Measured]], pool: str, members: dict[str, pd.Index]) -> Cell:
    """Each image by its own group's model."""
    features = pd.concat([one.features.loc[members[run.group]] for run, one in own]).loc[members[pool]]
    sweep = pd.concat([one.sweep.loc[members[run.group]] for run, one in own]).loc[members[pool]]
    first = own[0][0]
    no_epsilon = own[0][1].epsilon.iloc[:0]
    return Cell(first.model, OWN_GROUP, OWN_GROUP, first.seed, pool, features, sweep, no_epsilon)


def _load(
    study: Study, layout: Layout, runs: list[RunRow], rated: pd.DataFrame
) -> tuple[dict[Run, Measured], list[RunRow]]:
    """Metrics of the runs that are done. A run whose metrics cannot be used becomes `unreadable`, with the reason."""
    measured, rows = {}, []
    for row in runs:
        if row.status == "done":
            try:
                measured[row.run] = _load_run(study, layout, row.run, rated)
            except ArtifactError as error:
                row = replace(row, status="unreadable", reason=str(error))
        rows.append(row)
    return measured, rows


def _load_run(study: Study, layout: Layout, run: Run, rated: pd.DataFrame) -> Measured:
    scored = rated.index if run.group == ALL else rated.index[rated["group"] == run.group]
    metrics = load_metrics(layout.metrics(run.id), scored)
    epsilon = read_table(layout.epsilon(run.id))
    features = feature_matrix(metrics, study.analysis.epsilon.report, study.analysis.metrics)
    return Measured(features, sweep_matrix(metrics), epsilon)


def _tables(
    cells: list[Cell],
    samples: dict[str, Sample],
    results: list[CellTables],
    runs: list[RunRow],
    rated: pd.DataFrame,
    study: Study,
) -> dict[str, pd.DataFrame]:
    """Every table, by name."""
    correlations, sweep, ridge, interactions = _corrected(results, study.analysis)
    correlations_over_seeds = _correlations_over_seeds(correlations, study)
    ridge_over_seeds = _ridge_over_seeds(ridge, study)
    return {
        "correlations": correlations,
        "correlations_over_seeds": correlations_over_seeds,
        "ridge": ridge,
        "ridge_over_seeds": ridge_over_seeds,
        "interactions": interactions,
        "interactions_over_seeds": _interactions_over_seeds(interactions, study),
        "epsilon_sweep": sweep,
        "summary_constraint": summary_constraint(study, ridge_over_seeds),
        "summary_layers": summary_layers(study, correlations_over_seeds),
        "runs": _runs_table(runs),
        "coverage": _coverage(cells, samples, runs, rated, 1 - study.analysis.confidence),
        "noise_ceiling": _ceilings(samples),
        "data_dictionary": data_dictionary(),
    }


def _corrected(results: list[CellTables], analysis: Analysis) -> tuple[pd.DataFrame, ...]:
    """Correlations, sweep, regressions and interactions of all cells, corrected over the cells if the study asks."""
    correlations = _stack("correlations", [result.correlations for result in results])
    sweep = _stack("epsilon_sweep", [result.epsilon_sweep for result in results])
    ridge = _stack("ridge", [result.ridge for result in results])
    interactions = _stack("interactions", [result.interactions for result in results if len(result.interactions)])
    if analysis.family == "study" and results:
        pooled = (
            over_cells(correlations, [(result.sample, result.largest) for result in results]),
            over_cells(sweep, [(result.sample, result.largest_of_sweep) for result in results]),
        )
        correlations, sweep = (decide(table, analysis.correction, analysis.confidence) for table in pooled)
        ridge = bh_by(ridge, ["subset"], ["p_delta", "p_metrics"])
        interactions = decided(bh_by(interactions, ["subset", "estimator"], ["p"]), analysis)
    return correlations, sweep, ridge, interactions


def _diagnostics(cells: list[Cell], every: Sample, study: Study, parallel: joblib.Parallel) -> dict[str, pd.DataFrame]:
    """How the metrics of each model hang together, and what tests say of exchanged ratings."""
    chosen = first_general(cells)
    between = parallel(joblib.delayed(metric_correlations)(cell, every, study.data.score) for cell in chosen)
    exchanged = parallel(joblib.delayed(exchanged_tests)(cell, every) for cell in chosen)
    return {
        "metric_correlations": _stack("metric_correlations", between),
        "exchanged_tests": _stack("exchanged_tests", exchanged),
    }


def _stack(name: str, tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(TABLES[name]))


_BY_SCORER = ("model", "trained_on", "scorer", "subset")
_SAME = ("family",)


def _correlations_over_seeds(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    by = [*_BY_SCORER, "layer", "metric", "estimator"]
    values, means = ("estimate", "p_permutation", "p_adjusted"), ("ci_low", "ci_high")
    return _with_counts(over_seeds(table, by, values, _planned(study), means=means, same=_SAME), table, by)


def _interactions_over_seeds(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    by = [*_BY_SCORER, "layer", "metric", "estimator"]
    same = (*_SAME, "num_groups", "groups_left_out", "reason")
    return _with_counts(over_seeds(table, by, ("f", "p", "p_bh"), _planned(study), same=same), table, by)


def _with_counts(summed: pd.DataFrame, table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Adds in how many trainings a test is significant, and the size of its largest family."""
    grouped = table.groupby(by, sort=False)
    return summed.assign(
        num_significant=grouped["significant"].sum().to_numpy(), family_size=grouped["family_size"].max().to_numpy()
    )


def _ridge_over_seeds(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    by = [*_BY_SCORER, "predictors", "estimator"]
    values = ("delta_r2", "r2_baseline", "r2_full", "r2_metrics", "p_delta", "p_delta_bh", "population_delta_r2")
    means = ("r2_metrics_low", "r2_metrics_high", "delta_r2_low", "delta_r2_high")
    family_size = table.groupby(by, sort=False)["family_size"].max().to_numpy()
    return over_seeds(table, by, values, _planned(study), means=means, same=_SAME).assign(family_size=family_size)


def _planned(study: Study) -> Callable[[Mapping[str, object]], Sequence[int]]:
    """Which seeds there should be for a row of a table over seeds."""
    return lambda where: study.seeds_of(str(where["model"]), str(where["trained_on"]))


def _runs_table(runs: list[RunRow]) -> pd.DataFrame:
    rows = [(r.run.id, r.run.model, r.run.group, r.run.seed, r.status, r.reason) for r in runs]
    return pd.DataFrame(rows, columns=list(TABLES["runs"]))


def _coverage(
    cells: list[Cell], samples: dict[str, Sample], runs: list[RunRow], rated: pd.DataFrame, alpha: float
) -> pd.DataFrame:
    """A row per cell, and a row per run that gives none."""
    rows = [_covered(cell, samples[cell.sample], runs, alpha) for cell in cells]
    analysed = {(cell.model, cell.trained_on, cell.seed) for cell in cells}
    for row in runs:
        run = row.run
        if (run.model, run.group, run.seed) not in analysed:
            scored = rated if run.group == ALL else rated[rated["group"] == run.group]
            reason = f"run {row.status}: {row.reason}" if row.status != "done" else "no rated image is of this group"
            rows.append(_where(run) | {"n": len(scored), "num_clusters": scored["cluster"].nunique(), "reason": reason})
    return pd.DataFrame(rows, columns=list(TABLES["coverage"]))


def _where(run: Run) -> dict[str, object]:
    scorer = "general" if run.group == ALL else OWN_GROUP
    place = {"model": run.model, "trained_on": run.group, "scorer": scorer, "seed": run.seed}
    return place | {"subset": run.group, "groups": run.group}


def _covered(cell: Cell, sample: Sample, runs: list[RunRow], alpha: float) -> dict[str, object]:
    missing = [
        f"{row.run.group} ({row.status})"
        for row in runs
        if (row.run.model, row.run.seed) == (cell.model, cell.seed) and row.status != "done"
    ]
    design = sample.design
    return {
        "model": cell.model,
        "trained_on": cell.trained_on,
        "scorer": cell.scorer,
        "seed": cell.seed,
        "subset": cell.sample,
        "groups": "; ".join(sorted(sample.rated["group"].unique())),
        "n": len(sample.rated),
        "num_clusters": sample.rated["cluster"].nunique(),
        "covariates": "; ".join(design.used),
        "covariates_missing": "; ".join(design.missing),
        "covariates_constant": "; ".join(design.constant),
        "covariates_filled": "; ".join(design.filled),
        "smallest_detectable_r2": smallest_detectable_r2(len(sample.rated), 1, alpha),
        "missing_runs": "; ".join(missing),
        "note": sample.division.note if sample.division else "",
        "reason": sample.reason,
    }


def _ceilings(samples: dict[str, Sample]) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for name, sample in samples.items():
        known = sample.ceilings.assign(subset=name, reason="").to_dict("records")
        empty = {"subset": name, "method": "none", "n": len(sample.rated), "reason": _NO_CEILING}
        rows += known or [empty]
    return pd.DataFrame(rows, columns=list(TABLES["noise_ceiling"]))


def _write(layout: Layout, name: str, table: pd.DataFrame) -> None:
    """Writes a table with exactly the columns of the dictionary."""
    columns = list(TABLES[name])
    if set(table.columns) != set(columns):
        difference = sorted(set(table.columns) ^ set(columns))
        raise RuntimeError(f"table {name} and its dictionary differ in: {', '.join(map(str, difference))}")
    write_statistics(layout.statistics, name, table[columns])
