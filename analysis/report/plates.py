"""Figures of one model's metrics and latents: how they hang together, with each other and with the ratings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import figures
from analysis.diagnostics import RATING
from analysis.measure import LOSS, RECONSTRUCTION
from analysis.report.evidence import Evidence, metrics_of
from analysis.report.page import Item, Text, counted, drawn, listed, number
from analysis.report.summary import ALL_IMAGES, Summary, controls, metric_name, pixel_models
from fluence.errors import FluenceError
from fluence.layout import Run
from fluence.store.files import read_table

MOST_ROWS = 40
"""More rows of a matrix cannot be read in print."""

_METHODS = {"pca": ("PCA", "PC"), "tsne": ("t-SNE", "t-SNE"), "umap": ("UMAP", "UMAP")}
_MEANINGLESS = (
    "In maps by t-SNE and UMAP only neighbourhood means something: distances between clusters, their sizes and the "
    "axes do not."
)


def plates_of(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    """At most three figures: correlations of all metrics, the strongest one against the ratings, the latents."""
    yield from _matrix(evidence, model)
    if model not in controls(evidence):
        yield from _joint(evidence, summary, model)
    yield from _maps(evidence, model)


# ── All metrics with each other ──────────────────────────────────────────────────────────────────────────────────


def _matrix(evidence: Evidence, model: str) -> Iterator[Item]:
    table = evidence.table("metric_correlations")
    table = table[table["model"] == model] if len(table) else table
    if table.empty:
        yield Text("the correlations of its metrics with each other are not there.", heading=model, missing=True)
        return
    r, p, families = correlation_tables(table)
    with_rating = r.iloc[0, 1:].abs()
    kept = [0, *np.sort(np.argsort(-with_rating.fillna(-1).to_numpy(), kind="stable")[: MOST_ROWS - 1] + 1)]
    left_out = len(r) - len(kept)
    names = [_label(evidence, layer, metric) for layer, metric in r.index[kept]]
    blocks = pd.Series([families[place] for place in kept]).value_counts(sort=False).tolist()
    few, many = int(table["n"].min()), int(table["n"].max())
    words = f"n = {many:,}" if few == many else f"n = {few:,} to {many:,}"
    some = f" The {counted(left_out, 'metric')} least correlated with the ratings left out." if left_out else ""
    yield drawn(
        evidence.layout,
        f"matrix-{model}",
        f"Metrics of {model} with each other and with the ratings.",
        f"Pearson correlations over the rated images (first row: with the ratings), seed {table['seed'].iloc[0]}; "
        f"right: p of the t test, not corrected for {counted(int(table['estimate'].count()), 'test')}, confounds "
        f"included. Grey: a metric that is constant or missing.{some}",
        figures.correlation_matrix,
        *(pd.DataFrame(one.to_numpy()[np.ix_(kept, kept)], names, names) for one in (r, p)),
        blocks,
        words,
    )


def correlation_tables(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Pairs of one model as symmetric tables of r and of p, named by (layer, metric), and the family of each row.

    The ratings come first, then metric by metric, each in the order of the network. A metric's r with itself is 1, and
    its p NaN.
    """
    pairs = [
        [(str(layer), str(metric)) for layer, metric in zip(table[f"{end}layer"], table[f"{end}metric"], strict=True)]
        for end in ("other_", "")
    ]
    every = list(dict.fromkeys([*pairs[0], *pairs[1]]))
    metrics = list(dict.fromkeys(metric for _, metric in every))
    names = sorted(every, key=lambda name: (name[0] != RATING, metrics.index(name[1])))
    place = {name: number for number, name in enumerate(names)}
    rows, columns = ([place[name] for name in one] for one in pairs)
    matrices = []
    for column in ("estimate", "p_parametric"):
        matrix = np.full((len(names), len(names)), np.nan)
        matrix[rows, columns] = matrix[columns, rows] = table[column]
        matrices.append(matrix)
    known = np.isfinite(matrices[0]).any(axis=0)
    np.fill_diagonal(matrices[0], np.where(known, 1.0, np.nan))
    index = pd.MultiIndex.from_tuples(names)
    r, p = (pd.DataFrame(matrix, index, index) for matrix in matrices)
    return r, p, [layer if layer in (RATING, RECONSTRUCTION, LOSS) else metric for layer, metric in names]


def _label(evidence: Evidence, layer: str, metric: str) -> str:
    if layer == RATING:
        return metric
    name = metric_name(evidence, layer, metric)
    return name.replace(f" (q = {evidence.study.analysis.epsilon.report:g})", "").replace(" reconstruction", "")


# ── One metric with the ratings ──────────────────────────────────────────────────────────────────────────────────


def _joint(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    table = summary.general_correlations("pearson")
    table = table[table["model"] == model].dropna(subset=["r"]) if len(table) else table
    run = next((run for run in evidence.done if (run.model, run.group) == (model, ALL_IMAGES)), None)
    values = metrics_of(evidence, run) if run else None
    if table.empty or run is None or values is None:
        yield Text("no metric of it could be correlated with the ratings.", heading=model, missing=True)
        return
    top = table.loc[table["r"].abs().idxmax()]
    name = metric_name(evidence, top["layer"], top["metric"])
    chosen = values[(values["layer"] == top["layer"]) & (values["metric"] == top["metric"])]
    ratings = evidence.ratings()["score"].rename("y")
    points = chosen.set_index("image_id")["value"].rename("x").to_frame().join(ratings).dropna()
    level = evidence.study.analysis.confidence
    yield drawn(
        evidence.layout,
        f"joint-{model}",
        f"{name} and the ratings, in {model}.",
        f"One mark per image (hexagons beyond {figures.MOST_POINTS:,}), seed {run.seed}; least-squares line with its "
        f"{level:.0%} interval; histograms of both. The metric was chosen after the fact, as the one with the largest "
        f"|r| of {len(table)}: its size is exaggerated.",
        figures.joint,
        points,
        name,
        evidence.study.data.score,
        _r_of(evidence, run, top),
        regression_line(points, level),
        shows="ratings",
    )


def _r_of(evidence: Evidence, run: Run, metric: pd.Series) -> float:
    """r as the tables have it for one training."""
    table = evidence.table("correlations")
    same = (table["model"] == run.model) & (table["seed"] == run.seed) & (table["estimator"] == "pearson")
    same &= (table["trained_on"] == ALL_IMAGES) & (table["subset"] == ALL_IMAGES)
    same &= (table["layer"] == metric["layer"]) & (table["metric"] == metric["metric"])
    found = table.loc[same, "estimate"]
    return float(found.iloc[0]) if len(found) else float("nan")


def regression_line(points: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """The mean of y by least squares at 50 values of x, and its interval: x, mean, low, high; no rows without a line.

    Args:
        points: columns x and y, without gaps.
        confidence: level of the interval.
    """
    if len(points) < 3 or points["x"].nunique() == 1:
        return pd.DataFrame(columns=["x", "mean", "low", "high"], dtype=float)
    from statsmodels.api import OLS, add_constant

    at = np.linspace(points["x"].min(), points["x"].max(), 50)
    fit = OLS(points["y"].to_numpy(), add_constant(points["x"].to_numpy())).fit()
    frame = fit.get_prediction(add_constant(at)).summary_frame(alpha=1 - confidence)
    ends = {"mean": "mean", "low": "mean_ci_lower", "high": "mean_ci_upper"}
    return pd.DataFrame({"x": at} | {name: frame[column].to_numpy() for name, column in ends.items()})


# ── Latents in the plane ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Map:
    """What `analysis.embedding` has left of a run."""

    table: pd.DataFrame
    run: Run

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(self.table["method"]))

    def panel(self, method: str, title: str) -> figures.Panel:
        """The map by one method."""
        points = self.table[self.table["method"] == method].set_index("image_id")[["x", "y"]]
        facts, name = self.table.attrs["facts"][method], _METHODS[method][1]
        shares = [f" ({facts[f'share_{axis}']:.0%})" if f"share_{axis}" in facts else "" for axis in "xy"]
        return figures.Panel(title, points, (f"{name} 1{shares[0]}", f"{name} 2{shares[1]}"))

    def trust(self, method: str) -> float:
        return float(self.table.attrs["facts"][method]["trustworthiness"])


def _maps(evidence: Evidence, model: str) -> Iterator[Item]:
    if not evidence.study.analysis.embeddings or model in pixel_models(evidence):
        return
    found = _map_of(evidence, model)
    if isinstance(found, str):
        yield Text(f"no map of its latents: {found}.", heading=model, missing=True)
        return
    known = _known(evidence)
    trusts = listed([f"{_METHODS[method][0]} {number(found.trust(method), 2)}" for method in found.methods])
    first = found.table.attrs["facts"][found.methods[0]]
    yield drawn(
        evidence.layout,
        f"latents-{model}",
        f"The latents of {model} in the plane.",
        f"One mark per rated image{_how_many(found)}, seed {found.run.seed}, layer {found.table.attrs['layer']}; "
        f"by {listed([_METHODS[method][0] for method in found.methods])}; the same maps in each row, coloured by "
        f"{listed(list(known))}. Trustworthiness (1: no strangers among the {first['neighbours']:.0f} nearest): "
        f"{trusts}. {_MEANINGLESS}",
        figures.latent_maps,
        [found.panel(method, _METHODS[method][0]) for method in found.methods],
        known,
        shows="ratings",
    )


def compared_maps(evidence: Evidence, name: str, models: Sequence[str]) -> Iterator[Item]:
    """The latents of the models of a comparison side by side, by the last method that the study asks for.

    Args:
        evidence: of the study.
        name: of the comparison.
        models: its models.
    """
    if not evidence.study.analysis.embeddings:
        return
    method = evidence.study.analysis.embeddings[-1]
    maps = {model: _map_of(evidence, model) for model in models}
    drawable = {model: one for model, one in maps.items() if isinstance(one, _Map) and method in one.methods}
    lacking = [f"{model} ({one})" for model, one in maps.items() if isinstance(one, str)]
    if not drawable:
        yield Text(f"There are no maps of their latents: {listed(lacking)}.", missing=True)
        return
    num_figures = -(-len(drawable) // figures.MOST_MAPS)
    for place, chunk in enumerate(np.array_split(list(drawable), num_figures), start=1):
        own = {model: drawable[model] for model in map(str, chunk)}
        trusts = listed([f"{model} {number(one.trust(method), 2)}" for model, one in own.items()])
        yield drawn(
            evidence.layout,
            f"comparison-{name}-latents" + (f"-{place}" if num_figures > 1 else ""),
            f"Their latents, by {_METHODS[method][0]}.",
            f"One mark per rated image, first seed; trustworthiness: {trusts}. {_MEANINGLESS}"
            + (f" Without a map: {listed(lacking)}." if lacking else ""),
            figures.latent_maps,
            [one.panel(method, model) for model, one in own.items()],
            _known(evidence),
            shows="ratings",
        )


def _map_of(evidence: Evidence, model: str) -> _Map | str:
    """The map of a model's latents, or why there is none."""
    seeds = evidence.study.seeds_of(model)
    run = next((run for run in evidence.done if (run.model, run.group) == (model, ALL_IMAGES)), None)
    if not seeds or run is None or run.seed != seeds[0]:
        return f"its general run with seed {seeds[0]} is not done" if seeds else "it has no general run"
    try:
        table = read_table(evidence.layout.embedding(run.id))
    except FluenceError:
        return "measured before maps were asked for"
    return table.attrs["reason"] or _Map(table, run)


def _how_many(found: _Map) -> str:
    shown, there = found.table["image_id"].nunique(), found.table.attrs["num_images"]
    return f" ({shown:,} of {there:,}, drawn at random)" if shown < there else ""


def _known(evidence: Evidence) -> dict[str, pd.Series]:
    """What marks are coloured by: the ratings, and those columns that make the groups and are not the same for all."""
    ratings = evidence.ratings()["score"].rename(evidence.study.data.score)
    known = {evidence.study.data.score: ratings.astype(float)} if len(ratings) else {}
    table = evidence.rated.table.set_index("image_id") if evidence.rated is not None else pd.DataFrame()
    for column in evidence.study.data.group_by:
        if column in table and table[column].nunique() > 1:
            known[column] = table[column].astype(object).where(table[column].notna() & (table[column] != ""), None)
    return known
