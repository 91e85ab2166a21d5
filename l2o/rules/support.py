"""What the rules of sparse coding share: thresholding that spares the largest entries, and the matrix of a problem.

    η^p_θ(v)_i = v_i                         if |v_i| > θ and |v_i| is among the p largest
                 sign(v_i) max(|v_i| − θ, 0)  else

Source: Chen et al. 2018, Theoretical linear convergence of unfolded ISTA, arXiv:1808.10038, eq. 12–13 (support
selection). The largest are found by a partial selection, `topk`, not by sorting.
"""

import math
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from l2o.problem import Problem
from l2o.proximal import L1, Dictionary, Matrix
from l2o.proximal.norms import soft_threshold

Start = Literal["ista", "analytic"]
"""What matrix weights start as: those of ISTA, or the analytic ones with the thresholds of ALISTA."""
THRESHOLD, THRESHOLD_DECAY = 0.3, 0.7
"""θ_0, for entries of unit variance, and θ_{k+1} / θ_k, with which ALISTA's training starts."""
SUPPORT_STEP, SUPPORT_MOST = 0.012, 0.13
"""Fraction of the entries that a layer trusts more than the one before it, and at most: Chen et al. 2018, §4."""


def threshold_but_largest(v: Tensor, threshold: Tensor, count: int) -> Tensor:
    """Soft-threshold all entries but the `count` largest, which are kept where they exceed the threshold.

    Entries as large as the smallest of these are kept too.

    Args:
        v: shape (batch…, n).
        threshold: θ ≥ 0, broadcasts against v.
        count: p, from 0 to n.
    >>> threshold_but_largest(torch.tensor([3.0, -2.0, 0.5]), torch.tensor(1.0), 1)
    tensor([ 3., -1.,  0.])
    """
    shrunk = soft_threshold(v, threshold)
    if count == 0:
        return shrunk
    size = v.detach().abs()
    least = size.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    return torch.where((size >= least) & (size > threshold), v, shrunk)


def threshold_but_own_largest(v: Tensor, threshold: Tensor, counts: Tensor, most: int) -> Tensor:
    """As `threshold_but_largest`, with a number of entries for each item.

    Args:
        counts: p of each item, int64, shape (batch…); what exceeds `most` counts as that.
        most: from 1 to n; how many the selection looks at.
    """
    size = v.detach().abs()
    largest = size.topk(most, dim=-1).values
    counts = counts.clamp(0, most).unsqueeze(-1)
    least = largest.gather(-1, (counts - 1).clamp(min=0))
    kept = (counts > 0) & (size >= least) & (size > threshold)
    return torch.where(kept, v, soft_threshold(v, threshold))


def support_count(layer: int, n: int, step: float, most: float) -> int:
    """Return how many of n entries a layer trusts: step·n in layer 0, 2·step·n in layer 1, …, at most most·n.

    >>> [support_count(layer, 500, 0.012, 0.02) for layer in range(4)]
    [6, 10, 10, 10]
    """
    return int(min((layer + 1) * step, most) * n + 1e-9)


def check_layers(layers: int, support_step: float = 0.0, support_most: float = 0.0) -> None:
    """Check the options that unrolled rules share.

    Raises:
        ValueError: if layers is below 1, or a fraction is outside [0, 1].
    """
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    for name, value in (("support_step", support_step), ("support_most", support_most)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a fraction of the entries, in [0, 1], got {value}")


def check_sizes(rows: int, columns: int) -> None:
    """Check the size of the matrix that weights belong to.

    Raises:
        ValueError: if rows or columns is below 1.
    """
    if min(rows, columns) < 1:
        raise ValueError(f"rows and columns must be at least 1, got {rows} and {columns}")


def per_layer(values: Iterable[float]) -> nn.ParameterList:
    """Return the logarithms of one positive scalar a layer, each a parameter of its own.

    A list, not one tensor: layers can have learning rates of their own, and the gradient of a layer is as small as it.
    """
    return nn.ParameterList(torch.tensor(math.log(value)) for value in values)


def positive(logarithms: nn.ParameterList, step: int, like: Tensor) -> Tensor:
    """Return exp of a step's scalar, in the precision of `like`; steps beyond the last layer take its."""
    return logarithms[min(step, len(logarithms) - 1)].exp().to(like.dtype)


def dictionary_of(problem: Problem, rule: str, sizes: tuple[int, int] | None = None) -> Dictionary:
    """Return the problem's matrix with what is computed of it once.

    Args:
        rule: the rule's name, for the error.
        sizes: rows and columns that the rule's weights have; None fits any.

    Raises:
        ValueError: if the operator is no matrix, the regularizer is neither ‖·‖₁ nor absent, or the sizes differ.
    """
    operator = problem.operator
    if not isinstance(operator, Dictionary | Matrix):
        raise ValueError(f"{rule} needs a matrix A (a Dictionary or Matrix), got {type(operator).__name__}")
    if problem.composite is not None:
        raise ValueError(f"{rule} is for one regularizer, but the problem has a second term h(Kx)")
    if not isinstance(problem.regularizer, L1):
        raise ValueError(f"{rule} solves for an L1 regularizer, got {type(problem.regularizer).__name__}")
    shape = tuple(operator.matrix.shape[-2:])
    if sizes is not None and shape != sizes:
        raise ValueError(
            f"{rule} has weights for a matrix of {sizes[0]}×{sizes[1]}, got one of {shape[0]}×{shape[1]}; train one "
            "for this size, or take a rule without matrix weights (alista, hyperlista)"
        )
    return operator if isinstance(operator, Dictionary) else Dictionary(operator.matrix)


def shared(matrix: Tensor) -> Tensor:
    """Give a matrix that all items share a leading axis of length 1; rules keep it so in their state."""
    return matrix.unsqueeze(0) if matrix.dim() == 2 else matrix


def multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """Matrix times vector: one matrix for all items, (1, m, n) as from `shared` or (m, n), or one per item."""
    if matrix.dim() == 2 or matrix.shape[0] == 1:
        return x @ matrix.reshape(matrix.shape[-2:]).mT
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def start_thresholds(start: Start, strength: float, inverse: float, layers: int) -> nn.ParameterList:
    """Return log θ_k: of ISTA, λ/‖A‖², or those with which ALISTA starts.

    Raises:
        ValueError: if the start is unknown.
    """
    if start == "ista":
        return per_layer(strength * inverse for _ in range(layers))
    return per_layer(THRESHOLD * THRESHOLD_DECAY**layer for layer in range(layers))


def check_start(start: str) -> None:
    """Check what weights start as.

    Raises:
        ValueError: if it is unknown.
    """
    if start not in get_args(Start):
        raise ValueError(f"start must be one of {', '.join(get_args(Start))}, got {start!r}")


def start_matrix(dictionary: Tensor | None, rows: int, columns: int, analytic: bool) -> tuple[Tensor, float]:
    """Return what matrix weights start from, shape (rows, columns), and 1/‖A‖².

    That is A/‖A‖², or the analytic weights. Without a dictionary the weights are 0, to be loaded.

    Raises:
        ValueError: if the dictionary has another shape.
    """
    if dictionary is None:
        return torch.zeros(rows, columns), 1.0
    if tuple(dictionary.shape) != (rows, columns):
        raise ValueError(
            f"the dictionary must be {rows}×{columns} as in the rule's config, got {tuple(dictionary.shape)}; set rows "
            "and columns of the config (--rule.rows, --rule.columns)"
        )
    operator = Dictionary(dictionary.detach().to(torch.get_default_dtype()))
    inverse = 1 / operator.norm().item() ** 2
    return operator.analytic_weights if analytic else operator.matrix * inverse, inverse
