"""LISTA: an ISTA iteration whose two matrices and threshold are learned.

    x_{k+1} = η_{θ_k}(W₁ᵏ b + W₂ᵏ x_k)

Source: Gregor & LeCun 2010, Learning fast approximations of sparse coding, ICML, eq. 4 and Algorithm 3 (there tied over
the layers); per-layer matrices as in Chen et al. 2018, arXiv:1808.10038, eq. 4.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.problem import Problem
from l2o.proximal.norms import soft_threshold
from l2o.rule import ModelBasedRule
from l2o.rules.matrix_config import StartConfig
from l2o.rules.support import dictionary_of, positive, start_matrix, start_thresholds


class LISTAState(NamedTuple):
    """LISTA remembers nothing."""


@dataclass(frozen=True)
class LISTAConfig(StartConfig):
    """Shape and initial values of `LISTA`."""


class LISTA(ModelBasedRule):
    """θ = {from_data (n, m), from_code (n, n), log_threshold ()}, one a layer; for matrices of one size.

    Args:
        dictionary: A, shape (rows, columns): with start="ista" every layer is the ISTA step W₁ = Aᵀ/L,
            W₂ = I − AᵀA/L, θ = λ/L. None leaves the matrices 0, to be loaded.
    """

    def __init__(self, config: LISTAConfig | None = None, dictionary: Tensor | None = None):
        super().__init__()
        self.config = config = config or LISTAConfig()
        self.layers = config.layers
        start, inverse = start_matrix(dictionary, config.rows, config.columns, config.start == "analytic")
        dictionary = start if dictionary is None else dictionary.to(start.dtype)
        code = torch.eye(config.columns) - start.mT @ dictionary
        copies = range(1 if config.tied else config.layers)
        self.from_data = nn.ParameterList(start.mT.clone() for _ in copies)
        self.from_code = nn.ParameterList(code.clone() for _ in copies)
        self.log_threshold = start_thresholds(config.start, config.strength, inverse, config.layers)

    def init_problem(self, problem: Problem, x: Tensor) -> LISTAState:
        """See `ModelBasedRule.init_problem`."""
        dictionary_of(problem, "LISTA", (self.config.rows, self.config.columns))
        return LISTAState()

    def iterate(self, problem: Problem, x: Tensor, state: LISTAState, step: int) -> tuple[Tensor, LISTAState]:
        """See the module's equation."""
        layer = min(step, len(self.from_data) - 1)
        from_data, from_code = (matrices[layer].to(x.dtype) for matrices in (self.from_data, self.from_code))
        v = problem.b @ from_data.mT + x @ from_code.mT
        return soft_threshold(v, positive(self.log_threshold, step, x)), state
