"""How much an optimizer will remember, told before training starts."""

import os
from collections.abc import Iterable
from typing import NamedTuple

import torch

from l2o import optimizer_state
from l2o.checkpoint import load_rule
from l2o.guard import Guard
from l2o.optimizer import LearnedOptimizer
from l2o.rule import UpdateRule
from l2o.sharding import local


class Memory(NamedTuple):
    """Bytes that a `LearnedOptimizer` keeps between steps, beside the parameters and gradients."""

    total: int
    """Bytes, of this process."""
    per_parameter: float
    """Bytes per number that is trained."""

    def __str__(self) -> str:
        """For people."""
        return f"{self.per_parameter:.1f} bytes per parameter, {self.total / 1e6:,.1f} MB in total"


def memory(
    rule: UpdateRule | str | os.PathLike,
    params: Iterable,
    state_dtype: torch.dtype | None = None,
    guard: Guard | bool | None = None,
) -> Memory:
    """Return the bytes that optimizing these parameters keeps, exactly, without allocating them.

    >>> print(memory("lstm-mnist", torch.nn.Linear(784, 20).parameters()))
    320.0 bytes per parameter, 5.0 MB in total

    Args:
        rule: a rule, or where its checkpoint is, as for `l2o.load`.
        params: what the optimizer will be given: parameters, named parameters or groups. Those that do not require a
            gradient count nothing; "meta" tensors will do.
        state_dtype, guard: as for `LearnedOptimizer`; a guard keeps 12 bytes per float32 parameter as well: Adam's
            moments and weights to go back to.

    Raises:
        CheckpointError: if there is no such checkpoint.
        ValueError: if state_dtype is neither None nor torch.bfloat16.
        TypeError: if guard is no guard.
    """
    rule = rule if isinstance(rule, UpdateRule) else load_rule(rule)
    optimizer = LearnedOptimizer(params, rule, state_dtype=state_dtype, guard=guard)
    trained = [
        (optimizer.memory_kind(group), param)
        for group in optimizer.param_groups
        for param in group["params"]
        if param.requires_grad
    ]
    total = sum(optimizer_state.nbytes(kind, param) for kind, param in trained)
    return Memory(total, total / max(1, sum(local(param).numel() for _, param in trained)))
