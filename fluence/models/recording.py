"""Recording: the values of named layers, as the forward pass computes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from fluence.architectures import check_layers
from fluence.models.autoencoders import Autoencoder
from fluence.models.pixels import Pixels
from fluence.store.activations import LayerInfo

Tap = Literal["post", "pre"]


class Recorder:
    """Keeps what chosen layers said in the last forward pass; no copies, since no network works in place.

    Attributes:
        layers: the recorded layers, in the order of the forward pass.
        values: name → [B, *shape] of each layer, not detached.
    """

    def __init__(self, model: Autoencoder | Pixels, names: Literal["encoder"] | Sequence[str], tap: Tap) -> None:
        """Starts recording; `record` also ends it.

        Args:
            model: the model itself, not wrapped in DDP.
            names: names of layers, or `encoder` for every recordable one.
            tap: `post` for the values after non-linearity and gates, `pre` for those before, but after the
                normalisation. The code `mu` and the gates themselves are the same at both.

        Raises:
            StudyError: if the model has no layer of a name; says which it has.
        """
        if names != "encoder":
            check_layers([info.name for info in model.recordable], names)
        chosen = [info for info in model.recordable if names == "encoder" or info.name in names]
        self.layers: tuple[LayerInfo, ...] = tuple(dataclasses.replace(info, tap=tap) for info in chosen)
        self.values: dict[str, Tensor] = {}
        self._hooks = [model.place(info.name, tap).register_forward_hook(self._keep(info.name)) for info in chosen]

    def take(self) -> dict[str, Tensor]:
        """The values, which are then no longer held here."""
        taken, self.values = self.values, {}
        return taken

    def stop(self) -> None:
        """Ends the recording; the values stay."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.values[name] = output

        return hook


@contextmanager
def record(model: Autoencoder | Pixels, names: Literal["encoder"] | Sequence[str], tap: Tap) -> Iterator[Recorder]:
    """Record layers during every forward pass inside the `with` block; the arguments are those of `Recorder`."""
    recorder = Recorder(model, names, tap)
    try:
        yield recorder
    finally:
        recorder.stop()
