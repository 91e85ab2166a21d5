"""Fixed points u = T(u), and every way to differentiate them.

    implicit    (I − J)ᵀ w = ∂ℓ/∂u, then wᵀ ∂T: exact at the fixed point, memory of one step
    unrolled    backpropagation through all steps: exact for what was computed, memory of all steps
    truncated   backpropagation through the last k steps
    one_step    through the last step alone: right up to the contraction factor of T

Source: Lorraine, Vicol & Duvenaud 2020, AISTATS (implicit); Shaban et al. 2019, AISTATS (truncated); Bolte, Pauwels &
Vaiter 2023, One-step differentiation of iterative algorithms, NeurIPS (one_step).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from l2o.anderson import Anderson
from l2o.fixed_point_distance import require_nearness
from l2o.fixed_point_loop import Loop, Run, require_convergence, run
from l2o.implicit import Adjoint, Policy, attach, check_policy, requires_grad
from l2o.implicit_params import Explicit, solve_explicit
from l2o.krylov import GMRES
from l2o.linear_solvers import LinearReport, LinearSolver, check_solver, default_tolerance
from l2o.packing import Packing, Unknown

GradientMode = Literal["implicit", "unrolled", "truncated", "one_step"]


@dataclass(frozen=True, eq=False)
class FixedPointResult:
    """Where the iteration has come."""

    u: Unknown
    """The fixed point, the structure and shapes of the start."""
    steps: Tensor
    """Steps that each item made, int64, shape (batch…)."""
    residual: Tensor
    """‖T(u) − u‖ / max(‖u‖, ‖T(u_0) − u_0‖) of each item where it was measured last, shape (batch…)."""
    converged: Tensor
    """Whether the residual of each item is at most tol, bool, shape (batch…)."""
    report: LinearReport
    """How the linear system of the implicit gradient was solved; filled in by the backward pass."""

    def __repr__(self) -> str:
        """One line: shapes, and the numbers of the worst item."""
        shapes = [tuple(leaf.shape) for leaf in tree_flatten(self.u)[0]]
        if not self.steps.numel():
            return f"FixedPointResult(u of shapes {shapes})"
        return (
            f"FixedPointResult(u of shapes {shapes}, steps up to {int(self.steps.max())}, residual up to "
            f"{float(self.residual.max()):.2g}, {int(self.converged.sum())} of {self.steps.numel()} items converged)"
        )


def fixed_point(
    step: Callable[..., Unknown],
    start: Unknown,
    params: Any = None,
    *,
    gradient: GradientMode | None = "implicit",
    steps: int | None = None,
    tol: float | None = None,
    max_steps: int = 1000,
    last: int = 1,
    batch_axes: int = 0,
    acceleration: Anderson | None = None,
    adjoint: LinearSolver | None = None,
    on_failure: Policy = "raise",
) -> FixedPointResult:
    """Iterate u ← T(u), and return the fixed point with the gradient that was asked for.

    >>> theta = torch.tensor(0.5, requires_grad=True)
    >>> result = fixed_point(lambda u: torch.cos(theta * u), torch.zeros(()))
    >>> result.u.backward()

    Args:
        step: T. Without `params`, step(u); gradients flow to every tensor that it closes over: weights of a module,
            hyperparameters, data. With `params`, step(u, params); gradients flow to them alone, and the call may stand
            inside torch.func.grad, vmap, jacrev, …
        start: u_0, a tensor or a (named) tuple, list or dict of tensors; it gets a gradient if all steps are recorded.
        params: a tensor or a structure of tensors; for gradient="implicit".
        gradient: see above; None records nothing.
        steps: make exactly so many; None: until every item has converged.
        tol: residual at which an item has converged and stays where it is; None: 1e-10 in float64, 1e-5 in float32.
        max_steps: give up after these many, where steps is None.
        last: k of gradient="truncated"; where steps is None they come after convergence.
        batch_axes: leading axes of u that number items; 0: all of u is one item. T must not mix items.
        acceleration: of the steps that are not recorded.
        adjoint: solver of the linear system; None: GMRES().
        on_failure: what to do if gradient="implicit" is not valid.

    Raises:
        NotConvergedError: if gradient="implicit" and the iteration, or in the backward pass the linear system, did not
            converge, unless `on_failure` says otherwise. Where a gradient is recorded, the distance to the nearest
            fixed point is estimated too, from below: see `l2o.fixed_point_distance` for what that cannot see. Under
            torch.no_grad() too, where only the residual is looked at; not with gradient=None.
        TypeError: if the start holds something else than real floating-point tensors, `acceleration` is no Anderson,
            `adjoint` is no linear solver, or, under vmap, convergence would have to be looked at.
        ValueError: if an option is out of its range, or the step gives another shape than it takes.
    """
    check_options(gradient, steps, tol, max_steps, last, acceleration, adjoint, on_failure)
    packing = Packing(start, batch_axes)
    loop = Loop(steps, max_steps, default_tolerance(packing.dtype) if tol is None else tol, acceleration)
    how = Adjoint(adjoint or GMRES(), on_failure)
    first = packing.pack(start)
    leaves, structure = tree_flatten(params)

    def packed(u: Tensor, *leaves: Any) -> Tensor:
        u = packing.unpack(u)
        return packing.pack(step(u) if params is None else step(u, tree_unflatten(leaves, structure)))

    def bound(u: Tensor) -> Tensor:
        return packed(u, *leaves)

    if gradient == "implicit" and params is not None:
        end = solve_explicit(Explicit(packed, partial(_find, loop=loop), loop.tol, how), first, leaves)
    elif gradient == "implicit":
        end = implicit(bound, first, loop, how)
    elif gradient is None or not torch.is_grad_enabled():
        with torch.no_grad():
            end = run(bound, first, loop)
    else:
        end = recorded(bound, first, loop, {"one_step": 1, "truncated": last}.get(gradient))
    shape = packing.batch_shape
    converged = (end.residual <= loop.tol).reshape(shape)
    return FixedPointResult(
        packing.unpack(end.u), end.steps.reshape(shape), end.residual.reshape(shape), converged, how.report
    )


def recorded(step: Callable[[Tensor], Tensor], start: Tensor, loop: Loop, last: int | None) -> Run:
    """Iterate with the last steps in the graph; None: all of them."""
    if last is None or (loop.steps is not None and last >= loop.steps):
        return run(step, start, loop)
    with torch.no_grad():
        head = run(step, start, replace(loop, steps=None if loop.steps is None else loop.steps - last))
    return run(step, start, replace(loop, steps=last, acceleration=None), before=head)


def implicit(step: Callable[[Tensor], Tensor], start: Tensor, loop: Loop, adjoint: Adjoint) -> Run:
    """Iterate without a graph, check that this has come to a fixed point, and attach the implicit gradient, if any.

    Raises:
        TypeError: if the step closes over what a transform of torch.func differentiates or batches.
        NotConvergedError: if it has not, unless the policy says otherwise.
    """
    depends = torch.is_grad_enabled() and requires_grad(step(start.detach()))
    with torch.no_grad():
        end = _find(step, start, loop) if not depends else run(step, start, loop)
    if depends:
        return attach_checked(step, end, loop.tol, adjoint)
    require_convergence(end, loop.tol, adjoint.on_failure)
    return end


def attach_checked(step: Callable[[Tensor], Tensor], end: Run, tol: float, adjoint: Adjoint) -> Run:
    """Measure the residual at the end of a run, and attach the implicit gradient.

    Raises:
        NotConvergedError: if the residual of an item is above tol, or its distance from a fixed point is large, unless
            the policy says otherwise.
    """
    point = end.u.detach().requires_grad_()
    image = step(point)
    end = end.settled(image)
    require_convergence(end, tol, adjoint.on_failure)
    require_nearness(end, point, image, tol, adjoint.on_failure)
    return end._replace(u=attach(point, image, adjoint))


def _find(step: Callable[[Tensor], Tensor], start: Tensor, loop: Loop) -> Run:
    """Iterate, and measure the residual where that ends."""
    end = run(step, start, loop)
    return end.settled(step(end.u))


def check_options(
    gradient: Any,
    steps: Any,
    tol: Any,
    max_steps: int,
    last: int,
    acceleration: Any,
    adjoint: Any,
    policy: str,
) -> None:
    """Check the options of `fixed_point`.

    Raises:
        TypeError: if `acceleration` is no Anderson, or `adjoint` no linear solver.
        ValueError: if one is out of its range, or two do not fit each other.
    """
    if gradient is not None and gradient not in get_args(GradientMode):
        raise ValueError(f"gradient must be None or one of {', '.join(get_args(GradientMode))}, got {gradient!r}")
    if (steps is not None and steps < 0) or max_steps < 0 or last < 1:
        raise ValueError(f"need steps ≥ 0, max_steps ≥ 0 and last ≥ 1, got {steps}, {max_steps} and {last}")
    if tol is not None and not tol > 0:
        raise ValueError(f"tol must be above 0, got {tol}")
    if acceleration is not None and gradient == "unrolled":
        raise ValueError('acceleration is not recorded: with gradient="unrolled" leave it out, or use "implicit"')
    if acceleration is not None and not isinstance(acceleration, Anderson):
        raise TypeError(f"acceleration must be an l2o.Anderson, for instance Anderson(), or None; got {acceleration!r}")
    check_solver(adjoint)
    check_policy(policy)
