"""Proximal gradient descent, ISTA where g = λ‖x‖₁.

    x_{t+1} = prox_{g/L}(x_t − (1/L) ∇f(x_t)),   L = ‖A‖²

Source: Daubechies, Defrise & De Mol 2004, CPAM 57(11); Beck & Teboulle 2009, SIAM J. Imaging Sciences 2(1), eq. 3.1.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from l2o.problem import Problem
from l2o.rule import ModelBasedRule


class ISTAState(NamedTuple):
    """What ISTA computes once."""

    step_size: Tensor
    """relaxation / L, shape () or one per item."""


@dataclass(frozen=True)
class ISTAConfig:
    """Options of `ISTA`."""

    relaxation: float = 1.0
    """Step size in units of 1/L, in (0, 2)."""

    def __post_init__(self):
        """Check the range.

        Raises:
            ValueError: if the relaxation is outside (0, 2), where ISTA converges.
        """
        if not 0 < self.relaxation < 2:
            raise ValueError(f"relaxation must be in (0, 2), got {self.relaxation}")


class ISTA(ModelBasedRule):
    """x ← prox_{s g}(x − s ∇f(x)), s = relaxation / L; nothing is learned."""

    def __init__(self, config: ISTAConfig | None = None):
        super().__init__()
        self.config = config or ISTAConfig()

    def init_problem(self, problem: Problem, x: Tensor) -> ISTAState:
        """See `ModelBasedRule.init_problem`."""
        return ISTAState(self.config.relaxation / problem.lipschitz)

    def iterate(self, problem: Problem, x: Tensor, state: ISTAState, step: int) -> tuple[Tensor, ISTAState]:
        """One proximal gradient step."""
        descent = x - problem.per_item(state.step_size) * problem.smooth_grad(x)
        return problem.prox(descent, state.step_size), state
