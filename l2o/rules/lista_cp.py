"""LISTA-CP: the two matrices of LISTA coupled, so that one of A's size a layer is learned.

    x_{k+1} = η_{θ_k}(x_k − W_kᵀ(A x_k − b))

Source: Chen, Liu, Wang & Yin 2018, Theoretical linear convergence of unfolded ISTA and its practical weights and
thresholds, arXiv:1808.10038, eq. 11 (from W₂ = I − W₁A, eq. 9).
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from l2o.problem import Problem
from l2o.proximal.norms import soft_threshold
from l2o.rule import ModelBasedRule
from l2o.rules.matrix_config import StartConfig
from l2o.rules.support import dictionary_of, positive, start_matrix, start_thresholds


class LISTACPState(NamedTuple):
    """LISTA-CP remembers nothing."""


@dataclass(frozen=True)
class LISTACPConfig(StartConfig):
    """Shape and initial values of `LISTACP`."""


class LISTACP(ModelBasedRule):
    """θ = {weights (m, n), log_threshold ()}, one a layer; for matrices of one size.

    Args:
        dictionary: A, shape (rows, columns): with start="ista" every layer is the ISTA step W = A/L, θ = λ/L. None
            leaves the matrices 0, to be loaded.
    """

    def __init__(self, config: LISTACPConfig | None = None, dictionary: Tensor | None = None):
        super().__init__()
        self.config = config = config or LISTACPConfig()
        self.layers = config.layers
        start, inverse = start_matrix(dictionary, config.rows, config.columns, config.start == "analytic")
        self.weights = nn.ParameterList(start.clone() for _ in range(1 if config.tied else config.layers))
        self.log_threshold = start_thresholds(config.start, config.strength, inverse, config.layers)

    def init_problem(self, problem: Problem, x: Tensor) -> LISTACPState:
        """See `ModelBasedRule.init_problem`."""
        dictionary_of(problem, "LISTA-CP", (self.config.rows, self.config.columns))
        return LISTACPState()

    def iterate(self, problem: Problem, x: Tensor, state: LISTACPState, step: int) -> tuple[Tensor, LISTACPState]:
        """See the module's equation."""
        weights = self.weights[min(step, len(self.weights) - 1)].to(x.dtype)
        return soft_threshold(x - problem.residual(x) @ weights, positive(self.log_threshold, step, x)), state
