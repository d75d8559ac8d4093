"""Extraction against what bounds it: the forward pass alone, and writing the same bytes with h5py alone.

    python benchmarks/extract.py --architecture vgg16-5 --size 224 --images 64

Each runs in a process of its own, in turn, several times. The first block of images is not counted. *hooks* is what one
would write in an afternoon: forward hooks that hand float16 to h5py, block by block. *fluence* also checks every value,
measures L1, L2 and SSIM errors, and can be killed at any moment. *metrics* is the same with `record.store: metrics`:
large layers are counted and not stored.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch

from fluence.activations import ExtractSpec, block_images, extract
from fluence.layout import Layout, Run
from fluence.models import Autoencoder, build
from fluence.models.recording import Recorder, record
from fluence.store.packed import Packed, PackedWriter
from fluence.store.weights import write_weights
from fluence.study import Record, VaeModel

RUN = Run("m", "all", 0, "m-all-s0-00000000")
_CHUNKS = (32, 8192)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints its table."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.one:
        print(_timed(options.one, Path(options.folder), options))
        return
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(dir=options.disk) as folder:
        _prepare(_spec(Path(folder), options), options)
        for _ in range(options.rounds):
            for name in CONTESTANTS:
                results[name].append(_run(name, folder, arguments or sys.argv[1:]))
    _print(results, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="small", help="(default small)")
    parser.add_argument("--width", type=float, default=1.0, help="(default 1)")
    parser.add_argument("--size", type=int, default=128, help="side of the images in px (default 128)")
    parser.add_argument("--images", type=int, default=1024, help="(default 1024)")
    parser.add_argument("--block", type=int, help="images per pass of the others (default: as fluence)")
    parser.add_argument("--layers", nargs="+", help="layers that are recorded (default: of the encoder, all)")
    parser.add_argument("--rounds", type=int, default=3, help="times each is run (default 3)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    parser.add_argument("--disk", help="folder to write to (default: that of temporary files)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def _spec(folder: Path, options: argparse.Namespace) -> ExtractSpec:
    layout = Layout(folder)
    model = VaeModel(kind="vae", architecture=options.architecture, width=options.width, norm="batch")
    chosen = Record(layers=tuple(options.layers) if options.layers else "encoder", reference_images=1, sample_images=1)
    packed = layout.packed("x")
    return ExtractSpec(model, chosen, RUN, layout, packed, packed, (), 0.1, "key")


def _prepare(spec: ExtractSpec, options: argparse.Namespace) -> None:
    """Packed noise, and an untrained network."""
    pixels = np.random.default_rng(0).integers(0, 256, (options.images, options.size, options.size, 3), np.uint8)
    with PackedWriter(spec.rated, options.size, {}) as writer:
        writer.append(pixels)
        writer.finish(pd.DataFrame({"image_id": [str(n) for n in range(options.images)]}), pd.DataFrame())
    write_weights(spec.layout.weights(RUN.id), build(spec.model, options.size, seed=0).state_dict(), {})


def _run(name: str, folder: str, arguments: Sequence[str]) -> tuple[float, float, float]:
    command = [sys.executable, __file__, *arguments, "--one", name, "--folder", folder]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    images_per_s, cpu_s, megabytes = map(float, text.split()[-3:])
    return images_per_s, cpu_s, megabytes


def _timed(name: str, folder: Path, options: argparse.Namespace) -> str:
    """Images per second behind the first block, the processor's own seconds per image, and peak memory in MiB."""
    marks: list[tuple[int, float, float]] = []

    def mark(num_images: int) -> None:
        marks.append((num_images, time.perf_counter(), time.process_time()))

    spec = _spec(folder, options)
    with record(_network(spec, options), spec.record.layers, "post") as recorder:
        options.block = options.block or _block(recorder)
    with torch.inference_mode():
        CONTESTANTS[name](spec, options, mark)
    (first, begun, cpu_begun), (last, ended, cpu_ended) = marks[0], marks[-1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"{(last - first) / (ended - begun)} {(cpu_ended - cpu_begun) / (last - first)} {peak}"


def _block(recorder: Recorder) -> int:
    return block_images(4 * sum(layer.num_units for layer in recorder.layers))


def _network(spec: ExtractSpec, options: argparse.Namespace) -> Autoencoder:
    return build(spec.model, options.size, seed=0).eval().to(memory_format=torch.channels_last)


def _batches(spec: ExtractSpec, options: argparse.Namespace) -> Iterator[tuple[int, torch.Tensor]]:
    packed = Packed(spec.rated)
    for start in range(0, options.images, options.block):
        pixels = torch.from_numpy(packed.read(slice(start, start + options.block)))
        yield start, pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def _forward(spec: ExtractSpec, options: argparse.Namespace, mark: Callable[[int], None]) -> None:
    network = _network(spec, options)
    for start, images in _batches(spec, options):
        network(images)
        mark(start + len(images))


def _hooks(spec: ExtractSpec, options: argparse.Namespace, mark: Callable[[int], None]) -> None:
    network = _network(spec, options)
    with (
        h5py.File(spec.layout.root / "hooks.h5", "w") as file,
        record(network, spec.record.layers, "post") as recorder,
    ):
        for start, images in _batches(spec, options):
            network(images)
            for layer in recorder.layers:
                values = recorder.values[layer.name].flatten(1).half().numpy()
                dataset = _dataset(file, layer.name, options.images, layer.num_units)
                dataset[start : start + len(values)] = values
            mark(start + len(images))


def _dataset(file: h5py.File, name: str, num_images: int, num_units: int) -> h5py.Dataset:
    chunks = (min(_CHUNKS[0], num_images), min(_CHUNKS[1], num_units))
    return file.require_dataset(name, (num_images, num_units), "float16", chunks=chunks)


def _writing(spec: ExtractSpec, options: argparse.Namespace, mark: Callable[[int], None]) -> None:
    with record(_network(spec, options), spec.record.layers, "post") as recorder:
        units = {layer.name: layer.num_units for layer in recorder.layers}
    rng = np.random.default_rng(0)
    values = {name: rng.random((options.block, number), np.float32).astype("f2") for name, number in units.items()}
    with h5py.File(spec.layout.root / "writing.h5", "w") as file:
        for start in range(0, options.images, options.block):
            stop = min(start + options.block, options.images)
            for name, number in units.items():
                _dataset(file, name, options.images, number)[start:stop] = values[name][: stop - start]
            file.flush()
            mark(stop)


def _fluence(spec: ExtractSpec, options: argparse.Namespace, mark: Callable[[int], None]) -> None:
    with record(_network(spec, options), spec.record.layers, "post") as recorder:
        block = _block(recorder)
    done = itertools.count(block, block)

    def stop() -> bool:
        mark(min(next(done), options.images))
        return False

    extract(spec, stop)
    mark(options.images)
    spec.layout.activations(RUN.id).unlink()


def _metrics(spec: ExtractSpec, options: argparse.Namespace, mark: Callable[[int], None]) -> None:
    counted = spec.record.model_copy(update={"store": "metrics"})
    _fluence(replace(spec, record=counted), options, mark)


CONTESTANTS: dict[str, Callable[[ExtractSpec, argparse.Namespace, Callable[[int], None]], None]] = {
    "forward": _forward,
    "writing": _writing,
    "hooks": _hooks,
    "fluence": _fluence,
    "metrics": _metrics,
}


def _print(results: dict[str, list[tuple[float, float, float]]], options: argparse.Namespace) -> None:
    """Ratios are medians over rounds: of images per second to the slower of the first two, of seconds to the first."""
    speeds = {name: np.array([speed for speed, _, _ in rounds]) for name, rounds in results.items()}
    seconds = {name: np.array([cpu_s for _, cpu_s, _ in rounds]) for name, rounds in results.items()}
    bound = np.minimum(speeds["forward"], speeds["writing"])
    print(f"{options.architecture} × {options.width:g}, {options.size} px, {options.images} images")
    print(f"{'':12}{'images/s':>10}{'of bound':>10}{'CPU ms':>10}{'of forward':>12}{'peak MiB':>10}")
    for name, rounds in results.items():
        cells = f"{np.median(speeds[name]):>10.2f}{np.median(speeds[name] / bound):>10.2f}"
        cells += f"{1e3 * np.median(seconds[name]):>10.1f}{np.median(seconds[name] / seconds['forward']):>12.2f}"
        print(f"{name:12}{cells}{max(peak for _, _, peak in rounds):>10,.0f}")


if __name__ == "__main__":
    main()
