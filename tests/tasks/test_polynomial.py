"""Polynomial regression, whose hypergradient has a closed form."""

import pytest
import torch
from numpy.polynomial.legendre import legvander

import l2o
from tasks.polynomial import legendre, noisy_wave


@pytest.fixture
def problem():
    return noisy_wave(torch.Generator().manual_seed(0), degree=9)


def decays():
    return torch.linspace(-6, 0, 10, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("degree", [0, 1, 12])
def test_features_are_numpys_legendre_polynomials_scaled(degree):
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    scale = (2 * torch.arange(degree + 1, dtype=torch.float64) + 1).sqrt()
    torch.testing.assert_close(legendre(x, degree), torch.from_numpy(legvander(x.numpy(), degree)) * scale)


def test_the_closed_form_is_the_root_of_the_gradient(problem):
    weights = problem.closed_form(decays().detach())
    assert float(problem.gradient(weights, decays().detach()).norm()) < 1e-13


def test_the_gradient_is_that_of_the_penalised_loss(problem):
    weights = torch.linspace(-1, 1, 10, dtype=torch.float64, requires_grad=True)
    penalised = problem.loss(weights, problem.train) + 0.5 * (decays().exp() * weights.square()).sum()
    (expected,) = torch.autograd.grad(penalised, weights)
    torch.testing.assert_close(problem.gradient(weights, decays()), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_hypergradients_by_root_and_by_unrolling_equal_the_closed_form(problem, gradient):
    log_decay = decays()
    (expected,) = torch.autograd.grad(problem.loss(problem.closed_form(log_decay), problem.valid), log_decay)
    if gradient == "implicit":
        root = l2o.root(lambda w: problem.gradient(w, log_decay), problem.zero_weights(), adjoint=l2o.CG(tol=1e-12))
        weights = root.u
    else:
        step = lambda w: w - 0.2 * problem.gradient(w, log_decay)  # noqa: E731
        weights = l2o.fixed_point(step, problem.zero_weights(), gradient="unrolled", steps=20_000).u
    (found,) = torch.autograd.grad(problem.loss(weights, problem.valid), log_decay)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_the_test_points_have_no_noise_and_the_others_have():
    exact = noisy_wave(torch.Generator().manual_seed(0), noise=0.0)
    noisy = noisy_wave(torch.Generator().manual_seed(0), noise=0.5, sizes=(20_000, 10))
    wave = lambda x: torch.sin(torch.pi * x) + x / 2  # noqa: E731
    for points in (exact.train, exact.valid, noisy.test):
        torch.testing.assert_close(points.y, wave(points.x))
    noise = noisy.train.y - wave(noisy.train.x)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)  # 4 / √40,000


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="degree ≥ 1"):
        noisy_wave(torch.Generator(), degree=0)
