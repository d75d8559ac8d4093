"""Whether a file system does what the artifacts need."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
def held_lock(path: Path) -> Iterator[str]:
    """Holds the lock of a new file meanwhile; gives why not, or an empty string. No lock, no file."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            path.unlink()
            yield error.strerror or str(error)
        else:
            yield ""


def lock_trouble(path: Path) -> str:
    """Why a lock that another machine holds with `held_lock` would not keep this one out; empty if it does."""
    with suppress(FileNotFoundError), path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ""
        except OSError as error:
            return error.strerror or str(error)
        return "what another machine had locked could be locked here, too"
    return ""


@contextmanager
def trial_path(folder: Path, suffix: str) -> Iterator[Path]:
    """The path of a file that no other process on any machine uses; removed afterwards."""
    path = folder / f"trial-{socket.gethostname()}-{os.getpid()}{suffix}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
