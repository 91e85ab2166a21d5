"""Heavy-ball and Nesterov momentum in the form of `torch.optim.SGD`.

m_t = μ m_{t−1} + g_t
u_t = −η m_t                 (heavy ball; Polyak 1964)
u_t = −η (g_t + μ m_t)       (Nesterov; Sutskever et al. 2013, in the reparametrised form that frameworks use)
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.rule import CoordinatewiseRule, accumulator
from l2o.rules.checks import check_decay, check_positive


@dataclass(frozen=True)
class MomentumConfig:
    """Initial hyper-parameters of `Momentum`."""

    lr: float = 0.01
    """Step size η > 0."""
    momentum: float = 0.9
    """Decay μ in (0, 1), dimensionless."""
    nesterov: bool = False
    """Look ahead along the momentum."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if lr is not positive and finite or momentum not in (0, 1).
        """
        check_positive(lr=self.lr)
        check_decay(momentum=self.momentum)


class MomentumState(NamedTuple):
    """Memory of `Momentum`."""

    momentum: Tensor
    """m_t, shape (n,), gradient units."""


class Momentum(CoordinatewiseRule):
    """Gradient descent with momentum, θ = {log_lr (), logit_momentum ()}."""

    def __init__(self, config: MomentumConfig | None = None):
        super().__init__()
        self.config = config or MomentumConfig()
        self.log_lr = nn.Parameter(torch.tensor(math.log(self.config.lr)))
        self.logit_momentum = nn.Parameter(torch.logit(torch.tensor(self.config.momentum)))

    def init_coordinates(self, like: Tensor) -> MomentumState:
        """m_0 = 0."""
        return MomentumState(torch.zeros_like(accumulator(like)))

    def update(self, grads: Tensor, state: MomentumState, step: Tensor) -> tuple[Tensor, MomentumState]:
        """See the module's equations."""
        decay = torch.sigmoid(self.logit_momentum)
        momentum = decay * state.momentum + grads
        direction = grads + decay * momentum if self.config.nesterov else momentum
        return -self.log_lr.exp() * direction, MomentumState(momentum)
