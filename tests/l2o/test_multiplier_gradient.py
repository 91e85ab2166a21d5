"""Implicit gradients of rules whose fixed point is more than x: multipliers and dual variables move with the data."""

import pytest
import torch
from torch import Tensor

import l2o
from l2o.constrained import ConstrainedProblem
from l2o.fixed_point import GradientMode
from l2o.proximal import L1, Matrix, SquaredL2
from l2o.rule import UpdateRule
from l2o.rules import ISTA, LADMM, CondatVu
from l2o.rules.gkm import GKM
from l2o.rules.gkm_accelerated import AcceleratedALM
from l2o.rules.gkm_admm import ProximalADMM
from l2o.rules.gkm_alm import LinearizedALM, Spectrum
from l2o.rules.gkm_gradient import ProximalGradient
from l2o.rules.gkm_primal_dual import PrimalDual
from l2o.rules.gkm_proximal_alm import ProximalALM

ROWS, COLUMNS = 8, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rule(name: str, A: Tensor) -> UpdateRule:
    parts = {
        "linearised ALM": lambda: LinearizedALM(Spectrum(A)),
        "proximal ADMM": ProximalADMM,
        "proximal ALM": ProximalALM,
    }
    if name == "accelerated ALM":
        return AcceleratedALM(LinearizedALM(Spectrum(A)).double())
    return LADMM() if name == "LADMM" else GKM(parts[name]()).double()


@pytest.mark.parametrize("name", ["LADMM", "linearised ALM", "accelerated ALM", "proximal ADMM"])
def test_a_lasso_written_with_a_constraint_has_the_gradient_on_its_support(float64, name):
    """min λ‖z‖₁ + (γ/2)‖e‖² s.t. Az + e = b: z_S = (A_SᵀA_S)⁻¹(A_Sᵀb − (λ/γ) sign z_S)."""
    A, c, gamma = random(ROWS, COLUMNS), random(2, COLUMNS, seed=2), 2.0
    b, strength = random(2, ROWS, seed=1).requires_grad_(), torch.tensor(1.5, requires_grad=True)
    problem = ConstrainedProblem(Matrix(A), b, L1(strength), SquaredL2(gamma))
    solution = l2o.solve(rule(name, A), problem, steps=1500, history=False, gradient="implicit")
    exact = torch.zeros(())
    for z, data, weight in zip(solution.x.detach(), b, c, strict=True):
        S = z.abs() > 1e-9
        assert 0 < S.sum() < COLUMNS
        found = torch.linalg.solve(A[:, S].T @ A[:, S], A[:, S].T @ data - strength / gamma * z[S].sign())
        torch.testing.assert_close(z[S], found.detach(), rtol=0, atol=1e-8)
        exact = exact + found @ weight[S]
    got, expected = (torch.autograd.grad(value, (b, strength)) for value in ((c * solution.x).sum(), exact))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)
    assert solution.report is not None and solution.report.converged


@pytest.mark.parametrize("name", ["LADMM", "linearised ALM", "accelerated ALM", "proximal ADMM", "proximal ALM"])
def test_the_shortest_solution_of_equations_has_the_pseudoinverse_as_jacobian(float64, name):
    A, c, b = random(4, 7), random(2, 7, seed=2), random(2, 4, seed=1).requires_grad_()
    problem = ConstrainedProblem(Matrix(A), b, SquaredL2(0.7))
    x = l2o.solve(rule(name, A), problem, steps=1500, history=False, gradient="implicit").x
    torch.testing.assert_close(torch.autograd.grad((c * x).sum(), b)[0], c @ torch.linalg.pinv(A), rtol=0, atol=1e-8)


def test_gkm_of_condat_vu_has_the_gradient_of_condat_vu_and_of_unrolling(float64):
    b, strength = random(2, 12).requires_grad_(), torch.tensor(0.2, requires_grad=True)
    jumps = l2o.Composite(L1(strength), Matrix(torch.diff(torch.eye(12), dim=0)))
    problem, c = l2o.Problem(Matrix(torch.eye(12)), b, SquaredL2(0.1), jumps), random(2, 12, seed=2)
    gkm, grads = GKM(PrimalDual()).double(), []
    runs: list[tuple[UpdateRule, GradientMode]]
    runs = [(gkm, "implicit"), (gkm, "unrolled"), (CondatVu(), "implicit")]
    for method, gradient in runs:
        x = l2o.solve(method, problem, steps=1500, history=False, gradient=gradient).x
        grads.append(torch.autograd.grad((c * x).sum(), (b, strength)))
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-8)
    torch.testing.assert_close(grads[0], grads[2], rtol=0, atol=1e-8)


def test_a_state_without_duals_adds_nothing_to_the_fixed_point(float64):
    b = random(3, ROWS).requires_grad_()
    problem = l2o.Problem(Matrix(random(ROWS, COLUMNS)), b, L1(0.5))
    grads = [
        torch.autograd.grad(l2o.solve(method, problem, steps=2000, gradient="implicit").x.sum(), b)[0]
        for method in (GKM(ProximalGradient()).double(), ISTA())
    ]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-8)
