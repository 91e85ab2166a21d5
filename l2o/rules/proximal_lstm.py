"""A coordinate-wise LSTM that chooses step sizes and momentum of a proximal gradient step (L2O-PA).

    a_k = σ(w_a h_k + b_a),   p_k = σ(w_p h_k + b_p) (2 + 2 a_k) / (1 + 2 a_k)   of an LSTM that reads (x_k, ∇f(x_k))
    x_{k+1}  = prox_{(p_k/L) g}(y_k − (p_k/L) ∇f(y_k))
    y_{k+1}  = x_{k+1} + a_k (x_{k+1} − x_k),   y_0 = x_0

The minimisers are fixed points whatever p and a are: what is learned changes how fast the iterates get there, not where
they go. Source: Liu et al. 2023, Towards Constituting Mathematical Structures for Learning to Optimize, ICML,
arXiv:2305.18577, the form that they call L2O-PA (no biases). Differs: they take 2σ for p and a, which can diverge; here
constant p and a < 1 would be stable on every quadratic of Lipschitz bound L. No hidden layer between LSTM and p, a; the
LSTM's weights start from U(±1/√H), the output from a = 0.5, p = 0.75.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.kernels.reference import lstm_cell
from l2o.problem import Problem
from l2o.proximal import L1, NonnegativeL1, soft_threshold
from l2o.rule import ModelBasedRule


@dataclass(frozen=True)
class ProximalLSTMConfig:
    """Shape of `ProximalLSTM`."""

    hidden_size: int = 20
    """Units per layer."""
    depth: int = 2
    """Stacked LSTM layers."""

    def __post_init__(self):
        """Check the sizes.

        Raises:
            ValueError: if one is below 1.
        """
        if self.hidden_size < 1 or self.depth < 1:
            raise ValueError(f"hidden_size and depth must be at least 1, got {self.hidden_size} and {self.depth}")


class ProximalLSTMState(NamedTuple):
    """Memory of `ProximalLSTM`; n is the number of coordinates of all items."""

    y: Tensor
    """The extrapolated point, the shape of x."""
    hidden: Tensor
    """h, shape (depth, hidden_size, n)."""
    cell: Tensor
    """c, shape (depth, hidden_size, n)."""
    step_size: Tensor
    """1 / L, shape () or one per item."""


class ProximalLSTM(ModelBasedRule):
    """L2O-PA, θ = {weights.l (4H, in + H), biases.l (4H,), output_weight (2, H), output_bias (2,)}."""

    def __init__(self, config: ProximalLSTMConfig | None = None, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config or ProximalLSTMConfig()
        size = self.config.hidden_size
        inputs = [2] + [size] * (self.config.depth - 1)

        def uniform(*shape):
            return nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) / size**0.5)

        self.weights = nn.ParameterList(uniform(4 * size, width + size) for width in inputs)
        self.biases = nn.ParameterList(uniform(4 * size) for _ in inputs)
        self.output_weight = nn.Parameter(0.1 * torch.randn(2, size, generator=generator) / size**0.5)
        self.output_bias = nn.Parameter(torch.zeros(2))

    def init_problem(self, problem: Problem, x: Tensor) -> ProximalLSTMState:
        """Return y_0 = x and h = c = 0.

        Raises:
            ValueError: if the regularizer is not separable, so that a coordinate cannot have a step size of its own.
        """
        if not isinstance(problem.regularizer, L1 | NonnegativeL1) or problem.composite is not None:
            kind = type(problem.composite or problem.regularizer).__name__
            raise ValueError(f"ProximalLSTM needs a regularizer that is a sum over coordinates (L1), got {kind}")
        zeros = x.new_zeros(self.config.depth, self.config.hidden_size, x.numel())
        return ProximalLSTMState(x, zeros, zeros, 1 / problem.lipschitz)

    def iterate(
        self, problem: Problem, x: Tensor, state: ProximalLSTMState, step: int
    ) -> tuple[Tensor, ProximalLSTMState]:
        """See the module's equations."""
        p, a, hidden, cell = self._choose(x, problem.smooth_grad(x), state)
        sizes = p * problem.per_item(state.step_size)
        descent = state.y - sizes * problem.smooth_grad(state.y)
        moved = _prox(problem, descent, sizes)
        return moved, state._replace(y=moved + a * (moved - x), hidden=hidden, cell=cell)

    def _choose(self, x: Tensor, grad: Tensor, state: ProximalLSTMState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return p and a, the shape of x, and the next h and c."""
        dtype = self.output_bias.dtype
        top, hiddens, cells = torch.stack([x.flatten(), grad.flatten()]).to(dtype), [], []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            top, memory = lstm_cell(top, state.hidden[layer].to(dtype), state.cell[layer].to(dtype), weight, bias)
            hiddens.append(top)
            cells.append(memory)
        p, a = torch.sigmoid(torch.addmm(self.output_bias[:, None], self.output_weight, top)).to(x.dtype)
        p = p * (2 + 2 * a) / (1 + 2 * a)
        return p.view_as(x), a.view_as(x), torch.stack(hiddens), torch.stack(cells)


def _prox(problem: Problem, v: Tensor, sizes: Tensor) -> Tensor:
    """Return the prox of g with a step size for each coordinate, the shape of v."""
    g = problem.regularizer
    assert isinstance(g, L1 | NonnegativeL1)
    thresholds = sizes * problem.per_item(g.strength)
    return soft_threshold(v, thresholds) if isinstance(g, L1) else (v - thresholds).relu()
