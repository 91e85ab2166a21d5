"""Gradient flows with a stopping time, against quadratics in closed form."""

import pytest
import torch

from l2o.gradient_flow import gradient_flow, stopping_time_gradient

TIME = 1.3


def quadratic():
    """F(x) = ½(x − c)ᵀA(x − c), with the exact flow c + exp(−AT)(x_0 − c)."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    A = root @ root.T / 5 + 0.1 * torch.eye(5, dtype=torch.float64)
    centre, start, goal = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    gradient = lambda x: A @ (x - centre)  # noqa: E731
    exact = lambda time: centre + torch.linalg.matrix_exp(-A * time) @ (start - centre)  # noqa: E731
    return gradient, exact, start, lambda x: 0.5 * (x - goal).square().sum(), goal


def test_the_adjoint_formula_is_the_derivative_of_the_closed_form():
    gradient, exact, _, outer, goal = quadratic()
    end = exact(TIME)
    found = float(stopping_time_gradient(gradient(end), end - goal))
    differences = float(outer(exact(TIME + 1e-5)) - outer(exact(TIME - 1e-5))) / 2e-5
    assert found == pytest.approx(differences, rel=1e-8)
    time = torch.tensor(TIME, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(outer(exact(time)), time)
    assert found == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("how", ["steps", "adjoint"])
def test_points_and_gradients_in_time_come_to_the_flow_as_one_over_k(how):
    gradient, exact, start, outer, goal = quadratic()
    end = exact(TIME)
    expected, errors = stopping_time_gradient(gradient(end), end - goal), []
    for steps in (200, 400, 800):
        time = torch.tensor(TIME, dtype=torch.float64, requires_grad=True)
        found = gradient_flow(gradient, start, time, steps, how)
        (slope,) = torch.autograd.grad(outer(found), time)
        errors.append((float((found.detach() - end).norm()), abs(float(slope - expected))))
    for coarse, fine in zip(errors, errors[1:], strict=False):  # halved, but for the next order
        assert all(a / b == pytest.approx(2, rel=0.05) for a, b in zip(coarse, fine, strict=True))


def test_both_ways_have_the_same_points_and_the_same_gradients_to_all_but_the_time():
    gradient, _, start, outer, _ = quadratic()
    found = {}
    for how in ("steps", "adjoint"):
        scale = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
        time = torch.tensor(TIME, dtype=torch.float64, requires_grad=True)
        end = gradient_flow(lambda x, scale=scale: scale * gradient(x), start, time, 7, how)
        found[how] = end, *torch.autograd.grad(outer(end), (scale, time))
    torch.testing.assert_close(found["steps"][:2], found["adjoint"][:2], rtol=0, atol=0)
    assert float(found["steps"][2]) != float(found["adjoint"][2])


def test_the_gradient_of_the_steps_equals_central_differences():
    gradient, _, start, outer, _ = quadratic()
    time = torch.tensor(TIME, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(outer(gradient_flow(gradient, start, time, 6)), time)
    up, down = (outer(gradient_flow(gradient, start, TIME + d, 6)) for d in (1e-6, -1e-6))
    assert float(found) == pytest.approx(float(up - down) / 2e-6, rel=1e-7)


def test_the_adjoint_gradient_of_k_steps_is_the_formula_at_their_end():
    gradient, _, start, outer, goal = quadratic()
    time = torch.tensor(TIME, dtype=torch.float64, requires_grad=True)
    end = gradient_flow(gradient, start, time, 4, "adjoint")
    (found,) = torch.autograd.grad(outer(end), time)
    expected = stopping_time_gradient(gradient(end), end - goal).detach()
    assert float(found) == pytest.approx(float(expected), rel=1e-13)


def test_a_time_for_each_item_of_a_batch_gets_the_gradients_of_single_runs():
    gradient, _, start, outer, _ = quadratic()
    times = torch.tensor([[0.5], [2.0]], dtype=torch.float64, requires_grad=True)
    batched = lambda x: torch.stack([gradient(row) for row in x])  # noqa: E731
    for how in ("steps", "adjoint"):
        (found,) = torch.autograd.grad(outer(gradient_flow(batched, torch.stack([start] * 2), times, 5, how)), times)
        for i in range(2):
            time = times[i, 0].detach().requires_grad_()
            (single,) = torch.autograd.grad(outer(gradient_flow(gradient, start, time, 5, how)), time)
            assert float(found[i]) == pytest.approx(float(single), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 3, "time": -0.5}, "T must be at least 0, got -0.5"),
        ({"steps": 3, "time": torch.tensor([[0.5], [-2.0]])}, "T must be at least 0, got -2"),
        ({"steps": 3, "time": float("nan")}, "T must be at least 0, got nan"),
        ({"steps": 3, "time_gradient": "exact"}, "steps, adjoint, got 'exact'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gradient_flow(lambda x: x, torch.ones(2), **({"time": 1.0} | options))


@pytest.mark.parametrize("start", [torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.complex64)])
def test_a_start_in_which_the_time_would_be_rounded_is_refused(start):
    with pytest.raises(TypeError, match=f"must be real floating point, got {start.dtype}"):
        gradient_flow(lambda x: x, start, 0.9, 3)
    assert torch.equal(gradient_flow(lambda x: x, torch.ones(2), 0.0, 3), torch.ones(2))
