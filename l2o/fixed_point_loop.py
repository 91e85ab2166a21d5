"""The loop u ← T(u) on packed unknowns: for a number of steps, or until every item stays where it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.anderson import Anderson
from l2o.implicit import Policy, explained, refuse
from l2o.linear_solvers import norms, ratio


@dataclass(frozen=True)
class Loop:
    """How long to iterate."""

    steps: int | None
    """Make exactly so many, without looking; None: until all items have converged."""
    max_steps: int
    """Give up after these many, where steps is None."""
    tol: float
    """Residual at which an item has converged."""
    acceleration: Anderson | None = None
    """None: plain steps."""


_CURE = 'Allow more steps, accept a larger residual, accelerate, make T a contraction, or use gradient="unrolled"'
_ROOT_CURE = "Start nearer to a root, allow more steps, take another solver, or accept a larger tol; g may have no root"


_NO_VMAP = (
    "inside torch.vmap a loop cannot look whether items have converged: give steps=, or the items as batch axes "
    '(batch_axes=), or use gradient="implicit" with params'
)


class Run(NamedTuple):
    """Where the loop has come."""

    u: Tensor
    """shape (items, n)."""
    steps: Tensor
    """Steps of each item, int64, shape (items,)."""
    residual: Tensor
    """Relative residual where it was measured last, shape (items,); inf before the first step."""
    scale: Tensor
    """‖T(u_0) − u_0‖, of the first step that moves the item; shape (items,), 0 before. Of a root: ‖u − u_0‖."""

    def measured(self, image: Tensor) -> "Run":
        """Return it with ‖T(u) − u‖ / max(‖u‖, ‖T(u_0) − u_0‖) of each item: no unit, and 0 where the change is.

        It is inf where ‖u‖ overflows: an iterate that grows without end has not converged.
        """
        u = self.u.detach()
        change = norms(image.detach() - u)
        scale = torch.where(self.scale > 0, self.scale, change)
        size = torch.maximum(norms(u), scale)
        return self._replace(residual=torch.where(size.isinf(), torch.inf, ratio(change, size)), scale=scale)

    def settled(self, image: Tensor) -> "Run":
        """Measure at the end: rounding must not undo what the loop has found, so that the smaller residual counts."""
        end = self.measured(image)
        return end._replace(residual=torch.minimum(end.residual, self.residual))


def run(step: Callable[[Tensor], Tensor], u: Tensor, loop: Loop, before: Run | None = None) -> Run:
    """Iterate from u, shape (items, n), or from the end of another run.

    An item whose residual is at most tol stays exactly where it is. It is looked at again after each step, so that an
    item that others have moved goes on. A value that is not finite ends a loop without a number of steps.
    """
    nothing = u.detach().new_zeros(u.shape[0])
    end = before or Run(u, nothing.long(), nothing + torch.inf, nothing)
    advance = loop.acceleration.stepper() if loop.acceleration else None
    counted = loop.steps is not None
    for made in range(loop.max_steps + 1 if loop.steps is None else loop.steps):
        image = step(end.u)
        end = end.measured(image)
        active = end.residual > loop.tol
        if not counted and (made == loop.max_steps or not _goes_on(active, end.residual)):
            break
        new = image if advance is None else advance(end.u, image)
        new = new if counted else torch.where(active.unsqueeze(-1), new, end.u)
        end = end._replace(u=new, steps=end.steps + (1 if counted else active.long()))
    return end


def _goes_on(active: Tensor, residual: Tensor) -> bool:
    with explained(_NO_VMAP):
        return bool(active.any() & torch.isfinite(residual).all())


def require_convergence(end: Run, tol: float, policy: Policy, is_root: bool = False) -> None:
    """Refuse the gradient of a point that is no fixed point, or no root.

    Raises:
        NotConvergedError: if it is not, unless the policy says otherwise.
    """
    open_ = ~(end.residual <= tol)
    if not bool(open_.any()):
        return
    worst = float(end.residual.nan_to_num(nan=torch.inf, posinf=torch.inf).max())
    made = int(end.steps.max())
    after = f" after {made} steps" if made or not is_root else ""  # a solver of one's own counts none
    refuse(
        f"the lower level did not converge, so the implicit gradient is not valid: {int(open_.sum())} of "
        f"{open_.numel()} items have a relative residual {'‖g(u)‖' if is_root else '‖T(u) − u‖'} above tol={tol:.1e} "
        f'(the worst {worst:.1e}){after}. {_ROOT_CURE if is_root else _CURE}; on_failure="warn" goes on',
        policy,
    )
