"""Exhibits: what of a network is kept to be looked at. A group of the activation file, however little else it stores.

    exhibits/image_id                    UTF-8 text [shown images], the same in every run of a study
    exhibits/originals                   uint8 [shown images, height, width, 3]
    exhibits/maps/<layer>                float16 or float32 [shown images, channels, rows, columns]: the first channels,
                                         large maps as means of `pooled_px` × `pooled_px` places; of a layer without
                                         places all of its values, [shown images, units]
    exhibits/histograms/<layer>/counts   int64 [shown images, bins], of the values of the whole layer that are not zero
    exhibits/histograms/<layer>/edges    float64 [shown images, bins + 1]
    exhibits/histograms/<layer>/zeros    int64 [shown images], how many values are zero
    exhibits/interpolations              uint8 [pairs, steps, height, width, 3]: decoded on the way from the code of
                                         each shown image to that of the next
    exhibits/units/<layer>               float16 or float32 [images, units]: a few units on every image; the attribute
                                         `units` says which, by their place in the layer

Opened by a friend: `h5py.File("run.h5")["exhibits/maps/conv1"][0, 2]` is the third map of conv1 on the first image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import h5py
import numpy as np

from fluence.store.layers import allocate, write_texts

GROUP = "exhibits"
_UNITS = f"{GROUP}/units"
_PACKED = {"compression": "gzip", "compression_opts": 4, "shuffle": True}  # of h5py itself: a friend needs no plug-in


@dataclass(frozen=True)
class LayerShown:
    """A layer's response to each of the shown images.

    Attributes:
        maps: [shown images, channels, rows, columns], or [shown images, units] of a layer without places.
        pooled_px: side of the squares whose means the maps are; 1 for maps as they are.
        counts: of the values of the whole layer that are not zero, int64 [shown images, bins].
        edges: of the bins, float64 [shown images, bins + 1].
        zeros: how many values of the whole layer are zero, int64 [shown images].
    """

    maps: np.ndarray
    pooled_px: int
    counts: np.ndarray
    edges: np.ndarray
    zeros: np.ndarray

    @property
    def active(self) -> np.ndarray:
        """Share of the layer's values that are not zero, float64 [shown images]."""
        return self.counts.sum(1) / (self.counts.sum(1) + self.zeros)


@dataclass(frozen=True)
class Exhibits:
    """What a network makes of a few images.

    Attributes:
        image_ids: of the shown images.
        originals: uint8 [shown images, height, width, 3].
        layers: by name, in the order of the network.
        interpolations: uint8 [pairs, steps, height, width, 3]; no pair where the code allows of nothing between two.
    """

    image_ids: Sequence[str]
    originals: np.ndarray
    layers: Mapping[str, LayerShown]
    interpolations: np.ndarray

    @property
    def num_bytes(self) -> int:
        """Space that they take before they are compressed."""
        layers = sum(one.maps.nbytes + one.counts.nbytes + one.edges.nbytes for one in self.layers.values())
        return layers + self.originals.nbytes + self.interpolations.nbytes


def write_exhibits(file: h5py.File, exhibits: Exhibits) -> None:
    """Writes all but the units; what was there is replaced."""
    group = file.require_group(GROUP)
    for name in set(group) - {"units"}:
        del group[name]
    write_texts(group, "image_id", exhibits.image_ids)
    group.create_dataset("originals", data=exhibits.originals)
    group.create_dataset("interpolations", data=exhibits.interpolations)
    for name, layer in exhibits.layers.items():
        maps = group.create_dataset(f"maps/{name}", data=layer.maps, chunks=(1, *layer.maps.shape[1:]), **_PACKED)
        maps.attrs["pooled_px"] = layer.pooled_px
        for part in ("counts", "edges", "zeros"):
            group.create_dataset(f"histograms/{name}/{part}", data=getattr(layer, part))


def read_exhibits(file: h5py.File, order: Sequence[str]) -> Exhibits | None:
    """What `write_exhibits` wrote, its layers in the order given; None if nothing was written."""
    if f"{GROUP}/maps" not in file:
        return None
    group = file[GROUP]
    layers = {name: _read_layer(group, name) for name in order if name in group["maps"]}
    return Exhibits(group["image_id"].asstr()[:], group["originals"][:], layers, group["interpolations"][:])


def _read_layer(group: h5py.Group, name: str) -> LayerShown:
    maps, histogram = group[f"maps/{name}"], group[f"histograms/{name}"]
    counts, edges, zeros = (histogram[part][:] for part in ("counts", "edges", "zeros"))
    return LayerShown(maps[:], int(maps.attrs["pooled_px"]), counts, edges, zeros)


def allocate_units(file: h5py.File, layer: str, units: np.ndarray, num_images: int, dtype: np.dtype) -> None:
    """Makes room for some units of a layer on every image."""
    dataset = allocate(file, f"{_UNITS}/{layer}", (num_images, len(units)), dtype.name)
    dataset.attrs["units"] = units


def write_units(file: h5py.File, layer: str, start: int, values: np.ndarray) -> None:
    """Writes the values [images, units] of the images from `start` on."""
    file[f"{_UNITS}/{layer}"][start : start + len(values)] = values


def read_units(file: h5py.File, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """The places of the kept units in their layer, int64 [units], and their values, [images, units]; may be empty."""
    if f"{_UNITS}/{layer}" not in file:
        return np.empty(0, np.int64), np.empty((0, 0), np.float16)
    dataset = file[f"{_UNITS}/{layer}"]
    return np.asarray(dataset.attrs["units"]), dataset[:]


def join_exhibits(file: h5py.File, shards: Sequence[h5py.File]) -> None:
    """Copies those of the first shard, and puts the units of all images together."""
    first = shards[0]
    if GROUP not in first:
        return
    group = file.create_group(GROUP)
    for name in set(first[GROUP]) - {"units"}:
        first.copy(first[GROUP][name], group)
    for name, one in first.get(_UNITS, {}).items():
        values = np.concatenate([shard[f"{_UNITS}/{name}"][:] for shard in shards])
        group.create_dataset(f"units/{name}", data=values).attrs.update(one.attrs)
