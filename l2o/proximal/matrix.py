"""Operators given by their entries: a matrix, a diagonal."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.proximal.function import Scalar, item_norm
from l2o.proximal.operator import LinearOperator, check_item, check_rho, rho_per_item


@dataclass(frozen=True, eq=False)
class Matrix(LinearOperator):
    """x ↦ Ax for one matrix, or for one per item; the norm is exact."""

    matrix: Tensor
    """A, shape (batch…, m, n)."""

    def __post_init__(self):
        """Check the matrix.

        Raises:
            ValueError: if it has fewer than two axes.
        """
        if self.matrix.dim() < 2:
            raise ValueError(f"expected a matrix of shape (…, m, n), got {tuple(self.matrix.shape)}")

    @property
    def in_shape(self) -> tuple[int, ...]:
        """(n,)."""
        return (self.matrix.shape[-1],)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(m,)."""
        return (self.matrix.shape[-2],)

    def forward(self, x: Tensor) -> Tensor:
        """Ax."""
        check_item(x, self.in_shape)
        return _multiply(self.matrix, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀy."""
        check_item(y, self.out_shape)
        return _multiply(self.matrix.mT, y)

    def norm(self) -> Tensor:
        """The largest singular value, by SVD."""
        return torch.linalg.svdvals(self.matrix).amax(-1)

    def solver(self, rho: Scalar) -> Callable[[Tensor], Tensor]:
        """Cholesky of the smaller of AᵀA + ρI and, by the Woodbury identity, AAᵀ + ρI."""
        check_rho(rho)
        A = self.matrix
        wide = A.shape[-2] < A.shape[-1]
        gram = A @ A.mT if wide else A.mT @ A
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        factor = torch.linalg.cholesky(gram + rho_per_item(rho, 2) * identity)
        scale = rho_per_item(rho, 1)

        def inverse(b: Tensor) -> Tensor:
            check_item(b, self.in_shape)
            if wide:
                return (b - _multiply(A.mT, _cholesky_solve(factor, _multiply(A, b)))) / scale
            return _cholesky_solve(factor, b)

        return inverse


def _multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """Matrix times vector, batched; one matrix for all items is one matrix product."""
    if matrix.dim() == 2:
        return x @ matrix.mT
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def _cholesky_solve(factor: Tensor, b: Tensor) -> Tensor:
    if factor.dim() == 2:  # items as columns of one right-hand side
        flat = b.reshape(-1, b.shape[-1])
        return torch.cholesky_solve(flat.mT, factor).mT.reshape(b.shape)
    return torch.cholesky_solve(b.unsqueeze(-1), factor).squeeze(-1)


@dataclass(frozen=True, eq=False)
class Diagonal(LinearOperator):
    """x ↦ d ⊙ x; the norm is exact."""

    diagonal: Tensor
    """d, shape (batch…, item…)."""
    ndim: int = 1
    """Number of axes of one item."""

    def __post_init__(self):
        """Check the axes.

        Raises:
            ValueError: if the diagonal has fewer axes than an item, or an item none.
        """
        if not 1 <= self.ndim <= self.diagonal.dim():
            raise ValueError(f"ndim must be from 1 to {self.diagonal.dim()}, the axes of the diagonal; got {self.ndim}")

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape of one diagonal."""
        return tuple(self.diagonal.shape[-self.ndim :])

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of one diagonal."""
        return self.in_shape

    def forward(self, x: Tensor) -> Tensor:
        """The product d ⊙ x."""
        check_item(x, self.in_shape)
        return self.diagonal * x

    def adjoint(self, y: Tensor) -> Tensor:
        """The product d ⊙ y."""
        return self.forward(y)

    def norm(self) -> Tensor:
        """The largest |d|."""
        return item_norm(self.diagonal, self.ndim, torch.inf)

    def solver(self, rho: Scalar) -> Callable[[Tensor], Tensor]:
        """Division by d² + ρ."""
        check_rho(rho)
        denominator = self.diagonal.square() + rho_per_item(rho, self.ndim)

        def inverse(b: Tensor) -> Tensor:
            check_item(b, self.in_shape)
            return b / denominator

        return inverse
