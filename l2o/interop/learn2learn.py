"""Gradient rules inside learn2learn: a transform for `ParameterUpdate`, `GBML` and `LearnableOptimizer`.

    rule = l2o.load_rule("lstm-digits")
    gbml = learn2learn.algorithms.GBML(model, RuleTransform(rule), lr=1.0)
    learner = gbml.clone()                       # every clone starts from the memory of what it was cloned from
    for inputs, targets in steps:
        learner.adapt(loss(learner(inputs), targets))
    loss(learner(held_out), held_out_targets).backward()        # fills the gradients of the rule's parameters

learn2learn subtracts what a transform returns, so a transform here returns −u_t and lr 1 makes the rule's own step. All
parameters share one rule, the one that was given, whose parameters are learned; each has a memory of its own.

`LearnableOptimizer` calls backward in every step and differentiates through the last update alone: give it
`RuleTransform(rule, carry_graph=False)`. learn2learn 0.2.0 does not build as shipped on Python 3.11 and newer; the
recipe is `make interop`.
"""

import torch
from torch import Tensor, nn

from l2o.rule import CoordinatewiseRule, State, accumulator


class RuleTransform:
    """Makes the module that turns one parameter's gradients into updates, as learn2learn's transforms do.

    Args:
        rule: the rule itself, not a copy: its parameters get the meta-gradients.
        carry_graph: differentiate through the memory, back to the first step; False cuts it in every step.

    Raises:
        TypeError: if the rule is not a gradient rule.
    """

    def __init__(self, rule: CoordinatewiseRule, carry_graph: bool = True):
        if not isinstance(rule, CoordinatewiseRule):
            raise TypeError(f"{type(rule).__name__} is not coordinate-wise; RuleTransform needs a CoordinatewiseRule")
        self.rule, self.carry_graph = rule, carry_graph

    def __call__(self, parameter: Tensor) -> "RuleUpdate":
        """Return a module with fresh memory; of the parameter nothing is needed."""
        return RuleUpdate(self.rule, self.carry_graph)


class RuleUpdate(nn.Module):
    """The rule with the memory of one parameter.

    The memory is replaced, never written into, and is no part of `state_dict`: `learn2learn.clone_module` shares it
    until the clone's first step, and what a clone then remembers is its own.
    """

    def __init__(self, rule: CoordinatewiseRule, carry_graph: bool = True):
        super().__init__()
        self.rule, self.carry_graph = rule, carry_graph
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.steps = 0
        self.memory: State | None = None

    def detach_memory(self) -> None:
        """Cut the graph behind the memory, as at the end of a truncation window."""
        if self.memory is not None:
            self.memory = type(self.memory)(*(tensor.detach() for tensor in self.memory))

    def forward(self, grad: Tensor) -> Tensor:
        """Return −u_t for a gradient, in its shape and precision, and remember.

        Raises:
            RuntimeError: if the gradient is sparse or complex.
        """
        if grad.layout is not torch.strided or grad.is_complex():
            raise RuntimeError("learned optimizers need dense real gradients; got a sparse or complex one")
        flat = accumulator(grad).reshape(-1)
        if self.memory is None:
            self.memory = self.rule.init_coordinates(flat)
        if not self.carry_graph:
            self.detach_memory()
        updates, self.memory = self.rule.update(flat, self.memory, torch.tensor(self.steps))
        self.steps += 1
        return -updates.reshape(grad.shape).to(grad.dtype)


def reset(module: nn.Module) -> None:
    """Make every rule inside a `ParameterUpdate`, `GBML` or `LearnableOptimizer` forget, to start another problem."""
    for update in _rule_updates(module):
        update.reset()


def detach_memory(module: nn.Module) -> None:
    """Cut the graph behind the memory of every rule inside a module, as at the end of a truncation window."""
    for update in _rule_updates(module):
        update.detach_memory()


def _rule_updates(module: nn.Module) -> list[RuleUpdate]:
    return [part for part in module.modules() if isinstance(part, RuleUpdate)]
