"""LISTA-CPSS: LISTA-CP with support selection.

    x_{k+1} = η^{p_k}_{θ_k}(x_k − γ_k W_kᵀ(A x_k − b))

Source: Chen, Liu, Wang & Yin 2018, Theoretical linear convergence of unfolded ISTA and its practical weights and
thresholds, arXiv:1808.10038, eq. 15, with η^p of eq. 12–13 (`l2o.rules.support`). Differs from it: with one matrix for
all layers a step size γ_k a layer is learned too, without which that matrix would have to fit them all; else γ_k = 1.
"""

from dataclasses import dataclass
from typing import NamedTuple

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


class LISTACPSSState(NamedTuple):
    """LISTA-CPSS remembers nothing."""


@dataclass(frozen=True)
class LISTACPSSConfig(StartConfig):
    """Shape and initial values of `LISTACPSS`."""

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


class LISTACPSS(ModelBasedRule):
    """θ = {weights (m, n), log_threshold (), and if tied log_step_size ()}, one a layer; for matrices of one size.

    Args:
        dictionary: A, shape (rows, columns): with start="ista" every layer is the ISTA step W = A/L, θ = λ/L, but for
            the support that is trusted. None leaves the matrices 0, to be loaded.
    """

    def __init__(self, config: LISTACPSSConfig | None = None, dictionary: Tensor | None = None):
        super().__init__()
        self.config = config = config or LISTACPSSConfig()
        self.layers = config.layers
        start, inverse = start_matrix(dictionary, config.rows, config.columns, config.start == "analytic")
        self.weights = nn.ParameterList(start.clone() for _ in range(1 if config.tied else config.layers))
        self.log_threshold = start_thresholds(config.start, config.strength, inverse, config.layers)
        self.log_step_size = per_layer(1.0 for _ in range(config.layers if config.tied else 0))

    def init_problem(self, problem: Problem, x: Tensor) -> LISTACPSSState:
        """See `ModelBasedRule.init_problem`."""
        dictionary_of(problem, "LISTA-CPSS", (self.config.rows, self.config.columns))
        return LISTACPSSState()

    def iterate(self, problem: Problem, x: Tensor, state: LISTACPSSState, step: int) -> tuple[Tensor, LISTACPSSState]:
        """See the module's equation."""
        config = self.config
        layer = min(step, config.layers - 1)
        count = support_count(layer, config.columns, config.support_step, config.support_most)
        correction = problem.residual(x) @ self.weights[min(step, len(self.weights) - 1)].to(x.dtype)
        if config.tied:
            correction = positive(self.log_step_size, step, x) * correction
        threshold = positive(self.log_threshold, step, x)
        return threshold_but_largest(x - correction, threshold, count), state
