"""Backpropagation through the unrolled window by autograd.

With the horizon as window it is the full gradient; with a shorter one, truncated backpropagation through time (biased:
what the window's start owes to θ is ignored). First order detaches the inner gradient, as Andrychowicz et al. 2016
(§2.1) do; second order differentiates through it. Memory grows with the window and with the optimizee's graph.

With checkpoints every C steps (Chen et al. 2016, arXiv:1604.06174), a first pass without a graph keeps only where each
group of C steps starts, x_0, x_C, …; then, from the last group to the first, the group is unrolled with a graph and

    λ_j = ∂/∂x_{jC} (L_j + ⟨λ_{j+1}, x_{(j+1)C}⟩)

carries the gradient on to the group before it (L_j: the group's part of the meta-loss; the same with ∂/∂θ, summed, is
the meta-gradient). Exact, for one more pass without a graph; memory holds one group's graph and K/C starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from l2o.rule import UpdateRule
from meta_train.estimators.estimator import Estimator, MetaGradient, MetaLoss
from meta_train.inner_steps import inner_steps, largest_divisor
from meta_train.tree import flatten_tree, rebuild_tree
from meta_train.unroll import Trajectories, apply_rule, value_and_grad
from tasks.task import TaskFamily


class _Window(NamedTuple):
    """What does not change within a window."""

    rule: UpdateRule
    family: TaskFamily
    meta_loss: MetaLoss
    weights: Tensor

    @property
    def own_batches(self) -> bool:
        return self.meta_loss.split != self.meta_loss.inner_split


@dataclass(frozen=True)
class Truncated(Estimator):
    """Autograd through the window.

    Args:
        order: 1 (inner gradients detached) or 2.
        checkpoint_steps: inner steps C whose graph is held at a time; None holds the whole window's. The square root of
            the window needs least memory.

        compile_steps: second order: at most this many inner steps become one compiled graph; None runs eagerly, and so
            does, with one warning, what cannot be compiled. Compiling takes 20 to 60 CPU-seconds at the first window,
            then a step loses most of its overhead and the more, the more steps a graph has.

    Raises:
        ValueError: if checkpoint_steps or compile_steps is below one, or compile_steps is given in first order.
    """

    order: Literal[1, 2] = 1
    checkpoint_steps: int | None = None
    compile_steps: int | None = None

    def __post_init__(self):
        """Check the ranges."""
        for name in ("checkpoint_steps", "compile_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or None for none, got {value}")
        if self.compile_steps is not None and self.order == 1:
            raise ValueError("compile_steps is for second order; pass order=2, or compile_steps=None")

    def estimate(
        self,
        rule: UpdateRule,
        family: TaskFamily,
        trajectories: Trajectories,
        meta_loss: MetaLoss,
        weights: Tensor,
        generator: torch.Generator,
    ) -> MetaGradient:
        """See `Estimator.estimate`."""
        window, length = _Window(rule, family, meta_loss, weights), len(weights)
        size = self.checkpoint_steps or length
        *groups, last = [range(first, min(first + size, length)) for first in range(0, length, size)]
        starts, curve = [], []
        for steps in groups:
            starts.append((steps, trajectories, generator.clone_state()))
            losses, trajectories = _roll(window, trajectories, steps, generator)
            curve += losses
        leaves = _leaves(trajectories) if groups else {}
        total, losses, trajectories = self._unroll(window, _with(trajectories, leaves), last, generator)
        grads, cotangents = _backward(rule, total, {}, {}, leaves)
        for steps, begun, replay in reversed(starts):
            leaves = _leaves(begun) if steps.start > 0 else {}
            total, _, ended = self._unroll(window, _with(begun, leaves), steps, replay)
            more, cotangents = _backward(rule, total, _tensors(ended), cotangents, leaves)
            grads = {name: grad + more[name] for name, grad in grads.items()}
        return MetaGradient(grads, torch.stack(curve + losses), detach(trajectories))

    def _unroll(
        self, window: _Window, trajectories: Trajectories, steps: range, generator: torch.Generator
    ) -> tuple[Tensor, list[Tensor], Trajectories]:
        """Make steps with a graph; return their part of the meta-loss, the inner losses and where they end."""
        rule, family, meta_loss, weights = window
        total, curve = torch.zeros(()), []
        make = inner_steps(rule, family, self.order, self.compile_steps is not None)
        make.begin()
        count = 1 if window.own_batches else largest_divisor(len(steps), self.compile_steps or 1)
        for last in steps[count - 1 :: count]:
            made, trajectories = make(rule, trajectories, meta_loss.inner_split, generator, count)
            for k, losses in enumerate(made, last - count):  # at θ_{k+1}, whose weight is the k-th
                if k >= 0 and not window.own_batches:
                    total = total + weights[k] * meta_loss.of(losses).mean()
                curve.append(losses.detach())
            if window.own_batches or last == len(weights) - 1:
                losses = make.losses(trajectories, meta_loss.split, generator)
                total = total + weights[last] * meta_loss.of(losses).mean()
                if last == len(weights) - 1:
                    curve.append(losses.detach())
        return total, curve, trajectories


@torch.no_grad()
def _roll(
    window: _Window, trajectories: Trajectories, steps: range, generator: torch.Generator
) -> tuple[list[Tensor], Trajectories]:
    """Make the same steps as `_unroll` from the same draws, without a graph; not for a window's last step."""
    rule, family, meta_loss, _ = window
    curve = []
    for _ in steps:
        losses, grads = value_and_grad(family, trajectories, meta_loss.inner_split, generator)
        curve.append(losses)
        problem = family.problem(trajectories.tasks)
        trajectories = apply_rule(rule, trajectories, losses, grads, problem=problem)
        if window.own_batches:  # its loss is not needed, but it draws numbers
            family.sample_batch(trajectories.tasks, trajectories.n_tasks, meta_loss.split, generator)
    return curve, trajectories


def _backward(
    rule: UpdateRule, total: Tensor, ended: dict[str, Tensor], cotangents: dict[str, Tensor], leaves: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the gradients of total + ⟨cotangents, ended⟩ with respect to θ and to the leaves."""
    reached = [name for name in cotangents if ended[name].requires_grad]
    outputs = [total, *(ended[name] for name in reached)] if total.requires_grad else [ended[name] for name in reached]
    seeds: Sequence[Tensor] = [torch.ones_like(total)] if total.requires_grad else []
    theta = dict(rule.named_parameters())
    pieces = torch.autograd.grad(
        outputs,
        [*theta.values(), *leaves.values()],
        [*seeds, *(cotangents[name] for name in reached)],
        materialize_grads=True,
    )
    return dict(zip(theta, pieces[: len(theta)], strict=True)), dict(zip(leaves, pieces[len(theta) :], strict=True))


def _tensors(trajectories: Trajectories) -> dict[str, Tensor]:
    """Return what the rule moves, by path."""
    return flatten_tree({"params": trajectories.params, "state": trajectories.state}, "")


def _leaves(trajectories: Trajectories) -> dict[str, Tensor]:
    """Return params and state, cut from their graph, as variables to differentiate with respect to."""
    tensors = {name: tensor for name, tensor in _tensors(trajectories).items() if tensor.is_floating_point()}
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def _with(trajectories: Trajectories, leaves: dict[str, Tensor]) -> Trajectories:
    tensors = _tensors(trajectories) | leaves
    return trajectories._replace(
        params=rebuild_tree(trajectories.params, tensors, "/params"),
        state=rebuild_tree(trajectories.state, tensors, "/state"),
    )


def detach(trajectories: Trajectories) -> Trajectories:
    """Cut the graph at a window's end."""
    params = {name: tensor.detach() for name, tensor in trajectories.params.items()}
    state = type(trajectories.state)(*(tensor.detach() for tensor in trajectories.state))
    return trajectories._replace(params=params, state=state)
