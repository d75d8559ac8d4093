"""Measuring against its peers: reading the same file, a Gini index by numpy.sort, and metrics from kept histograms.

    python benchmarks/measure.py --size 224 --gigabytes 2
    python benchmarks/measure.py --size 224 --gigabytes 20 --peers ours --rounds 1     memory does not grow

The activations are invented: those of VGG16's convolutions on images of --size px, after a ReLU, half of them zero.
Each
contestant is a process of its own, in turn, on --cores processors; the figures are medians over the rounds, the peak is
that of the process. `count` and `sort` work on arrays in memory, all metrics against a Gini index alone. Cold means
that the file was put out of the page cache before.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from analysis.measure import measure
from analysis.sparsity import sparsity
from fluence.layout import Layout, Run
from fluence.store.activations import Activations, ActivationWriter, LayerInfo
from fluence.study import Epsilon

RUN = Run("vgg16", "all", 0, "vgg16-all-s0-00000000")
BLOCKS = ((64, 2, 1), (128, 2, 2), (256, 3, 4), (512, 3, 8), (512, 3, 16))  # channels, layers, stride
SOME_BYTES = 30e6  # of each layer that are counted or sorted in memory; the time is scaled up
OTHER = Epsilon(quantiles=(0.1, 0.3, 0.5, 0.7, 0.9), report=0.5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints its table."""
    options = _parser().parse_args(arguments)
    if options.one:
        print(*PEERS[options.one](Layout(Path(options.folder))), _peak_mb())
        return
    with tempfile.TemporaryDirectory(dir=options.folder or None) as folder:
        layout = Layout(Path(folder))
        num_images = generate(layout, options)
        gigabytes = 2e-9 * num_images * sum(layer.num_units for layer in layers(options.size))
        print(
            f"{num_images} images, {len(layers(options.size))} layers, {gigabytes:.2f} GB, {options.cores} processors"
        )
        found = {name: [] for name in options.peers}
        for _ in range(options.rounds):
            for name in options.peers:
                found[name].append(_run(name, layout, options))
        _print(found, gigabytes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="side of the images in px (default 224)")
    parser.add_argument("--gigabytes", type=float, default=2, help="size of the file (default 2)")
    parser.add_argument("--cores", type=int, default=1, help="processors to use (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="times each is run (default 3)")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, help="who takes part (default all)")
    parser.add_argument("--folder", help="where the file is made (default: where temporary files are)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def layers(size: int) -> list[LayerInfo]:
    """VGG16's convolutions on images of `size` px, and a code."""
    shapes = [
        (f"conv{block}_{number}", (channels, size // stride, size // stride))
        for block, (channels, count, stride) in enumerate(BLOCKS, start=1)
        for number in range(1, count + 1)
    ]
    return [
        *(LayerInfo(name, shape, "post", "conv") for name, shape in shapes),
        LayerInfo("mu", (256,), "post", "latent"),
    ]


def generate(layout: Layout, options: argparse.Namespace) -> int:
    """Writes the file; each image is a part of the same noise, with a scale of its own."""
    rng = np.random.default_rng(0)
    recorded = layers(options.size)
    num_images = max(2, round(options.gigabytes * 1e9 / (2 * sum(layer.num_units for layer in recorded))))
    noise = np.maximum(rng.standard_normal(recorded[0].num_units + (1 << 16), dtype=np.float32), 0)
    with ActivationWriter(
        layout.activations(RUN.id),
        key="k",
        image_ids=[f"{number:06}" for number in range(num_images)],
        reference_ids=["r0", "r1"],
        layers=recorded,
        probes=(),
    ) as writer:
        writer.write_reference(0, _block(recorded, noise, rng, 2))
        for start in range(0, num_images, 4):
            writer.write_block(start, _block(recorded, noise, rng, min(4, num_images - start)), {})
        writer.finish()
    return num_images


def _block(
    recorded: list[LayerInfo], noise: np.ndarray, rng: np.random.Generator, num_images: int
) -> dict[str, np.ndarray]:
    scales, starts = rng.uniform(0.2, 2, num_images).astype(np.float32), rng.integers(0, 1 << 16, num_images)
    return {
        layer.name: np.stack([s * noise[o : o + layer.num_units] for s, o in zip(scales, starts, strict=True)])
        for layer in recorded
    }


# ── Those who take part; each gives its seconds, of the clock and of the processors ─────────────────────────────


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def ours(layout: Layout) -> tuple[float, float]:
    """All metrics, from the activations."""
    _warm(layout)
    return _timed(lambda: measure(RUN, layout, Epsilon(), key="k"))


def ours_cold(layout: Layout) -> tuple[float, float]:
    """The same with nothing of the file in the page cache."""
    _warm(layout)
    _forget(layout.activations(RUN.id))
    return _timed(lambda: measure(RUN, layout, Epsilon(), key="k"))


def _warm(layout: Layout) -> None:
    """What is compiled and imported is there; this is not timed."""
    measure(RUN, layout, Epsilon(), key="warm")
    shutil.rmtree(layout.metrics(RUN.id).parent)


def other_epsilon(layout: Layout) -> tuple[float, float]:
    """All metrics with another ε, from the kept histograms."""
    if not layout.histograms(RUN.id).is_file():
        measure(RUN, layout, Epsilon(), key="k")
    return _timed(lambda: measure(RUN, layout, OTHER, key=str(time.time())))


def read(layout: Layout) -> tuple[float, float]:
    """Reading alone, in blocks of 32 MiB."""
    return _timed(lambda: _read(layout))


def read_cold(layout: Layout) -> tuple[float, float]:
    """The same with nothing of the file in the page cache."""
    _forget(layout.activations(RUN.id))
    return _timed(lambda: _read(layout))


def _read(layout: Layout) -> None:
    with Activations(layout.activations(RUN.id)) as source:
        for layer in source.layers:
            step = max(1, (32 << 20) // (2 * layer.num_units))
            for start in range(0, len(source.image_ids), step):
                source.read(layer.name, start, start + step)


def count(layout: Layout) -> tuple[float, float]:
    """All metrics of arrays in memory, in one thread."""
    thresholds = np.array([0.1, 0.5, 1.0])
    return _in_memory(layout, lambda values: sparsity(values, thresholds))


def sort(layout: Layout) -> tuple[float, float]:
    """A Gini index alone, of arrays in memory, by numpy.sort and a sum in float64."""
    return _in_memory(layout, _sorted_gini)


def _sorted_gini(values: np.ndarray) -> list[float]:
    weights = 2.0 * np.arange(1, values.shape[1] + 1) - values.shape[1] - 1
    rows = (np.sort(row).astype(np.float64) for row in np.abs(values))
    return [float(row @ weights / (len(row) * row.sum())) for row in rows]


def _in_memory(layout: Layout, work: Callable[[np.ndarray], object]) -> tuple[float, float]:
    """Seconds for the first images of each layer, read before; scaled up to all images."""
    clock = processor = 0.0
    with Activations(layout.activations(RUN.id)) as source:
        for layer in source.layers:
            some = max(1, min(len(source.image_ids), int(SOME_BYTES / (2 * layer.num_units))))
            values = source.read(layer.name, 0, some)
            work(values[:1])
            seconds = _timed(lambda values=values: work(values))
            clock, processor = (
                total + one * len(source.image_ids) / some
                for total, one in zip((clock, processor), seconds, strict=True)
            )
    return clock, processor


def _forget(path: Path) -> None:
    """Puts a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


PEERS: dict[str, Callable[[Layout], tuple[float, float]]] = {
    "ours": ours,
    "ours-cold": ours_cold,
    "other-epsilon": other_epsilon,
    "read": read,
    "read-cold": read_cold,
    "count": count,
    "sort": sort,
}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _run(name: str, layout: Layout, options: argparse.Namespace) -> tuple[float, float, float]:
    command = [sys.executable, __file__, "--one", name, "--folder", str(layout.root)]
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    clock, processor, peak = map(float, done.stdout.split()[-3:])
    return clock, processor, peak


def _print(found: dict[str, list[tuple[float, float, float]]], gigabytes: float) -> None:
    print(f"{'':14} {'seconds':>8} {'of processors':>13} {'GB/s':>6} {'GB/s per core':>13} {'peak MB':>8}")
    for name, rounds in found.items():
        clock, processor, peak = (np.median(column) for column in zip(*rounds, strict=True))
        speed, per_core = gigabytes / clock, gigabytes / processor
        print(f"{name:14} {clock:8.2f} {processor:13.2f} {speed:6.2f} {per_core:13.2f} {peak:8.0f}")
    for above, below in (("sort", "count"), ("ours", "read"), ("ours-cold", "read-cold")):
        if above in found and below in found:
            ratios = [
                [a[column] / b[column] for a, b in zip(found[above], found[below], strict=True)] for column in (0, 1)
            ]
            clock, processor = map(np.median, ratios)
            print(f"{above} / {below}: {clock:.2f} by the clock, {processor:.2f} by the processors' seconds")


if __name__ == "__main__":
    main()
