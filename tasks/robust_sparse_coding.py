"""Robust sparse coding: signals that are a sparse code seen through a dictionary, plus a sparse error.

    min over z, e  ‖z‖₁ + ‖e‖₁   subject to   Az + e = x
    x = Az* + e*,    z*_i, e*_j = Bernoulli(density) · N(0, 1)

A is Gaussian with columns of unit norm. Source: Xie et al. 2019, Differentiable Linearized ADMM, ICML; the size 256 ×
512 is that of Liu et al. 2022, arXiv:2206.07875, §5.1. With density 0.1, that of published experiments on 250 × 500,
half of the signals have other minimisers than (z*, e*).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.constrained import ConstrainedProblem
from l2o.proximal import L1, Dictionary


class Signals(NamedTuple):
    """A sample."""

    x: Tensor
    """Az* + e*, shape (signals, rows)."""
    code: Tensor
    """z*, shape (signals, columns)."""
    error: Tensor
    """e*, shape (signals, rows)."""

    @property
    def value(self) -> Tensor:
        """‖z*‖₁ + ‖e*‖₁ ≥ min F, shape (signals,)."""
        return self.code.abs().sum(-1) + self.error.abs().sum(-1)


@dataclass(frozen=True)
class RobustSparseCoding:
    """The family of problems with one dictionary."""

    rows: int = 256
    columns: int = 512
    density: float = 0.03
    """Probability that an entry of z* or e* is not 0."""
    dictionary_seed: int = 0

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if a size is below 1 or the density not in (0, 1].
        """
        if min(self.rows, self.columns) < 1 or not 0 < self.density <= 1:
            raise ValueError(f"expected sizes of at least 1 and a density in (0, 1], got {self}")

    @cached_property
    def dictionary(self) -> Tensor:
        """A, shape (rows, columns), float32."""
        generator = torch.Generator().manual_seed(self.dictionary_seed)
        matrix = torch.randn(self.rows, self.columns, generator=generator)
        return matrix / matrix.norm(dim=0)

    def sample(self, signals: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Signals:
        """Return fresh signals; the codes are those of float32 in every `dtype`, x is computed in it.

        Rounding x to float32 is an error in every row, which the program has to code: its multipliers then drift by
        1e-7 a step for long. Where a relative change of 1e-6 matters, ask for float64.
        """

        def sparse(size: int) -> Tensor:
            present = torch.rand(signals, size, generator=generator) < self.density
            return (present * torch.randn(signals, size, generator=generator)).to(dtype)

        code, error = sparse(self.columns), sparse(self.rows)
        return Signals(code @ self.dictionary.to(dtype).mT + error, code, error)

    def problem(self, x: Tensor) -> ConstrainedProblem:
        """The problem of signals x, shape (signals, rows), in their precision."""
        return ConstrainedProblem(Dictionary(self.dictionary.to(x.dtype)), x, L1(), L1())
