"""Sparsity of parts of a layer: of each feature map, of each place across channels, of each unit over the images."""

from __future__ import annotations

import numpy as np

from analysis.sparsity import gini, sparsity

UNIT_METRICS = ("gini", "treves_rolls", "dead_fraction")
"""What is measured of each unit over the images."""


def gini_of_maps(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Mean over the feature maps of each image of the Gini index over a map's places: is each feature localised?

    Args:
        values: finite, [n, units].
        shape: (channels, height, width).

    Returns:
        float64 [n]; maps of zeros, which have no Gini, are left out of the mean; NaN if there is no other.
    """
    channels, places = shape[0], int(np.prod(shape[1:]))
    return _mean(gini(values.reshape(-1, places)).reshape(-1, channels))


def gini_of_positions(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Mean over the places of each image of the Gini index across the channels: do few features answer at each place?

    Args:
        values: finite, [n, units].
        shape: (channels, height, width).

    Returns:
        float64 [n]; places where all channels are zero are left out of the mean; NaN if there is no other.
    """
    channels, places = shape[0], int(np.prod(shape[1:]))
    across = np.ascontiguousarray(values.reshape(-1, channels, places).swapaxes(1, 2))
    return _mean(gini(across.reshape(-1, channels)).reshape(-1, places))


def lifetime_sparsity(values: np.ndarray) -> dict[str, np.ndarray]:
    """Sparsity of each unit over the images: does it answer to few of them?

    Args:
        values: float16 or float32 [images, units].

    Returns:
        name → float64 [units] of `UNIT_METRICS`; a unit that is silent for all images has neither gini nor
        treves_rolls (NaN), and a dead_fraction of 1.

    Raises:
        NonFinite: a value is NaN or infinite.

    Source: Willmore & Tolhurst 2001, Characterizing the sparseness of neural codes (lifetime and population).
    """
    metrics, _ = sparsity(np.ascontiguousarray(values.T), np.empty(0))
    return {name: metrics[name] for name in UNIT_METRICS}


def has_places(shape: tuple[int, ...]) -> bool:
    """Whether a layer has channels and places to tell apart."""
    return len(shape) == 3


def _mean(ginis: np.ndarray) -> np.ndarray:
    alive = ~np.isnan(ginis)
    count = np.count_nonzero(alive, axis=1)
    total = np.where(alive, ginis, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(ginis), np.nan), where=count > 0)
