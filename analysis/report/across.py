"""Several studies side by side: what each found, on the same scale, and in what they differ."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import figures
from analysis.report.evidence import Evidence, gather
from analysis.report.page import (
    Caveat,
    Cell,
    Item,
    Page,
    Section,
    Table,
    Text,
    cell,
    counted,
    drawn,
    interval,
    listed,
    number,
    p_equals,
    p_value,
    render,
)
from analysis.report.settings import flat, text_of
from analysis.report.summary import (
    PREDICTOR_NAMES,
    Summary,
    controls,
    labelled,
    metric_name,
    seeds_done,
    summarise,
)
from analysis.tablefiles import read_statistics, write_statistics
from fluence import __version__
from fluence.errors import StudyError
from fluence.layout import Layout, Run, RunRow
from fluence.store.files import write_text
from fluence.studyfile import load_study

_ESTIMATORS = {"pearson": "Pearson", "spearman": "Spearman", "partial": "partial", "xi": "Chatterjee's ξ"}


@dataclass(frozen=True)
class Side:
    """One of the studies.

    Attributes:
        name: of the study.
        evidence: what it has left behind.
        summary: its statistics, seeds put together.
    """

    name: str
    evidence: Evidence
    summary: Summary


def compare(layouts: Sequence[Layout], target: Layout) -> tuple[str, ...]:
    """Sets finished studies side by side: a page, its figure, and tables as CSV.

    Args:
        layouts: folders of the studies, at least two.
        target: where the page goes.

    Returns:
        Lines for the screen.

    Raises:
        StudyError: there are fewer than two studies, two of one name, or one without statistics.
        ArtifactError: a file cannot be read or written.
    """
    sides = _sides(layouts)
    regressions, correlations = regressions_of(sides), correlations_of(sides)
    caveats = tuple(differences(sides))
    sections = (
        Section("sets", "Sets of metrics", [_ridge_table(sides, regressions, "All sets of metrics")]),
        Section("correlations", "Correlations", list(_correlation_items(sides, correlations))),
        Section("settings", "What differs in the settings", [_settings_table(sides)]),
    )
    planned = regressions[regressions["predictors"] == "all"]
    lines = tuple(_headline(side, planned[planned["study"] == side.name]) for side in sides)
    page = Page(
        title=" · ".join(side.name for side in sides),
        description=f"{counted(len(sides), 'study').replace('studys', 'studies')} side by side.",
        made=f"Made on {time.strftime('%Y-%m-%d at %H:%M')} by fluence {__version__}.",
        verdict=lines,
        key_items=list(_answer(sides, planned, target)),
        caveats=caveats,
        sections=sections,
    )
    write_statistics(target.statistics, "ridge", regressions)
    write_statistics(target.statistics, "correlations", correlations)
    write_text(target.report_page, render(page))
    return (*lines, *(f"note: {caveat.text}" for caveat in caveats), f"report   {target.report_page}")


def _sides(layouts: Sequence[Layout]) -> list[Side]:
    if len(layouts) < 2:
        raise StudyError("compare takes two studies or more: fluence compare faces.yaml animals.yaml")
    sides = []
    for layout in layouts:
        if not (layout.statistics / "runs.parquet").exists():
            raise StudyError(f"{layout.root}: there are no statistics yet; run the study first, or: fluence report")
        study = load_study(layout.study)
        runs = [_run_row(row) for row in read_statistics(layout.statistics, "runs").to_dict("records")]
        evidence = gather(study, layout, runs)
        sides.append(Side(study.name, evidence, summarise(evidence)))
    names = [side.name for side in sides]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StudyError(f"there are several studies of the name {listed(twice)}; give them different names")
    return sides


def _run_row(row: dict[Any, Any]) -> RunRow:
    run = Run(row["model"], row["trained_on"], row["seed"], row["run_id"])
    return RunRow(run, row["status"], row["reason"])


def regressions_of(sides: Sequence[Side]) -> pd.DataFrame:
    """What the metrics of general models add on all rated images: a row per study, model and set of predictors.

    Columns: study, model, label, predictors, n, num_seeds, baseline, full, delta, ci_low, ci_high, floor, ceiling, p
    (raw, the largest over the seeds), p_models (adjusted over the trained models of its study; all metrics only),
    family_size (how many models these are).
    """
    tables = []
    for side in sides:
        unlearned = controls(side.evidence)
        table = side.summary.general_ridge().dropna(subset=["delta"])
        primary = side.summary.primary(unlearned).set_index("model")["p_models"]
        adjusted = table["model"].map(primary).where(table["predictors"] == "all")
        models = [labelled(side.evidence, model) for model in table["model"]]
        labels = [f"{side.name}: {model}" for model in models]
        seeds = [seeds_done(side.evidence, row.num_seeds, row.model) for row in table.itertuples()]
        family = {"p_models": adjusted, "family_size": len(primary)}
        tables.append(table.assign(study=side.name, label=labels, seeds=seeds, **family))
    columns = ["study", "model", "label", "predictors", "n", "num_seeds", "seeds", "baseline", "full", "delta"]
    columns += ["ci_low", "ci_high", "floor", "ceiling", "p", "p_models", "family_size"]
    return pd.concat(tables, ignore_index=True)[columns]


def correlations_of(sides: Sequence[Side]) -> pd.DataFrame:
    """Correlations of general models on all rated images that at least two studies have.

    Columns: study, model, estimator, layer, metric, n, num_seeds, r, ci_low, ci_high, p_raw and p (raw and adjusted,
    the largest over the seeds), significant, family_size.
    """
    tables = [
        side.summary.general_correlations(estimator).dropna(subset=["r"]).assign(study=side.name)
        for side in sides
        for estimator in _ESTIMATORS
    ]
    table = pd.concat(tables, ignore_index=True)
    same = ["model", "estimator", "layer", "metric"]
    shared = table.groupby(same)["study"].transform("nunique") > 1
    columns = ["study", *same, "n", "num_seeds", "r", "ci_low", "ci_high", "p_raw", "p", "significant", "family_size"]
    return table.loc[shared, columns].reset_index(drop=True)


# ── In what they differ ──────────────────────────────────────────────────────────────────────────────────────────


def differences(sides: Sequence[Side]) -> Iterator[Caveat]:
    """What forbids to subtract one study's numbers from another's."""
    yield from _different_images(sides)
    for key, meaning in (
        ("data.score", "The ratings are not the same column"),
        ("analysis.covariates", "The confounds are not the same, and Δ R² counts from them"),
        ("analysis.family", "Not the same tests are corrected together, so adjusted p are not alike"),
        ("analysis.epsilon", "ε is chosen by different rules, so Lε is not the same metric"),
        ("analysis.ridge", "The regressions are divided into folds differently"),
    ):
        said = [_at(side, key) for side in sides]
        if any(value != said[0] for value in said):
            named = tuple(f"{side.name}: {text_of(value)}" for side, value in zip(sides, said, strict=True))
            yield Caveat(f"{meaning} ({key}).", details=named)
    for side in sides:
        undone = [row for row in side.evidence.runs if row.status != "done"]
        if undone:
            named = tuple(f"{row.run.label}: {row.status}" for row in undone)
            yield Caveat(f"{counted(len(undone), 'run')} of {side.name} came to nothing.", details=named)
    yield Caveat(
        "Each study is tested by itself. Whether two of them differ is not tested, and intervals do not tell: on the "
        "same images they may overlap although there is a difference."
    )


def _different_images(sides: Sequence[Side]) -> Iterator[Caveat]:
    images = [_rated_images(side) for side in sides]
    for (one, first), (other, second) in itertools.combinations(zip(sides, images, strict=True), 2):
        if first.keys() != second.keys():
            common = len(first.keys() & second.keys())
            yield Caveat(
                f"{one.name} and {other.name} are judged on different images: {len(first):,} and {len(second):,}, of "
                f"which {common:,} are the same picture. Their R² have different ceilings and different confounds.",
                severe=True,
            )
        elif first != second:
            changed = sum(first[image] != second[image] for image in first)
            yield Caveat(
                f"{one.name} and {other.name} have the same images, but {changed:,} of them with another rating.",
                severe=True,
            )


def _rated_images(side: Side) -> dict[str, float]:
    """Rating by the hash of the pixels, or by id where the images were packed without one."""
    ratings = side.evidence.ratings()
    key = ratings["sha256"] if "sha256" in ratings else ratings["image_id"]
    return dict(zip(key.astype(str), ratings["score"].astype(float), strict=True))


def _at(side: Side, key: str) -> Any:
    found: Any = side.evidence.study.model_dump(mode="json")
    for part in key.split("."):
        found = found[part]
    return found


def _settings_table(sides: Sequence[Side]) -> Table:
    settings = [dict(flat(side.evidence.study.model_dump(mode="json"))) for side in sides]
    keys = [key for key in dict.fromkeys(itertools.chain(*settings)) if key not in ("name", "description")]
    differing = [key for key in keys if len({one.get(key) for one in settings}) > 1]
    rows = [(Cell(key), *(Cell(one.get(key, "–")) for one in settings)) for key in differing]
    columns = ("setting", *(side.name for side in sides))
    return Table(f"{counted(len(differing), 'setting')} of {len(keys):,} differ", columns, tuple(rows))


# ── What they found ──────────────────────────────────────────────────────────────────────────────────────────────


def _headline(side: Side, rows: pd.DataFrame) -> str:
    trained = rows.dropna(subset=["p_models"])
    if trained.empty:
        return f"{side.name}: no trained model has a result."
    best = trained.loc[trained["delta"].idxmax()]
    level = side.evidence.study.analysis.confidence
    return (
        f"{side.name}: above the confounds (R² {number(best['baseline'])}), the metrics of {best['model']} add Δ R² "
        f"{number(best['delta'])} {interval(best['ci_low'], best['ci_high'])} ({level:.0%} interval, "
        f"{p_equals(best['p_models'])} adjusted, {int(best['n']):,} images), the most of "
        f"{counted(len(trained), 'trained model')}."
    )


def _answer(sides: Sequence[Side], planned: pd.DataFrame, target: Layout) -> Iterator[Item]:
    if planned.empty:
        yield Text("No regression could be computed in any of the studies.", missing=True)
        return
    names = [side.name for side in sides]
    yield drawn(
        target,
        "compared-studies",
        "What the metrics add to the confounds, by study.",
        "Left: R² of the ratings, predicted out of fold from the confounds alone (diamond) and with all metrics of all "
        "layers added (dot). Right: the difference with its bootstrap interval; grey bars end where one in twenty "
        "shuffled data sets ends. Colour: the study. Means over the seeds.",
        figures.gain_over_confounds,
        planned.assign(model=planned["study"]),
        None,
        figures.colour_of(names),
    )
    yield _ridge_table(sides, planned, "The numbers of this figure")


def _ridge_table(sides: Sequence[Side], rows: pd.DataFrame, caption: str) -> Table:
    lines = []
    for _, row in rows.iterrows():
        lines.append(
            (
                cell(row["study"]),
                cell(row["label"].removeprefix(f"{row['study']}: ")),
                cell(PREDICTOR_NAMES.get(row["predictors"], row["predictors"])),
                cell(int(row["n"])),
                Cell(row["seeds"], float(row["num_seeds"])),
                cell(float(row["baseline"])),
                cell(float(row["full"])),
                cell(float(row["delta"])),
                Cell(interval(row["ci_low"], row["ci_high"]), float(row["ci_low"])),
                cell(float(row["floor"])),
                Cell(p_value(row["p"]), float(row["p"])),
                Cell(p_value(row["p_models"]), float(row["p_models"]) if pd.notna(row["p_models"]) else 2.0),
                cell(float(row["ceiling"])),
            )
        )
    columns = ("study", "model", "metrics used", "n", "seeds", "R² confounds", "R² with metrics", "Δ R²", "interval")
    columns += ("noise floor", "p", "p adjusted", "noise ceiling")
    return Table(caption, columns, tuple(lines), file="../statistics/ridge.csv")


def _correlation_items(sides: Sequence[Side], table: pd.DataFrame) -> Iterator[Item]:
    if table.empty:
        yield Text("No model of the same name records the same layer in two of the studies.", missing=True)
        return
    yield Text(
        "Models of the same name, the same layer and the same metric. A star: significant after correction in every "
        "seed of that study."
    )
    for estimator, name in _ESTIMATORS.items():
        rows = table[table["estimator"] == estimator]
        if len(rows):
            yield _correlation_table(sides, rows, f"{name}: correlations with the ratings, by study")


def _correlation_table(sides: Sequence[Side], rows: pd.DataFrame, caption: str) -> Table:
    lines = []
    for (model, layer, metric), group in rows.groupby(["model", "layer", "metric"], sort=False):
        by_study = group.set_index("study")
        cells = [cell(str(model)), cell(metric_name(sides[0].evidence, str(layer), str(metric)))]
        for side in sides:
            cells.append(_correlation(by_study.loc[side.name]) if side.name in by_study.index else Cell("–", -2.0))
        lines.append(tuple(cells))
    columns = ("model", "metric", *(side.name for side in sides))
    return Table(caption, columns, tuple(lines), file="../statistics/correlations.csv", folded=True)


def _correlation(row: pd.Series) -> Cell:
    star = "*" if row["significant"] else ""
    return Cell(f"{number(row['r'], sign=True)}{star} {interval(row['ci_low'], row['ci_high'])}", float(row["r"]))
