"""D-LADMM, differentiable LADMM: the matrices, thresholds and penalties of each layer are learned.

    z⁺ = η_{θ₁}(z − W(λ + β₁ ∘ (Az + e − b)))
    e⁺ = η_{θ₂}(e − s ∘ (λ + β₂ ∘ (Az⁺ + e − b)))
    λ⁺ = λ + β₃ ∘ (Az⁺ + e⁺ − b),        η soft thresholding, ∘ elementwise

Source: Xie, Wu, Zhong, Liu & Lin 2019, Differentiable Linearized ADMM, ICML, §3, with the e-step also as a learned
proximal step. Differs from it: thresholds and steps are in units of the mean of |b|, so that signals of any size are
alike. Steps past the last layer use its weights: nothing makes them converge.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2o.constrained import ConstrainedProblem
from l2o.proximal.norms import soft_threshold
from l2o.rule import ModelBasedRule
from l2o.rules.ladmm import MultiplierState, check_constrained
from l2o.rules.matrix_config import MatrixConfig


@dataclass(frozen=True)
class DLADMMConfig(MatrixConfig):
    """Shape of `DLADMM`."""

    rows: int = 256
    columns: int = 512
    layers: int = 15


class DLADMM(ModelBasedRule):
    """ω = {matrix (n, m), first_threshold (n,), second_threshold, second_step, penalty_1, _2, _3 (m,)}, each per layer.

    Args:
        dictionary: A, shape (rows, columns): every layer starts as a LADMM step, W = 0.3 Aᵀ. None leaves W at 0, to be
            loaded.

    Raises:
        ValueError: if the dictionary has another size than the config says.
    """

    iterated = ("second", "multiplier")

    def __init__(self, config: DLADMMConfig | None = None, dictionary: Tensor | None = None):
        super().__init__()
        self.config = config = config or DLADMMConfig()
        self.layers = config.layers
        start = torch.zeros(config.columns, config.rows) if dictionary is None else 0.3 * dictionary.mT
        if start.shape != (config.columns, config.rows):
            raise ValueError(f"the dictionary must be ({config.rows}, {config.columns}), got {tuple(start.mT.shape)}")
        self.matrix = nn.ParameterList(start.clone() for _ in range(config.layers))
        self.first_threshold = nn.Parameter(torch.full((config.layers, config.columns), 0.3))
        self.second_threshold = nn.Parameter(torch.full((config.layers, config.rows), 0.8))
        self.second_step = nn.Parameter(torch.ones(config.layers, config.rows))
        self.penalty = nn.Parameter(torch.ones(config.layers, 3, config.rows))

    def init_problem(self, problem: ConstrainedProblem, x: Tensor) -> MultiplierState:
        """See `ModelBasedRule.init_problem`; e = λ = 0.

        Raises:
            TypeError: if the problem is no `ConstrainedProblem`.
            ValueError: if A has another size than the learned matrices.
        """
        check_constrained(problem, self)
        if problem.operator.in_shape + problem.operator.out_shape != (self.config.columns, self.config.rows):
            raise ValueError(
                f"DLADMM was made for a matrix ({self.config.rows}, {self.config.columns}), the problem's takes "
                f"{problem.operator.in_shape} to {problem.operator.out_shape}"
            )
        zero = problem.b.new_zeros(problem.b.shape)
        return MultiplierState(zero, zero)

    def iterate(
        self, problem: ConstrainedProblem, x: Tensor, state: MultiplierState, step: int
    ) -> tuple[Tensor, MultiplierState]:
        """See the module's equation; λ is in units of mean |b|, as z and e are."""
        k = min(step, len(self.penalty) - 1)
        scale = problem.b.abs().mean(-1, keepdim=True)
        first, second, third = self.penalty[k]
        z, e, multiplier = x, state.second, state.multiplier
        matrix: Tensor = self.matrix[k]
        slope = (multiplier + first * (problem.residual(z) + e)) @ matrix.mT
        z = soft_threshold(z - slope, self.first_threshold[k].clamp(min=0) * scale)
        residual = problem.residual(z)
        moved = e - self.second_step[k] * (multiplier + second * (residual + e))
        e = soft_threshold(moved, self.second_threshold[k].clamp(min=0) * scale)
        return z, MultiplierState(e, multiplier + third * (residual + e))
