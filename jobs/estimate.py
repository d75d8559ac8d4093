"""What a study will cost on this machine, before anything is run: disk, arithmetic and hours.

Disk is counted, arithmetic is counted on a network without memory (torch's `meta` device), and hours are the
arithmetic over the speed of one convolution timed here: an order of magnitude and no promise.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluence.layout import Layout
from fluence.store.pretrained import RANDOM
from fluence.study import DfcLoss, LpipsLoss, Model, ModelFeatures, PixelsModel, Study
from jobs.pipeline import datasets_in_use

if TYPE_CHECKING:
    import torch

ALL = "all"
_GIGA = 1e9
_CHECKPOINTS_KEPT = 2
_NUMBERS_PER_PARAMETER = 3  # itself, and the two moments of Adam
_BACKWARD = 2  # a backward pass is two convolutions for each of the forward pass
_MOST_BINS, _BYTES_PER_BIN = 12_000, 6  # of the histogram of a layer's response to an image
_SHARPNESS = 4  # a chunk with weights of its own for each image, in passes of training (benchmarks/sharpness.py)
_CALIBRATION_S = 0.5

_LPIPS_FLOPS_PER_PIXEL = {"alex": 26e3, "vgg": 610e3, "squeeze": 14e3}
"""Forward pass of each trunk, from the published multiply-adds of one image of 224 × 224."""


@dataclass(frozen=True)
class ModelCost:
    """What one image costs in one model.

    Attributes:
        num_parameters: of the network.
        num_units: stored numbers per image, over all layers.
        num_bins: different ones among them in the layers whose histograms are kept, by experience.
        forward_gflops: arithmetic of a forward pass of one image.
        training_gflops: the same for a training step, losses included.
    """

    num_parameters: int
    num_units: int
    num_bins: int
    forward_gflops: float
    training_gflops: float


@dataclass(frozen=True)
class RunCost:
    """What one run costs.

    Attributes:
        model: name of the model.
        group: the group it learns from.
        num_images: images of that group, for training and validation.
        epochs: passes over them.
        gflops: arithmetic of training and extraction.
        hours: of training and extraction on this machine.
    """

    model: str
    group: str
    num_seeds: int
    num_images: int
    epochs: int
    gflops: float
    hours: float


@dataclass(frozen=True)
class Estimate:
    """What a study costs.

    Attributes:
        disk_gb: gigabytes (1e9 bytes) by kind: packed, activations, histograms, checkpoints.
        runs: every model × group that will be trained; each seed costs this once.
        gflops_per_s: speed of this machine.
        device: `cpu`, or the GPU it was timed on.
    """

    disk_gb: Mapping[str, float]
    runs: tuple[RunCost, ...]
    gflops_per_s: float
    device: str

    @property
    def total_gb(self) -> float:
        """Gigabytes of everything."""
        return sum(self.disk_gb.values())

    @property
    def total_hours(self) -> float:
        """Hours of all runs one after the other."""
        return sum(run.num_seeds * run.hours for run in self.runs)

    @property
    def num_runs(self) -> int:
        """Trainings of all seeds."""
        return sum(run.num_seeds for run in self.runs)


def estimate_study(study: Study, layout: Layout, gflops_per_s: float | None = None) -> Estimate:
    """Estimates what a study costs, from the images that are packed or lie on disk.

    Args:
        study: the study.
        layout: its folder.
        gflops_per_s: speed of the machine; timed if None.

    Raises:
        FluenceError: a data set cannot be read.
    """
    from fluence.data.readers import read_manifest
    from fluence.store.packed import Packed

    tables = {}
    for name in datasets_in_use(study):
        path, dataset = layout.packed(name), study.data.datasets[name]
        tables[name] = Packed(path).table if path.exists() else read_manifest(dataset, study.data).table
    training = tables[study.data.training]
    sizes = {**training["group"].value_counts(), ALL: len(training)}
    return estimate(study, sizes, len(tables[study.data.rated]), gflops_per_s)


def estimate(
    study: Study, num_training_images: Mapping[str, int], num_rated: int, gflops_per_s: float | None = None
) -> Estimate:
    """Estimates what a study costs.

    Args:
        study: the study.
        num_training_images: images of the training set by group, and of `all`.
        num_rated: rated images.
        gflops_per_s: speed of the machine; timed if None.
    """
    device = "given"
    if gflops_per_s is None:
        gflops_per_s, device = measure_speed()
    costs = {name: model_cost(study, study.models[name]) for name in study.model_names}
    chosen = dict.fromkeys((model, group) for model, group, _ in study.trainings)
    runs = tuple(
        _run_cost(study, name, group, costs[name], num_training_images[group], num_rated, gflops_per_s)
        for name, group in chosen
        if num_training_images.get(group, 0) >= study.data.min_group_size
    )
    every = [costs[run.model] for run in runs for _ in range(run.num_seeds)]
    disk = _disk_gb(study, every, num_training_images[ALL], num_rated)
    return Estimate(disk, runs, gflops_per_s, device)


def model_cost(study: Study, model: Model) -> ModelCost:
    """Counts parameters, recorded units and arithmetic of one model, without allocating it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fluence.models import build
    from fluence.store.histograms import SMALLEST_COUNTED

    size = study.data.image_size_px
    if isinstance(model, PixelsModel):
        return _pixels_cost(study)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build(model, size, seed=0, pretrained=False).eval()
        network(torch.empty(1, 3, size, size))
    recorded = study.record.layers
    layers = [layer for layer in network.recordable if recorded == "encoder" or layer.name in recorded]
    counted = {layer.name for layer in layers if layer.num_units >= SMALLEST_COUNTED}
    unstored = counted if study.record.store == "metrics" else set()
    forward = counter.get_total_flops() / _GIGA
    return ModelCost(
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        num_units=sum(layer.num_units for layer in layers if layer.name not in unstored),
        num_bins=sum(min(layer.num_units // 3, _MOST_BINS) for layer in layers if layer.name in counted),
        forward_gflops=forward,
        training_gflops=(1 + _BACKWARD) * forward + _loss_gflops(study, model),
    )


def _pixels_cost(study: Study) -> ModelCost:
    """The image as its own only layer."""
    num_units = 3 * study.data.image_size_px**2
    stored = study.record.store == "activations"
    return ModelCost(0, num_units if stored else 0, min(num_units // 3, _MOST_BINS), 0.0, 0.0)


def _loss_gflops(study: Study, model: Model) -> float:
    """A network that compares sees the image and its reconstruction, and goes back through the latter: three passes."""
    size = study.data.image_size_px
    trunks = [_LPIPS_FLOPS_PER_PIXEL[term.net] for term in model.reconstruction if isinstance(term, LpipsLoss)]
    features = [_dfc_gflops(study, term) for term in model.reconstruction if isinstance(term, DfcLoss)]
    return 3 * (sum(trunks) * size**2 / _GIGA + sum(features))


def _dfc_gflops(study: Study, loss: DfcLoss) -> float:
    """One pass of one image, as far as the last layer that is compared; through the whole encoder of another model."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fluence.losses.features import dfc_distance
    from fluence.models import build

    size, network = study.data.image_size_px, loss.network
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        image = torch.empty(1, 3, size, size)
        if isinstance(network, ModelFeatures):
            build(study.network(network.model), size, seed=0, pretrained=False).eval().encode(image)
        else:
            unfilled = loss.model_copy(update={"network": network.model_copy(update={"weights": RANDOM})})
            distance = dfc_distance(unfilled, {})
            distance.network(image, distance.layers)
    return counter.get_total_flops() / _GIGA


def _run_cost(
    study: Study, model: str, group: str, cost: ModelCost, num_images: int, num_rated: int, gflops_per_s: float
) -> RunCost:
    training = study.training_of(model)
    held_out = num_images * training.validation_fraction
    passes = 2 if training.sam else 1
    epoch = (num_images - held_out) * passes * cost.training_gflops + held_out * cost.forward_gflops
    extraction = (num_rated + study.record.reference_images) * cost.forward_gflops
    extraction += num_rated * _SHARPNESS * cost.training_gflops if study.record.sharpness else 0
    gflops = training.epochs * epoch + extraction
    seeds = len(study.seeds_of(model, group))
    return RunCost(model, group, seeds, num_images, training.epochs, gflops, gflops / gflops_per_s / 3600)


def _disk_gb(study: Study, costs: list[ModelCost], num_training: int, num_rated: int) -> dict[str, float]:
    """Gigabytes by kind. `costs` has one entry per run."""
    same = study.data.training == study.data.rated
    num_packed = num_training if same else num_training + num_rated
    num_recorded = num_rated + study.record.reference_images
    units = sum(cost.num_units for cost in costs)
    parameters = sum(cost.num_parameters for cost in costs)
    return {
        "packed": num_packed * study.data.image_size_px**2 * 3 / _GIGA,
        "activations": units * num_recorded * 2 / _GIGA,
        "histograms": sum(cost.num_bins for cost in costs) * num_recorded * _BYTES_PER_BIN / _GIGA,
        "checkpoints": parameters * 4 * (_CHECKPOINTS_KEPT * _NUMBERS_PER_PARAMETER + 1) / _GIGA,
    }


def measure_speed() -> tuple[float, str]:
    """Times a convolution, forward and backward, for half a second.

    Returns:
        Gigaflops per second of the fastest pass, since other work slows the rest, and the name of the device.
    """
    import torch

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    images, channels, side = (256 if cuda else 16), 64, 32
    kernel = torch.ones(channels, channels, 3, 3, device=device, requires_grad=True)
    values = torch.ones(images, channels, side, side, device=device, requires_grad=True)
    flops = (1 + _BACKWARD) * 2 * images * side**2 * channels**2 * 9
    passes = [_pass_s(kernel, values)]  # the first one also warms up
    while len(passes) < 3 or sum(passes) < _CALIBRATION_S:
        passes.append(_pass_s(kernel, values))
    return flops / min(passes) / _GIGA, torch.cuda.get_device_name() if cuda else "cpu"


def _pass_s(kernel: torch.Tensor, values: torch.Tensor) -> float:
    """Seconds of one convolution there and back."""
    import torch

    started = time.perf_counter()
    gradient, _ = torch.autograd.grad(torch.nn.functional.conv2d(values, kernel, padding=1).sum(), (kernel, values))
    gradient.sum().item()  # waits for the device
    return time.perf_counter() - started
