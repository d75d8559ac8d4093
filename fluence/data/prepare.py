"""Many images become pixels, in several processes, in order, in bounded memory.

A process that decodes imports only this module and what it needs: no pandas, no HDF5, no torch.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fluence.data.covariates import covariates
from fluence.data.decode import Fit, Undecodable, decode
from fluence.data.duplicates import thumbnails
from fluence.errors import RunError

if TYPE_CHECKING:
    from fluence.study import SyntheticDataset

_CHUNK_BYTES = 4 * 2**20
_CHUNK_IMAGES = 32
_CHUNKS_PER_WORKER = 3  # one being decoded, one waiting for it, one waiting to be written
_GRACE_S = 0.5  # SIGTERM to the whole group may end the workers first: the parent's own handler gets its say


@dataclass(frozen=True)
class ImageFile:
    """An image on disk."""

    path: Path

    def pixels(self, size_px: int, fit: Fit) -> np.ndarray:
        """Decodes the file, uint8 [size_px, size_px, 3]."""
        return decode(self.path, size_px, fit)


@dataclass(frozen=True)
class Drawing:
    """A face that fluence draws."""

    settings: SyntheticDataset
    index: int

    def pixels(self, size_px: int, fit: Fit) -> np.ndarray:
        """Draws the face, uint8 [size_px, size_px, 3]; it is square by nature."""
        from fluence.data.synthetic import render_face

        return render_face(self.settings, self.index, size_px)


Source = ImageFile | Drawing


@dataclass(frozen=True)
class Prepared:
    """Some images of a data set, decoded.

    Attributes:
        pixels: those that could be decoded, uint8 [usable, size_px, size_px, 3].
        usable: which ones of the chunk these are, int [usable].
        reasons: why the others could not be, by their place in the chunk.
        sha256: hash of the pixels of each usable image.
        thumbnails: of each usable image, uint8 [usable, 32, 32].
        covariates: for each covariate float64 [usable].
        num_images: number of images in the chunk.
    """

    pixels: np.ndarray
    usable: np.ndarray
    reasons: dict[int, str]
    sha256: list[str]
    thumbnails: np.ndarray
    covariates: dict[str, np.ndarray]
    num_images: int


def prepare(sources: Sequence[Source], size_px: int, fit: Fit) -> Prepared:
    """Decodes and measures some images; stops early, with what it has, when the packing has been interrupted."""
    pixels = np.empty((len(sources), size_px, size_px, 3), np.uint8)
    usable: list[int] = []
    reasons: dict[int, str] = {}
    for position, source in enumerate(sources):
        if _interrupted is not None and _interrupted.is_set():
            break
        try:
            pixels[len(usable)] = source.pixels(size_px, fit)
            usable.append(position)
        except Undecodable as error:
            reasons[position] = str(error)
    pixels = pixels[: len(usable)]
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
    small = thumbnails(pixels)
    return Prepared(pixels, np.array(usable, int), reasons, hashes, small, covariates(pixels), len(sources))


def prepared(sources: Sequence[Source], size_px: int, fit: Fit, num_workers: int) -> Iterator[Prepared]:
    """Decodes and measures all images, chunk by chunk, in their order.

    Args:
        sources: the images.
        size_px: side of the squares.
        fit: `crop` or `pad`.
        num_workers: processes that decode; with 1, or for a handful of images, this process does it.

    Raises:
        RunError: a process was killed, probably for want of memory.
    """
    step = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // (size_px * size_px * 3)))
    chunks = [sources[start : start + step] for start in range(0, len(sources), step)]
    if num_workers <= 1 or len(chunks) <= 1:
        yield from (prepare(chunk, size_px, fit) for chunk in chunks)
        return
    context = get_context("spawn")  # a fork would copy the threads' locks of whatever this process has loaded
    interrupted = context.Event()
    pool = ProcessPoolExecutor(min(num_workers, len(chunks)), context, _start_worker, (interrupted,))
    try:
        yield from _in_order(pool, chunks, size_px, fit, ahead=num_workers * _CHUNKS_PER_WORKER)
    finally:
        interrupted.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, chunks: Sequence[Sequence[Source]], size_px: int, fit: Fit, ahead: int
) -> Iterator[Prepared]:
    """Results in the order of the chunks, of which only so many are under way at a time."""
    waiting: deque[Future[Prepared]] = deque()
    try:
        for chunk in chunks:
            with _left_to_this_process():
                waiting.append(pool.submit(prepare, chunk, size_px, fit))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        time.sleep(_GRACE_S)
        raise RunError(
            "a process that decodes images was killed, probably for want of memory; give the task more memory or "
            "fewer workers and start again"
        ) from error


@contextmanager
def _left_to_this_process() -> Iterator[None]:
    """Ctrl-C and Slurm's signal wait for the end of the block, and never reach a process that is started in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ── Inside a worker ──────────────────────────────────────────────────────────────────────────────────────────────

_interrupted: Event | None = None


def _start_worker(interrupted: Event) -> None:
    """Lets the parent say when to stop, and ends when the parent is gone."""
    global _interrupted
    _interrupted = interrupted
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
