"""Approximate message passing, AMP, for sparse codes seen through a random matrix with columns of unit norm.

    z_t     = b − A x_t + (‖x_t‖₀ / m) z_{t−1}                     (the Onsager term; z_{−1} = 0)
    x_{t+1} = η(x_t + Aᵀ z_t; θ_t),   θ_t = α ‖z_t‖ / √m

η(v; θ) is the prox of θ‖x‖₁, or of θ Σ x on x ≥ 0 where the problem says so. ‖z_t‖ / √m estimates the standard
deviation of x_t + Aᵀz_t around x*: AMP finds its own thresholds and does not use the problem's λ; it minimises no F.

Source: Donoho, Maleki & Montanari 2009, PNAS 106(45), eqs. 1 and 2; the threshold is that of Montanari 2012, Graphical
models concepts in compressed sensing. On matrices far from independent entries it may diverge.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import L1, NonnegativeL1
from l2o.proximal.function import item_norm, item_sum
from l2o.rule import ModelBasedRule


class AMPState(NamedTuple):
    """What AMP remembers."""

    residual: Tensor
    """z_{t−1}, the shape of b."""


@dataclass(frozen=True)
class AMPConfig:
    """Options of `AMP`."""

    alpha: float = 1.14
    """α, threshold in standard deviations of the noise; 1.14 suits a tenth of nonzeros and m = n/2."""

    def __post_init__(self):
        """Check the range.

        Raises:
            ValueError: if alpha is not positive.
        """
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be positive, got {self.alpha}")


class AMP(ModelBasedRule):
    """Soft thresholding with the Onsager correction of the residual; nothing is learned."""

    def __init__(self, config: AMPConfig | None = None):
        super().__init__()
        self.config = config or AMPConfig()

    def init_problem(self, problem: Problem, x: Tensor) -> AMPState:
        """See `ModelBasedRule.init_problem`.

        Raises:
            ValueError: if the regularizer is neither L1 nor NonnegativeL1, or there is a second term.
        """
        if not isinstance(problem.regularizer, L1 | NonnegativeL1) or problem.composite is not None:
            raise ValueError(f"AMP is for g = L1 or NonnegativeL1 alone, got {type(problem.regularizer).__name__}")
        return AMPState(torch.zeros_like(problem.b))

    def iterate(self, problem: Problem, x: Tensor, state: AMPState, step: int) -> tuple[Tensor, AMPState]:
        """Correct the residual, then threshold at the noise that it shows."""
        ndim = len(problem.operator.out_shape)
        m = torch.Size(problem.operator.out_shape).numel()
        active = item_sum((x != 0).to(x.dtype), problem.ndim)
        onsager = (active / m).reshape(active.shape + (1,) * ndim)
        z = onsager * state.residual - problem.residual(x)
        threshold = self.config.alpha * item_norm(z, ndim) / m**0.5
        shrink = replace(problem.regularizer, strength=threshold)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return shrink.prox(x + problem.operator.adjoint(z)), AMPState(z)
