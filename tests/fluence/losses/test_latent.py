"""The KL divergence from the prior."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.distributions import Normal, kl_divergence

from fluence.losses import kl_to_standard_normal

LATENTS = hnp.arrays("float64", (2, 3, 5), elements=st.floats(-5, 5))  # (μ and ln σ², images, units)


def test_case_worked_by_hand():
    """μ = (1, 0), σ² = (1, e): ½ (1 + 1 − 1 − 0) + ½ (0 + e − 1 − 1)."""
    mu, logvar = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    assert kl_to_standard_normal(mu, logvar).item() == pytest.approx(0.5 + (math.e - 2) / 2, rel=1e-12)


@given(LATENTS)
@settings(deadline=None)  # torch is slow at its first call
def test_against_torch_distributions(values):
    mu, logvar = torch.from_numpy(values)
    slow = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_to_standard_normal(mu, logvar), slow)


@given(LATENTS)
@settings(deadline=None)  # torch is slow at its first call
def test_never_negative_and_zero_for_the_prior_alone(values):
    mu, logvar = torch.from_numpy(values)
    assert (kl_to_standard_normal(mu, logvar) >= 0).all()
    assert torch.equal(kl_to_standard_normal(0 * mu, 0 * logvar), torch.zeros(3, dtype=torch.float64))


def test_sums_over_latent_maps_and_keeps_images_apart():
    mu, logvar = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = kl_to_standard_normal(mu, logvar)
    assert whole.shape == (4,)
    torch.testing.assert_close(whole[1:2], kl_to_standard_normal(mu[1:2], logvar[1:2]))
    torch.testing.assert_close(whole, kl_to_standard_normal(mu.flatten(1), logvar.flatten(1)))


def test_gradcheck():
    mu, logvar = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(kl_to_standard_normal, (mu.requires_grad_(), logvar.requires_grad_()))
