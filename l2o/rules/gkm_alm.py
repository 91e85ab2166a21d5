"""D_num of GKM for min g(z) + h(e) s.t. Az + e = b: the linearised method of multipliers.

With v = (z, e), B = (A, I), φ(v) = g(z) + h(e), a penalty matrix Q ≻ 0 in place of the usual number β, u = (z, e, λ):

    v⁺ = argmin φ(v') + ⟨λ, Bv' − b⟩ + ½‖Bv' − b‖²_Q + ½‖v' − v‖²_P,        λ⁺ = λ + Q(Bv⁺ − b),        H = diag(P, Q⁻¹)

    linearised    P = D⁻¹ − BᵀQB ≻ 0, D = diag(d_z, d_e):  v⁺ = prox^{D⁻¹}_φ(v − D Bᵀ(λ + Q(Bv − b)))
    proximal      P = η I; see `l2o/rules/gkm_proximal_alm.py`

The multiplier of the first equation is λ⁺ up to P(v⁺ − v): −Bᵀλ⁺ − P(v⁺ − v) ∈ ∂φ(v⁺), and Q⁻¹(λ⁺ − λ) = Bv⁺ − b. That
is the proximal point step 0 ∈ M u⁺ + H(u⁺ − u) of a monotone M: firmly nonexpansive in H.

From the paper (Liu et al. 2022, arXiv:2206.07875): the two methods with H_ω, for Q = β. Ours: Q as a matrix. Q shares
the eigenvectors U of AAᵀ, q_i = r_i / (d_z σ_i² + d_e) with 0 < r_i < 1, so that ‖Q^{1/2} B D Bᵀ Q^{1/2}‖ = max r_i <
1: P ≻ 0 exactly, whatever the weights. r_i → 1 is ADMM with an exact projection onto the constraint. Steps are in
units of the mean of |b| of each item: the problem is homogeneous, so signals of any size take the same steps.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.constrained import ConstrainedProblem
from l2o.metric import Metric
from l2o.rules.checks import check_decay, check_positive
from l2o.rules.gkm import NumericalPart


class ALMPoint(NamedTuple):
    """u of the linearised method of multipliers."""

    x: Tensor
    """z, shape (items, columns)."""
    second: Tensor
    """e, shape (items, rows)."""
    multiplier: Tensor
    """λ, shape (items, rows)."""


class Spectrum(nn.Module):
    """The matrix A with the eigenvectors and eigenvalues of AAᵀ, computed once and shared by all steps.

    Args:
        matrix: A, shape (rows, columns).
    """

    def __init__(self, matrix: Tensor):
        super().__init__()
        vectors, values, _ = torch.linalg.svd(matrix.double(), full_matrices=True)
        squares = torch.zeros(matrix.shape[0], dtype=torch.float64)
        squares[: len(values)] = values.square()
        self.matrix: Tensor
        self.vectors: Tensor
        self.squares: Tensor
        self.register_buffer("matrix", matrix)
        self.register_buffer("vectors", vectors.to(matrix.dtype))
        self.register_buffer("squares", squares.to(matrix.dtype))

    def function(self, values: Tensor) -> Tensor:
        """U diag(values) Uᵀ, shape (rows, rows)."""
        vectors = self.vectors.to(values.dtype)
        return (vectors * values) @ vectors.mT

    def multiply(self, rows: Tensor, values: Tensor) -> Tensor:
        """Every row v becomes v U diag(values) Uᵀ, shape (items, rows), by whichever order takes fewer operations."""
        if len(rows) >= len(values):
            return rows @ self.function(values)
        vectors = self.vectors.to(values.dtype)
        return (rows @ vectors * values) @ vectors.mT


class ALMWeights(NamedTuple):
    """What ω means for a problem."""

    scale: Tensor
    """Of each item, shape (items, 1)."""
    first: Tensor
    """d_z, shape ()."""
    second: Tensor
    """d_e, shape ()."""
    ratio: Tensor
    """r, shape (rows,)."""
    penalty: Tensor
    """q, shape (rows,)."""


class ALMMove(NamedTuple):
    """A step of `LinearizedALM`."""

    point: ALMPoint
    """u⁺."""
    residuals: tuple[Tensor, Tensor]
    """Bv − b and Bv⁺ − b, shape (items, rows)."""
    pushes: tuple[Tensor, Tensor]
    """Q of them; the second is λ⁺ − λ."""


class LinearizedALM(NumericalPart):
    """ω = {log_first (), log_second (), logit_ratio (rows,)}: d_z, d_e and r.

    Args:
        spectrum: of A.
        first: d_z that training starts with, in units of the mean |b|, positive.
        second: d_e, likewise.
        ratio: r, in (0, 1).

    Raises:
        ValueError: if one is out of its range.
    """

    problem = ConstrainedProblem

    def __init__(self, spectrum: Spectrum, first: float = 0.3, second: float = 0.3, ratio: float = 0.98):
        super().__init__()
        check_positive(first=first, second=second)
        check_decay(ratio=ratio)
        self.spectrum = spectrum
        self.log_first = nn.Parameter(torch.tensor(math.log(first)))
        self.log_second = nn.Parameter(torch.tensor(math.log(second)))
        self.logit_ratio = nn.Parameter(torch.logit(torch.full((len(spectrum.squares),), ratio)))

    def weights(self, problem: ConstrainedProblem) -> ALMWeights:
        """What ω means for a problem."""
        b = problem.b
        scale = b.abs().mean(-1, keepdim=True)
        scale = torch.where(scale > 0, scale, 1.0)
        first, second = (log.exp().to(b.dtype) for log in (self.log_first, self.log_second))
        ratio = self.logit_ratio.sigmoid().to(b.dtype)
        return ALMWeights(scale, first, second, ratio, ratio / (first * self.spectrum.squares.to(b.dtype) + second))

    def start(self, problem: ConstrainedProblem, x: Tensor) -> ALMPoint:
        """(x, 0, 0).

        Raises:
            ValueError: if A is not the matrix of the spectrum.
        """
        matrix = getattr(problem.operator, "matrix", None)
        same = isinstance(matrix, Tensor) and matrix.shape == self.spectrum.matrix.shape
        if not same or not torch.allclose(matrix.double(), self.spectrum.matrix.double(), atol=1e-5):  # pyright: ignore
            raise ValueError("the problem has another matrix than the one whose Spectrum this D_num was made with")
        zero = torch.zeros_like(problem.b)
        return ALMPoint(x, zero, zero)

    def forward(self, problem: ConstrainedProblem, u: ALMPoint) -> ALMPoint:
        """See the module's equation."""
        return self.advance(problem, u, self.weights(problem)).point

    def advance(self, problem: ConstrainedProblem, u: ALMPoint, w: ALMWeights) -> ALMMove:
        """One step with the weights that are given, and what it has computed on the way."""
        A = self.spectrum.matrix.to(u.x.dtype)
        before = u.x @ A.mT + u.second - problem.b
        pushed = self.spectrum.multiply(before, w.penalty) / w.scale
        ahead = u.multiplier + pushed
        steps = w.first * w.scale, w.second * w.scale
        z = problem.regularizer.prox(u.x - steps[0] * (ahead @ A), steps[0].squeeze(-1))
        e = problem.prox_second(u.second - steps[1] * ahead, steps[1].squeeze(-1))
        after = z @ A.mT + e - problem.b
        moved = self.spectrum.multiply(after, w.penalty) / w.scale
        return ALMMove(ALMPoint(z, e, u.multiplier + moved), (before, after), (pushed, moved))

    def metric(self, problem: ConstrainedProblem) -> Metric:
        """H = diag(D⁻¹ − BᵀQB, Q⁻¹), in the units of each item."""
        return _ALMMetric(self.spectrum, self.weights(problem))

    def averagedness(self, problem: ConstrainedProblem) -> float:
        """1/2."""
        return 0.5


class _ALMMetric(Metric):
    """H of `LinearizedALM`; H⁻¹ by the Woodbury identity in the eigenvectors of AAᵀ."""

    def __init__(self, spectrum: Spectrum, weights: ALMWeights):
        self._w = w = weights
        self._A, self._multiply = spectrum.matrix.to(w.penalty.dtype), spectrum.multiply

    def apply(self, u: ALMPoint) -> ALMPoint:
        """Hu."""
        w = self._w
        coupled = self._multiply(u.x @ self._A.mT + u.second, w.penalty)
        z = (u.x / w.first - coupled @ self._A) / w.scale
        return ALMPoint(
            z, (u.second / w.second - coupled) / w.scale, self._multiply(u.multiplier, 1 / w.penalty) * w.scale
        )

    def solve(self, u: ALMPoint) -> ALMPoint:
        """H⁻¹u: (D⁻¹ − BᵀQB)⁻¹ = D + DBᵀ(Q⁻¹ − BDBᵀ)⁻¹BD, and Q⁻¹ − BDBᵀ has eigenvalues (1 − r)/q."""
        w = self._w
        z, e = w.first * u.x, w.second * u.second
        coupled = self._multiply(z @ self._A.mT + e, w.penalty / (1 - w.ratio))
        z, e = z + w.first * (coupled @ self._A), e + w.second * coupled
        return ALMPoint(z * w.scale, e * w.scale, self._multiply(u.multiplier, w.penalty) / w.scale)
