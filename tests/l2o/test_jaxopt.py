"""jaxopt itself, on the problems of its documentation: the same solution and the same Jacobian to the hyperparameters.

Both libraries get the same numbers in float64 and run to a tolerance far below the one that is compared; jaxopt's
linear systems, which it solves to 1e-5 by default, too. What jaxopt is used for is its own code throughout: its losses,
proximal operators, projections, solvers and implicit differentiation.
"""

import functools
import warnings

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # jaxopt says on import that it is no longer developed
    jaxopt = pytest.importorskip("jaxopt", reason="jaxopt is not installed: make interop")

import jax  # noqa: E402  (after the skip)
import jax.numpy as jnp  # noqa: E402
from jaxopt import implicit_diff, linear_solve, objective, projection, prox  # noqa: E402

from l2o import Anderson, fixed_point, root  # noqa: E402
from l2o.proximal import L1, ElasticNet, project_simplex  # noqa: E402

TOLERANCE = {"rtol": 0, "atol": 1e-7}  # jaxopt's solvers stop by the size of a step or gradient, not by the error
EXACT = {"tol": 1e-13, "maxiter": 50_000}
SOLVE = functools.partial(linear_solve.solve_normal_cg, tol=1e-13, maxiter=1000)


@pytest.fixture(autouse=True)
def in_float64(float64):
    with jax.enable_x64(True):
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def regression() -> tuple[Tensor, Tensor]:
    return random(40, 8) / 5, random(40, seed=1)


def in_jax(*tensors: Tensor):
    return [jnp.asarray(tensor.numpy()) for tensor in tensors]


def assert_same(ours, theirs, hyper: Tensor) -> None:
    """Compare the solutions as functions of a hyperparameter, and their Jacobians."""
    (hyper_jax,) = in_jax(hyper)
    solution, jacobian = jax.jit(theirs)(hyper_jax), jax.jit(jax.jacrev(theirs))(hyper_jax)
    assert solution.dtype == jacobian.dtype == jnp.float64
    wanted, slope = (torch.tensor(array.tolist()) for array in (solution, jacobian))
    assert slope.abs().max() > 1e-3
    torch.testing.assert_close(ours(hyper), wanted, **TOLERANCE)
    torch.testing.assert_close(torch.func.jacrev(ours)(hyper), slope, **TOLERANCE)


def test_ridge_regression_with_a_penalty_for_each_coefficient_through_custom_root():
    X, y = regression()
    A, b = in_jax(X, y)

    def loss(u, penalties):
        return jnp.sum((A @ u - b) ** 2) / 2 + jnp.sum(penalties * u**2) / 2

    @implicit_diff.custom_root(jax.grad(loss), solve=SOLVE)
    def theirs(start, penalties):
        return jnp.linalg.solve(A.T @ A + jnp.diag(penalties), A.T @ b)

    def ours(penalties: Tensor) -> Tensor:
        gradient = lambda u, penalties: X.T @ (X @ u - y) + penalties * u  # noqa: E731
        return root(gradient, torch.zeros(8), penalties, tol=1e-12).u

    assert_same(ours, lambda penalties: theirs(None, penalties), 0.5 + random(8, seed=2).square())


@pytest.mark.parametrize("name", ["lasso", "elastic net"])
def test_sparse_regression_by_proximal_gradient(name):
    """jaxopt's elastic net is λ(‖u‖₁ + γ‖u‖²/2)."""
    X, y = regression()
    data, operator = tuple(in_jax(X, y)), prox.prox_lasso if name == "lasso" else prox.prox_elastic_net
    smooth = lambda u, data: jnp.sum((data[0] @ u - data[1]) ** 2) / 2  # noqa: E731
    size = 0.5 / float(torch.linalg.matrix_norm(X, 2)) ** 2
    solver = jaxopt.ProximalGradient(smooth, operator, stepsize=size, implicit_diff_solve=SOLVE, **EXACT)

    def theirs(hyper):
        weight = hyper[0] if name == "lasso" else (hyper[0], hyper[1])
        return solver.run(jnp.zeros(8), weight, data).params

    def ours(hyper: Tensor) -> Tensor:
        def step(u: Tensor, hyper: Tensor) -> Tensor:
            function = L1(hyper[0]) if name == "lasso" else ElasticNet(hyper[0], hyper[0] * hyper[1])
            return function.prox(u - size * X.T @ (X @ u - y), size)

        return fixed_point(step, torch.zeros(8), hyper, tol=1e-12, max_steps=20_000).u

    hyper = torch.tensor([0.8, 0.9])
    assert 0 < (ours(hyper) != 0).sum() < 8
    assert_same(ours, theirs, hyper)


@pytest.mark.parametrize("solver", [jaxopt.AndersonAcceleration, jaxopt.FixedPointIteration])
def test_a_fixed_point_iteration_with_and_without_anderson_acceleration(solver):
    W = random(6, 6, seed=4)
    W = 0.9 * W / torch.linalg.matrix_norm(W, 2)
    (W_jax,) = in_jax(W)
    options = {"ridge": 1e-12} if solver is jaxopt.AndersonAcceleration else {}
    step = lambda u, b: jnp.tanh(W_jax @ u + b)  # noqa: E731
    iteration = solver(step, implicit_diff_solve=SOLVE, **EXACT, **options)
    acceleration = Anderson() if options else None

    def ours(b: Tensor) -> Tensor:
        step = lambda u, b: torch.tanh(W @ u + b)  # noqa: E731
        return fixed_point(step, torch.zeros(6), b, acceleration=acceleration, tol=1e-12).u

    assert_same(ours, lambda b: iteration.run(jnp.zeros(6), b).params, 0.3 * random(6, seed=5))


def test_multiclass_logistic_regression_with_a_ridge_penalty():
    """jaxopt's loss is a mean, and its penalty λ‖W‖²/2."""
    X, labels = random(30, 5), torch.arange(30) % 3
    data = tuple(in_jax(X, labels))
    solver = jaxopt.LBFGS(objective.l2_multiclass_logreg, implicit_diff_solve=SOLVE, tol=1e-11, maxiter=500)

    def loss(W: Tensor, strength: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(X @ W, labels) + strength * W.square().sum() / 2

    def ours(strength: Tensor) -> Tensor:
        return root(torch.func.grad(loss), torch.zeros(5, 3), strength, tol=1e-12).u

    assert_same(ours, lambda strength: solver.run(jnp.zeros((5, 3)), strength, data).params, torch.tensor(0.1))


@pytest.mark.parametrize("solver", ["projected gradient", "block coordinate descent"])
def test_the_dual_of_a_multiclass_support_vector_machine(solver):
    """λ ↦ W = Xᵀ(Y − β)/λ of the dual solution β, which itself need not be unique."""
    X, labels = random(10, 4), torch.arange(10) % 3
    Y = torch.nn.functional.one_hot(labels, 3).double()
    X_jax, Y_jax = in_jax(X, Y)
    dual = objective.multiclass_linear_svm_dual
    if solver == "projected gradient":
        project = lambda beta, _=None: jax.vmap(projection.projection_simplex)(beta)  # noqa: E731
        machine = jaxopt.ProjectedGradient(dual, project, implicit_diff_solve=SOLVE, **EXACT)
    else:
        project = lambda row, _=None, scaling=1.0: projection.projection_simplex(row)  # noqa: E731
        machine = jaxopt.BlockCoordinateDescent(dual, project, implicit_diff_solve=SOLVE, **EXACT)
    norm = float(torch.linalg.matrix_norm(X, 2)) ** 2

    def ours(scale: Tensor) -> Tensor:
        def step(beta: Tensor, scale: Tensor) -> Tensor:
            return project_simplex(beta - (X @ (X.T @ (beta - Y)) + scale * (Y - 1)) / norm, 1.0)

        beta = fixed_point(step, torch.full((10, 3), 1 / 3), scale, tol=1e-13, max_steps=100_000).u
        return X.T @ (Y - beta) / scale

    def theirs(scale):
        beta = machine.run(jnp.full((10, 3), 1 / 3), None, scale, (X_jax, Y_jax)).params
        return X_jax.T @ (Y_jax - beta) / scale

    assert_same(ours, theirs, torch.tensor(5.0))
