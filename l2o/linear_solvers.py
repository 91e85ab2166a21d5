"""Linear systems A x = b of many items at once, by products with A alone, each solution checked before it is believed.

For the gradient through a fixed point u = T(u), A is (I − J)ᵀ with J = ∂T/∂u, and a product is one vector–Jacobian
product. A solver is a frozen dataclass with a method `run`; `solve_linear` runs it and judges what came out:

    residual  ‖b − Ax‖ / ‖b‖ ≤ tol, or what rounding leaves, 64 ε σ_max ‖x‖ / ‖b‖, but never above 1, which x = 0 has
    error     ‖x − A⁻¹b‖ / ‖x‖ ≤ ‖b − Ax‖ / (σ_min ‖x‖) + ε σ_max / σ_min, at most 1 %

σ_max and σ_min are those of A on the directions that the solver has seen, so the error is an estimate, not a bound: for
a random right-hand side up to 1.5 times too small, in a test over spectra and tolerances, and more often ten times too
large; without limit too small where b hides a direction below the tolerance. But a matrix that is singular or nearly so
to the right-hand side does not pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MatrixProduct = Callable[[Tensor], Tensor]
"""x ↦ Ax, shapes (items, n)."""

MAX_ERROR = 1e-2
"""Largest estimated relative error of a solution that is accepted."""

_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


class Run(NamedTuple):
    """What a solver hands over."""

    x: Tensor
    """shape (items, n)."""
    iterations: int
    """Products with A."""
    largest: Tensor
    """Estimate of σ_max of A, shape (items,)."""
    smallest: Tensor
    """Estimate of σ_min of A, shape (items,)."""
    note: str = ""
    """What went wrong and what to do, if that is known."""


@dataclass
class LinearReport:
    """How a linear system was solved; `solve_linear` fills it in."""

    solver: str = ""
    """Name of the method; empty before the first solve."""
    iterations: int = 0
    """Products with A."""
    residual: Tensor | None = None
    """‖b − Ax‖ / ‖b‖, shape (items,)."""
    error: Tensor | None = None
    """Estimate of ‖x − A⁻¹b‖ / ‖x‖, shape (items,): no bound, see the head of `l2o.linear_solvers`."""
    condition: Tensor | None = None
    """Estimate of σ_max / σ_min, shape (items,): rather too small."""
    converged: bool = False
    """Whether residual and error of every item are small enough."""
    note: str = ""
    """What went wrong and what to do, if that is known."""

    def failure(self) -> str:
        """Say in a sentence that the system was not solved."""
        assert self.residual is not None and self.error is not None
        return (
            f"{self.solver} left a relative residual of {_worst(self.residual):.1e} after {self.iterations} products "
            f"and an estimated relative error of {_worst(self.error):.1e}" + (f"; {self.note}" if self.note else "")
        )


class LinearSolver(ABC):
    """A method for A x = b; a subclass is a frozen dataclass, final, and implements `run`."""

    tol: float | None
    """Relative residual to reach; None: 1e-10 in float64, 1e-5 in float32."""

    @abstractmethod
    def run(self, product: MatrixProduct, b: Tensor, tol: float) -> Run:
        """Return an approximate solution, b of shape (items, n)."""


def check_solver(solver: object) -> None:
    """Check the `adjoint` of an implicit gradient.

    Raises:
        TypeError: if it is neither None nor a solver, but a name or a class for instance.
    """
    if solver is not None and not isinstance(solver, LinearSolver):
        raise TypeError(
            "adjoint must be a solver of linear systems (GMRES(), CG(), Neumann(), AndersonSolver(), Dense()) or None, "
            f"got {solver!r}" + ("; make one of it with ()" if isinstance(solver, type) else "")
        )


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the relative accuracy that is asked for by default: 1e-10 in float64, 1e-5 in float32, 1e-2 below."""
    return _TOLERANCES.get(dtype, 1e-2)


@torch.no_grad()
def solve_linear(solver: LinearSolver, product: MatrixProduct, b: Tensor) -> tuple[Tensor, LinearReport]:
    """Solve A x = b for every item and judge the solution.

    Args:
        product: x ↦ Ax, shapes (items, n).
        b: right-hand sides, shape (items, n).

    Returns: x, shape (items, n), and the report; whoever asked decides what to do if `converged` is False.
    """
    tol = default_tolerance(b.dtype) if solver.tol is None else solver.tol
    if not b.numel():
        return b, LinearReport(type(solver).__name__, 0, b.sum(1), b.sum(1), b.sum(1) + 1, True)
    run = solver.run(product, b, tol)
    eps = torch.finfo(b.dtype).eps
    left, size, length = norms(b - product(run.x)), norms(b), norms(run.x)
    residual = ratio(left, size)
    condition = torch.where(run.smallest > 0, run.largest / run.smallest, torch.inf)
    error = torch.where(left > 0, left / (run.smallest * length), 0.0) + eps * condition
    error = torch.where(size > 0, error, 0.0)
    rounding = 64 * eps * run.largest * length
    small = left <= torch.maximum(tol * size, torch.minimum(rounding, size))  # size: x = 0 is as good
    converged = bool((small & (error <= MAX_ERROR)).all())
    known = "" if bool(small.all()) else run.note
    note = "" if converged else known or "A is ill-conditioned or singular"
    return run.x, LinearReport(type(solver).__name__, run.iterations, residual, error, condition, converged, note)


@dataclass(frozen=True)
class Dense(LinearSolver):
    """Write A out, with n products, and factorise it: for small n, and as the oracle of the others."""

    tol: float | None = None
    """Relative residual to reach; None: 1e-10 in float64, 1e-5 in float32."""
    max_size: int = 4096
    """Largest n: A takes 8 n² bytes an item."""

    def run(self, product: MatrixProduct, b: Tensor, tol: float) -> Run:
        """Solve by singular values, so that the condition is known.

        Raises:
            ValueError: if n is above `max_size`.
        """
        items, n = b.shape
        if n > self.max_size:
            raise ValueError(f"a dense matrix of {n}×{n} is above max_size={self.max_size}; use GMRES() or raise it")
        A = b.new_empty(items, n, n)
        for column in range(n):
            unit = torch.zeros_like(b)
            unit[:, column] = 1
            A[:, :, column] = product(unit)
        if not bool(torch.isfinite(A).all()):
            nothing = b.new_zeros(items)
            return Run(torch.zeros_like(b), n, nothing, nothing, "A has entries that are not finite")
        U, S, Vh = torch.linalg.svd(A)
        x = torch.zeros_like(b)
        for _ in range(2):  # the second time is a step of iterative refinement
            scaled = ratio((U.mT @ (b - _apply(A, x)).unsqueeze(-1)).squeeze(-1), S)
            x = x + (Vh.mT @ scaled.unsqueeze(-1)).squeeze(-1)
        return Run(x, n, S[:, 0], S[:, -1])


@dataclass(frozen=True)
class Neumann(LinearSolver):
    """x_{k+1} = x_k + (b − A x_k): the series Σ (I − A)ᵏ b, which converges where I − A is a contraction.

    With few iterations and `on_failure="ignore"` it is the truncated backpropagation of the "phantom" gradient.
    """

    tol: float | None = None
    """Relative residual to reach; None: 1e-10 in float64, 1e-5 in float32."""
    max_iterations: int = 1000
    """Terms of the series."""

    def run(self, product: MatrixProduct, b: Tensor, tol: float) -> Run:
        """Add terms until they are small, or grow."""
        x, left, size = torch.zeros_like(b), b, norms(b)
        length, rate, made = size, torch.zeros_like(size), 0
        while made < self.max_iterations and not bool((length <= tol * size).all()):
            if not bool((length <= 1e6 * size).all()):  # also where it is nan
                note = "the series grows: J is no contraction, use GMRES()"
                return Run(x, made, torch.ones_like(size), torch.zeros_like(size), note)
            x, before, made = x + left, length, made + 1
            left = b - product(x)
            length = norms(left)
            rate = torch.where(before > tol * size, ratio(length, before).clamp(max=1), rate)
        return Run(x, made, 1 + rate, 1 - rate, f"the last term was {_worst(rate):.3f} times the one before")


def norms(x: Tensor) -> Tensor:
    """Euclidean norm of every row."""
    return torch.linalg.vector_norm(x, dim=-1)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return numerator / denominator, 0 where the denominator is 0."""
    return torch.where(denominator != 0, numerator / torch.where(denominator != 0, denominator, 1), 0.0)


def _apply(A: Tensor, x: Tensor) -> Tensor:
    return (A @ x.unsqueeze(-1)).squeeze(-1)


def _worst(values: Tensor) -> float:
    return float(values.nan_to_num(nan=torch.inf, posinf=torch.inf).max())
