"""Fixed points and roots with explicit parameters: under vmap, grad and jacrev, and their second derivatives."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacrev, jvp, vmap

from l2o import GMRES, Anderson, AndersonSolver, Dense, Neumann, NotConvergedError, fixed_point, root


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(n: int = 4, norm: float = 0.6) -> torch.Tensor:
    W = random(n, n)
    return norm * W / torch.linalg.matrix_norm(W, 2)


def cell(u, params):
    W, b = params
    return torch.tanh(W @ u + b)


def point(W, b, **options):
    return fixed_point(cell, torch.zeros(W.shape[-1]), (W, b), **options).u


def zero(W, b, **options):
    """The same, as a root."""
    return root(lambda u, params: u - cell(u, params), torch.zeros(W.shape[-1]), (W, b), **options).u


@pytest.mark.parametrize("solve", [point, zero])
@pytest.mark.parametrize("adjoint", [GMRES(), Neumann(), AndersonSolver(), Dense()], ids=repr)
def test_first_and_second_derivatives_are_those_of_central_differences(float64, solve, adjoint):
    inputs = weights(3).requires_grad_(), random(3, seed=1).requires_grad_()
    assert gradcheck(lambda W, b: solve(W, b, adjoint=adjoint), inputs)
    assert gradgradcheck(lambda W, b: solve(W, b, adjoint=adjoint), inputs)


def test_second_derivative_of_ridge_regression_is_the_closed_form(float64):
    X, y, c = random(20, 4), random(20, seed=1), random(4, seed=2)
    lam = torch.tensor(2.0)

    def exact(lam):
        return c @ torch.linalg.solve(X.T @ X + lam * torch.eye(4), X.T @ y)

    step = 1 / (torch.linalg.matrix_norm(X, 2) ** 2 + 2)

    def implicit(lam):
        return (
            c @ fixed_point(lambda u, lam: u - step * (X.T @ (X @ u - y) + lam * u), torch.zeros(4), lam, tol=1e-13).u
        )

    for derivative in (grad, lambda f: grad(grad(f)), lambda f: grad(grad(grad(f)))):
        torch.testing.assert_close(derivative(implicit)(lam), derivative(exact)(lam), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solve", [point, zero])
def test_vmap_over_parameters_equals_a_loop(float64, solve):
    W, b = torch.stack([weights(norm=norm) for norm in (0.1, 0.5, 0.9)]), random(3, 4, seed=1)
    expected = torch.stack([solve(*pair) for pair in zip(W, b, strict=True)])
    torch.testing.assert_close(vmap(solve)(W, b), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(vmap(solve, (None, 0))(W[0], b), vmap(lambda b: point(W[0], b))(b), rtol=0, atol=1e-9)
    torch.testing.assert_close(vmap(solve, (2, 1))(W.movedim(0, 2), b.T), expected, rtol=0, atol=1e-9)
    nested = vmap(vmap(solve, (None, 0)), (0, None))(W, b)
    torch.testing.assert_close(nested[torch.arange(3), torch.arange(3)], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solve", [point, zero])
def test_gradients_and_vmap_compose_in_both_orders(float64, solve):
    W, b = weights(), random(3, 4, seed=1)
    inner = vmap(grad(lambda W, b: solve(W, b).square().sum()), (None, 0))(W, b)
    outer = grad(lambda W: vmap(solve, (None, 0))(W, b).square().sum())(W)
    loop = sum(grad(lambda W, item=item: solve(W, item).square().sum())(W) for item in b)
    torch.testing.assert_close(inner.sum(0), outer, rtol=0, atol=1e-9)
    torch.testing.assert_close(outer, loop, rtol=0, atol=1e-9)
    u = solve(W, b[0])
    slope = (1 - u**2)[:, None]
    torch.testing.assert_close(
        jacrev(solve, 1)(W, b[0]), torch.linalg.inv(torch.eye(4) - slope * W) * slope.T, rtol=0, atol=1e-8
    )
    hessians = vmap(jacrev(grad(lambda b: solve(W, b).square().sum())))(b)
    torch.testing.assert_close(hessians, hessians.mT, rtol=0, atol=1e-8)


def test_vmap_runs_all_lanes_in_one_loop(float64):
    calls = 0

    def step(u, b):
        nonlocal calls
        calls += 1
        return 0.5 * torch.sin(u) + b

    fixed_point(step, torch.zeros(2), torch.ones(2))
    alone = calls
    calls = 0
    vmap(lambda b: fixed_point(step, torch.zeros(2), b).u)(torch.ones(50, 2))
    assert calls <= alone + 2


def test_params_may_be_a_structure_with_entries_that_are_no_tensors(float64):
    params = {"W": weights().requires_grad_(), "b": [random(4, seed=1).requires_grad_()], "name": "tanh", "k": 2}

    def step(u, p):
        return getattr(torch, p["name"])(p["W"] @ u + p["b"][0]) / p["k"]

    result = fixed_point(step, torch.zeros(4), params, acceleration=Anderson())
    got = torch.autograd.grad(result.u.sum(), (params["W"], params["b"][0]))
    closed_over = fixed_point(lambda u: step(u, params), torch.zeros(4)).u
    expected = torch.autograd.grad(closed_over.sum(), (params["W"], params["b"][0]))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    assert result.report.converged and result.converged and result.steps > 0


def test_other_gradient_modes_take_params_too(float64):
    W, b = weights().requires_grad_(), random(4, seed=1)
    expected = torch.autograd.grad(point(W, b).sum(), W)[0]
    for options in ({"gradient": "unrolled"}, {"gradient": "truncated", "last": 60}):
        torch.testing.assert_close(torch.autograd.grad(point(W, b, **options).sum(), W)[0], expected, rtol=0, atol=1e-8)
    assert not point(W, b, gradient=None).requires_grad
    unrolled = vmap(grad(lambda b: point(W.detach(), b, gradient="unrolled", steps=60).sum()))(torch.stack([b, 2 * b]))
    implicit = vmap(grad(lambda b: point(W.detach(), b).sum()))(torch.stack([b, 2 * b]))
    torch.testing.assert_close(unrolled, implicit, rtol=0, atol=1e-8)


def test_a_lower_level_that_did_not_converge_is_refused_inside_transforms_too(float64):
    W = torch.stack([weights(), 3 * torch.eye(4)])
    with pytest.raises(NotConvergedError, match="1 of 2 items"):
        vmap(lambda W: fixed_point(lambda u, W: W @ u + 1, torch.zeros(4), W, max_steps=100).u)(W)


def test_what_the_step_closes_over_is_never_silently_a_constant(float64):
    W, b = weights(), random(4, seed=1)
    message = "inside torch.func .* give it as params"
    with pytest.raises(TypeError, match=message):
        grad(lambda W: fixed_point(lambda u: cell(u, (W, b)), torch.zeros(4)).u.sum())(W)
    with pytest.raises(TypeError, match=message):
        grad(lambda W: fixed_point(lambda u, b: cell(u, (W, b)), torch.zeros(4), b).u.sum())(W)
    with pytest.raises(TypeError, match=message):
        vmap(lambda b: fixed_point(lambda u: cell(u, (W, b)), torch.zeros(4)).u)(b[None])
    with pytest.raises(TypeError, match=message):
        vmap(lambda b: fixed_point(lambda u, W: cell(u, (W, b)), torch.zeros(4), W).u)(b[None])
    with pytest.raises(TypeError, match=message):
        grad(lambda W: root(lambda u: u - cell(u, (W, b)), torch.zeros(4)).u.sum())(W)
    W.requires_grad_()
    with pytest.raises(ValueError, match="closes over tensors that require grad: give them in params too"):
        fixed_point(lambda u, b: cell(u, (W, b)), torch.zeros(4), b)
    assert fixed_point(lambda u, b: cell(u, (W.detach(), b)), torch.zeros(4), b).converged


def test_a_step_that_closes_over_constants_runs_inside_transforms(float64):
    W, b = weights(), random(4, seed=1)
    u = fixed_point(lambda u: cell(u, (W, b)), torch.zeros(4)).u
    got = grad(lambda s: s * fixed_point(lambda u: cell(u, (W, b)), torch.zeros(4)).u.sum())(torch.tensor(2.0))
    torch.testing.assert_close(got, u.sum(), rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # of torch, in its first jvp
def test_forward_mode_is_that_of_the_steps_where_they_are_unrolled_and_refused_where_implicit(float64):
    w = torch.linspace(-1, 1, 3)[None]

    def point(w, mode):
        return fixed_point(
            lambda u, w: torch.tanh(0.3 * u + w), torch.zeros(1, 3), w, gradient=mode, tol=1e-12, batch_axes=1
        ).u

    _, tangent = jvp(lambda w: point(w, "unrolled"), (w,), (torch.ones_like(w),))
    slope = 1 - point(w, None).square()  # u = tanh(0.3 u + w): du = slope (0.3 du + dw)
    # the steps end where u has converged, which at w = 0 is before its tangent has
    torch.testing.assert_close(tangent, slope / (1 - 0.3 * slope), rtol=1e-5, atol=0)
    with pytest.raises(NotImplementedError, match="no forward mode"):
        jvp(lambda w: point(w, "implicit"), (w,), (torch.ones_like(w),))
