"""D_num of GKM for min (γ/2)‖z‖² s.t. Az = b: the proximal method of multipliers, an exact ridge solve in each step.

The first equation of `l2o/rules/gkm_alm.py` with P = η I, Q = β, h = 0:  (γ + η + βAᵀA) z⁺ = ηz − Aᵀ(λ − βb), then
λ⁺ = λ + β(Az⁺ − b): firmly nonexpansive in H = diag(η I, I/β). Source: Liu et al. 2022, arXiv:2206.07875, §2.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.constrained import ConstrainedProblem
from l2o.metric import Metric
from l2o.proximal import Dictionary, Matrix, SquaredL2
from l2o.rules.checks import check_positive
from l2o.rules.gkm import NumericalPart


class MultiplierPoint(NamedTuple):
    """u of `ProximalALM`."""

    x: Tensor
    """z, shape (items, columns)."""
    multiplier: Tensor
    """λ, shape (items, rows)."""


class _BlockMetric(Metric):
    """H = diag(η I, I/β)."""

    def __init__(self, proximity: Tensor, penalty: Tensor):
        self._weights = proximity, 1 / penalty

    def apply(self, u: MultiplierPoint) -> MultiplierPoint:
        return MultiplierPoint(self._weights[0] * u.x, self._weights[1] * u.multiplier)

    def solve(self, u: MultiplierPoint) -> MultiplierPoint:
        return MultiplierPoint(u.x / self._weights[0], u.multiplier / self._weights[1])


class ProximalALM(NumericalPart):
    """ω = {log_penalty (), log_proximity ()}: β and η, for g = (γ/2)‖z‖² and no h; a ridge solve in each step.

    Args:
        penalty: β that training starts with, positive.
        proximity: η, positive.

    Raises:
        ValueError: if one is not positive.
    """

    problem = ConstrainedProblem

    def __init__(self, penalty: float = 1.0, proximity: float = 1.0):
        super().__init__()
        check_positive(penalty=penalty, proximity=proximity)
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))
        self.log_proximity = nn.Parameter(torch.tensor(math.log(proximity)))

    def start(self, problem: ConstrainedProblem, x: Tensor) -> MultiplierPoint:
        """(x, 0).

        Raises:
            TypeError: if the problem is not min (γ/2)‖z‖² s.t. Az = b with a matrix A.
        """
        quadratic = isinstance(problem.regularizer, SquaredL2) and problem.second is None
        if not quadratic or not isinstance(problem.operator, Dictionary | Matrix):
            raise TypeError("ProximalALM needs g = SquaredL2, no h, and a matrix A; use LinearizedALM")
        return MultiplierPoint(x, torch.zeros_like(problem.b))

    def forward(self, problem: ConstrainedProblem, u: MultiplierPoint) -> MultiplierPoint:
        """See the module's equation."""
        penalty, proximity = (log.exp().to(u.x.dtype) for log in (self.log_penalty, self.log_proximity))
        gamma = torch.as_tensor(problem.regularizer.strength, dtype=u.x.dtype)  # pyright: ignore
        right = proximity * u.x - problem.operator.adjoint(u.multiplier - penalty * problem.b)
        z = problem.operator.solve(right / penalty, (gamma + proximity) / penalty)
        return MultiplierPoint(z, u.multiplier + penalty * problem.residual(z))

    def metric(self, problem: ConstrainedProblem) -> Metric:
        """H = diag(η I, I/β)."""
        return _BlockMetric(self.log_proximity.exp().to(problem.b.dtype), self.log_penalty.exp().to(problem.b.dtype))

    def averagedness(self, problem: ConstrainedProblem) -> float:
        """1/2."""
        return 0.5
