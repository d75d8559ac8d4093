"""Probes: numbers that are measured once per image while it passes through a network."""

from __future__ import annotations

import torch

from fluence.losses import Lpips, per_image_errors
from fluence.models import Output
from fluence.study import Record


class ErrorProbe:
    """Reconstruction errors of each image: L1, L2, 1 − SSIM, and LPIPS if the study asks for it.

    Args:
        record: what the study records.
        device: where the images are.

    Raises:
        StudyError: LPIPS weights are missing.
        ArtifactError: LPIPS weights are damaged.
    """

    def __init__(self, record: Record, device: torch.device) -> None:
        self._lpips = Lpips(record.lpips.net, record.lpips.weights).to(device) if record.lpips else None
        lpips = ("lpips_error",) if self._lpips else ()
        self.names: tuple[str, ...] = ("l1_error", "l2_error", "ssim_error", *lpips)

    def __call__(self, images: torch.Tensor, output: Output) -> dict[str, torch.Tensor]:
        """Images [B, 3, H, W] in [0, 1] and what the network made of them → float64 [B] by name."""
        return per_image_errors(images, output.reconstruction, self._lpips)
