"""Terms of the whole batch, where several processes hold a share of it each.

Every function is a collective: all processes call the same ones in the same order, also one whose share is empty.
What they return is the same on every process, and its gradient is that of the sum of all processes' losses; the
training loop, which weighs each share by its images and averages over processes, makes of it the gradient that one
process with the whole batch would have. With one process they are plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def batch_sum(x: Tensor) -> Tensor:
    """The sum of all processes' tensors of one shape, [...] → [...]: here it is `x` itself if there is one process."""
    return _SumOverProcesses.apply(x) if _several() else x


def batch_mean(values: Tensor) -> Tensor:
    """The mean over the images of the whole batch, [B, ...] of this share → [...].

    Shares may be unequal, and all but one may be empty.
    """
    if not _several():
        return values.mean(0)
    # One exchange for the sums and the number of images.
    sums = torch.cat([values.sum(0).flatten(), values.new_tensor([len(values)])])
    total = batch_sum(sums)
    return (total[:-1] / total[-1]).reshape(values.shape[1:])


def whole_batch(x: Tensor) -> Tensor:
    """The images of the whole batch, [B, ...] of this share → [B_global, ...], ordered by rank.

    Every process then holds all of `x`, and waits once for its device: meant for what is small for each image.
    """
    if not _several():
        return x
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    sizes = torch.cat(counts).tolist()
    before, after = sum(sizes[: dist.get_rank()]), sum(sizes[dist.get_rank() + 1 :])
    # Adding zeros changes no number, so that each share arrives as it is.
    return batch_sum(torch.cat([x.new_zeros((before, *x.shape[1:])), x, x.new_zeros((after, *x.shape[1:]))]))


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _SumOverProcesses(torch.autograd.Function):
    """Forward adds up what the processes have, backward what gradient each of their losses has by that sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _added_up(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _added_up(gradients[0])


def _added_up(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
