"""The chapter that sets models side by side: the comparisons that the study asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from analysis import figures
from analysis.gates import REPORTED
from analysis.measure import RECONSTRUCTION
from analysis.report.compared import Case, case_of
from analysis.report.constrained import constraint_tables
from analysis.report.evidence import Evidence, compared_strips, run_means
from analysis.report.inside import with_and_without
from analysis.report.page import (
    NOTHING,
    Cell,
    Heading,
    Item,
    Section,
    Table,
    Text,
    cell,
    drawn,
    interval,
    listed,
    number,
    p_equals,
    p_value,
)
from analysis.report.plates import compared_maps
from analysis.report.summary import (
    Summary,
    controls,
    error_names,
    metric_name,
    reported_metrics,
    seeds_done,
)

_IMAGES_SHOWN = 8
_LACKING = "what is lacking"


def comparisons(evidence: Evidence, summary: Summary) -> Section | None:
    """The models of each comparison side by side, under its question; None if the study has no comparisons."""
    asked = evidence.study.comparisons
    if not asked:
        return None
    means = run_means(evidence, sorted({model for comparison in asked.values() for model in comparison.models}))
    items: list[Item] = []
    for name, comparison in asked.items():
        items += [Heading(name), Text(comparison.question), *_items(case_of(evidence, summary, name, means))]
    return Section("comparisons", "Comparisons", items)


def _items(case: Case) -> Iterator[Item]:
    yield from _losses(case)
    yield from _reconstructions(case)
    yield from with_and_without(case)
    yield from compared_maps(case.evidence, case.name, case.models)
    yield _loss_table(case)
    yield _metric_table(case)
    yield _gain_table(case)
    yield from constraint_tables(case)
    yield from _layers(case)
    yield Text(_reading(case), heading="How to read this")


# ── Figures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _losses(case: Case) -> Iterator[Item]:
    if case.curves.empty:
        yield Text("No run has written a training log, so there are no loss curves.", missing=True)
        return
    terms = list(dict.fromkeys(case.curves["term"]))
    shown, left_out = terms[: figures.MOST_PANELS], terms[figures.MOST_PANELS :]
    words = (
        "The loss and its terms (without their weights) by epoch, a line per seed; dotted: training images, solid: "
        "held-out images, with a marker at the last epoch. The loss itself is comparable only between models with the "
        "same terms and weights."
    )
    words += " An untrained model stands at epoch 0." if (case.curves["epoch"] == 0).any() else ""
    words += f" In the table only: {listed([figures.term_name(term) for term in left_out])}." if left_out else ""
    yield drawn(
        case.evidence.layout,
        f"comparison-{case.name}-losses",
        "How the models trained.",
        words + _cut_short(case) + _absent(case, "a training log", set(case.curves["model"])),
        figures.compared_curves,
        case.curves[case.curves["term"].isin(shown)],
        case.styles,
    )


def _cut_short(case: Case) -> str:
    """A sentence on the runs whose lines end where the run did."""
    logged = set(case.curves["run_id"])
    runs = [row for model in case.models for row in case.runs_of(model) if row.run.id in logged]
    words = [f"{row.run.model} seed {row.run.seed} ({row.status})" for row in runs if row.status != "done"]
    return f" Drawn as far as they came: {listed(words)}." if words else ""


def _absent(case: Case, what: str, present: set[str]) -> str:
    """A sentence on the models that a figure does not show."""
    absent = [model for model in case.models if model not in present]
    why = "the tables say why" if any(case.lacking(model) for model in absent) else "none was kept"
    return f" Without {what}: {listed(absent)}; {why}." if absent else ""


def _reconstructions(case: Case) -> Iterator[Item]:
    strips = compared_strips(case.evidence, case.models, _IMAGES_SHOWN)
    if not strips:
        yield Text("No reconstructions of the same rated images have been kept.", missing=True)
        return
    original, *rows = strips
    yield drawn(
        case.evidence.layout,
        f"comparison-{case.name}-reconstructions",
        "The same images, reconstructed.",
        "Rated images (first row) and what each model makes of them (z = μ), by its first seed that is done."
        f"{_absent(case, 'reconstructions', {strip.label for strip in rows})}",
        figures.reconstructions,
        [original, *(replace(strip, label=case.label(strip.label)) for strip in rows)],
    )


def _layers(case: Case) -> Iterator[Item]:
    rows, layers = case.by_layer("gini")
    if rows.empty:
        yield Text("No model of this comparison has been measured, so there are no metrics by layer.", missing=True)
        return
    present = set(rows["model"])
    words = "Gini of each layer, mean over the rated images and the seeds; grey: the other models."
    words += " Band: smallest to largest seed." if (rows["low"] < rows["high"]).any() else ""
    words += "" if layers else " The models have different layers, so these are placed by their relative depth."
    counts = {model: case.num_measured(model) for model in case.models if model in present}
    yield drawn(
        case.evidence.layout,
        f"comparison-{case.name}-layers",
        "Sparsity by layer.",
        words + _absent(case, "metrics", present) + case.missing_seeds(counts),
        figures.metric_by_layer,
        rows.assign(model=rows["model"].map(case.label)),
        "Gini",
        {case.label(model): style for model, style in case.styles.items()},
        layers,
    )


# ── Tables: a row per model, also of those that have no number ───────────────────────────────────────────────────


def _loss_table(case: Case) -> Table:
    """Loss terms at the end of training."""
    done = case.curves["run_id"].isin([run.id for run in case.evidence.done])
    phase = "validation" if "validation" in set(case.curves.loc[done, "phase"]) else "train"
    chosen = case.curves[done & (case.curves["phase"] == phase)].sort_values("epoch", kind="stable")
    ends = chosen.groupby(["run_id", "term"], sort=False).tail(1)
    terms = list(dict.fromkeys(case.curves["term"]))
    numbers = {}
    for model in case.models:
        own = ends[ends["model"] == model]
        epochs = [str(epoch) for epoch in sorted(own["epoch"].unique())]
        of_terms = [mean_and_spread(own.loc[own["term"] == term, "value"]) for term in terms]
        numbers[model] = (cell(listed(epochs) if epochs else NOTHING), *of_terms)
    images = "held-out" if phase == "validation" else "training"
    counts = {model: case.num_done(model) for model in case.models}
    columns = ("epochs", *(figures.term_name(term) for term in terms))
    return _table(case, f"Loss terms on {images} images at the end of training", columns, counts, numbers)


def _metric_table(case: Case) -> Table:
    """Reconstruction errors and sparsity."""
    means = case.means[case.means["layer"] == RECONSTRUCTION]
    errors = {key: name for key, name in error_names(case.evidence).items() if key in set(means["metric"])}
    of_layers, of_gates, metrics = case.of_layers(), case.of_gates(), reported_metrics(case.evidence)
    numbers = {}
    for model in case.models:
        own = means[means["model"] == model]
        of_errors = [mean_and_spread(own.loc[own["metric"] == key, "value"]) for key in errors]
        tables = {key: of_gates if key in REPORTED else of_layers for key in metrics}
        chosen = [table[(table["model"] == model) & (table["metric"] == key)] for key, table in tables.items()]
        by_seed = [table.groupby("seed")["value"].mean() for table in chosen]
        numbers[model] = (*of_errors, *map(mean_and_spread, by_seed))
    caption = "Reconstruction errors, mean over the rated images, and sparsity, mean over images and layers"
    counts = {model: case.num_measured(model) for model in case.models}
    return _table(case, caption, (*errors.values(), *metrics.values()), counts, numbers)


def _gain_table(case: Case) -> Table:
    """What the metrics of each model say about the ratings."""
    found = {model: case.ridge(model) for model in case.models}
    counts = {model: 0 if row is None else int(row["num_seeds"]) for model, row in found.items()}
    columns = ("Δ R²", "interval", "seeds from … to", "p adjusted", "strongest partial correlation")
    numbers = {model: (*_gain(case, model), _strongest(case, model)) for model in case.models}
    caption = "What all metrics add to the confounds, mean over the seeds; p is adjusted over the models of the study"
    return _table(case, caption, columns, counts, numbers, file="../statistics/ridge_over_seeds.csv")


def _table(
    case: Case,
    caption: str,
    columns: Sequence[str],
    counts: dict[str, int],
    numbers: dict[str, tuple[Cell, ...]],
    *,
    file: str = "",
) -> Table:
    """Model, seeds, the numbers, and what is lacking if anything is. Numbers that are in no file are given ± SD."""
    lacking = {model: case.lacking(model) for model in case.models}
    rows = []
    for model, num_seeds in counts.items():
        head = cell(case.label(model)), Cell(seeds_done(case.evidence, num_seeds, model), float(num_seeds))
        rows.append((*head, *numbers[model], *([cell(lacking[model])] if any(lacking.values()) else [])))
    words = ", mean ± standard deviation over the seeds" if not file and max(counts.values()) > 1 else ""
    missing = case.missing_seeds(counts)
    headings = ("model", "seeds", *columns, *([_LACKING] if any(lacking.values()) else []))
    return Table(f"{caption}{words}{'.' if missing else ''}{missing}", headings, tuple(rows), file=file)


def _gain(case: Case, model: str) -> tuple[Cell, ...]:
    """Δ R² over the confounds by all metrics, its interval, its range over the seeds and p."""
    row = case.ridge(model)
    if row is None or not math.isfinite(row["delta"]):
        return (cell(None),) * 4
    primary = case.summary.primary(controls(case.evidence))
    p = primary.loc[primary["model"] == model, "p_models"]
    over_seeds = interval(row["delta_min"], row["delta_max"]) if row["num_seeds"] > 1 else NOTHING
    return (
        cell(float(row["delta"])),
        Cell(interval(row["ci_low"], row["ci_high"]), float(row["ci_low"])),
        Cell(over_seeds, float(row["delta_min"])),
        Cell(p_value(p.iloc[0]), float(p.iloc[0])) if len(p) else Cell(NOTHING, 2.0),
    )


def _strongest(case: Case, model: str) -> Cell:
    """The partial correlation that is farthest from zero."""
    table = case.summary.general_correlations("partial")
    rows = table[table["model"] == model].dropna(subset=["r"]) if not table.empty else table
    if rows.empty:
        return cell(None)
    top = rows.loc[rows["r"].abs().idxmax()]
    name = metric_name(case.evidence, top["layer"], top["metric"])
    return cell(f"r = {number(top['r'], 2, sign=True)}, {p_equals(top['p'])}: {name}")


def mean_and_spread(values: pd.Series) -> Cell:
    """Mean of a value per seed, ± their standard deviation if there are several.

    Three significant digits of the mean, more where the standard deviation would be rounded to zero.
    """
    values = values.dropna()
    if values.empty:
        return cell(None)
    mean, spread = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    digits = max(_decimals(mean, 3), _decimals(spread, 1))
    return Cell(number(mean, digits) + (f" ± {number(spread, digits)}" if len(values) > 1 else ""), mean)


def _decimals(value: float, significant: int) -> int:
    """Decimals that show so many significant digits of a value, at most 6; 0 for zero."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(6, max(0, significant - 1 - math.floor(math.log10(abs(value)))))


def _reading(case: Case) -> str:
    """What may be concluded from the comparison, and what may not."""
    once = [model for model in case.models if case.num_measured(model) == 1]
    if any(case.num_measured(model) > 1 for model in case.models):
        words = "Differences between models are differences between means over seeds"
        words += f" (one seed only of {listed(once)})" if once else ""
    else:
        words = "No model has more than one seed, so what another seed would change is unknown"
    return (
        f"{words}; none was tested, so no model is shown to be better than another. Δ R², its interval and p "
        "compare each model with the confounds alone. The strongest partial correlation was picked after the fact: "
        "exploratory."
    )
