"""BMO, bilevel meta-optimization: minimise ℓ over the fixed points of T(·, ω), and over ω, in one go.

    min over u ∈ U, ω ∈ Ω of ℓ(u, ω)   subject to   u ∈ Fix T(·, ω)

    inner   v_l = T(u^{k−1}, ω),   v_u = u^{k−1} − s_k H_ω⁻¹ ∂_u ℓ(u^{k−1}, ω),   u^k = Proj_U(μ v_u + (1 − μ) v_l)
    outer   ω ← Proj_Ω(ω − γ dφ_K/dω),   φ_K(ω) = ℓ(u^K(ω), ω), through all K steps

Where fixed points are not unique, T alone stops at any of them; the aggregation selects one where ℓ is least. μ = 0 is
plain unrolling: of a splitting method with learned parameters (the paper's UNH) or with a network in it (ENA).

From the paper (Liu, Liu, Zeng, Zhang & Zhang 2022, ICML, arXiv:2206.07875, algorithm 1): both loops, U and Ω compact,
s_k → 0, and that φ_K(ω^K) → min φ and, under more, ‖∇φ_K‖ → 0. Ours, where its text is silent: (1) s_k = s / (k + 1)^p
with p ≤ 1, so that Σ s_k = ∞ and the start is forgotten. (2) U is the ball ‖u‖_H ≤ R of each item, whose projection in
H is a scaling, or a projection that the caller gives. (3) `annealed`: s_k = s (1 − k/K)^p, for a K that is known
beforehand. Both leave u^K at a distance of order s_{K−1} from Fix T, but s_{K−1} = s K^−p now has any power p, and
Σ s_k ≈ sK/(p + 1) still grows, so that the start is forgotten as e^{−μ m Σ s_k}. Where H is the metric of a quadratic
ℓ, as H = W in `bilevel_problem.py`, that is all: the descent along Fix T does not see the distance from it. In another
H it does, and what it has drifted goes slowly. For each K this is another sequence, with s_k → s as K → ∞: the paper's
theorem does not speak of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from l2o.metric import Euclidean, Metric
from l2o.packing import Packing, Unknown

NumberedStep = Callable[[Unknown, int], Unknown]
"""T(·, ω) of step k, 0 the first; points have one batch axis."""

_EXPLOSION = 1e8
"""Times that the first points may grow: far above what a first step that is too long does in a run that recovers."""


@dataclass(frozen=True)
class InnerConfig:
    """Options of the inner loop.

    Not annealed, with p = 1, the part of the error that T leaves falls as K^(−μ s m), where m is the strong convexity
    of ℓ in the metric, and the whole as 1/K at best: take s > 1/(μ m), or p < 1, with which s hardly matters. Too small
    an s is slow without any sign of it. An s far above 2/(μ L), L the Lipschitz bound of ∂ℓ in the metric, explodes at
    first.
    """

    steps: int = 100
    """K."""
    aggregation: float = 0.5
    """μ in [0, 1); 0 is plain unrolling."""
    descent: float = 1.0
    """s, positive: step length along −H⁻¹∂ℓ, in units of H ∂²ℓ⁻¹."""
    decay: float = 1.0
    """p, positive; at most 1 unless annealed."""
    annealed: bool = False
    """Whether s_k = s (1 − k/K)^p, in place of s / (k + 1)^p."""
    radius: float | None = None
    """R of the ball U in ‖·‖_H; None is the whole space."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if one is out of its range.
        """
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 <= self.aggregation < 1:
            raise ValueError(f"aggregation must be in [0, 1), got {self.aggregation}")
        if not self.descent > 0 or not 0 < self.decay <= (math.inf if self.annealed else 1):
            most = "" if self.annealed else ", at most 1 unless annealed"
            raise ValueError(f"expected descent > 0 and decay > 0{most}; got {self.descent} and {self.decay}")
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"radius must be positive, or None for no ball, got {self.radius}")

    def size(self, k: int) -> float:
        """Return s_k, k = 0 the first."""
        return self.descent * ((1 - k / self.steps) ** self.decay if self.annealed else (k + 1) ** -self.decay)


def aggregated_steps(
    step: NumberedStep,
    start: Unknown,
    upper: Callable[[Unknown], Tensor],
    config: InnerConfig,
    metric: Metric | None = None,
    project: Callable[[Unknown], Unknown] | None = None,
) -> list[Unknown]:
    """Return u^0, …, u^K of the inner loop; differentiable in whatever `step`, `upper` and `metric` depend on.

    Args:
        step: T(·, ω).
        start: u^0: a tensor or NamedTuple of tensors, each of shape (items, own axes…).
        upper: ℓ(u, ω) of each item, shape (items,); not called with aggregation 0.
        config: K, μ, s_k and U.
        metric: H_ω; None is the identity.
        project: Proj_U in H_ω; used instead of the ball.

    Raises:
        ValueError: if the start has no axis of items, ℓ has another shape than (items,), or u^K is not finite or more
            than 10⁸ times as large as u^0 and u^1.
    """
    _check_start(start)
    metric = metric or Euclidean()
    project = project or _onto_ball(metric, config.radius)
    points = [start]
    for k in range(config.steps):
        low = step(points[-1], k)
        points.append(project(aggregate(points[-1], low, upper, config.aggregation, config.size(k), metric)))
    _check_size(points)
    return points


def _check_start(start: Unknown) -> None:
    """Refuse (n,): as n items of no axes each would be projected and aggregated alone."""
    shapes = [tuple(tensor.shape) for tensor in tree_leaves(start)]
    if all(len(shape) < 2 for shape in shapes):
        raise ValueError(
            f"the start must have shape (items, own axes…), got {shapes}; give a single item as start.unsqueeze(0), "
            "and n items that are numbers as start.unsqueeze(1)"
        )


def _check_size(points: list[Unknown]) -> None:
    """Compare u^K with u^0 and u^1, each by its largest entry; a transient that has gone again is allowed."""
    sizes = [_largest(points[k]) for k in (0, 1, -1)]
    if not math.isfinite(sizes[2]) or sizes[2] > _EXPLOSION * max(1.0, *sizes[:2]):
        raise ValueError(
            f"the inner loop has exploded: the largest entry of u^k went from {sizes[0]:.1e} to {sizes[2]:.1e} in "
            f"{len(points) - 1} steps. Take a smaller `descent` (s below 2/L, L the Lipschitz bound of ∂ℓ in the "
            "metric), a `radius`, or a T that is nonexpansive in the metric"
        )


def _largest(u: Unknown) -> float:
    return max(float(tensor.detach().abs().amax()) if tensor.numel() else 0.0 for tensor in tree_leaves(u))


def aggregate(
    u: Unknown,
    low: Unknown,
    upper: Callable[[Unknown], Tensor],
    weight: float,
    size: float | Tensor,
    metric: Metric,
) -> Unknown:
    """Return μ v_u + (1 − μ) v_l with v_u = u − s H⁻¹ ∂ℓ(u): one inner step before its projection.

    Args:
        u: u^{k−1}.
        low: v_l = T(u, ω).
        upper: ℓ of each item, shape (items,); not called where μ or s is the number 0.
        weight: μ in [0, 1).
        size: s_k, shape ().
        metric: H_ω.

    Raises:
        ValueError: if ℓ has another shape than (items,).
    """
    return low if weight == 0 else _mix(weight, _descend(u, upper, metric, size), low)


def _descend(u: Unknown, upper: Callable[[Unknown], Tensor], metric: Metric, size: float | Tensor) -> Unknown:
    """v_u = u − s H⁻¹ ∂ℓ(u)."""
    if isinstance(size, float) and size == 0:
        return u
    packing = Packing(u, batch_axes=1)
    through = torch.is_grad_enabled()
    with torch.enable_grad():
        flat = packing.pack(u)
        flat = flat if flat.requires_grad and through else flat.detach().requires_grad_()
        value = upper(packing.unpack(flat))
        if value.shape != flat.shape[:1]:
            raise ValueError(f"upper must give ℓ of each item, shape ({len(flat)},), got {tuple(value.shape)}")
        (slope,) = torch.autograd.grad(value.sum(), flat, create_graph=through)
    if not through:
        flat, slope = flat.detach(), slope.detach()
    natural = packing.pack(metric.solve(packing.unpack(slope)))
    return packing.unpack(flat - size * natural)


def _mix(weight: float, first: Unknown, second: Unknown) -> Unknown:
    packing = Packing(first, batch_axes=1)
    return packing.unpack(weight * packing.pack(first) + (1 - weight) * packing.pack(second))


def _onto_ball(metric: Metric, radius: float | None) -> Callable[[Unknown], Unknown]:
    def project(u: Unknown) -> Unknown:
        if radius is None:
            return u
        packing, norm = Packing(u, batch_axes=1), metric.norm(u).unsqueeze(-1)
        outside = norm > radius
        return packing.unpack(packing.pack(u) * torch.where(outside, radius / torch.where(outside, norm, 1.0), 1.0))

    return project


class Outer(NamedTuple):
    """One outer iteration."""

    value: float
    """φ_K(ω) before the step."""
    slope: float
    """‖∇φ_K(ω)‖."""


def hyper_train(
    objective: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    rate: float,
    iterations: int,
    project: Callable[[], None] | None = None,
    observe: Callable[[int], None] | None = None,
) -> list[Outer]:
    """Projected gradient descent on ω, in place: ω ← Proj_Ω(ω − γ ∇φ_K(ω)).

    Args:
        objective: φ_K, shape (): runs the inner loop with the current ω, under autograd.
        parameters: ω, leaves that require gradients.
        rate: γ, positive.
        iterations: how many.
        project: puts ω into Ω, in place; None is the whole space.
        observe: called with the number of each iteration before its step.

    Raises:
        ValueError: if the rate is not positive, or φ_K or its gradient is not finite: a smaller rate, or a compact U
            and Ω, would help.
    """
    if not rate > 0:
        raise ValueError(f"rate must be positive, got {rate}")
    history = []
    for iteration in range(iterations):
        if observe is not None:
            observe(iteration)
        value = objective()
        slopes = torch.autograd.grad(value, list(parameters), materialize_grads=True)
        norm = torch.stack([slope.square().sum() for slope in slopes]).sum().sqrt()
        if not bool(value.isfinite() & norm.isfinite()):
            raise ValueError(f"φ_K is {value.item()}, ‖∇φ_K‖ {norm.item()} at iteration {iteration}; lower the rate")
        history.append(Outer(float(value.detach()), float(norm)))
        with torch.no_grad():
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter -= rate * slope
        if project is not None:
            project()
    return history
