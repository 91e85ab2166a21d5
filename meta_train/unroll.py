"""The loop over inner steps, vectorised over tasks.

One inner step: draw a minibatch per task, evaluate loss and gradient at θ_t, apply the rule. Everything that unrolls
(estimators, validation, benchmarks) is built from `value_and_grad` and `apply_rule`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.rule import CoordinatewiseRule, ModelBasedRule, Observation, Params, State, UpdateRule, add_flat, flatten
from tasks.task import Data, Split, TaskFamily


class Trajectories(NamedTuple):
    """Where a batch of inner problems stands; every tensor of tasks and params has a leading task axis."""

    tasks: Data
    params: Params
    state: State
    step: Tensor
    """Updates made so far, int64, shape ()."""

    @property
    def n_tasks(self) -> int:
        """Number of inner problems."""
        return next(iter(self.params.values())).shape[0]


def start(rule: UpdateRule, family: TaskFamily, n_tasks: int, generator: torch.Generator) -> Trajectories:
    """Sample n_tasks fresh inner problems and the rule's state for each."""
    tasks = family.sample_tasks(n_tasks, generator)
    params = family.init_params(tasks, n_tasks, generator)
    state = init_state(rule, family, tasks, params)
    return Trajectories(tasks, params, state, torch.zeros((), dtype=torch.int64, device=generator.device))


def init_state(rule: UpdateRule, family: TaskFamily, tasks: Data, params: Params) -> State:
    """Return the rule's state before the first step of every task.

    Raises:
        ValueError: if the rule is model-based and the family has no structure to show.
    """
    if isinstance(rule, ModelBasedRule):
        problem = family.problem(tasks)
        if problem is None:
            shown = type(getattr(family, "family", family)).__name__  # not the wrapper of a rank's share
            raise ValueError(f"{type(rule).__name__} steps on a problem's structure, which {shown} has not")
        return rule.init_problem(problem, params["x"])
    return rule.init_state(params) if isinstance(rule, CoordinatewiseRule) else torch.func.vmap(rule.init_state)(params)


def task_losses(family: TaskFamily, params: Params, tasks: Data, batch: Data) -> Tensor:
    """Return the loss of every task, shape (n_tasks,), connected to params."""
    if family.vectorized == "axes":
        return family.loss(params, tasks, batch)
    if family.vectorized == "vmap":
        return torch.func.vmap(family.loss)(params, tasks, batch)
    n_tasks = next(iter(params.values())).shape[0]

    def pick(tensors, i):
        return {name: tensor[i] for name, tensor in tensors.items()}

    return torch.stack([family.loss(pick(params, i), pick(tasks, i), pick(batch, i)) for i in range(n_tasks)])


def value_and_grad(
    family: TaskFamily, trajectories: Trajectories, split: Split, generator: torch.Generator, order: int = 0
) -> tuple[Tensor, Params]:
    """Evaluate every task on a fresh minibatch of a split.

    Args:
        order: 0 cuts the graph; 1 keeps the losses connected to the params and the gradients detached; 2 keeps both.
    Returns: losses, shape (n_tasks,), and gradients, like params.
    """
    batch = family.sample_batch(trajectories.tasks, trajectories.n_tasks, split, generator)
    return losses_and_grads(family, trajectories.params, trajectories.tasks, batch, order)


def losses_and_grads(
    family: TaskFamily, params: Params, tasks: Data, batch: Data, order: int = 0
) -> tuple[Tensor, Params]:
    """Evaluate every task on a given minibatch; arguments and results as for `value_and_grad`."""
    with torch.enable_grad():
        params = {name: _variable(p, order) for name, p in params.items()}
        losses = task_losses(family, params, tasks, batch)
        grads = dict(zip(params, _gradients(losses, tuple(params.values()), order), strict=True))
    return losses if order else losses.detach(), grads


def _variable(tensor: Tensor, order: int) -> Tensor:
    """Return the tensor if it is a variable already, connected to nothing in order 0; else one of the same memory."""
    return tensor if tensor.requires_grad and (order or tensor.is_leaf) else tensor.detach().requires_grad_()


def _gradients(losses: Tensor, inputs: tuple[Tensor, ...], order: int) -> Sequence[Tensor]:
    """Return the gradients of Σ losses, zero for an input that the losses ignore."""
    seeds, graph = torch.ones_like(losses), order == 2
    if not losses.is_cpu:  # where the engine's own threads need what the function around it hands them
        return torch.autograd.grad((losses,), inputs, (seeds,), order > 0, graph, materialize_grads=True)
    # torch.autograd.grad is this call and checks of its arguments, which take longer than a small task's backward pass.
    engine = torch.autograd.Variable._execution_engine
    pieces = engine.run_backward((losses,), (seeds,), order > 0, graph, inputs, True, accumulate_grad=False)
    return [torch.zeros_like(tensor) if piece is None else piece for tensor, piece in zip(inputs, pieces, strict=True)]


def apply_rule(
    rule: UpdateRule,
    trajectories: Trajectories,
    losses: Tensor,
    grads: Params,
    overwrite: bool = False,
    problem: Problem | None = None,
) -> Trajectories:
    """Make one update of every task.

    Args:
        overwrite: without autograd, allow the rule to reuse the memory of `trajectories.state`.
        problem: the tasks as `family.problem` gives them, which a model-based rule needs.
    """
    tasks, params, state, step = trajectories
    if isinstance(rule, ModelBasedRule):  # batched as it is
        params, state = rule(Observation(params, grads, losses, step, problem), state)
        return Trajectories(tasks, params, state, step + 1)
    if isinstance(rule, CoordinatewiseRule):  # takes task axes as they are: one axis of coordinates over all tasks
        update = rule.update_ if overwrite else rule.update
        updates, state = update(flatten(grads), state, step)
        params = add_flat(params, updates)
    else:

        def one_task(params, grads, loss, state):
            return rule(Observation(params, grads, loss, step), state)

        params, state = torch.func.vmap(one_task)(params, grads, losses, state)
    return Trajectories(tasks, params, state, step + 1)


@torch.no_grad()
def evaluate(
    rule: UpdateRule, family: TaskFamily, n_tasks: int, horizon: int, split: Split, generator: torch.Generator
) -> Tensor:
    """Run fresh problems and return the inner losses at θ_0 … θ_{T−1} on their own minibatches.

    Returns: shape (horizon, n_tasks); a diverged run shows as inf or nan.
    """
    trajectories = start(rule, family, n_tasks, generator)
    problem, curve = family.problem(trajectories.tasks), []
    for _ in range(horizon):
        losses, grads = value_and_grad(family, trajectories, split, generator)
        trajectories = apply_rule(rule, trajectories, losses, grads, overwrite=True, problem=problem)
        curve.append(losses)
    return torch.stack(curve)
