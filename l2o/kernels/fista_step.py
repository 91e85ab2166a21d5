"""The elementwise work of a safeguarded FISTA step of the LASSO, ½‖Ax − b‖² + λ‖x‖₁, for items of any shape.

    T(x) = η_{sλ}(x − s ∇f(x))                         r = ‖x − T(x)‖²
    v = x + β (x − x⁻),   z = η_{sλ}(v − s ∇f(v))      u = ⟨v − z, z − x⟩
    F(z) − F(x) = ½⟨∇f(x) + ∇f(z), z − x⟩ + λ (‖z‖₁ − ‖x‖₁)

∇f is affine, so that ∇f(v) = ∇f(x) + β (∇f(x) − ∇f(x⁻)) takes no product. Compiled, the tests of a safeguard cost less
than the elementwise operations of plain FISTA in torch.
"""

import functools
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.kernels.build import library
from l2o.proximal.norms import soft_threshold


class Ahead(NamedTuple):
    """FISTA's next iterate, and what the tests want to know; all but z of shape (items,)."""

    z: Tensor
    """z, the shape of x."""
    residual: Tensor
    """r."""
    size: Tensor
    """‖x‖²."""
    uphill: Tensor
    """u; above 0 where momentum should start afresh."""


def look_ahead(
    x: Tensor,
    previous: Tensor,
    gradient: Tensor,
    previous_gradient: Tensor,
    weight: Tensor,
    step: Tensor,
    strength: Tensor,
) -> Ahead:
    """Return z and the sums over an item; no derivatives.

    Args:
        x, previous, gradient, previous_gradient: x, x⁻, ∇f(x), ∇f(x⁻), shape (items, item…).
        weight, step, strength: β, s and λ, shape (items,).
    """
    tensors = _contiguous(x, previous, gradient, previous_gradient, weight, step, strength)
    results = (torch.empty_like(tensors[0]), *(torch.empty_like(tensors[4]) for _ in range(3)))
    if _compiled("l2o_look_ahead", tensors, results):
        return Ahead(*results)
    return look_ahead_reference(x, previous, gradient, previous_gradient, weight, step, strength)


def change(x: Tensor, gradient: Tensor, z: Tensor, z_gradient: Tensor, strength: Tensor) -> Tensor:
    """Return F(z) − F(x), shape (items,), with a relative error even where F(z) is close to F(x); no derivatives.

    Args:
        x, gradient, z, z_gradient: x, ∇f(x), z, ∇f(z), shape (items, item…).
        strength: λ, shape (items,).
    """
    tensors = _contiguous(x, gradient, z, z_gradient, strength)
    result = torch.empty_like(tensors[4])
    if _compiled("l2o_change", tensors, (result,)):
        return result
    return change_reference(x, gradient, z, z_gradient, strength)


def look_ahead_reference(
    x: Tensor,
    previous: Tensor,
    gradient: Tensor,
    previous_gradient: Tensor,
    weight: Tensor,
    step: Tensor,
    strength: Tensor,
) -> Ahead:
    """See `look_ahead`; in plain torch."""
    weight, s = _over_items(weight, x), _over_items(step, x)
    threshold = s * _over_items(strength, x)
    mapped = soft_threshold(x - s * gradient, threshold)
    v = x + weight * (x - previous)
    z = soft_threshold(v - s * (gradient + weight * (gradient - previous_gradient)), threshold)
    return Ahead(z, _sums((x - mapped).square()), _sums(x.square()), _sums((v - z) * (z - x)))


def change_reference(x: Tensor, gradient: Tensor, z: Tensor, z_gradient: Tensor, strength: Tensor) -> Tensor:
    """See `change`; in plain torch."""
    return 0.5 * _sums((gradient + z_gradient) * (z - x)) + strength * _sums(z.abs() - x.abs())


def _compiled(name: str, tensors: tuple[Tensor, ...], results: tuple[Tensor, ...]) -> bool:
    """Fill the results where a kernel fits the tensors, and tell whether one did."""
    function, x = _functions().get((name, tensors[0].dtype)), tensors[0]
    if function is None or not all(tensor.is_cpu and tensor.dtype is x.dtype for tensor in tensors):
        return False
    items = len(x)
    head = (items, x.numel() // max(items, 1), torch.get_num_threads())
    pointers = [tensor.data_ptr() for tensor in (*tensors, *results)]
    function(struct.pack(f"3q{len(pointers)}Q", *head, *pointers))
    return True


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().contiguous() for tensor in tensors)


def _over_items(scalars: Tensor, x: Tensor) -> Tensor:
    return scalars.reshape(-1, *(1,) * (x.dim() - 1))


def _sums(x: Tensor) -> Tensor:
    return x.flatten(1).sum(-1)


def _functions() -> dict:
    compiled = library()
    return {} if compiled is None else _functions_of(compiled)


@functools.cache
def _functions_of(compiled) -> dict:
    kinds = {"float32": torch.float32, "float64": torch.float64}
    names = ("l2o_look_ahead", "l2o_change")
    return {(name, dtype): getattr(compiled, f"{name}_{kind}") for name in names for kind, dtype in kinds.items()}
