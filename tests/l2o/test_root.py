"""Roots: Newton–Krylov, Anderson and a solver of one's own; gradients against closed forms and differences."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import softmax

from l2o import CG, GMRES, Anderson, Dense, Newton, NotConvergedError, NotConvergedWarning, root
from l2o.proximal import project_simplex


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("adjoint", [GMRES(), CG(), Dense()], ids=repr)
def test_optimality_condition_of_ridge_regression(float64, adjoint):
    X, y, lam = random(25, 5).requires_grad_(), random(25, seed=1).requires_grad_(), torch.tensor(2.0).requires_grad_()
    u = root(lambda u: X.T @ (X @ u - y) + lam * u, torch.zeros(5), adjoint=adjoint).u
    exact = torch.linalg.solve(X.T @ X + lam * torch.eye(5), X.T @ y)
    torch.testing.assert_close(u, exact, rtol=0, atol=1e-8)
    got, expected = (torch.autograd.grad(v.square().sum(), (lam, X, y)) for v in (u, exact))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


def test_batched_square_roots_converge_for_themselves(float64):
    c = torch.tensor([1e-2, 1.0, 2.0, 1e8], requires_grad=True)
    result = root(lambda u: u**2 - c[:, None], torch.ones(4, 1), batch_axes=1)
    torch.testing.assert_close(result.u[:, 0], c.sqrt(), rtol=1e-8, atol=0)
    torch.testing.assert_close(torch.autograd.grad(result.u.sum(), c)[0], 0.5 / c.sqrt(), rtol=1e-8, atol=0)
    assert result.converged.all() and result.steps[1] == 0 and result.steps[3] > result.steps[2]


def test_newton_is_quadratic_and_shortens_steps_that_are_too_long(float64):
    assert root(lambda u: u.exp() - 2, torch.ones(1)).steps <= 6
    far = root(torch.atan, torch.full((1,), 5.0))  # full Newton steps diverge from 1.4 on
    assert far.converged and far.u.abs() < 1e-9


@pytest.mark.parametrize("solver", [Newton(), Anderson(), "bisection"], ids=repr)
def test_solvers_give_one_root_and_one_gradient(float64, solver):
    def bisection(g, start):
        low, high = start - 10, start + 10
        for _ in range(60):
            middle = (low + high) / 2
            low, high = torch.where(g(middle) < 0, middle, low), torch.where(g(middle) < 0, high, middle)
        return low

    a = torch.linspace(0.5, 2, 4).requires_grad_()
    chosen = bisection if solver == "bisection" else solver
    assert gradcheck(lambda a: root(lambda u: u - torch.cos(a * u) / a, torch.zeros(4), solver=chosen, tol=1e-13).u, a)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_unit_of_g_does_not_matter(float64, scale):
    c = torch.tensor([2.0, 3.0], requires_grad=True)
    result = root(lambda u: scale * (u**3 - c), torch.ones(2))
    torch.testing.assert_close(result.u, c ** (1 / 3), rtol=1e-8, atol=0)
    torch.testing.assert_close(torch.autograd.grad(result.u.sum(), c)[0], c ** (-2 / 3) / 3, rtol=1e-8, atol=0)


def test_what_is_no_root_has_no_gradient(float64):
    c = torch.ones(2, requires_grad=True)
    with pytest.raises(NotConvergedError, match="the implicit gradient is not valid"):
        root(lambda u: u**2 + c, torch.ones(2))  # none exists
    with pytest.raises(NotConvergedError, match="not valid"):
        root(lambda u: u - c, torch.zeros(2), solver=lambda g, start: start + 0.5)  # a solver that lies
    with pytest.warns(NotConvergedWarning, match="not valid"):
        assert not root(lambda u: u**2 + c, torch.ones(2), on_failure="warn").converged.any()
    double = root(lambda u: (u - 1) ** 2 * c, torch.ones(2))  # the start is a root, where g′ = 0
    with pytest.raises(NotConvergedError, match="no implicit gradient"):
        double.u.sum().backward()


def test_a_point_whose_norm_overflows_is_no_root(float64):
    c = torch.ones(2, requires_grad=True)  # ‖g‖ ≤ 3, but ‖Jᵀu‖ overflows, and 3/inf would be 0
    with pytest.raises(NotConvergedError, match="the worst inf"):
        root(lambda u: u.sin() + 2 * c, torch.ones(2), solver=lambda g, start: start * 1e160)


def test_multiclass_logistic_regression_on_the_simplex(float64):
    """The fixed point of projected gradient for the dual variables, and the primal optimality condition, agree."""
    X, labels = random(12, 3), torch.arange(12) % 3
    Y = torch.nn.functional.one_hot(labels, 3).double()
    lam = torch.tensor(0.7, requires_grad=True)

    def optimality(W):
        return X.T @ (softmax(X @ W, 1) - Y) + lam * W

    W = root(optimality, torch.zeros(3, 3)).u
    (got,) = torch.autograd.grad(W.square().sum(), lam)
    with torch.no_grad():
        shifted = []
        for change in (-1e-4, 1e-4):
            strength = lam + change
            V = root(lambda V, s=strength: X.T @ (softmax(X @ V, 1) - Y) + s * V, torch.zeros(3, 3), tol=1e-13).u
            shifted.append(V.square().sum())
    torch.testing.assert_close(got, (shifted[1] - shifted[0]) / 2e-4, rtol=1e-6, atol=0)


def test_multiclass_svm_dual_by_projected_gradient(float64):
    """Crammer–Singer SVM: W(λ) = Xᵀ(Y − β)/λ, the rows of β on the simplex; central differences as oracle."""
    from l2o import fixed_point

    X, Y = random(10, 4), torch.nn.functional.one_hot(torch.arange(10) % 3, 3).double()
    size = 1 / torch.linalg.matrix_norm(X, 2) ** 2

    def primal(lam):
        def step(beta):
            W = X.T @ (Y - beta) / lam
            return project_simplex(beta + 0.5 * size * lam * (X @ W + 1 - Y), 1.0)

        beta = fixed_point(step, torch.full((10, 3), 1 / 3), tol=1e-12, max_steps=20_000).u
        return X.T @ (Y - beta) / lam

    lam = torch.tensor(5.0, requires_grad=True)
    (got,) = torch.autograd.grad(primal(lam).square().sum(), lam)
    with torch.no_grad():
        high, low = (primal(lam + change).square().sum() for change in (1e-4, -1e-4))
    torch.testing.assert_close(got, (high - low) / 2e-4, rtol=1e-6, atol=0)


def test_nothing_to_differentiate_and_no_grad_give_no_graph(float64):
    assert not root(lambda u: u - 1, torch.zeros(2)).u.requires_grad
    c = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert not root(lambda u: u - c, torch.zeros(2)).u.requires_grad


def test_a_tolerance_of_zero_is_refused():
    with pytest.raises(ValueError, match="tol must be above 0"):
        root(lambda u: u, torch.zeros(2), tol=0.0)


def test_a_failure_speaks_of_g_and_of_what_root_can_change(float64):
    c = torch.ones(2, requires_grad=True)
    for call in (
        lambda: root(lambda u: u**2 + c, torch.ones(2)),
        lambda: root(lambda u, c: u**2 + c, torch.ones(2), c),
    ):
        with pytest.raises(NotConvergedError, match=r"residual ‖g\(u\)‖ above .* another solver") as caught:
            call()
        assert "T(u)" not in str(caught.value) and "unrolled" not in str(caught.value)
