"""Indicator functions of convex sets: 0 inside, inf outside; the prox is the projection, whatever the step.

Source: Parikh & Boyd 2014, Proximal Algorithms, §6.2; Beck 2017, First-Order Methods in Optimization, §6.4.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.proximal.function import (
    ProximalFunction,
    Scalar,
    clamp,
    item_norm,
    item_sum,
    per_item,
    tolerance,
    zero_where,
)
from l2o.proximal.simplex import project_l1_ball, project_simplex


class Indicator(ProximalFunction):
    """0 on a closed convex set, inf elsewhere. A subclass implements `project`, and `conjugate_value` where known."""

    @abstractmethod
    def project(self, v: Tensor) -> Tensor:
        """Return the nearest point of the set, the shape of v."""

    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """The projection; the step does not matter."""
        return self.project(v)

    def value(self, x: Tensor) -> Tensor:
        """0 where no entry is further from its projection than sqrt(eps) max(1, ‖x‖∞)."""
        distance = item_norm(x - self.project(x), self.ndim, torch.inf)
        return zero_where(distance <= tolerance(x) * item_norm(x, self.ndim, torch.inf).clamp(min=1), x)


@dataclass(frozen=True, eq=False)
class Nonnegative(Indicator):
    """The nonnegative orthant."""

    ndim: int = 1

    def project(self, v: Tensor) -> Tensor:
        """max(v, 0)."""
        return v.relu()

    def conjugate_value(self, y: Tensor) -> Tensor:
        """0 where y ≤ 0, up to sqrt(eps) max(1, ‖y‖∞)."""
        return Nonnegative(self.ndim).value(-y)


@dataclass(frozen=True, eq=False)
class Box(Indicator):
    """lower ≤ x ≤ upper."""

    lower: Scalar = 0.0
    """A number or a tensor that broadcasts against x; -inf for none."""
    upper: Scalar = 1.0
    """A number or a tensor that broadcasts against x; inf for none."""
    ndim: int = 1

    def __post_init__(self):
        """Check the bounds.

        Raises:
            ValueError: as `ProximalFunction`, or if lower and upper are numbers and cross.
        """
        super().__post_init__()
        if not (isinstance(self.lower, Tensor) or isinstance(self.upper, Tensor) or self.lower <= self.upper):
            raise ValueError(f"lower must not be above upper, got {self.lower} and {self.upper}")

    def project(self, v: Tensor) -> Tensor:
        """min(max(v, lower), upper)."""
        lower, upper = (torch.as_tensor(bound, dtype=v.dtype, device=v.device) for bound in (self.lower, self.upper))
        return v.clamp(lower, upper)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """Σ max(y lower, y upper)."""
        zero = torch.zeros((), dtype=y.dtype, device=y.device)  # not 0 · inf where there is no bound
        upper = torch.where(y > 0, y * self.upper, zero)
        return item_sum(torch.where(y < 0, y * self.lower, upper), self.ndim)


@dataclass(frozen=True, eq=False)
class Simplex(Indicator):
    """x ≥ 0, Σ x = radius."""

    radius: Scalar = 1.0
    ndim: int = 1

    def project(self, v: Tensor) -> Tensor:
        """See `project_simplex`."""
        return project_simplex(v.flatten(-self.ndim), self.radius).reshape(v.shape)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """Radius · max y."""
        return self.radius * y.flatten(-self.ndim).amax(-1)


@dataclass(frozen=True, eq=False)
class L1Ball(Indicator):
    """‖x‖₁ ≤ radius."""

    radius: Scalar = 1.0
    ndim: int = 1

    def project(self, v: Tensor) -> Tensor:
        """See `project_l1_ball`."""
        return project_l1_ball(v.flatten(-self.ndim), self.radius).reshape(v.shape)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """Radius · ‖y‖∞."""
        return self.radius * item_norm(y, self.ndim, torch.inf)


@dataclass(frozen=True, eq=False)
class L2Ball(Indicator):
    """‖x‖₂ ≤ radius."""

    radius: Scalar = 1.0
    ndim: int = 1

    def project(self, v: Tensor) -> Tensor:
        """The vector v min(1, radius / ‖v‖), with the gradient of the identity at 0."""
        norm = item_norm(v, self.ndim)
        norm = norm.reshape(norm.shape + (1,) * self.ndim)
        radius = per_item(self.radius, v, self.ndim)
        outside = norm > radius
        return v * torch.where(outside, radius / torch.where(outside, norm, 1.0), 1.0)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """Radius · ‖y‖₂."""
        return self.radius * item_norm(y, self.ndim)


@dataclass(frozen=True, eq=False)
class LinfBall(Indicator):
    """‖x‖∞ ≤ radius."""

    radius: Scalar = 1.0
    ndim: int = 1

    def project(self, v: Tensor) -> Tensor:
        """min(max(v, −radius), radius)."""
        radius = per_item(self.radius, v, self.ndim)
        return clamp(v, radius)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """Radius · ‖y‖₁."""
        return self.radius * item_norm(y, self.ndim, 1)


@dataclass(frozen=True, eq=False)
class AffineSet(Indicator):
    """{x : Ax = b}. Where that is empty, the projection is onto the least-squares solutions {x : AᵀAx = Aᵀb}."""

    matrix: Tensor
    """A, shape (batch…, m, n), of any rank."""
    target: Tensor
    """b, shape (batch…, m)."""
    pinv: Tensor
    """Pseudo-inverse of A, shape (batch…, n, m); `from_system` computes it once."""
    ndim = 1

    @classmethod
    def from_system(cls, matrix: Tensor, target: Tensor) -> "AffineSet":
        """Return {x : Ax = b}.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if matrix.dim() < 2 or not target.shape[-1:] == matrix.shape[-2:-1]:
            raise ValueError(
                f"expected A of shape (…, m, n) and b of shape (…, m), got {tuple(matrix.shape)} "
                f"and {tuple(target.shape)}"
            )
        return cls(matrix, target, torch.linalg.pinv(matrix))

    def project(self, v: Tensor) -> Tensor:
        """The point v − A⁺(Av − b)."""
        residual = torch.einsum("...mn,...n->...m", self.matrix, v) - self.target
        return v - torch.einsum("...nm,...m->...n", self.pinv, residual)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """⟨y, A⁺b⟩ where y is in the range of Aᵀ."""
        multipliers = torch.einsum("...nm,...n->...m", self.pinv, y)
        off = item_norm(y - torch.einsum("...mn,...m->...n", self.matrix, multipliers), 1, torch.inf)
        inside = off <= tolerance(y) * item_norm(y, 1, torch.inf).clamp(min=1)
        return (multipliers * self.target).sum(-1) + zero_where(inside, y)


@dataclass(frozen=True, eq=False)
class HalfSpace(Indicator):
    """{x : ⟨a, x⟩ ≤ b}; everything where a = 0."""

    normal: Tensor
    """a, shape (batch…, n)."""
    offset: Scalar
    """b, a number or one entry per item."""
    ndim = 1

    def project(self, v: Tensor) -> Tensor:
        """The point v − a max(⟨a, v⟩ − b, 0) / ‖a‖²."""
        offset = self.offset.unsqueeze(-1) if isinstance(self.offset, Tensor) else self.offset
        excess = ((self.normal * v).sum(-1, keepdim=True) - offset).relu()
        squared = self.normal.square().sum(-1, keepdim=True)
        return v - self.normal * excess / torch.where(squared > 0, squared, 1.0)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """The value s b where y = s a with s ≥ 0."""
        squared = self.normal.square().sum(-1)
        s = ((self.normal * y).sum(-1) / torch.where(squared > 0, squared, 1.0)).relu()
        off = item_norm(y - s.unsqueeze(-1) * self.normal, 1, torch.inf)
        return s * self.offset + zero_where(off <= tolerance(y) * item_norm(y, 1, torch.inf).clamp(min=1), y)
