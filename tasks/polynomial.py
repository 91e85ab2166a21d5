"""Polynomials fitted to noisy values of a function, with a weight decay for every degree: all in closed form.

    L(w; λ) = ‖Φw − y‖² / (2n) + ½ Σ_d exp(λ_d) w_d²,   w(λ) = (ΦᵀΦ / n + diag exp λ)⁻¹ Φᵀy / n

Φ are Legendre polynomials of mean square 1 on [−1, 1]. The textbook example of too little and too much regularisation:
Bishop 2006, Pattern Recognition and Machine Learning, §1.1.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Points(NamedTuple):
    """Values of a function."""

    x: Tensor
    """shape (n,), in [−1, 1]."""
    y: Tensor
    """shape (n,)."""


@dataclass(frozen=True, eq=False)
class PolynomialRegression:
    """Points to fit, points to choose λ with, and the truth."""

    degree: int
    """Greatest power."""
    train: Points
    """Noisy."""
    valid: Points
    """Noisy."""
    test: Points
    """Without noise, evenly spaced."""

    def zero_weights(self) -> Tensor:
        """Return w = 0, shape (degree + 1,)."""
        return self.train.y.new_zeros(self.degree + 1)

    def predict(self, weights: Tensor, x: Tensor) -> Tensor:
        """Return Φ(x) w, the shape of x."""
        return legendre(x, self.degree) @ weights

    def loss(self, weights: Tensor, points: Points) -> Tensor:
        """Return ½ mean (Φw − y)², shape ()."""
        return 0.5 * (self.predict(weights, points.x) - points.y).square().mean()

    def gradient(self, weights: Tensor, log_decay: Tensor) -> Tensor:
        """Return ∇L(w; λ), the shape of w; λ of shape () or (degree + 1,)."""
        features = legendre(self.train.x, self.degree)
        return features.mT @ (features @ weights - self.train.y) / len(features) + log_decay.exp() * weights

    def closed_form(self, log_decay: Tensor) -> Tensor:
        """Return w(λ), shape (degree + 1,), differentiable."""
        features = legendre(self.train.x, self.degree)
        decays = log_decay.exp().expand(self.degree + 1).diag()
        return torch.linalg.solve(
            features.mT @ features / len(features) + decays, features.mT @ self.train.y / len(features)
        )


def legendre(x: Tensor, degree: int) -> Tensor:
    """Return √(2d + 1) P_d(x), d = 0 … degree, shape (n, degree + 1), by Bonnet's recursion; x of shape (n,)."""
    columns = [torch.ones_like(x), x]
    for d in range(1, degree):
        columns.append(((2 * d + 1) * x * columns[d] - d * columns[d - 1]) / (d + 1))
    scale = (2 * torch.arange(degree + 1, dtype=x.dtype, device=x.device) + 1).sqrt()
    return torch.stack(columns[: degree + 1], 1) * scale


def noisy_wave(
    generator: torch.Generator, degree: int = 15, sizes: tuple[int, int] = (20, 40), noise: float = 0.3
) -> PolynomialRegression:
    """Draw points of sin(πx) + x/2, which is smooth, so that high degrees carry noise alone; in float64.

    Args:
        sizes: points to train and to validate, uniform on [−1, 1].
        noise: standard deviation of the Gaussian noise, in units of y.

    Raises:
        ValueError: if the degree or a size is below 1, or the noise negative.
    """
    if min(degree, *sizes) < 1 or noise < 0:
        raise ValueError(f"need degree ≥ 1, sizes ≥ 1 and noise ≥ 0, got {degree}, {sizes} and {noise}")

    def truth(x: Tensor) -> Tensor:
        return torch.sin(math.pi * x) + x / 2

    def draw(n: int) -> Points:
        x = 2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1
        return Points(x, truth(x) + noise * torch.randn(n, generator=generator, dtype=torch.float64))

    grid = torch.linspace(-1, 1, 401, dtype=torch.float64)
    return PolynomialRegression(degree, draw(sizes[0]), draw(sizes[1]), Points(grid, truth(grid)))
