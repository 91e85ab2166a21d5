"""Run a rule on a problem: for a number of steps, or to a certified accuracy; with a gradient, if one is wanted."""

import operator
import warnings
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.certificate import Certificate, certify
from l2o.constrained import ConstrainedProblem
from l2o.fixed_point import GradientMode
from l2o.implicit import Policy, explained
from l2o.linear_solvers import LinearReport, LinearSolver
from l2o.problem import Problem
from l2o.rule import State, UpdateRule
from l2o.solve_gradient import Gradient, attach_fixed_point
from l2o.stepping import init_state, make_step, stepper

__all__ = ["MAX_STEPS", "Solution", "init_state", "make_step", "solve", "stepper"]

MAX_STEPS = 10_000
"""Steps after which `solve(tol=…)` gives up unless told otherwise."""


_NO_VMAP = "solve looks at values, and cannot stand inside torch.vmap: give the items as batch axes of the problem"


class Solution(NamedTuple):
    """Where a rule has come."""

    x: Tensor
    """The last iterate, shape (batch…, item…)."""
    history: Tensor
    """F at the start and after every step, shape (steps + 1, batch…); (0, batch…) if it was not asked for."""
    certificate: Certificate
    """Primal and dual value at x, in float64."""
    steps: int
    """Steps made."""
    converged: bool
    """Whether every item reached the tolerance; where none was asked for, whether every item is finite."""
    report: LinearReport | None = None
    """How the linear system of gradient="implicit" was solved; filled in by the backward pass."""

    def __repr__(self) -> str:
        """One line: shapes, and the largest gap."""
        return (
            f"Solution(x={_shape(self.x)}, history={_shape(self.history)}, {self.certificate!r}, "
            f"steps={self.steps}, converged={self.converged})"
        )


def solve(
    rule: UpdateRule,
    problem: Problem | ConstrainedProblem,
    *,
    steps: int | None = None,
    tol: float | None = None,
    max_steps: int = MAX_STEPS,
    start: Tensor | None = None,
    history: bool = True,
    gradient: GradientMode | None = None,
    last: int = 1,
    residual_tol: float | None = None,
    adjoint: LinearSolver | None = None,
    on_failure: Policy = "raise",
) -> Solution:
    """Minimise ½‖Ax − b‖² + g(x) + h(Kx), or g(z) + h(e) s.t. Az + e = b, by the steps of a rule, all items at once.

    With a gradient mode, x carries the gradient to the weights of the rule and to what the problem is made of: b, A, λ.
    The Lipschitz bound and the step sizes that come from it are constants in all modes.

    Args:
        rule: model-based, or a gradient rule (LSTM, Adam, …), which is given the (sub)gradient of F.
        steps: how many; None with no `tol` takes the number of layers that the rule was trained for.
        tol: stop as soon as the relative duality gap, (F(x) − D) / F(x), is at most this for every item; checked after
            0, 1, 2, 4, … and every 10 steps. Where there is an h, D uses the entry `dual` of the rule's state, and for
            a `ConstrainedProblem` its `multiplier`, or what the method `dual_variable` of a rule gives, as `GKM` has.
            An iterate that is not finite stops the run; without `tol` it goes on. A RuntimeWarning says so in both.
        max_steps: give up after these many, with a RuntimeWarning and `converged` False; only with `tol`.
        start: first iterate, the shape of x; None is 0.
        history: whether to evaluate F after every step; it has a graph where the step has one.
        gradient: None: no graph at all. "unrolled": through all steps. "truncated": through the last ones. "one_step":
            through the last one. "implicit": of the fixed point, from one step and a linear system.
        last: steps in the graph of gradient="truncated"; with `tol` they come after the tolerance was reached.
        residual_tol: largest relative change ‖T(u) − u‖ / ‖u‖ by a step at which gradient="implicit" is valid; None:
            1e-6 in float64, 1e-4 in float32.
        adjoint: linear solver of gradient="implicit"; None: GMRES().
        on_failure: what to do if gradient="implicit" is not valid: "raise", "warn" or "ignore".

    Raises:
        NotConvergedError: if gradient="implicit", but the rule has not come to a fixed point (the residual and an
            estimate of the distance are looked at), or in the backward pass its linear system was not solved.
        TypeError: if the rule is none, but a name for instance, or the problem is none, a number of steps is no
            integer, or tol is no number; or inside torch.vmap.
        ValueError: if both or neither of steps and tol are given (and the rule has no number of layers), one is out of
            its range, or the start has another shape; or a gradient of a rule that records no steps (`Safeguarded`).
    """
    _check(rule, problem, gradient)
    limit = _limit(rule, steps, tol, max_steps)
    how = Gradient(gradient, last, residual_tol, adjoint, on_failure)
    if not torch.is_grad_enabled():
        how = Gradient()
    first = problem.zeros() if start is None else _checked(start, problem)
    tail = {"truncated": last, "one_step": 1}.get(how.mode or "", 0)
    with torch.set_grad_enabled(
        how.mode not in (None, "implicit")
    ):  # what a rule computes once is in the graph of every recorded step
        walk = _Walk(first, init_state(rule, problem, first), 0, [problem.value(first)] if history else [])
    with torch.set_grad_enabled(how.mode == "unrolled"):
        walk = _walk(rule, problem, walk, limit if tol is not None else max(limit - tail, 0), tol)
    walk = _walk(rule, problem, walk, walk.made + tail if tol is not None else limit, None) if tail else walk
    certificate, finite = walk.certificate or _certify(rule, problem, walk.x, walk.state), _is_finite(walk.x)
    converged = finite and (tol is None or bool((certificate.relative_gap <= tol).all()))
    if not finite:
        warnings.warn(_not_finite(rule, problem, walk), RuntimeWarning, stacklevel=2)
    elif not converged:
        warnings.warn(_gave_up(rule, walk, certificate, tol), RuntimeWarning, stacklevel=2)
    x, report = walk.x, None
    if how.mode == "implicit":
        x, report = attach_fixed_point(rule, problem, x, walk.state, walk.made, first, how)
    curve = torch.stack(walk.values) if history else x.new_empty((0, *problem.batch_shape))
    return Solution(x, curve, certificate, walk.made, converged, report)


def _check(rule: UpdateRule, problem: Problem | ConstrainedProblem, mode: GradientMode | None) -> None:
    """Raise where `solve` says that it does, for what is not a number."""
    if not isinstance(rule, UpdateRule) and not hasattr(rule, "init_state"):
        if isinstance(rule, nn.Module):
            raise TypeError(f"rule must be an UpdateRule, got a {type(rule).__name__}: derive it from l2o.UpdateRule")
        raise TypeError(f"rule must be an UpdateRule, got {rule!r}; of a name, l2o.load_rule(name) makes one")
    if not isinstance(problem, Problem | ConstrainedProblem):
        raise TypeError(
            f"problem must be an l2o.Problem, got a {type(problem).__name__}; tasks.lasso.problem(A, b, λ) makes one"
        )
    if mode is not None and not getattr(rule, "differentiable", True):
        raise ValueError(
            f"{type(rule).__name__} records no steps, so gradient={mode!r} would be lost; solve without it, and "
            'for its gradient at a solution x: l2o.solve(FISTA(), problem, steps=1, start=x, gradient="implicit")'
        )


class _Walk(NamedTuple):
    """A run so far."""

    x: Tensor
    state: State
    made: int
    values: list[Tensor]
    """F at the start and after every step, if it was asked for."""
    certificate: Certificate | None = None
    """That of x, if it is known."""


def _walk(rule: UpdateRule, problem: Problem | ConstrainedProblem, walk: _Walk, limit: int, tol: float | None) -> _Walk:
    """Go on until `limit` steps have been made in all, or the tolerance is reached, or x is not finite."""
    x, state, made, values, certificate = walk
    values, history = list(values), bool(values)
    while made < limit:
        if tol is not None:
            if not _is_finite(x):
                break
            if _is_checkpoint(made):
                certificate = _certify(rule, problem, x, state)
                if bool((certificate.relative_gap <= tol).all()):
                    break
        x, state = make_step(rule, problem, x, state, made)
        made, certificate = made + 1, None
        if history:
            values.append(problem.value(x))
    return _Walk(x, state, made, values, certificate)


def _is_finite(x: Tensor) -> bool:
    with explained(_NO_VMAP):
        return bool(torch.isfinite(x).all())


def _not_finite(rule: UpdateRule, problem: Problem | ConstrainedProblem, walk: _Walk) -> str:
    items = int((~torch.isfinite(walk.x)).flatten(-problem.ndim).any(-1).sum())
    of = torch.Size(problem.batch_shape).numel()
    layers = getattr(rule, "layers", None)
    cure = "Check the data, or take a smaller step size"
    if layers is not None and walk.made > layers:
        cure = f"It is made for {layers} steps: take no more, or wrap it, l2o.rules.Safeguarded(rule), to converge"
    return f"{type(rule).__name__} after {walk.made} steps: {items} of {of} items are no longer finite. {cure}"


def _gave_up(rule: UpdateRule, walk: _Walk, certificate: Certificate, tol: float | None) -> str:
    gap, dtype = certificate.relative_gap.max(), str(walk.x.dtype).removeprefix("torch.")
    cure = "Take more steps, or a rule that converges: l2o.rules.FISTA(), l2o.rules.Safeguarded(rule)"
    if walk.x.dtype != torch.float64:
        cure += f"; {dtype} may not come nearer, problem.double() does"
    name = type(rule).__name__
    return f"{name} gave up after {walk.made} steps: the largest relative gap is {gap:.1e}, not tol={tol:g}. {cure}"


@torch.no_grad()
def _certify(rule: UpdateRule, problem: Problem | ConstrainedProblem, x: Tensor, state: State) -> Certificate:
    """The certificate of x; nan for items that are not finite."""
    bounds = partial(certify, problem) if isinstance(problem, Problem) else problem.certificate
    known = getattr(rule, "dual_variable", None)  # of GKM, whose ADMM holds λ in other coordinates
    dual = getattr(state, _dual_name(problem), None) if known is None else known(problem, state)
    finite = torch.isfinite(x).flatten(-problem.ndim).all(-1)
    with explained(_NO_VMAP):
        all_finite = bool(finite.all())
    if all_finite:
        return bounds(x, dual)
    found = bounds(x.nan_to_num(0.0, 0.0, 0.0), None if dual is None else dual.nan_to_num(0.0, 0.0, 0.0))
    return Certificate(*(torch.where(finite, bound, torch.nan) for bound in found))


def _dual_name(problem: Problem | ConstrainedProblem) -> str:
    """The entry of a rule's state that is a guess of the dual variable."""
    if isinstance(problem, ConstrainedProblem):
        return "multiplier"
    return "dual" if problem.composite is not None else ""


def _limit(rule: UpdateRule, steps: int | None, tol: float | None, max_steps: int) -> int:
    if steps is None and tol is None:
        steps = getattr(rule, "layers", None)
    if (steps is None) == (tol is None):
        raise ValueError(f"give either steps or tol, got steps={steps} and tol={tol}")
    if isinstance(tol, str):
        raise TypeError(f"tol must be a number, got {tol!r}")
    if tol is not None and not tol > 0:
        raise ValueError(f"tol must be above 0, got {tol}")
    try:
        limit = operator.index(max_steps if steps is None else steps)
    except TypeError:
        raise TypeError(f"steps and max_steps must be integers, got {steps} and {max_steps}") from None
    if limit < 0:
        raise ValueError(f"steps must be at least 0, got {limit}")
    return limit


def _checked(start: Tensor, problem: Problem | ConstrainedProblem) -> Tensor:
    start = torch.as_tensor(start, dtype=problem.b.dtype, device=problem.b.device)  # NumPy too
    if tuple(start.shape) != problem.x_shape:
        raise ValueError(f"the start must have the shape of x, {problem.x_shape}, got {tuple(start.shape)}")
    return start


def _is_checkpoint(made: int) -> bool:
    return made % 10 == 0 or made & (made - 1) == 0


def _shape(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape)}".removeprefix("torch.")
