"""The steps of `Safeguarded` that are no candidate: FISTA's, and that of ISTA where FISTA's does not go down enough."""

from typing import NamedTuple

import torch
from torch import Tensor

from l2o.kernels import fista_step
from l2o.kernels.fista_step import Ahead
from l2o.problem import Problem
from l2o.proximal import L1, Dictionary
from l2o.proximal.function import item_sum, per_item
from l2o.rules.safeguarded_items import Rows, is_whole, merge, rows_of, take


class Descent(NamedTuple):
    """What FISTA remembers; shapes (items, item…) or (items,), with all batch axes made one."""

    step_size: Tensor
    """1/L."""
    strength: Tensor
    """λ of ‖·‖₁; no elements for another regularizer."""
    correlation: Tensor
    """Aᵀb, where gradients are taken with AᵀA; no elements otherwise."""
    gradient: Tensor
    """∇f(x_k)."""
    previous: Tensor
    """x_{k−1}."""
    previous_gradient: Tensor
    """∇f(x_{k−1})."""
    momentum: Tensor
    """t_k of FISTA."""

    def take(self, rows: Rows) -> "Descent":
        """Return what belongs to some items, but for what the past was."""
        if is_whole(rows):
            return self
        step_size, gradient, momentum = self.step_size[rows], self.gradient[rows], self.momentum[rows]
        strength, correlation = (t[rows] if t.numel() else t for t in (self.strength, self.correlation))
        return self._replace(
            step_size=step_size, gradient=gradient, momentum=momentum, strength=strength, correlation=correlation
        )


def start_descent(problem: Problem, x: Tensor, correlation: Tensor | None) -> Descent:
    """Return the state before the first step.

    Args:
        correlation: Aᵀb, if it is known.
    """
    ones, none = x.new_ones(len(x)), x.new_empty(0)
    g, strength, kept = problem.regularizer, none, none
    if isinstance(g, L1):
        strength = torch.as_tensor(g.strength, dtype=x.dtype, device=x.device).expand(len(x)).contiguous()
    if _uses_gram(problem):
        kept = problem.operator.adjoint(problem.b) if correlation is None else correlation
    gradient = -correlation if correlation is not None and not x.any() else problem.smooth_grad(x)
    return Descent(ones / problem.lipschitz.to(x.dtype), strength, kept, gradient, x, gradient, ones)


def look_ahead(problem: Problem, x: Tensor, state: Descent) -> tuple[Ahead, Tensor]:
    """Return FISTA's next iterate with what the tests need, and t_{k+1}."""
    following = (1 + (1 + 4 * state.momentum.square()).sqrt()) / 2
    weight = (state.momentum - 1) / following
    past = (x, state.previous, state.gradient, state.previous_gradient)
    if state.strength.numel():
        return fista_step.look_ahead(*past, weight, state.step_size, state.strength), following
    weight, ndim = per_item(weight, x, problem.ndim), problem.ndim
    v = x + weight * (x - state.previous)
    v_gradient = state.gradient + weight * (state.gradient - state.previous_gradient)
    z, mapped = (prox_step(problem, at, g, state.step_size) for at, g in ((v, v_gradient), (x, state.gradient)))
    sums = ((x - mapped).square(), x.square(), (v - z) * (z - x))
    return Ahead(z, *(item_sum(values, ndim) for values in sums)), following


def gradient_at(problem: Problem, x: Tensor, state: Descent) -> Tensor:
    """∇f(x), as one product with AᵀA where that is not dearer."""
    if not state.correlation.numel():
        return problem.smooth_grad(x)
    return torch.addmm(state.correlation, x, problem.operator.gram, beta=-1)  # pyright: ignore


def change(problem: Problem, x: Tensor, y: Tensor, y_gradient: Tensor, state: Descent) -> Tensor:
    """F(y) − F(x), with a relative error even where F(y) is close to F(x)."""
    if state.strength.numel():
        return fista_step.change(x, state.gradient, y, y_gradient, state.strength)
    smooth = 0.5 * item_sum((state.gradient + y_gradient) * (y - x), problem.ndim)
    return smooth + problem.regularizer.value(y) - problem.regularizer.value(x)


def fall_back(
    problem: Problem, x: Tensor, ahead: Ahead, following: Tensor, needed: Tensor, left: Tensor, state: Descent
) -> tuple[Rows, Tensor, Tensor, Tensor]:
    """Take FISTA's step for the items that are left, T(x) where it does not go down enough.

    Args:
        x, ahead, following, needed, left, state: of all items; x_k, what `look_ahead` returned, the least decrease,
            whether the item is to step.

    Returns: the items that were looked at, all or fewer, and, in memory of their own, iterate, gradient and momentum.
    """
    rows = rows_of(problem, left, most=0.7)  # to gather and to scatter costs as much as a third of a step
    own, its, now, z, least = take(problem, rows), state.take(rows), x[rows], ahead.z[rows], needed[rows]
    z_gradient = gradient_at(own, z, its)
    moved = change(own, now, z, z_gradient, its)
    fits = moved.isfinite() & (moved <= -least)
    momentum = torch.where(fits & ~(ahead.uphill[rows] > 0), following[rows], 1.0)
    bad = left[rows] & ~fits
    if bad.any():
        again = rows_of(own, bad)
        part, theirs, at, mask = take(own, again), its.take(again), now[again], bad[again]
        mapped = prox_step(part, at, theirs.gradient, theirs.step_size)
        z = merge(z, again, mask, mapped)
        z_gradient = merge(z_gradient, again, mask, gradient_at(part, mapped, theirs))
    return rows, z, z_gradient, momentum


def prox_step(problem: Problem, v: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
    """prox_{sg}(v − s∇f)."""
    return problem.prox(v - per_item(step, v, problem.ndim) * gradient, step)


def _uses_gram(problem: Problem) -> bool:
    """n² multiplications with AᵀA against 2mn with A and Aᵀ; as FISTA decides it."""
    operator = problem.operator
    shared = isinstance(operator, Dictionary) and operator.matrix.dim() == 2
    return shared and operator.in_shape[0] <= 2 * operator.out_shape[0]
