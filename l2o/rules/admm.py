"""The alternating direction method of multipliers, ADMM, on ½‖Ax − b‖² + g(z) subject to x = z.

    x_{t+1} = (AᵀA + ρI)⁻¹ (Aᵀb + ρ (z_t − u_t))
    x̂       = α x_{t+1} + (1 − α) z_t
    z_{t+1} = prox_{g/ρ}(x̂ + u_t),   u_{t+1} = u_t + x̂ − z_{t+1}

The iterate of the rule is z. A matrix is factorised once; other operators solve in each step, by FFT for a convolution.

Source: Boyd et al. 2011, Distributed optimization and statistical learning via ADMM, Foundations and Trends in Machine
Learning 3(1), §6.4 and, for α, §3.4.3. Differs from it: u_0 = −∇f(z_0)/ρ instead of 0, so that a start at the solution
stays there; ρ is given in units of ‖A‖².
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import Dictionary, Matrix
from l2o.rule import ModelBasedRule


class ADMMState(NamedTuple):
    """What ADMM remembers; an entry that the operator does not need has no elements."""

    scaled_dual: Tensor
    """u_t, the shape of x."""
    rho: Tensor
    """ρ, shape () or one per item."""
    correlation: Tensor
    """Aᵀb, the shape of x."""
    inverse: Tensor
    """(AᵀA + ρI)⁻¹, shape (batch…, n, n); for a matrix with n ≤ 2m."""
    woodbury: Tensor
    """(AAᵀ + ρI)⁻¹A, shape (batch…, m, n); for a wider matrix."""


@dataclass(frozen=True)
class ADMMConfig:
    """Options of `ADMM`."""

    rho: float = 0.1
    """ρ in units of ‖A‖², above 0."""
    relaxation: float = 1.8
    """α, in (0, 2)."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if rho is not positive or the relaxation is outside (0, 2).
        """
        if not 0 < self.rho < float("inf"):
            raise ValueError(f"rho must be positive, got {self.rho}")
        if not 0 < self.relaxation < 2:
            raise ValueError(f"relaxation must be in (0, 2), got {self.relaxation}")


class ADMM(ModelBasedRule):
    """A ridge regression, a prox and a dual step in turn; nothing is learned."""

    iterated = ("scaled_dual",)

    def __init__(self, config: ADMMConfig | None = None):
        super().__init__()
        self.config = config or ADMMConfig()

    def init_problem(self, problem: Problem, x: Tensor) -> ADMMState:
        """See `ModelBasedRule.init_problem`."""
        rho = self.config.rho * problem.lipschitz.to(x.dtype)
        inverse, woodbury = _factors(problem, rho, x)
        return ADMMState(
            scaled_dual=-problem.smooth_grad(x) / problem.per_item(rho),
            rho=rho,
            correlation=problem.operator.adjoint(problem.b),
            inverse=inverse,
            woodbury=woodbury,
        )

    def iterate(self, problem: Problem, x: Tensor, state: ADMMState, step: int) -> tuple[Tensor, ADMMState]:
        """One round of the three updates; x is z_t."""
        right = state.correlation + problem.per_item(state.rho) * (x - state.scaled_dual)
        relaxed = torch.lerp(x, _ridge(problem, right, state), self.config.relaxation)
        shifted = relaxed + state.scaled_dual
        new = problem.prox(shifted, 1 / state.rho)
        return new, state._replace(scaled_dual=shifted - new)


def _factors(problem: Problem, rho: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two matrices of the state, computed in float64."""
    none = x.new_empty(0)
    if not isinstance(problem.operator, Dictionary | Matrix):
        return none, none
    A, rho = problem.operator.matrix.double(), rho.double()[..., None, None]
    wide = A.shape[-1] > 2 * A.shape[-2]
    gram = A @ A.mT if wide else A.mT @ A
    identity = torch.eye(gram.shape[-1], dtype=A.dtype, device=A.device)
    factor = torch.linalg.cholesky(gram + rho * identity)
    solved = torch.cholesky_solve(A if wide else identity.expand_as(gram), factor).to(x.dtype)
    return (none, solved) if wide else (solved, none)


def _ridge(problem: Problem, right: Tensor, state: ADMMState) -> Tensor:
    """(AᵀA + ρI)⁻¹ times the right-hand side."""
    if state.inverse.numel():
        return Matrix(state.inverse).forward(right)
    if state.woodbury.numel():
        reduced = problem.operator.adjoint(Matrix(state.woodbury).forward(right))
        return (right - reduced) / problem.per_item(state.rho)
    return problem.operator.solve(right, state.rho)
