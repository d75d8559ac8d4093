"""What training in bf16 changes in the metrics, beside what another seed changes.

    fluence run studies/precision.yaml
    python benchmarks/precision.py results/precision

For each layer and metric: the correlation over images between two trainings with one seed, in fp32 and in bf16, and
between trainings in fp32 with two seeds; and the difference of the means over images, in standard deviations of the
images.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.tables import wide
from fluence.layout import Layout
from fluence.store.files import read_table
from fluence.studyfile import load_study

KEPT = ("gini", "l_eps_fraction_q50", "l1_error", "l2_error", "ssim_error")
Metrics = dict[tuple[str, int], pd.DataFrame]


def main() -> None:
    """Reads the metrics of the study's runs, compares, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the finished study")
    metrics = read_metrics(parser.parse_args().folder)
    seeds = sorted({seed for _, seed in metrics})
    pairs = {
        "fp32 and bf16, same seed": [(metrics["fp32", seed], metrics["bf16", seed]) for seed in seeds],
        "fp32, two seeds": [(metrics["fp32", a], metrics["fp32", b]) for a, b in itertools.combinations(seeds, 2)],
        "bf16, two seeds": [(metrics["bf16", a], metrics["bf16", b]) for a, b in itertools.combinations(seeds, 2)],
    }
    table = pd.concat({name: agreement(both) for name, both in pairs.items()}, axis=1)
    print(table.to_string(float_format="{:.3f}".format))
    print(table.median().to_frame("median over layers and metrics").to_string(float_format="{:.3f}".format))


def read_metrics(folder: Path) -> Metrics:
    """Metrics of every run, image × (layer, metric), by model and seed."""
    layout = Layout(folder)
    study = load_study(layout.study)
    found: Metrics = {}
    for path in sorted(folder.glob("metrics/*-????????.parquet")):
        model, _, seed = path.stem.rsplit("-", 1)[0].split("-")
        found[model, int(seed.removeprefix("s"))] = wide(read_table(path).query("metric in @KEPT"))
    missing = {(model, seed) for model, _, seed in study.trainings} - set(found)
    if missing:
        raise SystemExit(f"{folder}: not measured yet: {sorted(missing)}")
    return found


def agreement(pairs: list[tuple[pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame:
    """Means over pairs of trainings: correlation over images, and shift of the mean in standard deviations."""
    return pd.DataFrame(
        {
            "r": np.mean([a.corrwith(b) for a, b in pairs], axis=0),
            "shift": np.mean([(a.mean() - b.mean()).abs() / a.std() for a, b in pairs], axis=0),
        },
        index=pairs[0][0].columns,
    )


if __name__ == "__main__":
    main()
