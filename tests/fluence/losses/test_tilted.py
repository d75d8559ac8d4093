"""The tilted prior: its normaliser and exact KL divergence are here, as references for the term that is trained."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import gammaln, hyp1f1, logsumexp, xlogy
from scipy.stats import chi, ncx2

from fluence.losses import kl_to_standard_normal, kl_to_tilted
from fluence.losses.tilted import best_radius, outward_pull


def log_normaliser(tau: float, size: int) -> float:
    """ln Z_τ = ln E[e^(τ‖z‖)] for z ~ N(0, I), as its power series: all addends are positive, and none overflows.

    Its even and odd terms are the two confluent hypergeometric functions of Floto et al. 2023.
    """
    k = np.arange(int(4 * tau * (tau + math.sqrt(size))) + 200)
    moments = k / 2 * math.log(2) + gammaln((size + k) / 2) - gammaln(size / 2)  # ln E‖z‖^k
    return float(logsumexp(xlogy(k, tau) + moments - gammaln(k + 1)))


def expected_norm(radius: float, size: int) -> float:
    """E‖z‖ for z ~ N(μ, I), ‖μ‖ = radius: ‖z‖² has a noncentral χ² distribution."""
    middle = math.sqrt(radius**2 + size)
    return quad(lambda x: ncx2.sf(x * x, size, radius**2), 0, middle + 12, points=[middle], limit=200)[0]


def exact_kl(radius: float, tau: float, size: int) -> float:
    """KL(N(μ, I) ‖ p) = ln Z_τ − τ E‖z‖ + ½ ‖μ‖² for p(z) = e^(τ‖z‖) N(z; 0, I) / Z_τ."""
    return log_normaliser(tau, size) - tau * expected_norm(radius, size) + radius**2 / 2


CASES = [(tau, size) for size in (1, 2, 3) for tau in (0.0, 0.7, 3.0)]


@pytest.mark.parametrize(("tau", "size"), CASES)
def test_normaliser_by_numerical_integration_and_by_the_papers_formula(tau, size):
    mass = quad(lambda norm: math.exp(tau * norm) * chi.pdf(norm, size), 0, 30, points=[tau + 1])[0]
    assert log_normaliser(tau, size) == pytest.approx(math.log(mass), abs=1e-8)
    odd = math.sqrt(2) * tau * math.exp(gammaln((size + 1) / 2) - gammaln(size / 2))
    paper = hyp1f1(size / 2, 0.5, tau**2 / 2) + odd * hyp1f1((size + 1) / 2, 1.5, tau**2 / 2)
    assert log_normaliser(tau, size) == pytest.approx(math.log(paper), abs=1e-10)


@pytest.mark.parametrize(("tau", "size"), CASES)
def test_exact_kl_by_numerical_integration(tau, size):
    """∫ q ln(q/p) on a grid, in as many dimensions as there are."""
    radius, half, step = 1.3, 7.5, {1: 0.01, 2: 0.05, 3: 0.15}[size]
    axis = np.arange(-half, half, step)
    z = np.stack(np.meshgrid(*[axis] * size, indexing="ij"), axis=-1)
    log_normal = -0.5 * (z**2).sum(-1) - size / 2 * math.log(2 * math.pi)
    mean = radius * np.eye(size)[0]
    log_q = -0.5 * ((z - mean) ** 2).sum(-1) - size / 2 * math.log(2 * math.pi)
    log_p = tau * np.linalg.norm(z, axis=-1) + log_normal - log_normaliser(tau, size)
    slow = (np.exp(log_q) * (log_q - log_p)).sum() * step**size
    assert exact_kl(radius, tau, size) == pytest.approx(slow, abs=2e-5)


@pytest.mark.parametrize(("radius", "tau", "size"), [(4.0, 6.0, 20), (0.0, 3.0, 100), (30.0, 40.0, 784)])
def test_exact_kl_by_monte_carlo(radius, tau, size):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20_000, size))
    z[:, 0] += radius
    log_ratio = -0.5 * ((z - radius * np.eye(size)[0]) ** 2).sum(1) + 0.5 * (z**2).sum(1)
    log_ratio += log_normaliser(tau, size) - tau * np.linalg.norm(z, axis=1)
    error = log_ratio.std() / math.sqrt(len(z))
    assert exact_kl(radius, tau, size) == pytest.approx(log_ratio.mean(), abs=4 * error)


@pytest.mark.parametrize(
    ("tau", "size"), [(0.0, 4), (1.0, 1), (3.0, 2), (15.0, 10), (15.0, 64), (9.0, 64), (30.0, 784)]
)
def test_best_radius_is_where_the_exact_kl_is_least(tau, size):
    radius = best_radius(tau, size)
    slow = minimize_scalar(exact_kl, bounds=(0, tau + 1), args=(tau, size), method="bounded", options={"xatol": 1e-7})
    assert radius == pytest.approx(slow.x, abs=2e-3)
    assert exact_kl(radius, tau, size) <= slow.fun + 1e-8


@pytest.mark.parametrize("size", [1, 2, 16, 784])
@pytest.mark.parametrize("radius", [0.0, 0.5, 4.0, 25.0])
def test_pull_is_the_slope_of_the_expected_norm(radius, size):
    """And hyp1f1's, where that is to be trusted: of E‖z‖ itself it says infinity from some hundred latents on."""
    front = math.sqrt(2) * math.exp(gammaln((size + 1) / 2) - gammaln(size / 2)) / size
    assert outward_pull(radius, size) == pytest.approx(front * hyp1f1(0.5, size / 2 + 1, -(radius**2) / 2), rel=1e-9)
    if radius:
        step = 1e-3
        slope = (expected_norm(radius + step, size) - expected_norm(radius - step, size)) / (2 * step)
        assert radius * outward_pull(radius, size) == pytest.approx(slope, abs=1e-4)


def test_by_hand():
    """In one dimension E|z| has the slope erf(‖μ‖/√2); at 0 it pulls with √(2/π), so that τ ≤ √(π/2) has no shell."""
    assert outward_pull(0.0, 1) == pytest.approx(math.sqrt(2 / math.pi))
    assert outward_pull(2.0, 1) == pytest.approx(math.erf(math.sqrt(2)) / 2)
    assert best_radius(math.sqrt(math.pi / 2) - 1e-6, 1) == 0
    assert best_radius(math.sqrt(math.pi / 2) + 1e-2, 1) > 0
    mu = torch.tensor([[3.0, 4.0]]).double()
    assert kl_to_tilted(mu, 8.0).item() == pytest.approx((5 - best_radius(8.0, 2)) ** 2 / 2)
    assert best_radius(8.0, 2) == pytest.approx(math.sqrt(64 - 1), abs=2e-3)  # √(τ² − size + 1) for small sizes


@pytest.mark.parametrize("size", [1, 5, 4096])
def test_without_tilt_it_is_the_standard_normal(size):
    mu = torch.randn(3, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(kl_to_tilted(mu, 0.0), kl_to_standard_normal(mu, torch.zeros_like(mu)))


@pytest.mark.parametrize("tau", [1.0, 60.0, 70.0, 1000.0])
def test_large_latents_do_not_overflow(tau):
    """Z_τ itself is e^2451 at size 4096 and τ = 100: nothing computes it."""
    radius = best_radius(tau, 4096)
    assert radius == pytest.approx(math.sqrt(max(tau**2 - 4096, 0)), abs=0.05)
    mu = torch.full((2, 4096), 100.0, requires_grad=True)
    value = kl_to_tilted(mu, tau)
    value.sum().backward()
    assert value.tolist() == pytest.approx([(6400 - radius) ** 2 / 2] * 2, rel=1e-6)
    assert torch.isfinite(mu.grad).all()


@pytest.mark.parametrize(
    ("tau", "size", "least", "most"), [(15, 10, 0.94, 0.97), (15, 64, 0.66, 0.76), (9, 64, 0.09, 0.35)]
)
def test_how_close_the_quadratic_is(tau, size, least, most):
    """Within 3 of the best radius, the share of ½ (‖μ‖ − γ*)² that the exact divergence rises by: docs/models.md."""
    best = best_radius(tau, size)
    floor = exact_kl(best, tau, size)
    shares = [(exact_kl(best + d, tau, size) - floor) / (d**2 / 2) for d in (-3, -1, 1, 3)]
    assert least < min(shares)
    assert max(shares) < most
    assert max(shares) < 1  # it never claims too little


def test_gradcheck_and_the_gradient_at_the_origin():
    mu = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl_to_tilted(x, 5.0), (mu,))
    zero = torch.zeros(1, 4, requires_grad=True)
    kl_to_tilted(zero, 5.0).sum().backward()
    assert torch.equal(zero.grad, torch.zeros(1, 4))
