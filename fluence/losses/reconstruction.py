"""How far a reconstruction is from its original. Every function gives one number per image, [B].

Images are [B, C, H, W] in [0, 1]. L1 and L2 are sums over the image, 1 − SSIM and LPIPS are means over it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fluence.errors import ArtifactError, StudyError
from fluence.losses.weights import RANDOM, find_weights

if TYPE_CHECKING:
    import lpips

SSIM_WINDOW_PX, SSIM_SIGMA_PX = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03
RANDOM_TRUNK_SEED = 0


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

    Two products with band matrices, which are faster than a convolution with a window at the sizes used here.
    """
    height, width = (_window_matrix(side, images) for side in images.shape[-2:])
    return height.T @ images @ width


def _window_matrix(side: int, like: Tensor) -> Tensor:
    """[side, side − 10]; column j weighs the positions j … j + 10, and sums to 1."""
    radius = SSIM_WINDOW_PX // 2
    position = torch.arange(side, dtype=like.dtype, device=like.device)
    offset = position[:, None] - (position[: side - 2 * radius] + radius)
    weights = (-offset.square() / (2 * SSIM_SIGMA_PX**2)).exp() * (offset.abs() <= radius)
    return weights / weights.sum(0)


class Lpips(nn.Module):
    """Learned perceptual image patch similarity, frozen; it stays in eval mode when its parent trains.

    The linear weights are those of the `lpips` package (version 0.1). The trunk's come from a file on disk, or
    are random when the study says so: never silently.

    Source: Zhang et al. 2018, eq. 1.
    """

    def __init__(self, net: str, weights: str) -> None:
        """For `net` alex, vgg or squeeze; `weights` as in `fluence.losses.weights.find_weights`.

        Raises:
            StudyError: the weights file is missing.
            ArtifactError: the weights file is damaged or belongs to another network.
        """
        super().__init__()
        path = find_weights(net, weights)
        self.name = f"lpips_{net}" + ("_random" if weights == RANDOM else "")
        self.network = _lpips_with_random_trunk(net)
        if path is not None:
            _load_trunk(self.network.net, path)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Lpips:
        """Stays in eval mode, whatever is asked for."""
        return super().train(False)

    def forward(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        """[B, 3, H, W] twice, in [0, 1] → [B], at least 0. The trunk sees them in [−1, 1]."""
        return self.network(2 * reconstruction - 1, 2 * original - 1).flatten()


def _lpips_with_random_trunk(net: str) -> lpips.LPIPS:
    """The package's network, without its download; the same random numbers every time."""
    import lpips  # with torchvision, half of a short task's start: only where LPIPS is asked for

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The parameter 'pretrained' is deprecated", UserWarning)
        warnings.filterwarnings("ignore", "Arguments other than a weight enum", UserWarning)
        torch.manual_seed(RANDOM_TRUNK_SEED)
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def _load_trunk(trunk: nn.Module, path: Path) -> None:
    """Fill a trunk from torchvision's state dict: `features.5.weight` is the trunk's `slice2.5.weight`."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        wanted = {name: "features." + name.split(".", 1)[1] for name in trunk.state_dict()}
        trunk.load_state_dict({name: saved[theirs] for name, theirs in wanted.items()})
    except Exception as error:
        raise ArtifactError(
            f"{path} cannot be read as torchvision's weights of this trunk ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}); fetch it again, or correct `net:`"
        ) from error
