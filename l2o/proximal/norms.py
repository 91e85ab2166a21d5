"""Norms of vectors and groups, and their squares: all with a prox in closed form.

Source: Parikh & Boyd 2014, Proximal Algorithms, §6.5; Beck 2017, First-Order Methods in Optimization, ch. 6.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from l2o.proximal.function import (
    ProximalFunction,
    Scalar,
    clamp,
    item_norm,
    item_sum,
    per_item,
    within,
    zero_where,
)
from l2o.proximal.simplex import project_l1_ball


def soft_threshold(v: Tensor, threshold: Scalar) -> Tensor:
    """sign(v) max(|v| − threshold, 0), elementwise; the threshold, at least 0, broadcasts against v.

    >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
    tensor([-2.,  0.,  1.])
    """
    if isinstance(threshold, Tensor):
        return v - clamp(v, threshold)
    return softshrink(v, threshold)  # one pass over memory, no temporary


def shrink_norm(v: Tensor, norm: Tensor, threshold: Scalar) -> Tensor:
    """max(1 − threshold / norm, 0) v, with finite gradients where the norm is 0; norm is broadcast against v."""
    outside = norm > threshold
    return v * torch.where(outside, 1 - threshold / torch.where(outside, norm, 1.0), 0.0)


@dataclass(frozen=True, eq=False)
class L1(ProximalFunction):
    """λ‖x‖₁, prox: soft thresholding at tλ."""

    strength: Scalar = 1.0
    """λ."""
    ndim: int = 1

    def value(self, x: Tensor) -> Tensor:
        """λ‖x‖₁."""
        return self.strength * item_norm(x, self.ndim, 1)

    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """sign(v) max(|v| − tλ, 0)."""
        return soft_threshold(v, per_item(step, v, self.ndim) * per_item(self.strength, v, self.ndim))

    def conjugate_value(self, y: Tensor) -> Tensor:
        """0 where ‖y‖∞ ≤ λ."""
        return zero_where(within(item_norm(y, self.ndim, torch.inf), self.strength), y)


@dataclass(frozen=True, eq=False)
class NonnegativeL1(ProximalFunction):
    """λ Σ x with x ≥ 0, inf elsewhere."""

    strength: Scalar = 1.0
    """λ."""
    ndim: int = 1

    def value(self, x: Tensor) -> Tensor:
        """λ Σ x where x ≥ 0."""
        x = x.flatten(-self.ndim)
        return self.strength * x.sum(-1) + zero_where(within((-x).amax(-1), 0.0), x)

    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """max(v − tλ, 0)."""
        return (v - per_item(step, v, self.ndim) * per_item(self.strength, v, self.ndim)).relu()

    def conjugate_value(self, y: Tensor) -> Tensor:
        """0 where y ≤ λ."""
        return zero_where(within(y.flatten(-self.ndim).amax(-1), self.strength), y)


@dataclass(frozen=True, eq=False)
class SquaredL2(ProximalFunction):
    """λ/2 ‖x − c‖²."""

    strength: Scalar = 1.0
    """λ."""
    center: Scalar = 0.0
    """c, a number or a tensor that broadcasts against x."""
    ndim: int = 1

    def value(self, x: Tensor) -> Tensor:
        """λ/2 ‖x − c‖²."""
        return 0.5 * self.strength * item_sum((x - self.center).square(), self.ndim)

    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """(v + tλc) / (1 + tλ)."""
        factor = per_item(step, v, self.ndim) * per_item(self.strength, v, self.ndim)
        return (v + factor * self.center) / (1 + factor)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """‖y‖² / (2λ) + ⟨y, c⟩, for λ > 0."""
        return item_sum(y.square(), self.ndim) / (2 * self.strength) + item_sum(y * self.center, self.ndim)


@dataclass(frozen=True, eq=False)
class ElasticNet(ProximalFunction):
    """λ‖x‖₁ + μ/2 ‖x‖² (Zou & Hastie 2005, J. R. Stat. Soc. B 67)."""

    strength: Scalar = 1.0
    """λ."""
    ridge: Scalar = 1.0
    """μ."""
    ndim: int = 1

    def value(self, x: Tensor) -> Tensor:
        """λ‖x‖₁ + μ/2 ‖x‖²."""
        return self.strength * item_norm(x, self.ndim, 1) + 0.5 * self.ridge * item_sum(x.square(), self.ndim)

    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """Soft thresholding at tλ, then division by 1 + tμ."""
        step, strength, ridge = (per_item(scalar, v, self.ndim) for scalar in (step, self.strength, self.ridge))
        return soft_threshold(v, step * strength) / (1 + step * ridge)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """Σ max(|y| − λ, 0)² / (2μ), for μ > 0."""
        excess = soft_threshold(y, per_item(self.strength, y, self.ndim))
        return item_sum(excess.square(), self.ndim) / (2 * self.ridge)


@dataclass(frozen=True, eq=False)
class L2(ProximalFunction):
    """λ‖x‖₂, the whole item one group."""

    strength: Scalar = 1.0
    """λ."""
    ndim: int = 1

    def value(self, x: Tensor) -> Tensor:
        """λ‖x‖₂."""
        return self.strength * item_norm(x, self.ndim)

    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """max(1 − tλ/‖v‖, 0) v."""
        threshold = per_item(step, v, self.ndim) * per_item(self.strength, v, self.ndim)
        norm = item_norm(v, self.ndim)
        return shrink_norm(v, norm.reshape(norm.shape + (1,) * self.ndim), threshold)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """0 where ‖y‖₂ ≤ λ."""
        return zero_where(within(item_norm(y, self.ndim), self.strength), y)


@dataclass(frozen=True, eq=False)
class L21(ProximalFunction):
    """λ Σ_g ‖x_g‖₂, the groups along one axis of the item (Yuan & Lin 2006, J. R. Stat. Soc. B 68)."""

    strength: Scalar = 1.0
    """λ."""
    axis: int = -1
    """Axis whose entries form a group, counted from the end."""
    ndim: int = 2

    def __post_init__(self):
        """Check the options.

        Raises:
            ValueError: as `ProximalFunction`, or if the axis is not one of the item's.
        """
        super().__post_init__()
        if not -self.ndim <= self.axis < 0:
            raise ValueError(f"axis must be from {-self.ndim} to -1, counted from the end, got {self.axis}")

    def _norms(self, x: Tensor) -> Tensor:
        """Norm of each group, the axis kept with length 1."""
        return torch.linalg.vector_norm(x, dim=self.axis, keepdim=True)

    def value(self, x: Tensor) -> Tensor:
        """λ Σ_g ‖x_g‖₂."""
        return self.strength * item_sum(self._norms(x), self.ndim)

    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """max(1 − tλ/‖v_g‖, 0) v_g for each group."""
        threshold = per_item(step, v, self.ndim) * per_item(self.strength, v, self.ndim)
        return shrink_norm(v, self._norms(v), threshold)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """0 where ‖y_g‖₂ ≤ λ for all groups."""
        return zero_where(within(self._norms(y).flatten(-self.ndim).amax(-1), self.strength), y)


@dataclass(frozen=True, eq=False)
class Linf(ProximalFunction):
    """λ‖x‖∞."""

    strength: Scalar = 1.0
    """λ."""
    ndim: int = 1

    def value(self, x: Tensor) -> Tensor:
        """λ‖x‖∞."""
        return self.strength * item_norm(x, self.ndim, torch.inf)

    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """The residual v − P(v), P the projection onto the ℓ₁ ball of radius tλ (Moreau); the factor t appears once."""
        radius = per_item(step, v, self.ndim) * per_item(self.strength, v, self.ndim)
        if isinstance(radius, Tensor) and radius.dim():
            radius = radius.flatten(-self.ndim).squeeze(-1)
        return v - project_l1_ball(v.flatten(-self.ndim), radius).reshape(v.shape)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """0 where ‖y‖₁ ≤ λ."""
        return zero_where(within(item_norm(y, self.ndim, 1), self.strength), y)
