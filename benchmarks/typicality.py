"""Exact principal components of n images × p units from an activation file: time and peak memory, beside its peers.

    python benchmarks/typicality.py                                     # 827 images × 4.4 million units, 7 GB on disk
    python benchmarks/typicality.py --images 300 --units 200000         # small
    python benchmarks/typicality.py --plot gram.png                     # the curves over p and n, also as PDF

- *ours*: reads the file, makes the Gram matrix and 20 components with the scores of all images.
- *product*: float32 products of as many values that lie in memory, in blocks of the same size, and nothing else.
- *densities*: what comes after the Gram matrix: ten folds, all estimators.
- *scikit-learn*: PCA(svd_solver="full") on the whole matrix in float64, at a size where that fits.

Each runs in a process of its own, whose peak memory is printed; ours and the product take turns, in rounds. The
responses are invented: rectified, half zeros, with 50 directions in common. The file is read from the page cache where
it fits into it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from analysis.density import Components, principal_components, project
from analysis.gram import block_units, gram
from analysis.typicality import Asked, judge, plan_fits
from fluence.store.activations import Activations, ActivationWriter, LayerInfo
from fluence.study import Typicality

COMPONENTS, TILE, WRITE_IMAGES = 20, 65_536, 16
SHARES_OF_UNITS, SHARES_OF_IMAGES = (0.125, 0.25, 0.5, 1.0), (0.25, 0.5, 1.0)
LAYER = "conv1"


def main() -> None:
    """Measures and prints."""
    options = _options()
    if options.one:
        print(json.dumps(_measure(options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="typicality-") as folder:
        path = Path(folder) / "activations.h5"
        write_file(path, options.images, options.units)
        print(f"{options.images} images x {options.units:,} units, {path.stat().st_size / 1e9:.2f} GB, ", end="")
        print(f"{options.threads} thread(s)")
        over_units = [_compare(path, options, options.images, int(share * options.units)) for share in SHARES_OF_UNITS]
        _print("over p", over_units)
        few = min(options.units, options.units_of_peer * 4)
        over_images = [_compare(path, options, int(share * options.images), few) for share in SHARES_OF_IMAGES]
        _print("over n", over_images)
        print("densities:", _words(_run(path, options, "densities", options.images, few)))
        for name in ("ours", "sklearn"):
            print(f"{name:10} {options.images} x {options.units_of_peer:,}:", end=" ")
            print(_words(_run(path, options, name, options.images, options.units_of_peer)))
        print("largest difference:", _run(path, options, "agreement", options.images, options.units_of_peer)["answer"])
        if options.plot:
            plot(over_units, over_images, options.plot)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=827)
    parser.add_argument("--units", type=int, default=4_400_000)
    parser.add_argument("--units-of-peer", type=int, default=50_000, help="where scikit-learn's PCA is tried")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the file is written")
    parser.add_argument("--plot", type=Path, help="PNG to draw; the PDF stands beside it")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "FILE"), help=argparse.SUPPRESS)
    return parser.parse_args()


# ── The file ─────────────────────────────────────────────────────────────────────────────────────────────────────


def write_file(path: Path, num_images: int, num_units: int) -> None:
    """Invented responses: a tile of units that repeats with other strengths."""
    rng = np.random.default_rng(0)
    size = min(TILE, num_units)
    hidden = rng.normal(size=(num_images, 50)) * 2.0 ** -np.arange(0, 5, 0.1)
    tile = hidden @ rng.normal(size=(50, size)) + 0.5 * rng.normal(size=(num_images, size))
    tile = np.maximum(tile, 0).astype(np.float32)
    strength = rng.lognormal(sigma=0.5, size=num_units).astype(np.float32)
    with ActivationWriter(
        path, key="k", image_ids=[f"image-{number}" for number in range(num_images)], reference_ids=["none"],
        layers=[LayerInfo(LAYER, (num_units,), "post", "conv")], probes=[],
    ) as writer:  # fmt: skip
        writer.write_reference(0, {LAYER: np.zeros((1, num_units), np.float32)})
        for start in range(0, num_images, WRITE_IMAGES):
            rows = tile[start : start + WRITE_IMAGES]
            values = np.tile(rows, -(-num_units // size))[:, :num_units] * strength
            writer.write_block(start, {LAYER: values}, {})
        writer.finish()


class FirstImages:
    """The first images of a file, and its first units."""

    def __init__(self, path: Path, num_images: int) -> None:
        self._file, self._num_images = Activations(path), num_images
        self.image_ids, self.reference_ids = self._file.image_ids[:num_images], self._file.reference_ids
        self.chunk_units, self.reference_units = self._file.chunk_units, self._file.reference_units

    def read_units(self, layer: str, start: int, stop: int) -> np.ndarray:
        """Values [num_images, stop − start]."""
        values = self._file.read_units(layer, start, stop)
        return values if len(values) == self._num_images else values[: self._num_images]


# ── What is measured ─────────────────────────────────────────────────────────────────────────────────────────────


def _ours(path: Path, num_images: int, num_units: int) -> Components:
    source = FirstImages(path, num_images)
    matrix = gram(source, LAYER, num_units)
    components = principal_components(matrix, np.arange(num_images), num_units, COMPONENTS)
    project(components, matrix, np.arange(num_images))
    return components


def _product(path: Path, num_images: int, num_units: int) -> None:
    step = block_units(num_images, FirstImages(path, num_images).chunk_units)
    block = np.random.default_rng(0).random((num_images, min(step, num_units)), dtype=np.float32)
    total, product = np.zeros((num_images, num_images)), np.empty((num_images, num_images), np.float32)
    for start in range(0, num_units, step):
        values = block[:, : min(step, num_units - start)]
        total += np.matmul(values, values.T, out=product)


def _densities(path: Path, num_images: int, num_units: int) -> Callable[[], None]:
    source = FirstImages(path, num_images)
    matrix = gram(source, LAYER, num_units)
    wanted = Typicality(components=min(COMPONENTS, num_images // 8), estimators=("gaussian", "ppca", "gmm"))
    plain = {"group": "all", "cluster": range(num_images), "sha256": source.image_ids}
    fits = plan_fits(source, Asked(wanted, 0, pd.DataFrame(plain, index=source.image_ids), pd.Series(dtype=str)))
    layer = LayerInfo(LAYER, (num_units,), "post", "conv")

    def work() -> None:
        judge(matrix, layer, fits, num_images, wanted, 0)

    return work


def _sklearn(path: Path, num_images: int, num_units: int) -> Any:
    values = FirstImages(path, num_images).read_units(LAYER, 0, num_units).astype(np.float64)
    pca = PCA(COMPONENTS, svd_solver="full")
    pca.fit_transform(values)
    return pca


def _agreement(path: Path, num_images: int, num_units: int) -> str:
    """Largest relative difference of the variances along the components."""
    ours, theirs = _ours(path, num_images, num_units), _sklearn(path, num_images, num_units)
    difference = np.abs(ours.variances / theirs.explained_variance_ - 1).max()
    return f"{difference:.1e} of a variance, over {COMPONENTS} components"


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, the processor's seconds, and the peak memory of this process."""
    what, path = options.one[0], Path(options.one[1])
    works: dict[str, Callable[..., Any]] = {
        "ours": _ours, "product": _product, "sklearn": _sklearn, "agreement": _agreement
    }  # fmt: skip
    work, arguments = works.get(what), (path, options.images, options.units)
    if work is None:
        work, arguments = _densities(*arguments), ()
    began, began_cpu = time.perf_counter(), time.process_time()
    answer = work(*arguments)
    return {
        "seconds": time.perf_counter() - began,
        "processor_s": time.process_time() - began_cpu,
        "peak_mib": _peak_mib(),
        "answer": answer if isinstance(answer, str) else "",
    }


def _peak_mib() -> float:
    """Of this process alone; what getrusage tells begins with what the parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _run(path: Path, options: argparse.Namespace, what: str, num_images: int, num_units: int) -> dict[str, Any]:
    """`_measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", what, str(path), "--images", str(num_images)]
    threads = {f"{name}_NUM_THREADS": str(options.threads) for name in ("OMP", "OPENBLAS", "MKL")}
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [*command, "--units", str(num_units)], env=os.environ | threads | {"PYTHONPATH": root}, text=True,
        check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _compare(path: Path, options: argparse.Namespace, num_images: int, num_units: int) -> dict[str, float]:
    """Ours and the product alone, in turn; medians over the rounds."""
    rounds = [
        {what: _run(path, options, what, num_images, num_units) for what in ("product", "ours")}
        for _ in range(options.rounds)
    ]

    def median(of: Callable[[dict[str, dict[str, Any]]], float]) -> float:
        return float(np.median([of(one) for one in rounds]))

    return {
        "images": num_images,
        "units": num_units,
        "seconds": median(lambda one: one["ours"]["seconds"]),
        "product_s": median(lambda one: one["product"]["seconds"]),
        "ratio": median(lambda one: one["ours"]["seconds"] / one["product"]["seconds"]),
        "processor_s": median(lambda one: one["ours"]["processor_s"]),
        "product_processor_s": median(lambda one: one["product"]["processor_s"]),
        "processor_ratio": median(lambda one: one["ours"]["processor_s"] / one["product"]["processor_s"]),
        "peak_mib": max(one["ours"]["peak_mib"] for one in rounds),
    }


# ── What is shown ────────────────────────────────────────────────────────────────────────────────────────────────


def _print(title: str, rows: list[dict[str, float]]) -> None:
    print(f"{title}\n  {'n':>6} {'p':>11} {'ours s':>8} {'product s':>9} {'ratio':>6} {'cpu':>6} {'peak MiB':>8}")
    for row in rows:
        print(
            f"  {row['images']:6.0f} {row['units']:11,.0f} {row['seconds']:8.1f} {row['product_s']:9.1f} "
            f"{row['ratio']:6.2f} {row['processor_ratio']:6.2f} {row['peak_mib']:8.0f}",
            flush=True,
        )


def _words(found: dict[str, Any]) -> str:
    return f"{found['seconds']:.1f} s, processor {found['processor_s']:.1f} s, peak {found['peak_mib']:.0f} MiB"


def plot(over_units: list[dict[str, float]], over_images: list[dict[str, float]], path: Path) -> None:
    """The processor's time, on which other work on the machine tells little, and memory; as PNG and PDF."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    panels = figure.subplots(2, 2)
    for column, (rows, key, label) in enumerate(
        ((over_units, "units", "units p (millions)"), (over_images, "images", "images n"))
    ):
        where = [row[key] / (1e6 if key == "units" else 1) for row in rows]
        time_axes, memory_axes = panels[0, column], panels[1, column]
        time_axes.plot(
            where, [row["processor_s"] for row in rows], "o-", color="#0072B2", label="fluence, from the file"
        )
        time_axes.plot(
            where, [row["product_processor_s"] for row in rows], "s--", color="#767676", label="product alone"
        )
        memory_axes.plot(where, [row["peak_mib"] for row in rows], "o-", color="#0072B2")
        for axes, name in ((time_axes, "processor time (s)"), (memory_axes, "peak memory (MiB)")):
            highest = max(float(np.max(line.get_ydata())) for line in axes.lines)
            axes.set(xlabel=label, ylabel=name, xlim=(0, 1.05 * where[-1]), ylim=(0, 1.1 * highest))
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=200)
    figure.savefig(path.with_suffix(".pdf"))


if __name__ == "__main__":
    main()
