"""The weights that a finished training hands on: tensors and plain values only, so that loading runs no code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluence.errors import ArtifactError
from fluence.store.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1


def write_weights(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes a model's state dict, on the CPU, with facts such as the epoch it comes from."""
    import torch

    content = {
        "format": FORMAT,
        "state": {name: value.detach().cpu() for name, value in state.items()},
        "facts": dict(facts),
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_weights` wrote: the state dict, and the facts.

    Raises:
        ArtifactError: the file is missing, damaged, or of another version.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file; the model has to be trained first") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); delete it and run again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ArtifactError(f"{path}: holds no weights of this version; delete it and run again")
    return content["state"], content["facts"]
