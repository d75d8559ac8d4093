"""Files that are whole or absent: temporary name, fsync, rename."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
from collections.abc import Container, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluence.errors import ArtifactError, UnwritableError

if TYPE_CHECKING:
    import pandas as pd

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of Linux
_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space and start again",
    errno.EDQUOT: "the quota is used up: free some space or inodes and start again",
    errno.EACCES: "you may not write there: choose another folder with --output",
    errno.EPERM: "you may not write there: choose another folder with --output",
    errno.ENOENT: "no folder can be made there: choose another one with --output",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another folder with --output",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EROFS: "the file system is read-only: choose another folder with --output",
}


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explained(path: Path, only: Container[int] = _ADVICE) -> Iterator[None]:
    """Turns an operating system's refusal to write `path` into one clear line.

    Args:
        path: what is written.
        only: the error numbers that are turned.

    Raises:
        UnwritableError: the disk is full, the quota is used up, or the place is not writable.
    """
    try:
        yield
    except OSError as error:
        elsewhere = error.errno == errno.ENOENT and not path.is_relative_to(str(error.filename))
        if error.errno not in only or elsewhere:
            raise
        raise UnwritableError(f"{path}: {_ADVICE[error.errno]}") from error


def no_space_explained(folder: Path) -> AbstractContextManager[None]:
    """`explained` for work of every kind below a folder: lack of space is the only refusal that must be a writer's."""
    return explained(folder, _NO_SPACE)


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Gives a temporary path beside `path`, renamed to it when the block ends well and removed when it does not.

    Args:
        path: the file to write.
        durable: wait until the disk has it, so that it outlives a power cut.

    Raises:
        UnwritableError: the disk is full, the quota is used up, or the folder is not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if durable:
                _sync(temporary)
            os.replace(temporary, path)
            if durable:
                _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(path: Path, num_bytes: int) -> None:
    """Takes the first bytes of a file from the disk now, so that no later write among them can find it full.

    HDF5 does not survive a write that fails: what it holds in memory can then neither be written nor given up.
    So the space is asked for before it is told to write. The file's size and contents stay as they are; `trim`
    gives back what was not needed. On file systems that cannot reserve, nothing happens.

    Raises:
        OSError: the disk is full or the quota is used up.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        refused = _libc().fallocate(descriptor, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(num_bytes)) != 0
        if refused and ctypes.get_errno() in _NO_SPACE:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)


def trim(path: Path) -> None:
    """Gives back the space behind the end of a file that `reserve` took."""
    os.truncate(path, path.stat().st_size)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Writes a text file atomically, as UTF-8."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", durable=durable)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path}: no such file") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); delete it and run again") from error


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table atomically as CSV or Parquet, by the ending of `path`."""
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False)


def write_tables(path: Path, tables: Iterable[pd.DataFrame], attributes: dict[str, Any]) -> None:
    """Writes several tables of the same columns as one Parquet file, atomically, holding one of them at a time.

    Args:
        path: the file.
        tables: at least one; they are written one after the other.
        attributes: become `attrs` of the table that `read_table` reads.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary, ExitStack() as open_files:
        writer = None
        for table in tables:
            arrow = pa.Table.from_pandas(table, preserve_index=False)
            metadata = {**(arrow.schema.metadata or {}), b"PANDAS_ATTRS": json.dumps(attributes)}
            arrow = arrow.replace_schema_metadata(metadata)
            if writer is None:
                writer = open_files.enter_context(pq.ParquetWriter(temporary, arrow.schema))
            writer.write_table(arrow)


def read_table(path: Path) -> pd.DataFrame:
    """Reads a table that `write_table` wrote.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    import pandas as pd

    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); delete it and run again") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
