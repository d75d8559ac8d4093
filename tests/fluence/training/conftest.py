"""What every test of training needs: one thread, and trainings that differ from a tiny one in what a test names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fluence.training import TrainSpec
from tests.fluence.training.tiny_training import spec_in

SpecMaker = Callable[..., TrainSpec]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The order of additions, and so the last bits, depend on the number of threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def make_spec(tmp_path: Path) -> SpecMaker:
    """`make_spec(name, …)`: a training in a folder of its own."""
    return lambda name="study", **settings: spec_in(tmp_path / name, **settings)
