"""The metric H of a variable metric method: ⟨u, v⟩_H = ⟨u, Hv⟩ with H symmetric and positive definite.

A point u is a tensor or a NamedTuple of tensors, each of shape (items, own axes…). H acts on every item alone. A factor
G with H = GᵀG turns a map that is nonexpansive in the Euclidean norm into one that is so in ‖·‖_H:

    N_H(u) = G⁻¹ N(Gu),        ‖N_H(u) − N_H(v)‖_H = ‖N(Gu) − N(Gv)‖ ≤ ‖u − v‖_H

Source: Bauschke & Combettes 2017, Convex Analysis and Monotone Operator Theory, §20.4 (change of metric).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.packing import Packing, Unknown

Step = Callable[[Unknown], Unknown]
"""A map of points, structure and shapes kept."""


class Metric(ABC):
    """H. A subclass is final and implements `apply`, and `solve` where that has a closed form."""

    @abstractmethod
    def apply(self, u: Unknown) -> Unknown:
        """Return Hu, the structure and shapes of u."""

    def solve(self, u: Unknown) -> Unknown:
        """Return H⁻¹u, the structure and shapes of u: here by conjugate gradients, to rounding."""
        packing = Packing(u, batch_axes=1)
        target = packing.pack(u)
        return packing.unpack(_conjugate_gradients(lambda v: packing.pack(self.apply(packing.unpack(v))), target))

    def inner(self, u: Unknown, v: Unknown) -> Tensor:
        """⟨u, Hv⟩ of each item, shape (items,)."""
        packing = Packing(u, batch_axes=1)
        return (packing.pack(u) * packing.pack(self.apply(v))).sum(-1)

    def norm(self, u: Unknown) -> Tensor:
        """‖u‖_H of each item, shape (items,)."""
        return self.inner(u, u).clamp(min=0).sqrt()


@dataclass(frozen=True, eq=False)
class Euclidean(Metric):
    """H = I."""

    def apply(self, u: Unknown) -> Unknown:
        """The point u itself."""
        return u

    def solve(self, u: Unknown) -> Unknown:
        """The point u itself."""
        return u


@dataclass(frozen=True, eq=False)
class Dense(Metric):
    """H as a matrix over the coordinates of an item, in the order of `Packing`."""

    matrix: Tensor
    """H, shape (coordinates, coordinates)."""

    def __post_init__(self):
        """Check H.

        Raises:
            ValueError: if H is not symmetric and positive definite.
        """
        check_positive_definite(self.matrix)

    def apply(self, u: Unknown) -> Unknown:
        """Hu."""
        packing = Packing(u, batch_axes=1)
        return packing.unpack(packing.pack(u) @ self.matrix)

    def solve(self, u: Unknown) -> Unknown:
        """H⁻¹u."""
        packing = Packing(u, batch_axes=1)
        return packing.unpack(torch.linalg.solve(self.matrix, packing.pack(u).mT).mT)


def _conjugate_gradients(product: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """H⁻¹ of every row, in at most twice as many steps as there are coordinates."""
    x, residual = torch.zeros_like(target), target
    direction, energy = residual, residual.square().sum(-1, keepdim=True)
    small = (torch.finfo(target.dtype).eps ** 2) * energy.detach()
    for _ in range(2 * target.shape[1]):
        if bool((energy.detach() <= small).all()):
            break
        moved = product(direction)
        active = energy.detach() > small
        curvature = torch.where(active, (direction * moved).sum(-1, keepdim=True), 1.0)
        step = torch.where(active, energy / curvature, 0.0)
        x, residual = x + step * direction, residual - step * moved
        following = residual.square().sum(-1, keepdim=True)
        direction = residual + torch.where(active, following / torch.where(active, energy, 1.0), 0.0) * direction
        energy = following
    return x


def check_positive_definite(matrix: Tensor) -> None:
    """Check a matrix H.

    Raises:
        ValueError: if it is not symmetric up to rounding, or its smallest eigenvalue is not above 0; with its value.
    """
    size = matrix.detach().abs().amax()
    if bool((matrix - matrix.mT).detach().abs().amax() > 100 * torch.finfo(matrix.dtype).eps * size):
        raise ValueError("a metric H must be symmetric; use (H + H.T) / 2 if that is what is meant")
    smallest = float(torch.linalg.eigvalsh(matrix.detach())[0])
    if not smallest > 0:
        raise ValueError(f"a metric H must be positive definite; its smallest eigenvalue is {smallest:.3g}")


def dense(metric: Metric, like: Unknown) -> Tensor:
    """Return H of the first item as a matrix, shape (coordinates, coordinates), for tests and exact certificates.

    Args:
        like: a point with one item; only its structure, shapes and dtype count.
    """
    return columns(metric.apply, like)


def columns(linear: Step, like: Unknown) -> Tensor:
    """Return the matrix of a linear map of a point with one item, shape (coordinates, coordinates)."""
    packing = Packing(like, batch_axes=1)
    basis = torch.eye(packing.pack(like).shape[1], dtype=packing.dtype)
    rows = [packing.pack(linear(packing.unpack(row.unsqueeze(0)))).squeeze(0) for row in basis]
    return torch.stack(rows, dim=1)


def in_metric(network: Callable[[Tensor], Tensor], matrix: Tensor) -> Step:
    """Return N_H(u) = G⁻¹ N(Gu) with H = GᵀG (Cholesky): nonexpansive in ‖·‖_H where N is in the Euclidean norm.

    Args:
        network: N, takes and gives packed points, shape (items, coordinates).
        matrix: H, shape (coordinates, coordinates).

    Raises:
        ValueError: if H is not symmetric and positive definite.
    """
    check_positive_definite(matrix)
    lower = torch.linalg.cholesky(matrix)  # H = L Lᵀ: G = Lᵀ, and rows u Gᵀ = u L

    def step(u: Unknown) -> Unknown:
        packing = Packing(u, batch_axes=1)
        moved = network(packing.pack(u) @ lower)
        return packing.unpack(torch.linalg.solve_triangular(lower, moved, upper=False, left=False))

    return step
