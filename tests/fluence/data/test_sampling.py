from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluence.data.images import ResidentImages
from fluence.data.sampling import Sampler, derived_seed, num_pieces, share_of

CPU = torch.device("cpu")


def sampler(num_images: int, batch_size: int, **settings: object) -> Sampler:
    images = ResidentImages(numbered(num_images), CPU)
    return Sampler(images, batch_size, (2, 1), **({"seed": 0, "horizontal_flip": False, "device": CPU} | settings))


def numbered(num_images: int) -> np.ndarray:
    """Images of one colour, image k with value k."""
    return np.broadcast_to(np.arange(num_images, dtype=np.uint8)[:, None, None, None], (num_images, 2, 2, 3))


def numbers(dealer: Sampler, epoch: int) -> list[int]:
    shares = [dealer.share(epoch, batch).images[:, 0, 0, 0] for batch in range(dealer.batches_per_epoch)]
    return (torch.cat(shares) * 255).round().int().tolist()


def test_every_epoch_deals_each_image_once_in_a_new_order():
    """Mistake: the same shuffle in every epoch under DDP (no set_epoch)."""
    dealer = sampler(24, 8)
    epochs = [numbers(dealer, epoch) for epoch in range(5)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert numbers(sampler(24, 8, seed=1), 0) != epochs[0]


def test_incomplete_last_batch_is_dropped_but_a_small_set_is_one_batch():
    assert (sampler(23, 8).batches_per_epoch, len(numbers(sampler(23, 8), 0))) == (2, 16)
    assert (sampler(5, 8).batches_per_epoch, sorted(numbers(sampler(5, 8), 0))) == (1, [0, 1, 2, 3, 4])


def test_what_is_dealt_depends_on_the_place_alone():
    straight, jumping = sampler(24, 8), sampler(24, 8)
    for epoch, batch in [(2, 1), (0, 0), (2, 0)]:
        a, b = straight.share(epoch, batch), jumping.share(epoch, batch)
        jumping.share(5, 2)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.noise, b.noise)


@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_of_all_processes_make_the_whole_batch(world_size):
    whole = sampler(24, 8, horizontal_flip=True).share(1, 2)
    parts = [sampler(24, 8, horizontal_flip=True, rank=r, world_size=world_size).share(1, 2) for r in range(world_size)]
    assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
    assert torch.equal(torch.cat([p.noise for p in parts]), whole.noise)


@pytest.mark.parametrize(("micro_batch_size", "sizes"), [(None, [10]), (10, [10]), (9, [5, 5]), (4, [3, 3, 4])])
def test_pieces_of_all_processes_make_the_whole_batch(micro_batch_size, sizes):
    """The pieces are those of the batch, whatever the number of processes; asked again, a piece is the same one."""
    whole = sampler(20, 10).share(1, 1)
    dealers = [sampler(20, 10, micro_batch_size=micro_batch_size, rank=r, world_size=2) for r in range(2)]
    pieces = [[dealer.share(1, 1, piece) for dealer in dealers] for piece in range(dealers[0].num_pieces)]
    assert [sum(len(part.images) for part in piece) for piece in pieces] == sizes
    assert torch.equal(torch.cat([part.images for piece in pieces for part in piece]), whole.images)
    assert torch.equal(torch.cat([part.noise for piece in pieces for part in piece]), whole.noise)
    again = dealers[0].share(1, 1, 0)
    assert torch.equal(again.noise, pieces[0][0].noise)
    assert torch.equal(again.images, pieces[0][0].images)


@given(batch_size=st.integers(1, 200), micro_batch_size=st.integers(1, 200))
def test_no_piece_is_larger_than_allowed_and_there_are_no_more_than_needed(batch_size, micro_batch_size):
    pieces = num_pieces(batch_size, micro_batch_size)
    assert max(_size(batch_size, piece, pieces) for piece in range(pieces)) <= micro_batch_size
    assert (pieces - 1) * micro_batch_size < batch_size


def _size(batch_size: int, piece: int, pieces: int) -> int:
    share = share_of(batch_size, piece, pieces)
    return share.stop - share.start


@given(num_images=st.integers(0, 100), world_size=st.integers(1, 12))
def test_shares_are_contiguous_and_even(num_images, world_size):
    shares = [share_of(num_images, rank, world_size) for rank in range(world_size)]
    assert [k for share in shares for k in range(num_images)[share]] == list(range(num_images))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_about_half_of_the_images_are_mirrored_and_not_the_same_ones_in_each_epoch():
    faces = np.zeros((200, 2, 2, 3), dtype=np.uint8)
    faces[:, :, 0] = 255
    dealer = Sampler(ResidentImages(faces, CPU), 200, (1,), seed=0, horizontal_flip=True, device=CPU)
    mirrored = [dealer.share(epoch, 0).images[:, 0, 0, 1].mean().item() for epoch in range(20)]
    assert np.mean(mirrored) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(4000))
    assert len(set(mirrored)) > 1


def test_noise_is_standard_normal_and_new_at_each_step():
    dealer = sampler(64, 32, seed=3)
    dealer._noise_shape = (50,)
    draws = [dealer.share(epoch, batch).noise for epoch in range(3) for batch in range(2)]
    assert len({draw.sum().item() for draw in draws}) == 6
    values = torch.cat(draws)
    assert values.mean().item() == pytest.approx(0, abs=4 / np.sqrt(values.numel()))
    assert values.var().item() == pytest.approx(1, abs=4 * np.sqrt(2 / values.numel()))


def test_seeds_of_different_purposes_and_places_differ():
    places = [(s, p, e, b) for s in (0, 1) for p in ("noise", "order") for e in range(5) for b in range(12)]
    assert len({derived_seed(*place) for place in places}) == len(places)
    assert derived_seed(0, "noise", 1, 11) != derived_seed(0, "noise", 11, 1)
    assert 0 <= derived_seed(0, "x") < 2**63
