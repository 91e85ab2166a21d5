"""Run a rule on a problem: for a number of steps, or to a certified accuracy."""

import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.certificate import Certificate, certify
from l2o.problem import Problem
from l2o.rule import ModelBasedRule, Observation, State, UpdateRule

MAX_STEPS = 10_000
"""Steps after which `solve(tol=…)` gives up unless told otherwise."""


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
    """Whether every item reached the tolerance; True where none was asked for."""


@torch.no_grad()
def solve(
    rule: UpdateRule,
    problem: Problem,
    *,
    steps: int | None = None,
    tol: float | None = None,
    max_steps: int = MAX_STEPS,
    start: Tensor | None = None,
    history: bool = True,
) -> Solution:
    """Minimise ½‖Ax − b‖² + g(x) + h(Kx) by the steps of a rule, all items at once.

    Args:
        rule: model-based, or a gradient rule (LSTM, Adam, …), which is given the (sub)gradient of F.
        steps: how many; None with no `tol` takes the number of layers that the rule was trained for.
        tol: stop as soon as the relative duality gap, (F(x) − D) / F(x), is at most this for every item; checked after
            0, 1, 2, 4, … and every 10 steps. Where there is an h, D uses the entry `dual` of the rule's state.
        max_steps: give up after these many, with `converged` False; only with `tol`.
        start: first iterate, the shape of x; None is 0.
        history: whether to evaluate F after every step.

    Raises:
        TypeError: if the rule is none, but a name for instance, or a number of steps is no integer.
        ValueError: if both or neither of steps and tol are given (and the rule has no number of layers), one is out of
            its range, or the start has another shape.
    """
    if not isinstance(rule, nn.Module):
        raise TypeError(f"rule must be an UpdateRule, got {rule!r}; of a name, l2o.load_rule(name) makes one")
    limit = _limit(rule, steps, tol, max_steps)
    x = problem.zeros() if start is None else _checked(start, problem)
    state = init_state(rule, problem, x)
    values = [problem.value(x)] if history else []
    made, certificate = 0, None
    while made < limit:
        if tol is not None and _is_checkpoint(made):
            certificate = _certify(problem, x, state)
            if bool((certificate.relative_gap <= tol).all()):
                break
        x, state = make_step(rule, problem, x, state, made)
        made, certificate = made + 1, None
        if history:
            values.append(problem.value(x))
    certificate = certificate or _certify(problem, x, state)
    curve = torch.stack(values) if history else x.new_empty((0, *problem.batch_shape))
    return Solution(x, curve, certificate, made, tol is None or bool((certificate.relative_gap <= tol).all()))


def stepper(rule: UpdateRule, problem: Problem, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function x_t ↦ x_{t+1} of a run that starts at x; it carries the rule's state and counts its steps."""
    state, step = init_state(rule, problem, x), 0

    def advance(x: Tensor) -> Tensor:
        nonlocal state, step
        x, state = make_step(rule, problem, x, state, step)
        step += 1
        return x

    return advance


def init_state(rule: UpdateRule, problem: Problem, x: Tensor) -> State:
    """Return a rule's state before its first step on a problem."""
    return rule.init_problem(problem, x) if isinstance(rule, ModelBasedRule) else rule.init_state({"x": x})


def make_step(rule: UpdateRule, problem: Problem, x: Tensor, state: State, step: int) -> tuple[Tensor, State]:
    """Return the next iterate and state of any rule."""
    if isinstance(rule, ModelBasedRule):
        return rule.iterate(problem, x, state, step)
    observation = Observation({"x": x}, {"x": _subgradient(problem, x)}, None, torch.tensor(step), problem)
    params, state = rule(observation, state)
    return params["x"], state


def _subgradient(problem: Problem, x: Tensor) -> Tensor:
    """A subgradient of F by autograd: for ‖x‖₁ that is sign(x), 0 at 0."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(problem.value(x).sum(), x)[0]


def _certify(problem: Problem, x: Tensor, state: State) -> Certificate:
    return certify(problem, x, getattr(state, "dual", None) if problem.composite is not None else None)


def _limit(rule: UpdateRule, steps: int | None, tol: float | None, max_steps: int) -> int:
    if steps is None and tol is None:
        steps = getattr(rule, "layers", None)
    if (steps is None) == (tol is None):
        raise ValueError(f"give either steps or tol, got steps={steps} and tol={tol}")
    if tol is not None and not tol > 0:
        raise ValueError(f"tol must be above 0, got {tol}")
    try:
        limit = operator.index(max_steps if steps is None else steps)
    except TypeError:
        raise TypeError(f"steps and max_steps must be integers, got {steps} and {max_steps}") from None
    if limit < 0:
        raise ValueError(f"steps must be at least 0, got {limit}")
    return limit


def _checked(start: Tensor, problem: Problem) -> Tensor:
    start = torch.as_tensor(start, dtype=problem.b.dtype, device=problem.b.device)  # NumPy too
    if tuple(start.shape) != problem.x_shape:
        raise ValueError(f"the start must have the shape of x, {problem.x_shape}, got {tuple(start.shape)}")
    return start


def _is_checkpoint(made: int) -> bool:
    return made % 10 == 0 or made & (made - 1) == 0
