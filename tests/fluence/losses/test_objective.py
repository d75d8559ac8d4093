"""The objective adds up what the settings name, and nothing else."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from fluence.errors import StudyError
from fluence.losses import (
    Lpips,
    Objective,
    effective_beta,
    kl_to_standard_normal,
    l1,
    l2,
    per_image_errors,
    ssim,
    ssim_loss,
)
from fluence.study import VaeModel


class Output(NamedTuple):
    reconstruction: torch.Tensor
    mu: torch.Tensor
    logvar: torch.Tensor
    extras: dict[str, torch.Tensor]
    z: torch.Tensor = torch.zeros(4, 5)


def vae(*terms: dict, kl_weight: float = 1.0) -> VaeModel:
    return VaeModel.model_validate({"kind": "vae", "reconstruction": terms, "kl_weight": kl_weight})


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def output(images) -> Output:
    generator = torch.Generator().manual_seed(1)
    mu, logvar = torch.randn(2, 4, 5, generator=generator)
    return Output(torch.rand(images.shape, generator=generator).requires_grad_(), mu.requires_grad_(), logvar, {})


def test_weighted_sum_of_the_terms(images, output):
    objective = Objective(vae({"loss": "l2", "weight": 2}, {"loss": "ssim", "weight": 1000}, kl_weight=3))
    total, terms = objective(output, images)
    kl = kl_to_standard_normal(output.mu, output.logvar)
    assert list(terms) == ["reconstruction/l2", "reconstruction/ssim", "kl", "loss"]
    torch.testing.assert_close(terms["reconstruction/l2"], l2(output.reconstruction, images).detach())
    torch.testing.assert_close(terms["reconstruction/ssim"], ssim_loss(output.reconstruction, images).detach())
    torch.testing.assert_close(terms["kl"], kl.detach())
    expected = 2 * l2(output.reconstruction, images) + 1000 * ssim_loss(output.reconstruction, images) + 3 * kl
    torch.testing.assert_close(total, expected)
    assert torch.equal(terms["loss"], total.detach())
    assert {tuple(value.shape) for value in terms.values()} == {(4,)}


def test_terms_are_detached_and_the_total_is_not(images, output):
    total, terms = Objective(vae({"loss": "l1"}))(output, images)
    assert not any(value.requires_grad for value in terms.values())
    total.mean().backward()
    assert output.reconstruction.grad.abs().sum() > 0
    assert output.mu.grad.abs().sum() > 0


def test_the_kl_term_is_added(images, output):
    """Mistakes: no KL to the prior; a penalty computed and never added."""
    without, _ = Objective(vae({"loss": "l2"}, kl_weight=0))(output, images)
    for scale in (0.0, 0.25, 1.0):
        total, terms = Objective(vae({"loss": "l2"}, kl_weight=4))(output, images, kl_scale=scale)
        torch.testing.assert_close(total, without + 4 * scale * terms["kl"])


def test_training_and_validation_have_the_same_weights(images, output):
    """Mistake: best checkpoint chosen by another weighting of the loss than training's."""
    objective = Objective(vae({"loss": "l1"}, {"loss": "lpips", "net": "squeeze", "weights": "random", "weight": 9}))
    training, validation = objective.train()(output, images)[0], objective.eval()(output, images)[0]
    assert torch.equal(training, validation)


def test_lpips_is_named_random_and_stays_frozen(images, output):
    objective = Objective(vae({"loss": "lpips", "net": "squeeze", "weights": "random", "weight": 2}, kl_weight=0))
    objective.train()
    total, terms = objective(output, images)
    assert list(terms) == ["reconstruction/lpips_squeeze_random", "kl", "loss"]
    torch.testing.assert_close(total, 2 * Lpips("squeeze", "random")(output.reconstruction, images))
    assert not any(module.training for module in objective.networks.modules() if module is not objective.networks)
    assert not any(parameter.requires_grad for parameter in objective.parameters())


def test_autocast_changes_nothing(images, output):
    objective = Objective(vae({"loss": "l2"}, {"loss": "ssim"}))
    expected, _ = objective(output, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = objective(output, images)
    assert torch.equal(found, expected)


def test_half_precision_is_summed_in_float32(images):
    white = Output(
        torch.ones(4, 3, 256, 256, dtype=torch.float16), torch.full((4, 5), 300.0).half(), torch.zeros(4, 5), {}
    )
    total, terms = Objective(vae({"loss": "l2"}))(white, torch.zeros(4, 3, 256, 256).half())
    assert total.dtype == torch.float32
    assert terms["reconstruction/l2"].tolist() == [3 * 256 * 256] * 4
    assert terms["kl"].tolist() == [5 * 300**2 / 2] * 4


def test_a_term_listed_twice_is_refused():
    with pytest.raises(StudyError, match="reconstruction/l2 is listed twice"):
        Objective(vae({"loss": "l2"}, {"loss": "l2", "weight": 2}))


def test_missing_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(StudyError, match=r"vgg16-397923af\.pth"):
        Objective(vae({"loss": "lpips"}))


@pytest.mark.parametrize(
    ("terms", "kl_weight", "expected"),
    [
        ([{"loss": "l2"}], 1, 1),
        ([{"loss": "l1", "weight": 4}], 2, 0.5),
        ([{"loss": "ssim", "weight": 1000}], 1, 3 * 64 * 64 / 1000),
        ([{"loss": "lpips", "weight": 3 * 64 * 64}], 1, 1),
        ([{"loss": "l2"}, {"loss": "ssim", "weight": 3 * 64 * 64}], 1, 0.5),
        ([{"loss": "l2"}], 0, 0),
    ],
)
def test_effective_beta(terms, kl_weight, expected):
    assert effective_beta(vae(*terms, kl_weight=kl_weight), 64) == pytest.approx(expected)


def test_effective_beta_by_its_definition():
    """A mean of squared differences with weight w has its minimum where Σ + β_eff · KL has."""
    num_values, weight, beta, squares, kl = 3 * 32 * 32, 50.0, 0.3, 123.0, 7.0
    mean_loss = weight * squares / num_values + beta * kl
    sum_loss = squares + effective_beta(vae({"loss": "ssim", "weight": weight}, kl_weight=beta), 32) * kl
    assert mean_loss == pytest.approx(weight / num_values * sum_loss)


def test_per_image_errors(images, output):
    network = Lpips("squeeze", "random")
    errors = per_image_errors(images, output.reconstruction, network)
    assert list(errors) == ["l1_error", "l2_error", "ssim_error", "lpips_error"]
    assert all(value.shape == (4,) and value.dtype == torch.float64 for value in errors.values())
    assert not any(value.requires_grad for value in errors.values())
    x, y = output.reconstruction.detach().double(), images.double()
    torch.testing.assert_close(errors["l1_error"], l1(x, y) / 3072)
    torch.testing.assert_close(
        errors["l2_error"], torch.stack([((a - b) ** 2).mean() for a, b in zip(x, y, strict=True)])
    )
    torch.testing.assert_close(errors["ssim_error"], 1 - ssim(x, y))
    torch.testing.assert_close(errors["lpips_error"], network(output.reconstruction, images).detach().double())


def test_per_image_errors_without_a_network(images):
    errors = per_image_errors(images, images)
    assert list(errors) == ["l1_error", "l2_error", "ssim_error"]
    for value in errors.values():
        torch.testing.assert_close(value, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
