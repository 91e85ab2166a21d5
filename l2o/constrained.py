"""The structure that rules for linear constraints use: two convex functions, coupled.

    minimise over z, e   g(z) + h(e)   subject to   Az + e = b          (h None: e = 0, so Az = b)

For every z there is the feasible pair (z, b − Az), whose value is F(z) = g(z) + h(b − Az). Robust sparse coding is
g = h = ‖·‖₁. The dual is  max −g*(−Aᵀλ) − h*(−λ) − ⟨λ, b⟩, and every λ can be scaled into its set: `certificate`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.certificate import Certificate, Ray
from l2o.problem import to_float64
from l2o.proximal.function import ProximalFunction
from l2o.proximal.indicators import Indicator
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

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of an iterate z."""
        return (*self.batch_shape, *self.operator.in_shape)

    @property
    def ndim(self) -> int:
        """1: items are vectors."""
        return 1

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
        """A lower bound of min F from any λ, the shape of the batch axes: the dual at the best of a few multiples of λ.

        Where g* or h* is the indicator of a ball, the largest multiple inside is among them, and 0 and 1 always are.

        Args:
            multiplier: λ, shape (batch…, rows), of any size.

        Raises:
            NotImplementedError: if the conjugate of g or h has no closed form.
        """
        rays = [Ray(self.regularizer, -self.operator.adjoint(multiplier))]
        rays += [] if self.second is None else [Ray(self.second, -multiplier)]
        slope = -(multiplier * self.b).sum(-1)
        largest = [limit for ray in rays if (limit := ray.largest()) is not None]
        cap = torch.stack([torch.full_like(slope, torch.inf), *(limit.expand_as(slope) for limit in largest)]).amin(0)
        bounds = []
        for s in (torch.zeros_like(slope), cap.clamp(max=1), torch.where(cap.isinf(), 1.0, cap)):
            value = s * slope - sum((ray.value(s) for ray in rays), torch.zeros_like(slope))
            bounds.append(torch.where(value.isnan(), -torch.inf, value))
        return torch.stack(bounds).amax(0)

    @torch.no_grad()
    def certificate(self, z: Tensor, multiplier: Tensor | None = None) -> Certificate:
        """Return F at z and a lower bound of min F, both in float64.

        Without h, F is taken at the nearest point to z with Az = b; it is inf where there is none.

        Args:
            z: shape (batch…, columns).
            multiplier: λ, a guess of the dual variable, shape (batch…, rows); None is 0.

        Raises:
            NotImplementedError: if the conjugate of g or h has no closed form.
        """
        problem, z = self.double(), z.detach().double()
        multiplier = problem.b.new_zeros(problem.b.shape) if multiplier is None else multiplier.detach().double()
        if isinstance(problem.regularizer, Indicator):
            z = problem.regularizer.project(z)
        if self.second is not None:
            return Certificate(problem.value(z), problem.dual_value(multiplier))
        z = problem._onto_constraint(z)
        kept = problem.residual(z).norm(dim=-1) <= 1e-9 * problem.b.norm(dim=-1).clamp(min=1.0)
        return Certificate(torch.where(kept, problem.value(z), torch.inf), problem.dual_value(multiplier))

    def _onto_constraint(self, z: Tensor) -> Tensor:
        """The nearest point to z that has the least ‖Az − b‖."""
        rows = self.operator.forward(torch.eye(*self.operator.in_shape, dtype=z.dtype, device=z.device))  # Aᵀ
        return z - self.residual(z) @ torch.linalg.pinv(rows)

    def double(self) -> "ConstrainedProblem":
        """The same problem in float64, without a graph."""
        return to_float64(self)

    def with_data(self, b: Tensor) -> "ConstrainedProblem":
        """The same functions and operator with other data."""
        return ConstrainedProblem(self.operator, b, self.regularizer, self.second)
