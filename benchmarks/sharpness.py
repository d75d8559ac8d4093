"""Cost of the sharpness probe beside one forward and backward pass of the same images.

    python benchmarks/sharpness.py --size 64 --images 64 --architecture small --width 1

The plain pass is that of a batch in eval mode: forward, loss, backward, one gradient for all images. The probe makes
for each image a gradient of its own, weights moved along it, and a second forward pass with these. Both take turns,
in rounds, because the speed of a machine drifts; the figure is the median of the rounds' ratios. On a CPU it is the
processor's time that counts, so that other work on the machine does not.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from fluence.allocator import keep_freed_memory
from fluence.losses import Objective
from fluence.models import build
from fluence.probes import SharpnessProbe
from fluence.study import SharpnessProbe as Settings
from fluence.study import VaeModel


def main() -> None:
    """Measures and prints."""
    options = _options()
    os.environ |= {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as an extraction does
    settings = VaeModel.model_validate(
        {"kind": "vae", "architecture": options.architecture, "width": options.width, "norm": options.norm}
    )
    network = build(settings, options.size, seed=0).eval().to(options.device, memory_format=torch.channels_last)
    objective = Objective(settings).to(options.device)
    images = torch.rand(options.images, 3, options.size, options.size, device=options.device)
    probe = SharpnessProbe(Settings(parameters=options.parameters), network, objective, options.size)

    def plain() -> None:
        objective(network(images), images)[0].mean().backward()
        network.zero_grad(set_to_none=True)

    def sharpness() -> None:
        probe(images, None)

    plain()
    memory_plain = _peak_gib(options.device)
    sharpness()
    seconds = [(_seconds(plain, options.device), _seconds(sharpness, options.device)) for _ in range(options.rounds)]
    _report(options, probe.chunk, seconds, memory_plain)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=64, help="side of the images, px")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--architecture", default="small")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--norm", default="none")
    parser.add_argument("--parameters", choices=("all", "encoder"), default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    return parser.parse_args()


def _seconds(work: Callable[[], None], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    _wait_for(device)
    start = clock()
    work()
    _wait_for(device)
    return clock() - start


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_gib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _report(options: argparse.Namespace, chunk: int, seconds: list[tuple[float, float]], memory_plain: float) -> None:
    ratios = [probe / plain for plain, probe in seconds]
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {options.threads} threads"
    print(f"{options.architecture} x{options.width:g}, {options.size} px, {options.parameters} weights, {name}")
    for label, values in zip(("plain", "probe"), zip(*seconds, strict=True), strict=True):
        print(f"  {label}    {1000 * np.median(values) / options.images:8.2f} ms per image")
    print(f"  ratio    {np.median(ratios):8.2f} (rounds: {min(ratios):.2f} to {max(ratios):.2f})")
    print(f"  peak memory {memory_plain:.2f} GiB before the probe, {_peak_gib(options.device):.2f} with it, ", end="")
    print(f"chunks of {chunk} images")


if __name__ == "__main__":
    main()
