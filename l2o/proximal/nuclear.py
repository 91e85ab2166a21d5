"""Singular value thresholding, with a derivative that exists where that of the SVD does not."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l2o.proximal.function import ProximalFunction, Scalar, per_item, within, zero_where


class _SingularValueThreshold(torch.autograd.Function):
    """F(M) = U max(Σ − τ, 0) Vᵀ, M of shape (…, rows, columns), rows ≥ columns, τ of shape (…, 1, 1) or ()."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, threshold: Tensor) -> Tensor:
        u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
        return (u * (sigma.unsqueeze(-2) - threshold).relu()) @ vh

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Divided differences of f(σ) = max(σ − τ, 0); F is a gradient, so its Jacobian is symmetric.

        The SVD is taken again: a second derivative then goes through it, instead of being silently wrong.
        """
        (gradient,) = gradients
        matrix, threshold = ctx.saved_tensors
        u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
        core = u.mT @ gradient @ vh.mT
        row, column = sigma.unsqueeze(-1), sigma.unsqueeze(-2)
        kept = (column > threshold).to(sigma.dtype)  # f'
        shrunk_row, shrunk = (row - threshold).relu(), (column - threshold).relu()
        apart = (row - column).abs() > torch.finfo(sigma.dtype).eps ** 0.5 * (row + column)
        minus = torch.where(apart, (shrunk_row - shrunk) / torch.where(apart, row - column, 1.0), kept)
        plus = _ratio(shrunk_row + shrunk, row + column)
        symmetric, skew = (core + core.mT) / 2, (core - core.mT) / 2
        outside = (gradient @ vh.mT - u @ core) * _ratio(shrunk, column)  # what leaves the columns of u
        grad_threshold = -(core * torch.diag_embed(kept.squeeze(-2))).sum((-2, -1), keepdim=True)
        return (u @ (minus * symmetric + plus * skew) + outside) @ vh, grad_threshold.sum_to_size(threshold.shape)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Numerator / denominator, 0 where the denominator is 0."""
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), 0.0)


def singular_value_threshold(v: Tensor, threshold: Scalar) -> Tensor:
    """Return U max(Σ − threshold, 0) Vᵀ for v = U Σ Vᵀ: the prox of the nuclear norm.

    The gradient is right for equal and for zero singular values, where that of `torch.linalg.svd` is not finite; at
    σ = threshold it takes the side of 0. A second derivative needs distinct singular values.

    Source: Cai, Candès & Shen 2010, SIAM J. Optim. 20; derivative: Candès, Sing-Long & Trzasko 2013, IEEE TSP 61(19).

    Args:
        v: shape (batch…, rows, columns).
        threshold: at least 0, a number or one entry per matrix.
    """
    threshold = per_item(threshold, v, 2)
    threshold = threshold if isinstance(threshold, Tensor) else v.new_tensor(threshold)
    if v.shape[-2] < v.shape[-1]:
        return _SingularValueThreshold.apply(v.mT, threshold).mT  # pyright: ignore[reportOptionalMemberAccess]
    return _SingularValueThreshold.apply(v, threshold)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, eq=False)
class NuclearNorm(ProximalFunction):
    """λ‖X‖_* = λ Σ σ_i(X), an item a matrix."""

    strength: Scalar = 1.0
    """λ."""
    ndim = 2

    def value(self, x: Tensor) -> Tensor:
        """λ Σ σ_i."""
        return self.strength * torch.linalg.svdvals(x).sum(-1)

    def prox(self, v: Tensor, step: Scalar = 1.0) -> Tensor:
        """Singular value thresholding at tλ."""
        return singular_value_threshold(v, step * self.strength)

    def conjugate_value(self, y: Tensor) -> Tensor:
        """0 where σ_max ≤ λ."""
        return zero_where(within(torch.linalg.svdvals(y).amax(-1), self.strength), y)
