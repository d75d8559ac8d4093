"""How far a reconstruction is from its original. Every function gives one number per image, [B].

Images are [B, C, H, W] in [0, 1]. L1 and L2 are sums over the image; 1 − SSIM, LPIPS and DFC are means over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from fluence.errors import StudyError
from fluence.losses.features import dfc_distance
from fluence.losses.networks import network_name
from fluence.losses.perceptual import Lpips
from fluence.losses.terms import Pass, Term
from fluence.study import AutoencoderModel, DfcLoss, LpipsLoss, Reconstruction

SSIM_WINDOW_PX, SSIM_SIGMA_PX = 11, 1.5
_LARGEST_DENSE_PX, _TILE_PX = 64, 24
SSIM_K1, SSIM_K2 = 0.01, 0.03


def l1(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Sum of the absolute differences over all pixel values: [B, C, H, W] twice → [B]."""
    return (reconstruction - original).abs().flatten(1).sum(1)


def l2(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Sum of the squared differences over all pixel values: [B, C, H, W] twice → [B].

    Twice the negative log-likelihood of a Gaussian decoder with unit variance, less its constant.
    """
    return (reconstruction - original).square().flatten(1).sum(1)


def ssim_loss(reconstruction: Tensor, original: Tensor) -> Tensor:
    """1 − SSIM: [B, C, H, W] twice, in [0, 1] → [B], from 0 (equal) to 2."""
    return 1 - ssim(reconstruction, original)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity, mean over channels and all positions where the window lies in the image.

    Gaussian window of 11 × 11 px with σ = 1.5 px, K = (0.01, 0.03), range of the data 1.

    Source: Wang et al. 2004, eq. 13 and section III-C.

    Args:
        x: images [B, C, H, W] in [0, 1].
        y: images [B, C, H, W] in [0, 1].

    Returns:
        [B], from −1 to 1.

    Raises:
        StudyError: an image is smaller than the window.
    """
    if min(x.shape[-2:]) < SSIM_WINDOW_PX:
        raise StudyError(
            f"SSIM needs images of at least {SSIM_WINDOW_PX} × {SSIM_WINDOW_PX} px, the size of its window; "
            f"these have {x.shape[-2]} × {x.shape[-1]} px (data.image_size_px)"
        )
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _window_means(torch.stack([x, y, x * x, y * y, x * y]))
    variances = mean_xx - mean_x.square() + mean_yy - mean_y.square()
    covariance = mean_xy - mean_x * mean_y
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * structure).flatten(1).mean(1)


def _window_means(images: Tensor) -> Tensor:
    """Gaussian-weighted means around every inner position: [..., H, W] → [..., H − 10, W − 10].

    Products with band matrices, which are faster than a convolution with a window at the sizes used here. Of a large
    image's matrices most is zero: they are taken in tiles.
    """
    height, width = (_window_matrix(side, images) for side in images.shape[-2:])
    if max(images.shape[-2:]) <= _LARGEST_DENSE_PX:
        return height.T @ images @ width
    rows = [height[inner, outer].T @ images[..., inner, :] for inner, outer in _tiles(height)]
    means = torch.cat(rows, dim=-2)
    return torch.cat([means[..., inner] @ width[inner, outer] for inner, outer in _tiles(width)], dim=-1)


def _tiles(matrix: Tensor) -> list[tuple[slice, slice]]:
    """Rows and columns of the tiles that hold what is not zero in a matrix [side, side − 10]."""
    side, num_columns = matrix.shape
    starts = range(0, num_columns, _TILE_PX)
    return [
        (slice(start, min(start + _TILE_PX + SSIM_WINDOW_PX - 1, side)), slice(start, start + _TILE_PX))
        for start in starts
    ]


def _window_matrix(side: int, like: Tensor) -> Tensor:
    """[side, side − 10]; column j weighs the positions j … j + 10, and sums to 1."""
    radius = SSIM_WINDOW_PX // 2
    position = torch.arange(side, dtype=like.dtype, device=like.device)
    offset = position[:, None] - (position[: side - 2 * radius] + radius)
    weights = (-offset.square() / (2 * SSIM_SIGMA_PX**2)).exp() * (offset.abs() <= radius)
    return weights / weights.sum(0)


SUMS = {"l1": l1, "l2": l2}
"""Losses that are sums over the pixel values of an image."""
MEANS = {"ssim": ssim_loss}
"""Losses that are means over an image; those with a network of their own are others."""


def reconstruction_terms(model: AutoencoderModel, trained: Mapping[str, nn.Module]) -> Iterator[Term]:
    """The terms that compare images with their reconstructions.

    Args:
        model: settings of the model.
        trained: models of the same study whose features are compared, frozen, by `ModelFeatures.label`.

    Raises:
        StudyError: weights are missing.
        ArtifactError: a weights file is damaged.
    """
    return (_term(loss, trained) for loss in model.reconstruction)


def _term(loss: Reconstruction, trained: Mapping[str, nn.Module]) -> Term:
    if isinstance(loss, LpipsLoss):
        network = Lpips(loss.net, loss.weights)
        return Term(f"reconstruction/{network.name}", loss.weight, _comparing(network), network=network)
    if isinstance(loss, DfcLoss):
        distance = dfc_distance(loss, trained)
        name = f"reconstruction/dfc_{network_name(loss.network)}"
        return Term(name, loss.weight, _comparing(distance), network=distance)
    return Term(f"reconstruction/{loss.loss}", loss.weight, _comparing((SUMS | MEANS)[loss.loss]))


def _comparing(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Pass], Tensor]:
    """A distance between reconstruction and original, as a function of a pass."""
    return lambda seen: distance(seen.reconstruction, seen.images)


@torch.no_grad()
def per_image_errors(originals: Tensor, reconstructions: Tensor, lpips: Lpips | None = None) -> dict[str, Tensor]:
    """Reconstruction error of each image in each measure, the same for every training loss.

    Args:
        originals: [B, 3, H, W] in [0, 1].
        reconstructions: [B, 3, H, W] in [0, 1].
        lpips: the network to measure LPIPS with, or None.

    Returns:
        float64 [B] each: `l1_error` and `l2_error`, means over the image's pixel values, so that image sizes can
        be compared; `ssim_error`, 1 − SSIM; and `lpips_error`, if a network is given.
    """
    x, y = reconstructions.double(), originals.double()
    num_values = x[0].numel()
    errors = {
        "l1_error": l1(x, y) / num_values,
        "l2_error": l2(x, y) / num_values,
        "ssim_error": ssim_loss(x, y),
    }
    if lpips is not None:
        errors["lpips_error"] = lpips(reconstructions.float(), originals.float()).double()
    return errors
