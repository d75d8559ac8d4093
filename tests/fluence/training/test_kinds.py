"""Every kind of model trains, stops and continues, and what its terms need reaches them."""

from __future__ import annotations

import pytest
import torch

from fluence.data.sampling import Sampler
from fluence.errors import StudyError
from fluence.training import Ranks
from fluence.training.task import load_images
from tests.fluence.training.test_distributed import outcome
from tests.fluence.training.tiny_training import KINDS
from tests.fluence.training.trainings import (
    rows,
    run,
    whole_and_broken,
)

TERMS = {
    "tilted": {"kl"},
    "ar-vae": {"kl", "attribute/light"},
    "ae": set(),
    "vq-vae": {"codebook", "commitment", "perplexity"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_anywhere_it_continues_to_the_same_bits(make_spec, kind):
    settings = {"epochs": 2, "kl_warmup_epochs": 2, "model": KINDS[kind]}
    whole, _ = whole_and_broken(make_spec, (1, 3), **settings)
    common = {"epoch", "step", "phase", "loss", "reconstruction/l2", "num_images"}
    assert set(rows(whole, "validation")[0]) == common | TERMS[kind]


def test_attributes_go_with_their_images(make_spec):
    """Mistake: rows joined by their order. `light` is the mean of each image's own pixels, mirrored or not."""
    data = load_images(make_spec(model=KINDS["ar-vae"]), Ranks())
    cpu = torch.device("cpu")
    sampler = Sampler(data.training, 8, (1,), seed=0, horizontal_flip=True, device=cpu, rank=1, world_size=2)
    everything = torch.arange(len(data.validation))
    shares = [sampler.share(1, 2), sampler.share(2, 0)]
    pairs = [(share.images, share.attributes) for share in shares]
    for images, attributes in [*pairs, (data.validation.batch(everything), data.validation.attributes_of(everything))]:
        assert attributes is not None
        light = attributes[:, 0]
        known = light.isfinite()
        assert known.any()
        torch.testing.assert_close(images.mean((1, 2, 3))[known] * 255, light[known])
    assert not data.validation.attributes_of(everything).isfinite().all()


def test_a_latent_unit_comes_to_follow_its_attribute(make_spec):
    follows, free = (
        make_spec(str(weight), epochs=8, learning_rate=1e-2, model=KINDS["ar-vae"] | {
            "latent": {"kind": "dense", "size": 4}, "attributes": [{"column": "light", "unit": 1, "weight": weight}]
        })
        for weight in (1000.0, 0.0)
    )  # fmt: skip
    run(follows)
    run(free)
    assert rows(follows, "validation")[-1]["attribute/light"] < 0.5 < rows(free, "validation")[0]["attribute/light"]
    assert rows(follows, "validation")[-1]["attribute/light"] < rows(free, "validation")[-1]["attribute/light"]


@pytest.mark.parametrize(
    ("column", "word"),
    [
        ("lihgt", r"'lihgt' .* does not exist; did you mean 'light'\? Columns of numbers: light, one$"),
        ("ethnicity", r"'ethnicity' .* does not hold numbers; .*Columns of numbers: light, one$"),
        ("one", r"'one' .* has not two different values"),
    ],
)
def test_columns_that_cannot_be_followed_are_refused_before_training(make_spec, column, word):
    model = KINDS["ar-vae"] | {"attributes": [{"column": column, "unit": 0}]}
    with pytest.raises(StudyError, match=r"^models\.tiny\.attributes: the column " + word):
        load_images(make_spec(model=model), Ranks())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ar-vae", "vq-vae"])
def test_number_of_processes_changes_nothing_but_rounding(tmp_path, kind):
    """Pairs and perplexity are those of the global batch; in the last one of validation a process has no image."""
    settings = {"epochs": 2, "batch_size": 7, "num_images": 37, "model": KINDS[kind]}
    log, weights = outcome(tmp_path / "1", settings, 1)
    assert log[1]["num_images"] % 7 in (1, 2)
    other_log, other_weights = outcome(tmp_path / "3", settings, 3)
    for row, other in zip(log, other_log, strict=True):
        assert {**row, "phase": 0} == pytest.approx({**other, "phase": 0}, rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(other_weights[name], value, rtol=1e-3, atol=2e-5)
