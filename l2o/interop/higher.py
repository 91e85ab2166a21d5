"""Gradient rules inside facebookresearch/higher, in `higher.innerloop_ctx` and its relatives.

    import higher
    from l2o.interop.higher import register

    register()
    rule = l2o.load_rule("lstm-digits")
    optimizer = l2o.LearnedOptimizer(model.parameters(), rule, lr=1.0)
    with higher.innerloop_ctx(model, optimizer, override={"rule": [rule]}) as (fmodel, diffopt):
        for inputs, targets in steps:
            diffopt.step(loss(fmodel(inputs), targets))
        loss(fmodel(held_out), held_out_targets).backward()   # fills rule.log_lr.grad, rule.weights[0].grad, …

A `LearnedOptimizer` keeps a frozen copy of its rule, so meta-gradients reach the rule's weights θ only through an
override: {"rule": [rule]} for a rule whose own parameters are to be learned, or {"theta": [{name: tensor, …}]} for
tensors in the place of some of its parameters. lr and weight_decay may be overridden by tensors too. As everywhere in
higher, a list may have one entry or one per parameter group.

Gradients are differentiated through (second order); `grad_callback=detach_all` makes first order of it. They enter the
rule as they come: what the shell does with NaN and infinity is not done here.
"""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from l2o.optimizer import LearnedOptimizer
from l2o.rule import CoordinatewiseRule, State, accumulator

Memory = dict[str, Tensor]
"""What is remembered of one parameter: "step" and the fields of the rule's state; empty before its first gradient."""


def register() -> None:
    """Make higher take a `LearnedOptimizer` wherever it takes an optimizer of torch; once is enough.

    Raises:
        ModuleNotFoundError: if higher is not installed.
    """
    higher: Any = importlib.import_module("higher")

    class DifferentiableRule(_DifferentiableSteps, higher.optim.DifferentiableOptimizer):
        """A `LearnedOptimizer` that can be differentiated through."""

    higher.register_optim(LearnedOptimizer, DifferentiableRule)


def detach_all(grads: list[Tensor | None]) -> list[Tensor | None]:
    """Return the gradients as constants; as `grad_callback`, it makes meta-gradients first-order."""
    return [None if grad is None else grad.detach() for grad in grads]


class _DifferentiableSteps:
    """What `higher.optim.DifferentiableOptimizer` leaves to be implemented: θ ← θ + lr (u_t − weight_decay θ).

    Nothing is written in place. Memory that the optimizer already has is taken over.
    """

    param_groups: list[dict[str, Any]]
    state: list[dict[int, Memory]]
    _track_higher_grads: bool

    def __init__(self, other: LearnedOptimizer, *args: Any, **kwargs: Any):
        super().__init__(other, *args, **kwargs)  # pyright: ignore[reportCallIssue] (the other base class's)
        self._rules = other.rules

    def _update(self, grouped_grads: list[list[Tensor | None]], **kwargs: Any) -> None:
        """Make one update.

        Raises:
            TypeError: if "rule" is overridden by something that is no gradient rule.
            ValueError: if "theta" names what is no parameter of the rule, or the memory is another rule's.
            RuntimeError: if a gradient is sparse or complex.
        """
        # Without tracking, the memory would drag along the graph of all steps wherever θ requires a gradient.
        with torch.set_grad_enabled(self._track_higher_grads):
            for group, memories, grads in zip(self.param_groups, self.state, grouped_grads, strict=True):
                rule = self._rule(group)
                for index, grad in enumerate(grads):
                    if grad is not None:
                        param = group["params"][index]
                        update, memories[index] = _advance(rule, grad, memories[index], group)
                        group["params"][index] = _moved(param, update, group)

    def _rule(self, group: dict[str, Any]) -> "_Rule":
        rule = self._rules[group["rule"]] if isinstance(group["rule"], int) else group["rule"]
        if not isinstance(rule, CoordinatewiseRule):
            raise TypeError(f'override={{"rule": …}} takes coordinate-wise rules, got {type(rule)}')
        theta = group.get("theta", {})
        if unknown := set(theta) - {name for name, _ in rule.named_parameters()}:
            known = [name for name, _ in rule.named_parameters()]
            raise ValueError(f'override={{"theta": …}} names {sorted(unknown)}; {type(rule).__name__} has {known}')
        return _Rule(rule, theta)


class _Rule(nn.Module):
    """A rule with some of its parameters replaced."""

    def __init__(self, rule: CoordinatewiseRule, theta: dict[str, Tensor]):
        super().__init__()
        self.rule = rule
        self.theta = {f"rule.{name}": tensor for name, tensor in theta.items()}

    def forward(self, grads: Tensor, state: State, step: Tensor) -> tuple[Tensor, State]:
        return self.rule.update(grads, state, step)

    def update(self, grads: Tensor, state: State, step: Tensor) -> tuple[Tensor, State]:
        """As `CoordinatewiseRule.update`."""
        return torch.func.functional_call(self, self.theta, (grads, state, step))


def _advance(rule: _Rule, grad: Tensor, memory: Memory, group: dict[str, Any]) -> tuple[Tensor, Memory]:
    """Return the update of one tensor, flat, and the next memory."""
    if grad.layout is not torch.strided or grad.is_complex():
        raise RuntimeError("learned optimizers need dense real gradients; got a sparse or complex one")
    grads = accumulator(-grad if group["maximize"] else grad).reshape(-1)
    memory = memory or {"step": torch.zeros((), dtype=torch.int64), **rule.rule.init_coordinates(grads)._asdict()}
    updates, state = rule.update(grads, _state(rule.rule, grads, memory), memory["step"])
    return updates, {"step": memory["step"] + 1, **state._asdict()}


def _state(rule: CoordinatewiseRule, grads: Tensor, memory: Memory) -> State:
    """Return the rule's state with the coordinates as last axis, from the memory's shape and precision."""
    form = rule.init_coordinates(grads[:0])
    if set(memory) != {"step", *form._fields}:
        raise ValueError(
            f"the memory holds {sorted(memory)}, but {type(rule).__name__} keeps {sorted({'step', *form._fields})}: "
            "override the rule by one of the same kind, before the first step"
        )
    n = grads.numel()
    values = ((memory[name].reshape(*value.shape[:-1], n), value.dtype) for name, value in form._asdict().items())
    return type(form)(*(value.to(dtype) for value, dtype in values))


def _moved(param: Tensor, update: Tensor, group: dict[str, Any]) -> Tensor:
    lr, decay = group["lr"], group["weight_decay"]
    update = update.reshape(param.shape)
    if isinstance(decay, Tensor) or decay:
        update = update - decay * param
    return (param + (lr.reshape(()) if isinstance(lr, Tensor) else lr) * update).to(param.dtype)
