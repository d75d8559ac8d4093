"""Which images show nearly the same as an earlier one: saved again, resized, slightly retouched, or mirrored.

A perceptual hash finds candidates. Aligned faces share so much of it that hundreds of pairs of different people are as
near as copies are; so a candidate counts only if the thumbnails themselves agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn

from fluence.data.covariates import luminance

THUMBNAIL_PX = 32
MOST_BITS = 6
"""Bits of the hash by which copies may differ."""
LEAST_CORRELATION = 0.98
"""Of the thumbnails of copies. Of 712,221 pairs of aligned photographs of faces three had .993 to .997, besides exact
copies, and no other pair more than .96."""

_HASH_PX = 8
_BLOCK_IMAGES = 4096  # two blocks are compared at a time: 64 MiB
_ROUNDING = 1e-4  # of correlations in float32, which choose what is computed in float64


class Copy(NamedTuple):
    """An image that is nearly the same as an earlier one.

    Attributes:
        image: its position.
        original: position of the first image that it is like.
        correlation: of the two thumbnails, `LEAST_CORRELATION` to 1.
        is_mirrored: whether the one is like the other from left to right.
    """

    image: int
    original: int
    correlation: float
    is_mirrored: bool


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """uint8 [images, height, width, 3], RGB → luminance, uint8 [images, 32, 32], each the mean over its part."""
    grey = np.rint(255 * luminance(pixels)).astype(np.uint8)
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    small = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in grey]
    return np.array(small, np.uint8).reshape(len(pixels), *size)


def perceptual_hash(small: np.ndarray) -> np.ndarray:
    """Thumbnails [images, 32, 32] → bool [images, 63]: which of the low frequencies lie above their median.

    The cosine transform's 8 × 8 lowest frequencies without the mean, which brightness alone would change.

    Source: Zauner 2010, Implementation and benchmarking of perceptual image hash functions, section 3.2.1 (DCT hash).
    """
    low = dctn(small.astype(np.float32), axes=(1, 2), norm="ortho")[:, :_HASH_PX, :_HASH_PX]
    frequencies = low.reshape(len(small), _HASH_PX**2)[:, 1:]
    return frequencies > np.median(frequencies, axis=1, keepdims=True)


def near_duplicates(small: np.ndarray) -> Iterator[Copy]:
    """Each image that is nearly the same as an earlier one, with the first such one, in the order of the images.

    Images of a single grey are left out: they have nothing to compare.

    Args:
        small: thumbnails, uint8 [images, 32, 32].
    """
    found: dict[int, Copy] = {}
    for is_mirrored in (False, True):
        for copy in _copies(small, small[:, :, ::-1] if is_mirrored else small, is_mirrored):
            known = found.get(copy.image)
            if known is None or copy.original < known.original:
                found[copy.image] = copy
    yield from (found[image] for image in sorted(found))


def _copies(small: np.ndarray, others: np.ndarray, is_mirrored: bool) -> Iterator[Copy]:
    """Each image with the first earlier one of `others` that is nearly the same.

    Block by block, so that a thousand copies of one picture take no longer than a thousand pictures.
    """
    signs, other_signs = (np.where(perceptual_hash(images), 1, -1).astype(np.float32) for images in (small, others))
    units, other_units = _standardised(small), _standardised(others)
    num_bits = signs.shape[1]
    for start in range(0, len(small), _BLOCK_IMAGES):
        left = np.arange(start, min(start + _BLOCK_IMAGES, len(small)))  # without an original so far
        for first in range(0, start + 1, _BLOCK_IMAGES):
            block = np.arange(first, min(first + _BLOCK_IMAGES, len(small)))
            near = signs[left] @ other_signs[block].T >= num_bits - 2 * MOST_BITS
            near &= block[None] < left[:, None]
            rows = np.flatnonzero(near.any(axis=1))
            if not len(rows):
                continue
            near = near[rows] & (units[left[rows]] @ other_units[block].T >= LEAST_CORRELATION - _ROUNDING)
            found = []
            for row, alike in zip(rows, near, strict=True):
                for original in block[alike]:
                    correlation = _correlation(small[left[row]], others[original])
                    if correlation >= LEAST_CORRELATION:
                        found.append(row)
                        yield Copy(int(left[row]), int(original), correlation, is_mirrored)
                        break
            left = np.delete(left, found)


def _standardised(small: np.ndarray) -> np.ndarray:
    """Thumbnails [images, 32, 32] → float32 [images, 1024] of mean 0 and length 1; zeros where one does not vary."""
    flat = small.reshape(len(small), THUMBNAIL_PX**2).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, lengths, out=np.zeros_like(flat), where=lengths > 0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, of two thumbnails; 0 where one does not vary."""
    a, b = (image.ravel() - image.mean(dtype=np.float64) for image in (a, b))
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths > 0 else 0.0
