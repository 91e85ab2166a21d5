"""Active-set Newton steps of the LASSO: an exact solution on the support that the iterate and its gradient point to.

See `l2o.kernels.support_newton` for the equations. By itself it converges only from nearby: it is the finishing phase
of `Safeguarded`, which takes no step that goes uphill.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.kernels.support_newton import support_newton
from l2o.problem import Problem
from l2o.proximal import L1
from l2o.proximal.function import Scalar
from l2o.rule import ModelBasedRule
from l2o.rules.checks import check_positive
from l2o.rules.support import dictionary_of, shared


class SupportNewtonState(NamedTuple):
    """What is computed once."""

    gram: Tensor
    """AᵀA, shape (1, n, n), or (batch…, n, n) where each item has its own A."""
    correlation: Tensor
    """Aᵀb, the shape of x."""
    strength: Tensor
    """λ, the shape of the batch axes."""
    step: float
    """t, in inverse units of AᵀA."""
    limit: int
    """Largest support that is tried."""

    def take(self, rows: Tensor | slice) -> "SupportNewtonState":
        """Return what belongs to some items, where there is one batch axis."""
        gram = self.gram if len(self.gram) == 1 else self.gram[rows]
        return self._replace(gram=gram, correlation=self.correlation[rows], strength=self.strength[rows])


@dataclass(frozen=True)
class SupportNewtonConfig:
    """Options of `SupportNewton`."""

    step: float = 1.0
    """t of v = x − t g, in units of 1 / (mean ‖a_i‖²); 1 makes v_i the minimiser along coordinate i."""
    rounds: int = 4
    """Solutions at most, each on the support that the one before left."""
    limit: float = 0.7
    """Largest support that is tried, as a fraction of the rows of A; the time of a step grows with its cube."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if step is not positive, rounds is below 1, or limit is outside (0, 1].
        """
        check_positive(step=self.step)
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if not 0 < self.limit <= 1:
            raise ValueError(f"limit is a fraction of the rows, in (0, 1], got {self.limit}")


class SupportNewton(ModelBasedRule):
    """x_S ← (AᵀA)_SS⁻¹ ((Aᵀb)_S − λ s), 0 elsewhere; nothing is learned, and no gradient passes."""

    def __init__(self, config: SupportNewtonConfig | None = None):
        super().__init__()
        self.config = config or SupportNewtonConfig()

    def init_problem(self, problem: Problem, x: Tensor) -> SupportNewtonState:
        """See `ModelBasedRule.init_problem`.

        Raises:
            ValueError: if the operator is no matrix or the regularizer not ‖·‖₁.
        """
        dictionary = dictionary_of(problem, "SupportNewton")
        m, n = dictionary.matrix.shape[-2:]
        strength = torch.as_tensor(_strength(problem), dtype=x.dtype, device=x.device)
        return SupportNewtonState(
            gram=shared(dictionary.gram),
            correlation=problem.operator.adjoint(problem.b),
            strength=strength.expand(problem.batch_shape),
            step=self.config.step / (dictionary.matrix.square().sum(-2).mean().item() or 1.0),
            limit=min(n, math.ceil(self.config.limit * m)),
        )

    def iterate(
        self, problem: Problem, x: Tensor, state: SupportNewtonState, step: int
    ) -> tuple[Tensor, SupportNewtonState]:
        """One Newton step; an item with too large or a singular support stays where it is."""
        return self.propose(x, problem.smooth_grad(x), state)[0], state

    @torch.no_grad()
    def propose(self, x: Tensor, gradient: Tensor, state: SupportNewtonState) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next iterate and its gradient, from those of x, and whether there was a step, per item."""
        n = x.shape[-1]
        y, y_gradient, sizes = support_newton(
            state.gram[0] if len(state.gram) == 1 and state.gram.dim() == 3 else state.gram.reshape(-1, n, n),
            state.correlation.reshape(-1, n),
            state.strength.reshape(-1),
            x.reshape(-1, n),
            gradient.reshape(-1, n),
            step=state.step,
            rounds=self.config.rounds,
            limit=state.limit,
        )
        return y.reshape(x.shape), y_gradient.reshape(x.shape), (sizes >= 0).reshape(state.strength.shape)


def _strength(problem: Problem) -> Scalar:
    assert isinstance(problem.regularizer, L1)  # or `dictionary_of` would have refused
    return problem.regularizer.strength
