"""Whether a file system does what the artifacts need."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py


def hdf5_trouble(folder: Path) -> str:
    """Why HDF5 cannot lock, write and read a file in a folder; empty if it can. Nothing is left behind."""
    with trial_path(folder, ".h5") as path:
        try:
            with h5py.File(path, "w") as file:
                file["numbers"] = [1, 2, 3]
            with h5py.File(path, "r") as file:
                return "" if list(file["numbers"]) == [1, 2, 3] else "what was read is not what was written"
        except OSError as error:
            return str(error)


@contextmanager
def trial_path(folder: Path, suffix: str) -> Iterator[Path]:
    """The path of a file that no other process on any machine uses; removed afterwards."""
    path = folder / f"trial-{socket.gethostname()}-{os.getpid()}{suffix}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
