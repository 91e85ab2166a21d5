"""The direction d in which a map T stretches most at a point: ‖Jd‖_H / ‖d‖_H is the norm of its Jacobian J there.

Lanczos on J*J = H⁻¹JᵀHJ, which is self-adjoint in ⟨·,·⟩_H, at all points at once, every new vector made orthogonal to
all before it. In k products it finds what takes power iteration about k²: one direction that stretches by 1.0005 among
others that stretch by 0.9999 is found, not averaged away. What it misses makes the ratio too small, never too large.

Source: Golub & Van Loan 2013, Matrix Computations, §10.1 (Lanczos, its residual |β_k y_k|, orthogonalising twice).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from l2o.metric import Metric, Step
from l2o.packing import Packing

_PATIENCE = 16
"""Lanczos steps between two looks at the residual: a look costs an eigenvalue problem per point."""


def worst_directions(
    step: Step, flat: Tensor, packing: Packing, metric: Metric, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return the directions d that T stretches most, and Jd, both of shape (items, coordinates).

    Args:
        step: T, items independent of each other.
        flat: the points, packed, shape (items, coordinates).
        packing: their structure.
        metric: H.
        iterations: Lanczos steps at most; so many times the memory of the points is held.

    Raises:
        ValueError: if T gives values without gradient that are not the same everywhere, or no finite derivatives.
    """
    jacobian = _Jacobian(step, flat, packing, metric)
    generator = torch.Generator(device=flat.device).manual_seed(0)
    start = torch.randn(flat.shape, generator=generator, dtype=flat.dtype, device=flat.device)
    d = _lanczos(lambda q: jacobian.adjoint(jacobian.times(q)), jacobian.weigh, start, iterations)
    return d, jacobian.times(d)


class _Jacobian:
    """J of T at all points at once, and its adjoint J* = H⁻¹JᵀH."""

    def __init__(self, step: Step, flat: Tensor, packing: Packing, metric: Metric):
        self._packing, self._metric = packing, metric
        with torch.enable_grad():
            self._x = flat.clone().requires_grad_()
            image = packing.pack(step(packing.unpack(self._x)))
            _check_gradient(image)
            self._image = image + 0 * self._x  # a constant map has no graph; its J is 0
            self._dual = torch.zeros_like(image, requires_grad=True)
            # Jᵀ dual, linear in dual, so that its gradient is J
            (self._pulled,) = torch.autograd.grad(self._image, self._x, self._dual, create_graph=True)

    def times(self, d: Tensor) -> Tensor:
        """Jd."""
        return torch.autograd.grad(self._pulled, self._dual, d, retain_graph=True)[0]

    def adjoint(self, v: Tensor) -> Tensor:
        """J*v."""
        (back,) = torch.autograd.grad(self._image, self._x, self.weigh(v), retain_graph=True)
        if not bool(back.isfinite().all()):
            raise ValueError("the derivatives of the map are not finite at some points; move the points off its kinks")
        return self._packing.pack(self._metric.solve(self._packing.unpack(back))).detach()

    def weigh(self, v: Tensor) -> Tensor:
        """Hv."""
        return self._packing.pack(self._metric.apply(self._packing.unpack(v))).detach()


def _check_gradient(image: Tensor) -> None:
    if not image.requires_grad and not torch.equal(image, image[:1].expand_as(image)):
        raise ValueError("the map must be differentiable by autograd: its values have no gradient. Is it detached?")


def _lanczos(
    product: Callable[[Tensor], Tensor], weigh: Callable[[Tensor], Tensor], start: Tensor, iterations: int
) -> Tensor:
    """The vector of the largest eigenvalue of J*J in the span of start, J*J start, …, of each item, H-length 1."""
    eps = torch.finfo(start.dtype).eps
    q, basis, diagonal, off = start / _length(start, weigh), [], [], []
    alive, scale = torch.ones_like(q[:, :1], dtype=torch.bool), torch.zeros_like(q[:, :1])
    for steps in range(1, max(1, min(iterations, start.shape[1])) + 1):
        basis.append(q)
        following = product(q)
        alpha = (weigh(q) * following).sum(-1, keepdim=True)
        diagonal.append(torch.where(alive, alpha, -1.0))  # an item at its end never takes up the zeros that follow
        rest = _orthogonal(following, basis, weigh)
        beta, scale = _length(rest, weigh), torch.maximum(scale, alpha.abs())
        alive = alive & (beta > 10 * eps * scale)
        off.append(torch.where(alive, beta, 0.0))
        q = torch.where(alive, rest / beta, 0.0)
        if not bool(alive.any()) or (steps % _PATIENCE == 0 and _settled(diagonal, off, eps)):
            break
    weights = _largest(diagonal, off)[1].to(start.dtype)
    return sum((weights[:, [k]] * v for k, v in enumerate(basis)), torch.zeros_like(start))


def _orthogonal(v: Tensor, basis: list[Tensor], weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """The part of v that is orthogonal in H to the basis; the second pass takes away the rounding of the first."""
    for _ in range(2):
        weighted = weigh(v)
        for q in basis:
            v = v - (q * weighted).sum(-1, keepdim=True) * q
    return v


def _length(v: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """‖v‖_H, shape (items, 1), above 0: one can divide by it."""
    return (v * weigh(v)).sum(-1, keepdim=True).clamp(min=0).sqrt().clamp(min=1e-30)


def _largest(diagonal: list[Tensor], off: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue of the tridiagonal matrix of each item, shape (items,), and its vector (items, steps)."""
    side = torch.cat(off[:-1], 1).double().diag_embed(1) if len(off) > 1 else 0.0
    values, vectors = torch.linalg.eigh(torch.cat(diagonal, 1).double().diag_embed() + side, UPLO="U")
    return values[:, -1], vectors[:, :, -1]


def _settled(diagonal: list[Tensor], off: list[Tensor], eps: float) -> bool:
    """Whether the largest eigenvalue of every item has a residual of rounding size."""
    values, vectors = _largest(diagonal, off)
    residual = off[-1][:, 0] * vectors[:, -1].abs()
    return bool((residual <= max(1e-8, 8 * eps) * values).all())
