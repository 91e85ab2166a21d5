"""Finite differences of signals and images, with Neumann boundary: no difference across the border.

    (∇x)_{d, i} = x_{i + e_d} − x_i,  0 at the last index;   ∇ᵀ = −div

∇ᵀ∇ is diagonal in the basis of the discrete cosine transform (DCT-II), with the eigenvalues Σ_d 4 sin²(π k_d / 2n_d).
Source: Chambolle 2004, An algorithm for total variation minimization, J. Math. Imaging Vis. 20; Strang 1999, The
discrete cosine transform, SIAM Review 41(1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.proximal.function import Scalar
from l2o.proximal.operator import LinearOperator, check_item, check_rho, rho_per_item


@dataclass(frozen=True)
class Gradient(LinearOperator):
    """∇ in one or more dimensions; the norm is exact.

    It maps (…, height, width) to (…, 2, height, width): the direction is the axis before the signal's own.
    """

    shape: tuple[int, ...]
    """Size of a signal (n,) or of an image (height, width)."""

    def __post_init__(self):
        """Check the size.

        Raises:
            ValueError: if there is no axis or one is empty.
        """
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape needs one or more positive sizes, got {self.shape}")

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The size of the signal."""
        return tuple(self.shape)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(dimensions, *shape)."""
        return (len(self.shape), *self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """∇x."""
        check_item(x, self.in_shape)
        differences = []
        for axis in range(-len(self.shape), 0):
            last = x.narrow(axis, -1, 1)
            differences.append(x.diff(dim=axis, append=last))
        return torch.stack(differences, -len(self.shape) - 1)

    def adjoint(self, y: Tensor) -> Tensor:
        """−div y."""
        check_item(y, self.out_shape)
        total = torch.zeros_like(y.select(-len(self.shape) - 1, 0))
        for direction, size in enumerate(self.shape):
            axis = direction - len(self.shape)
            inner = y.select(-len(self.shape) - 1, direction).narrow(axis, 0, size - 1)
            border = torch.zeros_like(total.narrow(axis, 0, 1))
            total = total - inner.diff(dim=axis, prepend=border, append=border)
        return total

    def norm(self) -> Tensor:
        """sqrt(Σ_d 4 sin²(π (n_d − 1) / 2n_d)), below 2 sqrt(dimensions); float64, shape ()."""
        squares = sum(4 * math.sin(math.pi * (n - 1) / (2 * n)) ** 2 for n in self.shape)
        return torch.tensor(math.sqrt(squares), dtype=torch.float64)

    def solver(self, rho: Scalar) -> Callable[[Tensor], Tensor]:
        """Division by eigenvalue + ρ between two cosine transforms, each a product with a matrix per axis."""
        check_rho(rho)

        def inverse(b: Tensor) -> Tensor:
            check_item(b, self.in_shape)
            bases = [_cosines(n, b) for n in self.shape]
            coefficients = _along_axes(b, bases)
            coefficients = coefficients / (self._eigenvalues(b) + rho_per_item(rho, len(self.shape)))
            return _along_axes(coefficients, [basis.mT for basis in bases])

        return inverse

    def _eigenvalues(self, like: Tensor) -> Tensor:
        """Eigenvalues of ∇ᵀ∇, shape `shape`."""
        total = like.new_zeros(self.shape)
        for direction, n in enumerate(self.shape):
            k = torch.arange(n, dtype=like.dtype, device=like.device)
            values = 4 * torch.sin(k * (math.pi / (2 * n))).square()
            total = total + values.reshape(-1, *(1,) * (len(self.shape) - direction - 1))
        return total


def _cosines(n: int, like: Tensor) -> Tensor:
    """Orthonormal DCT-II, a frequency per row, shape (n, n)."""
    k = torch.arange(n, dtype=torch.float64, device=like.device)
    basis = torch.cos(math.pi / n * torch.outer(k, k + 0.5)) * math.sqrt(2 / n)
    return torch.cat([basis[:1] / math.sqrt(2), basis[1:]]).to(like.dtype)


def _along_axes(x: Tensor, matrices: list[Tensor]) -> Tensor:
    """Multiply the last axes of x by one matrix each."""
    for direction, matrix in enumerate(matrices):
        axis = direction - len(matrices)
        x = (x.movedim(axis, -1) @ matrix.mT).movedim(-1, axis)
    return x
