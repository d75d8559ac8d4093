"""Each reconstruction term against a slow reference, closed forms and its properties."""

from __future__ import annotations

import math
import warnings

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import lpips
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from torch import nn

from fluence.errors import ArtifactError, StudyError
from fluence.losses import Lpips, l1, l2, ssim, ssim_loss
from fluence.losses.networks import LPIPS_SMALLEST_PX

IMAGES = hnp.arrays("float64", (2, 2, 3, 12, 13), elements=st.floats(0, 1))  # (x and y, images, channels, H, W)
PIXEL_LOSSES = [l1, l2, ssim_loss]


def random_images(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ── L1 and L2 ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sums_worked_by_hand():
    x = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1)
    y = torch.tensor([0.5, 0.5, 0.0]).reshape(1, 3, 1, 1)
    assert l1(x, y).tolist() == [1.5]
    assert l2(x, y).tolist() == [1.25]


@given(IMAGES)
@settings(max_examples=20, deadline=None)
def test_sums_against_a_loop(values):
    x, y = torch.from_numpy(values)
    for image in range(2):
        differences = [float(a - b) for a, b in zip(x[image].flatten(), y[image].flatten(), strict=True)]
        assert l1(x, y)[image].item() == pytest.approx(sum(map(abs, differences)))
        assert l2(x, y)[image].item() == pytest.approx(sum(d * d for d in differences))


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
def test_identical_images_have_no_error(loss):
    x = random_images(3, 3, 16, 16)
    torch.testing.assert_close(loss(x, x), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
def test_one_number_for_each_image_and_images_apart(loss):
    x, y = random_images(4, 3, 16, 16), random_images(4, 3, 16, 16, seed=1)
    assert loss(x, y).shape == (4,)
    torch.testing.assert_close(loss(x, y)[2:3], loss(x[2:3], y[2:3]))


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
def test_the_last_channel_counts(loss):
    """Mistake: the last channel dropped."""
    x = random_images(1, 3, 16, 16)
    y = x.clone()
    y[:, -1] = 1 - y[:, -1]
    assert loss(x, y) > 0.01


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
def test_gradcheck(loss):
    x, y = random_images(2, 1, 11, 12), random_images(2, 1, 11, 12, seed=1)
    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), y))


# ── SSIM ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of one image [C, H, W], window by window, with weighted variances around the weighted means."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for channel in range(x.shape[0]):
        for i in range(x.shape[1] - 10):
            for j in range(x.shape[2] - 10):
                a, b = x[channel, i : i + 11, j : j + 11], y[channel, i : i + 11, j : j + 11]
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                covariance = (window * (a - mean_a) * (b - mean_b)).sum()
                values.append(
                    (2 * mean_a * mean_b + 0.0001) * (2 * covariance + 0.0009)
                    / ((mean_a**2 + mean_b**2 + 0.0001) * (var_a + var_b + 0.0009))
                )  # fmt: skip
    return float(np.mean(values))


@given(IMAGES)
@settings(max_examples=20, deadline=None)
def test_ssim_against_a_loop_and_its_properties(values):
    x, y = torch.from_numpy(values)
    found = ssim(x, y)
    expected = [slow_ssim(a, b) for a, b in zip(*values, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-10)
    assert (found.abs() <= 1 + 1e-12).all()
    torch.testing.assert_close(ssim(y, x), found)
    torch.testing.assert_close(ssim(x.flip(-1), y.flip(-1)), found)


@pytest.mark.parametrize("size", [(64, 64), (65, 40), (24, 130), (90, 107)])
def test_ssim_of_large_images_in_tiles_against_a_convolution(size):
    x, y = torch.rand((2, 2, 3, *size), dtype=torch.float64)
    position = torch.arange(11, dtype=torch.float64) - 5
    weights = (-position.square() / (2 * 1.5**2)).exp()
    window = (torch.outer(weights, weights) / weights.sum() ** 2)[None, None]

    def mean(images):
        return torch.nn.functional.conv2d(images.flatten(0, 1)[:, None], window)

    covariance = mean(x * y) - mean(x) * mean(y)
    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    luminance = (2 * mean(x) * mean(y) + 0.01**2) / (mean(x) ** 2 + mean(y) ** 2 + 0.01**2)
    expected = (luminance * (2 * covariance + 0.03**2) / (variances + 0.03**2)).reshape(2, -1).mean(1)
    torch.testing.assert_close(ssim(x, y), expected, rtol=1e-12, atol=1e-14)


def test_ssim_of_two_even_images_in_closed_form():
    """Without variance only the luminance term is left: (2ab + c₁) / (a² + b² + c₁)."""
    a, b = 0.2, 0.7
    x, y = (torch.full((1, 3, 20, 20), value, dtype=torch.float64) for value in (a, b))
    assert ssim(x, y).item() == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), rel=1e-9)


def test_ssim_of_an_image_and_its_negative_is_negative():
    x = random_images(1, 3, 32, 32)
    assert ssim(x, 1 - x) < 0


def test_ssim_in_float32_is_close_to_float64():
    x = random_images(2, 3, 64, 64)
    y = (x + 0.02 * random_images(2, 3, 64, 64, seed=1)).clamp(0, 1)
    torch.testing.assert_close(ssim(x.float(), y.float()).double(), ssim(x, y), rtol=0, atol=1e-5)


def test_ssim_refuses_images_smaller_than_its_window():
    assert ssim(torch.zeros(1, 3, 11, 11), torch.zeros(1, 3, 11, 11)).shape == (1,)
    with pytest.raises(StudyError, match=r"at least 11 × 11 px.*these have 10 × 64 px"):
        ssim(torch.zeros(1, 3, 10, 64), torch.zeros(1, 3, 10, 64))


# ── LPIPS ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def squeeze() -> Lpips:
    torch.set_num_threads(1)
    return Lpips("squeeze", "random")


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory):
    """torchvision's state dict of a trunk with random weights."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "trunk.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def slow_lpips(trunk: nn.Sequential, linear: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Zhang et al. 2018, eq. 1: features of unit length in the channels, squared differences, weights, means."""
    mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = (((2 * image - 1) - mean[:, None, None]) / std[:, None, None] for image in (x, y))
    total, taps = torch.zeros(len(x)), iter(linear)
    for index, layer in enumerate(trunk):
        x, y = layer(x), layer(y)
        if index in (1, 4, 7, 9, 10, 11, 12):  # the ReLU and the Fire modules of SqueezeNet that LPIPS taps
            unit_x, unit_y = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y))
            weights = next(taps).reshape(1, -1, 1, 1)
            total += (weights * (unit_x - unit_y) ** 2).sum(1).mean((1, 2))
    assert next(taps, None) is None
    return total


def test_lpips_against_the_paper_written_out(trunk_file):
    """Also the mistake: LPIPS fed [0, 1]."""
    model = torchvision.models.squeezenet1_1(weights=None)
    model.load_state_dict(torch.load(trunk_file, weights_only=True))
    ours = Lpips("squeeze", str(trunk_file))
    linear = [layer.model[-1].weight for layer in ours.network.lins]
    x, y = random_images(3, 3, 64, 64, dtype=torch.float32), random_images(3, 3, 64, 64, seed=1, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, y), slow_lpips(model.features.eval(), linear, x, y), rtol=1e-4, atol=1e-6)


def test_lpips_network_sees_images_from_minus_one_to_one(squeeze):
    """Mistake: LPIPS fed [0, 1]."""
    seen = []
    hook = squeeze.network.scaling_layer.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs))
    x = torch.zeros(1, 3, 32, 32)
    x[..., 16:] = 1
    squeeze(x, x.flip(-1))
    hook.remove()
    assert [(image.min().item(), image.max().item()) for image in seen] == [(-1, 1), (-1, 1)]


def test_lpips_equals_the_package_given_the_same_trunk(squeeze):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    theirs.net.load_state_dict(squeeze.network.net.state_dict())
    x, y = random_images(2, 3, 32, 32, dtype=torch.float32), random_images(2, 3, 32, 32, seed=1, dtype=torch.float32)
    assert torch.equal(squeeze(x, y), theirs(x, y, normalize=True).flatten())


def test_lpips_takes_the_originals_for_constants(squeeze):
    x, y = (random_images(2, 3, 32, 32, seed=seed, dtype=torch.float32).requires_grad_() for seed in (0, 1))
    squeeze(x, y).sum().backward()
    assert x.grad.abs().sum() > 0
    assert y.grad is None


def test_lpips_has_a_gradient_where_all_channels_are_silent(trunk_file, tmp_path):
    """The package's own is NaN there: the root of a sum of squares has no slope at 0."""
    state = torch.load(trunk_file, weights_only=True)
    state["features.0.bias"] = torch.full_like(state["features.0.bias"], -1e3)
    torch.save(state, tmp_path / "silent.pth")
    silent = Lpips("squeeze", str(tmp_path / "silent.pth"))
    x = random_images(1, 3, 32, 32, dtype=torch.float32).requires_grad_()
    silent(x, torch.zeros_like(x)).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize(("net", "smallest_px"), LPIPS_SMALLEST_PX.items())
def test_lpips_refuses_images_that_are_too_small_and_no_others(net, smallest_px):
    network = Lpips(net, "random")
    x = torch.zeros(1, 3, smallest_px, smallest_px)
    assert network(x, x).tolist() == [0]
    with pytest.raises(StudyError, match=rf"LPIPS \({net}\) needs images of at least {smallest_px} × {smallest_px} px"):
        network(x[..., 1:], x[..., 1:])


def test_lpips_of_identical_images_is_zero_and_of_others_positive(squeeze):
    x = random_images(2, 3, 32, 32, dtype=torch.float32)
    assert squeeze(x, x).tolist() == [0, 0]
    assert (squeeze(x, 1 - x) > 0).all()


def test_lpips_stays_frozen_when_its_parent_trains(squeeze):
    """Mistake: the feature network of a loss back in train mode, its statistics drifting."""
    parent = nn.ModuleDict({"loss": squeeze}).train()
    assert parent.training
    assert not any(module.training for module in squeeze.modules())
    assert not any(parameter.requires_grad for parameter in squeeze.parameters())
    before = {name: value.clone() for name, value in squeeze.state_dict().items()}
    x = random_images(2, 3, 32, 32, dtype=torch.float32).requires_grad_()
    first = squeeze(x, torch.zeros_like(x))
    first.sum().backward()
    assert torch.equal(squeeze(x, torch.zeros_like(x)), first)  # no dropout
    assert all(torch.equal(value, before[name]) for name, value in squeeze.state_dict().items())
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0


def test_random_trunk_is_reproducible_named_and_leaves_global_random_numbers(squeeze):
    torch.manual_seed(9)
    state = torch.get_rng_state()
    again = Lpips("squeeze", "random")
    assert torch.equal(torch.get_rng_state(), state)
    assert again.name == "lpips_squeeze_random"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in squeeze.state_dict().items())


def test_weights_file_is_loaded(trunk_file, squeeze):
    """Numbers as those of the network in the file: `slow_lpips` above. Here: not those of a random trunk."""
    x, y = random_images(2, 3, 32, 32, dtype=torch.float32), random_images(2, 3, 32, 32, seed=1, dtype=torch.float32)
    first, second = Lpips("squeeze", str(trunk_file)), Lpips("squeeze", str(trunk_file))
    assert first.name == "lpips_squeeze"
    assert torch.equal(first(x, y), second(x, y))
    assert not torch.equal(first(x, y), squeeze(x, y))


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_missing_weights_are_an_error_and_never_random(net, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(StudyError, match="needs the ImageNet weights"):
        Lpips(net, "imagenet")


def test_weights_of_another_network_are_an_error(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(ArtifactError, match=r"other\.pth cannot be read as torchvision's weights .*KeyError"):
        Lpips("squeeze", str(path))


def test_damaged_weights_are_an_error(tmp_path, trunk_file):
    path = tmp_path / "damaged.pth"
    path.write_bytes(trunk_file.read_bytes()[: math.floor(trunk_file.stat().st_size / 2)])
    with pytest.raises(ArtifactError, match=r"damaged\.pth cannot be read"):
        Lpips("squeeze", str(path))
