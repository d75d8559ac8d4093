"""Probes: numbers that are measured once per image while it passes through a network."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from fluence.losses import Lpips, Objective, per_image_errors
from fluence.models import Autoencoder, Output, Recorder
from fluence.study import Record
from fluence.study import SharpnessProbe as SharpnessSettings

_CHUNK_IMAGES, _CHUNK_BYTES = 32, 2**29
_ERROR_BYTES = 2**23
"""Images that are compared at once; SSIM takes twenty times as much, in float64."""
_COPIES = 4
"""Gradient and moved weights of each image, and what convolutions make of them on their way."""


class Probe(Protocol):
    """What measures each image once: its names, and images [B, 3, H, W] and their output → float64 [B] by name."""

    names: tuple[str, ...]

    def __call__(self, images: Tensor, output: Output) -> dict[str, Tensor]: ...


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

    def __call__(self, images: Tensor, output: Output) -> dict[str, Tensor]:
        """Images [B, 3, H, W] in [0, 1] and what the network made of them → float64 [B] by name."""
        chunk = max(1, _ERROR_BYTES // (8 * images[0].numel()))
        pairs = zip(images.split(chunk), output.reconstruction.split(chunk), strict=True)
        found = [per_image_errors(originals, made, self._lpips) for originals, made in pairs]
        return {name: torch.cat([errors[name] for errors in found]) for name in self.names}


class SharpnessProbe:
    """L_x(W + ε̂_x) − L_x(W) of each image x, with ε̂_x = ρ g_x / ‖g_x‖₂ from its own gradient, and ‖g_x‖₂.

    The loss is that of training with the full weight of KL, for one image by itself: terms of the whole batch have no
    value for it and are left out. The network is in eval mode, z = μ, float32 without TF32. Where the gradient is
    zero, so is the sharpness.

    All images of a chunk are passed at once, each with weights of its own. How many they are follows from the network
    alone: so the same images in the same blocks have the same bits.

    Source: Foret et al. 2021, eq. 1 and 2 with p = 2, for one image and without the weight decay.

    Args:
        settings: ρ, and which weights are moved.
        network: the trained network; a copy of it is made, so that nobody's hooks see these passes.
        objective: the loss that it was trained with.
        image_size_px: side of the images.
    """

    names: tuple[str, ...] = ("sharpness", "gradient_norm")

    def __init__(
        self, settings: SharpnessSettings, network: Autoencoder, objective: Objective, image_size_px: int
    ) -> None:
        self._rho, self._objective = settings.rho, objective
        self._network = copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
        self._recorder = Recorder(self._network, objective.layers, "post")
        named = self._network.named_parameters() if settings.parameters == "all" else self._network.encoder_parameters()
        self._weights: dict[str, Tensor] = dict(named)
        bytes_per_image = 4 * _COPIES * sum(weight.numel() for weight in self._weights.values())
        self.chunk = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // bytes_per_image))
        self._terms = self._terms_of_one_image(image_size_px)

    def __call__(self, images: Tensor, output: Output) -> dict[str, Tensor]:
        """Images [B, 3, H, W] in [0, 1] → `sharpness` and `gradient_norm`, float64 [B]."""
        with torch.inference_mode(False), torch.no_grad(), _exact_convolutions():
            # What was made in inference mode cannot be differentiated; its copy can.
            chunks = [self._measure(chunk) for chunk in images.clone().split(self.chunk)]
        return {
            name: torch.cat(values).double() for name, values in zip(self.names, zip(*chunks, strict=True), strict=True)
        }

    def _measure(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Sharpness and norm of the gradient of each image of a chunk, [B] each."""
        gradients, losses = vmap(grad_and_value(self._loss), in_dims=(None, 0))(self._weights, images)
        lengths = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients.values()]
        norm = torch.stack(lengths).norm(dim=0)
        step = self._rho / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        moved = {
            # Taken out one by one, so that gradients and moved weights are never all there together.
            name: torch.addcmul(weight, gradients.pop(name), step.reshape(-1, *[1] * weight.ndim))
            for name, weight in self._weights.items()
        }
        return vmap(self._loss)(moved, images) - losses, norm

    def _loss(self, weights: dict[str, Tensor], image: Tensor) -> Tensor:
        """The loss of one image [3, H, W], [], with some weights in the place of the network's own."""
        output = functional_call(self._network, weights, (image[None],))
        return self._objective.alone(self._terms, output, image[None], self._recorder.take())[0]

    @torch.no_grad()
    def _terms_of_one_image(self, size: int) -> tuple[str, ...]:
        images = next(self._network.parameters()).new_zeros((2, 3, size, size))
        return self._objective.names_alone(self._network(images), images, self._recorder.take())


def _exact_convolutions() -> AbstractContextManager[None]:
    """float32 as it is, and the same sums each time: the difference of two losses shows every lost digit."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
