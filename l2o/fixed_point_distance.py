"""How far a point whose residual is small still is from every fixed point or root.

A residual r = g(u), or T(u) − u, is small near a root, but also where g hardly changes. For the vector e to any root
of the linearised g, A e = −r with A = ∂g/∂u, so that every y bounds its length from below:

    |⟨y, r⟩| = |⟨Aᵀy, e⟩|   ⇒   ‖e‖ ≥ |⟨y, r⟩| / ‖Aᵀy‖

Here y runs over the singular vectors of Aᵀ on span{r, Aᵀr, (Aᵀ)²r, …}. Whether A is symmetric or singular does not
matter: where roots are many, the nearest one counts. What the bound does not see: an error in directions whose part of
the residual is lost in rounding, or that the few products do not resolve; and kinks and curves of g on the way.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from l2o.fixed_point_loop import Run
from l2o.implicit import Policy, refuse, vjp
from l2o.linear_solvers import norms, ratio

_PRODUCTS = 4
"""Vector–Jacobian products of a check."""
_ROUNDING = 16
"""Relative errors of a residual, and of a small singular value, that are taken for rounding, in units of ε."""
_MAX_DISTANCE = 1e-2
"""Largest relative distance that is accepted, unless 100 tol is larger: a contraction by 0.99 passes at any tol."""


def require_nearness(end: Run, point: Tensor, image: Tensor, tol: float, policy: Policy, is_root: bool = False) -> None:
    """Refuse the gradient of a point that is far from every fixed point although its residual is small.

    Args:
        end: the end of the loop.
        point: u, shape (items, n), a leaf that requires grad.
        image: T(u), or g(u), with its graph.
        tol: largest residual.

    Raises:
        NotConvergedError: if the lower bound of an item is above max(1 %, 100 tol), unless the policy says otherwise.
    """
    if policy == "ignore" or not point.numel():
        return
    bound = distance(point, image, is_root)
    relative = ratio(bound, torch.maximum(norms(point.detach()), end.scale).to(bound.dtype))
    far = (relative > max(_MAX_DISTANCE, 100 * tol)) & (end.residual <= tol)
    if not bool(far.any()):
        return
    name, goal, cure = ("g", "root", "another solver") if is_root else ("T", "fixed point", "acceleration")
    refuse(
        f"the lower level did not converge, so the implicit gradient is not valid: {int(far.sum())} of {far.numel()} "
        f"items have a relative residual below tol={tol:.1e}, but {name} changes so slowly there that the nearest "
        f"{goal} is at an estimated relative distance of {float(relative[far].max()):.1e} or more. Take a smaller tol, "
        f'more steps, float64 or {cure}, or make the problem better conditioned; on_failure="warn" goes on',
        policy,
    )


def distance(point: Tensor, image: Tensor, is_root: bool) -> Tensor:
    """Return a lower bound of the distance to every fixed point or root, to first order; shape (items,).

    Args:
        point: u, shape (items, n), which requires grad.
        image: T(u), or g(u), with its graph.
    """

    def product(y: Tensor) -> Tensor:
        pulled = vjp(image, point, y) if image.requires_grad else torch.zeros_like(y)
        return pulled if is_root else pulled - y

    u = point.detach()
    residual = image.detach() if is_root else image.detach() - u
    eps = torch.finfo(u.dtype).eps
    noise = _ROUNDING * eps * norms(product(u) if is_root else u)
    V, W = _krylov(product, residual)
    _, S, Ch = torch.linalg.svd(W.nan_to_num(0.0, 0.0, 0.0), full_matrices=False)
    seen = (Ch @ (V.mT @ residual.to(V.dtype).unsqueeze(-1))).squeeze(-1).abs() - noise.unsqueeze(-1)
    sees = (seen > 0) & (S > _ROUNDING * eps * S[:, :1])
    return torch.where(sees, ratio(seen, S), 0.0).amax(-1)


def _krylov(product: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal y_1, …, y_k of span{r, Aᵀr, …}, and Aᵀ y_i; shapes (items, n, k), at least float32."""
    dtype = torch.promote_types(start.dtype, torch.float32)
    basis, images, new = [], [], start.to(dtype)
    for _ in range(min(_PRODUCTS, start.shape[1])):
        for old in basis * 2:  # twice: once leaves what cancellation makes
            new = new - (old * new).sum(-1, keepdim=True) * old
        basis.append(ratio(new, norms(new).unsqueeze(-1)))
        new = product(basis[-1].to(start.dtype)).to(dtype)
        images.append(new)
    return torch.stack(basis, -1), torch.stack(images, -1)
