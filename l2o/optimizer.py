"""The shell that makes every gradient rule a `torch.optim.Optimizer`. It holds no mathematics of its own.

What a step does is in `optimizer_step`, what is remembered in `optimizer_state`.
"""

import copy
import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from l2o import optimizer_guard, optimizer_state, optimizer_step
from l2o.guard import Guard
from l2o.guard_progress import Progress, begin
from l2o.optimizer_step import Item
from l2o.rule import UpdateRule
from l2o.rules.sobolev import GradientRule
from l2o.sharding import agree


class LearnedOptimizer(torch.optim.Optimizer):
    """A rule as a drop-in replacement for `torch.optim.Adam`: θ ← θ + lr (u_t − weight_decay θ).

    A group of parameters may have its own lr, weight_decay, maximize and rule. In `param_groups` "rule" is an index
    into `rules`, so that `state_dict` holds numbers and tensors only.

    Args:
        params: parameters, named parameters or parameter groups.
        rule: the update rule; copied and frozen, and once more for every other device that has parameters.
        lr: multiplies the rule's update, dimensionless; a number or a tensor of one element.
        weight_decay: decoupled decay per step and unit of lr, dimensionless.
        maximize: climb instead of descend: the rule sees −g.
        state_dtype: torch.bfloat16 halves the rule's memory (see `l2o.memory`); None keeps it as the rule makes it, in
            float32 or wider. Made for LSTMs: a running average whose decay lies above 0.996, such as Adam's β₂, stops
            falling, because its small steps are rounded away.
        nonfinite: for gradients with NaN or infinity, "skip" leaves their tensors as they are in this step, counts them
            in `skipped` and warns once; "raise" raises an error before anything has moved; "pass" feeds them to the
            rule, unseen, and saves the check and its transfer from the GPU.
        guard: True or a `Guard` lets the rule go on after an audition only if it beats Adam, keeps each tensor's step
            within a multiple of Adam's and hands over for good to Adam, boosted at first, when losses given to `step`
            rise or stall (`l2o.guard`); both obey lr and weight_decay.

    Raises:
        ValueError: if an option is out of range.
        TypeError: if the rule is not a gradient rule, or guard not a guard.
    """

    def __init__(
        self,
        params,
        rule: UpdateRule,
        lr: float | Tensor = 1.0,
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
        nonfinite: Literal["skip", "raise", "pass"] = "skip",
        guard: Guard | bool | None = None,
    ):
        if state_dtype not in (None, torch.bfloat16):
            raise ValueError(f"state_dtype must be torch.bfloat16, or None for the rule's own, got {state_dtype}")
        if nonfinite not in ("skip", "raise", "pass"):
            raise ValueError(f'nonfinite must be "skip", "raise" or "pass", got {nonfinite!r}')
        self.rules: list[GradientRule] = []
        self.state_dtype, self.nonfinite, self.guard = state_dtype, nonfinite, optimizer_guard.chosen(guard)
        self.skipped = 0
        """Tensor updates left out so far because the gradient was not finite."""
        self._copies: dict[Any, GradientRule] = {}
        defaults = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "rule": self._index(rule)}
        memory = {} if self.guard is None else {"guard": tuple(begin(self.guard))}
        super().__init__(params, defaults | memory)

    @property
    def rule(self) -> GradientRule:
        """The rule of the first group."""
        return self.rules[self.param_groups[0]["rule"]]

    @property
    def fallen_back(self) -> bool:
        """Whether the guard has let Adam take over for good."""
        return self.guard is not None and Progress(*self.param_groups[0]["guard"]).fallen_back

    def memory_kind(self, group: optimizer_step.Group) -> optimizer_state.Kind:
        """Return what decides the form of the memories of a group's parameters."""
        return optimizer_state.Kind(self.rules[group["rule"]], self.state_dtype, self.guard is not None)

    def add_param_group(self, param_group) -> None:
        """Add parameters, at any time.

        Args:
            param_group: "params" and, where they differ from the defaults, "lr", "weight_decay", "maximize" and "rule".

        Raises:
            ValueError: if lr or weight_decay is negative or not finite.
            TypeError: if the rule is not a gradient rule.
        """
        options = self.defaults | dict(param_group)
        lr = options["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"an lr that is a tensor must have one element, got shape {tuple(lr.shape)}")
        for name in ("lr", "weight_decay"):
            if not 0 <= options[name] < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, got {options[name]}")
        super().add_param_group({**param_group, "rule": self._index(options["rule"])})

    @torch.no_grad()
    def step(self, closure=None, *, loss=None):  # pyright: ignore[reportIncompatibleMethodOverride] (the base overloads it)
        """Make one update; returns the closure's loss, evaluated with gradients enabled, if one is given, else `loss`.

        Args:
            closure: computes gradients and returns the loss.
            loss: the loss, where it is at hand without a closure; for the guard, which without either keeps the trust
                region, holds no audition and never falls back. A step in which it exchanges the weights, at most three
                in a training, makes no update. Under DDP and FSDP2 all processes must give the same number, the mean.

        Raises:
            RuntimeError: if a gradient is sparse or complex, or, with nonfinite="raise", not finite; if the rule is a
                Sobolev rule and a tensor is sharded over processes.
            ValueError: if there is a guard and the loss is not a single number.
        """
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        items = optimizer_step.items(self.param_groups)
        if self.nonfinite != "pass":
            items = self._finite(items)
        for item in items:
            if not self.state[item.param]:
                kind = self.memory_kind(item.group)._replace(rule=self._rule(item))
                self.state[item.param] = optimizer_state.fresh(kind, item.param)
        if self.guard is not None:
            optimizer_guard.advance(self.guard, self.param_groups, self._rule, items, self.state, loss)
            return loss
        for bucket in optimizer_step.buckets(items, self.state):
            optimizer_step.advance(self._rule(bucket[0]), bucket, [self.state[item.param] for item in bucket])
        return loss

    def load_state_dict(self, state_dict) -> None:
        """Take over options and memory; the memory is copied, and kept in the precision of this optimizer.

        Raises:
            ValueError: if it was saved by another optimizer, with another rule or for other parameters; nothing has
                changed then.
        """
        memories: dict[Tensor, optimizer_state.Memory] = {}

        def take(_, saved):  # runs after all other pre-hooks, so that it sees what is loaded
            memories.update(self._checked(saved))
            known = {index for group in saved["param_groups"] for index in group["params"]}
            return saved | {"state": {key: value for key, value in saved["state"].items() if key not in known}}

        # The base class would round float32 memories of bfloat16 parameters to bfloat16: it gets none to see.
        before = self.register_load_state_dict_pre_hook(take)
        after = self.register_load_state_dict_post_hook(lambda _: self.state.update(memories), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def __getstate__(self):
        """Copy and pickle what the base class does not know."""
        own = ("rules", "state_dtype", "nonfinite", "skipped", "guard")
        return super().__getstate__() | {name: self.__dict__[name] for name in own}

    def __setstate__(self, state) -> None:
        """Restore from a copy, a pickle or a state_dict."""
        self._copies = {}
        super().__setstate__(state)

    def __repr__(self) -> str:
        """The rules with their options, then the groups."""
        lines = [f"Rule {index}: {type(rule).__name__} {rule.config}\n" for index, rule in enumerate(self.rules)]
        return super().__repr__().replace("(\n", "(\n" + "".join(lines), 1)

    def _index(self, rule: Any) -> int:
        """Return the place of a rule in `rules`; new ones are copied, equal ones kept once, so that tensors join."""
        if isinstance(rule, int) and 0 <= rule < len(self.rules):
            return rule
        if not isinstance(rule, GradientRule):
            raise TypeError(f"{type(rule).__name__} is not a gradient rule; this needs a CoordinatewiseRule")
        for index, known in enumerate(self.rules):
            if _equal(rule, known):
                return index
        self.rules.append(copy.deepcopy(rule).requires_grad_(False))
        return len(self.rules) - 1

    def _rule(self, item: Item) -> GradientRule:
        """Return the item's rule on the item's device."""
        index, device = item.group["rule"], item.values.device
        if (index, device) not in self._copies:
            rule = self.rules[index]
            here = {tensor.device for tensor in rule.state_dict().values()} <= {device}
            self._copies[index, device] = rule if here else copy.deepcopy(rule).to(device)
        return self._copies[index, device]

    def _finite(self, items: list[Item]) -> list[Item]:
        """Return the items with finite gradients, after raising an error or counting the others."""
        flags = agree([item.param for item in items], optimizer_step.finite([item.grad for item in items]))
        if all(flags):
            return items
        names = ", ".join(self._name(item.param) for item, flag in zip(items, flags, strict=True) if not flag)
        if self.nonfinite == "raise":
            raise RuntimeError(f"gradients are not finite: {names}. Nothing has been updated")
        if not self.skipped:
            text = f"gradients are not finite, so these tensors are left as they are in this step: {names}"
            warnings.warn(f"{text}. The attribute `skipped` counts; further ones are silent", stacklevel=5)
        self.skipped += flags.count(False)
        return [item for item, flag in zip(items, flags, strict=True) if flag]

    def _checked(self, saved: dict[str, Any]) -> dict[Tensor, optimizer_state.Memory]:
        """Return the memories to be loaded.

        Raises:
            ValueError: if a group or a memory does not fit.
        """
        memories = {}
        for number, (group, other) in enumerate(zip(self.param_groups, saved["param_groups"], strict=False)):
            if missing := {"lr", "weight_decay", "maximize", "rule"} - set(other):
                raise ValueError(f"the saved group {number} lacks {sorted(missing)}: not saved by a LearnedOptimizer")
            if other["rule"] != group["rule"]:
                raise ValueError(
                    f"group {number} was saved with rule {other['rule']} but has rule {group['rule']} here: give the "
                    "groups their rules in the same order"
                )
            optimizer_guard.check_saved(self.guard, other, f"group {number}")
            for param, index in zip(group["params"], other["params"], strict=False):  # the base class counts them
                if index in saved["state"]:
                    arguments = (saved["state"][index], self.memory_kind(group), param, self._name(param))
                    memories[param] = optimizer_state.checked(*arguments)
        return memories

    def _name(self, param: Tensor) -> str:
        """Name a parameter for messages."""
        for number, group in enumerate(self.param_groups):
            for index, other in enumerate(group["params"]):
                if other is param:
                    return group["param_names"][index] if "param_names" in group else f"group {number}[{index}]"
        raise AssertionError("not a parameter of this optimizer")


def _equal(left: GradientRule, right: GradientRule) -> bool:
    """Whether two rules make the same updates."""
    ours, theirs = left.state_dict(), right.state_dict()
    return (
        type(left) is type(right)
        and left.config == right.config
        and all(ours[name].dtype == theirs[name].dtype for name in ours)
        and all(torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours)
    )
