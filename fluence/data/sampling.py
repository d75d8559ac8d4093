"""Chance in training: which image comes when, which is mirrored, and the noise of the latents.

Every random number is a pure function of the run's seed, its purpose and its place in the training. So nothing depends
on how many processes share the work, and a training that continues draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fluence.data.images import ResidentImages


def derived_seed(seed: int, purpose: str, *place: int) -> int:
    """A seed in [0, 2⁶³) for one purpose at one place, such as `derived_seed(0, "noise", epoch, batch)`."""
    words = "/".join(map(str, (seed, purpose, *place)))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Share:
    """The part of a global batch that one process works on.

    Attributes:
        images: float32 [share, 3, H, W] in [0, 1].
        noise: standard normal, float32 [share, *noise_shape].
        attributes: values of the columns that latents follow, float32 [share, num_columns]; None without any.
    """

    images: Tensor
    noise: Tensor
    attributes: Tensor | None = None


class Sampler:
    """Deals the training images out: each once per epoch, in an order that is new in every epoch.

    An epoch drops its last batch if it is incomplete; a set smaller than one batch is one batch.

    Args:
        images: the training images.
        batch_size: images per optimiser step, over all processes.
        noise_shape: shape of one image's noise.
        seed: the run's seed.
        horizontal_flip: mirror each image in about half of the epochs.
        micro_batch_size: largest number of images, over all processes, that pass at once; None for whole batches.
        rank: which of the `world_size` shares of each batch to deal out.

    Attributes:
        batch_size: images per optimiser step.
        batches_per_epoch: optimiser steps per epoch.
        num_pieces: pieces that a batch is passed in, the same for every process; their sizes differ by one at most.
    """

    def __init__(
        self, images: ResidentImages, batch_size: int, noise_shape: tuple[int, ...], *, seed: int,
        horizontal_flip: bool, device: torch.device, micro_batch_size: int | None = None,
        rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        self.batch_size = min(batch_size, len(images))
        self.batches_per_epoch = len(images) // self.batch_size
        self._images, self._noise_shape = images, noise_shape
        self._seed, self._horizontal_flip, self._device = seed, horizontal_flip, device
        self.num_pieces = num_pieces(self.batch_size, micro_batch_size)
        pieces = [share_of(self.batch_size, piece, self.num_pieces) for piece in range(self.num_pieces)]
        self._parts = [_part_of(piece, rank, world_size) for piece in pieces]
        self._generator = torch.Generator(device)
        self._noise: tuple[tuple[int, int], Tensor] | None = None
        self._epoch = -1

    def share(self, epoch: int, batch: int, piece: int = 0) -> Share:
        """This process' part of one piece of one batch of one epoch: the same numbers, however often it is asked."""
        if epoch != self._epoch:
            self._shuffle(epoch)
        start = batch * self.batch_size
        chosen = self._order[start : start + self.batch_size][self._parts[piece]]
        flip = self._flip[chosen] if self._horizontal_flip else None
        noise = self._noise_of(epoch, batch)[self._parts[piece]]
        return Share(self._images.batch(chosen, flip), noise, self._images.attributes_of(chosen))

    def _shuffle(self, epoch: int) -> None:
        """Order and mirroring of a whole epoch go to the device at once: a step then copies nothing there."""
        order = np.random.default_rng(derived_seed(self._seed, "order", epoch)).permutation(len(self._images))
        flip = np.random.default_rng(derived_seed(self._seed, "flip", epoch)).random(len(self._images)) < 0.5
        self._order = torch.from_numpy(order).to(self._device)
        self._flip = torch.from_numpy(flip).to(self._device)
        self._epoch = epoch

    def _noise_of(self, epoch: int, batch: int) -> Tensor:
        """Noise of the whole batch, from which every process takes its share; drawn once for all its pieces."""
        if self._noise is None or self._noise[0] != (epoch, batch):
            self._generator.manual_seed(derived_seed(self._seed, "noise", epoch, batch))
            shape = (self.batch_size, *self._noise_shape)
            self._noise = (epoch, batch), torch.randn(shape, generator=self._generator, device=self._device)
        return self._noise[1]


def share_of(num_images: int, rank: int, world_size: int) -> slice:
    """The rank's contiguous part of `num_images`; parts differ by one image at most."""
    return slice(num_images * rank // world_size, num_images * (rank + 1) // world_size)


def num_pieces(batch_size: int, micro_batch_size: int | None) -> int:
    """Into how many pieces of at most `micro_batch_size` images a batch is cut."""
    return math.ceil(batch_size / (micro_batch_size or batch_size))


def _part_of(piece: slice, rank: int, world_size: int) -> slice:
    """The rank's contiguous part of a piece, counted from the start of the batch."""
    part = share_of(piece.stop - piece.start, rank, world_size)
    return slice(piece.start + part.start, piece.start + part.stop)
