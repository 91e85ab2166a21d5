"""Bilinear games, the simplest min–max problems, with their saddle point and the convergence rates in closed form.

min_x max_y  φ(x, y) = (x − x*)ᵀ A (y − y*)
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BilinearGame:
    """A game whose only saddle point is (x*, y*)."""

    matrix: Tensor
    """A, shape (n, n), invertible."""
    x: Tensor
    """x*, shape (n,)."""
    y: Tensor
    """y*, shape (n,)."""

    def payoff(self, x: Tensor, y: Tensor) -> Tensor:
        """Return φ(x, y), shape ()."""
        return (x - self.x) @ self.matrix @ (y - self.y)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ‖(x, y) − (x*, y*)‖, shape ()."""
        return torch.hypot((x - self.x).norm(), (y - self.y).norm())

    def rates(self, step_size: float) -> tuple[float, float]:
        """Return the factors by which the distance to (x*, y*) changes a step in the long run.

        Of descent–ascent, max √(1 + η²σ²), and of the extragradient method, max √(1 − η²σ² + η⁴σ⁴).
        """
        squares = (step_size * torch.linalg.svdvals(self.matrix)).square()
        return float((1 + squares).max().sqrt()), float((1 - squares + squares.square()).max().sqrt())


def random_game(size: int, smallest: float, generator: torch.Generator) -> BilinearGame:
    """Draw a game with singular values evenly spaced from `smallest` to 1, in float64.

    Raises:
        ValueError: if the size is below 1 or `smallest` outside (0, 1].
    """
    if size < 1 or not 0 < smallest <= 1:
        raise ValueError(f"need size ≥ 1 and smallest in (0, 1], got {size} and {smallest}")
    left, right = (torch.randn(size, size, generator=generator, dtype=torch.float64) for _ in range(2))
    values = torch.linspace(smallest, 1, size, dtype=torch.float64)
    matrix = torch.linalg.qr(left).Q * values @ torch.linalg.qr(right).Q
    x, y = torch.randn(2, size, generator=generator, dtype=torch.float64)
    return BilinearGame(matrix, x, y)
