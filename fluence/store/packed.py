"""The packed data set: one HDF5 file with the pixels and the manifest of every image.

    pixels              uint8 [images, height, width, 3], RGB, chunked by image
    table/<column>      one value per image: float64 or UTF-8 text
    problems/<column>   one row per image that needs a word: image_id, path, line, reason, kept
    attributes          format, kind = "packed images", image_size_px, and what the packer adds

Opened by a friend: `h5py.File("faces.h5")["pixels"][0]` is the first image.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd

from fluence.errors import ArtifactError
from fluence.store.files import atomic_path, reserve, trim

FORMAT = 1
KIND = "packed images"
_SLACK_BYTES = 8 * 2**20  # for what HDF5 itself keeps: headers and the index of chunks
PROBLEM_COLUMNS = ("image_id", "path", "line", "reason", "kept")


class LockedError(ArtifactError):
    """A file is as it should be, but cannot be opened now."""


class PackedWriter:
    """Writes a packed data set block by block; the file appears when `finish` was called and the block ends well.

    Args:
        path: the file to write.
        image_size_px: side of the square images.
        attributes: JSON-serialisable facts to keep with the file.
    """

    def __init__(self, path: Path, image_size_px: int, attributes: dict[str, Any]) -> None:
        self._path, self._size, self._attributes = path, image_size_px, attributes
        self._finished = False

    def __enter__(self) -> Self:
        self._atomic = atomic_path(self._path)
        self._temporary = self._atomic.__enter__()
        try:
            self._create()
        except BaseException as error:
            self._atomic.__exit__(type(error), error, None)
            raise
        return self

    def _create(self) -> None:
        reserve(self._temporary, _SLACK_BYTES)
        self._file = h5py.File(self._temporary, "w")
        reserve(self._temporary, _SLACK_BYTES)
        shape = (self._size, self._size, 3)
        self._pixels = self._file.create_dataset(
            "pixels", (0, *shape), "uint8", maxshape=(None, *shape), chunks=(1, *shape)
        )
        write_header(self._file, KIND, FORMAT, {"image_size_px": self._size, **self._attributes})

    def _make_room(self, num_bytes: int) -> None:
        reserve(self._temporary, self._file.id.get_filesize() + num_bytes + _SLACK_BYTES)

    def append(self, pixels: np.ndarray) -> None:
        """Adds images, uint8 [images, height, width, 3].

        Raises:
            OSError: the disk is full; leaving the `with` block turns it into an ArtifactError.
        """
        self._make_room(pixels.nbytes)
        start = len(self._pixels)
        self._pixels.resize(start + len(pixels), axis=0)
        self._pixels[start:] = pixels

    def finish(self, table: pd.DataFrame, problems: pd.DataFrame) -> None:
        """Adds the manifest, one row per image in the order of `append`, and the images that need a word.

        Raises:
            ArtifactError: rows and images differ in number, or an `image_id` occurs twice.
        """
        if len(table) != len(self._pixels):
            raise ArtifactError(f"{self._path}: {len(table)} rows for {len(self._pixels)} images")
        if table["image_id"].duplicated().any():
            raise ArtifactError(f"{self._path}: an image_id occurs twice")
        self._make_room(4 * int(table.memory_usage(deep=True).sum() + problems.memory_usage(deep=True).sum()))
        write_frame(self._file, "table", table)
        write_frame(self._file, "problems", problems.reindex(columns=list(PROBLEM_COLUMNS)))
        self._finished = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._file.close()
        trim(self._temporary)
        if error is None and not self._finished:
            error = ArtifactError(f"{self._path}: closed before it was finished")
            self._atomic.__exit__(type(error), error, None)
            raise error
        return self._atomic.__exit__(kind, error, trace)


class Packed:
    """A packed data set, opened for reading.

    Attributes:
        table: one row per image, with `image_id`, the columns of the manifest and the covariates.
        problems: one row per image that needs a word: left out, or kept with a reservation.
        attributes: what the packer wrote about the file.
        image_size_px: side of the square images.

    Raises:
        ArtifactError: the file is missing, damaged, or not a packed data set of this version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_checked(path, KIND, FORMAT) as file:
            self.attributes = read_header(file)
            self.table = read_frame(file, "table")
            self.problems = read_frame(file, "problems")
            self._num_images = len(file["pixels"])
        self.image_size_px: int = self.attributes["image_size_px"]

    def __len__(self) -> int:
        return self._num_images

    def read(self, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """Pixels of some rows (positions in `table`, in any order) or of all: uint8 [rows, height, width, 3]."""
        with open_checked(self._path, KIND, FORMAT) as file:
            pixels = file["pixels"]
            if rows is None or isinstance(rows, slice):
                return pixels[rows or slice(None)]
            unique, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
            if len(unique) * 2 > len(pixels):
                return pixels[:][unique][inverse]
            return pixels[unique][inverse] if len(unique) else pixels[:0]


def open_checked(path: Path, kind: str, version: int, mode: str = "r", **options: Any) -> h5py.File:
    """Opens an HDF5 file and refuses, with a word about what is wrong, one that is not of this kind and version.

    Args:
        path: the file.
        kind: what it holds.
        version: of its format.
        mode: of h5py.
        options: further ones of h5py.

    Raises:
        ArtifactError: the file is missing, truncated, foreign, or of another version.
        LockedError: another process writes it, or it may not be read.
    """
    try:
        file = h5py.File(path, mode, **options)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except BlockingIOError as error:
        raise LockedError(
            f"{path}: another process has it open; wait until it ends, or end it (fuser {path})"
        ) from error
    except PermissionError as error:
        raise LockedError(f"{path}: you may not open it; type: chmod u+rw {path}") from error
    except OSError as error:
        raise ArtifactError(f"{path}: damaged or not an HDF5 file ({error}); delete it and run again") from error
    found = (file.attrs.get("kind"), file.attrs.get("format"))
    if found != (kind, version):
        file.close()
        raise ArtifactError(
            f"{path}: holds {found[0] or 'something else'} in format {found[1]}, expected {kind} in format {version}; "
            "delete it and run again"
        )
    return file


def write_header(file: h5py.File, kind: str, version: int, attributes: dict[str, Any]) -> None:
    """Marks a file with its kind and version and keeps `attributes` as JSON."""
    file.attrs["kind"], file.attrs["format"] = kind, version
    file.attrs["attributes"] = json.dumps(attributes)


def read_header(file: h5py.File) -> dict[str, Any]:
    """The attributes that `write_header` kept."""
    attributes: dict[str, Any] = json.loads(file.attrs["attributes"])
    return attributes


def write_frame(file: h5py.File, name: str, frame: pd.DataFrame) -> None:
    """Writes a table as a group with one dataset per column, numbers as float64, all else as UTF-8 text."""
    group = file.create_group(name)
    group.attrs["columns"] = json.dumps([str(column) for column in frame.columns])
    for position, column in enumerate(frame.columns):
        values = frame[column]
        if pd.api.types.is_bool_dtype(values) or pd.api.types.is_numeric_dtype(values):
            data, dtype = values.to_numpy(dtype=np.float64, na_value=np.nan), "float64"
        else:
            data, dtype = np.array(["" if pd.isna(v) else str(v) for v in values], dtype=object), h5py.string_dtype()
        dataset = group.create_dataset(str(position), data=data, dtype=dtype)
        dataset.attrs["name"] = str(column)


def read_frame(file: h5py.File, name: str) -> pd.DataFrame:
    """Reads a table that `write_frame` wrote; empty text stands for a missing value."""
    group = file[name]
    columns = json.loads(group.attrs["columns"])
    values = {}
    for position, column in enumerate(columns):
        dataset = group[str(position)]
        values[column] = dataset.asstr()[:] if h5py.check_string_dtype(dataset.dtype) else dataset[:]
    return pd.DataFrame(values, columns=columns)
