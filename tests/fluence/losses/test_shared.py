"""Sums and means over shares of a batch are those of the whole batch, and so are their gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from fluence.losses.shared import batch_mean, batch_sum, whole_batch

SHARES = {
    "unequal": (slice(0, 5), slice(5, 8)),
    "one empty": (slice(0, 0), slice(0, 8)),
    "three": (slice(0, 3), slice(3, 8), slice(8, 8)),
}


def pairs(x: torch.Tensor) -> torch.Tensor:
    """A number that no sum over images gives: it needs every two of them."""
    flat = x.flatten(1)
    return torch.tanh(flat @ flat.T * torch.arange(len(x))).square().sum()


TERMS = {
    "sum": lambda x: batch_sum((x**3).sum((0, 2))).prod(),
    "mean": lambda x: torch.log(batch_mean(x.square())).square().sum(),
    "whole": lambda x: pairs(whole_batch(x)),
}


def outcome(images: torch.Tensor, share: slice, world_size: int) -> dict[str, torch.Tensor]:
    """Values and gradients of all terms, in one backward pass, scaled as the training loop does it."""
    x = images[share].clone().requires_grad_()
    weights = torch.ones(2, 3, dtype=x.dtype, requires_grad=True)
    seen = x * weights
    values = {name: term(seen) for name, term in TERMS.items()}
    per_image = sum(values.values()).expand(len(x)) + (seen**2).sum((1, 2))
    (per_image.sum() * world_size / len(images)).backward()
    return {name: value.detach() for name, value in values.items()} | {
        "gradient": weights.grad, "of images": x.grad / world_size, "whole batch": whole_batch(x.detach()),
    }  # fmt: skip


def _worker(rank: int, folder: str, images: torch.Tensor, shares: tuple[slice, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(shares))
    found = outcome(images, shares[rank], len(shares))
    dist.all_reduce(found["gradient"])
    found["gradient"] /= len(shares)  # what DistributedDataParallel does
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=SHARES)
def one_and_several(request, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("gloo"))
    images = torch.rand(8, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shares = SHARES[request.param]
    torch.multiprocessing.spawn(_worker, (folder, images, shares), nprocs=len(shares))
    ranks = [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(len(shares))]
    return images, outcome(images, slice(None), 1), ranks


def test_every_process_has_the_value_of_the_whole_batch(one_and_several):
    images, one, ranks = one_and_several
    for rank in ranks:
        for name in TERMS:
            torch.testing.assert_close(rank[name], one[name])
        assert torch.equal(rank["whole batch"], images)


def test_gradients_are_those_of_one_process(one_and_several):
    """Mistake: a sum over processes that stops the gradient, or that counts it once for each process."""
    _, one, ranks = one_and_several
    assert one["gradient"].abs().min() > 0
    for rank in ranks:
        torch.testing.assert_close(rank["gradient"], one["gradient"])
    torch.testing.assert_close(torch.cat([rank["of images"] for rank in ranks]), one["of images"])


def test_one_process_is_plain_torch():
    x = torch.rand(4, 3)
    assert batch_sum(x) is x
    assert whole_batch(x) is x
    assert torch.equal(batch_mean(x), x.mean(0))
