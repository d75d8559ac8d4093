"""Layers on their way from the network to the file: as float16, in the order of units, while the network goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fluence.counting import count
from fluence.store.histograms import NUM_BINS, Histograms
from fluence.store.precision import SURE_MEAN, check_rows

_EVERY_ROW = 8
_LEAST_TRANSPOSED = 60 * 60  # below, torch transposes value by value


class Rows(Mapping[str, np.ndarray]):
    """Layers of a block of images, on their way to the host's memory: float16 or float32 [B, units] by name.

    Units are in the order (channel, row, column). A layer is put into it when it is asked for, and not kept so.

    Args:
        values: name → float32 [B, *shape]. They are no longer needed when this is made.
        float32_layers: names of those that stay float32.
        ids: of the images, for errors.
        counted: names of those of which `histograms` are wanted, and not the values.
        picks: places of the units of some layers that `units` gives, int64 [units], on the device of the values.

    Raises:
        NeedsFloat32: another layer does not fit into float16. That a value is infinite shows only when it is written.
        ArtifactError: a value is NaN or infinite, as far as that shows here.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        float32_layers: Mapping[str, str],
        ids: Sequence[str],
        counted: Collection[str] = (),
        picks: Mapping[str, Tensor] | None = None,
    ) -> None:
        halved = {name: value for name, value in values.items() if name not in float32_layers}
        _check_fit(halved, ids)
        chosen = {name: value.half() if name in halved else value.float() for name, value in values.items()}
        picked = {name: _pick(chosen[name], units) for name, units in (picks or {}).items()}
        self._units = {name: _begin(value) for name, value in picked.items()}
        self._ids, self._counted = ids, {name: chosen.pop(name) for name in list(chosen) if name in counted}
        self._values = {name: _begin(value) for name, value in chosen.items()}
        self._arrival = torch.cuda.Event() if any(value.is_cuda for value in values.values()) else None
        if self._arrival:
            self._arrival.record()

    def __getitem__(self, layer: str) -> np.ndarray:
        """Waits for the values of a layer, [B, units]."""
        self._await()
        return _in_order(self._values[layer]).numpy()

    def units(self) -> dict[str, np.ndarray]:
        """Waits for the units that were picked, float16 or float32 [B, units] by layer; also of what is counted."""
        self._await()
        return {name: values.numpy() for name, values in self._units.items()}

    def _await(self) -> None:
        if self._arrival:
            self._arrival.synchronize()

    def histograms(self) -> dict[str, Histograms]:
        """Histograms of each image, of the layers that are to be counted.

        Raises:
            NeedsFloat32: a value is more than float16 can hold.
            ArtifactError: a value is NaN.
        """
        return {name: self._count(name, value) for name, value in self._counted.items()}

    def _count(self, layer: str, values: Tensor) -> Histograms:
        """On the device that the values [B, *shape] are on; in which order they lie there does not matter."""
        flat = (values.permute(0, 2, 3, 1) if _is_last(values) else values).flatten(1)
        if flat.is_cuda:
            found, num_unfinite = count_on_gpu(flat)
        else:
            found, unfinite = count(flat.numpy())
            num_unfinite = int(unfinite.sum())
        if num_unfinite:
            check_rows(flat.cpu().numpy(), np.dtype("float16"), layer, self._ids)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def count_on_gpu(values: Tensor) -> tuple[Histograms, int]:
    """The histogram of each row of float16 values [B, units], and how many values are NaN or infinite.

    The same as `fluence.counting.count`; on any device.
    """
    rows = values.view(torch.int16)
    bins = torch.stack([torch.bincount(row.int() & 0xFFFF, minlength=NUM_BINS) for row in rows])
    unfinite = int(bins[:, 0x7C00:0x8000].sum() + bins[:, 0xFC00:].sum())
    row, bits = torch.nonzero(bins, as_tuple=True)
    start = np.concatenate([[0], np.cumsum(torch.bincount(row, minlength=len(rows)).cpu().numpy())])
    counts = bins[row, bits].cpu().numpy().astype(np.uint32)
    return Histograms(bits.cpu().numpy().astype(np.uint16), counts, start.astype(np.int64)), unfinite


class Behind:
    """A thread that does one thing after the other while its caller goes on, and is never more than one behind."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def __call__(self, work: Callable[[], None]) -> None:
        """Waits for what was given before, and begins with this.

        Raises:
            Exception: what was given before has failed.
        """
        self.wait()
        self._last = self._pool.submit(work)

    def wait(self) -> None:
        """Waits until everything is done.

        Raises:
            Exception: it has failed.
        """
        last, self._last = self._last, None
        if last:
            last.result()


def _check_fit(values: Mapping[str, Tensor], ids: Sequence[str]) -> None:
    """A few rows of each map tell of most images that their values are large enough; the others are looked at whole."""
    if not values:
        return
    sure = torch.stack([_lower_bound(value) >= SURE_MEAN * value[0].numel() for value in values.values()]).cpu()
    for (name, value), is_sure in zip(values.items(), sure, strict=True):
        if not is_sure.all():
            doubtful = torch.nonzero(~is_sure).flatten()
            rows = value[doubtful.to(value.device)].float().flatten(1).cpu().numpy()
            check_rows(rows, np.dtype("float16"), name, [ids[place] for place in doubtful.tolist()])


def _lower_bound(values: Tensor) -> Tensor:
    """Σ|x| over some of the values [B, *shape] of each image, [B]."""
    some = values[:, :, ::_EVERY_ROW] if values.ndim == 4 else values
    return torch.linalg.vector_norm(some, 1, dim=tuple(range(1, some.ndim)))


def _begin(values: Tensor) -> Tensor:
    """[B, *shape] on any device → the same or [B, units] on the host; from a GPU the copy is under way."""
    if values.is_cuda:
        flat = values.flatten(1)
        return torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True).copy_(flat, non_blocking=True)
    return values if _is_to_transpose(values) else values.flatten(1)


def _is_to_transpose(values: Tensor) -> bool:
    """Whether the channels of each place lie side by side, in maps that are not tiny."""
    if values.ndim != 4 or values.is_contiguous() or values[0].numel() < _LEAST_TRANSPOSED:
        return False
    return _is_last(values)


def _is_last(values: Tensor) -> bool:
    """Whether the channels of each place lie side by side in memory."""
    return values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)


def _pick(values: Tensor, units: Tensor) -> Tensor:
    """Some units of values [B, *shape], [B, units]; without a copy of all of them, in whatever order they lie."""
    if not _is_last(values):
        return values.flatten(1).index_select(1, units)
    places = values.shape[2] * values.shape[3]
    return values.permute(0, 2, 3, 1).flatten(1).index_select(1, units % places * values.shape[1] + units // places)


def _in_order(values: Tensor) -> Tensor:
    """[B, units] as it is; [B, C, H, W] with its channels last in memory → [B, units].

    Image by image, torch transposes in tiles: four times as fast as `flatten`, in one thread.
    """
    if values.ndim == 2:
        return values
    num_images, channels, height, width = values.shape
    rows = torch.empty((num_images, channels, height * width), dtype=values.dtype)
    for target, image in zip(rows, values, strict=True):
        target.copy_(image.permute(1, 2, 0).reshape(height * width, channels).t())
    return rows.flatten(1)
