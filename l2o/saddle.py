"""Min–max problems min_x max_y φ(x, y) as fixed points: gradient descent–ascent, and the extragradient method.

    V(z) = (∇_x φ, −∇_y φ),   z = (x, y);   V = 0 at a saddle point
    descent–ascent    z ← z − η V(z)
    extragradient     z ← z − η V(z − η V(z))

On φ = xᵀAy descent–ascent moves away from the saddle point whatever η is, by √(1 + η²σ²) a step for a singular value σ,
and the extragradient method comes nearer where ησ < 1, by √(1 − η²σ² + η⁴σ⁴). Source: Korpelevich 1976, Matecon 12; the
rates: the eigenvalues 1 ± iησ and 1 − η²σ² ± iησ of the steps. For `l2o.fixed_point`, with all its gradient modes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Saddle(NamedTuple):
    """The variables of both players."""

    x: Tensor
    """Of the player who minimises, any shape."""
    y: Tensor
    """Of the player who maximises, any shape."""


Field = Callable[[Saddle], Saddle]
"""z ↦ V(z)."""


def gradient_field(payoff: Callable[[Tensor, Tensor], Tensor]) -> Field:
    """Return V of a payoff φ(x, y), a function of torch with a value of shape (); V is differentiable."""

    def field(z: Saddle) -> Saddle:
        down, up = torch.func.grad(payoff, (0, 1))(z.x, z.y)
        return Saddle(down, -up)

    return field


def descent_ascent(field: Field, step_size: float | Tensor) -> Callable[[Saddle], Saddle]:
    """Return z ↦ z − η V(z); it diverges on bilinear problems.

    Args:
        step_size: η, the reciprocal of V's unit per unit of z.

    Raises:
        ValueError: if η is not positive.
    """
    _check(step_size)

    def step(z: Saddle) -> Saddle:
        return _moved(z, field(z), step_size)

    return step


def extragradient(field: Field, step_size: float | Tensor) -> Callable[[Saddle], Saddle]:
    """Return z ↦ z − η V(z − η V(z)); it converges where V is monotone with Lipschitz bound below 1 / η.

    Args:
        step_size: as for `descent_ascent`.

    Raises:
        ValueError: if η is not positive.
    """
    _check(step_size)

    def step(z: Saddle) -> Saddle:
        return _moved(z, field(_moved(z, field(z), step_size)), step_size)

    return step


def _moved(z: Saddle, direction: Saddle, step_size: float | Tensor) -> Saddle:
    return Saddle(z.x - step_size * direction.x, z.y - step_size * direction.y)


def _check(step_size: float | Tensor) -> None:
    if not bool(torch.as_tensor(step_size > 0).all()):
        raise ValueError(f"step_size must be positive, got {step_size}")
