"""One guarded step over many tensors: Adam's step beside the learned one, and which of them is made.

The mathematics is in `guard` and `guard_progress`; here are the memories, the losses and the norms of sharded tensors.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l2o import optimizer_step
from l2o.guard import Guard, adam_step, trusted
from l2o.guard_progress import Progress, Turn, observe, radius
from l2o.optimizer_state import KEPT, MOMENTS, Memory
from l2o.optimizer_step import Group, Item
from l2o.rules.sobolev import GradientRule
from l2o.sharding import is_sharded, local


def chosen(guard: Guard | bool | None) -> Guard | None:
    """Return the guard that an option means.

    Raises:
        TypeError: if it is neither a Guard, True, False nor None.
    """
    if guard is None or isinstance(guard, Guard):
        return guard
    if not isinstance(guard, bool):
        raise TypeError(f"guard must be True, an l2o.Guard, or None for no guard, got {guard!r}")
    return Guard() if guard else None


def watch(guard: Guard, groups: Sequence[Group], loss: Any) -> None:
    """Take note of a loss; warn when Adam takes over.

    Raises:
        ValueError: if the loss is not a single number.
    """
    number = _number(loss)
    before = Progress(*groups[0]["guard"])
    after = observe(guard, before, -number if groups[0]["maximize"] else number)
    for group in groups:
        group["guard"] = tuple(after)
    if after.fallen_back and not before.fallen_back:
        what = _reason(before, number)
        text = f"{what} after {int(before.steps)} steps, so Adam takes over from the learned rule for good"
        warnings.warn(f"{text}; `fallen_back` tells", stacklevel=6)


def _reason(before: Progress, loss: float) -> str:
    """Tell why Adam takes over."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return "the rule has lost its audition" if before.turn == Turn.RIVAL else "the loss rises or stalls"


def check_saved(guard: Guard | None, group: Group, where: str) -> None:
    """Check a saved group's memory of the losses.

    Raises:
        ValueError: if there is one and no guard, or none where there is a guard, or it has another form.
    """
    if guard is None and "guard" in group:
        raise ValueError(f"the saved {where} is that of a guarded optimizer: load it with the same guard=")
    if guard is None:
        return
    if "guard" not in group:
        raise ValueError(f"the saved {where} lacks 'guard': it was saved by an optimizer without guard=")
    saved = group["guard"]
    if not isinstance(saved, (tuple, list)) or len(saved) != len(Progress._fields):
        raise ValueError(f"'guard' in the saved {where} should be {len(Progress._fields)} numbers, got {saved!r}")


def advance(
    guard: Guard,
    groups: Sequence[Group],
    rules: Callable[[Item], GradientRule],
    items: Sequence[Item],
    memories: Mapping[Tensor, Memory],
    loss: Any,
) -> None:
    """Update the tensors and their memories, after the loss has been looked at; or exchange the weights, and no update.

    Args:
        rules: item -> its rule, on its device.
        loss: None if it is not known.

    Raises:
        ValueError: if the loss is not a single number.
    """
    before = Progress(*groups[0]["guard"])
    if loss is not None:
        watch(guard, groups, loss)
    progress = Progress(*groups[0]["guard"])
    if progress.exchanges > before.exchanges:  # these gradients are not those of the weights that come now
        _exchange(groups, memories, fresh_adam=not progress.learned)
        return
    learned = _learned(rules, items, memories) if progress.learned else {}
    steps = [_adam(guard, item, memories[item.param]) for item in items]
    if not progress.learned:
        steps = [progress.boost * step for step in steps]
    elif learned:
        pairs = [(learned[item.param], step) for item, step in zip(items, steps, strict=True)]
        limit = radius(progress)
        norms = _norms([item.param for item in items], pairs)
        steps = [trusted(u, a, norm, limit) for (u, a), norm in zip(pairs, norms, strict=True)]
    for item, step in zip(items, steps, strict=True):
        optimizer_step.move(item, step)
        memories[item.param]["step"] += 1


def _exchange(groups: Sequence[Group], memories: Mapping[Tensor, Memory], fresh_adam: bool) -> None:
    """Exchange the weights with those kept, and let Adam begin anew where it moves them from there.

    "step" is then Adam's number of updates; when the rule comes back after an audition it is the rule's as well, since
    both had as many.
    """
    for param in (param for group in groups for param in group["params"] if memories.get(param)):
        memory = memories[param]
        here, kept = local(param), local(memory[KEPT])
        held = here.to(kept.dtype, copy=True)
        here.copy_(kept)
        kept.copy_(held)
        if fresh_adam:
            for name in (*MOMENTS, "step"):
                local(memory[name]).zero_()


def _learned(
    rules: Callable[[Item], GradientRule], items: Sequence[Item], memories: Mapping[Tensor, Memory]
) -> dict[Tensor, Tensor]:
    """Return the learned step of each parameter, shape (n,)."""
    found = {}
    for bucket in optimizer_step.buckets(items, memories):
        updates = optimizer_step.propose(rules(bucket[0]), bucket, [memories[item.param] for item in bucket])
        found |= {item.param: update for item, update in zip(bucket, updates, strict=True)}
    return found


def _adam(guard: Guard, item: Item, memory: Memory) -> Tensor:
    """Return Adam's step, shape (n,), and write its moments."""
    stored = [local(memory[name]).view(-1) for name in MOMENTS]
    grad = optimizer_step.coordinates(item)
    step, *moments = adam_step(guard, grad, stored[0], stored[1], memory["step"])
    for old, new in zip(stored, moments, strict=True):
        old.copy_(new)
    return step


def _norms(params: Sequence[Any], pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return ‖u‖ and ‖a‖ of every tensor, shape (2,); of sharded ones over all their shards, one reduction a mesh axis.

    All processes of a mesh call this with the same DTensors in the same order.
    """
    norms = [torch.stack([torch.linalg.vector_norm(step) for step in pair]) for pair in pairs]
    by_mesh: dict[Any, list[int]] = {}
    for index, param in enumerate(params):
        if is_sharded(param):
            by_mesh.setdefault(param.device_mesh, []).append(index)
    for mesh, indices in by_mesh.items():
        squares = torch.stack([norms[index].double().square() for index in indices])
        for axis, group in enumerate(mesh.get_all_groups()):
            # Along a replicated axis every process holds the same numbers.
            split = torch.tensor([hasattr(params[index].placements[axis], "dim") for index in indices])
            split = split.to(squares.device)[:, None]
            sums = torch.where(split, squares, 0.0)
            torch.distributed.all_reduce(sums, group=group)
            squares = torch.where(split, sums, squares)
        for index, square in zip(indices, squares.sqrt(), strict=True):
            norms[index] = square.to(norms[index].dtype)
    return norms


def _number(loss: Any) -> float:
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(f"the loss must be a single number, got a tensor of shape {tuple(loss.shape)}")
    return float(loss)
