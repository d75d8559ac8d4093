"""LPIPS: a learned distance between the features that a frozen network makes of two images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fluence.errors import ArtifactError
from fluence.losses.features import RANDOM_SEED, FrozenNetwork
from fluence.losses.networks import LPIPS_SMALLEST_PX, check_image_for
from fluence.store.pretrained import LPIPS_TRUNKS, RANDOM, find_weights

if TYPE_CHECKING:
    import lpips


class Lpips(FrozenNetwork):
    """Learned perceptual image patch similarity, frozen.

    The linear weights are those of the `lpips` package (version 0.1). The trunk's come from a file on disk, or
    are random when the study says so: never silently.

    Source: Zhang et al. 2018, eq. 1.
    """

    def __init__(self, net: str, weights: str) -> None:
        """For `net` alex, vgg or squeeze; `weights` as in `fluence.store.pretrained.Weights`.

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
        self.freeze()

    def forward(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        """[B, 3, H, W] twice, in [0, 1] → [B], at least 0. The trunk sees them in [−1, 1].

        The features of the originals are constants, whatever made the originals.

        Raises:
            StudyError: the images are too small for the trunk.
        """
        net = self.network.pnet_type
        check_image_for(f"LPIPS ({net})", min(original.shape[-2:]), LPIPS_SMALLEST_PX[net])
        with torch.no_grad():
            wanted = self._features(original)
        distances = [(a - b) ** 2 for a, b in zip(self._features(reconstruction), wanted, strict=True)]
        weighted = (linear(distance) for linear, distance in zip(self.network.lins, distances, strict=True))
        return sum((value.mean((2, 3)) for value in weighted), start=original.new_zeros(())).flatten()

    def _features(self, images: Tensor) -> list[Tensor]:
        """The values of each layer of the trunk, [B, C, h, w], of length 1 across the channels."""
        network = self.network
        return [_of_length_1(values) for values in network.net(network.scaling_layer(2 * images - 1))]


def _of_length_1(values: Tensor) -> Tensor:
    """[B, C, h, w] divided by their length across the channels; where all are 0, they and their gradient stay 0.

    The same bits as the package's `normalize_tensor`, whose gradient is NaN where all channels are 0.
    """
    squares = (values**2).sum(dim=1, keepdim=True)
    lives = squares > 0
    length = torch.where(lives, squares, 1).sqrt() * lives
    return values / (length + 1e-10)


def _lpips_with_random_trunk(net: str) -> lpips.LPIPS:
    """The package's network, without its download; the same random numbers every time."""
    import lpips  # with torchvision, half of a short task's start: only where LPIPS is asked for

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The parameter 'pretrained' is deprecated", UserWarning)
        warnings.filterwarnings("ignore", "Arguments other than a weight enum", UserWarning)
        torch.manual_seed(RANDOM_SEED)
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
