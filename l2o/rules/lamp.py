"""LAMP: approximate message passing with learned matrices and thresholds.

    v_k     = b − A x_k + (‖x_k‖₀ / m) v_{k−1}
    x_{k+1} = η_{θ_k}(x_k + γ_k B_kᵀ v_k),   θ_k = α_k ‖v_k‖₂ / √m

Source: Borgerding, Schniter & Rangan 2017, AMP-inspired deep networks for sparse linear inverse problems, IEEE Trans.
Signal Processing 65(16), arXiv:1612.01183, eqs. 23–25 (LAMP-ℓ₁). Differs from it: the scale β_k of the next iterate is
γ_k before the threshold, as in its public implementations.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.problem import Problem
from l2o.proximal.norms import soft_threshold
from l2o.rule import ModelBasedRule
from l2o.rules.checks import check_positive
from l2o.rules.matrix_config import MatrixConfig
from l2o.rules.support import dictionary_of, per_layer, positive, start_matrix


class LAMPState(NamedTuple):
    """What LAMP remembers."""

    residual: Tensor
    """v_{k−1}, the shape of b."""


@dataclass(frozen=True)
class LAMPConfig(MatrixConfig):
    """Shape and initial values of `LAMP`."""

    tied: bool = False
    """One matrix for all layers; the scalars stay per layer."""
    threshold_scale: float = 1.14
    """α_k to begin with, in standard deviations of the noise that AMP estimates."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if a size is below 1, or the scale is not positive.
        """
        super().__post_init__()
        check_positive(threshold_scale=self.threshold_scale)


class LAMP(ModelBasedRule):
    """θ = {weights (m, n), log_step_size (), log_threshold_scale ()}, one a layer; for matrices of one size.

    Args:
        dictionary: A, shape (rows, columns): with B = A and γ = 1 every layer starts as a step of AMP, the first of
            which is an ISTA step of size 1. None leaves the matrices 0, to be loaded.
    """

    def __init__(self, config: LAMPConfig | None = None, dictionary: Tensor | None = None):
        super().__init__()
        self.config = config = config or LAMPConfig()
        self.layers = config.layers
        start, inverse = start_matrix(dictionary, config.rows, config.columns, analytic=False)
        self.weights = nn.ParameterList(start / inverse for _ in range(1 if config.tied else config.layers))
        self.log_step_size = per_layer(1.0 for _ in range(config.layers))
        self.log_threshold_scale = per_layer(config.threshold_scale for _ in range(config.layers))

    def init_problem(self, problem: Problem, x: Tensor) -> LAMPState:
        """See `ModelBasedRule.init_problem`."""
        dictionary_of(problem, "LAMP", (self.config.rows, self.config.columns))
        return LAMPState(torch.zeros_like(problem.b))

    def iterate(self, problem: Problem, x: Tensor, state: LAMPState, step: int) -> tuple[Tensor, LAMPState]:
        """See the module's equations."""
        rows = problem.b.shape[-1]
        onsager = (x != 0).sum(-1, keepdim=True).to(x.dtype) / rows
        residual = onsager * state.residual - problem.residual(x)
        size = torch.linalg.vector_norm(residual, dim=-1, keepdim=True) / math.sqrt(rows)
        weights = self.weights[min(step, len(self.weights) - 1)].to(x.dtype)
        descent = x + positive(self.log_step_size, step, x) * (residual @ weights)
        new = soft_threshold(descent, positive(self.log_threshold_scale, step, x) * size)
        return new, LAMPState(residual)
