"""D_num of GKM for min g(z) + h(e) s.t. Az + e = b: the proximal and the linearised method of multipliers.

With v = (z, e), B = (A, I), φ(v) = g(z) + h(e), a penalty matrix Q ≻ 0 in place of the usual number β, u = (z, e, λ):

    v⁺ = argmin φ(v') + ⟨λ, Bv' − b⟩ + ½‖Bv' − b‖²_Q + ½‖v' − v‖²_P,        λ⁺ = λ + Q(Bv⁺ − b),        H = diag(P, Q⁻¹)

    linearised    P = D⁻¹ − BᵀQB ≻ 0, D = diag(d_z, d_e):  v⁺ = prox^{D⁻¹}_φ(v − D Bᵀ(λ + Q(Bv − b)))
    proximal      P = η I; a closed form where g = (γ/2)‖z‖², h = 0 and Q = β:  (γ + η + βAᵀA) z⁺ = ηz − Aᵀ(λ − βb)

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
from l2o.proximal import Dictionary, Matrix, SquaredL2
from l2o.rules.checks import check_decay, check_positive
from l2o.rules.gkm import NumericalPart


class ALMPoint(NamedTuple):
    """u of the methods of multipliers."""

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


class _Weights(NamedTuple):
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

    def weights(self, problem: ConstrainedProblem) -> _Weights:
        """What ω means for a problem."""
        b = problem.b
        scale = b.abs().mean(-1, keepdim=True)
        scale = torch.where(scale > 0, scale, 1.0)
        first, second = (log.exp().to(b.dtype) for log in (self.log_first, self.log_second))
        ratio = self.logit_ratio.sigmoid().to(b.dtype)
        return _Weights(scale, first, second, ratio, ratio / (first * self.spectrum.squares.to(b.dtype) + second))

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
        w, A = self.weights(problem), self.spectrum.matrix.to(u.x.dtype)
        ahead = u.multiplier + self.spectrum.multiply(u.x @ A.mT + u.second - problem.b, w.penalty) / w.scale
        steps = w.first * w.scale, w.second * w.scale
        z = problem.regularizer.prox(u.x - steps[0] * (ahead @ A), steps[0].squeeze(-1))
        e = problem.prox_second(u.second - steps[1] * ahead, steps[1].squeeze(-1))
        moved = self.spectrum.multiply(z @ A.mT + e - problem.b, w.penalty) / w.scale
        return ALMPoint(z, e, u.multiplier + moved)

    def metric(self, problem: ConstrainedProblem) -> Metric:
        """H = diag(D⁻¹ − BᵀQB, Q⁻¹), in the units of each item."""
        return _ALMMetric(self.spectrum, self.weights(problem))

    def averagedness(self, problem: ConstrainedProblem) -> float:
        """1/2."""
        return 0.5


class _ALMMetric(Metric):
    """H of `LinearizedALM`; H⁻¹ by the Woodbury identity in the eigenvectors of AAᵀ."""

    def __init__(self, spectrum: Spectrum, weights: _Weights):
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


class MultiplierPoint(NamedTuple):
    """u of `ProximalALM`."""

    x: Tensor
    """z, shape (items, columns)."""
    multiplier: Tensor
    """λ, shape (items, rows)."""


class _BlockMetric(Metric):
    """H = diag(η I, I/β)."""

    def __init__(self, proximity: Tensor, penalty: Tensor):
        self._weights = proximity, 1 / penalty

    def apply(self, u: MultiplierPoint) -> MultiplierPoint:
        return MultiplierPoint(self._weights[0] * u.x, self._weights[1] * u.multiplier)

    def solve(self, u: MultiplierPoint) -> MultiplierPoint:
        return MultiplierPoint(u.x / self._weights[0], u.multiplier / self._weights[1])


class ProximalALM(NumericalPart):
    """ω = {log_penalty (), log_proximity ()}: β and η, for g = (γ/2)‖z‖² and no h; a ridge solve in each step.

    Args:
        penalty: β that training starts with, positive.
        proximity: η, positive.

    Raises:
        ValueError: if one is not positive.
    """

    problem = ConstrainedProblem

    def __init__(self, penalty: float = 1.0, proximity: float = 1.0):
        super().__init__()
        check_positive(penalty=penalty, proximity=proximity)
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))
        self.log_proximity = nn.Parameter(torch.tensor(math.log(proximity)))

    def start(self, problem: ConstrainedProblem, x: Tensor) -> MultiplierPoint:
        """(x, 0).

        Raises:
            TypeError: if the problem is not min (γ/2)‖z‖² s.t. Az = b with a matrix A.
        """
        quadratic = isinstance(problem.regularizer, SquaredL2) and problem.second is None
        if not quadratic or not isinstance(problem.operator, Dictionary | Matrix):
            raise TypeError("ProximalALM needs g = SquaredL2, no h, and a matrix A; use LinearizedALM")
        return MultiplierPoint(x, torch.zeros_like(problem.b))

    def forward(self, problem: ConstrainedProblem, u: MultiplierPoint) -> MultiplierPoint:
        """See the module's equation."""
        penalty, proximity = (log.exp().to(u.x.dtype) for log in (self.log_penalty, self.log_proximity))
        gamma = torch.as_tensor(problem.regularizer.strength, dtype=u.x.dtype)  # pyright: ignore
        right = proximity * u.x - problem.operator.adjoint(u.multiplier - penalty * problem.b)
        z = problem.operator.solve(right / penalty, (gamma + proximity) / penalty)
        return MultiplierPoint(z, u.multiplier + penalty * problem.residual(z))

    def metric(self, problem: ConstrainedProblem) -> Metric:
        """H = diag(η I, I/β)."""
        return _BlockMetric(self.log_proximity.exp().to(problem.b.dtype), self.log_penalty.exp().to(problem.b.dtype))

    def averagedness(self, problem: ConstrainedProblem) -> float:
        """1/2."""
        return 0.5
