"""Proximal operators, projections and linear operators: stateless, batched, differentiable, under `vmap` too.

A `ProximalFunction` has `value(x)`, `prox(v, step)` and, where it is known, `conjugate_value(y)`; `.conjugate()` is its
convex conjugate. A `LinearOperator` has `forward`, `adjoint`, `norm()` and, where it exists, `solve(b, rho)`. The
conventions, above all what is a batch axis, stand in `function.py` and `operator.py`.

>>> import torch
>>> v = torch.tensor([[3.0, 0.5], [0.2, -2.0]])
>>> L1(0.5).prox(v, step=2.0)
tensor([[ 2.,  0.],
        [ 0., -1.]])
>>> L1(0.5).conjugate().prox(v)
tensor([[ 0.5000,  0.5000],
        [ 0.2000, -0.5000]])
"""

from l2o.proximal.convolution import ChannelConvolution, CircularConvolution
from l2o.proximal.dictionary import Dictionary
from l2o.proximal.differences import Gradient
from l2o.proximal.function import Conjugate, ProximalFunction, Scalar
from l2o.proximal.indicators import (
    AffineSet,
    Box,
    HalfSpace,
    Indicator,
    L1Ball,
    L2Ball,
    LinfBall,
    Nonnegative,
    Simplex,
)
from l2o.proximal.matrix import Diagonal, Matrix
from l2o.proximal.norms import L1, L2, L21, ElasticNet, Linf, NonnegativeL1, SquaredL2, soft_threshold
from l2o.proximal.nuclear import NuclearNorm, singular_value_threshold
from l2o.proximal.operator import Adjoint, Composition, LinearOperator
from l2o.proximal.simplex import project_l1_ball, project_simplex
from l2o.proximal.total_variation import TotalVariation, TotalVariationProx

__all__ = [
    "L1",
    "L2",
    "L21",
    "Adjoint",
    "AffineSet",
    "Box",
    "ChannelConvolution",
    "CircularConvolution",
    "Composition",
    "Conjugate",
    "Diagonal",
    "Dictionary",
    "ElasticNet",
    "Gradient",
    "HalfSpace",
    "Indicator",
    "L1Ball",
    "L2Ball",
    "LinearOperator",
    "Linf",
    "LinfBall",
    "Matrix",
    "NonnegativeL1",
    "Nonnegative",
    "NuclearNorm",
    "ProximalFunction",
    "Scalar",
    "Simplex",
    "SquaredL2",
    "TotalVariation",
    "TotalVariationProx",
    "project_l1_ball",
    "project_simplex",
    "singular_value_threshold",
    "soft_threshold",
]
