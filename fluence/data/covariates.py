"""What an image is like before any network sees it: the confounds that every result is set against.

Luminance is Rec. 709 luma of the stored sRGB values, 0.2126 R + 0.7152 G + 0.0722 B, in 0 … 1.
"""

from __future__ import annotations

import math

import numpy as np

NAMES = ("luminance_mean", "luminance_median", "luminance_contrast", "pixel_gini", "edge_density")

EDGE_THRESHOLD = 0.1
"""Luminance step between two neighbouring pixels above which a pixel lies on an edge."""

_RED, _GREEN, _BLUE = 0.2126, 0.7152, 0.0722  # ITU-R BT.709-6, item 3.2


def covariates(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Measures each image.

    Args:
        pixels: uint8 [images, height, width, 3], RGB.

    Returns:
        For each of `NAMES` a float64 [images]; `luminance_contrast` is the standard deviation over the pixels (root
        mean square contrast), `pixel_gini` is NaN for a black image.
    """
    grey = luminance(pixels)
    flat = grey.reshape(len(pixels), grey.shape[1] * grey.shape[2])
    measures = (
        flat.mean(axis=1),
        np.median(flat, axis=1),
        flat.std(axis=1),
        pixel_gini(pixels),
        edge_density(grey),
    )
    return dict(zip(NAMES, measures, strict=True))


def luminance(pixels: np.ndarray) -> np.ndarray:
    """uint8 [images, height, width, 3], RGB → float64 [images, height, width] in 0 … 1."""
    return (_RED * pixels[..., 0] + _GREEN * pixels[..., 1] + _BLUE * pixels[..., 2]) / 255


def pixel_gini(pixels: np.ndarray) -> np.ndarray:
    """Gini index of all pixel values of each image, float64 [images] in 0 … 1 − 1/N, NaN if all are zero.

    Σₖ (2k − N − 1) c₍ₖ₎ / (N Σ c) with c sorted upwards, k = 1 … N.

    Source: Hurley & Rickard (2009), Comparing measures of sparsity, IEEE Trans. Inf. Theory 55.
    """
    num_values = math.prod(pixels.shape[1:])
    ordered = np.sort(pixels.reshape(len(pixels), num_values), axis=1, kind="stable")  # a radix sort for bytes
    values = ordered.astype(np.float64)
    weights = 2.0 * np.arange(1, num_values + 1) - num_values - 1
    total = values.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, np.einsum("ik,k->i", values, weights) / (num_values * total), np.nan)


def edge_density(grey: np.ndarray) -> np.ndarray:
    """Share of the inner pixels whose Sobel gradient exceeds `EDGE_THRESHOLD`, float64 [images].

    The kernels are divided by 4, so that a vertical or horizontal step of height h has the magnitude h on both of its
    sides. The outermost pixels, which lack neighbours, do not count.

    Args:
        grey: luminance, float [images, height, width] in 0 … 1; height and width at least 3.
    """
    across = grey[:, :, 2:] - grey[:, :, :-2]
    down = grey[:, 2:, :] - grey[:, :-2, :]
    horizontal = (across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]) / 4
    vertical = (down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]) / 4
    return (np.hypot(horizontal, vertical) > EDGE_THRESHOLD).mean(axis=(1, 2))
