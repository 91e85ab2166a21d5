"""GLISTA: LISTA-CPSS with gates that amplify a code before a step and lengthen the step after it.

    y       = (1 + μ_k ρ(ν_k |x_k|)) ∘ x_k,   ρ(u) = max(1 − u, 0)              (gain gate, piecewise linear)
    z       = η^{p_k}_{θ_k}(y − γ_k W_kᵀ(A y − b))
    x_{k+1} = o ∘ z + (1 − o) ∘ x_k,   o = 1 + α_k θ_k / (|z − x_k| + ε)         (overshoot gate, inverse proportional)

Source: Wu, Guo, Li & Zhang 2020, Sparse coding with gated learned ISTA, ICLR, eqs. 8–9 (gain) and 15–16 (overshoot),
with η^p of `l2o.rules.support`. Differs from it: μ_k and α_k start at 0, where both gates are open and the step is that
of LISTA-CPSS; the overshoot applies where z is not 0, for a zero entry must stay one; ε = 0.1 as in its code; with one
matrix for all layers a step size γ_k a layer is learned too, as in `l2o.rules.lista_cpss`, else γ_k = 1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.problem import Problem
from l2o.rule import ModelBasedRule
from l2o.rules.matrix_config import StartConfig
from l2o.rules.support import (
    SUPPORT_MOST,
    SUPPORT_STEP,
    check_layers,
    dictionary_of,
    per_layer,
    positive,
    start_matrix,
    start_thresholds,
    support_count,
    threshold_but_largest,
)

_EPSILON = 0.1


class GLISTAState(NamedTuple):
    """GLISTA remembers nothing."""


@dataclass(frozen=True)
class GLISTAConfig(StartConfig):
    """Shape and initial values of `GLISTA`."""

    support_step: float = SUPPORT_STEP
    """Fraction of the entries that every layer trusts more than the one before; 0: no support selection."""
    support_most: float = SUPPORT_MOST
    """Fraction of the entries that a layer trusts, at most."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if a size, the strength, a fraction or the start is out of its range.
        """
        super().__post_init__()
        check_layers(self.layers, self.support_step, self.support_most)


class GLISTA(ModelBasedRule):
    """θ = {weights (m, n), and log_threshold, gain, log_gain_width, overshoot, if tied log_step_size: ()}, one a layer.

    Args:
        dictionary: A, shape (rows, columns), of the one size that the weights fit: with start="ista" every layer is the
            ISTA step W = A/L, θ = λ/L, with start="analytic" that of ALISTA, both with this rule's support selection.
            None leaves the matrices 0, to be loaded.
    """

    def __init__(self, config: GLISTAConfig | None = None, dictionary: Tensor | None = None):
        super().__init__()
        self.config = config = config or GLISTAConfig()
        self.layers = config.layers
        start, inverse = start_matrix(dictionary, config.rows, config.columns, config.start == "analytic")
        self.weights = nn.ParameterList(start.clone() for _ in range(1 if config.tied else config.layers))
        self.log_threshold = start_thresholds(config.start, config.strength, inverse, config.layers)
        self.log_step_size = per_layer(1.0 for _ in range(config.layers if config.tied else 0))
        self.log_gain_width = per_layer(1.0 for _ in range(config.layers))  # ν_k
        self.gain = nn.ParameterList(torch.zeros(()) for _ in range(config.layers))  # μ_k
        self.overshoot = nn.ParameterList(torch.zeros(()) for _ in range(config.layers))  # α_k

    def init_problem(self, problem: Problem, x: Tensor) -> GLISTAState:
        """See `ModelBasedRule.init_problem`."""
        dictionary_of(problem, "GLISTA", (self.config.rows, self.config.columns))
        return GLISTAState()

    def iterate(self, problem: Problem, x: Tensor, state: GLISTAState, step: int) -> tuple[Tensor, GLISTAState]:
        """See the module's equations."""
        config = self.config
        layer = min(step, config.layers - 1)
        count = support_count(layer, config.columns, config.support_step, config.support_most)
        gate = (1 - positive(self.log_gain_width, step, x) * x.abs()).relu()
        y = (1 + self.gain[layer].to(x.dtype) * gate) * x
        threshold = positive(self.log_threshold, step, x)
        correction = problem.residual(y) @ self.weights[min(step, len(self.weights) - 1)].to(x.dtype)
        if config.tied:
            correction = positive(self.log_step_size, step, x) * correction
        z = threshold_but_largest(y - correction, threshold, count)
        move = z - x
        further = self.overshoot[layer].to(x.dtype) * threshold / (move.abs() + _EPSILON)
        return z + torch.where(z != 0, further * move, 0.0), state
