"""D_num of GKM for min g(z) + h(e) s.t. Az + e = b: proximal ADMM, with z linearised and e exact; u = (z, s).

    e  = prox_{h/β}(s),   λ = β(e − s)
    z⁺ = prox_{τ g}(z − τ Aᵀ(λ + β(Az + e − b))),        s⁺ = s − e − (Az⁺ − b),        H = diag(I/τ − βAᵀA, βI)

From the paper (Liu et al. 2022, arXiv:2206.07875): proximal ADMM with P = I/τ − βAᵀA among the D_num. Ours: the
coordinates. In (z, e, λ) ADMM is firmly nonexpansive along its own iterates only, which satisfy −λ ∈ ∂h(e); s = e − λ/β
holds both, and every s is allowed. With differences d of two points, a = A dz⁺, monotone ∂g and firm prox_h:

    ⟨du⁺, H(du − du⁺)⟩ ≥ β[⟨a, a + 2de − ds⟩ + ⟨ds − de − a, de + a⟩] = β⟨de, ds − de⟩ ≥ 0

so the map is firmly nonexpansive in H on the whole space. Its fixed points have s = e − λ/β, which depends on β.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.constrained import ConstrainedProblem
from l2o.metric import Metric
from l2o.proximal.operator import LinearOperator
from l2o.rules.checks import check_decay, check_positive
from l2o.rules.gkm import NumericalPart


class ADMMPoint(NamedTuple):
    """u of proximal ADMM."""

    x: Tensor
    """z, shape (items, columns)."""
    governing: Tensor
    """s, shape (items, rows)."""


class _ADMMMetric(Metric):
    """H = diag(I/τ − βAᵀA, βI)."""

    def __init__(self, operator: LinearOperator, step: Tensor, penalty: Tensor):
        self._A, self._step, self._penalty = operator, step, penalty

    def apply(self, u: ADMMPoint) -> ADMMPoint:
        z = u.x / self._step - self._penalty * self._A.adjoint(self._A.forward(u.x))
        return ADMMPoint(z, self._penalty * u.governing)


class ProximalADMM(NumericalPart):
    """ω = {log_penalty (), logit_ratio ()}: β, and τβ‖A‖² = sigmoid(logit_ratio) < 1, which makes H positive definite.

    Args:
        penalty: β that training starts with, positive.
        ratio: τβ‖A‖², in (0, 1).

    Raises:
        ValueError: if one is out of its range.
    """

    problem = ConstrainedProblem

    def __init__(self, penalty: float = 1.0, ratio: float = 0.98):
        super().__init__()
        check_positive(penalty=penalty)
        check_decay(ratio=ratio)
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))
        self.logit_ratio = nn.Parameter(torch.logit(torch.tensor(ratio)))

    def steps(self, problem: ConstrainedProblem) -> tuple[Tensor, Tensor]:
        """τ and β, each of shape ()."""
        penalty = self.log_penalty.exp().to(problem.b.dtype)
        with torch.no_grad():
            squared = problem.operator.norm().square().to(problem.b.dtype)
        return self.logit_ratio.sigmoid().to(problem.b.dtype) / (penalty * squared), penalty

    def start(self, problem: ConstrainedProblem, x: Tensor) -> ADMMPoint:
        """(x, 0)."""
        return ADMMPoint(x, torch.zeros_like(problem.b))

    def forward(self, problem: ConstrainedProblem, u: ADMMPoint) -> ADMMPoint:
        """See the module's equation."""
        step, penalty = self.steps(problem)
        e = problem.prox_second(u.governing, 1 / penalty)
        ahead = 2 * e - u.governing + problem.residual(u.x)  # (λ + β(Az + e − b)) / β
        z = problem.regularizer.prox(u.x - step * penalty * problem.operator.adjoint(ahead), step)
        return ADMMPoint(z, u.governing - e - problem.residual(z))

    def metric(self, problem: ConstrainedProblem) -> Metric:
        """H = diag(I/τ − βAᵀA, βI)."""
        return _ADMMMetric(problem.operator, *self.steps(problem))

    def dual_variable(self, problem: ConstrainedProblem, u: ADMMPoint) -> Tensor:
        """λ = β(e − s), shape (items, rows)."""
        penalty = self.steps(problem)[1]
        return penalty * (problem.prox_second(u.governing, 1 / penalty) - u.governing)

    def averagedness(self, problem: ConstrainedProblem) -> float:
        """1/2."""
        return 0.5
