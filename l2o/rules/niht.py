"""Normalised iterative hard thresholding, NIHT: the best least-squares fit with at most K entries.

    x_{t+1} = H_K(x_t + μ_t g_t),   g_t = Aᵀ(b − A x_t),   μ_t = ‖g_Γ‖² / ‖A g_Γ‖²

H_K keeps the K entries of largest magnitude; g_Γ is g_t on the support Γ of x_t, and on that of H_K(g_t) where x_t = 0.
Where the support changes, μ_t must be at most (1 − c) ‖x_{t+1} − x_t‖² / ‖A(x_{t+1} − x_t)‖²; if not, it is divided by
κ (1 − c), and tried again.

Source: Blumensath & Davies 2010, Normalized iterative hard thresholding, IEEE J. Sel. Topics Signal Process. 4(2).
Differs from it: a trial is a step. An item whose trial fails stays, and tries its shorter step in the next one, so that
no loop has to wait for the slowest item of a batch. The problem's g is not used: the constraint ‖x‖₀ ≤ K stands in its
place, and the objective F is not what is minimised.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal.function import item_sum
from l2o.rule import ModelBasedRule


class NIHTState(NamedTuple):
    """What NIHT remembers."""

    shortening: Tensor
    """Factor of μ_t after failed trials, the shape of the batch axes; 1 after a step that was taken."""


@dataclass(frozen=True)
class NIHTConfig:
    """Options of `NIHT`."""

    sparsity: int | None = None
    """K, entries that are kept; None: a tenth of all, at least one."""
    margin: float = 0.01
    """c, in (0, 1)."""
    shrinkage: float = 2.0
    """κ, above 1 / (1 − c)."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if the sparsity is below 1, the margin outside (0, 1), or the shrinkage too small.
        """
        if self.sparsity is not None and self.sparsity < 1:
            raise ValueError(f"sparsity must be at least 1, or None for a tenth of the entries, got {self.sparsity}")
        if not 0 < self.margin < 1:
            raise ValueError(f"margin must be in (0, 1), got {self.margin}")
        if not 1 / (1 - self.margin) < self.shrinkage < float("inf"):
            raise ValueError(f"shrinkage must be above 1 / (1 - margin), got {self.shrinkage}")


class NIHT(ModelBasedRule):
    """Gradient steps of optimal length followed by hard thresholding; nothing is learned."""

    def __init__(self, config: NIHTConfig | None = None):
        super().__init__()
        self.config = config or NIHTConfig()

    def init_problem(self, problem: Problem, x: Tensor) -> NIHTState:
        """See `ModelBasedRule.init_problem`.

        Raises:
            ValueError: if more entries are to be kept than there are, or the problem has a second term.
        """
        if problem.composite is not None:
            raise ValueError("NIHT is for ½‖Ax − b‖² alone, but the problem has a second term h(Kx)")
        self._kept(x, problem.ndim)
        return NIHTState(x.new_ones(problem.batch_shape))

    def iterate(self, problem: Problem, x: Tensor, state: NIHTState, step: int) -> tuple[Tensor, NIHTState]:
        """One trial for each item."""
        ndim, kept = problem.ndim, self._kept(x, problem.ndim)
        gradient = -problem.smooth_grad(x)
        empty = (item_sum((x != 0).to(x.dtype), ndim) == 0).reshape(*problem.batch_shape, *(1,) * ndim)
        support = torch.where(empty, hard_threshold(gradient, kept, ndim) != 0, x != 0)
        restricted = torch.where(support, gradient, 0.0)
        length = state.shortening * self._longest(problem, restricted)
        new = hard_threshold(x + problem.per_item(length) * gradient, kept, ndim)

        change = (new != 0) != support
        same = item_sum(change.to(x.dtype), ndim) == 0
        taken = same | (length <= (1 - self.config.margin) * self._longest(problem, new - x))
        shorter = state.shortening / (self.config.shrinkage * (1 - self.config.margin))
        mask = taken.reshape(empty.shape)
        return torch.where(mask, new, x), NIHTState(torch.where(taken, 1.0, shorter))

    def _longest(self, problem: Problem, direction: Tensor) -> Tensor:
        """‖d‖² / ‖Ad‖², the shape of the batch axes; 0 where Ad = 0, which is where d = 0 for a restricted gradient."""
        image = problem.operator.forward(direction)
        denominator = item_sum(image.square(), len(problem.operator.out_shape))
        numerator = item_sum(direction.square(), problem.ndim)
        return torch.where(denominator > 0, numerator / torch.where(denominator > 0, denominator, 1.0), 0.0)

    def _kept(self, x: Tensor, ndim: int) -> int:
        size = x.shape[-ndim:].numel()
        kept = self.config.sparsity or max(size // 10, 1)
        if kept > size:
            raise ValueError(f"sparsity must be at most the {size} entries of an item, got {kept}")
        return kept


def hard_threshold(v: Tensor, kept: int, ndim: int = 1) -> Tensor:
    """Return v with all but the `kept` entries of largest magnitude of each item set to 0.

    >>> hard_threshold(torch.tensor([3.0, -0.5, -2.0]), 2)
    tensor([ 3.,  0., -2.])
    """
    flat = v.flatten(-ndim)
    index = flat.abs().topk(kept, dim=-1, sorted=False).indices
    return torch.zeros_like(flat).scatter(-1, index, flat.gather(-1, index)).reshape(v.shape)
