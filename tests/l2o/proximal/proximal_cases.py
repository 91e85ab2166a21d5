"""Every function and every operator once, in float64, with what cvxpy calls it. A new one joins by adding one line."""

from collections.abc import Callable
from typing import NamedTuple

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from l2o.proximal import (
    L1,
    L2,
    L21,
    AffineSet,
    Box,
    ChannelConvolution,
    CircularConvolution,
    Diagonal,
    ElasticNet,
    Gradient,
    HalfSpace,
    L1Ball,
    L2Ball,
    LinearOperator,
    Linf,
    LinfBall,
    Matrix,
    Nonnegative,
    NonnegativeL1,
    NuclearNorm,
    ProximalFunction,
    Simplex,
    SquaredL2,
    TotalVariation,
)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Case(NamedTuple):
    """A function of items of one shape."""

    make: Callable[[], ProximalFunction]
    shape: tuple[int, ...]
    cvxpy: Callable[[cp.Variable], tuple[cp.Expression | float, list[cp.Constraint]]]
    """Objective and constraints."""


MATRIX, TARGET = draw(2, 5, seed=1), draw(2, seed=2)
REDUNDANT = torch.cat([MATRIX, MATRIX.sum(0, keepdim=True)])
REDUNDANT_TARGET = torch.cat([TARGET, TARGET.sum(0, keepdim=True)])
NORMAL, CENTER = draw(5, seed=3), draw(5, seed=4)
LOWER, UPPER = -draw(5, seed=5).abs(), draw(5, seed=6).abs()


def variation(x: cp.Variable, isotropic: bool) -> cp.Expression:
    down = cp.vstack([x[1:, :] - x[:-1, :], np.zeros((1, x.shape[1]))])
    right = cp.hstack([x[:, 1:] - x[:, :-1], np.zeros((x.shape[0], 1))])
    both = cp.vstack([cp.vec(down, order="C"), cp.vec(right, order="C")])
    return cp.sum(cp.norm(both, 2 if isotropic else 1, axis=0))


CASES: dict[str, Case] = {
    "l1": Case(lambda: L1(0.6), (5,), lambda x: (0.6 * cp.norm1(x), [])),
    "l1-of-a-matrix": Case(lambda: L1(0.6, ndim=2), (2, 3), lambda x: (0.6 * cp.sum(cp.abs(x)), [])),
    "nonnegative-l1": Case(lambda: NonnegativeL1(0.6), (5,), lambda x: (0.6 * cp.sum(x), [x >= 0])),
    "l2": Case(lambda: L2(0.8), (5,), lambda x: (0.8 * cp.norm2(x), [])),
    "squared-l2": Case(lambda: SquaredL2(0.8, CENTER), (5,), lambda x: (0.4 * cp.sum_squares(x - CENTER.numpy()), [])),
    "linf": Case(lambda: Linf(0.7), (5,), lambda x: (0.7 * cp.norm_inf(x), [])),
    "linf-of-a-matrix": Case(lambda: Linf(0.7, ndim=2), (2, 3), lambda x: (0.7 * cp.max(cp.abs(x)), [])),
    "elastic-net": Case(
        lambda: ElasticNet(0.5, 0.3), (5,), lambda x: (0.5 * cp.norm1(x) + 0.15 * cp.sum_squares(x), [])
    ),
    "l21-rows": Case(lambda: L21(0.6), (3, 4), lambda x: (0.6 * cp.sum(cp.norm(x, 2, axis=1)), [])),
    "l21-columns": Case(lambda: L21(0.6, axis=-2), (3, 4), lambda x: (0.6 * cp.sum(cp.norm(x, 2, axis=0)), [])),
    "nuclear": Case(lambda: NuclearNorm(0.8), (3, 4), lambda x: (0.8 * cp.normNuc(x), [])),
    "nuclear-tall": Case(lambda: NuclearNorm(0.8), (4, 3), lambda x: (0.8 * cp.normNuc(x), [])),
    "tv-isotropic": Case(lambda: TotalVariation(0.3, steps=300), (3, 4), lambda x: (0.3 * variation(x, True), [])),
    "tv-anisotropic": Case(
        lambda: TotalVariation(0.3, isotropic=False, steps=300), (3, 4), lambda x: (0.3 * variation(x, False), [])
    ),
    "tv-of-a-signal": Case(
        lambda: TotalVariation(0.4, ndim=1, steps=300), (7,), lambda x: (0.4 * cp.norm1(cp.diff(x)), [])
    ),
    "nonnegative": Case(lambda: Nonnegative(), (5,), lambda x: (0.0, [x >= 0])),
    "box": Case(lambda: Box(-0.3, 0.5), (5,), lambda x: (0.0, [x >= -0.3, x <= 0.5])),
    "box-per-coordinate": Case(
        lambda: Box(LOWER, UPPER), (5,), lambda x: (0.0, [x >= LOWER.numpy(), x <= UPPER.numpy()])
    ),
    "simplex": Case(lambda: Simplex(1.3), (5,), lambda x: (0.0, [x >= 0, cp.sum(x) == 1.3])),
    "l1-ball": Case(lambda: L1Ball(1.2), (5,), lambda x: (0.0, [cp.norm1(x) <= 1.2])),
    "l1-ball-of-matrices": Case(lambda: L1Ball(1.2, ndim=2), (2, 3), lambda x: (0.0, [cp.sum(cp.abs(x)) <= 1.2])),
    "l2-ball": Case(lambda: L2Ball(0.9), (5,), lambda x: (0.0, [cp.norm2(x) <= 0.9])),
    "linf-ball": Case(lambda: LinfBall(0.4), (5,), lambda x: (0.0, [cp.norm_inf(x) <= 0.4])),
    "affine": Case(
        lambda: AffineSet.from_system(MATRIX, TARGET), (5,), lambda x: (0.0, [MATRIX.numpy() @ x == TARGET.numpy()])
    ),
    "affine-redundant": Case(
        lambda: AffineSet.from_system(REDUNDANT, REDUNDANT_TARGET),
        (5,),
        lambda x: (0.0, [MATRIX.numpy() @ x == TARGET.numpy()]),
    ),
    "half-space": Case(lambda: HalfSpace(NORMAL, -0.4), (5,), lambda x: (0.0, [NORMAL.numpy() @ x <= -0.4])),
}

OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "matrix-wide": lambda: Matrix(draw(3, 5)),
    "matrix-tall": lambda: Matrix(draw(5, 3)),
    "diagonal": lambda: Diagonal(draw(5)),
    "diagonal-of-an-image": lambda: Diagonal(draw(2, 3), ndim=2),
    "convolution-of-a-signal": lambda: CircularConvolution.from_kernel(draw(3), (7,)),
    "convolution-of-an-image": lambda: CircularConvolution.from_kernel(draw(3, 2), (4, 6)),
    "convolution-of-an-odd-image": lambda: CircularConvolution.from_kernel(draw(5, 3), (5, 3)),
    "channels-of-a-signal": lambda: ChannelConvolution.from_kernel(draw(2, 3, 3), (6,)),
    "channels-of-an-image": lambda: ChannelConvolution.from_kernel(draw(3, 2, 3, 3), (4, 5)),
    "gradient-of-a-signal": lambda: Gradient((6,)),
    "gradient-of-an-image": lambda: Gradient((4, 3)),
    "gradient-of-a-row": lambda: Gradient((1, 5)),
    "adjoint": lambda: Matrix(draw(3, 5)).T,
    "adjoint-of-the-gradient": lambda: Gradient((4, 3)).T,
    "composition": lambda: Matrix(draw(4, 3)) @ Matrix(draw(3, 5, seed=1)),
    "gradient-of-a-blur": lambda: Gradient((4, 3)) @ CircularConvolution.from_kernel(draw(3, 3), (4, 3)),
}
BOUNDED = ("composition", "gradient-of-a-blur")
"""Operators whose norm is an upper bound only; they have no solver either."""
