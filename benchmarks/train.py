"""Speed of fluence's training loop beside a bare PyTorch loop: same network, batch, optimiser and arithmetic.

    python benchmarks/train.py --size 64 --batch 64 --architecture small --width 1
    python benchmarks/train.py --sam                      # two passes per step, in both loops
    python benchmarks/train.py --loss ssim --profile      # where a step spends its time, by operation

The bare loop has its images in memory as float32, draws its noise, and does forward, loss, backward and a fused
AdamW step, nothing else: no mirroring, no clipping, no log, no checkpoints, no check for NaN. It is the floor. Both
loops take turns, in rounds, because the speed of a machine drifts; the figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fluence.allocator import keep_freed_memory
from fluence.layout import Layout, Run
from fluence.losses import Objective
from fluence.models import build
from fluence.store.packed import PackedWriter
from fluence.study import Training, VaeModel
from fluence.training import Ranks, TrainSpec
from fluence.training.distributed import Team
from fluence.training.loop import TrainingLoop
from fluence.training.precision import autocast, choose_precision
from fluence.training.task import load_images

FAR_AWAY_S = 1e9
LEARNING_RATE = 1e-12
"""So small that both networks keep the weights they began with: numbers near zero slow a CPU down, and networks that
learn apart have them in different places."""


def main() -> None:
    """Measures and prints."""
    options = _options()
    os.environ |= {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()  # as a training does; the bare loop gains by it too
    with tempfile.TemporaryDirectory() as folder:
        spec = _spec(Path(folder), options)
        rounds = {"fluence": _fluence_loop(spec), "bare": _bare_loop(spec)}
        if options.profile:
            return _profile(rounds["fluence"])
        for run_round in rounds.values():
            run_round()
        speeds: dict[str, list[float]] = {name: [] for name in rounds}
        for number in range(options.rounds):
            for name in sorted(rounds, reverse=bool(number % 2)):
                speeds[name].append(options.steps * options.batch / _seconds(rounds[name]))
    _report(options, speeds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=64, help="side of the images, px")
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--architecture", default="small")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--norm", default="none")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--sam", action="store_true", help="sharpness-aware minimisation")
    parser.add_argument("--loss", choices=("l2", "ssim", "lpips"), default="l2", help="lpips: random weights")
    parser.add_argument("--profile", action="store_true", help="only print the operations of a round of fluence")
    parser.add_argument("--steps", type=int, default=10, help="steps per round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    return parser.parse_args()


def _spec(folder: Path, options: argparse.Namespace) -> TrainSpec:
    """A training whose epochs have `steps` steps, on random images."""
    layout, num_images = Layout(folder), options.steps * options.batch
    with PackedWriter(layout.packed("noise"), options.size, {}) as writer:
        shape = (num_images, options.size, options.size, 3)
        writer.append(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        writer.finish(pd.DataFrame({"image_id": np.arange(num_images).astype(str)}), pd.DataFrame({"image_id": []}))
    model = {"kind": "vae", "architecture": options.architecture, "width": options.width, "norm": options.norm}
    model["reconstruction"] = [{"loss": options.loss} | ({"weights": "random"} if options.loss == "lpips" else {})]
    training = {"batch_size": options.batch, "precision": options.precision, "epochs": 10**6, "validation_fraction": 0}
    training["learning_rate"] = LEARNING_RATE
    training["sam"] = {} if options.sam else None
    return TrainSpec(
        model=VaeModel.model_validate(model),
        training=Training.model_validate(training),
        run=Run("benchmark", "all", 0, "benchmark"),
        layout=layout,
        packed=layout.packed("noise"),
        group_by=(),
        min_group_size=2,
        key="benchmark",
    )


def _fluence_loop(spec: TrainSpec) -> Callable[[], None]:
    """One epoch of fluence's loop, with its log, clipping, mirroring and everything."""
    ranks = Ranks()
    data = load_images(spec, ranks)
    loop = TrainingLoop(spec, data, Team(ranks), stop=lambda: False, checkpoint_interval_s=FAR_AWAY_S, quiet=True)
    loop.resume()

    def run_round() -> None:
        loop.run_epoch()
        loop.finish_epoch()

    return run_round


def _bare_loop(spec: TrainSpec) -> Callable[[], None]:
    """The same steps, as short as they can be written."""
    device, batch_size = Ranks().device, spec.training.batch_size
    data = load_images(spec, Ranks())
    images = data.training.batch(torch.arange(len(data.training), device=device))
    model = build(spec.model, data.image_size_px, 0).to(device, memory_format=torch.channels_last)
    objective = Objective(spec.model).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0, fused=True)
    precision = choose_precision(spec.training, device)

    def backward(x: torch.Tensor, noise: torch.Tensor) -> None:
        with autocast(precision, device):
            output = model(x, noise)
        losses, _ = objective(output, x)
        losses.mean().backward()

    def run_round() -> None:
        order = torch.randperm(len(images), device=device)
        for batch in order.split(batch_size):
            x = images[batch]
            noise = torch.randn(len(x), *model.noise_shape, device=device)
            backward(x, noise)
            if spec.training.sam:
                weights = [p.detach().clone() for p in model.parameters()]
                length = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
                with torch.no_grad():
                    for p in model.parameters():
                        p += spec.training.sam.rho / length * p.grad
                optimizer.zero_grad(set_to_none=True)
                backward(x, noise)
                with torch.no_grad():
                    for p, weight in zip(model.parameters(), weights, strict=True):
                        p.copy_(weight)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run_round


def _profile(run_round: Callable[[], None]) -> None:
    run_round()
    with torch.profiler.profile() as profile:
        run_round()
    on_gpu = torch.cuda.is_available()
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60))


def _seconds(run_round: Callable[[], None]) -> float:
    _wait_for_device()
    start = time.perf_counter()
    run_round()
    _wait_for_device()
    return time.perf_counter() - start


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _report(options: argparse.Namespace, speeds: dict[str, list[float]]) -> None:
    ratios = sorted(ours / bare for ours, bare in zip(speeds["fluence"], speeds["bare"], strict=True))
    print("sharpness-aware, " if options.sam else "", f"loss {options.loss}, ", sep="", end="")
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{options.architecture} x{options.width:g}, {options.size} px, batch {options.batch}, {name}")
    for loop, values in speeds.items():
        print(f"  {loop:8s} {statistics.median(values):10.1f} images/s")
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    print(f"  ratio    {statistics.median(ratios):10.3f} (middle half of the rounds: {low:.3f} to {high:.3f})")
    print(f"  peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", end="")
    print(f", of the GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if options.device == "cuda" else "")


if __name__ == "__main__":
    main()
