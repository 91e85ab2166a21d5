"""TiLISTA: one matrix for all layers is learned, and two scalars a layer.

    x_{k+1} = η^{p_k}_{θ_k}(x_k − γ_k Wᵀ(A x_k − b))

Source: Liu, Chen, Wang & Yin 2019, ALISTA: analytic weights are as good as learned weights in LISTA, ICLR, eq. 8, with
the support selection η^p of Chen et al. 2018 (`l2o.rules.support`).
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from l2o.problem import Problem
from l2o.rule import ModelBasedRule
from l2o.rules.checks import check_positive
from l2o.rules.matrix_config import MatrixConfig
from l2o.rules.support import (
    SUPPORT_MOST,
    SUPPORT_STEP,
    THRESHOLD,
    THRESHOLD_DECAY,
    check_layers,
    dictionary_of,
    per_layer,
    positive,
    start_matrix,
    support_count,
    threshold_but_largest,
)


class TiLISTAState(NamedTuple):
    """TiLISTA remembers nothing."""


@dataclass(frozen=True)
class TiLISTAConfig(MatrixConfig):
    """Shape and initial values of `TiLISTA`."""

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
            ValueError: if a size is below 1, a threshold is not positive, or a fraction is outside [0, 1].
        """
        super().__post_init__()
        check_layers(self.layers, self.support_step, self.support_most)
        check_positive(threshold=self.threshold, threshold_decay=self.threshold_decay)


class TiLISTA(ModelBasedRule):
    """θ = {weights (m, n), and log_step_size, log_threshold: a scalar a layer}; for matrices of one size.

    Args:
        dictionary: A, shape (rows, columns): W starts as its analytic weights and γ_k = 1, which is the start of
            ALISTA. None leaves W 0, to be loaded.
    """

    def __init__(self, config: TiLISTAConfig | None = None, dictionary: Tensor | None = None):
        super().__init__()
        self.config = config = config or TiLISTAConfig()
        self.layers = config.layers
        self.weights = nn.Parameter(start_matrix(dictionary, config.rows, config.columns, analytic=True)[0].clone())
        self.log_step_size = per_layer(1.0 for _ in range(config.layers))
        self.log_threshold = per_layer(config.threshold * config.threshold_decay**k for k in range(config.layers))

    def init_problem(self, problem: Problem, x: Tensor) -> TiLISTAState:
        """See `ModelBasedRule.init_problem`."""
        dictionary_of(problem, "TiLISTA", (self.config.rows, self.config.columns))
        return TiLISTAState()

    def iterate(self, problem: Problem, x: Tensor, state: TiLISTAState, step: int) -> tuple[Tensor, TiLISTAState]:
        """See the module's equation."""
        config = self.config
        layer = min(step, config.layers - 1)
        count = support_count(layer, config.columns, config.support_step, config.support_most)
        correction = problem.residual(x) @ self.weights.to(x.dtype)
        descent = x - positive(self.log_step_size, step, x) * correction
        threshold = positive(self.log_threshold, step, x)
        return threshold_but_largest(descent, threshold, count), state
