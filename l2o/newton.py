"""The Newton–Krylov method for g(u) = 0, by vector–Jacobian products alone.

    J d = −g(u),   u ← u + t d,   J = ∂g/∂u

with t = 1, ½, ¼, … until ‖g‖ is smaller, for each item. Source: Knoll & Keyes 2004, J. Comput. Phys. 193(2); J d is the
derivative of the linear map v ↦ Jᵀ v.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from l2o.krylov import GMRES
from l2o.linear_solvers import LinearSolver, MatrixProduct, norms, ratio, solve_linear

_HALVINGS = 20


@dataclass(frozen=True)
class Newton:
    """Newton steps with a backtracking line search; the step may be that of a semismooth function."""

    max_steps: int = 50
    """Newton steps, at most."""
    linear: LinearSolver = field(default_factory=lambda: GMRES(tol=1e-4))
    """Solver of the linear systems; they need not be solved well."""

    def run(self, g: Callable[[Tensor], Tensor], u: Tensor, tol: float) -> tuple[Tensor, Tensor]:
        """Return an approximate root and the steps of each item; u of shape (items, n), the start.

        An item is done where `relative_residual` is at most tol, or no step makes ‖g‖ smaller.
        """
        start = norms(g(u))
        steps, alive = torch.zeros(len(u), dtype=torch.long, device=u.device), torch.ones_like(start, dtype=torch.bool)
        for _ in range(self.max_steps):
            point, image = _with_graph(g, u)
            value = image.detach()
            alive = alive & (relative_residual(point, image, start) > tol)
            if not bool(alive.any()):
                break
            push = _forward_product(image, point)
            direction, _ = solve_linear(self.linear, push, -value * alive.unsqueeze(-1))
            u, alive = _search(g, u, direction, norms(value), alive)
            steps = steps + alive.long()
        return u, steps


def relative_residual(point: Tensor, image: Tensor, start: Tensor) -> Tensor:
    """‖g(u)‖ / max(‖Jᵀ u‖, ‖g(u_0)‖) of each item: it has no unit, whatever those of g and u are; inf on overflow.

    Args:
        point: u, shape (items, n), which requires grad.
        image: g(u) with its graph.
        start: ‖g(u_0)‖, shape (items,).
    """
    (pulled,) = torch.autograd.grad(
        image, point, point.detach(), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    size = torch.maximum(norms(pulled), start)
    return torch.where(size.isinf(), torch.inf, ratio(norms(image.detach()), size))  # an overflow is no root


def _with_graph(g: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    point = u.detach().requires_grad_()
    with torch.enable_grad():
        return point, g(point)


def _forward_product(image: Tensor, point: Tensor) -> MatrixProduct:
    """Return d ↦ J d."""
    v = torch.zeros_like(image, requires_grad=True)
    with torch.enable_grad():
        (pulled,) = torch.autograd.grad(image, point, v, create_graph=True, allow_unused=True, materialize_grads=True)
    if not pulled.requires_grad:
        return torch.zeros_like
    return lambda d: torch.autograd.grad(pulled, v, d, retain_graph=True, materialize_grads=True)[0]


@torch.no_grad()
def _search(
    g: Callable[[Tensor], Tensor], u: Tensor, direction: Tensor, size: Tensor, alive: Tensor
) -> tuple[Tensor, Tensor]:
    """Shorten the step of each item until ‖g‖ is smaller; return the new point, and which items have moved."""
    length, open_, new = torch.ones_like(size), alive, u
    for _ in range(_HALVINGS):
        trial = torch.where(open_.unsqueeze(-1), u + length.unsqueeze(-1) * direction, new)
        better = open_ & (norms(g(trial)) < size)
        new = torch.where(better.unsqueeze(-1), trial, new)
        open_ = open_ & ~better
        if not bool(open_.any()):
            break
        length = torch.where(open_, length / 2, length)
    return new, alive & ~open_
