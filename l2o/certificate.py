"""How far an iterate is from optimal, at most: the duality gap, computed in float64.

    primal   F(x) = ½‖Ax − b‖² + g(x)
    dual     D(u) = −½‖u‖² − ⟨u, b⟩ − g*(−Aᵀu)  ≤  min F

The dual point is a multiple of the residual, u = s (Ax − b), with the s that is feasible and makes D largest; at the
solution s = 1 and the gap is 0. Source: Fercoq, Gramfort & Salmon 2015, Mind the duality gap, ICML, eq. 12.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import L1, NonnegativeL1
from l2o.proximal.function import ProximalFunction, item_norm, item_sum

_TINY = torch.finfo(torch.float64).tiny


class Certificate(NamedTuple):
    """Bounds on the objective, float64, each the shape of the batch axes."""

    primal: Tensor
    """F(x), in units of the objective."""
    dual: Tensor
    """D(u) ≤ min F."""

    @property
    def gap(self) -> Tensor:
        """F(x) − D(u) ≥ F(x) − min F."""
        return self.primal - self.dual

    @property
    def relative_gap(self) -> Tensor:
        """The gap as a fraction of F(x); 0 where F(x) is 0."""
        return torch.where(self.primal > 0, self.gap / self.primal.clamp(min=_TINY), self.gap)


@torch.no_grad()
def certify(problem: Problem, x: Tensor) -> Certificate:
    """Return the primal and the dual value at x.

    Args:
        x: shape (batch…, item…).

    Raises:
        NotImplementedError: if the regularizer's conjugate has no closed form.
    """
    problem, x = problem.double(), x.double()
    residual = problem.residual(x)
    ndim = len(problem.operator.out_shape)
    y = -problem.operator.adjoint(residual)
    energy, inner = item_sum(residual.square(), ndim), item_sum(residual * problem.b, ndim)
    scale = torch.where(energy > 0, -inner / energy.clamp(min=_TINY), 1.0)  # the free maximum of D where g* is 0
    largest = _largest_scale(problem.regularizer, y)
    if largest is None:  # g* is finite everywhere and not 0: s = 1, which is right at the solution
        scale, conjugate = torch.ones_like(scale), problem.regularizer.conjugate_value(y)
    else:
        scale, conjugate = torch.minimum(scale.clamp(min=0), largest), 0.0
    dual = -0.5 * scale.square() * energy - scale * inner - conjugate
    return Certificate(problem.value(x), dual)


def _largest_scale(g: ProximalFunction, y: Tensor) -> Tensor | None:
    """Return the largest s with g*(s y) = 0 for functions whose conjugate is an indicator; None for others."""
    if isinstance(g, L1):
        size = item_norm(y, g.ndim, torch.inf)
    elif isinstance(g, NonnegativeL1):
        size = y.flatten(-g.ndim).amax(-1).clamp(min=0)
    else:
        return None
    return torch.where(size > 0, g.strength / size.clamp(min=_TINY), torch.inf)
