"""D_num of GKM for ½‖Ax − b‖² + g(x) + h(Kx): the primal–dual step of Condat and Vũ; u = (x, y).

    x⁺ = prox_{τ g}(x − τ(∇f(x) + Kᵀy)),    y⁺ = prox_{σ h*}(y + σK(2x⁺ − x)),    H = [[I/τ, −Kᵀ], [−K, I/σ]]

It is a forward–backward step in H. With κ = 1/τ − σ‖K‖² the gradient is κ/L-cocoercive there, and κ = L/s with s < 2
makes the map a₀-averaged, a₀ = 2/(4 − s), and H positive definite.

From the paper (Liu et al. 2022, arXiv:2206.07875): the method with H_ω. a₀: Condat 2013, J. Optim. Theory Appl. 158(2),
proof of theorem 3.1. Ours: the parameters, which keep κ above L/2 whatever they are.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.metric import Metric
from l2o.problem import Composite, Problem
from l2o.rule import State
from l2o.rules.checks import check_positive
from l2o.rules.gkm import NumericalPart


class PrimalDualPoint(NamedTuple):
    """u of Condat–Vũ."""

    x: Tensor
    """The primal variable, shape (items, *K.in_shape)."""
    dual: Tensor
    """y, shape (items, *K.out_shape)."""


class _PrimalDualMetric(Metric):
    """H = [[I/τ, −Kᵀ], [−K, I/σ]], for one τ and σ."""

    def __init__(self, term: Composite, primal_step: Tensor, dual_step: Tensor):
        self._K, self._steps = term.operator, (primal_step, dual_step)

    def apply(self, u: State) -> PrimalDualPoint:
        x = u.x / self._steps[0] - self._K.adjoint(u.dual)
        return PrimalDualPoint(x, u.dual / self._steps[1] - self._K.forward(u.x))


class PrimalDual(NumericalPart):
    """ω = {log_balance (), logit_step ()}: σ‖K‖² = balance · L/2 and 1/τ = L/s + σ‖K‖², s = 2 sigmoid(logit_step).

    Args:
        balance: that training starts with, positive.
        step: s, in (0, 2).

    Raises:
        ValueError: if one is out of its range.
    """

    problem = Problem

    def __init__(self, balance: float = 1.0, step: float = 1.0):
        super().__init__()
        check_positive(balance=balance)
        if not 0 < step < 2:
            raise ValueError(f"step must be in (0, 2), got {step}")
        self.log_balance = nn.Parameter(torch.tensor(math.log(balance)))
        self.logit_step = nn.Parameter(torch.logit(torch.tensor(step / 2)))

    def steps(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """τ and σ, each of shape ().

        Raises:
            ValueError: if each item has an operator of its own.
        """
        lipschitz = problem.lipschitz.to(problem.b.dtype)
        with torch.no_grad():
            squared = _term(problem).operator.norm().square().to(lipschitz.dtype).clamp(min=1e-12)
        if lipschitz.dim() or squared.dim():
            raise ValueError("PrimalDual takes one A and one K for all items")
        coupling = self.log_balance.exp().to(lipschitz.dtype) * lipschitz / 2
        step = 2 * self.logit_step.sigmoid().to(lipschitz.dtype)
        return 1 / (lipschitz / step + coupling), coupling / squared

    def start(self, problem: Problem, x: Tensor) -> PrimalDualPoint:
        """(x, 0).

        Raises:
            TypeError: if there is no term h(Kx).
        """
        return PrimalDualPoint(x, x.new_zeros((*problem.batch_shape, *_term(problem).operator.out_shape)))

    def forward(self, problem: Problem, u: PrimalDualPoint) -> PrimalDualPoint:
        """See the module's equation."""
        (tau, sigma), term = self.steps(problem), _term(problem)
        gradient = problem.smooth_grad(u.x) + term.operator.adjoint(u.dual)
        x = problem.regularizer.prox(u.x - tau * gradient, tau)
        ahead = u.dual + sigma * term.operator.forward(2 * x - u.x)
        return PrimalDualPoint(x, term.function.conjugate().prox(ahead, sigma))

    def metric(self, problem: Problem) -> Metric:
        """H = [[I/τ, −Kᵀ], [−K, I/σ]]."""
        return _PrimalDualMetric(_term(problem), *self.steps(problem))

    def averagedness(self, problem: Problem) -> float:
        """2 / (4 − s)."""
        return 2 / (4 - 2 * float(self.logit_step.detach().sigmoid()))


def _term(problem: Problem) -> Composite:
    if problem.composite is None:
        raise TypeError("PrimalDual needs a term h(Kx); without one use ProximalGradient")
    return problem.composite
