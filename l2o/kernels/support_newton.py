"""One active-set Newton step of the LASSO, an exact solution on the support that x and its gradient g point to.

    v = x − t g,   S = {i: |v_i| > t λ},   s = sign(v_S)
    x⁺_S = (AᵀA)_SS⁻¹ ((Aᵀb)_S − λ s),   0 elsewhere

Entries of x⁺ whose sign is not s leave S and the system is solved again, up to a number of rounds; after the last they
are just left out. Source: Griesse & Lorenz 2008, A semismooth Newton method for Tikhonov functionals with sparsity
constraints, Inverse Problems 24(3), Algorithm 2, a Newton method for 0 = x − prox_{tg}(x − t g). Differs from it: the
rounds, which cost no product with AᵀA and without which most steps from far away go uphill.
"""

import functools
import struct

import torch
from torch import Tensor

from l2o.kernels.build import library

_LAYOUT = struct.Struct("6qd8Q")
_LEAST_PIVOT = {torch.float32: 1e-5, torch.float64: 1e-11}
"""A pivot of the Cholesky factorisation below this: the columns of S are dependent, to working precision."""


def support_newton(
    gram: Tensor,
    correlation: Tensor,
    strength: Tensor,
    x: Tensor,
    gradient: Tensor,
    *,
    step: float,
    rounds: int,
    limit: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x⁺, its gradient and the size of its support; no derivatives.

    Compiled where that is possible: small Cholesky factorisations cost several times less than in torch.

    Args:
        gram: AᵀA, shape (n, n), or (items, n, n).
        correlation: Aᵀb, shape (items, n).
        strength: λ, shape (items,).
        x, gradient: an iterate and AᵀAx − Aᵀb, shape (items, n).
        step: t > 0.
        rounds: solutions at most, at least 1.
        limit: largest size of S that is tried, at most n.

    Returns: x⁺ and AᵀAx⁺ − Aᵀb, shape (items, n), and sizes, int32, shape (items,). An item whose S is larger than
        `limit`, or has dependent columns, keeps x and its gradient, and gets the size −1.
    """
    tensors = [tensor.detach().contiguous() for tensor in (gram, correlation, strength, x, gradient)]
    functions = _functions()
    if x.is_cpu and all(tensor.dtype is x.dtype for tensor in tensors) and x.dtype in functions:
        results = (torch.empty_like(tensors[3]), torch.empty_like(tensors[3]))
        sizes = torch.empty(x.shape[0], dtype=torch.int32)
        stride = x.shape[1] ** 2 if gram.dim() == 3 else 0
        head = (*x.shape, limit, rounds, torch.get_num_threads(), stride, step)
        functions[x.dtype](_LAYOUT.pack(*head, *(tensor.data_ptr() for tensor in (*tensors, *results, sizes))))
        return *results, sizes
    return reference(*tensors, step=step, rounds=rounds, limit=limit)


def reference(
    gram: Tensor,
    correlation: Tensor,
    strength: Tensor,
    x: Tensor,
    gradient: Tensor,
    *,
    step: float,
    rounds: int,
    limit: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `support_newton`; in plain torch, with all supports padded to the largest."""
    v, strength = x - step * gradient, strength.unsqueeze(-1)
    chosen = v.abs() > step * strength
    ok = chosen.sum(-1) <= limit
    columns = max(1, int(torch.where(ok, chosen.sum(-1), 0).amax())) if len(x) else 1
    present, index = (chosen & ok.unsqueeze(-1)).to(torch.uint8).topk(columns, dim=-1)
    target, sign = (correlation - strength * v.sign()).gather(-1, index), v.sign().gather(-1, index)
    matrix = _submatrices(gram, index)
    solved, active, fresh = torch.zeros_like(target), present.bool(), torch.ones_like(ok)
    for _ in range(rounds):
        values, regular = _solve(matrix, target, active)
        ok, solved = ok & (regular | ~fresh), torch.where(fresh.unsqueeze(-1), values, solved)
        kept = active & (solved * sign > 0)
        active, fresh = kept, (kept != active).any(-1)
    y = torch.zeros_like(x).scatter_add(-1, index, torch.where(active, solved, 0.0))
    y_gradient = (gram @ y.unsqueeze(-1)).squeeze(-1) - correlation
    kept_item = ok.unsqueeze(-1)
    sizes = torch.where(ok, active.sum(-1), -1).to(torch.int32)
    return torch.where(kept_item, y, x), torch.where(kept_item, y_gradient, gradient), sizes


def _submatrices(gram: Tensor, index: Tensor) -> Tensor:
    """Rows and columns `index`, shape (items, k), of the Gram matrix: (items, k, k)."""
    if gram.dim() == 2:
        return gram[index.unsqueeze(-1), index.unsqueeze(-2)]
    items = torch.arange(len(index), device=index.device)[:, None, None]
    return gram[items, index.unsqueeze(-1), index.unsqueeze(-2)]


def _solve(matrix: Tensor, target: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Solve on the active rows and columns; the others become those of the identity, with the solution 0."""
    both = active.unsqueeze(-1) & active.unsqueeze(-2)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor, info = torch.linalg.cholesky_ex(torch.where(both, matrix, identity))
    regular = (info == 0) & (torch.linalg.diagonal(factor).square().amin(-1) > _LEAST_PIVOT[matrix.dtype])
    factor = torch.where(regular[:, None, None], factor, identity)
    return torch.cholesky_solve(torch.where(active, target, 0.0).unsqueeze(-1), factor).squeeze(-1), regular


@functools.cache
def _functions_of(compiled) -> dict:
    return {torch.float32: compiled.l2o_support_newton_float32, torch.float64: compiled.l2o_support_newton_float64}


def _functions() -> dict:
    compiled = library()
    return {} if compiled is None else _functions_of(compiled)
