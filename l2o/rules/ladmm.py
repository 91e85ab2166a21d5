"""LADMM, the linearised alternating direction method, on min g(z) + h(e) s.t. Az + e = b; nothing is learned.

    z_{t+1} = prox_{g/(βθ)}(z_t − Aᵀ(λ_t + β(Az_t + e_t − b)) / (βθ)),      θ = ‖A‖² / step
    e_{t+1} = prox_{h/β}(b − Az_{t+1} − λ_t/β)
    λ_{t+1} = λ_t + γ β (Az_{t+1} + e_{t+1} − b)

It converges for step < 1 and γ < (1 + √5)/2 (Lin, Liu & Su 2011, NeurIPS; γ: Fazel et al. 2013), and for step < 4/3
with γ = 1 (He, Ma & Yuan 2020, Optimally linearizing the ADMM). β is in units of 1 / mean |b| of each item, as in the
learned rules: the problem is homogeneous.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from l2o.constrained import ConstrainedProblem
from l2o.rule import ModelBasedRule
from l2o.rules.checks import check_positive


def check_constrained(problem: object, rule: ModelBasedRule) -> None:
    """Refuse problems of another kind.

    Raises:
        TypeError: if the problem is no `ConstrainedProblem`.
    """
    if not isinstance(problem, ConstrainedProblem):
        raise TypeError(
            f"{type(rule).__name__} takes an l2o.constrained.ConstrainedProblem, min g(z) + h(e) s.t. Az + e = b; got "
            f"a {type(problem).__name__}, for which ADMM or CondatVu may do"
        )


class MultiplierState(NamedTuple):
    """What the methods of multipliers remember besides z."""

    second: Tensor
    """e, shape (items, rows)."""
    multiplier: Tensor
    """λ, shape (items, rows)."""


@dataclass(frozen=True)
class LADMMConfig:
    """Options of `LADMM`."""

    penalty: float = 1.0
    """β · mean |b|, positive."""
    step: float = 1.0
    """‖A‖²/θ, positive; below 1, or below 4/3 with dual_step 1, convergence is proven."""
    dual_step: float = 1.0
    """γ, positive."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if one is not positive.
        """
        check_positive(penalty=self.penalty, step=self.step, dual_step=self.dual_step)


class LADMM(ModelBasedRule):
    """A linearised step of z, an exact one of e, and a dual step."""

    iterated = ("second", "multiplier")

    def __init__(self, config: LADMMConfig | None = None):
        super().__init__()
        self.config = config or LADMMConfig()

    def init_problem(self, problem: ConstrainedProblem, x: Tensor) -> MultiplierState:
        """See `ModelBasedRule.init_problem`; e = λ = 0.

        Raises:
            TypeError: if the problem is no `ConstrainedProblem`.
        """
        check_constrained(problem, self)
        zero = problem.b.new_zeros(problem.b.shape)
        return MultiplierState(zero, zero)

    def iterate(
        self, problem: ConstrainedProblem, x: Tensor, state: MultiplierState, step: int
    ) -> tuple[Tensor, MultiplierState]:
        """See the module's equation."""
        scale = problem.b.abs().mean(-1, keepdim=True)
        beta = self.config.penalty / scale.where(scale > 0, scale.new_ones(()))
        size = self.config.step / (beta * problem.operator.norm().square())
        slope = problem.operator.adjoint(state.multiplier + beta * (problem.residual(x) + state.second))
        z = problem.regularizer.prox(x - size * slope, size.squeeze(-1))
        residual = problem.residual(z)
        e = problem.prox_second(-residual - state.multiplier / beta, 1 / beta.squeeze(-1))
        return z, MultiplierState(e, state.multiplier + self.config.dual_step * beta * (residual + e))
