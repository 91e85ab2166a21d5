"""One step of any rule on a problem, model-based or not."""

from collections.abc import Callable

import torch
from torch import Tensor

from l2o.constrained import ConstrainedProblem
from l2o.problem import Problem
from l2o.rule import ModelBasedRule, Observation, State, UpdateRule


def stepper(rule: UpdateRule, problem: Problem | ConstrainedProblem, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function x_t ↦ x_{t+1} of a run that starts at x; it carries the rule's state and counts its steps."""
    state, step = init_state(rule, problem, x), 0

    def advance(x: Tensor) -> Tensor:
        nonlocal state, step
        x, state = make_step(rule, problem, x, state, step)
        step += 1
        return x

    return advance


def init_state(rule: UpdateRule, problem: Problem | ConstrainedProblem, x: Tensor) -> State:
    """Return a rule's state before its first step on a problem."""
    return rule.init_problem(problem, x) if isinstance(rule, ModelBasedRule) else rule.init_state({"x": x})


def make_step(
    rule: UpdateRule, problem: Problem | ConstrainedProblem, x: Tensor, state: State, step: int
) -> tuple[Tensor, State]:
    """Return the next iterate and state of any rule."""
    if isinstance(rule, ModelBasedRule):
        return rule.iterate(problem, x, state, step)
    observation = Observation({"x": x}, {"x": _subgradient(problem, x)}, None, torch.tensor(step), problem)
    params, state = rule(observation, state)
    return params["x"], state


def _subgradient(problem: Problem | ConstrainedProblem, x: Tensor) -> Tensor:
    """A subgradient of F by autograd: for ‖x‖₁ that is sign(x), 0 at 0; it has a graph where F(x) has one."""
    recorded = torch.is_grad_enabled() and problem.value(x).requires_grad
    with torch.enable_grad():
        x = x if recorded and x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(problem.value(x).sum(), x, create_graph=recorded)[0]
