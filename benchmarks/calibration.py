"""Do the statistics keep their promises? Simulated ratings with a known effect go through the statistics stage.

    python benchmarks/calibration.py                        # 4 × 200 simulations, some minutes
    python benchmarks/calibration.py --images 827 --simulations 400

Each simulation draws images from an endless population: confounds (a group, two measures of the light), metrics of some
layers that share a part with the confounds and with each other, and ratings of which the confounds explain 15 % and the
metrics, above them, a planted share. It then calls the very functions that a study calls. For every planted share:

attainable   mean over all simulations of the estimate of Δ R²: what such a regression attains from so many images
covered      share of the simulations whose interval contains the attainable Δ R²
population   share whose interval contains the planted share itself, which a regression from finitely many images misses
found        share with p of Δ R² at most .05: the power, or with nothing planted the false positives
any metric   share with a significant partial correlation after correction: with nothing planted, false positives
"""

from __future__ import annotations

import argparse

import joblib
import numpy as np
import pandas as pd

from analysis.cells import Cell, analyse_cell, prepare
from fluence.study import Analysis

_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "mu")
_METRICS = ("gini", "l_eps_fraction_q50")
_GROUPS = 6
_CONFOUNDED = 0.15
"""Share of the variance of the ratings that the confounds explain."""
_LIGHT = np.array([0.7, -0.4])
_SHARED, _OWN = 0.5, 0.7
"""Of what all metrics have in common beyond the confounds, and of what each has for itself."""


def main() -> None:
    """Simulates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--planted", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2])
    parser.add_argument("--correction", choices=("bh", "max-r"), default="bh")
    given = parser.parse_args()
    analysis = Analysis.model_validate(
        {
            "covariates": ["group", "luminance_mean", "luminance_contrast"],
            "permutations": 199,
            "bootstrap": 999,
            "correction": given.correction,
            "ridge": {"folds": 10, "repeats": 2},
        }
    )
    print(f"{given.images} images, {len(_LAYERS) * len(_METRICS)} metrics, {given.simulations} simulations each")
    print("planted  attainable  covered  population  found  any metric")
    for planted in given.planted:
        jobs = (joblib.delayed(simulate)(planted, given.images, seed, analysis) for seed in range(given.simulations))
        found = pd.DataFrame(joblib.Parallel(n_jobs=-1)(jobs))
        attainable = found["delta"].mean()
        covered = ((found["low"] <= attainable) & (attainable <= found["high"])).mean()
        population = ((found["low"] <= planted) & (planted <= found["high"])).mean()
        power, any_metric = (found["p"] <= 0.05).mean(), found["any"].mean()
        print(
            f"{planted:7.2f}  {attainable:10.3f}  {covered:7.3f}  {population:10.3f}  {power:5.3f}  {any_metric:10.3f}"
        )


def simulate(planted: float, num_images: int, seed: int, analysis: Analysis) -> dict[str, float]:
    """One simulated study: Δ R² of all metrics, its interval and p, and whether any metric is called significant."""
    rated, features = invent(planted, num_images, np.random.default_rng(seed))
    sample = prepare("all", rated, "beauty", analysis)
    sweep = features.loc[:, features.columns.get_level_values("metric") == "l_eps_fraction_q50"]
    epsilon = pd.DataFrame({"layer": [], "quantile": [], "epsilon": []})
    tables = analyse_cell(Cell("m", "all", "general", 0, "all", features, sweep, epsilon), sample, analysis)
    row = tables.ridge.set_index("predictors").loc["all"]
    partial = tables.correlations.query("estimator == 'partial'")
    return {
        "delta": row["delta_r2"],
        "low": row["delta_r2_low"],
        "high": row["delta_r2_high"],
        "p": row["p_delta"],
        "any": bool(partial["significant"].any()),
    }


def invent(planted: float, num_images: int, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rated images with confounds, and their metrics, image × (layer, metric)."""
    ids = pd.Index([f"i{number:05d}" for number in range(num_images)], name="image_id")
    group, light = rng.integers(_GROUPS, size=num_images), rng.normal(size=(num_images, 2))
    steps = np.linspace(-1, 1, _GROUPS)
    confound = (steps[group] + light @ _LIGHT) / np.sqrt(steps.var() + _LIGHT @ _LIGHT)  # of variance 1
    columns = pd.MultiIndex.from_product([_LAYERS, _METRICS], names=["layer", "metric"])
    own, shared = rng.normal(size=(num_images, len(columns))), rng.normal(size=(num_images, 1))
    beyond = _SHARED * shared + _OWN * own  # what of the metrics the confounds do not tell
    weights = np.linspace(0, 1, len(columns))
    effect = beyond @ weights / np.sqrt((_SHARED * weights.sum()) ** 2 + _OWN**2 * weights @ weights)  # of variance 1
    noise = rng.normal(size=num_images)
    score = np.sqrt(_CONFOUNDED) * confound + np.sqrt(planted) * effect + np.sqrt(1 - _CONFOUNDED - planted) * noise
    rated = pd.DataFrame(
        {
            "image_id": ids,
            "group": [f"g{number}" for number in group],
            "luminance_mean": light[:, 0],
            "luminance_contrast": light[:, 1],
            "score": score,
            "beauty": score,
            "cluster": np.arange(num_images),
        },
        index=ids,
    )
    return rated, pd.DataFrame(0.5 * confound[:, None] + beyond, index=ids, columns=columns)


if __name__ == "__main__":
    main()
