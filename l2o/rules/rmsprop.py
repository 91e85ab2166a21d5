"""RMSprop (Tieleman & Hinton 2012, lecture 6.5) in the form of `torch.optim.RMSprop`.

v_t = α v_{t−1} + (1 − α) g_t²
u_t = −η g_t / (√v_t + ε)
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.rule import CoordinatewiseRule, accumulator
from l2o.rules.checks import check_decay, check_positive
from l2o.rules.moments import lerp, safe_sqrt


@dataclass(frozen=True)
class RMSpropConfig:
    """Initial hyper-parameters of `RMSprop`."""

    lr: float = 0.01
    """Step size η > 0, parameter units."""
    decay: float = 0.99
    """α in (0, 1), dimensionless."""
    eps: float = 1e-8
    """ε > 0, gradient units; not learned."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if lr or eps is not positive and finite or decay not in (0, 1).
        """
        check_positive(lr=self.lr, eps=self.eps)
        check_decay(decay=self.decay)


class RMSpropState(NamedTuple):
    """Memory of `RMSprop`."""

    second_moment: Tensor
    """v_t, shape (n,), squared gradient units."""


class RMSprop(CoordinatewiseRule):
    """Gradients divided by a running root mean square, θ = {log_lr (), logit_decay ()}."""

    def __init__(self, config: RMSpropConfig | None = None):
        super().__init__()
        self.config = config or RMSpropConfig()
        self.log_lr = nn.Parameter(torch.tensor(math.log(self.config.lr)))
        self.logit_decay = nn.Parameter(torch.logit(torch.tensor(self.config.decay)))

    def init_coordinates(self, like: Tensor) -> RMSpropState:
        """v_0 = 0."""
        return RMSpropState(torch.zeros_like(accumulator(like)))

    def update(self, grads: Tensor, state: RMSpropState, step: Tensor) -> tuple[Tensor, RMSpropState]:
        """See the module's equations."""
        second = lerp(state.second_moment, grads.square(), self.logit_decay)
        return -self.log_lr.exp() * grads / (safe_sqrt(second) + self.config.eps), RMSpropState(second)
