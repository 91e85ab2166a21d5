"""A bilevel problem with a known solution, whose inner fixed points are not unique.

    T(u, ω) = projection onto {u : Au = b + Cω},    ℓ(u, ω) = ½ Σ w_i (u_i − t_i)² + (ρ/2)‖ω‖²,    ω ∈ [−2, 2]^p

Every point of the affine set is fixed. Its point of least ℓ and φ(ω) = min ℓ have closed forms: with W = diag(w) and
S = A W⁻¹ Aᵀ,

    λ(ω) = S⁻¹(b + Cω − At),   u*(ω) = t + W⁻¹Aᵀλ,   φ(ω) = ½ λᵀSλ + (ρ/2)‖ω‖²,   ∇φ(ω) = Cᵀλ + ρω

and ω* solves the linear system ∇φ(ω) = 0. T may project in the Euclidean norm or in ‖·‖_W; the fixed points are the
same. Not realisable: φ(ω*) > 0, so λ ≠ 0 pulls u off the set all the time.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from l2o.metric import Metric

BOX = 2.0
"""Half width of Ω."""


@dataclass(frozen=True, eq=False)
class AffineBilevel:
    """The problem; all tensors float64."""

    matrix: Tensor
    """A, shape (m, n)."""
    offset: Tensor
    """b, shape (m,)."""
    influence: Tensor
    """C, shape (m, p)."""
    weights: Tensor
    """w, shape (n,)."""
    target: Tensor
    """t, shape (n,)."""
    ridge: float = 0.5
    """ρ."""

    @classmethod
    def sample(cls, seed: int = 0, rows: int = 6, columns: int = 20, hyper: int = 3) -> "AffineBilevel":
        """Return a random instance with weights w between 1 and 2."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        weights = 1 + torch.rand(columns, generator=generator, dtype=torch.float64)
        matrix = draw(rows, columns) / columns**0.5
        return cls(matrix, draw(rows), draw(rows, hyper), weights, draw(columns))

    @cached_property
    def _inverses(self) -> tuple[Tensor, Tensor]:
        """A⁺ of the Euclidean projection and of the one in W, each of shape (n, m)."""
        A, scaled = self.matrix, self.matrix / self.weights
        return A.mT @ torch.linalg.inv(A @ A.mT), scaled.mT @ torch.linalg.inv(scaled @ A.mT)

    def step(self, u: Tensor, omega: Tensor, weighted: bool = False) -> Tensor:
        """T(u, ω), shape (items, n): the nearest fixed point in the Euclidean norm, or in ‖·‖_W."""
        residual = u @ self.matrix.mT - self.offset - self.influence @ omega
        return u - residual @ self._inverses[weighted].mT

    def upper(self, u: Tensor, omega: Tensor) -> Tensor:
        """ℓ(u, ω) of each item, shape (items,)."""
        return 0.5 * (self.weights * (u - self.target).square()).sum(-1) + 0.5 * self.ridge * omega.square().sum()

    def multiplier(self, omega: Tensor) -> Tensor:
        """λ(ω), shape (m,)."""
        S = (self.matrix / self.weights) @ self.matrix.mT
        return torch.linalg.solve(S, self.offset + self.influence @ omega - self.matrix @ self.target)

    def best_point(self, omega: Tensor) -> Tensor:
        """u*(ω) = argmin of ℓ over the fixed points, shape (n,)."""
        return self.target + self.matrix.mT @ self.multiplier(omega) / self.weights

    def value(self, omega: Tensor) -> Tensor:
        """φ(ω), shape ()."""
        return self.upper(self.best_point(omega).unsqueeze(0), omega)[0]

    def slope(self, omega: Tensor) -> Tensor:
        """∇φ(ω), shape (p,)."""
        return self.influence.mT @ self.multiplier(omega) + self.ridge * omega

    def best_omega(self) -> Tensor:
        """ω*, shape (p,).

        Raises:
            ValueError: if it is not inside Ω, so that the closed form does not hold.
        """
        S = (self.matrix / self.weights) @ self.matrix.mT
        solved = torch.linalg.solve(S, self.influence)
        hessian = self.influence.mT @ solved + self.ridge * torch.eye(solved.shape[1], dtype=solved.dtype)
        best = torch.linalg.solve(hessian, -(solved.mT @ (self.offset - self.matrix @ self.target)))
        if float(best.abs().amax()) >= BOX:
            raise ValueError(f"the minimiser {best.tolist()} lies outside of Ω, the box of half width {BOX}")
        return best


class WeightedMetric(Metric):
    """H = diag(w).

    Args:
        weights: w, positive, shape (n,).
    """

    def __init__(self, weights: Tensor):
        self._weights = weights

    def apply(self, u: Tensor) -> Tensor:
        """Hu."""
        return self._weights * u

    def solve(self, u: Tensor) -> Tensor:
        """H⁻¹u."""
        return u / self._weights
