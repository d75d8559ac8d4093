"""The random numbers and the arithmetic that a training must be able to repeat."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds every global generator and, on the CPU, allows only operations that give the same bits each time.

    Training itself draws nothing from the global generators (see `fluence.data.sampling`); they are seeded, and kept
    in checkpoints, for a layer that some day does. GPUs add up in the order in which threads happen to finish, and
    what they do repeat costs them much of their speed: there a repeated training agrees to rounding only.
    """
    memory: Any = torch.utils.deterministic
    settings = (torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory)
    states = random_states()
    torch.use_deterministic_algorithms(device.type == "cpu")
    memory.fill_uninitialized_memory = False  # it only finds bugs, and costs time
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- the global one is meant
    try:
        yield
    finally:
        restore_random_states(states)
        torch.use_deterministic_algorithms(settings[0])
        memory.fill_uninitialized_memory = settings[1]


def random_states() -> dict[str, Any]:
    """The states of every global random number generator of this process, as tensors and plain containers."""
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 -- the global one is meant
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)),
        "python": random.getstate(),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Sets every global random number generator of this process."""
    keys, position, has_gauss, cached = states["numpy"]
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    random.setstate(states["python"])
