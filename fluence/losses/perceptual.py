"""Distances between the features that a frozen network makes of two images: one number per image, [B]."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fluence.errors import ArtifactError
from fluence.store.pretrained import LPIPS_TRUNKS, RANDOM, find_weights

if TYPE_CHECKING:
    import lpips

RANDOM_TRUNK_SEED = 0


class Lpips(nn.Module):
    """Learned perceptual image patch similarity, frozen; it stays in eval mode when its parent trains.

    The linear weights are those of the `lpips` package (version 0.1). The trunk's come from a file on disk, or
    are random when the study says so: never silently.

    Source: Zhang et al. 2018, eq. 1.
    """

    def __init__(self, net: str, weights: str) -> None:
        """For `net` alex, vgg or squeeze; `weights` as in `fluence.store.pretrained.find_weights`.

        Raises:
            StudyError: the weights file is missing.
            ArtifactError: the weights file is damaged or belongs to another network.
        """
        super().__init__()
        path = find_weights(LPIPS_TRUNKS[net], weights, f"LPIPS ({net})")
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
