"""Roots g(u, ω) = 0 with the implicit gradient: optimality conditions, equilibria, equations.

    ∂ℓ = −wᵀ ∂g/∂ω,   (∂g/∂u)ᵀ w = ∂ℓ/∂u

Nothing has to be a contraction. Source: Blondel et al. 2022, Efficient and modular implicit differentiation, NeurIPS,
eq. 2.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from l2o.anderson import Anderson
from l2o.fixed_point import FixedPointResult
from l2o.fixed_point_distance import require_nearness
from l2o.fixed_point_loop import Loop, Run, require_convergence, run
from l2o.implicit import Adjoint, Policy, attach, check_policy, requires_grad
from l2o.implicit_params import Explicit, solve_explicit
from l2o.krylov import GMRES
from l2o.linear_solvers import LinearSolver, check_solver, default_tolerance, norms
from l2o.newton import Newton, relative_residual
from l2o.packing import Packing, Unknown

RootSolver = Newton | Anderson | Callable[[Callable[[Unknown], Unknown], Unknown], Unknown]


def root(
    g: Callable[..., Unknown],
    start: Unknown,
    params: Any = None,
    *,
    solver: RootSolver | None = None,
    tol: float | None = None,
    max_steps: int = 1000,
    batch_axes: int = 0,
    adjoint: LinearSolver | None = None,
    on_failure: Policy = "raise",
) -> FixedPointResult:
    """Find u with g(u) = 0, and return it with the implicit gradient.

    >>> c = torch.tensor(2.0, requires_grad=True)
    >>> root(lambda u: u**2 - c, torch.ones(())).u.backward()
    >>> print(f"{c.grad:.4f}")
    0.3536

    Args:
        g: maps u to what has its structure and shapes. Without `params`, g(u); gradients flow to every tensor that it
            closes over. With `params`, g(u, params); gradients flow to them alone, and the call may stand inside
            torch.func.grad, vmap, jacrev, …
        start: u_0, a tensor or a (named) tuple, list or dict of tensors.
        params: a tensor or a structure of tensors.
        solver: how the root is found. None: Newton(). Anderson(): accelerated steps u − g(u). A function
            (g, start) ↦ u: any solver, whose result is checked.
        tol: largest ‖g(u)‖ / max(‖Jᵀu‖, ‖g(u_0)‖) of a root; None: 1e-10 in float64, 1e-5 in float32.
        max_steps: of Anderson().
        batch_axes: leading axes of u that number items; 0: all of u is one item. g must not mix items.
        adjoint: solver of the linear system; None: GMRES().
        on_failure: what to do if no root was found, or the linear system was not solved.

    Raises:
        NotConvergedError: if no root was found, or, in the backward pass, the linear system was not solved, unless
            `on_failure` says otherwise. Where a gradient is recorded, the distance to the nearest root is estimated
            too, from below: see `l2o.fixed_point_distance` for what that cannot see.
        TypeError: if the start holds something else than real floating-point tensors, or `adjoint` is no linear solver.
        ValueError: if an option is out of its range, or g gives another shape than it takes.
    """
    check_policy(on_failure)
    check_solver(adjoint)
    if tol is not None and not tol > 0:
        raise ValueError(f"tol must be above 0, got {tol}")
    packing = Packing(start, batch_axes)
    loop = Loop(None, max_steps, default_tolerance(packing.dtype) if tol is None else tol)
    adjoint_ = Adjoint(adjoint or GMRES(), on_failure)
    leaves, structure = tree_flatten(params)

    def packed(u: Tensor, *leaves: Any) -> Tensor:
        unknown = packing.unpack(u)
        return packing.pack(g(unknown) if params is None else g(unknown, tree_unflatten(leaves, structure)))

    def find(g: Callable[[Tensor], Tensor], u: Tensor) -> Run:
        return _find(g, u, loop, Newton() if solver is None else solver, packing)

    first = packing.pack(start).detach()
    if params is not None and torch.is_grad_enabled():
        end = solve_explicit(Explicit(packed, find, loop.tol, adjoint_, is_root=True), first, leaves)
    else:
        end = _attached(lambda u: packed(u, *leaves), find, first, loop.tol, adjoint_)
    shape = packing.batch_shape
    return FixedPointResult(
        packing.unpack(end.u),
        end.steps.reshape(shape),
        end.residual.reshape(shape),
        (end.residual <= loop.tol).reshape(shape),
        adjoint_.report,
    )


def _attached(g: Callable[[Tensor], Tensor], find: Any, start: Tensor, tol: float, adjoint: Adjoint) -> Run:
    """Find the root, check it, and attach the gradient, if any."""
    depends = torch.is_grad_enabled() and requires_grad(g(start))
    with torch.no_grad():
        end = find(g, start)
    require_convergence(end, tol, adjoint.on_failure, is_root=True)
    if not depends:
        return end
    point = end.u.detach().requires_grad_()
    image = g(point)
    require_nearness(end, point, image, tol, adjoint.on_failure, is_root=True)
    return end._replace(u=attach(point, image, adjoint, is_root=True))


def _find(g: Callable[[Tensor], Tensor], start: Tensor, loop: Loop, solver: RootSolver, packing: Packing) -> Run:
    """Run a solver, and measure what it has found."""
    scale = norms(g(start))
    steps = torch.zeros(len(start), dtype=torch.long, device=start.device)
    if isinstance(solver, Newton):
        u, steps = solver.run(g, start, loop.tol)
    elif isinstance(solver, Anderson):
        end = run(lambda u: u - g(u), start, Loop(None, loop.max_steps, loop.tol, solver))
        u, steps = end.u, end.steps
    else:
        found = solver(lambda unknown: packing.unpack(g(packing.pack(unknown))), packing.unpack(start))
        u = packing.pack(found).detach()
    with torch.enable_grad():
        point = u.detach().requires_grad_()
        residual = relative_residual(point, g(point), scale)
    return Run(u, steps, residual, norms(u - start))
