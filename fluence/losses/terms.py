"""What a term of the loss is, and what it sees of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn


class ModelOutput(Protocol):
    """What the objective needs of a model's output; the shapes are those of `Pass`."""

    @property
    def reconstruction(self) -> Tensor: ...
    @property
    def mu(self) -> Tensor: ...
    @property
    def logvar(self) -> Tensor | None: ...
    @property
    def z(self) -> Tensor: ...
    @property
    def extras(self) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Pass:
    """One forward pass of B images, as the terms of a loss see it: in float32 at least.

    Attributes:
        images: the originals, [B, 3, H, W] in [0, 1].
        reconstruction: the same shape.
        mu: the code without chance, [B, ...].
        logvar: ln σ² of the latents, [B, ...]; None where the model has none.
        z: what the decoder saw, [B, ...].
        extras: what the terms of the kind of model are made of, by name, [B, ...] each.
        values: recorded layers after their non-linearity, and gates, by name, [B, ...].
        attributes: values of the columns that latents follow, [B, num_attributes], NaN where unknown; None where the
            model has none.
        found: what one term computed and another one of the same pass can use, by any key.
    """

    images: Tensor
    reconstruction: Tensor
    mu: Tensor
    logvar: Tensor | None
    z: Tensor
    extras: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    attributes: Tensor | None
    found: dict[Hashable, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, output: ModelOutput, images: Tensor, values: Mapping[str, Tensor], attributes: Tensor | None) -> Pass:
        """Makes float32 of what mixed precision made shorter; float64 stays."""
        return cls(
            images=exact(images),
            reconstruction=exact(output.reconstruction),
            mu=exact(output.mu),
            logvar=None if output.logvar is None else exact(output.logvar),
            z=exact(output.z),
            extras={name: exact(value) for name, value in output.extras.items()},
            values={name: exact(value) for name, value in values.items()},
            attributes=attributes,
        )


@dataclass(frozen=True)
class Term:
    """One addend of the loss.

    Attributes:
        name: under which it is logged, such as `reconstruction/l2` or `sparsity/kl/conv3`.
        weight: its factor; 0 for a number that is only logged.
        function: the term of each image, [B], or one number of the whole batch, [].
        layers: names of the layers whose values it needs.
        warms_up: whether its factor rises from 0 over `training.kl_warmup_epochs`.
        network: a frozen network that it uses, if any.
    """

    name: str
    weight: float
    function: Callable[[Pass], Tensor]
    layers: tuple[str, ...] = ()
    warms_up: bool = False
    network: nn.Module | None = field(default=None, compare=False)


def exact(x: Tensor) -> Tensor:
    """Half precision becomes float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
