"""The sharpness probe beside a loop over the images with copies of the network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from fluence.losses import Objective
from fluence.losses.terms import Pass, Term
from fluence.models import Autoencoder, Recorder, build, record
from fluence.probes import SharpnessProbe
from fluence.study import Model
from fluence.study import SharpnessProbe as Settings

SIZE_PX, NUM_IMAGES = 32, 5
ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Of the difference of two losses, relative to the loss."""


def model(**settings: Any) -> Model:
    return TypeAdapter(Model).validate_python({"kind": "vae", "width": 0.125} | settings)


def side(settings: Model) -> int:
    """Instance normalisation leaves nothing of the single position that 32 px would come down to."""
    return 2 * SIZE_PX if settings.norm == "instance" else SIZE_PX


def network_of(settings: Model) -> Autoencoder:
    """A network that has learned a little, so that its encoder matters too."""
    network, x = build(settings, side(settings), seed=0), images(side_px=side(settings))
    optimizer, objective = torch.optim.Adam(network.parameters(), 3e-3), Objective(settings)
    recorder = Recorder(network, objective.layers, "post")
    for _ in range(12):
        optimizer.zero_grad()
        output = network(x, torch.zeros(len(x), *network.noise_shape))
        objective(output, x, recorder.take())[0].mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    recorder.stop()
    return network.eval()


def images(number: int = NUM_IMAGES, side_px: int = SIZE_PX) -> Tensor:
    """No two neighbours are equal: where several values are the largest, max-pooling has several gradients."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((number, 3, 4, 4), generator=generator)
    fine = torch.rand((number, 3, side_px, side_px), generator=generator)
    return 0.8 * coarse.repeat_interleave(side_px // 4, 2).repeat_interleave(side_px // 4, 3) + 0.2 * fine


def slow_reference(network: Autoencoder, objective: Objective, settings: Settings, x: Tensor) -> dict[str, Tensor]:
    """Foret et al. 2021, eq. 2, one image after the other: a copy of the network, moved along its own gradient."""
    found: dict[str, list[float]] = {"sharpness": [], "gradient_norm": [], "loss": []}
    for image in x.split(1):
        moved = copy.deepcopy(network)
        recorder = Recorder(moved, objective.layers, "post")
        loss = objective(moved(image), image, recorder.take())[0].sum()
        loss.backward()
        names = dict(moved.encoder_parameters()) if settings.parameters == "encoder" else dict(moved.named_parameters())
        chosen = list(names.values())
        norm = torch.cat([p.grad.flatten() for p in chosen]).norm()
        with torch.no_grad():
            for parameter in chosen:
                parameter += settings.rho * parameter.grad / norm
            above = objective(moved(image), image, recorder.take())[0].sum()
        found["sharpness"].append((above - loss).item())
        found["gradient_norm"].append(norm.item())
        found["loss"].append(loss.item())
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found["gradient_norm"], expected["gradient_norm"], rtol=1e-4, atol=0)
    rounding = ROUNDING * expected["loss"].max().item()
    torch.testing.assert_close(found["sharpness"], expected["sharpness"], rtol=1e-4, atol=rounding)
    assert rounding < 0.02 * expected["sharpness"].abs().median()


def check(settings: Model, **probe: Any) -> dict[str, Tensor]:
    chosen, network, x, objective = (
        Settings(**probe),
        network_of(settings),
        images(side_px=side(settings)),
        Objective(settings),
    )
    found = SharpnessProbe(chosen, network, objective, side(settings))(x, network(x))
    agree(found, slow_reference(network, objective, chosen, x))
    assert all(values.unique().numel() == NUM_IMAGES for values in found.values())
    return found


MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch norm": {"norm": "batch"},
    "instance norm": {"norm": "instance"},
    "pooling": {"architecture": "vgg16-5"},
    "dense": {"latent": {"kind": "dense", "size": 7}},
    "ssim and l1": {"reconstruction": [{"loss": "ssim", "weight": 500}, {"loss": "l1"}]},
    "lpips": {"reconstruction": [{"loss": "lpips", "net": "squeeze", "weights": "random", "weight": 1000}]},
    "spectral norm": {"norm": "spectral"},
    "cbam": {"attention": {"kind": "cbam", "layers": [2, 3], "reduction": 1, "weight": 1}},
    "l1 sparsity": {"sparsity": [{"penalty": "l1", "layers": "everywhere"}]},
    "tilted": {"prior": {"kind": "tilted", "tau": 5}},
    "vq-vae": {"kind": "vq-vae", "codebook_size": 8},
}


@pytest.mark.parametrize("parameters", ["all", "encoder"])
@pytest.mark.parametrize("name", MODELS)
def test_every_image_is_as_in_a_loop_with_copies(name: str, parameters: str) -> None:
    settings = model(**MODELS[name])
    check(settings, parameters=parameters)


def test_encoder_alone_and_all_weights_differ() -> None:
    settings = model()
    norms = [check(settings, parameters=p)["gradient_norm"] for p in ("all", "encoder")]
    assert (norms[0] > norms[1]).all()


def test_short_steps_measure_the_gradient_alone() -> None:
    """Nearby the loss is a straight line that rises by ρ ‖g‖; a longer step sees the curvature."""
    short, long = check(model(), rho=1e-3), check(model(), rho=0.1)
    torch.testing.assert_close(short["sharpness"], 1e-3 * short["gradient_norm"], rtol=0.05, atol=0)
    assert ((long["sharpness"] / (0.1 * long["gradient_norm"]) - 1).abs() > 0.05).any()


def test_quadratic_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """½ wᵀ diag(1, 4) w at w = (1, 1) with ρ = 0.1, as in training: 0.4314282, times the image's own factor."""
    monkeypatch.setattr(SharpnessProbe, "_loss", lambda self, weights, image: image.mean() * half_square(weights["w"]))
    settings = model()
    probe = SharpnessProbe(Settings(rho=0.1), network_of(settings), Objective(settings), SIZE_PX)
    probe._weights = {"w": torch.ones(2)}
    x = torch.ones(3, 3, 4, 4) * torch.tensor([0.0, 1.0, 2.0])[:, None, None, None]
    found = probe(x, None)
    assert found["sharpness"].tolist() == pytest.approx([0, 0.4314282, 2 * 0.4314282], abs=2e-6)
    assert found["gradient_norm"].tolist() == pytest.approx([0, 17**0.5, 2 * 17**0.5])


def half_square(w: Tensor) -> Tensor:
    return 0.5 * (torch.tensor([1.0, 4.0]) * w.square()).sum()


# ── What else is going on ────────────────────────────────────────────────────────────────────────────────────────


def with_terms(settings: Model) -> Objective:
    """With a term on a recorded layer, and one of the whole batch that cannot be computed for one image."""
    objective = Objective(settings)
    activity = Term("activity", 3.0, lambda seen: seen.values["conv2"].flatten(1).sum(1), layers=("conv2",))
    pairs = Term("pairs", 1.0, lambda seen: pairwise(seen))
    objective._terms = objective._terms | {"activity": activity, "pairs": pairs}
    objective.layers = ("conv2",)
    return objective


def pairwise(seen: Pass) -> Tensor:
    """Needs two images at least, and looks at numbers: `torch.func` refuses that."""
    chosen = seen.mu[seen.mu.flatten(1).sum(1).argsort()[:2].tolist()]
    return (chosen[0] - chosen[1]).square().sum()


def test_terms_on_layers_count_and_those_of_the_whole_batch_do_not() -> None:
    settings = model()
    objective = with_terms(settings)
    alone = copy.copy(objective)
    alone._terms = {name: term for name, term in objective._terms.items() if name != "pairs"}
    network, x = network_of(settings), images()
    found = SharpnessProbe(Settings(), network, objective, SIZE_PX)(x, network(x))
    agree(found, slow_reference(network, alone, Settings(), x))
    plain = slow_reference(network, Objective(settings), Settings(), x)
    assert not torch.allclose(found["gradient_norm"], plain["gradient_norm"], rtol=1e-2)


def test_nothing_is_left_behind_and_recording_goes_on() -> None:
    """In inference mode, as extraction calls it: weights, gradients and recorded values are as they were."""
    settings = model(norm="batch")
    network, x = network_of(settings), images()
    probe = SharpnessProbe(Settings(), network, with_terms(settings), SIZE_PX)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.inference_mode(), record(network, "encoder", "post") as recorder:
        output = network(x + 0)
        values: Mapping[str, Tensor] = dict(recorder.values)
        found = probe(x + 0, output)
        assert all(recorder.values[name] is value for name, value in values.items())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    again = probe(x, network(x))
    assert all(torch.equal(again[name], value) for name, value in found.items())


def test_chunks_follow_from_the_network_and_bound_what_is_held() -> None:
    """Every image counts alone, whatever the block it came in."""
    chunks = {}
    for width in (0.125, 1.0, 2.0):
        settings = model(width=width)
        network = build(settings, SIZE_PX, seed=0).eval()
        probe = SharpnessProbe(Settings(), network, Objective(settings), SIZE_PX)
        num_bytes = 4 * sum(p.numel() for p in network.parameters())
        assert probe.chunk == 1 or 4 * probe.chunk * num_bytes <= 2**29
        chunks[width] = probe.chunk
    assert chunks[0.125] == 32 > chunks[1.0] > chunks[2.0] > 1

    settings, x = model(), images(7)
    network = network_of(settings)
    probe = SharpnessProbe(Settings(), network, Objective(settings), SIZE_PX)
    whole = probe(x, network(x))
    probe.chunk = 3
    for name, values in probe(x, network(x)).items():
        torch.testing.assert_close(values, whole[name], rtol=1e-4, atol=0)


def test_no_gradient_no_sharpness() -> None:
    settings = model()
    objective, network, x = Objective(settings), network_of(settings), images()
    term = objective._terms["reconstruction/l2"]
    objective._terms = {term.name: replace(term, function=lambda seen: 0 * seen.mu.flatten(1).sum(1))}
    found = SharpnessProbe(Settings(), network, objective, SIZE_PX)(x, network(x))
    assert found["sharpness"].tolist() == found["gradient_norm"].tolist() == [0] * NUM_IMAGES
