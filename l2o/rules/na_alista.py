"""NA-ALISTA: an LSTM gives ALISTA the step size and the threshold of every item and step.

    r = A x_k − b,   u = Wᵀr,   (c, h) = LSTM((c, h), [log ‖r‖₁, log ‖u‖₁])
    (γ_k, θ_k) = softplus(V relu(U c + d) + e)
    x_{k+1} = η^{p_k}_{θ_k}(x_k − γ_k u)

Source: Behrens, Sauder & Jung 2021, Neurally augmented ALISTA, ICLR, arXiv:2010.01930, Algorithm 2; W and η^p as in
`alista`. Differs from it: the LSTM sees logarithms of the norms over their values at the first step, so that the scale
of b does not matter, and θ is in units of ‖u‖₁ / n; the paper standardises the norms by those of the first batch.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.problem import Problem
from l2o.rule import ModelBasedRule
from l2o.rules.support import (
    SUPPORT_MOST,
    SUPPORT_STEP,
    check_layers,
    check_sizes,
    dictionary_of,
    multiply,
    shared,
    support_count,
    threshold_but_largest,
)


class NAALISTAState(NamedTuple):
    """What NA-ALISTA computes once, and remembers."""

    weights: Tensor
    """Wᵀ, shape (1, n, m), or (batch…, n, m) where each item has its own A."""
    cell: Tensor
    """c, shape (batch…, hidden_size)."""
    hidden: Tensor
    """h, shape (batch…, hidden_size)."""
    scale: Tensor
    """‖r‖₁ and ‖u‖₁ at the start, shape (batch…, 2)."""


@dataclass(frozen=True)
class NAALISTAConfig:
    """Shape and initial values of `NAALISTA`."""

    layers: int = 16
    """Steps that it is trained for; all have the same weights."""
    hidden_size: int = 32
    """Units of the LSTM."""
    support_step: float = SUPPORT_STEP
    """Fraction of the entries that every step trusts more than the one before; 0: no support selection."""
    support_most: float = SUPPORT_MOST
    """Fraction of the entries that a step trusts, at most."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if a size is below 1, or a fraction is outside [0, 1].
        """
        check_layers(self.layers, self.support_step, self.support_most)
        check_sizes(self.hidden_size, 1)


class NAALISTA(ModelBasedRule):
    """θ = {start_cell, start_hidden (h,), the LSTM's, those of U and V}; for any matrix.

    V starts at 0, so that to begin with every step is ALISTA's with γ = 1 and θ = 2 ‖u‖₁ / n.

    Args:
        generator: source of the initial weights; None is torch's own.
    """

    def __init__(self, config: NAALISTAConfig | None = None, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config = config or NAALISTAConfig()
        self.layers, size = config.layers, config.hidden_size
        self.start_cell, self.start_hidden = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(size))
        self.lstm, self.inner, self.outer = nn.LSTMCell(2, size), nn.Linear(size, size), nn.Linear(size, 2)
        with torch.no_grad():
            for parameter in (*self.lstm.parameters(), *self.inner.parameters()):
                parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) / size**0.5)
            self.outer.weight.zero_()
            self.outer.bias.copy_(torch.tensor([1.0, 2.0]).expm1().log())  # softplus⁻¹

    def init_problem(self, problem: Problem, x: Tensor) -> NAALISTAState:
        """See `ModelBasedRule.init_problem`."""
        weights = shared(dictionary_of(problem, "NA-ALISTA").analytic_weights.mT)
        shape = (*problem.batch_shape, self.config.hidden_size)
        norms = self._norms(residual := problem.residual(x), multiply(weights, residual))
        return NAALISTAState(weights, self.start_cell.expand(shape), self.start_hidden.expand(shape), norms)

    def iterate(self, problem: Problem, x: Tensor, state: NAALISTAState, step: int) -> tuple[Tensor, NAALISTAState]:
        """See the module's equations."""
        config = self.config
        layer = min(step, config.layers - 1)
        count = support_count(layer, x.shape[-1], config.support_step, config.support_most)
        residual = problem.residual(x)
        correction = multiply(state.weights, residual)
        norms = self._norms(residual, correction)
        seen = (norms / state.scale).log().to(state.cell.dtype)
        rows = (-1, self.config.hidden_size)  # LSTMCell takes one batch axis
        memory = self.lstm(seen.reshape(-1, 2), (state.hidden.reshape(rows), state.cell.reshape(rows)))
        hidden, cell = (tensor.reshape(state.cell.shape) for tensor in memory)
        scalars = nn.functional.softplus(self.outer(self.inner(cell).relu())).to(x.dtype)
        step_size, threshold = scalars[..., :1], scalars[..., 1:] * norms[..., 1:] / x.shape[-1]
        new = threshold_but_largest(x - step_size * correction, threshold, count)
        return new, state._replace(cell=cell, hidden=hidden)

    def _norms(self, residual: Tensor, correction: Tensor) -> Tensor:
        """‖r‖₁ and ‖u‖₁, shape (batch…, 2), not 0."""
        norms = torch.stack([residual.abs().sum(-1), correction.abs().sum(-1)], -1)
        return norms.clamp(min=torch.finfo(norms.dtype).tiny)
