"""ALISTA: two scalars a layer are learned, the matrix follows from A in closed form.

    x_{k+1} = η^{p_k}_{θ_k}(x_k − γ_k Wᵀ(A x_k − b)),   W = argmin ‖WᵀA‖_F subject to w_iᵀa_i = 1

Source: Liu, Chen, Wang & Yin 2019, ALISTA: analytic weights are as good as learned weights in LISTA, ICLR, eq. 9 (the
step) and 16 (W), with the support selection η^p of Chen et al. 2018 (`l2o.rules.support`).
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from l2o.problem import Problem
from l2o.rule import ModelBasedRule
from l2o.rules.checks import check_positive
from l2o.rules.support import (
    SUPPORT_MOST,
    SUPPORT_STEP,
    THRESHOLD,
    THRESHOLD_DECAY,
    check_layers,
    dictionary_of,
    multiply,
    per_layer,
    positive,
    shared,
    support_count,
    threshold_but_largest,
)


class ALISTAState(NamedTuple):
    """What ALISTA computes once."""

    weights: Tensor
    """Wᵀ, shape (1, n, m), or (batch…, n, m) where each item has its own A."""


@dataclass(frozen=True)
class ALISTAConfig:
    """Shape and initial values of `ALISTA`."""

    layers: int = 16
    """Steps with weights of their own."""
    step_size: float = 1.0
    """γ_k to begin with, dimensionless."""
    threshold: float = THRESHOLD
    """θ_0 to begin with, units of x."""
    threshold_decay: float = THRESHOLD_DECAY
    """θ_{k+1} / θ_k to begin with."""
    support_step: float = SUPPORT_STEP
    """Fraction of the entries that every layer trusts more than the one before; 0: no support selection."""
    support_most: float = SUPPORT_MOST
    """Fraction of the entries that a layer trusts, at most."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if layers is below 1, a size is not positive, or a fraction is outside [0, 1].
        """
        check_positive(step_size=self.step_size, threshold=self.threshold, threshold_decay=self.threshold_decay)
        check_layers(self.layers, self.support_step, self.support_most)


class ALISTA(ModelBasedRule):
    """θ = {log_step_size, log_threshold: a scalar a layer}; for any matrix.

    To begin with, layer 0 is an ISTA step with Wᵀ in the place of Aᵀ, step size 1 and a threshold of its own.
    """

    def __init__(self, config: ALISTAConfig | None = None):
        super().__init__()
        self.config = config or ALISTAConfig()
        self.layers = self.config.layers
        first, decay = self.config.threshold, self.config.threshold_decay
        self.log_step_size = per_layer(self.config.step_size for _ in range(self.config.layers))
        self.log_threshold = per_layer(first * decay**layer for layer in range(self.config.layers))

    def init_problem(self, problem: Problem, x: Tensor) -> ALISTAState:
        """See `ModelBasedRule.init_problem`."""
        return ALISTAState(shared(dictionary_of(problem, "ALISTA").analytic_weights.mT))

    def iterate(self, problem: Problem, x: Tensor, state: ALISTAState, step: int) -> tuple[Tensor, ALISTAState]:
        """See the module's equation."""
        config = self.config
        layer = min(step, config.layers - 1)
        count = support_count(layer, x.shape[-1], config.support_step, config.support_most)
        descent = x - positive(self.log_step_size, step, x) * multiply(state.weights, problem.residual(x))
        threshold = positive(self.log_threshold, step, x)
        return threshold_but_largest(descent, threshold, count), state
