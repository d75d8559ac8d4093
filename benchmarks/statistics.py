"""How long the statistics take: permutations beside a plain loop over SciPy, and the whole analysis of a study.

    python benchmarks/statistics.py                       # all of it
    python benchmarks/statistics.py --parts permutations  # 10,000 orders × 300 columns × 827 images
    python benchmarks/statistics.py --parts study         # 50 runs: 5 models × (all images + 4 groups) × 2 seeds

- *permutations*: p of every column by as many orders within groups, with pairs of duplicates, and the p corrected by
  the largest |r|; once with complete columns and once with a tenth of the values missing in each column. Beside it
  `scipy.stats.permutation_test`, vectorised, and a loop over `scipy.stats.pearsonr`, both on few columns and orders,
  and scaled up: neither keeps groups or corrects.
- *study*: `analysis.analyse.analyse` with the default settings on made-up metrics of 827 images: 12 layers × 2 metrics,
  and three errors.

Each runs in a process of its own, whose peak memory is printed (of a study also its largest worker's).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from joblib.externals.loky import get_reusable_executor
from scipy import stats

from analysis.analyse import analyse
from analysis.families import permutation_p
from analysis.statistics import exchanges, permuted_correlations
from fluence.layout import Layout, Run, RunRow
from fluence.store.files import write_table
from fluence.store.packed import PackedWriter
from fluence.study import Study

_DUPLICATES = 40
_MISSING = 0.1
_LAYERS = (*(f"conv{number}" for number in range(1, 12)), "mu")
_FEW_COLUMNS, _FEW_ORDERS = 4, 500
PARTS = ("permutations", "permutations-missing", "scipy", "loop", "study")


def main() -> None:
    """Measures and prints."""
    given = _options()
    if given.one:
        _measure(given)
        return
    print(f"{given.processes} processes, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores before", flush=True)
    for part in PARTS:
        if part.split("-")[0] in given.parts or (part in ("scipy", "loop") and "permutations" in given.parts):
            threads = {name: str(given.processes) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
            command = [sys.executable, __file__, *sys.argv[1:], "--one", part]
            subprocess.run(command, check=True, env=os.environ | threads)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("permutations", "study"), default=["permutations", "study"])
    parser.add_argument("--images", type=int, default=827)
    parser.add_argument("--columns", type=int, default=300)
    parser.add_argument("--permutations", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--groups", type=int, default=4, help="groups with models of their own, up to 12")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(given: argparse.Namespace) -> None:
    """Runs one part and prints its time by the clock, that of the processors, and the peak of its memory."""
    bodies: dict[str, Callable[[argparse.Namespace], str]] = {
        "permutations": _permutations,
        "permutations-missing": _permutations,
        "scipy": _scipy,
        "loop": _loop,
        "study": _study,
    }
    clock, processors = time.perf_counter(), _processor_s()
    words = bodies[given.one](given)
    elapsed, used = time.perf_counter() - clock, _processor_s() - processors
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"{given.one}: {elapsed:.1f} s, processors {used:.1f} s, peak {max(peaks):.0f} MiB; {words}", flush=True)


def _processor_s() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _faces(num_images: int, rng: np.random.Generator) -> pd.DataFrame:
    """Twelve groups of invented images, some pairs of them duplicates, with ratings and confounds."""
    ids = [f"face-{number:04d}" for number in range(num_images)]
    original = ["" if number >= _DUPLICATES else ids[number + _DUPLICATES] for number in range(num_images)]
    return pd.DataFrame(
        {
            "image_id": ids,
            "ethnicity": np.take(list("abcdef"), np.arange(num_images) % 6),
            "sex": np.take(["female", "male"], np.arange(num_images) // 6 % 2),
            "beauty": rng.normal(size=num_images),
            "duplicate_of": original,
            **{name: rng.normal(size=num_images) for name in ("luminance_mean", "luminance_contrast", "pixel_gini")},
            "age": rng.uniform(18, 60, size=num_images),
        }
    )


def _permutations(given: argparse.Namespace) -> str:
    rng = np.random.default_rng(0)
    faces = _faces(given.images, rng)
    columns = rng.normal(size=(given.images, given.columns))
    if given.one.endswith("missing"):
        columns[rng.random(columns.shape) < _MISSING] = np.nan
    clusters = np.arange(given.images)
    clusters[:_DUPLICATES] += _DUPLICATES
    orders = exchanges((faces["ethnicity"] + faces["sex"]).to_numpy(), clusters, given.permutations, 0)
    found = permuted_correlations(columns, faces["beauty"].to_numpy(), orders)
    away = np.abs(found - found.mean(axis=0))
    permutation_p(away[0], away), permutation_p(away[0], away.max(axis=1, keepdims=True))
    return f"{given.permutations} orders × {given.columns} columns × {given.images} images"


def _scipy(given: argparse.Namespace) -> str:
    def statistic(x: np.ndarray, axis: int) -> np.ndarray:
        return stats.pearsonr(x, np.broadcast_to(score, x.shape), axis=axis).statistic

    rng = np.random.default_rng(0)
    score, columns = rng.normal(size=given.images), rng.normal(size=(_FEW_COLUMNS, given.images))
    start = time.process_time()
    for column in columns:
        stats.permutation_test(
            (column,),
            statistic,
            permutation_type="pairings",
            n_resamples=_FEW_ORDERS,
            batch=_FEW_ORDERS,
            vectorized=True,
            rng=rng,
        )
    return _scaled(time.process_time() - start, given)


def _loop(given: argparse.Namespace) -> str:
    rng = np.random.default_rng(0)
    score, columns = rng.normal(size=given.images), rng.normal(size=(_FEW_COLUMNS, given.images))
    start = time.process_time()
    for column in columns:
        for _ in range(_FEW_ORDERS):
            _ = stats.pearsonr(column, rng.permutation(score)).statistic
    return _scaled(time.process_time() - start, given)


def _scaled(seconds: float, given: argparse.Namespace) -> str:
    more = given.permutations * given.columns / (_FEW_ORDERS * _FEW_COLUMNS)
    return f"{_FEW_ORDERS} orders × {_FEW_COLUMNS} columns, scaled up: {seconds * more:.0f} s of a processor"


def _study(given: argparse.Namespace) -> str:
    rng = np.random.default_rng(0)
    faces = _faces(given.images, rng)
    names = list(dict.fromkeys(f"{one.ethnicity}-{one.sex}" for one in faces.itertuples()))[: given.groups]
    study = Study.model_validate(
        {
            "name": "made-up",
            "data": {"datasets": {"rated": {"kind": "csv", "root": "x"}}, "training": "rated", "rated": "rated"},
            "models": {f"model{number}": {"kind": "vae"} for number in range(given.models)},
            "grid": {"groups": ["all", *names], "seeds": list(range(given.seeds))},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(Path(folder))
        with PackedWriter(layout.packed("rated"), 8, {}) as writer:
            writer.append(np.zeros((len(faces), 8, 8, 3), np.uint8))
            writer.finish(faces, pd.DataFrame(columns=["image_id"]))
        runs = [RunRow(Run(*where, "-".join(map(str, where))), "done") for where in study.trainings]
        for row in runs:
            _write_metrics(layout, row.run, faces, rng)
        start = time.perf_counter()
        analyse(study, layout, runs, num_workers=given.processes)
        seconds = time.perf_counter() - start
        get_reusable_executor().shutdown()  # only processes that have ended are counted
        cells = len(pd.read_csv(layout.statistics / "coverage.csv"))
    return f"{len(runs)} runs, {cells} cells, {given.images} images: the analysis alone {seconds:.1f} s"


def _write_metrics(layout: Layout, run: Run, faces: pd.DataFrame, rng: np.random.Generator) -> None:
    """Noise in the shape of the metrics of a run."""
    names = ["gini", *(f"l_eps_fraction_q{quantile}" for quantile in (25, 50, 75))]
    columns = [(layer, name) for layer in _LAYERS for name in names]
    columns += [("reconstruction", f"{name}_error") for name in ("l1", "l2", "ssim")]
    parts = [
        pd.DataFrame({"image_id": faces["image_id"], "layer": layer, "metric": name, "value": rng.random(len(faces))})
        for layer, name in columns
    ]
    write_table(layout.metrics(run.id), pd.concat(parts, ignore_index=True))
    rows = [(layer, quantile, quantile, 64) for layer in _LAYERS for quantile in (0.25, 0.5, 0.75)]
    epsilon = pd.DataFrame(rows, columns=["layer", "quantile", "epsilon", "num_reference"])
    write_table(layout.epsilon(run.id), epsilon)


if __name__ == "__main__":
    main()
