"""StepLISTA: ISTA with a learned step size a layer.

    x_{k+1} = prox_{s_k g}(x_k − s_k ∇f(x_k)),   s_k = r_k / L,   L = ‖A‖²

Source: Ablin, Moreau, Massias & Gramfort 2019, Learning step sizes for unfolded sparse coding, NeurIPS,
arXiv:1905.11071, eq. 8 (SLISTA). The relaxation r_k is learned, and so carries over to other matrices. It goes with any
operator and any regularizer, whose λ it keeps: a fixed point of every layer is a solution.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from l2o.problem import Problem
from l2o.rule import ModelBasedRule
from l2o.rules.checks import check_positive
from l2o.rules.support import check_layers, per_layer, positive


class StepLISTAState(NamedTuple):
    """What StepLISTA computes once."""

    inverse: Tensor
    """1 / L, shape () or one per item."""


@dataclass(frozen=True)
class StepLISTAConfig:
    """Shape and initial value of `StepLISTA`."""

    layers: int = 16
    """Steps with a step size of their own."""
    relaxation: float = 1.0
    """r_k to begin with, in units of 1/L; 1 is ISTA."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if layers is below 1, or the relaxation is not positive.
        """
        check_layers(self.layers)
        check_positive(relaxation=self.relaxation)


class StepLISTA(ModelBasedRule):
    """θ = {log_relaxation: a scalar a layer}; for any problem. To begin with, every layer is an ISTA step."""

    def __init__(self, config: StepLISTAConfig | None = None):
        super().__init__()
        self.config = config or StepLISTAConfig()
        self.layers = self.config.layers
        self.log_relaxation = per_layer(self.config.relaxation for _ in range(self.config.layers))

    def init_problem(self, problem: Problem, x: Tensor) -> StepLISTAState:
        """See `ModelBasedRule.init_problem`.

        Raises:
            ValueError: if the problem has a second term.
        """
        if problem.composite is not None:
            raise ValueError("StepLISTA is for one regularizer, but the problem has a second term h(Kx)")
        return StepLISTAState(1 / problem.lipschitz)

    def iterate(self, problem: Problem, x: Tensor, state: StepLISTAState, step: int) -> tuple[Tensor, StepLISTAState]:
        """See the module's equation."""
        step_size = positive(self.log_relaxation, step, x) * state.inverse.to(x.dtype)
        return problem.prox(x - problem.per_item(step_size) * problem.smooth_grad(x), step_size), state
