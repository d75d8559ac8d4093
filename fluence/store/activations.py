"""The activation file: one HDF5 per run, with every recorded layer of every rated image.

    image_id                     UTF-8 text [images]
    layers/<layer>               float16 or float32 [images, units], units flattened from (channel, row, column); not
                                 of layers that were only counted, which the group's attribute `counted` names
        attributes               shape, tap, kind, unit_order, dtype_reason
    reference/<layer>            the same for training images, to choose ε on
    reference_id                 UTF-8 text [reference images]
    probes/<probe>               float64 [images]
    samples/<which>/…            image_id, originals and reconstructions (uint8), for the report
    exhibits/…                   what is kept to be looked at: feature maps, histograms, single units, interpolations
                                 (`fluence.store.exhibits`)
    attributes                   format, kind = "activations", and in `attributes` as JSON: key, and what the extractor
                                 adds

Opened by a friend: `h5py.File("run.h5")["layers/conv1"][0]` is layer conv1 of the first image.

What several processes wrote lies in shards `<run>.parts/<first>-<behind last>.h5`, each an activation file of its own
images. `<run>.h5` then holds virtual datasets over them (`fluence.store.shards`), and reads as if it were one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

import hdf5plugin  # noqa: F401  so that h5py can read what is compressed
import numpy as np
import pandas as pd

from fluence.errors import ArtifactError
from fluence.store.activation_writer import ActivationWriter
from fluence.store.exhibits import Exhibits, read_exhibits, read_units
from fluence.store.layers import (
    CHUNK_IMAGES,
    CHUNK_UNITS,
    FORMAT,
    KIND,
    LayerInfo,
    Which,
    read_counted,
    read_layer_info,
)
from fluence.store.packed import open_checked, read_header
from fluence.store.precision import NeedsFloat32

__all__ = ["PARTS", "ActivationWriter", "Activations", "LayerInfo", "NeedsFloat32", "Which"]

PARTS = "parts"
"""Attribute of a joined file: name, bytes and number of images of each shard, as JSON."""


class Activations:
    """A finished activation file, opened for reading; a context manager.

    Args:
        path: the file.
        run: id of the run that it has to belong to; any if None.

    Attributes:
        image_ids: text [images].
        reference_ids: text [reference images].
        layers: what is recorded, in the order of the network.
        stored: those of them whose values are in the file; of the others there are histograms alone.
        probes: values recorded once per image, indexed by image_id.
        attributes: what the extractor wrote about the file, with its `key`.
        chunk_images: blocks of images that begin at multiples of this are read fastest.
        chunk_units: the same for blocks of units.

    Raises:
        ArtifactError: the file is missing, truncated, locked, foreign, of another version or of another run, or one of
            its shards is.
    """

    chunk_images: int = CHUNK_IMAGES
    chunk_units: int = CHUNK_UNITS

    def __init__(self, path: Path, run: str | None = None) -> None:
        self._path = path
        # Without a cache of chunks, what is asked for is read from its place, and not all that lies around it.
        self._file = file = open_checked(path, KIND, FORMAT, rdcc_nbytes=0)
        try:
            self.attributes = read_header(file)
            self._check_run(run)
            self._check_parts()
            self.image_ids = file["image_id"].asstr()[:]
            self.reference_ids = file["reference_id"].asstr()[:]
            order = json.loads(file["layers"].attrs["order"])
            counted = read_counted(file["layers"])
            self.layers = tuple(counted.get(name) or read_layer_info(file[f"layers/{name}"]) for name in order)
            self.stored = tuple(layer for layer in self.layers if layer.name not in counted)
            index = pd.Index(self.image_ids, name="image_id")
            names = json.loads(file["probes"].attrs["order"])
            self.probes = pd.DataFrame({name: file[f"probes/{name}"][:] for name in names}, index=index)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, layer: str, start: int, stop: int) -> np.ndarray:
        """Values of the images from `start` to before `stop`, as stored: float16 or float32 [images, units]."""
        return self._file[f"layers/{layer}"][start:stop]

    def read_units(self, layer: str, start: int, stop: int) -> np.ndarray:
        """Values of the units from `start` to before `stop` of all images, as stored: [images, stop − start]."""
        return self._file[f"layers/{layer}"][:, start:stop]

    def reference_units(self, layer: str, start: int, stop: int) -> np.ndarray:
        """The same as `read_units` of the training images: [reference images, stop − start]."""
        return self._file[f"reference/{layer}"][:, start:stop]

    def reference(self, layer: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Values of the training images that ε is chosen on, of all or of some: as stored [reference images, units]."""
        return self._file[f"reference/{layer}"][start:stop]

    def dtype(self, layer: str) -> tuple[np.dtype, str]:
        """The type that a layer is stored as, and why."""
        dataset = self._file[f"layers/{layer}"]
        return dataset.dtype, str(dataset.attrs["dtype_reason"])

    def samples(self, which: Which) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, originals and reconstructions (uint8 [images, height, width, 3]) kept for the report."""
        group = self._file[f"samples/{which}"]
        return group["image_id"].asstr()[:], group["originals"][:], group["reconstructions"][:]

    def exhibits(self) -> Exhibits | None:
        """What the network makes of a few images; None if nothing was kept."""
        return read_exhibits(self._file, [layer.name for layer in self.layers])

    def shown_units(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """Places in a layer of the units that are kept to be looked at, and their values [images, units] as stored."""
        return read_units(self._file, layer)

    def _check_run(self, run: str | None) -> None:
        found = self.attributes.get("run")
        if run is not None and found not in (None, run):
            raise ArtifactError(f"{self._path}: holds the activations of {found}, not of {run}; {_AGAIN}")

    def _check_parts(self) -> None:
        """HDF5 itself would show NaN where a shard is missing or damaged, and say nothing."""
        for name, num_bytes, _ in json.loads(self._file.attrs.get(PARTS, "[]")):
            check_part(self._path.parent / name, num_bytes, self.attributes["key"])


_AGAIN = "delete it, and type fluence run again: this run is then extracted again"


def check_part(path: Path, num_bytes: int, key: str) -> None:
    """Refuses a shard that is not as it was when it was joined to the others.

    Raises:
        ArtifactError: it is missing, of another size, damaged, or of another extraction.
    """
    if not path.exists():
        raise ArtifactError(f"{path}: this part of the activations is missing: put it back, or {_AGAIN_ALL}")
    if (found := path.stat().st_size) != num_bytes:
        raise ArtifactError(f"{path}: damaged ({found:,} of {num_bytes:,} bytes); {_AGAIN_ALL}")
    with open_checked(path, KIND, FORMAT) as file:
        if read_header(file)["key"] != key:
            raise ArtifactError(f"{path}: this part belongs to another extraction; {_AGAIN_ALL}")


_AGAIN_ALL = "delete the file that it is a part of (.h5 in the place of .parts), and type fluence run again"
