"""Anderson acceleration: the next iterate from the last few, for a fixed point or a linear system.

    r_k = T(u_k) − u_k,   γ = argmin ‖r_k − ΔR γ‖,   u_{k+1} = u_k + β r_k − (ΔU + β ΔR) γ

ΔU and ΔR hold the last m differences of iterates and residuals. Source: Walker & Ni 2011, Anderson acceleration for
fixed-point iterations, SIAM J. Numer. Anal. 49(4), eq. 2.2; the safeguard, a plain step and an empty memory where the
residual has grown, is a simple form of Zhang, O'Donoghue & Boyd 2020, SIAM J. Optim. 30(4), §3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.linear_solvers import LinearSolver, MatrixProduct, Run, norms, ratio

_CANCELLED = 1e-3
"""Smallest part of the moves, relative to the largest, whose image is trusted."""

Advance = Callable[[Tensor, Tensor], Tensor]
"""(u_k, T(u_k)) ↦ u_{k+1}, shapes (items, n)."""


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration of a fixed-point iteration, each item by itself."""

    memory: int = 5
    """m, differences kept, at least 1."""
    mixing: float = 1.0
    """β, in (0, 1]: below 1 damps."""
    growth: float = 2.0
    """The memory of an item is emptied where its residual is this many times the last one."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if the memory is below 1, the mixing outside (0, 1] or the growth not above 1.
        """
        if self.memory < 1 or not 0 < self.mixing <= 1 or not self.growth > 1:
            raise ValueError(f"need memory ≥ 1, 0 < mixing ≤ 1 and growth > 1, got {self}")

    def stepper(self) -> Advance:
        """Return the function that makes the next iterate; it carries the memory of one run, without a graph."""
        return _Run(self).advance


class Memory(NamedTuple):
    """The last m differences of every item, the newest last."""

    moves: Tensor
    """ΔU, shape (items, m, n)."""
    changes: Tensor
    """ΔR, shape (items, m, n)."""
    valid: Tensor
    """Which of them count, shape (items, m)."""

    @classmethod
    def empty(cls, like: Tensor, size: int) -> "Memory":
        """Return a memory of `size` differences for iterates shaped (items, n)."""
        moves, changes = (like.new_zeros(len(like), size, like.shape[1]) for _ in range(2))
        return cls(moves, changes, torch.zeros(len(like), size, dtype=torch.bool, device=like.device))

    def add(self, move: Tensor, change: Tensor, keep: Tensor) -> "Memory":
        """Return it with one more difference, the oldest dropped.

        Args:
            move, change: shape (items, n).
            keep: whether an item's earlier differences stay, shape (items,).
        """
        moves, changes = (
            torch.cat([old[:, 1:], new.unsqueeze(1)], 1) for old, new in zip(self[:2], (move, change), strict=True)
        )
        kept = self.valid[:, 1:] & keep.unsqueeze(1)
        return Memory(moves, changes, torch.cat([kept, torch.ones_like(self.valid[:, :1])], 1))

    def correction(self, residual: Tensor, mixing: float = 1.0) -> Tensor:
        """Return (ΔU + β ΔR) γ, shape (items, n)."""
        gamma = _least_squares(self.changes.mT, residual, self.valid).unsqueeze(1)
        return (gamma @ self.moves + mixing * (gamma @ self.changes)).squeeze(1)


class _Run:
    """The memory of one run, and its last iterate."""

    def __init__(self, options: Anderson):
        self.options, self.last = options, None
        self.memory: Memory | None = None

    @torch.no_grad()
    def advance(self, u: Tensor, image: Tensor) -> Tensor:
        residual, options = image - u, self.options
        if self.last is not None:
            keep = norms(residual) <= options.growth * norms(self.last[1])
            link = keep.unsqueeze(-1)
            move, change = (
                torch.where(link, new - old, 0.0) for new, old in zip((u, residual), self.last, strict=True)
            )
            self.memory = (self.memory or Memory.empty(u, options.memory)).add(move, change, keep)
        self.last = u, residual
        plain = u + options.mixing * residual
        return plain if self.memory is None else plain - self.memory.correction(residual, options.mixing)


def _least_squares(columns: Tensor, right: Tensor, valid: Tensor) -> Tensor:
    """Return argmin ‖right − columns γ‖ over valid columns of every item, shape (items, m); 0 for those that depend."""
    Q, R = torch.linalg.qr(columns)  # the long axis goes first: an SVD of it takes five times as long
    R = torch.where(valid.unsqueeze(1), R, 0.0)
    scale = torch.linalg.vector_norm(R, dim=1, keepdim=True)
    U, S, Vh = torch.linalg.svd(ratio(R, scale), full_matrices=False)
    kept = S > 10 * torch.finfo(S.dtype).eps * S[:, :1]
    weights = torch.where(kept, ratio((U.mT @ (Q.mT @ right.unsqueeze(-1))).squeeze(-1), S), 0.0)
    return ratio((Vh.mT @ weights.unsqueeze(-1)).squeeze(-1), scale.squeeze(1))


@dataclass(frozen=True)
class AndersonSolver(LinearSolver):
    """Anderson acceleration of x ↦ x + (b − A x): like GMRES, with a sliding memory instead of restarts."""

    tol: float | None = None
    """Relative residual to reach; None: 1e-10 in float64, 1e-5 in float32."""
    memory: int = 10
    """Differences kept, at least 1."""
    max_iterations: int = 1000
    """Products with A, at most."""

    def run(self, product: MatrixProduct, b: Tensor, tol: float) -> Run:
        """Advance the items that are not done."""
        walk = _Run(Anderson(self.memory))
        x, target = torch.zeros_like(b), 0.5 * tol * norms(b)
        largest, smallest = torch.zeros_like(target), torch.full_like(target, torch.inf)
        made, note = 0, "raise max_iterations or memory"
        while made < self.max_iterations:
            left = b - product(x)
            length = norms(left)
            if bool((length <= target).all()):
                break
            if not bool((length <= 1e6 * norms(b)).all()):  # also where it is nan
                note = "the iterates grow: use GMRES()"
                break
            open_ = (length > target).unsqueeze(-1)
            x = torch.where(open_, walk.advance(x, x + left), x)
            made += 1
            if walk.memory is not None:  # A Δx = −Δr: what A does to the directions that were walked
                gain = ratio(norms(walk.memory.changes[:, -1]), norms(walk.memory.moves[:, -1]))
                largest = torch.maximum(largest, gain)
                smallest = torch.where(gain > 0, torch.minimum(smallest, gain), smallest)
        if walk.memory is not None:
            least = _least_gain(*(walk.memory.valid.unsqueeze(1) * kept.mT for kept in walk.memory[:2]))
            smallest = torch.minimum(smallest, least)
        return Run(x, made, largest, torch.where(torch.isfinite(smallest), smallest, 1.0), note)


def _least_gain(moves: Tensor, changes: Tensor) -> Tensor:
    """The least ‖Δr‖ / ‖Δx‖ of all combinations of the moves of an item; inf where it has none.

    It is at least σ_min of A. Combinations that nearly cancel are left out: of them rounding is seen, not A.
    """
    scale = torch.linalg.vector_norm(moves, dim=1, keepdim=True)
    _, S, Vh = torch.linalg.svd(ratio(moves, scale), full_matrices=False)
    kept = S > _CANCELLED * S[:, :1]
    images = ratio(changes, scale) @ Vh.mT * torch.where(kept, ratio(torch.ones_like(S), S), 0.0).unsqueeze(1)
    values = torch.linalg.svdvals(images)
    least = values.gather(1, (kept.sum(1) - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(kept.any(1) & (least > 0), least, torch.inf)
