"""The chapters that let a reader check the rest: the data, what failed, how it was made, and how to say so."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from scipy import stats

from analysis import figures
from analysis.gates import REPORTED
from analysis.measure import LOSS, RECONSTRUCTION
from analysis.methods import Facts, write_methods
from analysis.report.caveats import missing_covariates
from analysis.report.evidence import Evidence
from analysis.report.page import Cell, Item, Listing, Section, Table, Text, cell, drawn, listed
from analysis.report.summary import Summary

_ROWS = 300


def rated_images_section(evidence: Evidence, _: Summary) -> Section:
    """Ratings by group, covariates, reliability."""
    ratings = evidence.ratings()
    if ratings.empty:
        text = "The rated images, or their ratings, cannot be read."
        return Section("images", "Rated images", [Text(text, missing=True)])
    picture = drawn(
        evidence.layout,
        "ratings",
        f"Ratings of {len(ratings):,} images.",
        "Blue: the group; grey: all images; red line: mean of the group.",
        figures.ratings_by_group,
        ratings[["group", "score"]],
        evidence.study.data.score,
        shows="ratings",
    )
    items = [picture, _groups_table(ratings), *_covariates(evidence, ratings), *_ceilings(evidence)]
    return Section("images", "Rated images", items)


def failures(evidence: Evidence, _: Summary) -> Section:
    """Runs without a result, cells without a number, images left out."""
    items = [*_failed_runs(evidence), *_uncovered(evidence), *_problem_images(evidence)]
    return Section("failures", "Failures and exclusions", items)


def provenance(evidence: Evidence, _: Summary) -> Section:
    """When, where and with what each task was done."""
    rows = [
        (
            cell(stage),
            cell(name),
            cell(outcome.status),
            cell(str(outcome.provenance.get("started", ""))),
            cell(outcome.provenance.get("seconds"), 1),
            cell(str(outcome.provenance.get("host", ""))),
            cell(str(outcome.provenance.get("slurm_job", ""))),
            cell(str(outcome.provenance.get("commit", ""))),
            cell(outcome.key[:12]),
        )
        for stage, name, outcome in evidence.outcomes
    ]
    if not rows:
        return Section("provenance", "Provenance", [Text("No task has left a record of how it ended.", missing=True)])
    columns = ("stage", "task", "end", "started", "seconds", "host", "job", "commit", "key")
    seconds = sum(float(outcome.provenance.get("seconds", 0)) for _, _, outcome in evidence.outcomes)
    text = f"{len(rows)} tasks, {seconds / 3600:.1f} hours of computing in all. {_versions_text(evidence)}"
    return Section("provenance", "Provenance", [Text(text), Table("Every task", columns, tuple(rows), folded=True)])


def methods(evidence: Evidence, _: Summary) -> Section:
    """Methods and references, to be pasted into a paper."""
    written = write_methods(evidence.study, facts_of(evidence))
    paragraphs = [Text(text, heading=title) for title, text in written.paragraphs]
    return Section("methods", "Methods", [*paragraphs, Text("", heading="References"), Listing(written.references)])


def dictionary(evidence: Evidence, _: Summary) -> Section:
    """What the columns of the tables mean."""
    table = evidence.table("data_dictionary")
    lead = Text("All numbers of this report are in CSV and Parquet files in the folder statistics/, beside report/.")
    if table.empty:
        return Section("tables", "Tables", [lead, Text("There is no data dictionary.", missing=True)])
    rows = tuple(tuple(cell(value) for value in row) for row in table.itertuples(index=False))
    columns = tuple(str(column) for column in table.columns)
    listing = Table("Data dictionary", columns, rows, file="../statistics/data_dictionary.csv", folded=True)
    return Section("tables", "Tables", [lead, listing])


def _groups_table(ratings: pd.DataFrame) -> Table:
    found = ratings.groupby("group")["score"].agg(["count", "mean", "std", "min", "max"])
    rows = tuple(
        (cell(str(group)), cell(int(row["count"])), *(cell(float(v), 2) for v in row[1:]))
        for group, row in found.iterrows()
    )
    return Table("Ratings by group", ("group", "n", "mean", "SD", "lowest", "highest"), rows)


def _covariates(evidence: Evidence, ratings: pd.DataFrame) -> Iterator[Item]:
    confidence = evidence.study.analysis.confidence
    rows = []
    for name in evidence.study.analysis.covariates:
        if name not in ratings or not pd.api.types.is_numeric_dtype(ratings[name]):
            continue
        pair = ratings[[name, "score"]].dropna()
        if len(pair) > 3 and pair[name].nunique() > 1:
            found = stats.pearsonr(pair[name], pair["score"])
            low, high = found.confidence_interval(confidence)
            rows.append((name, float(found.statistic), float(low), float(high)))
    if not rows:
        yield Text("No numeric covariate varies over the rated images.", missing=True)
        return
    yield drawn(
        evidence.layout,
        "covariates",
        "Confounds and ratings.",
        f"Correlation of each numeric covariate of the baseline with the ratings, {confidence:.0%} interval.",
        figures.covariate_correlations,
        pd.DataFrame(rows, columns=["covariate", "r", "ci_low", "ci_high"]),
    )


def _ceilings(evidence: Evidence) -> Iterator[Item]:
    table = evidence.table("noise_ceiling")
    if table.empty:
        return
    rows = tuple(
        (
            cell(row["subset"]),
            cell(row["method"]),
            cell(int(row["n"])),
            cell(row["num_raters"], 1),
            cell(row["ceiling_r2"]),
            cell(row["reason"]),
        )
        for _, row in table.iterrows()
    )
    columns = ("images", "method", "n", "raters", "largest R²", "remark")
    yield Table("Noise ceiling of the ratings", columns, rows, file="../statistics/noise_ceiling.csv")


def _failed_runs(evidence: Evidence) -> Iterator[Item]:
    rows = tuple(
        (cell(row.run.model), cell(row.run.group), cell(row.run.seed), cell(row.status), cell(row.reason))
        for row in evidence.runs
        if row.status != "done"
    )
    if rows:
        yield Table("Runs without a result", ("model", "group", "seed", "end", "reason"), rows)
    elif evidence.runs:
        yield Text(f"All {len(evidence.runs)} runs were completed.")
    else:
        yield Text("The study has no runs.", missing=True)


def _uncovered(evidence: Evidence) -> Iterator[Item]:
    """What could not be computed, or only from fewer runs than planned."""
    table = evidence.table("coverage")
    if table.empty:
        return
    chosen = table[(table[["missing_runs", "note", "reason"]] != "").any(axis=1)]
    if chosen.empty:
        return
    columns = ("model", "trained_on", "scorer", "seed", "subset", "n", "missing_runs", "note", "reason")
    rows = tuple(tuple(cell(value) for value in row) for row in chosen[list(columns)].itertuples(index=False))
    caption = "Analyses that lack something"
    headings = ("model", "trained on", "scorer", "seed", "images", "n", "missing runs", "note", "reason")
    yield Table(caption, headings, rows, file="../statistics/coverage.csv", folded=True)


def _problem_images(evidence: Evidence) -> Iterator[Item]:
    for name, packed in evidence.packed.items():
        problems = packed.problems
        if problems.empty:
            yield Text(f"Every image of “{name}” could be used ({len(packed):,}).")
            continue
        rows = tuple(
            (
                cell(row["path"] or row["image_id"]),
                Cell("–") if pd.isna(row["line"]) else cell(float(row["line"])),
                cell("kept" if row["kept"] else "left out"),
                cell(row["reason"]),
            )
            for _, row in problems.head(_ROWS).iterrows()
        )
        more = f", the first {_ROWS} of {len(problems):,}" if len(problems) > _ROWS else ""
        caption = f"Images of “{name}” that need a word{more}"
        yield Table(caption, ("image", "line", "fate", "reason"), rows, folded=len(rows) > 15)


def facts_of(evidence: Evidence) -> Facts:
    """What turned out and the settings cannot tell."""
    data, packed = evidence.study.data, evidence.packed
    training, rated = packed.get(data.training), packed.get(data.rated)
    excluded = {name: int((one.problems["kept"] == 0).sum()) for name, one in packed.items()}
    records = [outcome.provenance for _, _, outcome in evidence.outcomes if outcome.provenance]
    return Facts(
        num_training=len(training) if training else None,
        num_rated=len(rated) if rated else None,
        num_excluded=excluded,
        epochs_run=_epochs_run(evidence),
        layers=_num_layers(evidence),
        num_runs=(len(evidence.runs), len(evidence.done)),
        versions=dict(records[-1].get("packages", {})) if records else {},
        commit=listed(sorted({str(record.get("commit", "")) for record in records})) if records else "",
        missing_covariates=missing_covariates(evidence),
        compares_groups=not evidence.table("interactions_over_seeds").empty,
    )


def _epochs_run(evidence: Evidence) -> dict[str, tuple[int, int]]:
    done = {run.id for run in evidence.done}
    curves = evidence.curves[evidence.curves["run_id"].isin(done)]
    counts = curves[curves["phase"] == "train"].groupby(["model", "run_id"])["epoch"].nunique()
    return {str(model): (int(own.min()), int(own.max())) for model, own in counts.groupby(level="model")}


def _num_layers(evidence: Evidence) -> dict[str, int]:
    table = evidence.table("correlations")
    if table.empty:
        return {}
    gates = table.loc[table["metric"].isin([*REPORTED]), "layer"].unique()
    layers = table[~table["layer"].isin([RECONSTRUCTION, LOSS, *gates])].groupby("model")["layer"].nunique()
    return {name: int(layers[name]) for name in evidence.study.model_names if name in layers}


def _versions_text(evidence: Evidence) -> str:
    versions = {
        f"{name} {version}"
        for _, _, outcome in evidence.outcomes
        for name, version in outcome.provenance.get("packages", {}).items()
    }
    return f"Packages: {listed(sorted(versions))}." if versions else ""
