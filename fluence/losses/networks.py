"""What feature networks consist of: names of their layers and smallest images, as plain tables without torch.

`fluence check` reads them; `fluence.losses.features` builds networks from them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from fluence.errors import StudyError
from fluence.store.pretrained import RANDOM
from fluence.study import AutoencoderModel, DfcLoss, Features, LpipsLoss, ModelFeatures

VGG_BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4), "vggface": (2, 2, 3, 3, 3)}
"""Convolutions between two poolings. Source: Simonyan & Zisserman 2015, table 1; Parkhi et al. 2015, table 3."""
VGG_CHANNELS = (64, 128, 256, 512, 512)
ATTGAN_LAYERS = tuple(f"conv{i}" for i in range(1, 6))
"""Each halves the map. Source: He et al. 2019, table I."""
DEFAULT_VGG_LAYERS = ("relu1_1", "relu2_1", "relu3_1")
"""VAE-123. Source: Hou et al. 2017, section 4.1."""

LPIPS_SMALLEST_PX = {"alex": 31, "vgg": 16, "squeeze": 17}
"""Side of the smallest image that each trunk of LPIPS takes."""


def layer_names(kind: str) -> tuple[str, ...]:
    """Names of the layers of a feature network that is not a model of the study, in the order of the forward pass."""
    if kind in VGG_BLOCKS:
        return tuple(f"relu{i}_{j}" for i, num in enumerate(VGG_BLOCKS[kind], 1) for j in range(1, num + 1))
    return ATTGAN_LAYERS


def default_layers(kind: str) -> tuple[str, ...]:
    """The layers that are compared where a study names none."""
    return DEFAULT_VGG_LAYERS if kind in VGG_BLOCKS else layer_names(kind)


def network_name(network: Features) -> str:
    """What a feature network is called in logs and reports; random weights are named so."""
    if isinstance(network, ModelFeatures):
        return network.label
    return network.kind + ("_random" if network.weights == RANDOM else "")


def smallest_px(layer: str) -> int:
    """Side of the smallest image of which a layer of a VGG (`relu3_1`) or of AttGAN (`conv3`) has a map."""
    number = int(layer.removeprefix("relu").removeprefix("conv").partition("_")[0])
    return 2 ** (number - 1 if "_" in layer else number)


def check_feature_layers(loss: DfcLoss, allowed: Sequence[str]) -> None:
    """Refuse names of layers that a feature network has not.

    Raises:
        StudyError: with the likely name and all allowed names.
    """
    for name in loss.layers or ():
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1)
            guess = f"did you mean {close[0]!r}? " if close else ""
            raise StudyError(
                f"models.*.reconstruction: the feature network {network_name(loss.network)} has no layer {name!r}; "
                f"{guess}Allowed: {', '.join(allowed)}"
            )


def check_image_for(who: str, image_size_px: int, needed_px: int) -> None:
    """Refuse images that are too small for a feature network.

    Raises:
        StudyError: saying how large they have to be.
    """
    if image_size_px < needed_px:
        raise StudyError(
            f"data.image_size_px: {who} needs images of at least {needed_px} × {needed_px} px; these have "
            f"{image_size_px} × {image_size_px} px"
        )


def check_perceptual_losses(model: AutoencoderModel, image_size_px: int) -> None:
    """Refuse feature layers that do not exist, and images that are too small for a feature network.

    The layers of a model of the study are not known here.

    Raises:
        StudyError: see above.
    """
    for loss in model.reconstruction:
        if isinstance(loss, LpipsLoss):
            check_image_for(f"LPIPS ({loss.net})", image_size_px, LPIPS_SMALLEST_PX[loss.net])
        if isinstance(loss, DfcLoss) and not isinstance(loss.network, ModelFeatures):
            check_feature_layers(loss, layer_names(loss.network.kind))
            layers = loss.layers or default_layers(loss.network.kind)
            check_image_for(f"DFC ({loss.network.kind})", image_size_px, max(map(smallest_px, layers)))
