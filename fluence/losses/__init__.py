"""Losses: pure functions, one term each, and the objective that adds them up.

Importing this package does not import torch; each name brings what it needs with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluence.losses.latent import kl_to_standard_normal, kl_to_tilted
    from fluence.losses.objective import Objective, effective_beta
    from fluence.losses.perceptual import Lpips
    from fluence.losses.reconstruction import l1, l2, per_image_errors, ssim, ssim_loss

_HOME = {
    "Objective": "objective",
    "effective_beta": "objective",
    "per_image_errors": "reconstruction",
    "Lpips": "perceptual",
    "l1": "reconstruction",
    "l2": "reconstruction",
    "ssim": "reconstruction",
    "ssim_loss": "reconstruction",
    "kl_to_standard_normal": "latent",
    "kl_to_tilted": "latent",
}
__all__ = [
    "Lpips",
    "Objective",
    "effective_beta",
    "kl_to_standard_normal",
    "kl_to_tilted",
    "l1",
    "l2",
    "per_image_errors",
    "ssim",
    "ssim_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
