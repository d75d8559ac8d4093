"""Packing speed against plain Pillow: open, convert, crop, resize in one process, with nothing checked or written.

    python benchmarks/pack.py --images 2000 --side 400 --size 64

Both read the same generated JPEG files, in turn, several times; the best time counts. Peak memory is that of the
largest process.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints its table."""
    options = _parser().parse_args(arguments)
    if options.one:
        print(_timed(options.one, Path(options.folder), options))
        return
    with tempfile.TemporaryDirectory() as folder:
        _generate(Path(folder), options)
        contestants = {"Pillow alone, 1 process": "pillow", "fluence pack, 1 process": "1"}
        if options.workers > 1:
            contestants[f"fluence pack, {options.workers} processes"] = str(options.workers)
        results = {name: _best(which, folder, options) for name, which in contestants.items()}
    _print(results, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="number of JPEG files (default 1000)")
    parser.add_argument("--side", type=int, default=400, help="their shorter side in px (default 400)")
    parser.add_argument("--size", type=int, default=64, help="side of the packed images in px (default 64)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="times each is run (default 3)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def _generate(folder: Path, options: argparse.Namespace) -> None:
    """Smooth oblong pictures with some grain, as photographs have; 50 different ones."""
    rng = np.random.default_rng(0)
    size = (options.side, options.side * 4 // 3)
    rows = ["path,beauty,ethnicity,sex"]
    for number in range(options.images):
        name = f"{number:06}.jpg"
        if number < 50:
            coarse = Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
            grain = rng.normal(0, 5, (size[1], size[0], 1))
            Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(
                folder / name, quality=92
            )
        else:
            (folder / name).write_bytes((folder / f"{number % 50:06}.jpg").read_bytes())
        rows.append(f"{name},{number % 7},a,f")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")


def _best(which: str, folder: str, options: argparse.Namespace) -> tuple[float, float]:
    """Smallest seconds and largest megabytes over the repeats, each in a process of its own."""
    command = [sys.executable, __file__, "--one", which, "--folder", folder, "--size", str(options.size)]
    texts = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(options.repeats)]
    pairs = [tuple(map(float, text.split()[-2:])) for text in texts]
    return min(seconds for seconds, _ in pairs), max(megabytes for _, megabytes in pairs)


def _timed(which: str, folder: Path, options: argparse.Namespace) -> str:
    start = time.perf_counter()
    if which == "pillow":
        _plain_pillow(folder, options.size)
    else:
        _pack(folder, options.size, int(which))
    seconds = time.perf_counter() - start
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return f"{seconds} {peak / 1024}"


def _plain_pillow(folder: Path, size_px: int) -> np.ndarray:
    paths = sorted(folder.glob("*.jpg"))
    pixels = np.empty((len(paths), size_px, size_px, 3), np.uint8)
    for row, path in enumerate(paths):
        with Image.open(path) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
            pixels[row] = image.convert("RGB").resize((size_px, size_px), Image.Resampling.LANCZOS, box)
    return pixels


def _pack(folder: Path, size_px: int, num_workers: int) -> None:
    from fluence.data.pack import pack  # here, so that neither Pillow's process nor the workers load it
    from fluence.study import Data

    dataset = {"kind": "csv", "root": str(folder)}
    data = Data(datasets={"faces": dataset}, training="faces", rated="faces", image_size_px=size_px)
    pack(data.datasets["faces"], data, folder / "faces.h5", attributes={}, num_workers=num_workers)


def _print(results: dict[str, tuple[float, float]], options: argparse.Namespace) -> None:
    baseline = next(iter(results.values()))[0]
    print(f"{options.images:,} JPEG files, shorter side {options.side} px, packed at {options.size} px")
    print(f"{'':30}{'images/s':>10}{'ratio':>8}{'peak MB':>10}")
    for name, (seconds, megabytes) in results.items():
        print(f"{name:30}{options.images / seconds:>10,.0f}{baseline / seconds:>8.2f}{megabytes:>10,.0f}")


if __name__ == "__main__":
    main()
