"""Problems of some of the items of a batch, for `Safeguarded`: to gather, to scatter and to merge."""

from dataclasses import replace

import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import L1, Dictionary, Matrix

Rows = Tensor | slice
"""Which items: indices, or all, slice(None)."""


def flatten(problem: Problem) -> Problem:
    """Return the problem with one batch axis."""
    axes, shape = len(problem.batch_shape), problem.batch_shape
    if axes == 1:
        return problem
    operator, g = problem.operator, problem.regularizer
    if isinstance(operator, Dictionary | Matrix) and operator.matrix.dim() > 2:
        operator = replace(operator, matrix=operator.matrix.reshape(-1, *operator.matrix.shape[-2:]))
    if isinstance(strength := getattr(g, "strength", None), Tensor) and strength.dim():
        g = replace(g, strength=strength.expand(shape).reshape(-1))  # pyright: ignore
    return Problem(operator, problem.b.reshape(-1, *problem.operator.out_shape), g, problem.composite)


def flat_items(problem: Problem, x: Tensor) -> Tensor:
    """Make all batch axes one."""
    return x.reshape(-1, *problem.operator.in_shape)


def rows_of(problem: Problem, mask: Tensor, most: float = 1.0) -> Rows:
    """Return the items of a mask, or all where a problem of some cannot be made or they are at least a share `most`."""
    separable = isinstance(problem.operator, Dictionary | Matrix) and isinstance(problem.regularizer, L1)
    return slice(None) if not separable or bool(mask.sum() >= most * len(mask)) else mask.nonzero().squeeze(-1)


def take(problem: Problem, rows: Rows) -> Problem:
    """Return the problem of some items."""
    if is_whole(rows):
        return problem
    operator, g = problem.operator, problem.regularizer
    if isinstance(operator, Dictionary | Matrix) and operator.matrix.dim() > 2:
        operator = Matrix(operator.matrix[rows])
    if isinstance(strength := getattr(g, "strength", None), Tensor) and strength.dim():
        g = replace(g, strength=strength[rows])  # pyright: ignore
    return Problem(operator, problem.b[rows], g)


def is_whole(rows: Rows) -> bool:
    """Tell whether these are all items."""
    return isinstance(rows, slice) and rows == slice(None)


def merge(into: Tensor, rows: Rows, mask: Tensor, values: Tensor, fresh: bool = False) -> Tensor:
    """Return `into` with those of its rows replaced by `values` that a mask, one entry per value, wants.

    Args:
        fresh: whether nobody else has `values`, which may then be overwritten: cheap where few rows are not wanted.
    """
    if mask.all():
        return values if is_whole(rows) else into.index_copy(0, rows, values)  # pyright: ignore
    if is_whole(rows) and fresh:
        others = (~mask).nonzero().squeeze(-1)
        return values.index_copy_(0, others, into[others])
    mask = mask.reshape(-1, *(1,) * (values.dim() - 1))
    if is_whole(rows):
        return torch.where(mask, values, into)
    return into.index_copy(0, rows, torch.where(mask, values, into[rows]))  # pyright: ignore
