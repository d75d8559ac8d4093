"""What a study will cost: sizes against what is really built and written, times against arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fluence.models import build
from fluence.study import Study
from jobs.estimate import estimate, measure_speed, model_cost

SIZE = 32


def study(**changes: object) -> Study:
    faces = {"kind": "synthetic"}
    settings: dict[str, object] = {
        "name": "tiny",
        "data": {"datasets": {"a": faces, "b": faces}, "training": "a", "rated": "b", "image_size_px": SIZE},
        "models": {"m": {"kind": "vae", "width": 0.25, "training": {"epochs": 4}}},
        "training": {"validation_fraction": 0.25},
        "record": {"reference_images": 5},
        "grid": {"groups": ["all", "x-female", "x-male"], "seeds": [0, 1]},
    }
    return Study.model_validate(settings | changes)


IMAGES = {"all": 100, "x-female": 40, "x-male": 3}


@pytest.mark.parametrize("kind", [{"kind": "vae"}, {"kind": "vae", "prior": {"kind": "tilted"}}, {"kind": "vq-vae"}])
def test_parameters_and_units_are_those_of_the_network(kind: dict[str, object]) -> None:
    model = study(models={"m": kind | {"width": 0.25}}).models["m"]
    cost, network = model_cost(study(), model), build(model, SIZE, seed=0)
    assert cost.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert cost.num_units == sum(int(np.prod(layer.shape)) for layer in network.recordable)


def test_histograms_of_large_layers_take_space() -> None:
    """8 maps of 64 × 64 are 32,768 units; the layers behind have fewer than 16,384, or exactly as many."""
    small = study()
    large = small.model_copy(update={"data": small.data.model_copy(update={"image_size_px": 128})})
    units = [layer.num_units for layer in build(large.models["m"], 128, seed=0).recordable]
    assert units[0] == 32_768
    assert min(units) < 16_384
    assert model_cost(large, large.models["m"]).num_bins == sum(number // 3 for number in units if number >= 16_384)
    assert model_cost(small, small.models["m"]).num_bins == 0


def test_activations_that_are_not_stored_take_no_space() -> None:
    large = study(record={"store": "metrics"})
    large = large.model_copy(update={"data": large.data.model_copy(update={"image_size_px": 128})})
    units = [layer.num_units for layer in build(large.models["m"], 128, seed=0).recordable]
    cost = model_cost(large, large.models["m"])
    assert cost.num_units == sum(number for number in units if number < 16_384)
    assert cost.num_bins == sum(number // 3 for number in units if number >= 16_384)


def test_only_recorded_layers_count() -> None:
    chosen = study(record={"layers": ["conv1"]})
    assert model_cost(chosen, chosen.models["m"]).num_units == 8 * (SIZE // 2) ** 2


def test_arithmetic_of_the_encoder_by_hand() -> None:
    """Two flops for each multiply-add: kernel 9 × channels in × channels out × positions; then the decoder's."""
    network = build(study().models["m"], SIZE, seed=0)
    flops = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal flops
        flops += 2 * module.weight[0].numel() * output[0].numel()  # type: ignore[index, operator]

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    network(torch.zeros(1, 3, SIZE, SIZE))
    cost = model_cost(study(), study().models["m"])
    assert cost.forward_gflops == pytest.approx(flops / 1e9)
    assert cost.training_gflops == pytest.approx(3 * flops / 1e9)


@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "vgg19-10", "norm": "batch"},
        {"architecture": "alexnet-10", "upsampling": "transposed", "residual": True},
        {"architecture": "alexnet-5", "width": 1, "pretrained": "/no/such/file.pth"},
        {"norm": "spectral", "separable": {"parts": ["encoder", "decoder"]}, "upsampling": "transposed"},
        {"activation": "lwta", "upsampling": "bilinear"},
        {"architecture": "small-10", "upsampling": "nearest", "latent": {"kind": "dense", "size": 8}},
    ],
    ids=str,
)
def test_arithmetic_of_other_networks_by_hand(settings: dict[str, object]) -> None:
    """A convolution multiplies once for each weight and position, of its input where it is transposed."""
    chosen = study(models={"m": {"kind": "vae", "width": 0.25} | settings})
    network = build(chosen.models["m"], SIZE, seed=0, pretrained=False).eval()
    layers = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)
    flops = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal flops
        where = inputs[0] if isinstance(module, torch.nn.ConvTranspose2d) else output
        flops += 2 * module.weight.numel() * (where[0].numel() // where.shape[1])  # type: ignore[operator, union-attr]

    for module in network.modules():
        if isinstance(module, layers):
            module.register_forward_hook(count)
    network(torch.zeros(1, 3, SIZE, SIZE))
    cost = model_cost(chosen, chosen.models["m"])
    assert cost.forward_gflops == pytest.approx(flops / 1e9)
    assert cost.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert cost.num_units == sum(layer.num_units for layer in network.recordable)


def test_a_perceptual_loss_costs_its_trunk() -> None:
    lpips = study(models={"m": {"kind": "vae", "width": 0.25, "reconstruction": [{"loss": "lpips"}]}})
    plain, heavy = model_cost(study(), study().models["m"]), model_cost(lpips, lpips.models["m"])
    assert heavy.forward_gflops == plain.forward_gflops
    assert heavy.training_gflops - plain.training_gflops == pytest.approx(3 * 610e3 * SIZE**2 / 1e9)


def test_a_network_of_dfc_costs_what_it_computes() -> None:
    """Three passes through VGG19 up to relu2_1, counted by hand; of another model, through its encoder."""
    plain = model_cost(study(), study().models["m"]).training_gflops
    loss = {"loss": "dfc", "network": {"kind": "vgg19", "weights": "/not/there"}, "layers": ["relu1_1", "relu2_1"]}
    vgg = study(models={"m": {"kind": "vae", "width": 0.25, "reconstruction": [loss]}})
    convolutions = [(3, 64, SIZE), (64, 64, SIZE), (64, 128, SIZE // 2)]
    flops = sum(2 * 9 * before * after * side**2 for before, after, side in convolutions)
    assert model_cost(vgg, vgg.models["m"]).training_gflops - plain == pytest.approx(3 * flops / 1e9)

    loss = {"loss": "dfc", "network": {"kind": "model", "model": "teacher"}}
    both = study(
        models={
            "teacher": {"kind": "vae", "width": 0.5},
            "m": {"kind": "vae", "width": 0.25, "reconstruction": [loss]},
        }
    )
    teacher = model_cost(both, both.models["teacher"]).forward_gflops
    assert plain < model_cost(both, both.models["m"]).training_gflops < plain + 3 * teacher


def test_gigaflops_and_hours_by_hand() -> None:
    cost = model_cost(study(), study().models["m"])
    found = estimate(study(), IMAGES, 10, gflops_per_s=2.0)
    assert [(run.group, run.num_images) for run in found.runs] == [
        ("all", 100),
        ("x-female", 40),
    ]  # x-male is too small
    gflops = 4 * (75 * cost.training_gflops + 25 * cost.forward_gflops) + 15 * cost.forward_gflops
    assert found.runs[0].gflops == pytest.approx(gflops)
    assert found.runs[0].hours == pytest.approx(gflops / 2 / 3600)
    assert found.total_hours == pytest.approx(2 * sum(run.hours for run in found.runs))


def test_disk_by_hand() -> None:
    cost = model_cost(study(), study().models["m"])
    found = estimate(study(), IMAGES, 10, gflops_per_s=1.0)
    num_runs = 2 * 2
    assert found.disk_gb["packed"] == pytest.approx(110 * SIZE * SIZE * 3 / 1e9)
    assert found.disk_gb["activations"] == pytest.approx(num_runs * cost.num_units * 15 * 2 / 1e9)
    assert found.disk_gb["histograms"] == pytest.approx(num_runs * cost.num_bins * 15 * 6 / 1e9)
    assert found.disk_gb["checkpoints"] == pytest.approx(num_runs * cost.num_parameters * 4 * 7 / 1e9)
    assert found.total_gb == pytest.approx(sum(found.disk_gb.values()))


def test_one_data_set_in_two_roles_is_packed_once() -> None:
    data = {"datasets": {"a": {"kind": "synthetic"}}, "training": "a", "rated": "a", "image_size_px": SIZE}
    found = estimate(study(data=data), IMAGES, 100, gflops_per_s=1.0)
    assert found.disk_gb["packed"] == pytest.approx(100 * SIZE * SIZE * 3 / 1e9)


def test_an_untrained_network_costs_its_extraction_only() -> None:
    untrained = study(models={"m": {"kind": "vae", "width": 0.25, "training": {"epochs": 0}}})
    cost = model_cost(untrained, untrained.models["m"])
    assert estimate(untrained, IMAGES, 10, 1.0).runs[0].gflops == pytest.approx(15 * cost.forward_gflops)


def test_the_speed_of_this_machine_is_plausible_and_timing_it_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    speed, device = measure_speed()
    assert 0.05 < speed < 1e6
    assert torch.cuda.is_available() == (device != "cpu")
    assert torch.equal(state, torch.get_rng_state())
