"""The structure that rules for linear constraints use: two convex functions, coupled.

    minimise over z, e   g(z) + h(e)   subject to   Az + e = b          (h None: e = 0, so Az = b)

For every z there is the feasible pair (z, b − Az), whose value is F(z) = g(z) + h(b − Az). Robust sparse coding is
g = h = ‖·‖₁. The dual is  max −g*(−Aᵀλ) − h*(−λ) − ⟨λ, b⟩.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.proximal import L1
from l2o.proximal.function import ProximalFunction, item_norm
from l2o.proximal.operator import LinearOperator


@dataclass(frozen=True, eq=False)
class ConstrainedProblem:
    """g(z) + h(e) subject to Az + e = b, one or many at once; items are vectors."""

    operator: LinearOperator
    """A."""
    b: Tensor
    """Data, shape (batch…, rows)."""
    regularizer: ProximalFunction
    """g."""
    second: ProximalFunction | None = None
    """h; None is the indicator of 0."""

    def __post_init__(self):
        """Check the shapes.

        Raises:
            ValueError: if b does not have the operator's output shape, or items are not vectors.
        """
        if len(self.operator.in_shape) != 1 or len(self.operator.out_shape) != 1:
            raise ValueError(
                f"items must be vectors, A takes {self.operator.in_shape}, gives {self.operator.out_shape}"
            )
        if tuple(self.b.shape[-1:]) != self.operator.out_shape:
            raise ValueError(f"b must have shape (batch…, {self.operator.out_shape[0]}), got {tuple(self.b.shape)}")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The axes before those of one item."""
        return tuple(self.b.shape[:-1])

    def zeros(self) -> Tensor:
        """The usual start z = 0, shape (batch…, columns)."""
        return self.b.new_zeros((*self.batch_shape, *self.operator.in_shape))

    def residual(self, z: Tensor) -> Tensor:
        """Az − b."""
        return self.operator.forward(z) - self.b

    def value(self, z: Tensor) -> Tensor:
        """F(z) = g(z) + h(b − Az), the shape of the batch axes; with no h, g(z) alone, whatever Az is."""
        value = self.regularizer.value(z)
        return value if self.second is None else value + self.second.value(-self.residual(z))

    def prox_second(self, v: Tensor, step: Tensor | float) -> Tensor:
        """prox_{step h}(v)."""
        return torch.zeros_like(v) if self.second is None else self.second.prox(v, step)

    def dual_value(self, multiplier: Tensor) -> Tensor:
        """A lower bound of min F from any λ, the shape of the batch axes: for g = h = ‖·‖₁, λ is scaled into its set.

        Raises:
            NotImplementedError: for other functions.
        """
        g, h = self.regularizer, self.second
        unit = isinstance(g, L1) and isinstance(h, L1) and float(g.strength) == float(h.strength) == 1.0
        if not unit:
            raise NotImplementedError("the dual bound is written for g = h = ‖·‖₁ only")
        size = torch.maximum(item_norm(self.operator.adjoint(multiplier), 1, torch.inf), multiplier.abs().amax(-1))
        return -(multiplier * self.b).sum(-1) / size.clamp(min=1)

    def with_data(self, b: Tensor) -> "ConstrainedProblem":
        """The same functions and operator with other data."""
        return ConstrainedProblem(self.operator, b, self.regularizer, self.second)
