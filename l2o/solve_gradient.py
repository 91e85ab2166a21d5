"""The gradient of a rule's run on a problem: which steps are recorded, or the fixed point that it has come to.

The fixed point of a rule is that of u = (x, the entries of the state that `ModelBasedRule.iterated` names) under

    T(u):  a fresh `init_problem` at x, with those entries put in, then `iterate`

so that what a rule computes once from the problem is differentiated like the step itself. FISTA starts at its solution
without momentum: its T is the proximal gradient step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from l2o.constrained import ConstrainedProblem
from l2o.fixed_point import GradientMode, attach_checked
from l2o.fixed_point_loop import Run
from l2o.implicit import Adjoint, Policy, check_policy, requires_grad
from l2o.krylov import GMRES
from l2o.linear_solvers import LinearReport, LinearSolver, check_solver, norms
from l2o.packing import Packing
from l2o.problem import Problem
from l2o.rule import State, UpdateRule
from l2o.stepping import init_state, make_step

_RESIDUALS = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Where an implicit gradient counts as valid: looser than `fixed_point`, for a rule stops by its duality gap."""


@dataclass(frozen=True)
class Gradient:
    """How the run of a rule is differentiated."""

    mode: GradientMode | None = None
    """None: not at all."""
    last: int = 1
    """k of mode "truncated"."""
    residual_tol: float | None = None
    """Largest ‖T(u) − u‖ / ‖u‖ at which mode "implicit" is valid; None: 1e-6 in float64, 1e-4 in float32."""
    adjoint: LinearSolver | None = None
    """Linear solver of mode "implicit"; None: GMRES()."""
    on_failure: Policy = "raise"
    """What to do where mode "implicit" is not valid."""

    def __post_init__(self):
        """Check the options.

        Raises:
            TypeError: if `adjoint` is no linear solver.
            ValueError: if one is none of those named or out of its range.
        """
        if self.mode is not None and self.mode not in get_args(GradientMode):
            raise ValueError(f"gradient must be None or one of {', '.join(get_args(GradientMode))}, got {self.mode!r}")
        if self.last < 1:
            raise ValueError(f"last must be at least 1, got {self.last}")
        if self.residual_tol is not None and not self.residual_tol > 0:
            raise ValueError(f"residual_tol must be above 0, got {self.residual_tol}")
        check_solver(self.adjoint)
        check_policy(self.on_failure)


def attach_fixed_point(
    rule: UpdateRule,
    problem: Problem | ConstrainedProblem,
    x: Tensor,
    state: State,
    made: int,
    start: Tensor,
    how: Gradient,
) -> tuple[Tensor, LinearReport]:
    """Return x with the gradient of the fixed point that the rule has reached, and the report of its linear system.

    Args:
        x, state: after the last step.
        made: number of steps.
        start: first iterate, which gives the residual its scale.

    Raises:
        NotConvergedError: if x is no fixed point of T, unless `how` says otherwise.
    """
    names = _iterated(rule, state)
    u = (x, *(getattr(state, name) for name in names))
    packing = Packing(u, len(problem.batch_shape))

    def step(matrix: Tensor) -> Tensor:
        return packing.pack(fixed_point_map(rule, problem, names, made)(packing.unpack(matrix)))

    adjoint = Adjoint(how.adjoint or GMRES(), how.on_failure)
    point = packing.pack(u)
    if not requires_grad(step(point)):
        return x, adjoint.report
    with torch.no_grad():
        first, _ = make_step(rule, problem, start, init_state(rule, problem, start), 0)
        scale = norms((first - start).reshape(len(point), -1))
    tol = _RESIDUALS.get(x.dtype, 1e-2) if how.residual_tol is None else how.residual_tol
    end = Run(point, torch.full((len(point),), made, device=x.device), torch.full_like(scale, torch.inf), scale)
    return packing.unpack(attach_checked(step, end, tol, adjoint).u)[0], adjoint.report


def fixed_point_map(
    rule: UpdateRule, problem: Problem | ConstrainedProblem, names: tuple[str, ...], step: int
) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return T of (x, the named entries of the state), as a rule's step number `step`."""

    def apply(u: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *entries = u
        state = init_state(rule, problem, x)
        if names:
            state = state._replace(**dict(zip(names, entries, strict=True)))
        new, state = make_step(rule, problem, x, state, step)
        return new, *(getattr(state, name) for name in names)

    return apply


def _iterated(rule: Any, state: State) -> tuple[str, ...]:
    """The names of the iterated entries, without those that this problem does not need."""
    names = getattr(rule, "iterated", ())
    names = state._fields[1:] if names is None else names
    return tuple(name for name in names if getattr(state, name).numel())
