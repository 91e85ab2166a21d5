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

import math
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.metric import Euclidean, Metric, Step, check_positive_definite, columns, dense
from l2o.nonexpansive_search import worst_directions
from l2o.packing import Packing, Unknown

_ROUNDING = 1e-6
"""Relative excess over 1 that float64 sums explain; in narrower dtypes 100 eps, 1.2e-5 in float32."""
_SIZES = (1e-3, 1.0, -3.0, 1e2, -1e4)
"""Where a map must be affine: maps bend at small scales (ripples) or at large ones (saturation)."""


class MapCertificate(NamedTuple):
    """What is known of a map."""

    lipschitz: float
    """Its Lipschitz constant in ‖·‖_H where `exact`; else the largest ratio that was found: a lower bound."""
    averagedness: float
    """The smallest α with which it is averaged; inf if expansive; a lower bound unless `exact`."""
    exact: bool
    """Whether it holds for all points, because the map is affine."""
    rounding: float = _ROUNDING
    """Relative excess over 1 that the dtype of the points explains; nothing finer can be told."""

    @property
    def nonexpansive(self) -> bool:
        """Whether no expansion was found."""
        return self.lipschitz <= 1 + self.rounding

    @property
    def averaged(self) -> bool:
        """Whether it is averaged, as far as was seen: iterating it converges wherever it has a fixed point."""
        return self.contraction or (self.nonexpansive and self.averagedness < 1 - 2 * self.rounding)

    @property
    def contraction(self) -> bool:
        """Whether it is a contraction, as far as was seen."""
        return self.lipschitz < 1 - self.rounding

    def __str__(self) -> str:
        """A sentence that says what is proven and what is not."""
        if not self.nonexpansive:
            return f"EXPANSIVE: distances grow by up to {self.lipschitz:.8g}"
        kind = "a contraction" if self.contraction else "averaged" if self.averaged else "nonexpansive"
        how = "proven, the map is affine" if self.exact else "on all samples, which is no proof"
        return f"{kind} ({how}): Lipschitz constant {self.lipschitz:.6g}, averaged with {self.averagedness:.4g}"


def certify_samples(step: Step, points: Unknown, metric: Metric | None = None, iterations: int = 100) -> MapCertificate:
    """Look for expansion of T: between the points, and along the worst direction at each.

    Args:
        step: T, of points with one batch axis, differentiable by autograd, items independent of each other.
        points: where to look, each tensor of shape (items, own axes…), at least two items. Neighbours so near that
            rounding decides the ratio of their distances are not compared.
        metric: H; None is the identity.
        iterations: Lanczos steps at each point at most; so many times the memory of the points is held.

    Raises:
        ValueError: if there are fewer than two points, or all are too near to each other for their dtype; or T gives no
            finite values or derivatives, or values that have no gradient though T is not constant.
    """
    metric, packing = metric or Euclidean(), Packing(points, batch_axes=1)
    flat, rounding = packing.pack(points).detach(), _rounding(packing.dtype)
    if len(flat) < 2:
        raise ValueError(f"certify_samples compares points: give at least two, got {len(flat)}")
    with torch.no_grad():
        moved = packing.pack(step(points))
    if not bool(moved.isfinite().all()):
        raise ValueError("the map gives values that are not finite at some points")
    pairs = _distinct_pairs(flat, moved, packing, metric)
    directions = _Pairs(*worst_directions(step, flat, packing, metric, iterations))
    lipschitz, averagedness = (
        max(values) for values in zip(*(_judge(p, packing, metric) for p in (pairs, directions)), strict=True)
    )
    return MapCertificate(lipschitz, averagedness if lipschitz <= 1 + rounding else float("inf"), False, rounding)


def certify_affine(step: Step, like: Unknown, metric: Metric | None = None) -> MapCertificate:
    """Certify an affine T exactly, by its matrix; for points of up to some thousand coordinates.

    Args:
        step: T.
        like: a point with one item, each tensor of shape (1, own axes…); T is linearised at 0 and checked for being
            affine at five random points, of sizes 1e-3 to 1e4. That T bends nowhere else is up to the caller.
        metric: H; None is the identity.

    Raises:
        ValueError: if `like` has not one item; T is not finite at 0, or not affine: use `certify_samples`; or H is
            not positive definite.
    """
    packing = Packing(like, batch_axes=1)
    _check_one_item(packing)
    zero, rounding = packing.unpack(torch.zeros_like(packing.pack(like))), _rounding(packing.dtype)
    with torch.no_grad():
        offset = packing.pack(step(zero))
        if not bool(offset.isfinite().all()):
            raise ValueError("the map gives values that are not finite at 0")
        J = _matrix(step, packing, offset)
        _check_affine(step, packing, J, offset)
        # float64: the norms must not add their own rounding to that of the map
        whitened = J.double() if metric is None else _whiten(J.double(), dense(metric, zero).double())
    lipschitz = float(torch.linalg.matrix_norm(whitened, 2))
    return MapCertificate(lipschitz, _least_averagedness(whitened, lipschitz, rounding), True, rounding)


def _rounding(dtype: torch.dtype) -> float:
    return max(_ROUNDING, 100 * torch.finfo(dtype).eps)


def _check_one_item(packing: Packing) -> None:
    if packing.batch_shape != (1,):
        raise ValueError(
            f"certify_affine takes one item, tensors of shape (1, own axes…), got {packing.batch_shape[0]} items;"
            " use u[:1] for one of several items and u.unsqueeze(0) for a point without batch axis"
        )


def _whiten(J: Tensor, H: Tensor) -> Tensor:
    """G J G⁻¹ with H = GᵀG."""
    check_positive_definite(H := (H + H.mT) / 2)
    G = torch.linalg.cholesky(H).mT
    return G @ torch.linalg.solve(G, J, left=False)


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
    # 100 eps: of one that hardly moves, rounding of the numerator decides.
    moving = seen & (rest > max(1e-12, 100 * torch.finfo(apart.dtype).eps) * apart)
    kappa = ((apart - images)[moving] / rest[moving]).clamp(min=0)
    return float(ratios.max()) if len(ratios) else 0.0, float((1 / (1 + kappa)).max()) if len(kappa) else 0.0


def _distinct_pairs(flat: Tensor, moved: Tensor, packing: Packing, metric: Metric) -> _Pairs:
    """Each point and the one before it, without the pairs so near that rounding alone can change their ratio."""
    apart, images = flat - flat.roll(1, 0), moved - moved.roll(1, 0)
    size = torch.maximum(*(metric.norm(packing.unpack(v.abs())).detach() for v in (flat, moved)))
    noise = 4 * torch.finfo(flat.dtype).eps * torch.maximum(size, size.roll(1, 0))
    seen = metric.norm(packing.unpack(apart)).detach() * _rounding(flat.dtype) > noise
    if not bool(seen.any()):
        raise ValueError(
            f"the points are too near to each other for {flat.dtype}: rounding decides the ratios of their distances;"
            " give points further apart, or float64"
        )
    # A pair left out becomes 0 and 0, which `_judge` skips: a metric may need as many items as there are points.
    keep = seen.unsqueeze(-1)
    return _Pairs(apart * keep, images * keep)


def _largest(v: Tensor) -> float:
    return float(v.abs().amax())


def _matrix(step: Step, packing: Packing, offset: Tensor) -> Tensor:
    # steps as long as the offset, or its rounding would be in the matrix; a power of two divides without rounding
    size = 2.0 ** math.ceil(math.log2(max(1.0, _largest(offset))))

    def linear(u: Unknown) -> Unknown:
        return packing.unpack((packing.pack(step(packing.unpack(size * packing.pack(u)))) - offset) / size)

    return columns(linear, packing.unpack(torch.zeros_like(offset)))


def _check_affine(step: Step, packing: Packing, J: Tensor, offset: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    # 100 √n eps: rounding of a sum of n terms, with room for the sums within the map
    relative = 100 * len(J) ** 0.5 * torch.finfo(offset.dtype).eps
    for size in _SIZES:
        point = size * torch.randn(offset.shape, generator=generator, dtype=offset.dtype)
        predicted = point @ J.mT + offset
        error = _largest(packing.pack(step(packing.unpack(point))) - predicted)
        largest = max(_largest(predicted), _largest(point), _largest(offset))
        if not error <= relative * largest:
            raise ValueError(
                f"the map is not affine, so its matrix proves nothing: at a random point of size {abs(size):g} it is"
                f" {error:.3g} off, where rounding explains {relative * largest:.3g}; use certify_samples"
            )


def _least_averagedness(J: Tensor, lipschitz: float, rounding: float) -> float:
    """The smallest α for which (J − (1 − α) I)/α has norm at most 1, by bisection: if α does, larger ones do too."""
    if lipschitz > 1 + rounding:
        return float("inf")
    identity, low, high = torch.eye(len(J), dtype=J.dtype), 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = float(torch.linalg.matrix_norm(J - (1 - middle) * identity, 2)) <= middle * (1 + rounding) + 1e-12
        low, high = (low, middle) if fits else (middle, high)
    return high
