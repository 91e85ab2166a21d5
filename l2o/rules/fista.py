"""Accelerated proximal gradient descent, FISTA, with restarts and backtracking.

    y_k     = x_k + β_k (x_k − x_{k−1}),   β_k = (t_k − 1) / t_{k+1},   t_{k+1} = (1 + √(1 + 4 t_k²)) / 2,   t_1 = 1
    x_{k+1} = prox_{s g}(y_k − s ∇f(y_k)),   s = 1 / L

Restart, for each item by itself: β_k = 0 and t_{k+1} = 1 where the last step went uphill,

    gradient:  ⟨y_{k−1} − x_k, x_k − x_{k−1}⟩ > 0        function:  F(x_k) > F(x_{k−1})

Source: Beck & Teboulle 2009, SIAM J. Imaging Sciences 2(1), eqs. 4.1–4.3 and, with backtracking, §4; O'Donoghue &
Candès 2015, Found. Comput. Math. 15, §3.2. Differs from them: backtracking makes one trial a step. It starts from
L = ‖AAᵀb‖² / ‖Aᵀb‖² ≤ ‖A‖², and an item whose trial fails

    ½‖A(x_{k+1} − y_k)‖² ≤ ½ L ‖x_{k+1} − y_k‖²

stays where it is and grows its L, so that no loop has to wait for the slowest item of a batch.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import Dictionary
from l2o.proximal.function import item_sum
from l2o.rule import ModelBasedRule

Restart = Literal["none", "gradient", "function"]


class FISTAState(NamedTuple):
    """What FISTA remembers; an entry that its options do not need has no elements."""

    previous: Tensor
    """x_{k−1}, the shape of x."""
    extrapolated: Tensor
    """y_{k−1}, the shape of x; for restart="gradient"."""
    momentum: Tensor
    """t_k, shape (batch…, 1…); 0 before the first step."""
    step_size: Tensor
    """s, shape () or one per item."""
    value: Tensor
    """F(x_{k−1}), the shape of the batch axes; for restart="function"."""
    matrix: Tensor
    """I − s AᵀA, shape (n, n); where all items share a dictionary."""
    offset: Tensor
    """s Aᵀb, the shape of x; where all items share a dictionary."""


@dataclass(frozen=True)
class FISTAConfig:
    """Options of `FISTA`."""

    restart: Restart = "gradient"
    """When momentum starts afresh: never (none), or where it points uphill by the gradient or by the function."""
    backtracking: bool = False
    """Whether to find L for each item instead of computing ‖A‖²; a third more products with A."""
    growth: float = 2.0
    """Factor of L after a failed trial, above 1; for backtracking."""

    def __post_init__(self):
        """Check the options.

        Raises:
            ValueError: if the restart is none of those named, or the growth is not above 1.
        """
        if self.restart not in get_args(Restart):
            raise ValueError(f"restart must be one of {', '.join(get_args(Restart))}, got {self.restart!r}")
        if not 1 < self.growth < float("inf"):
            raise ValueError(f"growth must be above 1, got {self.growth}")


class FISTA(ModelBasedRule):
    """Proximal gradient steps from extrapolated points; nothing is learned."""

    def __init__(self, config: FISTAConfig | None = None):
        super().__init__()
        self.config = config or FISTAConfig()

    def init_problem(self, problem: Problem, x: Tensor) -> FISTAState:
        """See `ModelBasedRule.init_problem`."""
        options, none = self.config, x.new_empty(0)
        step_size = _first_step_size(problem) if options.backtracking else 1 / problem.lipschitz.to(x.dtype)
        matrix = offset = none
        if self._uses_gram(problem):
            gram = problem.operator.gram  # pyright: ignore[reportAttributeAccessIssue]
            matrix = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device) - step_size * gram
            offset = step_size * problem.operator.adjoint(problem.b)
        return FISTAState(
            previous=x,
            extrapolated=x if options.restart == "gradient" else none,
            momentum=x.new_zeros((*problem.batch_shape, *(1,) * problem.ndim)),
            step_size=step_size,
            value=x.new_full(problem.batch_shape, torch.inf) if options.restart == "function" else none,
            matrix=matrix,
            offset=offset,
        )

    def iterate(self, problem: Problem, x: Tensor, state: FISTAState, step: int) -> tuple[Tensor, FISTAState]:
        """Extrapolate, then one proximal gradient step."""
        move = x - state.previous
        uphill, value = self._uphill(problem, x, move, state)
        following = (1 + (1 + 4 * state.momentum.square()).sqrt()) / 2
        weight = (state.momentum - 1) / following
        if uphill is not None:
            weight, following = torch.where(uphill, 0.0, weight), torch.where(uphill, 1.0, following)
        y = torch.addcmul(x, weight, move)
        new = problem.prox(self._descend(problem, y, state), state.step_size)
        extrapolated = y if self.config.restart == "gradient" else state.extrapolated
        after = state._replace(previous=x, extrapolated=extrapolated, momentum=following, value=value)
        return self._backtrack(problem, x, y, new, state, after) if self.config.backtracking else (new, after)

    def _uphill(self, problem: Problem, x: Tensor, move: Tensor, state: FISTAState) -> tuple[Tensor | None, Tensor]:
        """Tell which items restart, shape (batch…, 1…), or None; and F(x), where the test needs it."""
        if self.config.restart == "none":
            return None, state.value
        if self.config.restart == "gradient":
            uphill, value = item_sum((state.extrapolated - x) * move, problem.ndim) > 0, state.value
        else:
            value = problem.value(x)
            uphill = value > state.value
        return uphill.reshape(state.momentum.shape), value

    def _descend(self, problem: Problem, y: Tensor, state: FISTAState) -> Tensor:
        """Return y − s ∇f(y), as one product (I − s AᵀA) y + s Aᵀb where that is not dearer."""
        if not self._uses_gram(problem):
            return y - problem.per_item(state.step_size) * problem.smooth_grad(y)
        rows = (-1, y.shape[-1])
        return torch.addmm(state.offset.reshape(rows), y.reshape(rows), state.matrix).reshape(y.shape)

    def _uses_gram(self, problem: Problem) -> bool:
        """n² multiplications with AᵀA against 2mn with A and Aᵀ."""
        operator = problem.operator
        if not isinstance(operator, Dictionary) or operator.matrix.requires_grad:  # its AᵀA is a constant
            return False
        shared = operator.matrix.dim() == 2 and not self.config.backtracking
        return shared and operator.in_shape[0] <= 2 * operator.out_shape[0]

    def _backtrack(
        self, problem: Problem, x: Tensor, y: Tensor, new: Tensor, state: FISTAState, after: FISTAState
    ) -> tuple[Tensor, FISTAState]:
        """Keep the step of an item whose curvature was at most L; the others stay and grow L."""
        difference = new - y
        curvature = item_sum(problem.operator.forward(difference).square(), len(problem.operator.out_shape))
        # Rounding: a curvature that equals L must pass.
        bound = item_sum(difference.square(), problem.ndim) * (1 + 10 * torch.finfo(x.dtype).eps)
        fits = curvature * state.step_size <= bound
        kept = fits.reshape(state.momentum.shape)
        return torch.where(kept, new, x), FISTAState(
            previous=torch.where(kept, after.previous, state.previous),
            extrapolated=torch.where(kept, y, state.extrapolated) if state.extrapolated.numel() else state.extrapolated,
            momentum=torch.where(kept, after.momentum, state.momentum),
            step_size=torch.where(fits, state.step_size, state.step_size / self.config.growth),
            value=torch.where(fits, after.value, state.value) if state.value.numel() else state.value,
            matrix=state.matrix,
            offset=state.offset,
        )


def _first_step_size(problem: Problem) -> Tensor:
    """‖Aᵀb‖² / ‖AAᵀb‖² for each item, 1 where Aᵀb = 0."""
    correlation = problem.operator.adjoint(problem.b)
    image = problem.operator.forward(correlation)
    numerator = item_sum(correlation.square(), problem.ndim)
    denominator = item_sum(image.square(), len(problem.operator.out_shape))
    return torch.where(denominator > 0, numerator / torch.where(denominator > 0, denominator, 1.0), 1.0)
