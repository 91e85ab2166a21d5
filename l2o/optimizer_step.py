"""One step over many tensors: which gradients may enter, which tensors share a call of their rule, and the writing.

A call of a rule costs tens of microseconds however few coordinates there are, and a network has many small tensors
(biases, normalisation). Small tensors that have the same rule, device, precision and age are therefore joined for the
call; large ones go alone, because joining copies their memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2o.optimizer_state import Memory, precision
from l2o.rules.sobolev import GradientRule, SobolevRule
from l2o.sharding import is_sharded, local, local_gradient

JOIN_BELOW = 1024
"""Coordinates; larger tensors go alone. Measured with the LSTM's 80 floats a coordinate, which cost most to copy."""

Group = dict[str, Any]
"""An entry of `optimizer.param_groups`."""


class Item(NamedTuple):
    """A parameter with a gradient, and what this process holds of it."""

    param: Tensor
    group: Group
    values: Tensor
    """The parameter's local part, to be written."""
    grad: Tensor
    """The gradient's local part, as it came."""


def items(groups: Sequence[Group]) -> list[Item]:
    """Return the parameters that have gradients.

    Raises:
        RuntimeError: if a gradient is sparse or complex.
    """
    found = []
    for group in groups:
        for param in group["params"]:
            if param.grad is not None:
                if param.grad.layout is not torch.strided or param.grad.is_complex():
                    raise RuntimeError("LearnedOptimizer needs dense real gradients; got a sparse or complex one")
                found.append(Item(param, group, local(param), local_gradient(param)))
    return found


def finite(grads: Sequence[Tensor]) -> list[bool]:
    """Whether each gradient is free of NaN and infinity: one transfer per device and precision, not one per tensor."""
    flags = [True] * len(grads)
    kinds: dict[Any, list[int]] = {}
    for index, grad in enumerate(grads):
        kinds.setdefault((grad.device, grad.dtype), []).append(index)
    for indices in kinds.values():
        norms = torch.stack(torch._foreach_norm([grads[index] for index in indices]))  # pyright: ignore[reportPrivateImportUsage]
        for index, known in zip(indices, norms.isfinite().tolist(), strict=True):
            # A finite norm vouches for its gradient. One that is not may have overflowed in the squares.
            flags[index] = known or bool(grads[index].isfinite().all())
    return flags


def buckets(chosen: Sequence[Item], memories: Mapping[Tensor, Memory]) -> list[list[Item]]:
    """Divide into lists of tensors whose rule is called once."""
    if torch.compiler.is_compiling():  # the compiler joins by itself, and may not look at the number of steps
        return [[item] for item in chosen]
    alone, joined = [], {}
    for item in chosen:
        if item.values.numel() < JOIN_BELOW:
            age = int(memories[item.param]["step"])
            key = (item.group["rule"], item.values.device, precision(item.param), age)
            joined.setdefault(key, []).append(item)
        else:
            alone.append([item])
    return [*alone, *joined.values()]


def advance(rule: GradientRule, bucket: Sequence[Item], memories: Sequence[Memory]) -> None:
    """Update the tensors and their memories by one call of the rule."""
    for item, update in zip(bucket, propose(rule, bucket, memories), strict=True):
        move(item, update)
    torch._foreach_add_([memory["step"] for memory in memories], 1)  # pyright: ignore[reportPrivateImportUsage]


def propose(rule: GradientRule, bucket: Sequence[Item], memories: Sequence[Memory]) -> Sequence[Tensor]:
    """Return the tensors' updates, shape (n,) each, by one call of the rule, and write its state; "step" is not it."""
    if isinstance(rule, SobolevRule):
        _refuse_parts(rule, bucket)
        step, updates = memories[0]["step"], propose(rule.coordinates, bucket, memories)
        return [_filtered(rule, item, update, step) for item, update in zip(bucket, updates, strict=True)]
    grads = [coordinates(item) for item in bucket]
    sizes = [len(grad) for grad in grads]
    flat = grads[0] if len(grads) == 1 else torch.cat(grads)
    state_type = type(rule.init_coordinates(flat[:0]))
    stored = [
        [_flat(item, memory[name]) for item, memory in zip(bucket, memories, strict=True)]
        for name in state_type._fields
    ]
    before = state_type(*(parts[0] if len(parts) == 1 else torch.cat(parts, -1) for parts in stored))
    updates, after = rule.update_(flat, before, memories[0]["step"])
    for parts, old, new in zip(stored, before, after, strict=True):
        if len(parts) > 1 or new is not old:  # a rule may have written into the memory itself
            torch._foreach_copy_(parts, new.split(sizes, -1))  # pyright: ignore[reportPrivateImportUsage]
    return updates.split(sizes)


def _refuse_parts(rule: SobolevRule, bucket: Sequence[Item]) -> None:
    """Refuse pictures of which this process has only a part.

    Raises:
        RuntimeError: if there is one.
    """
    if shapes := [tuple(item.param.shape) for item in bucket if is_sharded(item.param) and item.param.dim() > 1]:
        name = type(rule).__name__
        raise RuntimeError(f"{name} filters whole tensors, and FSDP2 or tensor parallelism has cut these: {shapes}")


def _filtered(rule: SobolevRule, item: Item, update: Tensor, step: Tensor) -> Tensor:
    """Return the update of a tensor, shape (n,), after the filter."""
    return rule.filtered(update.view(item.values.shape), step).reshape(-1)


def coordinates(item: Item) -> Tensor:
    """The gradient of what is minimised, shape (n,), in the rule's precision."""
    grad = item.grad.to(precision(item.param)).reshape(-1)
    return -grad if item.group["maximize"] else grad


def _flat(item: Item, value: Tensor) -> Tensor:
    """A view of this process's part of a state, shape (…, n)."""
    part = local(value)
    return part.view(*part.shape[: part.dim() - item.values.dim()], item.values.numel())


def move(item: Item, update: Tensor) -> None:
    """θ ← θ + lr (u − weight_decay θ), added in the wider precision and rounded once."""
    lr, decay = item.group["lr"], item.group["weight_decay"]
    update = update.reshape(item.values.shape)
    if decay:
        update = update - decay * item.values.to(update.dtype)
    item.values.add_((lr.reshape(()) if isinstance(lr, Tensor) else lr) * update)
