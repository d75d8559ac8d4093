"""Recording: the values of named layers, as the forward pass computes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from fluence.models.architectures import check_layers
from fluence.models.autoencoders import ConvVae
from fluence.store.activations import LayerInfo

Tap = Literal["post", "pre"]


class Recorder:
    """What was recorded in the last forward pass.

    Attributes:
        layers: the recorded layers, in the order of the forward pass.
        values: name → [B, *shape] of each layer; not detached, and no copy, since no network works in place.
    """

    def __init__(self, layers: tuple[LayerInfo, ...]) -> None:
        self.layers = layers
        self.values: dict[str, Tensor] = {}


@contextmanager
def record(model: ConvVae, names: Literal["encoder"] | Sequence[str], tap: Tap) -> Iterator[Recorder]:
    """Record layers during every forward pass inside the `with` block.

    Args:
        model: the model itself, not wrapped in DDP.
        names: names of layers, or `encoder` for every recordable one.
        tap: `post` for the values after the non-linearity, `pre` for those before it but after the
            normalisation. `mu` has no non-linearity and is the same at both.

    Raises:
        StudyError: if the model has no layer of a name; says which it has.
    """
    if names != "encoder":
        check_layers(model.architecture, names)
    chosen = [info for info in model.recordable if names == "encoder" or info.name in names]
    recorder = Recorder(tuple(dataclasses.replace(info, tap=tap) for info in chosen))
    hooks = [model.place(info.name).register_forward_hook(_keep(recorder, info.name, tap)) for info in chosen]
    try:
        yield recorder
    finally:
        for hook in hooks:
            hook.remove()


def _keep(recorder: Recorder, name: str, tap: Tap):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        recorder.values[name] = inputs[0] if tap == "pre" else output

    return hook
