"""The targets of the flow benchmark against torch's own distributions: normalised, to the nat."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from benchmarks.flow_fits import BEND, Bent, Linear, lattice


def gaussian(target: Linear) -> MultivariateNormal:
    dim = math.prod(target.shape)
    mean = torch.zeros(dim, dtype=torch.float64)
    return MultivariateNormal(mean, precision_matrix=target.precision())


@pytest.mark.parametrize("dim", [8, 32, 128])
def test_the_linear_posterior_is_the_gaussian_that_it_says(dim: int):
    target = Linear(dim)
    z = gaussian(target).sample((5,))
    expected = gaussian(target).log_prob(z)
    assert torch.allclose(target.log_prob(z), expected, rtol=1e-6)  # its kernel is float32


def test_the_bent_target_is_the_straight_one_seen_through_its_chain():
    """Built element by element from draws of the Gaussian: the chain's own inverse."""
    target = Bent(32)
    w = gaussian(target.straight).sample((4,))
    z = w.clone()
    z[:, 31] += BEND  # cos 0: the first of the chain has nothing before it
    for i in reversed(range(31)):
        z[:, i] += BEND * torch.cos(3 * z[:, i + 1])
    expected = gaussian(target.straight).log_prob(w)
    assert torch.allclose(target.log_prob(z), expected, rtol=1e-6)
    jacobian = torch.autograd.functional.jacobian(lambda t: target.straightened(t[None])[0], z[0])
    assert jacobian.det().item() == pytest.approx(1.0)
    assert not torch.allclose(jacobian, torch.eye(32, dtype=torch.float64))


def test_the_bent_target_is_not_gaussian():
    """Its log-density is no quadratic along a line: third differences do not vanish."""
    target = Bent(32)
    line = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * torch.ones(32).double()
    straight, bent = target.straight.log_prob(line), target.log_prob(line)
    assert straight.diff(n=3).abs().max() < 1e-4
    assert bent.diff(n=3).abs().max() > 1.0


@pytest.mark.parametrize(
    ("dim", "shape"),
    [(32, (8, 2, 2)), (128, (8, 4, 4)), (512, (8, 8, 8)), (1024, (16, 8, 8)), (4096, (16, 16, 16))],
)
def test_latents_are_laid_out_as_maps(dim: int, shape: tuple[int, int, int]):
    assert lattice(dim) == shape


def test_latents_that_fill_no_maps_are_refused():
    with pytest.raises(ValueError, match="33 latents"):
        lattice(33)
