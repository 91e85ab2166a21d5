"""How far an iterate is from optimal, at most: the duality gap, computed in float64.

    primal   F(x) = ½‖Ax − b‖² + g(x) + h(Kx)
    dual     D(u, w) = −½‖u‖² − ⟨u, b⟩ − g*(−Aᵀu − Kᵀw) − h*(w)  ≤  min F

The dual point is a multiple of the residual, u = s (Ax − b), with the s ≥ 0 that is feasible and makes D largest; at
the solution s = 1 and the gap is 0. Source: Fercoq, Gramfort & Salmon 2015, Mind the duality gap, ICML, eq. 12, which
is this for the ℓ₁ norm. Where g* is an indicator of a ball, s puts the point into the ball itself, not into the
slightly larger one that `conjugate_value` accepts: D is a bound up to rounding in float64, not up to sqrt(eps).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import (
    L1,
    L2,
    L21,
    Box,
    ElasticNet,
    L1Ball,
    L2Ball,
    Linf,
    LinfBall,
    Nonnegative,
    NonnegativeL1,
    NuclearNorm,
    Simplex,
    SquaredL2,
)
from l2o.proximal.function import ProximalFunction, item_norm, item_sum
from l2o.proximal.indicators import Indicator

_TINY = torch.finfo(torch.float64).tiny
_SUPPORTS = (Box, L1Ball, L2Ball, LinfBall, Simplex)
"""Bounded sets: g*(s y) = s g*(y), finite."""


class Certificate(NamedTuple):
    """Bounds on the objective, float64, each the shape of the batch axes."""

    primal: Tensor
    """F(x), in units of the objective; at the projection of x where g is the indicator of a set."""
    dual: Tensor
    """D(u, w) ≤ min F."""

    @property
    def gap(self) -> Tensor:
        """F(x) − D(u, w) ≥ F(x) − min F."""
        return self.primal - self.dual

    @property
    def relative_gap(self) -> Tensor:
        """The gap as a fraction of F(x); the gap itself where F(x) is 0."""
        return torch.where(self.primal > 0, self.gap / self.primal.clamp(min=_TINY), self.gap)

    def __repr__(self) -> str:
        """One line: the numbers of a single problem, or how many there are and the largest gaps."""
        if self.primal.numel() == 0:
            return f"Certificate(of {tuple(self.primal.shape)} problems)"
        gaps = f"gap {self.gap.max().item():.3g}, relative gap {self.relative_gap.max().item():.3g}"
        if self.primal.numel() == 1:
            return f"Certificate(primal {self.primal.item():.6g}, dual {self.dual.item():.6g}, {gaps})"
        return f"Certificate(of {tuple(self.primal.shape)} problems, largest {gaps})"


@torch.no_grad()
def certify(problem: Problem, x: Tensor, dual: Tensor | None = None) -> Certificate:
    """Return the primal and the dual value at x.

    For g = Nonnegative, whose multipliers are rarely feasible to the last digit, D is mostly 0: true and useless.

    Args:
        x: shape (batch…, item…). If g is an indicator, it is projected first, for what float32 holds is not quite in
            the set.
        dual: w, a guess of the dual variable of h, shape (batch…, *K.out_shape); None is 0.

    Raises:
        NotImplementedError: if the conjugate of g or h has no closed form.
    """
    problem, x = problem.double(), x.detach().double()
    if isinstance(problem.regularizer, Indicator):
        x = problem.regularizer.project(x)
    residual = problem.residual(x)
    ndim = len(problem.operator.out_shape)
    energy, inner = item_sum(residual.square(), ndim), item_sum(residual * problem.b, ndim)
    terms = [Ray(problem.regularizer, -problem.operator.adjoint(residual))]
    if problem.composite is not None:
        K = problem.composite.operator
        w = x.new_zeros((*problem.batch_shape, *K.out_shape)) if dual is None else dual.detach().double()
        terms = [Ray(problem.regularizer, terms[0].y - K.adjoint(w)), Ray(problem.composite.function, w)]
    return Certificate(problem.value(x), _best_dual(energy, inner, terms))


class Ray(NamedTuple):
    """A conjugate along a ray: s ↦ g*(s y)."""

    g: ProximalFunction
    """g."""
    y: Tensor
    """Shape (batch…, item…)."""

    def largest(self) -> Tensor | None:
        """The largest s with g*(s y) = 0, where g* is the indicator of a ball or a cone; None for other functions."""
        if (dual_norm := _dual_norm(self.g, self.y)) is None:
            return None
        strength = getattr(self.g, "strength", 0.0)  # a cone is a ball of radius 0 or inf
        return torch.where(dual_norm > 0, strength / dual_norm.clamp(min=_TINY), torch.inf)

    def value(self, s: Tensor) -> Tensor:
        """g*(s y) for s ≥ 0."""
        if isinstance(self.g, _SUPPORTS):
            return torch.where(s > 0, s * self.g.conjugate_value(self.y), 0.0)  # not 0 · inf, of a box without end
        if (largest := self.largest()) is not None:
            return torch.where(s <= largest, 0.0, torch.inf)
        return self.g.conjugate_value(s.reshape(s.shape + (1,) * self.g.ndim) * self.y)


def _best_dual(energy: Tensor, inner: Tensor, terms: list[Ray]) -> Tensor:
    """Return the largest −½s²‖r‖² − s⟨r, b⟩ − Σ g*(s y) of a few s; each of them is a bound.

    They are 0, 1, the maximum over s where the conjugates are linear or 0, and what the ℓ₁ part of g* leaves at 0.
    """
    slope = inner + sum(t.g.conjugate_value(t.y) for t in terms if isinstance(t.g, _SUPPORTS))
    limits = [limit for t in terms if (limit := t.largest()) is not None]
    cap = torch.stack([*limits, torch.full_like(energy, torch.inf)]).amin(0)
    free = torch.where(energy > 0, -slope / energy.clamp(min=_TINY), 1.0).clamp(min=0)
    candidates = [torch.zeros_like(energy), torch.ones_like(energy), free]
    candidates += [Ray(L1(t.g.strength, t.g.ndim), t.y).largest() for t in terms if isinstance(t.g, ElasticNet)]
    values = []
    for s in candidates:
        s = torch.minimum(s, cap).nan_to_num(posinf=1.0)  # pyright: ignore[reportArgumentType]
        dual = -0.5 * s.square() * energy - s * inner - sum(t.value(s) for t in terms)
        values.append(torch.where(dual.isnan(), -torch.inf, dual))
    return torch.stack(values).amax(0)


def _dual_norm(g: ProximalFunction, y: Tensor) -> Tensor | None:
    """Return the ν(y) with g*(y) = 0 where ν(y) ≤ strength and inf elsewhere; None if g* is not of that form."""
    ridge = getattr(g, "ridge", None)
    if isinstance(g, L1) or (isinstance(g, ElasticNet) and not isinstance(ridge, Tensor) and ridge == 0):
        return item_norm(y, g.ndim, torch.inf)
    if isinstance(g, NonnegativeL1 | Nonnegative):
        return y.flatten(-g.ndim).amax(-1).clamp(min=0)
    if isinstance(g, L2):
        return item_norm(y, g.ndim)
    if isinstance(g, L21):
        return torch.linalg.vector_norm(y, dim=g.axis, keepdim=True).flatten(-g.ndim).amax(-1)
    if isinstance(g, Linf):
        return item_norm(y, g.ndim, 1)
    if isinstance(g, NuclearNorm):
        return torch.linalg.svdvals(y).amax(-1)
    if isinstance(g, SquaredL2) and not isinstance(g.strength, Tensor) and g.strength == 0:
        return item_norm(y, g.ndim, torch.inf)
    return None
