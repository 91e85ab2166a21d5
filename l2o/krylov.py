"""Krylov methods for many systems A x = b at once: GMRES for any matrix, CG for symmetric positive definite ones.

Every item has a space of its own; items that have converged, or whose space is exhausted, wait for the others.
Source: Saad & Schultz 1986, GMRES, SIAM J. Sci. Stat. Comput. 7(3); Hestenes & Stiefel 1952, J. Res. NBS 49(6).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.linear_solvers import LinearSolver, MatrixProduct, Run, norms, ratio

_LANCZOS = 300
"""Largest tridiagonal matrix of which CG takes the eigenvalues; of a larger one it brackets the smallest."""
_FRACTIONS = torch.logspace(0, -6, 97, dtype=torch.float64)
"""Where the smallest eigenvalue of a large tridiagonal matrix is looked for, in units of that of a part of it."""


@dataclass(frozen=True)
class GMRES(LinearSolver):
    """The x of a Krylov space with the smallest ‖b − Ax‖, restarted when the space is full.

    Restarts may stand still where a larger space solves the system; then the space is doubled, up to n dimensions.
    """

    tol: float | None = None
    """Relative residual to reach; None: 1e-10 in float64, 1e-5 in float32."""
    restart: int = 50
    """Dimension of the space, until it is doubled: so many vectors are kept, never more than `max_iterations`."""
    max_iterations: int = 1000
    """Products with A, at most."""

    def run(self, product: MatrixProduct, b: Tensor, tol: float) -> Run:
        """Add up the corrections of the restarts until the residual is small, or stays as it is in the whole space."""
        x, left, target = torch.zeros_like(b), b, 0.5 * tol * norms(b)
        largest, smallest = torch.zeros_like(target), torch.full_like(target, torch.inf)
        made, restart, note = 0, self.restart, "raise restart or max_iterations"
        while made < self.max_iterations:
            size = min(restart, b.shape[1], self.max_iterations - made)
            cycle = _cycle(product, left, target, size)
            x, before, made = x + cycle.x, norms(left), made + cycle.iterations
            largest, smallest = torch.maximum(largest, cycle.largest), torch.minimum(smallest, cycle.smallest)
            left = b - product(x)
            open_ = ~(norms(left) <= target)
            if not bool(open_.any()):
                break
            if bool((open_ & (norms(left) < 0.9 * before)).any()):
                continue
            if cycle.iterations < size or size == b.shape[1]:  # the space was exhausted, or all there is
                note = "it has stopped to improve: A is singular or ill-conditioned"
                break
            restart *= 2
        return Run(x, made, largest, torch.where(torch.isfinite(smallest), smallest, 1.0), note)


def _cycle(product: MatrixProduct, left: Tensor, target: Tensor, size: int) -> Run:
    """Build the space of one restart and return the best correction in it; Arnoldi by Gram–Schmidt done twice."""
    items, n = left.shape
    beta, eps = norms(left), torch.finfo(left.dtype).eps
    basis, H = left.new_zeros(items, size + 1, n), left.new_zeros(items, size + 1, size)
    basis[:, 0] = ratio(left, torch.where(beta > target, beta, 0.0).unsqueeze(-1))
    # ν is orthogonal to the columns of H, so that the least residual is β / ‖ν‖.
    nu = left.new_zeros(items, size + 1)
    nu[:, 0] = 1
    j = 0
    for j in range(size):
        w = product(basis[:, j])
        length, known = norms(w), basis[:, : j + 1]
        for _ in range(2):
            h = (known @ w.unsqueeze(-1)).squeeze(-1)
            w = w - (known.mT @ h.unsqueeze(-1)).squeeze(-1)
            H[:, : j + 1, j] += h
        rest = norms(w)
        rest = torch.where(rest > 10 * eps * length, rest, 0.0)
        H[:, j + 1, j] = rest
        basis[:, j + 1] = ratio(w, rest.unsqueeze(-1))
        nu[:, j + 1] = ratio(-(nu[:, : j + 1] * H[:, : j + 1, j]).sum(1), rest)
        if bool(((beta / norms(nu[:, : j + 2]) <= target) | (rest == 0)).all()) or not bool(torch.isfinite(rest).all()):
            break
    return _best(basis[:, : j + 1], H[:, : j + 2, : j + 1], beta)


def _best(basis: Tensor, H: Tensor, beta: Tensor) -> Run:
    """Solve the small least-squares problem min ‖β e₁ − H y‖ by singular values."""
    items, size, n = basis.shape
    if not bool(torch.isfinite(H).all()):
        nothing = beta.new_zeros(items)
        return Run(basis.new_zeros(items, n), size, nothing, nothing)
    U, S, Vh = torch.linalg.svd(H, full_matrices=False)
    kept = S > 10 * torch.finfo(S.dtype).eps * S[:, :1]
    y = Vh.mT @ (torch.where(kept, ratio(U[:, 0] * beta.unsqueeze(-1), S), 0.0)).unsqueeze(-1)
    columns = (basis != 0).any(-1).sum(1)  # of an exhausted space the other columns are 0, and so are as many values
    smallest = S.gather(1, (columns - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    smallest = torch.where(columns > 0, smallest, torch.inf)
    return Run((basis.mT @ y).squeeze(-1), size, S[:, 0], smallest)


@dataclass(frozen=True)
class CG(LinearSolver):
    """Conjugate gradients, for symmetric positive definite A: where the step is u − s ∇F(u), A = s ∇²F(u)."""

    tol: float | None = None
    """Relative residual to reach; None: 1e-10 in float64, 1e-5 in float32."""
    max_iterations: int = 1000
    """Products with A, at most."""

    def run(self, product: MatrixProduct, b: Tensor, tol: float) -> Run:
        """Step along conjugate directions; a direction without positive curvature ends it."""
        x, left, direction, square = torch.zeros_like(b), b, b, b.square().sum(1)
        target, path, note = (0.5 * tol * norms(b)).square(), _Lanczos([], []), "raise max_iterations"
        while len(path.alphas) < self.max_iterations:
            active = square > target
            if not bool(active.any()):
                break
            image = product(direction)
            curvature = (direction * image).sum(1)
            if bool((active & ~(curvature > 0)).any()):
                note = "A is not positive definite (a direction has curvature ≤ 0)"
                break
            alpha = torch.where(active, square / curvature, 0.0)
            x = x + alpha.unsqueeze(-1) * direction
            left = left - alpha.unsqueeze(-1) * image
            before, square = square, torch.where(active, left.square().sum(1), square)
            beta = torch.where(active, ratio(square, before), 0.0)
            direction = left + beta.unsqueeze(-1) * direction
            path.alphas.append(alpha)
            path.betas.append(beta)
        if bool((square > target).any()) and _is_asymmetric(product, b, x):
            note = "A is not symmetric, and CG needs that: use GMRES()"
        return Run(x, len(path.alphas), *path.extremes(norms(b)), note)


class _Lanczos(NamedTuple):
    """The step lengths of CG, which are the entries of the tridiagonal matrix that A is in the Krylov space."""

    alphas: list[Tensor]
    betas: list[Tensor]

    def extremes(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The largest and the smallest eigenvalue of the matrix, each the shape of `like`."""
        if not self.alphas:
            return torch.ones_like(like), torch.ones_like(like)
        alphas, betas = torch.stack(self.alphas, 1), torch.stack(self.betas, 1)
        inverse, before = ratio(torch.ones_like(alphas), alphas), betas[:, :-1]
        diagonal = inverse.clone()
        diagonal[:, 1:] += before * inverse[:, :-1]
        diagonal = torch.where(alphas != 0, diagonal, diagonal[:, :1])  # an item that waits adds nothing new
        off = torch.where(alphas[:, 1:] != 0, before.sqrt() * inverse[:, :-1], 0.0)
        part, beside = diagonal[:, -_LANCZOS:], off[:, -_LANCZOS + 1 :]
        values = torch.linalg.eigvalsh(
            torch.diag_embed(part) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
        )
        smallest = values[:, 0].clamp(min=0)
        if diagonal.shape[1] > _LANCZOS:
            smallest = _below_all(diagonal, off.square(), smallest)
        waits = (alphas == 0).all(1)
        return torch.where(waits, 1.0, values[:, -1]), torch.where(waits, 1.0, smallest)


def _below_all(diagonal: Tensor, squares: Tensor, least: Tensor) -> Tensor:
    """Return a bound of the smallest eigenvalue of a tridiagonal matrix from below, within 16 %, from that of a part.

    The eigenvalues are above μ where no pivot of T − μI is negative (Sylvester's law of inertia); 0 if all μ are too
    large.

    Args:
        diagonal: shape (items, n).
        squares: of the entries beside the diagonal, shape (items, n − 1).
        least: smallest eigenvalue of a part of the matrix, which is never below that of the whole, shape (items,).
    """
    shifts = least.unsqueeze(1) * _FRACTIONS.to(least)
    pivot = diagonal[:, :1] - shifts
    above = pivot > 0
    for entry, square in zip(diagonal[:, 1:].unbind(1), squares.unbind(1), strict=True):
        pivot = entry.unsqueeze(1) - shifts - square.unsqueeze(1) / pivot
        above = above & (pivot > 0)
    return torch.where(above, shifts, 0.0).amax(1)


def _is_asymmetric(product: MatrixProduct, b: Tensor, x: Tensor) -> bool:
    """Whether ⟨b, Ax⟩ and ⟨Ab, x⟩ differ by more than rounding, which is in units of ‖Ab‖ ‖x‖: both may be near 0."""
    image = product(b)
    difference = ((b * product(x)).sum(1) - (image * x).sum(1)).abs()
    return bool((difference > torch.finfo(b.dtype).eps ** 0.5 * norms(image) * norms(x)).any())
