"""HyperLISTA: three scalars are learned, everything else adapts to A and to the item.

    x_{k+1} = η^{p_k}_{θ_k}(x_k − Wᵀ(A x_k − b) + β_k (x_k − x_{k−1}))
    θ_k = c₁ ‖A⁺(A x_k − b)‖₁ / ν,   β_k = c₂ ‖x_k‖₀ / ν,   p_k = c₃ ν log(‖A⁺b‖₁ / ‖A⁺(A x_k − b)‖₁),   ν = n / 500

with W of symmetric Jacobian (`Dictionary.symmetric_weights`). Once the support is found, conjugate gradients on it,

    minimise ‖A_S x_S − b‖²,   S = the `conjugate_support` m largest entries at the switch, m rows,

take over, one of their steps a step of the rule: off by default.

Source: Chen, Liu, Wang & Yin 2021, Hyperparameter tuning is all you need for LISTA, NeurIPS, arXiv:2110.15900, §4 (the
rules for θ, β and p) and §4.2 (switching); η^p from `l2o.rules.support`. Differs from it: p_k is a number of entries,
at most m/2, for a code with more is not the only one with its b; the switch comes after a given number of steps, and S
is larger than the support, so as to miss no entry. ν is ours (1 for the paper's 500 columns): ‖·‖₁, ‖·‖₀ and p grow
with n, so that without it three scalars found for one size fail on another (−2 dB instead of −89 dB on 500×1000).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.problem import Problem
from l2o.rule import ModelBasedRule
from l2o.rules.checks import check_positive
from l2o.rules.support import check_layers, dictionary_of, multiply, shared, threshold_but_own_largest

_COLUMNS = 500
"""n of the matrix that the three scalars are for: that of the paper."""


class HyperLISTAState(NamedTuple):
    """What HyperLISTA computes once, and remembers; an entry that its options do not need has no elements."""

    weights: Tensor
    """Wᵀ, shape (1, n, m), or (batch…, n, m) where each item has its own A."""
    inverse: Tensor
    """A⁺, shape as `weights`."""
    scale: Tensor
    """‖A⁺b‖₁, shape (batch…, 1)."""
    previous: Tensor
    """x_{k−1}, the shape of x."""
    direction: Tensor
    """Of the conjugate gradients, the shape of x; 0 outside S."""
    support: Tensor
    """S, bool, the shape of x."""
    energy: Tensor
    """‖(Aᵀ(b − A x))_S‖², shape (batch…, 1)."""


@dataclass(frozen=True)
class HyperLISTAConfig:
    """Initial values and options of `HyperLISTA`."""

    layers: int = 16
    """Steps that `l2o.solve` makes if it is not told how many."""
    threshold_scale: float = 0.01
    """c₁ to begin with, dimensionless."""
    momentum_scale: float = 0.005
    """c₂ to begin with, per entry of the support of a code of 500."""
    support_scale: float = 25.0
    """c₃ to begin with, entries of a code of 500."""
    symmetric: bool = True
    """W of symmetric Jacobian; else the analytic weights of ALISTA."""
    conjugate_from: int | None = None
    """Step from which conjugate gradients take over; None: never."""
    conjugate_support: float = 0.4
    """Size of S as a fraction of the rows of A; for conjugate_from."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if layers is below 1, a scale is not positive, the switch is before the first step, or the
                fraction is outside (0, 1].
        """
        check_layers(self.layers)
        scales = (self.threshold_scale, self.momentum_scale, self.support_scale)
        check_positive(**dict(zip(("threshold_scale", "momentum_scale", "support_scale"), scales, strict=True)))
        if self.conjugate_from is not None and self.conjugate_from < 1:
            raise ValueError(f"conjugate_from must be at least 1, or None for never, got {self.conjugate_from}")
        if not 0 < self.conjugate_support <= 1:
            raise ValueError(f"conjugate_support is a fraction of the rows, in (0, 1], got {self.conjugate_support}")


class HyperLISTA(ModelBasedRule):
    """θ = {log_threshold_scale, log_momentum_scale, log_support_scale: scalars}; for any matrix.

    Layer 0 is an ISTA step with Wᵀ in the place of Aᵀ, step size 1 and the threshold c₁ ‖A⁺b‖₁ / ν. The gradient of
    log_support_scale is 0, for a number of entries has none: see `meta_train.search`.
    """

    def __init__(self, config: HyperLISTAConfig | None = None):
        super().__init__()
        self.config = config or HyperLISTAConfig()
        self.layers = self.config.layers
        self.log_threshold_scale = nn.Parameter(torch.tensor(math.log(self.config.threshold_scale)))
        self.log_momentum_scale = nn.Parameter(torch.tensor(math.log(self.config.momentum_scale)))
        self.log_support_scale = nn.Parameter(torch.tensor(math.log(self.config.support_scale)))

    def init_problem(self, problem: Problem, x: Tensor) -> HyperLISTAState:
        """See `ModelBasedRule.init_problem`."""
        dictionary, none = dictionary_of(problem, "HyperLISTA"), x.new_empty(0)
        weights = dictionary.symmetric_weights if self.config.symmetric else dictionary.analytic_weights
        inverse, conjugate = shared(dictionary.pseudo_inverse), self.config.conjugate_from is not None
        return HyperLISTAState(
            weights=shared(weights.mT),
            inverse=inverse,
            scale=multiply(inverse, problem.b).abs().sum(-1, keepdim=True),
            previous=x,
            direction=torch.zeros_like(x) if conjugate else none,
            support=torch.zeros_like(x, dtype=torch.bool) if conjugate else none,
            energy=torch.ones_like(x[..., :1]) if conjugate else none,
        )

    def iterate(self, problem: Problem, x: Tensor, state: HyperLISTAState, step: int) -> tuple[Tensor, HyperLISTAState]:
        """See the module's equations."""
        switch = self.config.conjugate_from
        if switch is not None and step >= switch:
            return self._conjugate(problem, x, state, step == switch)
        residual, size = problem.residual(x), x.shape[-1] / _COLUMNS
        error = multiply(state.inverse, residual).abs().sum(-1, keepdim=True)
        threshold = self.log_threshold_scale.exp().to(x.dtype) / size * error
        momentum = self.log_momentum_scale.exp().to(x.dtype) / size * (x != 0).sum(-1, keepdim=True)
        tiny = torch.finfo(x.dtype).tiny
        progress = (state.scale.clamp(min=tiny) / error.clamp(min=tiny)).log()
        counts = (self.log_support_scale.exp().to(x.dtype) * size * progress).detach().squeeze(-1)
        most = min(max(problem.operator.out_shape[0] // 2, 1), x.shape[-1])
        descent = x - multiply(state.weights, residual) + momentum * (x - state.previous)
        new = threshold_but_own_largest(descent, threshold, counts.clamp(0, most).long(), most)
        return new, state._replace(previous=x)

    def _conjugate(
        self, problem: Problem, x: Tensor, state: HyperLISTAState, first: bool
    ) -> tuple[Tensor, HyperLISTAState]:
        """One step of conjugate gradients on the normal equations of S, Hestenes & Stiefel 1952."""
        residual = problem.residual(x)
        support = self._choose_support(problem, x, residual, state) if first else state.support
        if first:  # what lies outside S is left out
            x = x * support
            residual = problem.residual(x)
        descent = -problem.operator.adjoint(residual) * support
        energy = descent.square().sum(-1, keepdim=True)
        fresh = 0.0 if first else energy / state.energy.clamp(min=torch.finfo(x.dtype).tiny)
        direction = descent + fresh * state.direction
        curvature = problem.operator.forward(direction).square().sum(-1, keepdim=True)
        length = torch.where(curvature > 0, (descent * direction).sum(-1, keepdim=True), 0.0)
        new = x + length / torch.where(curvature > 0, curvature, 1.0) * direction
        return new, state._replace(previous=x, direction=direction, support=support, energy=energy)

    def _choose_support(self, problem: Problem, x: Tensor, residual: Tensor, state: HyperLISTAState) -> Tensor:
        """Return S: the largest entries of x − Wᵀ(A x − b)."""
        count = min(max(1, round(self.config.conjugate_support * problem.operator.out_shape[0])), x.shape[-1])
        size = (x - multiply(state.weights, residual)).detach().abs()
        return size >= size.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
