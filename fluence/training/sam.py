"""Sharpness-aware minimisation: the gradient is taken where the loss rises most nearby, and applied at the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fluence.models.norms import power_iterations_rest
from fluence.training.distributed import buffers_kept

SHARPNESS = "sharpness"
"""L(W + ε̂) − L(W) of a batch, as it is logged."""


class Sam:
    """The first half of a step of SAM; the second one is any optimiser's own.

        loss_of_batch().backward()
        with sam.ascended():
            loss_of_batch().backward()
        optimizer.step()

    What is random in the loss has to be the same in both passes; the caller sees to it.

    Source: Foret et al. 2021, algorithm 1 and eq. 2 with p = 2.
    """

    def __init__(self, model: nn.Module, rho: float) -> None:
        """For the weights of a model, with the length ρ of ε̂."""
        self._model, self._rho = model, rho

    @contextmanager
    def ascended(self) -> Iterator[None]:
        """Inside the block the weights are W + ε̂, ε̂ = ρ g / ‖g‖₂, and there is no gradient yet.

        g is the gradient that the parameters hold, and its norm is one over all of them; a factor of the loss, such as
        that of 16-bit training, cancels out, and where g is zero ε̂ is too. In a training by several processes g is
        already averaged, so that all move alike. After the block the weights are the bits that they were, and so are
        the buffers: only the pass at W moves the statistics of batch normalisation, and the singular vectors of
        spectral normalisation. The block's gradient stays.
        """
        parameters: list[Tensor] = [p for p in self._model.parameters() if p.grad is not None]
        weights = [p.detach().clone() for p in parameters]
        self._move(parameters)
        self._model.zero_grad(set_to_none=True)
        try:
            with buffers_kept(self._model), power_iterations_rest(self._model):
                yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, weights)

    @torch.no_grad()
    def _move(self, parameters: list[Tensor]) -> None:
        """Adds ε̂; it is made in the place of the gradient, which nobody needs any more."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        length = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_div_(gradients, length.clamp(min=torch.finfo(length.dtype).tiny))
        torch._foreach_add_(parameters, gradients, alpha=self._rho)
