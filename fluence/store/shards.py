"""Several processes write one activation file: each a shard of consecutive images, which then read as one.

Beside `<run>.h5` lies the folder `<run>.parts`, where the processes also tell each other what all have to know: which
layers do not fit into float16, and that one of them cannot go on. Nothing is sent: they only look at files, so that
they may be the processes of one task or the elements of an array.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import h5py
import numpy as np

from fluence.errors import ArtifactError, LostProcess
from fluence.store.activations import PARTS, Activations
from fluence.store.exhibits import join_exhibits
from fluence.store.files import atomic_path, read_json, write_json
from fluence.store.layers import FORMAT, KIND, read_layer_info, write_layer_info, write_texts
from fluence.store.packed import write_header


def share(num_images: int, step: int, rank: int, world_size: int) -> range:
    """The images of one process: whole steps of consecutive ones, as evenly as that goes.

    Args:
        num_images: of all processes.
        step: a share begins at a multiple of this.
        rank: 0 … world_size − 1.
        world_size: number of processes.
    """
    steps = -(-num_images // step)
    start, stop = (min(num_images, step * (steps * place // world_size)) for place in (rank, rank + 1))
    return range(start, stop)


class Shards:
    """The folder of the shards of one activation file.

    Args:
        path: the activation file.
        folder: `Layout.activation_parts`.
        key: hash of what determines the values.
    """

    def __init__(self, path: Path, folder: Path, key: str) -> None:
        self._path, self._folder, self._key = path, folder, key
        self._since = time.time()

    def of(self, images: range) -> Path:
        """The shard of some images; of all of them, the file itself."""
        return self._folder / f"{images.start:08}-{images.stop:08}.h5"

    def float32_layers(self) -> dict[str, str]:
        """The layers that some process found not to fit into float16, with the reason."""
        found = {}
        for name in sorted(self._listing()):
            if name.startswith(_FLOAT32):
                note = read_json(self._folder / name)
                if note["key"] == self._key:
                    found[note["layer"]] = note["reason"]
        return found

    def need_float32(self, layer: str, reason: str) -> None:
        """Tells all processes that a layer has to be float32."""
        note = {"key": self._key, "layer": layer, "reason": reason}
        write_json(self._folder / f"{_FLOAT32}{layer}.json", note)

    def give_up(self, rank: int, reason: str) -> None:
        """Tells all processes that one cannot go on."""
        write_json(self._folder / f"{_GAVE_UP}{rank}.json", {"key": self._key, "reason": reason})

    def check_others(self) -> None:
        """Fails if another process gave up since this one started.

        Raises:
            LostProcess: with the reason of the other one.
        """
        for name in self._listing():
            place = self._folder / name
            if name.startswith(_GAVE_UP) and place.stat().st_mtime > self._since - _CLOCKS_S:
                raise LostProcess(f"process {name[len(_GAVE_UP) : -5]} gave up: {read_json(place)['reason']}")

    def forget(self, rank: int) -> None:
        """Takes back what an earlier start of this process said of giving up."""
        (self._folder / f"{_GAVE_UP}{rank}.json").unlink(missing_ok=True)

    def is_finished(self, images: range, float32_layers: Sequence[str]) -> bool:
        """Whether the shard of these images is there, and made from the same."""
        path = self.of(images)
        return path.exists() and _is_like(path, self._key, len(images), float32_layers)

    def is_joined(self) -> bool:
        """Whether the file itself is there."""
        try:
            with Activations(self._path) as file:
                return bool(file.attributes["key"] == self._key)
        except ArtifactError:
            return False

    def last_change(self) -> float:
        """When any process last wrote anything here, but not before this one began, in seconds since the epoch."""
        latest = self._since
        for entry in self._entries():
            with suppress(FileNotFoundError):  # it was renamed meanwhile
                latest = max(latest, entry.stat().st_mtime)
        return latest

    def join(self, ranges: Sequence[range]) -> None:
        """Makes the shards one file, and removes what else is in the folder; a single shard becomes the file itself.

        Raises:
            ArtifactError: a shard is damaged, or does not fit to the others; the disk is full.
        """
        shards = [self.of(images) for images in ranges if images]
        if len(shards) == 1:
            os.replace(shards[0], self._path)
            return self.remove()
        join(self._path, shards)
        for entry in self._entries():
            if Path(entry.path) not in shards:
                Path(entry.path).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the folder: nothing in it is needed, or it belongs to a file that is written anew."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        if self._folder.is_dir():
            with os.scandir(self._folder) as entries:
                yield from list(entries)

    def _listing(self) -> list[str]:
        return [entry.name for entry in self._entries()]


_FLOAT32, _GAVE_UP = "float32-", "gave-up-"
_CLOCKS_S = 1.0  # file systems keep coarser times than processes


def _is_like(path: Path, key: str, num_images: int, float32_layers: Sequence[str]) -> bool:
    try:
        with Activations(path) as shard:
            stored = {layer.name for layer in shard.stored if shard.dtype(layer.name)[0] == np.float32}
            same = shard.attributes["key"] == key and len(shard.image_ids) == num_images
            return same and stored == set(float32_layers)
    except ArtifactError:
        return False


def join(path: Path, shards: Sequence[Path]) -> None:
    """Writes a file with virtual datasets over shards, which lie in a folder beside it and have to stay there.

    Args:
        path: the file.
        shards: in the order of their images; the first one holds reference images, samples and exhibits.

    Raises:
        ArtifactError: a shard is damaged, or does not fit to the first one; the disk is full.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(Activations(shard)) for shard in shards]
        for shard, other in zip(shards, opened, strict=True):
            _check_like(shard, other, opened[0])
        names = [shard.relative_to(path.parent).as_posix() for shard in shards]
        parts = [
            (name, shard.stat().st_size, len(one.image_ids))
            for name, shard, one in zip(names, shards, opened, strict=True)
        ]
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file, h5py.File(shards[0]) as first:
        write_header(file, KIND, FORMAT, opened[0].attributes)
        file.attrs[PARTS] = json.dumps(parts)
        write_texts(file, "image_id", [one for part in opened for one in part.image_ids])
        write_texts(file, "reference_id", list(opened[0].reference_ids))
        for layer in opened[0].stored:
            _link(file, first, f"layers/{layer.name}", [(name, count) for name, _, count in parts])
            _link(file, first, f"reference/{layer.name}", [(names[0], len(opened[0].reference_ids))])
        for group in ("layers", "probes"):
            file.require_group(group).attrs.update(first[group].attrs)
        for probe in opened[0].probes:
            file[f"probes/{probe}"] = np.concatenate([part.probes[probe].to_numpy() for part in opened])
        if "samples" in first:
            first.copy("samples", file)
        with ExitStack() as stack:
            join_exhibits(file, [first, *(stack.enter_context(h5py.File(shard)) for shard in shards[1:])])


def _check_like(path: Path, shard: Activations, first: Activations) -> None:
    """Refuses a shard with another key, other layers, other types or other probes than the first one."""
    for what, mine, other in (
        ("key", shard.attributes["key"], first.attributes["key"]),
        ("layers", shard.layers, first.layers),
        ("types", *([one.dtype(layer.name)[0] for layer in one.stored] for one in (shard, first))),
        ("probes", list(shard.probes), list(first.probes)),
    ):
        if mine != other:
            raise ArtifactError(f"{path}: its {what} are not those of the first part; delete it and run again")


def _link(file: h5py.File, first: h5py.File, name: str, sources: Sequence[tuple[str, int]]) -> None:
    """A virtual dataset over the datasets of this name in files of so many rows each."""
    like = first[name]
    num_rows, num_units = sum(count for _, count in sources), like.shape[1]
    if num_rows:
        layout = h5py.VirtualLayout((num_rows, num_units), like.dtype)
        start = 0
        for source, count in sources:
            layout[start : start + count] = h5py.VirtualSource(source, name, (count, num_units), like.dtype)
            start += count
        # Not 0, should a part get lost: nobody could see that.
        dataset = file.create_virtual_dataset(name, layout, fillvalue=np.nan)
    else:
        dataset = file.create_dataset(name, (0, num_units), like.dtype)
    write_layer_info(dataset, read_layer_info(like), str(like.attrs["dtype_reason"]))
