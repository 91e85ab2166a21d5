"""Parameters that are sharded over processes (DTensors, from FSDP2 or tensor parallelism).

A rule moves each coordinate by itself, so each process updates its own shard and nothing is communicated, except one
small reduction: whether a gradient is finite must have the same answer on all processes. DTensors are recognised by
their `to_local`, because importing `torch.distributed.tensor` costs a second that most programs do not need.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor."""
    return type(tensor) not in (Tensor, torch.nn.Parameter) and hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """Return what this process holds: a DTensor's shard, any other tensor itself. Writing into it is allowed."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def local_gradient(param: Any) -> Tensor:
    """Return this process's part of the gradient, laid out as its part of the parameter."""
    grad = param.grad
    if is_sharded(grad) and grad.placements != param.placements:
        grad = grad.redistribute(placements=param.placements)
    return local(grad)


def sharded_like(param: Any, part: Tensor) -> Tensor:
    """Return this process's part of a state, shape (…, *local shape), as the DTensor of shape (…, *param.shape)."""
    if not is_sharded(param):
        return part
    lead = part.dim() - param.dim()
    shape = (*part.shape[:lead], *param.shape)
    stride = torch.empty(shape, device="meta").stride()
    placements = [_behind(lead, placement) for placement in param.placements]
    arguments = {"run_check": False, "shape": torch.Size(shape), "stride": stride}
    return type(param).from_local(part, param.device_mesh, placements, **arguments)


def agree(params: Sequence[Tensor], flags: list[bool]) -> list[bool]:
    """Return the flags, for DTensors the conjunction over all processes that hold a part of them.

    All processes of a mesh call this with the same DTensors in the same order.
    """
    flags, by_mesh = list(flags), {}
    for index, param in enumerate(params):
        if is_sharded(param):
            by_mesh.setdefault(param.device_mesh, []).append(index)  # pyright: ignore[reportAttributeAccessIssue]
    for mesh, indices in by_mesh.items():
        bits = torch.tensor([flags[index] for index in indices], dtype=torch.int32, device=mesh.device_type)
        for group in mesh.get_all_groups():
            torch.distributed.all_reduce(bits, torch.distributed.ReduceOp.MIN, group=group)
        for index, bit in zip(indices, bits.tolist(), strict=True):
            flags[index] = bool(bit)
    return flags


def _behind(lead: int, placement: Any) -> Any:
    """The placement of a state with `lead` more axes in front."""
    if not hasattr(placement, "dim"):
        return placement
    if hasattr(placement, "split_factor"):  # FSDP2 over tensor parallelism
        return type(placement)(placement.dim + lead, split_factor=placement.split_factor)
    return type(placement)(placement.dim + lead)
