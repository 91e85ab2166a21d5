"""D_num of GKM for F(x) = ½‖Ax − b‖² + g(x): the proximal gradient step, plain and preconditioned; u = (x,).

    proximal gradient                  x⁺ = prox_{s g}(x − s ∇f(x)),                 H = I,        0 < s < 2/L
    preconditioned                     x⁺ = prox^P_g(x − P⁻¹ ∇f(x)),                 H = P = diag, P ≻ L/2

with prox^P_g(v) = argmin g(x) + ½‖x − v‖²_P. Both are a₀-averaged in H with a₀ = 2/(4 − r), where r = sL, or
r = λ_max(P^{-1/2} ∇²f P^{-1/2}): the composition of a ½-averaged prox and an r/2-averaged gradient step.

Source: the methods and metrics as listed by Liu et al. 2022, arXiv:2206.07875; a₀: Combettes & Yamada 2015, J. Math.
Anal. Appl. 425, prop. 2.4. Ours: the parameters, which keep r below 2 whatever they are.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.metric import Euclidean, Metric
from l2o.problem import Problem
from l2o.proximal import L1, Nonnegative, NonnegativeL1
from l2o.rules.gkm import NumericalPart

_SEPARABLE = (L1, NonnegativeL1, Nonnegative)
"""Functions that are sums over coordinates, whose prox in a diagonal metric is that of each coordinate."""


class GradientPoint(NamedTuple):
    """u of the proximal gradient methods."""

    x: Tensor
    """The primal variable."""


class ProximalGradient(NumericalPart):
    """ω = {logit_step ()}: s = 2 sigmoid(logit_step) / L.

    Args:
        step: s L that training starts with, in (0, 2).

    Raises:
        ValueError: if the step is outside.
    """

    problem = Problem

    def __init__(self, step: float = 1.0):
        super().__init__()
        self.logit_step = nn.Parameter(_logit_of_half(step))

    def start(self, problem: Problem, x: Tensor) -> GradientPoint:
        """(x,)."""
        return GradientPoint(x)

    def forward(self, problem: Problem, u: GradientPoint) -> GradientPoint:
        """See the module's equation."""
        step = 2 * self.logit_step.sigmoid().to(u.x.dtype) / problem.lipschitz
        return GradientPoint(problem.prox(u.x - problem.per_item(step) * problem.smooth_grad(u.x), step))

    def metric(self, problem: Problem) -> Metric:
        """H = I."""
        return Euclidean()

    def averagedness(self, problem: Problem) -> float:
        """2 / (4 − sL)."""
        return 2 / (4 - 2 * float(self.logit_step.detach().sigmoid()))


class DiagonalMetric(Metric):
    """H = diag(weights), of points with one tensor.

    Args:
        weights: positive, shape (own axes…).
    """

    def __init__(self, weights: Tensor):
        self.weights = weights

    def apply(self, u: GradientPoint) -> GradientPoint:
        """Hu."""
        return GradientPoint(self.weights * u.x)

    def solve(self, u: GradientPoint) -> GradientPoint:
        """H⁻¹u."""
        return GradientPoint(u.x / self.weights)


class PreconditionedProximalGradient(NumericalPart):
    """ω = {log_weight (n,), logit_step ()}: P = (L / 2 sigmoid(logit_step)) · d / min d with d = exp(log_weight).

    So P ⪰ L/s I with s = 2 sigmoid(logit_step) < 2: r ≤ s. For functions g that are sums over coordinates.

    Args:
        coordinates: n, of vectors x.
        step: s that training starts with, in (0, 2).

    Raises:
        ValueError: if the step is outside.
    """

    problem = Problem

    def __init__(self, coordinates: int, step: float = 1.0):
        super().__init__()
        self.log_weight = nn.Parameter(torch.zeros(coordinates))
        self.logit_step = nn.Parameter(_logit_of_half(step))

    def weights(self, problem: Problem) -> Tensor:
        """The diagonal of P, shape (n,).

        Raises:
            ValueError: if each item has a matrix of its own: P is one for all.
        """
        if problem.lipschitz.dim():
            raise ValueError("the preconditioner is one for all items, so A must be shared by all")
        relative = (self.log_weight - self.log_weight.amin()).exp()
        return (relative / (2 * self.logit_step.sigmoid())).to(problem.b.dtype) * problem.lipschitz

    def start(self, problem: Problem, x: Tensor) -> GradientPoint:
        """(x,).

        Raises:
            TypeError: if g is not a sum over coordinates, or there is a term h(Kx).
        """
        g = problem.regularizer
        separable = isinstance(g, _SEPARABLE) and not isinstance(getattr(g, "strength", 0.0), Tensor)
        if not separable or problem.composite is not None:
            raise TypeError(
                f"a preconditioned prox needs g = λ‖x‖₁ with one λ, or x ≥ 0, and no h(Kx); got {type(g).__name__}; "
                "use ProximalGradient or PrimalDual"
            )
        return GradientPoint(x)

    def forward(self, problem: Problem, u: GradientPoint) -> GradientPoint:
        """See the module's equation."""
        steps = 1 / self.weights(problem)
        moved = u.x - steps * problem.smooth_grad(u.x)
        # One coordinate is one item here: the prox of each has its own step.
        return GradientPoint(problem.regularizer.prox(moved.unsqueeze(-1), steps).squeeze(-1))

    def metric(self, problem: Problem) -> Metric:
        """H = P."""
        return DiagonalMetric(self.weights(problem))

    def averagedness(self, problem: Problem) -> float:
        """2 / (4 − s), for r ≤ s."""
        return 2 / (4 - 2 * float(self.logit_step.detach().sigmoid()))


def _logit_of_half(step: float) -> Tensor:
    if not 0 < step < 2:
        raise ValueError(f"step must be in (0, 2), got {step}")
    return torch.logit(torch.tensor(step / 2))
