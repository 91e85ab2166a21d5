"""Total variation: the prox by accelerated projected gradient on its dual, with a certificate.

    prox_{tλ TV}(v) = v − ∇ᵀp,   p ∈ argmin { ½‖v − ∇ᵀp‖² : p in the ball of radius tλ }

The ball is that of ℓ₂ over directions at each pixel (isotropic) or of ℓ∞ (anisotropic). For x = v − ∇ᵀp the duality gap
is tλ TV(x) − ⟨p, ∇x⟩, and by strong convexity ‖x − prox‖ ≤ sqrt(gap).

Source: Chambolle 2004, J. Math. Imaging Vis. 20; Beck & Teboulle 2009, IEEE TIP 18(11) (FGP). Differs from it: momentum
restarts where it points uphill (O'Donoghue & Candès 2015, Found. Comput. Math. 15), for each item by itself.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.proximal.differences import Gradient
from l2o.proximal.function import ProximalFunction, Scalar, clamp, item_sum, per_item

_CHECK_EVERY = 10
"""Iterations between two looks at the gap, which costs about one iteration."""


class TotalVariationProx(NamedTuple):
    """A denoised item, with what certifies it and what the next call may start from."""

    x: Tensor
    """The denoised item, the shape of v."""
    dual: Tensor
    """p, shape (batch…, dimensions, item…)."""
    gap: Tensor
    """Duality gap, the shape of the batch axes: ‖x − prox‖ ≤ sqrt(gap), up to rounding."""


@dataclass(frozen=True, eq=False)
class TotalVariation(ProximalFunction):
    """λ Σ_pixels ‖(∇x)_pixel‖, ℓ₂ norm over directions (isotropic) or ℓ₁ norm (anisotropic); Neumann boundary.

    Items are images (ndim = 2) or signals (ndim = 1); channels are batch axes. The gradient of the prox is that of the
    iterations.
    """

    strength: Scalar = 1.0
    """λ."""
    isotropic: bool = True
    ndim: int = 2
    steps: int = 200
    """Most iterations."""
    tolerance: float | None = None
    """Stop once the gap of every item is below tolerance · ½‖v‖²; looks every ten iterations, which `vmap` forbids."""

    def __post_init__(self):
        """Check the options.

        Raises:
            ValueError: as `ProximalFunction`, or if steps or tolerance is not positive.
        """
        super().__post_init__()
        if self.steps < 1 or not (self.tolerance is None or self.tolerance > 0):
            raise ValueError(f"steps and tolerance must be positive, got {self.steps} and {self.tolerance}")

    def value(self, x: Tensor) -> Tensor:
        """λ Σ ‖∇x‖."""
        return self.strength * self._variation(self._gradient(x).forward(x))

    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """See `solve`; starts from p = 0."""
        return self.solve(v, step).x

    def solve(self, v: Tensor, step: Scalar = 1.0, dual: Tensor | None = None) -> TotalVariationProx:
        """Return the prox at v, its dual variable and the gap.

        Args:
            v: shape (batch…, item…).
            step: t ≥ 0, a number or one entry per item.
            dual: where to start, as an earlier call returned it, shape (batch…, dimensions, item…); zeros if None. It
                need not lie in the ball.

        Raises:
            ValueError: if `dual` does not have its shape.
        """
        gradient = self._gradient(v)
        radius = self._radius(v, step)
        expected = (*v.shape[: -self.ndim], *gradient.out_shape)
        if dual is not None and dual.shape != expected:
            raise ValueError(f"expected a dual of shape {tuple(expected)}, got {tuple(dual.shape)}")
        p = v.new_zeros(expected) if dual is None else dual
        q, momentum = p, v.new_ones(v.shape[: -self.ndim] + (1,) * (self.ndim + 1))
        dual_step = 1 / max(float(gradient.norm()), 1.0) ** 2  # ∇ = 0 on a single pixel
        for iteration in range(1, self.steps + 1):
            new = self._project(q + dual_step * gradient.forward(v - gradient.adjoint(q)), radius)
            weight, momentum = self._momentum(p, q, new, momentum)
            p, q = new, new + weight * (new - p)
            if self.tolerance is not None and iteration % _CHECK_EVERY == 0:
                energy = 0.5 * item_sum(v.square(), self.ndim)
                if bool((self._gap(gradient, v, p, radius) <= self.tolerance * energy).all()):
                    break
        return TotalVariationProx(v - gradient.adjoint(p), p, self._gap(gradient, v, p, radius))

    def _momentum(self, p: Tensor, q: Tensor, new: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of new − p in the next extrapolation, and the next momentum; 0 and 1 where the last one overshot."""
        uphill = (item_sum((q - new) * (new - p), self.ndim + 1) > 0).reshape(momentum.shape)
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        return torch.where(uphill, 0.0, (momentum - 1) / following), torch.where(uphill, 1.0, following)

    def _radius(self, v: Tensor, step: Scalar) -> Scalar:
        """Radius tλ of the dual ball, against p."""
        radius = per_item(step, v, self.ndim) * per_item(self.strength, v, self.ndim)
        return radius.unsqueeze(-1) if isinstance(radius, Tensor) and radius.dim() else radius

    def _gradient(self, x: Tensor) -> Gradient:
        per_item(0.0, x, self.ndim)  # an item needs its axes
        return Gradient(tuple(x.shape[-self.ndim :]))

    def _lengths(self, field: Tensor) -> Tensor:
        """Length of the vector at each pixel, the axis of directions kept."""
        axis = -self.ndim - 1
        return torch.linalg.vector_norm(field, 2 if self.isotropic else 1, dim=axis, keepdim=True)

    def _variation(self, field: Tensor) -> Tensor:
        """Σ over pixels of the lengths, the shape of the batch axes."""
        return item_sum(self._lengths(field), self.ndim + 1)

    def _project(self, field: Tensor, radius: Scalar) -> Tensor:
        """Project the vector at each pixel onto the dual ball."""
        if not self.isotropic:
            return clamp(field, radius)
        squared = field.square().sum(-self.ndim - 1, keepdim=True)  # five times faster than vector_norm here
        outside = squared > radius**2
        return field * torch.where(outside, radius * torch.where(outside, squared, 1.0).rsqrt(), 1.0)

    def _gap(self, gradient: Gradient, v: Tensor, p: Tensor, radius: Scalar) -> Tensor:
        """tλ TV(x) − ⟨p, ∇x⟩ for x = v − ∇ᵀp; each pixel's term is nonnegative."""
        field = gradient.forward(v - gradient.adjoint(p))
        return item_sum(radius * self._lengths(field) - (p * field).sum(-self.ndim - 1, keepdim=True), self.ndim + 1)
