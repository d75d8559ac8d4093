"""Do the statistics keep their promises? Ratings with a known effect go through the statistics stage, again and again.

    python benchmarks/calibration.py                                  # metrics of synthetic faces, 4 × 200 simulations
    python benchmarks/calibration.py --metrics invented               # metrics from a normal distribution
    python benchmarks/calibration.py --images 827 --simulations 400 --processes 2

The population is a pool of thousands of images with their confounds and metrics: either synthetic faces that a small
trained network saw in a study of fluence's own (`--pool DIR` keeps it, and the next call uses it again), or numbers
from a normal distribution. Ratings get 15 % of their variance from the confounds, the planted share from the metrics
beyond them (Gini raises them, every other metric lowers them, later layers more), and the rest from chance. Each
simulation draws images from the pool and calls the very functions that a study calls. The truth is known exactly, but
for Spearman's correlation, which is that of 400,000 images.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from scipy import stats

from analysis.cells import Cell, analyse_cell, prepare
from analysis.tables import covariate_design, feature_matrix, load_metrics, rated_images
from fluence.layout import Layout
from fluence.store.packed import Packed
from fluence.study import Analysis

CONFOUNDED = 0.15
"""Share of the variance of the ratings that the confounds explain."""
LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75)
"""How often p falls below each of them, if nothing is planted."""

_ENOUGH = 400_000  # images behind the true Spearman correlation
_LAYERS, _METRICS = ("conv1", "conv2", "conv3", "conv4", "conv5", "mu"), ("gini", "l_eps_fraction_q50")
_GROUPS, _INVENTED = 6, 20_000
_LIGHT = np.array([0.7, -0.4])
_SHARED, _OWN = 0.5, 0.7
_FACES = """
name: faces
description: A pool of synthetic faces without an effect; benchmarks/calibration.py plants its own.
data:
  image_size_px: 64
  datasets:
    seen: {{kind: synthetic, num_images: 400, num_ethnicities: 3, effect: null, seed: 11}}
    pool: {{kind: synthetic, num_images: {faces}, num_ethnicities: 3, effect: null, num_raters: 1, seed: 12}}
  training: seen
  rated: pool
models:
  small: {{kind: vae, architecture: small, width: 0.25, norm: batch, kl_weight: 0.05}}
training: {{epochs: 2, batch_size: 64, learning_rate: 2e-3}}
record: {{store: metrics}}
analysis: {{permutations: 99, bootstrap: 99, ridge: {{folds: 2, repeats: 1}}}}
grid: {{groups: [all], seeds: [0]}}
"""


@dataclass(frozen=True)
class Pool:
    """A population of images.

    Attributes:
        images: group and covariates, a row per image.
        metrics: image × (layer, metric), without NaN, in the same order.
    """

    images: pd.DataFrame
    metrics: pd.DataFrame


@dataclass(frozen=True)
class Truth:
    """What is planted in a population.

    Attributes:
        share: of the variance of the ratings, what the metrics explain beyond the confounds.
        expected: rating of each image of the pool without chance, float64 [n]; the whole rating has variance 1.
        chance: standard deviation of chance.
        correlations: the true one of each metric with the ratings, estimator × (layer, metric).
    """

    share: float
    expected: np.ndarray
    chance: float
    correlations: pd.DataFrame


def main() -> None:
    """Simulates and prints."""
    given = _options()
    analysis = Analysis.model_validate(
        {
            "permutations": 199,
            "bootstrap": 499,
            "correction": given.correction,
            "ridge": {"folds": 10, "repeats": given.repeats},
        }
    )
    pool = invented_pool(_INVENTED, np.random.default_rng(0)) if given.metrics == "invented" else faces_pool(given)
    print(
        f"{given.metrics}: {len(pool.images)} images in the pool, {given.images} drawn, {pool.metrics.shape[1]} "
        f"metrics, {given.simulations} simulations each",
        flush=True,
    )
    tables = []
    for planted in given.planted:
        truth = plant(pool, planted, analysis)
        jobs = (joblib.delayed(simulate)(pool, truth, given.images, n, analysis) for n in range(given.simulations))
        found = joblib.Parallel(n_jobs=given.processes)(jobs)
        tables.append(summary(found, truth))
        print(tables[-1].to_string(), flush=True)
        if planted == 0:
            print(calibration(found).to_string(), flush=True)
    print(pd.concat(tables, axis=1).T.to_string(float_format=lambda number: f"{number:.3f}"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", choices=("faces", "invented"), default="faces")
    parser.add_argument("--pool", type=Path, help="folder of the study of the pool (default: a temporary one)")
    parser.add_argument("--faces", type=int, default=4000, help="number of synthetic faces in the pool")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--planted", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2])
    parser.add_argument("--repeats", type=int, default=2, help="divisions into folds")
    parser.add_argument("--correction", choices=("bh", "max-r"), default="bh")
    parser.add_argument("--processes", type=int, default=-1, help="default: as many as there are cores")
    return parser.parse_args()


def faces_pool(given: argparse.Namespace) -> Pool:
    """Synthetic faces, and the metrics of a small network that was trained on others."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.pool or Path(temporary) / "faces").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        study = folder.parent / f"{folder.name}.yaml"
        study.write_text(_FACES.format(faces=given.faces), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "jobs.cli", "run", str(study), "--output", str(folder)], check=True)
        return read_pool(Layout(folder))


def read_pool(layout: Layout) -> Pool:
    """The rated images of a study with the metrics of its only run."""
    images = rated_images(Packed(layout.packed("pool")).table, "beauty", ("ethnicity", "sex"))
    (table,) = layout.metrics("x").parent.glob("small-all-s0-????????.parquet")  # the maps of its latents lie beside it
    analysis = Analysis()
    metrics = feature_matrix(load_metrics(table, images.index), analysis.epsilon.report, analysis.metrics)
    metrics = metrics.loc[images.index].dropna(axis=1)
    columns = [name for name in analysis.covariates if name in images]
    return Pool(images[columns], metrics)


def invented_pool(num_images: int, rng: np.random.Generator) -> Pool:
    """Metrics from a normal distribution, that share a part with the confounds and with each other."""
    group, light = rng.integers(_GROUPS, size=num_images), rng.normal(size=(num_images, 2))
    steps = np.linspace(-1, 1, _GROUPS)
    confound = (steps[group] + light @ _LIGHT) / np.sqrt(steps.var() + _LIGHT @ _LIGHT)
    columns = pd.MultiIndex.from_product([_LAYERS, _METRICS], names=["layer", "metric"])
    beyond = _SHARED * rng.normal(size=(num_images, 1)) + _OWN * rng.normal(size=(num_images, len(columns)))
    images = {
        "group": [f"g{number}" for number in group],
        "luminance_mean": light[:, 0],
        "luminance_contrast": light[:, 1],
    }
    signs = np.where(columns.get_level_values("metric") == "gini", 1.0, -1.0)
    metrics = pd.DataFrame(0.5 * confound[:, None] + signs * beyond, columns=columns)
    return Pool(pd.DataFrame(images), metrics)


def plant(pool: Pool, share: float, analysis: Analysis) -> Truth:
    """Ratings of a pool in which the metrics explain exactly this share of the variance beyond the confounds."""
    design = covariate_design(pool.images, analysis.covariates).matrix.to_numpy()
    metrics = stats.zscore(pool.metrics.to_numpy(), axis=0)
    full = np.column_stack([np.ones(len(design)), design])
    beyond = metrics - full @ np.linalg.lstsq(full, metrics)[0]
    signs = np.where(pool.metrics.columns.get_level_values("metric") == "gini", 1.0, -1.0)
    effect = stats.zscore(beyond @ (signs * np.linspace(0, 1, metrics.shape[1])))
    confound = stats.zscore(stats.zscore(design, axis=0).sum(axis=1))
    expected = np.sqrt(CONFOUNDED) * confound + np.sqrt(share) * effect
    chance = np.sqrt(1 - CONFOUNDED - share)
    pearson = metrics.T @ expected / len(metrics)
    partial = beyond.T @ (np.sqrt(share) * effect) / len(metrics) / beyond.std(axis=0) / np.sqrt(1 - CONFOUNDED)
    many = np.tile(np.arange(len(design)), -(-_ENOUGH // len(design)))
    ratings = stats.rankdata(expected[many] + chance * np.random.default_rng(0).normal(size=len(many)))
    ranks = stats.rankdata(metrics, axis=0)[many]
    spearman = stats.zscore(ranks, axis=0).T @ stats.zscore(ratings) / len(many)
    columns = pool.metrics.columns
    true = pd.DataFrame([pearson, spearman, partial], ["pearson", "spearman", "partial"], columns)
    return Truth(share, expected, chance, true)


def simulate(
    pool: Pool, truth: Truth, num_images: int, seed: int, analysis: Analysis
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Correlations and regressions of one study of images drawn from the pool, as the analysis writes them."""
    rng = np.random.default_rng([seed, round(1000 * truth.share)])
    drawn = rng.integers(len(pool.images), size=num_images)
    ids = pd.Index([f"i{number:05d}" for number in range(num_images)], name="image_id")
    score = truth.expected[drawn] + truth.chance * rng.normal(size=num_images)
    rated = pool.images.iloc[drawn].set_axis(ids)
    rated = rated.assign(image_id=ids, score=score, beauty=score, cluster=np.arange(num_images))
    features = pool.metrics.iloc[drawn].set_axis(ids)
    sample = prepare("all", rated, "beauty", analysis)
    epsilon = pd.DataFrame({"layer": [], "quantile": [], "epsilon": []})
    cell = Cell("m", "all", "general", 0, "all", features, features.iloc[:, :1], epsilon)
    tables = analyse_cell(cell, sample, analysis)
    return tables.correlations, tables.ridge


def summary(found: list[tuple[pd.DataFrame, pd.DataFrame]], truth: Truth) -> pd.Series:
    """What the simulations of one planted share say.

    attainable              mean over all simulations of the estimate of Δ R²: what such a regression attains
    covered by Δ R²         share of the simulations whose interval of Δ R² holds the attainable Δ R²
    population              mean estimate of the population share
    covered by population   share whose interval of the population share holds the planted share
    power                   share with p of Δ R² of all metrics at most .05; with nothing planted, false positives
    any set, any metric     share with a Δ R², a partial correlation, significant after correction; likewise
    pearson, …              share of the intervals of single correlations that hold the true one; mean over the metrics
    """
    ridge = pd.concat([one.set_index("predictors").loc["all"] for _, one in found], axis=1).T
    delta, share = ridge["delta_r2"].mean(), truth.share
    correlations = pd.concat([one for one, _ in found])
    partial = [one[one["estimator"] == "partial"] for one, _ in found]
    result = {
        "attainable": delta,
        "covered by Δ R²": ((ridge["delta_r2_low"] <= delta) & (delta <= ridge["delta_r2_high"])).mean(),
        "population": ridge["population_delta_r2"].mean(),
        "covered by population": (
            (ridge["population_delta_r2_low"] <= share) & (share <= ridge["population_delta_r2_high"])
        ).mean(),
        "power": (ridge["p_delta"] <= 0.05).mean(),
        "any set": np.mean([(one["p_delta_bh"] <= 0.05).any() for _, one in found]),
        "any metric": np.mean([one["significant"].any() for one in partial]),
    }
    for estimator, true in truth.correlations.iterrows():
        own = correlations[correlations["estimator"] == estimator]
        real = true.loc[pd.MultiIndex.from_frame(own[["layer", "metric"]])].to_numpy()
        result[str(estimator)] = ((own["ci_low"] <= real) & (real <= own["ci_high"])).mean()
    return pd.Series(result, name=share)


def calibration(found: list[tuple[pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame:
    """How often p is at most each level although nothing is planted: by test, and by level."""
    correlations, ridge = (pd.concat(tables) for tables in zip(*found, strict=True))
    partial = correlations[correlations["estimator"] == "partial"]
    tests = {
        "Δ R², all metrics, by permutation": ridge.loc[ridge["predictors"] == "all", "p_delta"],
        "partial correlations, by permutation": partial["p_permutation"],
        "partial correlations, t test": partial["p_parametric"],
    }
    return pd.DataFrame({name: [(p <= level).mean() for level in LEVELS] for name, p in tests.items()}, list(LEVELS)).T


if __name__ == "__main__":
    main()
