"""Is a map nonexpansive? Certificates of T in the norm of a metric H.

    nonexpansive       ‖Tu − Tv‖_H ≤ ‖u − v‖_H
    α-averaged         T = (1 − α) I + α R with R nonexpansive, 0 < α < 1:
                       ‖Tu − Tv‖² + (1 − α)/α ‖(u − Tu) − (v − Tv)‖² ≤ ‖u − v‖²
    contraction        ‖Tu − Tv‖_H ≤ c ‖u − v‖_H with c < 1

An affine T is certified exactly, by the singular values of G J G⁻¹ with H = GᵀG. Of any other T only counterexamples
are certain: pairs of points, and at each of them the norm of the Jacobian (`l2o.nonexpansive_search`). Random pairs
alone miss the few directions in which a network expands.

Source: Bauschke & Combettes 2017, Convex Analysis and Monotone Operator Theory, prop. 4.35 (averaged). The search is
ours.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from l2o.metric import Euclidean, Metric, Step, columns, dense
from l2o.nonexpansive_search import worst_directions
from l2o.packing import Packing, Unknown

_ROUNDING = 1e-6
"""Relative excess over 1 that float64 sums explain."""


class MapCertificate(NamedTuple):
    """What is known of a map."""

    lipschitz: float
    """Its Lipschitz constant in ‖·‖_H where `exact`; else the largest ratio that was found: a lower bound."""
    averagedness: float
    """The smallest α with which it is averaged; inf if expansive; a lower bound unless `exact`."""
    exact: bool
    """Whether it holds for all points, because the map is affine."""

    @property
    def nonexpansive(self) -> bool:
        """Whether no expansion was found."""
        return self.lipschitz <= 1 + _ROUNDING

    @property
    def averaged(self) -> bool:
        """Whether it is averaged, as far as was seen: iterating it converges wherever it has a fixed point."""
        return self.nonexpansive and self.averagedness < 1 - _ROUNDING

    @property
    def contraction(self) -> bool:
        """Whether it is a contraction, as far as was seen."""
        return self.lipschitz < 1 - _ROUNDING

    def __str__(self) -> str:
        """A sentence that says what is proven and what is not."""
        if not self.nonexpansive:
            return f"EXPANSIVE: distances grow by up to {self.lipschitz:.6g}"
        kind = "a contraction" if self.contraction else "averaged" if self.averaged else "nonexpansive"
        how = "proven, the map is affine" if self.exact else "on all samples, which is no proof"
        return f"{kind} ({how}): Lipschitz constant {self.lipschitz:.6g}, averaged with {self.averagedness:.4g}"


def certify_samples(step: Step, points: Unknown, metric: Metric | None = None, iterations: int = 100) -> MapCertificate:
    """Look for expansion of T: between the points, and along the worst direction at each.

    Args:
        step: T, of points with one batch axis, differentiable by autograd, items independent of each other.
        points: where to look, each tensor of shape (items, own axes…), at least two items.
        metric: H; None is the identity.
        iterations: Lanczos steps at each point at most; so many times the memory of the points is held.

    Raises:
        ValueError: if there are fewer than two points, or T gives no finite values or derivatives, or values
            that have no gradient though T is not constant.
    """
    metric, packing = metric or Euclidean(), Packing(points, batch_axes=1)
    flat = packing.pack(points).detach()
    if len(flat) < 2:
        raise ValueError(f"certify_samples compares points: give at least two, got {len(flat)}")
    with torch.no_grad():
        other = flat.roll(1, 0)
        moved = packing.pack(step(points))
        pairs = _Pairs(flat - other, moved - moved.roll(1, 0))
    if not bool(moved.isfinite().all()):
        raise ValueError("the map gives values that are not finite at some points")
    directions = _Pairs(*worst_directions(step, flat, packing, metric, iterations))
    lipschitz, averagedness = (
        max(values) for values in zip(*(_judge(p, packing, metric) for p in (pairs, directions)), strict=True)
    )
    return MapCertificate(lipschitz, averagedness if lipschitz <= 1 + _ROUNDING else float("inf"), False)


def certify_affine(step: Step, like: Unknown, metric: Metric | None = None) -> MapCertificate:
    """Certify an affine T exactly, by its matrix; for points of up to some thousand coordinates.

    Args:
        step: T.
        like: a point with one item; T is linearised at 0 and checked for being affine there.
        metric: H; None is the identity.

    Raises:
        ValueError: if T is not affine: use `certify_samples`; or H is not positive definite.
    """
    packing = Packing(like, batch_axes=1)
    zero = packing.unpack(torch.zeros_like(packing.pack(like)))
    with torch.no_grad():
        offset = packing.pack(step(zero))
        J = columns(lambda u: packing.unpack(packing.pack(step(u)) - offset), zero)
        _check_affine(step, packing, J, offset)
        H = torch.eye(len(J), dtype=J.dtype) if metric is None else dense(metric, zero)
        G = torch.linalg.cholesky(H).mT
        whitened = G @ torch.linalg.solve(G, J, left=False)
    lipschitz = float(torch.linalg.matrix_norm(whitened, 2))
    return MapCertificate(lipschitz, _least_averagedness(whitened, lipschitz), True)


class _Pairs(NamedTuple):
    """Differences of points and of their images, shape (items, coordinates)."""

    apart: Tensor
    images: Tensor


def _judge(pairs: _Pairs, packing: Packing, metric: Metric) -> tuple[float, float]:
    """The largest ratio of distances, and the smallest α that all pairs allow."""
    apart, images, rest = (
        metric.norm(packing.unpack(v)).detach().square()
        for v in (pairs.apart, pairs.images, pairs.apart - pairs.images)
    )
    seen = apart > 0
    ratios = (images[seen] / apart[seen]).sqrt()
    # κ = (‖d‖² − ‖Jd‖²) / ‖d − Jd‖² must be at least (1 − α)/α; a pair that does not move allows every α.
    moving = seen & (rest > 1e-12 * apart)
    kappa = ((apart - images)[moving] / rest[moving]).clamp(min=0)
    return float(ratios.max()) if len(ratios) else 0.0, float((1 / (1 + kappa)).max()) if len(kappa) else 0.0


def _check_affine(step: Step, packing: Packing, J: Tensor, offset: Tensor) -> None:
    point = torch.randn(offset.shape, generator=torch.Generator().manual_seed(0), dtype=offset.dtype)
    for size in (1.0, -3.0):
        predicted = size * point @ J.mT + offset
        got = packing.pack(step(packing.unpack(size * point)))
        if not torch.allclose(got, predicted, rtol=1e-4, atol=1e-4 * float(predicted.abs().amax())):
            raise ValueError("the map is not affine, so its matrix proves nothing; use certify_samples")


def _least_averagedness(J: Tensor, lipschitz: float) -> float:
    """The smallest α for which (J − (1 − α) I)/α has norm at most 1, by bisection: if α does, larger ones do too."""
    if lipschitz > 1 + _ROUNDING:
        return float("inf")
    identity, low, high = torch.eye(len(J), dtype=J.dtype), 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = float(torch.linalg.matrix_norm(J - (1 - middle) * identity, 2)) <= middle * (1 + _ROUNDING) + 1e-12
        low, high = (low, middle) if fits else (middle, high)
    return high
