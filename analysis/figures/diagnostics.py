"""Whether the numbers can be trusted: p-values, power, spread over trainings, and what the raters leave to explain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from analysis.figures.plate import (
    COLOURS,
    INK,
    MARKERS,
    MUTED,
    ONE_COLUMN_IN,
    PALE,
    TWO_COLUMNS_IN,
    marker_of,
    shorten,
    zero_line,
)

_PANELS_PER_ROW = 4
_LEAST_P = 1e-8  # smaller ones are drawn there
_DASHES = ("-", "--", ":")


def p_calibration(tests: pd.DataFrame, rates: pd.DataFrame) -> Figure:
    """Whether p means what it says: three panels.

    Left: p by permutation against p of the t test, of every test. Middle: of tests on exchanged ratings, the share
    whose t test has a p of at most α, against α. Right: p by permutation of all tests against what they would be if
    nothing were there.

    Args:
        tests: columns estimator, p_parametric, p_permutation, control (whether the model has learned nothing).
        rates: columns estimator, alpha, rate; the mean over the models.
    """
    figure = Figure(figsize=(TWO_COLUMNS_IN, 2.75))
    left, middle, right = figure.subplots(1, 3, gridspec_kw={"wspace": 0.08})
    estimators = list(dict.fromkeys(tests["estimator"]))
    styles = {name: (COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]) for k, name in enumerate(estimators)}
    for name, (colour, marker) in styles.items():
        own, of_null = tests[tests["estimator"] == name], rates[rates["estimator"] == name]
        left.plot(
            own["p_parametric"].clip(lower=_LEAST_P), own["p_permutation"], linestyle="none", marker=marker,
            color=colour, markersize=2.2, markeredgewidth=0, alpha=0.5, label=name, rasterized=True,
        )  # fmt: skip
        middle.plot(of_null["alpha"], of_null["rate"], marker=marker, markersize=3, color=colour)
    for control, colour, dash, name in ((False, INK, "-", "trained"), (True, MUTED, "--", "controls")):
        p = np.sort(tests.loc[tests["control"] == control, "p_permutation"].dropna())
        if len(p):
            expected = (np.arange(len(p)) + 0.5) / len(p)
            right.plot(expected, p, color=colour, linestyle=dash, label=f"{name} ({len(p):,})")
    _both_in_decades(left, "p of the t test", "p by permutation")
    _both_in_decades(middle, "α", "share of t tests with p ≤ α")
    _both_in_decades(right, "Expected p if nothing is there", "p by permutation")
    left.set_title("Two kinds of p")
    middle.set_title("Exchanged ratings")
    right.set_title("All tests")
    right.legend(loc="upper left", borderaxespad=0)
    handles, labels = left.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=4)
    for handle in legend.legend_handles:
        handle.set(alpha=1, markersize=4)  # type: ignore[union-attr]
    return figure


def _both_in_decades(axes: Axes, x_label: str, y_label: str) -> None:
    """Logarithmic axes of probabilities, with the line of equality."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.plot([_LEAST_P, 1], [_LEAST_P, 1], color=MUTED, linewidth=0.7, zorder=0, scalex=False, scaley=False)
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        low = math.floor(math.log10(max(limits[0], _LEAST_P)) + 0.05)
        step = 1 if low >= -4 else 2
        axis.set_major_locator(FixedLocator([10.0**power for power in range(0, low - 1, -step)]))
        axis.set_major_formatter(FuncFormatter(lambda p, _: f"{p:g}" if p > 5e-4 else f"1e−{-math.log10(p):.0f}"))
        axis.set_minor_locator(NullLocator())
    axes.set_xlim(max(axes.get_xlim()[0], _LEAST_P), 1.3)
    axes.set_ylim(max(axes.get_ylim()[0], _LEAST_P), 1.3)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def power(curves: pd.DataFrame, cells: pd.DataFrame, words: str) -> Figure:
    """The smallest R² that can be seen, against the number of images.

    Args:
        curves: columns num_predictors, n, r2.
        cells: columns label, n, r2: the sets of images of this study.
        words: level and power, printed under the title.
    """
    figure = Figure(figsize=(ONE_COLUMN_IN, 2.9))
    axes = figure.subplots()
    for number, (predictors, line) in enumerate(curves.groupby("num_predictors", sort=True)):
        name = f"{predictors} predictor{'' if predictors == 1 else 's'}"
        axes.plot(line["n"], line["r2"], color=COLOURS[number], linestyle=_DASHES[number % 3], label=name)
    for number, (label, rows) in enumerate(cells.groupby("label", sort=False)):
        face = INK if number == 0 else "white"
        axes.plot(
            rows["n"], rows["r2"], linestyle="none", marker=MARKERS[number % len(MARKERS)], color=INK, label=label,
            markersize=4, markerfacecolor=face, zorder=3,
        )  # fmt: skip
    axes.set_xscale("log")
    ticks = [n for n in (20, 50, 100, 200, 500, 1000, 2000, 5000) if curves["n"].min() <= n <= curves["n"].max()]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, min(1, 1.05 * max(curves["r2"].max(), cells["r2"].max() if len(cells) else 0)))
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_xlabel("Images")
    axes.set_ylabel("Smallest R² that is found")
    axes.set_title(words, fontweight="normal", fontsize=7)
    axes.legend(loc="upper right")
    return figure


def seed_spread(rows: pd.DataFrame, families: Mapping[str, str], colours: Mapping[str, str]) -> Figure:
    """Δ R² of each training beside their mean: a panel per family of metrics, a line per model.

    Args:
        rows: columns model, label, predictors, seed, delta.
        families: predictors: their name, in the order of the panels.
        colours: model: its colour.
    """
    models = dict(zip(rows["model"], rows["label"], strict=True))
    num_columns = min(_PANELS_PER_ROW, len(families))
    num_rows = math.ceil(len(families) / num_columns)
    width_in = TWO_COLUMNS_IN if num_columns > 1 else ONE_COLUMN_IN
    figure = Figure(figsize=(width_in, 0.35 + num_rows * (0.4 + 0.17 * len(models))))
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, (family, name) in zip(grid, families.items(), strict=False):
        for place, model in enumerate(reversed(models)):
            own = rows.loc[(rows["model"] == model) & (rows["predictors"] == family), "delta"].dropna()
            axes.plot(own, np.full(len(own), place), "o", color=colours[model], markerfacecolor="none", markersize=3.5)
            if len(own):
                axes.vlines(own.mean(), place - 0.35, place + 0.35, color=colours[model], linewidth=1.6)
        axes.set_title(name)
        axes.set_ylim(-0.6, len(models) - 0.4)
        axes.tick_params(labelbottom=True)
        axes.grid(axis="y", color=PALE, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        zero_line(axes, axis="x")
    for axes in grid[len(families) :]:
        axes.set_visible(False)
    grid[0].set_yticks(range(len(models)), [shorten(label, 24) for label in reversed(models.values())])
    figure.supxlabel("Δ R² over the confounds", fontsize=8)
    return figure


def noise_ceiling(rows: pd.DataFrame, ceilings: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """R² of the confounds and all metrics below the ceiling, for each set of images.

    Args:
        rows: columns subset, model, full; the order of the subsets is kept, from the top.
        ceilings: columns subset, method, ceiling.
        colours: model: its colour.
    """
    subsets: Sequence[str] = list(dict.fromkeys([*rows["subset"], *ceilings["subset"]]))
    height = {subset: len(subsets) - 1 - place for place, subset in enumerate(subsets)}
    models, methods = list(dict.fromkeys(rows["model"])), list(dict.fromkeys(ceilings["method"]))
    lines = math.ceil(len(models) / 2) + len(methods)
    figure = Figure(figsize=(ONE_COLUMN_IN, 0.7 + max(0.34, 0.12 * len(models)) * len(subsets) + 0.15 * lines))
    axes = figure.subplots()
    for method, dash in zip(methods, _DASHES, strict=False):
        own = ceilings[ceilings["method"] == method]
        y = np.array([height[subset] for subset in own["subset"]])
        axes.vlines(own["ceiling"], y - 0.4, y + 0.4, color=INK, linestyle=dash, label=f"ceiling ({method})")
    markers = marker_of(models)
    for number, model in enumerate(models):
        own = rows[rows["model"] == model]
        offset = 0.7 * ((len(models) - 1) / 2 - number) / max(len(models) - 1, 2)
        y = np.array([height[subset] for subset in own["subset"]]) + offset
        axes.plot(
            own["full"], y, linestyle="none", marker=markers[model], color=colours[model], label=shorten(model, 22)
        )
    axes.set_yticks(list(height.values()), [shorten(subset, 22) for subset in subsets])
    axes.set_ylim(-0.6, len(subsets) - 0.4)
    axes.set_xlim(min(-0.02, axes.get_xlim()[0]), 1)
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    zero_line(axes, axis="x")
    axes.set_xlabel("R², confounds and all metrics")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
