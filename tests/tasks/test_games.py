"""Min–max problems through `fixed_point`: closed forms of the iterates, the rates and the gradients."""

import pytest
import torch

import l2o
from l2o.saddle import Saddle, descent_ascent, extragradient, gradient_field
from tasks.games import random_game


@pytest.fixture
def game():
    return random_game(4, 0.5, torch.Generator().manual_seed(0))


def origin(game):
    return Saddle(torch.zeros_like(game.x), torch.zeros_like(game.y))


def matrices(game, step_size):
    """The two methods on z − z* as matrices: I − ηM and I − ηM + η²M², M = [[0, A], [−Aᵀ, 0]]."""
    A, zero = game.matrix, torch.zeros_like(game.matrix)
    M = step_size * torch.cat([torch.cat([zero, A], 1), torch.cat([-A.T, zero], 1)])
    eye = torch.eye(len(M), dtype=M.dtype)
    return eye - M, eye - M + M @ M


def run(make, game, step_size, steps):
    end = l2o.fixed_point(make(gradient_field(game.payoff), step_size), origin(game), gradient=None, steps=steps).u
    return torch.cat([end.x - game.x, end.y - game.y])


@pytest.mark.parametrize(("make", "number"), [(descent_ascent, 0), (extragradient, 1)])
def test_thirty_steps_equal_the_power_of_the_matrix(game, make, number):
    power = torch.linalg.matrix_power(matrices(game, 0.6)[number], 30)
    torch.testing.assert_close(run(make, game, 0.6, 30), power @ -torch.cat([game.x, game.y]), rtol=1e-10, atol=1e-12)


def test_the_stated_rates_are_the_spectral_radii(game):
    for rate, matrix in zip(game.rates(0.6), matrices(game, 0.6), strict=True):
        assert rate == pytest.approx(float(torch.linalg.eigvals(matrix).abs().max()), rel=1e-12)


def test_a_bilinear_game_of_numbers_has_the_known_rates():
    """σ = 1, η = ½: every step of descent–ascent multiplies the distance by √1.25, one of extragradient by √0.8125."""
    field = gradient_field(lambda x, y: x * y)
    start = Saddle(torch.tensor(1.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64))
    for make, square in ((descent_ascent, 1.25), (extragradient, 1 - 0.25 + 0.0625)):
        after = make(field, 0.5)(start)
        assert float(after.x**2 + after.y**2) == pytest.approx(5 * square, rel=1e-14)


def test_descent_ascent_diverges_where_extragradient_converges(game):
    distances = [float(run(make, game, 0.5, 400).norm()) for make in (descent_ascent, extragradient)]
    begun = float(game.distance(*origin(game)))
    assert distances[0] > 1e6 * begun and distances[1] < 1e-4 * begun


def test_fixed_point_refuses_descent_ascent_and_differentiates_the_saddle_point_of_extragradient(game):
    """x* = A⁻ᵀc and y* = −A⁻¹b of φ = bᵀx + xᵀAy − cᵀy, whose gradients are those of a linear system."""
    b, c = (torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    A = game.matrix.clone().requires_grad_()

    def payoff(x, y):
        return b @ x + x @ A @ y - c @ y

    start, field = origin(game), gradient_field(payoff)
    found = l2o.fixed_point(extragradient(field, 0.6), start, max_steps=2000, tol=1e-12).u
    closed = torch.linalg.solve(A.T, c), -torch.linalg.solve(A, b)
    torch.testing.assert_close(tuple(found), closed, rtol=1e-9, atol=1e-9)
    (grad,) = torch.autograd.grad(found.x.sum() + found.y.square().sum(), A)
    (expected,) = torch.autograd.grad(closed[0].sum() + closed[1].square().sum(), A)
    torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-8)
    with pytest.raises(l2o.NotConvergedError):
        l2o.fixed_point(descent_ascent(field, 0.6), start, max_steps=300)


def test_unrolled_gradients_come_to_the_implicit_one(game):
    b = game.x.clone().requires_grad_()
    step = extragradient(gradient_field(lambda x, y: b @ x + x @ game.matrix @ y), 0.6)
    implicit = l2o.fixed_point(step, origin(game), tol=1e-12).u.y.square().sum()
    unrolled = l2o.fixed_point(step, origin(game), gradient="unrolled", steps=700).u.y.square().sum()
    (expected,), (grad,) = torch.autograd.grad(implicit, b), torch.autograd.grad(unrolled, b)
    torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-8)


def test_extragradient_also_solves_games_that_are_not_bilinear():
    """φ = x²/2 + xy − y²/2 − 2x + y: V = 0 where x + y = 2 and x − y = −1."""
    field = gradient_field(lambda x, y: x**2 / 2 + x * y - y**2 / 2 - 2 * x + y)
    zero = torch.zeros((), dtype=torch.float64)
    found = l2o.fixed_point(extragradient(field, 0.4), Saddle(zero, zero), gradient=None).u
    assert (float(found.x), float(found.y)) == pytest.approx((0.5, 1.5), abs=1e-8)


@pytest.mark.parametrize("make", [descent_ascent, extragradient])
def test_a_step_size_that_is_not_positive_is_refused(make):
    with pytest.raises(ValueError, match="step_size must be positive, got -0.5"):
        make(gradient_field(lambda x, y: x * y), -0.5)


def test_a_game_without_a_unique_saddle_point_is_refused():
    with pytest.raises(ValueError, match="smallest in"):
        random_game(3, 0.0, torch.Generator())
