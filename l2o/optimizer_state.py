"""What a learned optimizer remembers of one parameter, and the checks before it takes over a saved memory.

`optimizer.state[param]` holds plain tensors under plain names: the fields of the rule's state, one of shape (…, n) as
(…, *param.shape), so that savers and sharders find one number per coordinate in its place; and "step", the number of
updates made, int64, on the CPU, where counting launches no kernel.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2o.rules.sobolev import GradientRule
from l2o.sharding import is_sharded, local, sharded_like

Memory = dict[str, Tensor]
"""Name -> tensor, the memory of one parameter."""

MOMENTS = ("guard_first_moment", "guard_second_moment")
"""What a guard adds: Adam's moments, in the precision in which the rule sees gradients, never in `state_dtype`: in
bfloat16 the second one would stall."""
KEPT = "guard_kept"
"""And weights to go back to, at first those before the first step, in the same precision."""


class Field(NamedTuple):
    """Form of one entry of a memory."""

    lead: tuple[int, ...]
    """The axes before those of the parameter."""
    dtype: torch.dtype
    """The precision in which it is kept."""


def precision(param: Tensor) -> torch.dtype:
    """Return the precision in which a rule sees the parameter's gradients: at least float32."""
    return torch.promote_types(param.dtype, torch.float32)


class Kind(NamedTuple):
    """What decides the form of a parameter's memory, beside the parameter."""

    rule: GradientRule
    state_dtype: torch.dtype | None = None
    guarded: bool = False


def fields(kind: Kind, param: Tensor) -> dict[str, Field]:
    """Describe the memory of a parameter without its "step"; allocates nothing of the parameter's size."""
    one = _one_coordinate(kind, param, torch.device("cpu"))
    return {name: Field(value.shape[:-1], value.dtype) for name, value in one.items()}


def fresh(kind: Kind, param: Tensor) -> Memory:
    """Return the memory before the first step, contiguous and on the parameter's device."""
    memory, shape = {"step": torch.zeros((), dtype=torch.int64)}, local(param).shape
    # One coordinate is made and repeated: a full state in the rule's precision would need twice the memory for a while.
    for name, value in _one_coordinate(kind, param, param.device).items():
        lead = value.shape[:-1]
        part = value.reshape((*lead, *[1] * len(shape))).expand((*lead, *shape))
        memory[name] = sharded_like(param, part.clone(memory_format=torch.contiguous_format))
    if kind.guarded:
        local(memory[KEPT]).copy_(local(param))
    return memory


def nbytes(kind: Kind, param: Tensor) -> int:
    """Return the bytes of the memory that `fresh` would make."""
    per_coordinate = sum(math.prod(lead) * dtype.itemsize for lead, dtype in fields(kind, param).values())
    return torch.int64.itemsize + per_coordinate * local(param).numel()


def checked(saved: Any, kind: Kind, param: Tensor, where: str) -> Memory:
    """Return a copy of a saved memory, on the parameter's device and in the precision that `fields` tells.

    Raises:
        ValueError: if an entry is missing or unknown, or has not the parameter's shape or sharding.
    """
    expected = fields(kind, param)
    names = set(saved) if isinstance(saved, dict) else set()
    if names != {"step", *expected}:
        raise ValueError(
            f"the saved state of {where} holds {sorted(map(str, names))}, but {type(kind.rule).__name__} keeps "
            f"{sorted({'step', *expected})}. Was it saved by another optimizer, or with another rule?"
        )
    _check_shape("step", saved["step"], (), where)
    memory = {"step": saved["step"].to("cpu", torch.int64, copy=True)}
    for name, (lead, dtype) in expected.items():
        value = saved[name]
        _check_shape(name, value, (*lead, *param.shape), where)
        if is_sharded(value) != is_sharded(param):
            raise ValueError(
                f"{name!r} in the saved state of {where} and the parameter should both be DTensors or neither: load "
                "sharded states with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
            )
        memory[name] = value.to(param.device, dtype, copy=True).contiguous()
    return memory


def _check_shape(name: str, value: Any, shape: tuple[int, ...], where: str) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"{name!r} in the saved state of {where} should be a tensor of shape {shape}, but is {found}. Was it saved "
            "with other options of the rule, or for another model?"
        )


def _one_coordinate(kind: Kind, param: Tensor, device: torch.device) -> Memory:
    like = torch.empty(1, dtype=precision(param), device=device)
    memory = _narrowed(kind.rule.init_coordinates(like)._asdict(), kind.state_dtype)
    return memory | {name: torch.zeros_like(like) for name in ((*MOMENTS, KEPT) if kind.guarded else ())}


def _narrowed(memory: Memory, state_dtype: torch.dtype | None) -> Memory:
    """Round floating-point entries to `state_dtype`, if there is one."""
    if state_dtype is None:
        return memory
    return {name: value.to(state_dtype) if value.is_floating_point() else value for name, value in memory.items()}
