"""The contract of a convex function f with a cheap proximal operator, and its conjugate f*.

    prox_{t f}(v) = argmin_x f(x) + ‖x − v‖² / (2t),        f*(y) = sup_x ⟨x, y⟩ − f(x)

Source: Parikh & Boyd 2014, Proximal Algorithms, Foundations and Trends in Optimization 1(3).

Everything in this package is stateless and batched: an *item* is what f takes, the last `ndim` axes of a tensor, and
all axes before them are batch axes. A strength, radius or step is a number, or a tensor with one entry per item that
broadcasts against the batch axes; gradients reach it too. Numbers are checked, tensors are not: that would stop `vmap`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

Scalar = float | Tensor
"""A number, or a tensor with one entry per item: shape () or the batch axes."""


class ProximalFunction(ABC):
    """A convex, lower semicontinuous function f of an item.

    A subclass is a frozen dataclass, final, and implements `value` and `prox`, and `conjugate_value` where it is
    known. All are pure; they run under autograd and `torch.func.vmap`.
    """

    ndim: int
    """Number of trailing axes that make one item."""

    def __post_init__(self):
        """Check the numbers that define a function.

        Raises:
            ValueError: if an item has no axis, or a strength, ridge or radius is negative, not finite or no number.
        """
        if self.ndim < 1:
            raise ValueError(f"an item needs at least one axis, got ndim={self.ndim}")
        for name in ("strength", "ridge", "radius"):
            scalar = getattr(self, name, 0.0)
            if scalar is None or isinstance(scalar, str | complex):
                raise ValueError(f"{name} must be a number, or a tensor with one entry per item; got {scalar!r}")
            if not isinstance(scalar, Tensor) and not 0 <= scalar < float("inf"):
                raise ValueError(f"{name} must be finite and at least 0, got {scalar}")

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """Return f(x), the shape of the batch axes; inf outside the domain, which is taken sqrt(eps) wider."""

    @abstractmethod
    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """Return prox_{step f}(v), the shape of v.

        Args:
            v: shape (batch…, item…).
            step: t ≥ 0, a number or one entry per item.
        """

    def conjugate_value(self, y: Tensor) -> Tensor:
        """Return f*(y), the shape of the batch axes; inf outside the domain of f*, taken sqrt(eps) wider.

        Raises:
            NotImplementedError: if f* has no closed form.
        """
        raise NotImplementedError(f"the conjugate of {type(self).__name__} has no closed form; its prox does work")

    def conjugate(self) -> "ProximalFunction":
        """Return f*."""
        return Conjugate(self)


@dataclass(frozen=True, eq=False)
class Conjugate(ProximalFunction):
    """The convex conjugate f* of a function, its prox by Moreau's identity.

        prox_{t f*}(v) = v − t prox_{f/t}(v/t)

    Source: Moreau 1965, Proximité et dualité dans un espace hilbertien, Bull. SMF 93.
    """

    function: ProximalFunction
    """f."""

    @property
    def ndim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Item axes, those of f."""
        return self.function.ndim

    def value(self, x: Tensor) -> Tensor:
        """f*(x)."""
        return self.function.conjugate_value(x)

    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """Moreau's identity.

        Raises:
            ValueError: if `step` is a number that is not positive.
        """
        if not isinstance(step, Tensor) and not step > 0:
            raise ValueError(f"the prox of a conjugate needs a step above 0, got {step}")
        t = per_item(step, v, self.ndim)
        return v - t * self.function.prox(v / t, 1 / step)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """f** = f."""
        return self.function.value(y)

    def conjugate(self) -> ProximalFunction:
        """f** = f."""
        return self.function


def per_item(scalar: Scalar, x: Tensor, ndim: int) -> Scalar:
    """Give one scalar per item as many trailing axes of length 1 as an item has, so that it broadcasts against x.

    Raises:
        ValueError: if it is a negative or undefined number, or x has fewer than ndim axes.
    """
    if x.dim() < ndim:
        raise ValueError(f"an item has {ndim} axes, got a tensor of shape {tuple(x.shape)}; add axes or lower ndim")
    if not isinstance(scalar, Tensor):
        if not scalar >= 0:
            raise ValueError(f"a step, strength or radius must be at least 0, got {scalar}")
        return scalar
    scalar = scalar.to(x.dtype)
    return scalar.reshape(scalar.shape + (1,) * ndim) if scalar.dim() else scalar


def clamp(x: Tensor, radius: Scalar) -> Tensor:
    """Return min(max(x, −radius), radius), elementwise; the radius broadcasts against x."""
    if isinstance(radius, Tensor):  # three times as fast as torch.clamp with bounds that are broadcast
        return torch.minimum(torch.maximum(x, -radius), radius)
    return x.clamp(-radius, radius)


def item_sum(x: Tensor, ndim: int) -> Tensor:
    """Sum over each item, the shape of the batch axes."""
    return x.flatten(-ndim).sum(-1)


def item_norm(x: Tensor, ndim: int, order: float = 2.0) -> Tensor:
    """ℓ_order norm of each item, the shape of the batch axes; its gradient at 0 is 0."""
    return torch.linalg.vector_norm(x.flatten(-ndim), order, dim=-1)


def zero_where(inside: Tensor, like: Tensor) -> Tensor:
    """0 inside, inf outside, in the dtype of `like`: the values of an indicator function."""
    return torch.where(inside, 0.0, float("inf")).to(like.dtype)


def within(dual_norm: Tensor, strength: Scalar) -> Tensor:
    """Tell where dual_norm ≤ strength, up to a relative sqrt(eps): the domain of the conjugate of a norm."""
    return dual_norm <= strength * (1 + tolerance(dual_norm))


def tolerance(x: Tensor) -> float:
    """sqrt(eps): what rounding in sums, projections and factorisations stays below."""
    return torch.finfo(x.dtype).eps ** 0.5
