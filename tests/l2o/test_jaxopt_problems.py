"""The problems on which jaxopt tests its implicit gradients, here against closed forms and dense solves in float64.

Re-derived from the text: Blondel et al. 2022, Efficient and modular implicit differentiation, NeurIPS, §2.2 and §4
(ridge regression, the LASSO, support vector machines, logistic regression, projections, quadratic programs).
Jacobians are whole matrices: by `torch.func.jacrev` with explicit params, or row by row.
"""

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from l2o import CG, GMRES, Anderson, Dense, fixed_point, root
from l2o.proximal import L1, ElasticNet, Nonnegative, project_simplex

TOLERANCE = {"rtol": 0, "atol": 1e-8}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def regression() -> tuple[Tensor, Tensor, Tensor, float]:
    """X, y, XᵀX and the step 1 / ‖X‖²."""
    X, y = random(40, 8) / 5, random(40, seed=1)
    return X, y, X.T @ X, 1 / float(torch.linalg.matrix_norm(X, 2)) ** 2


@pytest.mark.parametrize("adjoint", [CG(), GMRES(), Dense()], ids=repr)
@pytest.mark.parametrize("how", ["root", "fixed point"])
def test_ridge_regression_with_a_penalty_for_each_coefficient(float64, how, adjoint):
    """∂u/∂λ = −(XᵀX + diag λ)⁻¹ diag u."""
    X, y, gram, _ = regression()
    penalties = 0.5 + random(8, seed=2).square()
    size = 1 / float(torch.linalg.matrix_norm(gram + penalties.diag(), 2))

    def gradient(u: Tensor, penalties: Tensor) -> Tensor:
        return X.T @ (X @ u - y) + penalties * u

    def solution(penalties: Tensor) -> Tensor:
        if how == "root":
            return root(gradient, torch.zeros(8), penalties, adjoint=adjoint, tol=1e-12).u
        step = lambda u, penalties: u - size * gradient(u, penalties)  # noqa: E731
        return fixed_point(step, torch.zeros(8), penalties, adjoint=adjoint, tol=1e-12).u

    inverse = torch.linalg.inv(gram + penalties.diag())
    exact = inverse @ (X.T @ y)
    torch.testing.assert_close(solution(penalties), exact, **TOLERANCE)
    torch.testing.assert_close(torch.func.jacrev(solution)(penalties), -inverse @ exact.diag(), **TOLERANCE)


@pytest.mark.parametrize("ridge", [0.0, 0.7], ids=["lasso", "elastic net"])
@pytest.mark.parametrize("acceleration", [None, Anderson()], ids=["plain", "anderson"])
def test_lasso_and_elastic_net_on_their_support(float64, ridge, acceleration):
    """u_S = (X_SᵀX_S + ρI)⁻¹(X_Sᵀy − λ sign u_S): ∂u_S/∂λ = −(X_SᵀX_S + ρI)⁻¹ sign u_S, and 0 off the support."""
    X, y, gram, size = regression()
    size = 1 / (1 / size + ridge)

    def solution(strength: Tensor) -> Tensor:
        def step(u: Tensor, strength: Tensor) -> Tensor:
            function = ElasticNet(strength, ridge) if ridge else L1(strength)
            return function.prox(u - size * X.T @ (X @ u - y), size)

        return fixed_point(step, torch.zeros(8), strength, acceleration=acceleration, tol=1e-12, max_steps=20_000).u

    strength = torch.tensor(0.8)
    u = solution(strength)
    S = u != 0
    assert 0 < S.sum() < 8
    matrix, sign = gram[S][:, S] + ridge * torch.eye(int(S.sum())), u[S].sign()
    exact, slope = torch.zeros(8), torch.zeros(8)
    exact[S] = torch.linalg.solve(matrix, X.T[S] @ y - strength * sign)
    slope[S] = torch.linalg.solve(matrix, -sign)
    assert bool(((X.T @ (y - X @ exact))[~S].abs() < strength).all())  # so that it is the solution
    torch.testing.assert_close(u, exact, **TOLERANCE)
    torch.testing.assert_close(torch.func.jacrev(solution)(strength), slope, **TOLERANCE)


def svm() -> tuple[Tensor, Tensor]:
    return random(10, 4), torch.nn.functional.one_hot(torch.arange(10) % 3, 3).double()


def test_multiclass_svm_dual_by_projected_gradient_is_that_of_its_active_set(float64):
    """max −‖Xᵀ(Y − β)‖²/2λ + ⟨1 − Y, β⟩, rows of β on the simplex; λ ↦ W = Xᵀ(Y − β)/λ, which is unique.

    With K = XXᵀ ⊗ I and a basis N of the changes of β that keep its zeros and the sums of its rows, optimality is
    Nᵀ(K(β − Y) + λ(Y − 1)) = 0, and so β′ = N(NᵀKN)⁺Nᵀ(1 − Y) up to what Xᵀ does not see.
    """
    X, Y = svm()
    norm = float(torch.linalg.matrix_norm(X, 2)) ** 2

    def dual(scale: Tensor) -> Tensor:
        def step(beta: Tensor, scale: Tensor) -> Tensor:
            return project_simplex(beta - (X @ (X.T @ (beta - Y)) + scale * (Y - 1)) / norm, 1.0)

        return fixed_point(step, torch.full((10, 3), 1 / 3), scale, tol=1e-13, max_steps=100_000).u

    scale = torch.tensor(5.0)
    beta = dual(scale)
    gradient = X @ (X.T @ (beta - Y)) + scale * (Y - 1)
    free = beta > 0
    level = torch.where(free, gradient, torch.inf).amin(1, keepdim=True)
    assert bool(torch.where(free, (gradient - level).abs() < 1e-8, gradient > level + 1e-6).all())  # strict: optimal
    rows = []
    for row, columns in enumerate(free):
        first, *others = columns.nonzero().flatten().tolist()
        for other in others:
            direction = torch.zeros(10, 3)
            direction[row, first], direction[row, other] = -1, 1
            rows.append(direction.flatten())
    N = torch.stack(rows, 1)
    K = torch.kron(X @ X.T, torch.eye(3))
    slope_beta = (N @ torch.linalg.pinv(N.T @ K @ N, rtol=1e-10) @ (N.T @ (1 - Y).flatten())).reshape(10, 3)
    expected = -X.T @ slope_beta / scale - X.T @ (Y - beta) / scale**2
    W = lambda scale: X.T @ (Y - dual(scale)) / scale  # noqa: E731
    torch.testing.assert_close(torch.func.jacrev(W)(scale), expected, **TOLERANCE)


@pytest.mark.parametrize("adjoint", [CG(), GMRES()], ids=repr)
def test_multiclass_logistic_regression_by_a_dense_hessian(float64, adjoint):
    """∂W/∂λ = −H⁻¹ W with H the Hessian of the penalised loss."""
    X, Y = random(30, 5), torch.arange(30) % 3
    strength = torch.tensor(0.7)

    def loss(W: Tensor, strength: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(X @ W, Y, reduction="sum") + strength * W.square().sum() / 2

    def solution(strength: Tensor) -> Tensor:
        gradient = torch.func.grad(loss)
        return root(gradient, torch.zeros(5, 3), strength, adjoint=adjoint, tol=1e-12).u

    W = solution(strength)
    H = hessian(lambda W: loss(W, strength), W).reshape(15, 15)  # pyright: ignore
    expected = -torch.linalg.solve(H, W.flatten()).reshape(5, 3)
    torch.testing.assert_close(torch.func.jacrev(solution)(strength), expected, **TOLERANCE)


def test_projection_onto_the_simplex_as_the_fixed_point_of_projected_gradient(float64):
    """∂u/∂t = I_S − 11ᵀ/|S| on the support S."""
    target = random(6, seed=3)

    def solution(target: Tensor) -> Tensor:
        step = lambda u, target: project_simplex(u - 0.5 * (u - target), 1.0)  # noqa: E731
        return fixed_point(step, torch.full((6,), 1 / 6), target, tol=1e-13).u

    u = solution(target)
    support = (u > 0).double()
    assert 1 < support.sum() < 6
    expected = support.diag() - torch.outer(support, support) / support.sum()
    torch.testing.assert_close(torch.func.jacrev(solution)(target), expected, **TOLERANCE)


def test_nonnegative_least_squares_on_its_positive_entries(float64):
    """u_S = X_S⁺ y: ∂u_S/∂y = X_S⁺."""
    X, y, _, size = regression()

    def solution(y: Tensor) -> Tensor:
        step = lambda u, y: Nonnegative().prox(u - size * X.T @ (X @ u - y), size)  # noqa: E731
        return fixed_point(step, torch.zeros(8), y, tol=1e-12, max_steps=20_000).u

    u = solution(y)
    S = u > 0
    assert 0 < S.sum() < 8 and bool(((X.T @ (X @ u - y))[~S] > 0).all())
    expected = torch.zeros(8, 40)
    expected[S] = torch.linalg.pinv(X[:, S])
    torch.testing.assert_close(u, expected @ y, **TOLERANCE)
    torch.testing.assert_close(torch.func.jacrev(solution)(y), expected, **TOLERANCE)


def test_kkt_conditions_of_a_quadratic_program_as_a_root(float64):
    """min ½uᵀQu + cᵀu s.t. Au = b, Gu ≤ h: (Qu + c + Aᵀν + Gᵀλ, Au − b, λ∘(Gu − h)) = 0, differentiated densely."""
    half = random(5, 5)
    Q, c, A, b = half @ half.T + torch.eye(5), random(5, seed=1), random(2, 5, seed=2), random(2, seed=3)
    G, kkt = random(4, 5, seed=4), torch.zeros(7, 7)
    kkt[:5, :5], kkt[:5, 5:], kkt[5:, :5] = Q, A.T, A
    free = torch.linalg.solve(kkt, torch.cat([-c, b]))[:5]
    h = G @ free + torch.tensor([-0.3, 1.0, 1.0, 1.0])  # the first is violated there, so active at the solution

    def conditions(z: Tensor, h: Tensor) -> Tensor:
        u, nu, lam = z.split([5, 2, 4])
        return torch.cat([Q @ u + c + A.T @ nu + G.T @ lam, A @ u - b, lam * (G @ u - h)])

    active = torch.cat([A, G[:1]])  # with the first inequality as an equation
    system = torch.cat([torch.cat([Q, active.T], 1), torch.cat([active, torch.zeros(3, 3)], 1)])
    found = torch.linalg.solve(system, torch.cat([-c, b, h[:1]]))
    z = torch.cat([found, torch.zeros(3)])
    assert found[7] > 0 and bool((G @ found[:5] < h)[1:].all())  # it is the solution
    exact = torch.zeros(5, 4)
    exact[:, 0] = torch.linalg.inv(system)[:5, 7]

    def solution(h: Tensor) -> Tensor:
        return root(conditions, z + 0.01 * random(11, seed=5), h, tol=1e-13).u[:5]

    torch.testing.assert_close(solution(h), found[:5], **TOLERANCE)
    torch.testing.assert_close(torch.func.jacrev(solution)(h), exact, **TOLERANCE)
    torch.testing.assert_close(jacobian(solution, h), exact, **TOLERANCE)
