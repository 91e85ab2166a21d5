"""Fixed points and their gradients: closed forms, central differences, agreement of all modes, freezing, memory."""

from typing import NamedTuple

import pytest
import torch
from torch.autograd import gradcheck

from l2o import CG, GMRES, Anderson, AndersonSolver, Dense, Neumann, NotConvergedError, fixed_point

MODES = ["implicit", "unrolled", "truncated", "one_step"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scaled(matrix: torch.Tensor, norm: float) -> torch.Tensor:
    return norm * matrix / torch.linalg.matrix_norm(matrix, 2)


def ridge(**options):
    """Gradient descent on ½‖Xu − y‖² + ½λ‖u‖², and its closed form; the fixed point and both gradients in λ, X, y."""
    X, y, lam = random(30, 6).requires_grad_(), random(30, seed=1).requires_grad_(), torch.tensor(3.0).requires_grad_()
    c = random(6, seed=2)
    step = 1 / (torch.linalg.matrix_norm(X.detach(), 2) ** 2 + 3)
    result = fixed_point(lambda u: u - step * (X.T @ (X @ u - y) + lam * u), torch.zeros(6), **options)
    got = torch.autograd.grad(c @ result.u, (lam, X, y))
    exact = torch.linalg.solve(X.T @ X + lam * torch.eye(6), X.T @ y)
    return result, exact, got, torch.autograd.grad(c @ exact, (lam, X, y))


@pytest.mark.parametrize("adjoint", [GMRES(), CG(), Neumann(), AndersonSolver(), Dense()], ids=repr)
def test_hyperparameter_gradient_of_ridge_regression_is_the_closed_form(float64, adjoint):
    result, exact, got, expected = ridge(adjoint=adjoint, tol=1e-13)
    torch.testing.assert_close(result.u, exact, rtol=0, atol=1e-8)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)
    assert result.converged and result.report.converged and result.report.iterations > 0
    assert result.residual <= 1e-13 and result.report.residual.item() <= 1e-10


@pytest.mark.parametrize("mode", MODES)
def test_all_modes_agree_after_many_steps_but_for_one_step(float64, mode):
    _, _, got, expected = ridge(gradient=mode, steps=1500, last=1400)
    error = max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))
    assert error > 1e-3 if mode == "one_step" else error < 1e-10
    errors = []
    for last in (1, 20, 40):
        _, _, got, expected = ridge(gradient="truncated", steps=1500, last=last)
        errors.append(float((got[0] - expected[0]).abs()))
    assert errors[0] > errors[1] > errors[2]


def test_one_step_is_the_gradient_of_the_last_step_and_nearly_right_for_a_strong_contraction(float64):
    b = random(4).requires_grad_()
    for rate in (0.5, 0.01):
        u = fixed_point(lambda u, rate=rate: rate * u + b, torch.zeros(4), gradient="one_step").u
        torch.testing.assert_close(torch.autograd.grad(u.sum(), b)[0], torch.ones(4))  # the truth is 1 / (1 − rate)


def test_affine_map_has_the_resolvent_as_jacobian(float64):
    J, b = scaled(random(5, 5), 0.9), random(5, seed=1)
    jacobian = torch.autograd.functional.jacobian(lambda b: fixed_point(lambda u: J @ u + b, torch.zeros(5)).u, b)
    torch.testing.assert_close(jacobian, torch.linalg.inv(torch.eye(5) - J), rtol=0, atol=1e-8)


@pytest.mark.parametrize("batch_axes", [0, 1, 2])
def test_gradients_of_a_nonlinear_map_are_those_of_central_differences(float64, batch_axes):
    W, b = scaled(random(4, 4), 0.7).requires_grad_(), random(2, 3, 4, seed=1).requires_grad_()
    assert gradcheck(
        lambda W, b: fixed_point(lambda u: torch.tanh(u @ W + b), torch.zeros(2, 3, 4), batch_axes=batch_axes).u, (W, b)
    )


def test_gradients_reach_the_weights_of_a_module(float64):
    cell = torch.nn.Linear(3, 3)
    torch.nn.init.orthogonal_(cell.weight, 0.5, generator=torch.Generator().manual_seed(0))
    fixed_point(lambda u: torch.sin(cell(u)), torch.zeros(7, 3), batch_axes=1).u.square().sum().backward()
    implicit = [p.grad.clone() for p in cell.parameters()]
    cell.zero_grad()
    fixed_point(
        lambda u: torch.sin(cell(u)), torch.zeros(7, 3), gradient="unrolled", steps=80
    ).u.square().sum().backward()
    torch.testing.assert_close(implicit, [p.grad for p in cell.parameters()], rtol=0, atol=1e-9)


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_unknown_may_be_a_structure_of_tensors(float64):
    a = random(2, 3).requires_grad_()

    def step(u: Pair) -> Pair:
        return Pair(
            0.3 * torch.cos(u.y.sum(-1, keepdim=True)) + a, 0.5 * u.y + 0.1 * u.x.sum(-1, keepdim=True).expand(2, 4)
        )

    u = fixed_point(step, Pair(torch.zeros(2, 3), torch.zeros(2, 4)), batch_axes=1).u
    assert isinstance(u, Pair) and u.x.shape == (2, 3) and u.y.shape == (2, 4)
    torch.testing.assert_close(tuple(step(u)), tuple(u), rtol=0, atol=1e-9)
    assert gradcheck(lambda _: tuple(fixed_point(step, Pair(torch.zeros(2, 3), torch.zeros(2, 4)), batch_axes=1).u), a)


def test_converged_items_stay_where_they_are_and_count_their_steps(float64):
    rates = torch.tensor([0.1, 0.5, 0.9, 0.0])
    seen = []

    def step(u):
        seen.append(u.detach().clone())
        return rates[:, None] * u + 1

    result = fixed_point(step, torch.zeros(4, 2), batch_axes=1, gradient=None)
    assert result.converged.all() and (result.residual <= 1e-10).all()
    steps = result.steps.tolist()
    assert steps[3] < steps[0] < steps[1] < steps[2] == len(seen) - 1 and result.steps.dtype == torch.int64
    for item, made in enumerate(steps):
        assert all(torch.equal(u[item], result.u[item]) for u in seen[made:])
    torch.testing.assert_close(result.u[:, 0], 1 / (1 - rates), rtol=1e-8, atol=0)


def test_an_item_that_others_move_goes_on(float64):
    def coupled(u):  # the first item waits at 0 until the second has come near 1
        return torch.stack([0.5 * u[0] + (u[1] - 0.9).clamp(min=0), 0.5 * u[1] + 0.5])

    result = fixed_point(coupled, torch.zeros(2, 1), batch_axes=1, gradient=None)
    torch.testing.assert_close(result.u[:, 0], torch.tensor([0.2, 1.0]), rtol=0, atol=1e-8)


def test_residual_has_no_unit(float64):
    b = random(5)
    results = [fixed_point(lambda u, s=s: 0.8 * u + s * b, torch.zeros(5), gradient=None) for s in (1e-9, 1.0, 1e9)]
    assert len({int(result.steps) for result in results}) == 1
    shrinking = fixed_point(lambda u: 0.5 * u, b, gradient=None)  # to 0
    assert shrinking.converged and shrinking.u.abs().max() < 1e-9
    again = fixed_point(lambda u: 0.8 * u + b, results[1].u, gradient=None)
    assert again.steps == 0 and torch.equal(again.u, results[1].u)


def test_anderson_acceleration_needs_fewer_steps_and_gives_the_same(float64):
    J, b = random(10, 10), random(3, 10, seed=1)
    J = scaled(J + J.T, 0.97)
    step = lambda u: u @ J + b  # noqa: E731
    plain = fixed_point(step, torch.zeros(3, 10), batch_axes=1, gradient=None)
    fast = fixed_point(step, torch.zeros(3, 10), batch_axes=1, gradient=None, acceleration=Anderson())
    torch.testing.assert_close(fast.u, plain.u, rtol=1e-7, atol=0)  # tol = 1e-10 over 1 − 0.97, twice
    assert plain.converged.all() and fast.converged.all() and fast.steps.max() < plain.steps.max() / 3


def test_anderson_finds_a_fixed_point_that_plain_steps_leave(float64):
    J, b = scaled(random(6, 6), 1.3) - 0.5 * torch.eye(6), random(6, seed=1).requires_grad_()
    step = lambda u: J @ u + b  # noqa: E731
    result = fixed_point(step, torch.zeros(6), acceleration=Anderson(memory=6))
    inverse = torch.linalg.inv(torch.eye(6) - J)
    torch.testing.assert_close(result.u, inverse @ b, rtol=0, atol=1e-8)
    torch.testing.assert_close(torch.autograd.grad(result.u.sum(), b)[0], inverse.sum(0), rtol=0, atol=1e-8)
    with pytest.raises(NotConvergedError, match="lower level did not converge"):
        fixed_point(step, torch.zeros(6))


def saved_elements(gradient: str, steps: int) -> int:
    W, total = scaled(random(20, 20), 0.5).requires_grad_(), 0

    def count(tensor):
        nonlocal total
        total += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        fixed_point(lambda u: torch.tanh(u @ W + 1), torch.zeros(20), gradient=gradient, steps=steps)
    return total


def test_memory_of_the_implicit_mode_does_not_depend_on_the_number_of_steps(float64):
    assert saved_elements("implicit", 50) == saved_elements("implicit", 500) > 0
    assert saved_elements("one_step", 50) == saved_elements("one_step", 500)
    assert saved_elements("unrolled", 500) > 9 * saved_elements("unrolled", 50)
