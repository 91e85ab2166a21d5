"""The structure that a model-based rule may use: operator, data, regularizer, and a second term where there is one.

    minimise over x   F(x) = ½‖Ax − b‖² + g(x) + h(Kx)

The smooth part has a gradient and a Lipschitz bound, g and h have proximal operators. Items are batched: b has batch
axes before the operator's `out_shape`, an iterate x the same ones before `in_shape`.
"""

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from l2o.proximal.function import ProximalFunction, Scalar, item_sum, per_item
from l2o.proximal.operator import LinearOperator


@dataclass(frozen=True, eq=False)
class Composite:
    """h(Kx), a function with a proximal operator after a linear operator: total variation, an analysis norm."""

    function: ProximalFunction
    """h."""
    operator: LinearOperator
    """K."""

    def value(self, x: Tensor) -> Tensor:
        """h(Kx), the shape of the batch axes."""
        return self.function.value(self.operator.forward(x))


@dataclass(frozen=True, eq=False)
class Problem:
    """½‖Ax − b‖² + g(x) + h(Kx), one or many at once."""

    operator: LinearOperator
    """A."""
    b: Tensor
    """Data, shape (batch…, *A.out_shape)."""
    regularizer: ProximalFunction
    """g."""
    composite: Composite | None = None
    """h(Kx), for rules that split it (Condat–Vũ); None: 0."""

    def __post_init__(self):
        """Check the shapes.

        Raises:
            ValueError: if b is not floating or does not have the operator's output shape, its batch axes are not those
                of the matrix, or g, K or h take items of another shape than A.
        """
        shape, got = self.operator.out_shape, tuple(self.b.shape)
        if got[len(got) - len(shape) :] != shape:
            raise ValueError(f"b must have shape (batch…, {', '.join(map(str, shape))}), as A gives; got {got}")
        if not self.b.is_floating_point():
            raise ValueError(f"b must be of a floating type, got {self.b.dtype}; use b.float() or b.double()")
        own = tuple(getattr(self.operator, "matrix", self.b.new_empty(0, 0)).shape[:-2])
        if own and own != self.batch_shape:
            raise ValueError(f"A has batch axes {own}, b has {self.batch_shape}: one matrix for all, or one per item")
        if self.regularizer.ndim != self.ndim:
            raise ValueError(f"A takes items with {self.ndim} axes, g with {self.regularizer.ndim}; set ndim of g")
        if self.composite is not None:
            _check_composite(self.composite, self.operator.in_shape)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The axes before those of one item."""
        return tuple(self.b.shape[: self.b.dim() - len(self.operator.out_shape)])

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of an iterate."""
        return (*self.batch_shape, *self.operator.in_shape)

    @property
    def ndim(self) -> int:
        """Number of axes of one item of x."""
        return len(self.operator.in_shape)

    @cached_property
    def lipschitz(self) -> Tensor:
        """L ≥ ‖A‖², the Lipschitz bound of the smooth gradient, shape () or the batch axes; 1 where A = 0; detached."""
        with torch.no_grad():
            squared = self.operator.norm().square()
            return torch.where(squared > 0, squared, 1.0)

    def zeros(self) -> Tensor:
        """The usual start x = 0."""
        return self.b.new_zeros(self.x_shape)

    def residual(self, x: Tensor) -> Tensor:
        """Ax − b."""
        return self.operator.forward(x) - self.b

    def smooth_value(self, x: Tensor) -> Tensor:
        """½‖Ax − b‖², the shape of the batch axes."""
        return 0.5 * item_sum(self.residual(x).square(), len(self.operator.out_shape))

    def smooth_grad(self, x: Tensor) -> Tensor:
        """Aᵀ(Ax − b), the shape of x."""
        return self.operator.adjoint(self.residual(x))

    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """prox_{step g}(v), where g is all there is besides the smooth part.

        Raises:
            NotImplementedError: if there is h(Kx), which would be left out; a rule that splits it uses `regularizer`.
        """
        if self.composite is not None:
            raise NotImplementedError("g(x) + h(Kx) has no prox in closed form; use a rule that splits it: CondatVu")
        return self.regularizer.prox(v, step)

    def value(self, x: Tensor) -> Tensor:
        """F(x), the shape of the batch axes."""
        value = self.smooth_value(x) + self.regularizer.value(x)
        return value if self.composite is None else value + self.composite.value(x)

    def per_item(self, scalar: Scalar) -> Scalar:
        """Give a scalar of each item the trailing axes that it needs to be multiplied with x."""
        return per_item(scalar, self.b.new_empty((1,) * self.ndim), self.ndim)

    def __repr__(self) -> str:
        """One line: the terms, and the shapes of what is large."""
        A = self.operator
        terms = [
            f"A={type(A).__name__} {A.in_shape} → {A.out_shape}",
            f"b={_short(self.b)}",
            f"g={_short(self.regularizer)}",
        ]
        if self.composite is not None:
            terms.append(f"h={_short(self.composite.function)} of {type(self.composite.operator).__name__}")
        return f"Problem({', '.join(terms)})"

    def double(self) -> "Problem":
        """The same problem in float64, without a graph."""
        return to_float64(self)

    def with_data(self, b: Tensor) -> "Problem":
        """The same operator and regularizer with other data, shape (batch…, *A.out_shape)."""
        return replace(self, b=b)


def _check_composite(composite: Composite, in_shape: tuple[int, ...]) -> None:
    operator = composite.operator
    if operator.in_shape != in_shape:
        raise ValueError(f"K must take what A takes, {in_shape}; it takes {operator.in_shape}")
    if composite.function.ndim != len(operator.out_shape):
        raise ValueError(
            f"K gives items with {len(operator.out_shape)} axes, h takes {composite.function.ndim}; set ndim of h"
        )


def _short(value: Any) -> str:
    """Return what a repr shows: a tensor's type and shape, or its number; a dataclass with its fields so shown."""
    if isinstance(value, Tensor):
        try:
            return f"{value.item():.6g}"
        except RuntimeError:  # not one number, or one inside a transform
            return f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.")
    if not is_dataclass(value):
        return repr(value)
    return f"{type(value).__name__}({', '.join(f'{f.name}={_short(getattr(value, f.name))}' for f in fields(value))})"


def to_float64(value: Any) -> Any:
    """Convert every floating-point tensor of nested dataclasses."""
    if isinstance(value, Tensor):
        if value.is_complex():
            return value.detach().to(torch.complex128)
        return value.detach().double() if value.is_floating_point() else value
    if not is_dataclass(value):
        return value
    return replace(value, **{f.name: to_float64(getattr(value, f.name)) for f in fields(value) if f.init})  # pyright: ignore
