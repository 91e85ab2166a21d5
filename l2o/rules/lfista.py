"""LFISTA: a FISTA iteration whose matrices and threshold are learned.

    x_{k+1} = η_{θ_k}(W_e b + W_gᵏ x_k + W_mᵏ x_{k−1})

Source: Moreau & Bruna 2017, Understanding trainable sparse coding via matrix factorization, ICLR, arXiv:1609.00285, §5
(L-FISTA): the step of Beck & Teboulle 2009 written as one affine map.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.problem import Problem
from l2o.proximal.norms import soft_threshold
from l2o.rule import ModelBasedRule
from l2o.rules.checks import check_positive
from l2o.rules.matrix_config import MatrixConfig
from l2o.rules.support import Start, check_start, dictionary_of, positive, start_matrix, start_thresholds


class LFISTAState(NamedTuple):
    """What LFISTA remembers."""

    previous: Tensor
    """x_{k−1}, the shape of x."""


@dataclass(frozen=True)
class LFISTAConfig(MatrixConfig):
    """Shape and initial values of `LFISTA`."""

    start: Start = "ista"
    """What the layers start as: ista: those of FISTA, momentum and all; analytic: steps of ALISTA without support
    selection, and without momentum, with which they would diverge."""
    strength: float = 0.1
    """λ of that FISTA."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if a size is below 1, the strength is not positive, or the start is unknown.
        """
        super().__post_init__()
        check_start(self.start)
        check_positive(strength=self.strength)


class LFISTA(ModelBasedRule):
    """θ = {from_data (n, m), and a layer: from_code (n, n), from_previous (n, n), log_threshold ()}; for one size.

    Args:
        dictionary: A, shape (rows, columns): with start="ista" every layer is the FISTA step W_e = Aᵀ/L,
            W_g = (1 + β_k)(I − AᵀA/L), W_m = −β_k (I − AᵀA/L), θ = λ/L; layer 0 is an ISTA step. With
            start="analytic", analytic weights W take the place of A/L, and β_k is 0. None leaves the matrices 0, to be
            loaded.
    """

    def __init__(self, config: LFISTAConfig | None = None, dictionary: Tensor | None = None):
        super().__init__()
        self.config = config = config or LFISTAConfig()
        self.layers = config.layers
        analytic = config.start == "analytic"
        start, inverse = start_matrix(dictionary, config.rows, config.columns, analytic)
        dictionary = start if dictionary is None else dictionary.to(start.dtype)
        code = torch.eye(config.columns) - start.mT @ dictionary
        momenta = [0.0] * config.layers if analytic else _momenta(config.layers)
        self.from_data = nn.Parameter(start.mT.clone())
        self.from_code = nn.ParameterList((1 + beta) * code for beta in momenta)
        self.from_previous = nn.ParameterList(-beta * code for beta in momenta)
        self.log_threshold = start_thresholds(config.start, config.strength, inverse, config.layers)

    def init_problem(self, problem: Problem, x: Tensor) -> LFISTAState:
        """See `ModelBasedRule.init_problem`."""
        dictionary_of(problem, "LFISTA", (self.config.rows, self.config.columns))
        return LFISTAState(x)

    def iterate(self, problem: Problem, x: Tensor, state: LFISTAState, step: int) -> tuple[Tensor, LFISTAState]:
        """See the module's equation."""
        layer = min(step, self.config.layers - 1)
        from_code, from_previous = (m[layer].to(x.dtype) for m in (self.from_code, self.from_previous))
        v = problem.b @ self.from_data.to(x.dtype).mT + x @ from_code.mT + state.previous @ from_previous.mT
        return soft_threshold(v, positive(self.log_threshold, step, x)), LFISTAState(x)


def _momenta(layers: int) -> list[float]:
    """β_k = (t_k − 1) / t_{k+1}, t_{k+1} = (1 + √(1 + 4 t_k²)) / 2, t_1 = 1; β_0 = 0, for nothing has moved yet."""
    t = [1.0]
    for _ in range(layers):
        t.append((1 + (1 + 4 * t[-1] ** 2) ** 0.5) / 2)
    return [0.0, *((now - 1) / following for now, following in pairwise(t))][:layers]
