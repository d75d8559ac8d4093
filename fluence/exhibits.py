"""What of a network is kept to be looked at: its maps of a few images, a few of its units, the way between codes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fluence.models import Autoencoder, Recorder
from fluence.store.activations import LayerInfo
from fluence.store.exhibits import Exhibits, LayerShown
from fluence.store.precision import check_rows
from fluence.study import VqVaeModel

NUM_IMAGES = 3
NUM_UNITS = 25
NUM_CHANNELS, LARGEST_MAP_PX = 16, 64
NUM_BINS = 64
NUM_STEPS = 8
_PARALLEL = 1e-6  # of sin θ: below, the weights of the arc are quotients of rounding errors


def units_of(layer: LayerInfo) -> np.ndarray:
    """Places of the units of a layer that are kept to be looked at, int64 [units], ascending.

    At random, so that they stand for the layer; by its name and size alone, so that they are the same in every run.
    """
    rng = np.random.default_rng([zlib.crc32(layer.name.encode()), layer.num_units])
    return np.sort(rng.choice(layer.num_units, min(NUM_UNITS, layer.num_units), replace=False))


@torch.inference_mode()
def show(
    network: Autoencoder,
    recorder: Recorder,
    images: Tensor,
    originals: np.ndarray,
    image_ids: Sequence[str],
    float32_layers: Mapping[str, str],
) -> Exhibits:
    """What a network in eval mode makes of a few images, one after the other: memory is that of one.

    Args:
        network: the network; what lies between two codes of a VQ-VAE means nothing, and is left out.
        recorder: of its layers.
        images: [B, 3, H, W] in [0, 1].
        originals: the same as uint8 [B, H, W, 3].
        image_ids: of the images.
        float32_layers: names of the layers whose values stay float32.

    Raises:
        NeedsFloat32: another layer does not fit into float16.
        ArtifactError: a value is NaN or infinite.
    """
    shown, codes, ends = [], [], []
    for image_id, image in zip(image_ids, images, strict=True):
        output = network(image[None])
        codes.append(output.mu[0])
        ends.append(output.reconstruction)
        values = {name: value[0].float().cpu() for name, value in recorder.take().items()}
        shown.append({name: _shown(value, name, image_id, float32_layers) for name, value in values.items()})
    layers = {layer.name: _stacked([one[layer.name] for one in shown]) for layer in recorder.layers}
    pairs = [] if isinstance(network.settings, VqVaeModel) else list(pairwise(codes))
    ways = [_way(network, *pair, *ends[place : place + 2]) for place, pair in enumerate(pairs)]
    nothing = np.empty((0, NUM_STEPS, *originals.shape[1:]), np.uint8)
    return Exhibits(image_ids, originals, layers, np.stack(ways) if ways else nothing)


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The point at a share of the way from one code [*shape] to another, along the arc between their directions.

    (sin((1 − t) θ) a + sin(t θ) b) / sin θ, θ being the angle between a and b; along the straight line where
    sin θ < 1e-6, and where one of them is zero.

    Source: Shoemake 1985, section 3.3.
    """
    a, b = first.double(), second.double()
    lengths = a.norm(), b.norm()
    if not all(lengths):
        return torch.lerp(first, second, share)
    ahead, back = a / lengths[0] - b / lengths[1], a / lengths[0] + b / lengths[1]
    angle = 2 * math.atan2(ahead.norm(), back.norm())
    if math.sin(angle) < _PARALLEL:
        return torch.lerp(first, second, share)
    return ((math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)).to(first.dtype)


def _way(network: Autoencoder, first: Tensor, second: Tensor, start: Tensor, end: Tensor) -> np.ndarray:
    """Images at even steps from one code to the other, uint8 [steps, H, W, 3]; the ends [1, 3, H, W] are known."""
    codes = [slerp(first, second, step / (NUM_STEPS - 1)) for step in range(1, NUM_STEPS - 1)]
    images = torch.cat([start, *(network.decode(code[None]) for code in codes), end])
    return (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def _shown(values: Tensor, layer: str, image_id: str, float32_layers: Mapping[str, str]) -> LayerShown:
    """What is kept of a layer's values [*shape] of one image."""
    dtype = np.dtype("float32" if layer in float32_layers else "float16")
    stored = check_rows(values.flatten()[None].numpy(), dtype, layer, [image_id])[0]
    other = stored[stored != 0].astype(np.float64)  # float64 can tell apart what the bins are to tell apart
    counts, edges = np.histogram(other, bins=NUM_BINS)
    maps, pooled_px = _maps(values)
    return LayerShown(maps.numpy().astype(dtype), pooled_px, counts, edges, np.array(len(stored) - len(other)))


def _maps(values: Tensor) -> tuple[Tensor, int]:
    """The first channels of [C, H, W], large ones as means of squares, and their side in pixels; all of a vector."""
    if values.ndim != 3:
        return values, 1
    side = math.ceil(max(values.shape[1:]) / LARGEST_MAP_PX)
    return functional.avg_pool2d(values[:NUM_CHANNELS], side, ceil_mode=True) if side > 1 else values[
        :NUM_CHANNELS
    ], side


def _stacked(images: Sequence[LayerShown]) -> LayerShown:
    parts = {name: np.stack([getattr(one, name) for one in images]) for name in ("maps", "counts", "edges", "zeros")}
    return LayerShown(pooled_px=images[0].pooled_px, **parts)
