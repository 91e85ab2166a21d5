"""A matrix that does not change, with what model-based rules need of it computed once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from l2o.proximal.function import Scalar
from l2o.proximal.matrix import Matrix
from l2o.proximal.operator import LinearOperator


@dataclass(frozen=True, eq=False)
class Dictionary(LinearOperator):
    """x ↦ Ax for one matrix, or for one per item, that keeps ‖A‖, AᵀA and the analytic weights.

    They are constants: no gradient reaches A through them. Use `Matrix` to differentiate with respect to A.
    """

    matrix: Tensor
    """A, shape (batch…, m, n)."""

    def __post_init__(self):
        """Check the matrix.

        Raises:
            ValueError: if it has fewer than two axes.
        """
        Matrix(self.matrix)

    @cached_property
    def _operator(self) -> Matrix:
        return Matrix(self.matrix)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """(n,)."""
        return self._operator.in_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(m,)."""
        return self._operator.out_shape

    def forward(self, x: Tensor) -> Tensor:
        """Ax."""
        return self._operator.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀy."""
        return self._operator.adjoint(y)

    def norm(self) -> Tensor:
        """The largest singular value, kept after the first call."""
        return self._norm

    def solver(self, rho: Scalar) -> Callable[[Tensor], Tensor]:
        """As `Matrix.solver`."""
        return self._operator.solver(rho)

    @cached_property
    def gram(self) -> Tensor:
        """AᵀA, shape (batch…, n, n)."""
        with torch.no_grad():
            return self.matrix.mT @ self.matrix

    @cached_property
    def analytic_weights(self) -> Tensor:
        """W with the least ‖WᵀA‖_F subject to w_iᵀa_i = 1, shape of A.

            w_i = (AAᵀ)⁺ a_i / (a_iᵀ (AAᵀ)⁺ a_i)

        Source: Liu et al. 2019, ALISTA, ICLR, eq. 16, whose minimiser is this in closed form (a Lagrange multiplier a
        column). Computed in float64. A column of zeros gets w_i = 0.
        """
        with torch.no_grad():
            A = self.matrix.double()
            w = torch.linalg.pinv(A @ A.mT, hermitian=True) @ A
            scale = (A * w).sum(-2, keepdim=True)
            return torch.where(scale > 0, w / scale, 0.0).to(self.matrix.dtype)

    @cached_property
    def symmetric_weights(self) -> Tensor:
        """W = MA of a symmetric M with the least ‖AᵀMA‖_F subject to w_iᵀa_i = 1: WᵀA is symmetric; shape of A.

            M = P diag(λ) Pᵀ,   P = (AAᵀ)⁺A,   (H ∘ H) λ = 1,   H = AᵀP

        Source: Chen et al. 2021, HyperLISTA, arXiv:2110.15900, §3.3, which writes M = GᵀG and finds it by iterations.
        This is the closed form: with Lagrange multipliers λ, AAᵀMAAᵀ = A diag(λ) Aᵀ, and the constraints give λ. M is
        positive semidefinite where λ ≥ 0, which incoherent columns imply. In float64; a column of zeros gets w_i = 0.
        """
        with torch.no_grad():
            A = self.matrix.double()
            P = torch.linalg.pinv(A @ A.mT, hermitian=True) @ A
            H = A.mT @ P
            one = (torch.linalg.diagonal(H) > 0).to(A).unsqueeze(-1)
            multipliers = torch.linalg.pinv(H.square(), hermitian=True) @ one
            return (P @ (multipliers * H)).to(self.matrix.dtype)

    @cached_property
    def pseudo_inverse(self) -> Tensor:
        """A⁺, shape (batch…, n, m); computed in float64."""
        with torch.no_grad():
            return torch.linalg.pinv(self.matrix.double()).to(self.matrix.dtype)

    @cached_property
    def _norm(self) -> Tensor:
        with torch.no_grad():
            return self._operator.norm()
