from __future__ import annotations

import pytest
import torch

from fluence.errors import RunError
from fluence.training import Ranks
from fluence.training.task import load_images
from tests.fluence.training.trainings import new_loop, rows, run

# ── Pieces of a batch ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("micro_batch_size", [1, 3, 7, 8, 100])
def test_gradients_and_terms_are_those_of_the_whole_batch(make_spec, micro_batch_size):
    """To rounding, for a model without batch normalisation; 8 images in 8, 3, 2, 1 and 1 pieces."""
    loops = [new_loop(make_spec(name)) for name in ("whole", "cut")]
    loops[1]._sampler = sampler_like(loops[1], micro_batch_size)
    (sums, norm), (cut_sums, cut_norm) = (loop._gradient_of_batch() for loop in loops)
    torch.testing.assert_close(cut_sums, sums, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cut_norm, norm, rtol=1e-5, atol=0)
    for p, q in zip(loops[0].model.parameters(), loops[1].model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-4 * norm.item())


def sampler_like(loop, micro_batch_size):
    sampler, settings = type(loop._sampler), loop._settings
    return sampler(
        loop._data.training, settings.batch_size, loop.model.noise_shape, seed=loop._spec.run.seed,
        horizontal_flip=settings.horizontal_flip, device=loop._ranks.device, micro_batch_size=micro_batch_size,
    )  # fmt: skip


def test_no_pass_sees_more_images_than_allowed(make_spec):
    loop = new_loop(make_spec(batch_size=10, micro_batch_size=4))
    seen = []
    loop.model.register_forward_hook(lambda model, inputs, output: seen.append(len(inputs[0])))
    loop._take_step()
    assert seen == [3, 3, 4]


def test_training_in_pieces_is_that_in_whole_batches(make_spec):
    whole, cut = make_spec("whole", epochs=4), make_spec("cut", epochs=4, micro_batch_size=3)
    for spec in (whole, cut):
        run(spec)
    for row, other in zip(rows(whole, "train"), rows(cut, "train"), strict=True):
        assert {**row, "phase": 0} == pytest.approx({**other, "phase": 0}, rel=1e-3)


def test_more_processes_than_images_in_a_piece_are_refused(make_spec):
    """A batch of 8 in pieces of 3, 3 and 2 images: the third of three processes would have nothing to do."""
    spec = make_spec(micro_batch_size=3)
    with pytest.raises(
        RunError, match=r"3 processes cannot share 2 images.*micro_batch_size is 3.*at most 2 processes"
    ):
        load_images(spec, Ranks(0, 3, 0))
    assert len(load_images(spec, Ranks(0, 2, 0)).training) == 31


# ── What is minimised ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sam", [None, {"rho": 0.05}])
@pytest.mark.parametrize(("loss", "weight"), [("l1", 1.0), ("l2", 1.0), ("ssim", 1000.0)])
def test_a_step_brings_images_and_reconstructions_closer(make_spec, loss, weight, sam):
    """Mistake: a similarity ascended as if it were a loss. Each distance of the same images falls, 1 − SSIM too."""
    model = {"kl_weight": 0.0, "reconstruction": [{"loss": loss, "weight": weight}]}
    settings = {"optimizer": "sgd", "learning_rate": 1e-2, "gradient_clip_norm": 1.0, "warmup_epochs": 0, "sam": sam}
    loop = new_loop(make_spec(model=model, **settings))
    distances = []
    for _ in range(4):
        sums, _ = loop._gradient_of_batch()
        distances.append(sums[loop._terms.index(f"reconstruction/{loss}")].item())
        loop.model.zero_grad()
        loop._take_step()
        loop.batch = 0
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0]
