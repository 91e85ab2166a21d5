"""Projections onto the simplex and the ℓ₁ ball, by sorting: exact in O(n log n), batched.

Source: Held, Wolfe & Crowder 1974; Duchi et al. 2008, Efficient projections onto the ℓ₁-ball, ICML, fig. 1.
"""

import torch
from torch import Tensor

from l2o.proximal.function import Scalar, per_item


def simplex_threshold(v: Tensor, radius: Scalar) -> Tensor:
    """Return θ with Σ max(v − θ, 0) = radius, shape (batch…, 1).

        θ = (Σ_{j ≤ k} u_j − radius) / k, where u is v in descending order and k the largest index with u_k > θ_k

    Args:
        v: shape (batch…, n).
        radius: at least 0, a number or one entry per item.
    """
    u = v.sort(-1, descending=True).values
    count = torch.arange(1, v.shape[-1] + 1, device=v.device)
    thresholds = (u.cumsum(-1) - per_item(radius, v, 1)) / count
    k = (u > thresholds).sum(-1, keepdim=True).clamp(min=1)  # none is where radius = 0
    return thresholds.gather(-1, k - 1)


def project_simplex(v: Tensor, radius: Scalar = 1.0) -> Tensor:
    """Return the nearest point with x ≥ 0 and Σ x = radius, over the last axis.

    >>> project_simplex(torch.tensor([2.0, 1.5, -1.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    # A shift of v changes nothing; with the largest entry at 0, what is kept is small and loses no digits.
    v = v - v.detach().amax(-1, keepdim=True)
    return (v - simplex_threshold(v, radius)).relu()


def project_l1_ball(v: Tensor, radius: Scalar = 1.0) -> Tensor:
    """Return the nearest point with ‖x‖₁ ≤ radius, over the last axis; v itself if it is inside.

    >>> project_l1_ball(torch.tensor([2.0, -1.5, 0.1]))
    tensor([ 0.7500, -0.2500,  0.0000])
    """
    size = v.abs()
    inside = size.sum(-1, keepdim=True) <= per_item(radius, v, 1)  # where the Jacobian is the identity, at 0 too
    return torch.where(inside, v, v.sign() * project_simplex(size, radius))
