"""Speed of fluence's training beside other ways to train the same network on the same images.

    python benchmarks/train.py --size 64 --batch 64 --architecture small --width 1
    python benchmarks/train.py --peers floor same dataloader lightning pythae --precision bf16
    python benchmarks/train.py --sam                      # two passes per step, in every loop of ours
    python benchmarks/train.py --loss ssim --profile      # where a step spends its time, by operation

The loops take turns, in rounds, because the speed of a machine drifts; every figure is a median over the rounds.

floor       a bare PyTorch loop: float32 images on the device in PyTorch's own layout, float32 arithmetic; noise,
            forward, loss, backward and a fused AdamW step, nothing else: no mirroring, clipping, log or checkpoint
same        that loop with the memory layout and the precision that fluence uses: equal maths
dataloader  that loop, fed by a DataLoader that decodes JPEG files of the same size
lightning   a LightningModule and its Trainer on images in memory; needs `pip install lightning`
pythae      pythae's own trainer on images in memory; needs `pip install pythae`
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from fluence.allocator import keep_freed_memory
from fluence.layout import Layout, Run
from fluence.losses import Objective
from fluence.models import build
from fluence.store.packed import Packed, PackedWriter
from fluence.study import Training, VaeModel
from fluence.training import Ranks, TrainSpec
from fluence.training.distributed import Team
from fluence.training.loop import TrainingLoop
from fluence.training.precision import Precision, autocast, choose_precision
from fluence.training.task import load_images

FAR_AWAY_S = 1e9
LEARNING_RATE = 1e-12
"""So small that both networks keep the weights they began with: numbers near zero slow a CPU down, and networks that
learn apart have them in different places."""


def main() -> None:
    """Measures and prints."""
    options = options_of(__doc__ or "")
    os.environ |= {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()  # as a training does; the bare loop gains by it too
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_of(Path(folder), options)
        rounds = {name: PEERS[name](spec, options) for name in options.peers}
        rounds["fluence"] = fluence_loop(spec, Ranks(), Team(Ranks()))
        if options.profile:
            return _profile(rounds["fluence"])
        for run_round in rounds.values():
            run_round()
        speeds: dict[str, list[float]] = {name: [] for name in rounds}
        for number in range(options.rounds):
            for name in sorted(rounds, reverse=bool(number % 2)):
                speeds[name].append(options.steps * options.batch / seconds(rounds[name]))
        _report(options, speeds)


def options_of(description: str) -> argparse.Namespace:
    """The command line of a benchmark of training."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=64, help="side of the images, px")
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--architecture", default="small")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--norm", default="none")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["floor", "same"])
    parser.add_argument("--sam", action="store_true", help="sharpness-aware minimisation, also in floor and same")
    parser.add_argument("--loss", choices=("l2", "ssim", "lpips"), default="l2", help="lpips: random weights")
    parser.add_argument("--profile", action="store_true", help="only print the operations of a round of fluence")
    parser.add_argument("--workers", type=int, default=2, help="processes of the DataLoader")
    parser.add_argument("--steps", type=int, default=40, help="steps per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    return parser.parse_args()


def spec_of(folder: Path, options: argparse.Namespace) -> TrainSpec:
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


def fluence_loop(spec: TrainSpec, ranks: Ranks, team: Team) -> Callable[[], None]:
    """One epoch of fluence's loop, with its log, clipping, mirroring and everything."""
    data = load_images(spec, ranks)
    loop = TrainingLoop(spec, data, team, stop=lambda: False, checkpoint_interval_s=FAR_AWAY_S, quiet=True)
    loop.resume()

    def run_round() -> None:
        loop.run_epoch()
        loop.finish_epoch()

    return run_round


class _Bare:
    """A network, a loss and an optimiser; `step` is as short as it can be written.

    Args:
        spec: the training.
        precision: numbers of the forward pass; fluence's own choice if None.
        memory_format: how maps lie in memory.
    """

    def __init__(
        self, spec: TrainSpec, precision: Precision | None = None,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:  # fmt: skip
        self.spec, self.device = spec, Ranks().device
        self.data = load_images(spec, Ranks())
        self.memory_format = memory_format
        self.model = build(spec.model, self.data.image_size_px, 0).to(self.device, memory_format=memory_format)
        self.objective = Objective(spec.model).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, weight_decay=0.0, fused=True)
        self.precision = precision or choose_precision(spec.training, self.device)

    def images(self) -> torch.Tensor:
        """All images on the device, float32 [N, 3, H, W]."""
        every = self.data.training.batch(torch.arange(len(self.data.training), device=self.device))
        return every.contiguous(memory_format=self.memory_format)

    def loss(self, x: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Mean loss of a batch [B, 3, H, W], []."""
        noise = self.noise(x) if noise is None else noise
        with autocast(self.precision, self.device):
            output = self.model(x, noise)
        return self.objective(output, x)[0].mean()

    def noise(self, x: torch.Tensor) -> torch.Tensor:
        """What the latents of a batch are drawn from."""
        return torch.randn(len(x), *self.model.noise_shape, device=self.device)

    def step(self, x: torch.Tensor) -> None:
        """One step on a batch."""
        noise = self.noise(x)
        self.loss(x, noise).backward()
        if self.spec.training.sam:
            self._sharpen(self.spec.training.sam.rho, x, noise)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _sharpen(self, rho: float, x: torch.Tensor, noise: torch.Tensor) -> None:
        """The second pass of sharpness-aware minimisation."""
        parameters = list(self.model.parameters())
        weights = [p.detach().clone() for p in parameters]
        length = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        with torch.no_grad():
            for p in parameters:
                p += rho / length * p.grad
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(x, noise).backward()
        with torch.no_grad():
            for p, weight in zip(parameters, weights, strict=True):
                p.copy_(weight)


def _floor(spec: TrainSpec, options: argparse.Namespace) -> Callable[[], None]:
    return _over_resident_images(_Bare(spec, "fp32", torch.contiguous_format))


def _same(spec: TrainSpec, options: argparse.Namespace) -> Callable[[], None]:
    return _over_resident_images(_Bare(spec))


def _over_resident_images(bare: _Bare) -> Callable[[], None]:
    images, batch_size = bare.images(), bare.spec.training.batch_size

    def run_round() -> None:
        for batch in torch.randperm(len(images), device=bare.device).split(batch_size):
            bare.step(images[batch])

    return run_round


class _JpegFiles(torch.utils.data.Dataset):
    """Images as JPEG files in a folder: [3, H, W] in [0, 1]."""

    def __init__(self, pixels: np.ndarray, folder: Path) -> None:
        folder.mkdir()
        self._paths = [folder / f"{number}.jpg" for number in range(len(pixels))]
        for image, path in zip(pixels, self._paths, strict=True):
            Image.fromarray(image).save(path, quality=92)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        with Image.open(self._paths[number]) as image:
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _dataloader(spec: TrainSpec, options: argparse.Namespace) -> Callable[[], None]:
    bare = _Bare(spec)
    files = _JpegFiles(Packed(spec.packed).read(np.arange(len(bare.data.training))), spec.layout.root / "jpeg")
    loader = torch.utils.data.DataLoader(
        files, spec.training.batch_size, shuffle=True, num_workers=options.workers,
        persistent_workers=options.workers > 0, pin_memory=bare.device.type == "cuda",
    )  # fmt: skip

    def run_round() -> None:
        for x in loader:
            bare.step(x.to(bare.device, non_blocking=True).contiguous(memory_format=bare.memory_format))

    return run_round


def _lightning(spec: TrainSpec, options: argparse.Namespace) -> Callable[[], None]:
    import lightning

    bare = _Bare(spec, "fp32", torch.contiguous_format)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = bare.model

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return bare.loss(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), LEARNING_RATE, weight_decay=0.0, fused=True)

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(bare.images().cpu()), spec.training.batch_size, shuffle=True
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    precision = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[
        choose_precision(spec.training, bare.device)
    ]
    module = Module()

    def run_round() -> None:
        where = {"accelerator": "gpu" if bare.device.type == "cuda" else "cpu", "devices": 1}
        lightning.Trainer(max_epochs=1, precision=precision, **where, **quiet).fit(module, loader)

    return run_round


def _pythae(spec: TrainSpec, options: argparse.Namespace) -> Callable[[], None]:
    from pythae.data.datasets import BaseDataset
    from pythae.models.base import BaseAE, BaseAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    bare = _Bare(spec, "fp32", torch.contiguous_format)
    side = bare.data.image_size_px

    class Model(BaseAE):
        def __init__(self) -> None:
            config = BaseAEConfig(input_dim=(3, side, side), latent_dim=2)
            super().__init__(model_config=config, decoder=BaseDecoder())
            self.set_encoder(BaseEncoder())
            self.network = bare.model

        def forward(self, inputs: dict[str, torch.Tensor], **_: object) -> ModelOutput:
            return ModelOutput(loss=bare.loss(inputs["data"]))

    images = bare.images().cpu()
    dataset, model = BaseDataset(images, torch.zeros(len(images))), Model()
    with contextlib.redirect_stdout(io.StringIO()):
        config = BaseTrainerConfig(
            output_dir=str(spec.layout.root / "pythae"), num_epochs=1, learning_rate=LEARNING_RATE,
            per_device_train_batch_size=spec.training.batch_size, optimizer_cls="AdamW", keep_best_on_train=False,
            amp=choose_precision(spec.training, bare.device) != "fp32", no_cuda=bare.device.type == "cpu",
        )  # fmt: skip
        trainer = BaseTrainer(model=model, train_dataset=dataset, training_config=config)
        trainer.set_optimizer()
        trainer.prepare_training()
    return lambda: trainer.train_step(epoch=1)


PEERS: dict[str, Callable[[TrainSpec, argparse.Namespace], Callable[[], None]]] = {
    "floor": _floor,
    "same": _same,
    "dataloader": _dataloader,
    "lightning": _lightning,
    "pythae": _pythae,
}


def _profile(run_round: Callable[[], None]) -> None:
    run_round()
    with torch.profiler.profile() as profile:
        run_round()
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60))


def seconds(run_round: Callable[[], None]) -> float:
    """How long a round takes."""
    _wait_for_device()
    start = time.perf_counter()
    run_round()
    _wait_for_device()
    return time.perf_counter() - start


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _report(options: argparse.Namespace, speeds: dict[str, list[float]]) -> None:
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{options.architecture} x{options.width:g}, {options.size} px, batch {options.batch}, {name}, ", end="")
    print(f"precision {options.precision}, loss {options.loss}{', sharpness-aware' if options.sam else ''}")
    bases = [peer for peer in ("floor", "same") if peer in speeds]
    print("  loop        images/s" + "".join(f"   x {base:5s} (middle half)" for base in bases))
    for loop, values in speeds.items():
        line = f"  {loop:10s} {np.median(values):9.1f}"
        for base in bases:
            ratios = sorted(ours / theirs for ours, theirs in zip(values, speeds[base], strict=True))
            low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            line += f"   {np.median(ratios):7.3f} ({low:.3f} to {high:.3f})"
        print(line)
    print(f"  peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", end="")
    print(f", of the GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if options.device == "cuda" else "")


if __name__ == "__main__":
    main()
