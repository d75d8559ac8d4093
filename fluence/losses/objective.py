"""The objective: the terms that a model's settings name, weighted and added up.

Training and validation share it, so that the best epoch is chosen by the loss that is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from fluence.errors import StudyError
from fluence.losses.reconstruction import Lpips, l1, l2, ssim_loss
from fluence.losses.regularizers import kl_to_standard_normal
from fluence.study import LpipsLoss, Reconstruction, VaeModel

NUM_CHANNELS = 3
SUMS = {"l1": l1, "l2": l2}
"""Losses that are sums over the pixel values of an image."""
MEANS = {"ssim": ssim_loss}
"""Losses that are means over an image; LPIPS, which has weights of its own, is another."""


class ModelOutput(Protocol):
    """What the objective needs of a model's output: [B, 3, H, W], [B, ...] and [B, ...]."""

    @property
    def reconstruction(self) -> Tensor: ...
    @property
    def mu(self) -> Tensor: ...
    @property
    def logvar(self) -> Tensor: ...


class Objective(nn.Module):
    """Σ weight · reconstruction term + β · KL, for each image.

    Always computed in float32 at least, also inside autocast. It has no trainable parameters, and an LPIPS
    network in it is frozen.
    """

    def __init__(self, model: VaeModel) -> None:
        """Loads the LPIPS networks that the model names.

        Raises:
            StudyError: a term is listed twice, or weights are missing.
            ArtifactError: a weights file is damaged.
        """
        super().__init__()
        self.kl_weight = model.kl_weight
        self.networks = nn.ModuleList()
        self._terms: dict[str, tuple[float, Callable[[Tensor, Tensor], Tensor]]] = {}
        for term in model.reconstruction:
            self._add(term)

    def _add(self, term: Reconstruction) -> None:
        function: Callable[[Tensor, Tensor], Tensor]
        if isinstance(term, LpipsLoss):
            network = Lpips(term.net, term.weights)
            self.networks.append(network)
            function, name = network, f"reconstruction/{network.name}"
        else:
            function, name = (SUMS | MEANS)[term.loss], f"reconstruction/{term.loss}"
        if name in self._terms:
            raise StudyError(f"models.*.reconstruction: {name} is listed twice; give it one weight")
        self._terms[name] = (term.weight, function)

    def forward(self, output: ModelOutput, images: Tensor, kl_scale: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each image, and its terms.

        Args:
            output: the model's output for these images.
            images: [B, 3, H, W] in [0, 1].
            kl_scale: factor of β during its warm-up, from 0 to 1; validation uses 1.

        Returns:
            the loss [B], and the detached terms [B] by name: `reconstruction/<term>` and `kl` without their
            weights, and `loss`. The mean over the (global) batch is the caller's.
        """
        with torch.autocast(images.device.type, enabled=False):
            terms = {
                name: function(_exact(output.reconstruction), _exact(images))
                for name, (_, function) in self._terms.items()
            }
            kl = kl_to_standard_normal(_exact(output.mu), _exact(output.logvar))
            total = kl_scale * self.kl_weight * kl
            for name, (weight, _) in self._terms.items():
                total = total + weight * terms[name]
        terms |= {"kl": kl, "loss": total}
        return total, {name: value.detach() for name, value in terms.items()}


def _exact(x: Tensor) -> Tensor:
    """Half precision becomes float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def effective_beta(model: VaeModel, image_size_px: int) -> float:
    """β on the scale on which reconstruction losses are sums over pixel values and have weight 1.

    A loss `w · m + β · KL` whose m is a mean over the N = 3 · image_size_px² pixel values equals w/N times
    `Σ + (β · N / w) · KL`. So a mean counts as w/N and a sum as w, and β_eff = β / (Σ_sums w + Σ_means w / N);
    with one L2 loss of weight 1 it is β itself. It compares scales only: the terms have different units.

    Source: Higgins et al. 2017, appendix A.1 (normalised β).
    """
    num_values = NUM_CHANNELS * image_size_px**2
    weights = (term.weight / (1 if term.loss in SUMS else num_values) for term in model.reconstruction)
    return model.kl_weight / sum(weights)


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
