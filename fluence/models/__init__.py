"""Models: networks with named layers that can be recorded.

`fluence.models.build` makes one from its settings. Importing this package does not import torch, so that the
command line can ask `fluence.architectures` what a study may say.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluence.models.autoencoders import Autoencoder, Output, build
    from fluence.models.recording import Recorder, record

_HOME = {
    "Autoencoder": "autoencoders",
    "Output": "autoencoders",
    "build": "autoencoders",
    "Recorder": "recording",
    "record": "recording",
}
__all__ = ["Autoencoder", "Output", "Recorder", "build", "record"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
