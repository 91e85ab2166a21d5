"""Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1) in the form of `torch.optim.Adam`.

m_t = β₁ m_{t−1} + (1 − β₁) g_t
v_t = β₂ v_{t−1} + (1 − β₂) g_t²
u_t = −η m̂_t / (√v̂_t + ε),   m̂_t = m_t / (1 − β₁^t),   v̂_t = v_t / (1 − β₂^t)
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.rule import CoordinatewiseRule, accumulator
from l2o.rules.checks import check_decay, check_positive
from l2o.rules.moments import lerp, one_minus_power, safe_sqrt


@dataclass(frozen=True)
class AdamConfig:
    """Initial hyper-parameters of `Adam`."""

    lr: float = 0.001
    """Step size η > 0, parameter units."""
    beta1: float = 0.9
    """β₁ in (0, 1), dimensionless."""
    beta2: float = 0.999
    """β₂ in (0, 1), dimensionless."""
    eps: float = 1e-8
    """ε > 0, gradient units; not learned."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if lr or eps is not positive and finite or a beta not in (0, 1).
        """
        check_positive(lr=self.lr, eps=self.eps)
        check_decay(beta1=self.beta1, beta2=self.beta2)


class AdamState(NamedTuple):
    """Memory of `Adam`."""

    first_moment: Tensor
    """m_t, shape (n,), gradient units."""
    second_moment: Tensor
    """v_t, shape (n,), squared gradient units."""


class Adam(CoordinatewiseRule):
    """Adaptive moments, θ = {log_lr (), logit_beta1 (), logit_beta2 ()}."""

    def __init__(self, config: AdamConfig | None = None):
        super().__init__()
        self.config = config or AdamConfig()
        self.log_lr = nn.Parameter(torch.tensor(math.log(self.config.lr)))
        self.logit_beta1 = nn.Parameter(torch.logit(torch.tensor(self.config.beta1)))
        self.logit_beta2 = nn.Parameter(torch.logit(torch.tensor(self.config.beta2)))

    def init_coordinates(self, like: Tensor) -> AdamState:
        """m_0 = v_0 = 0."""
        zeros = torch.zeros_like(accumulator(like))
        return AdamState(zeros, zeros.clone())

    def update(self, grads: Tensor, state: AdamState, step: Tensor) -> tuple[Tensor, AdamState]:
        """See the module's equations."""
        first = lerp(state.first_moment, grads, self.logit_beta1)
        second = lerp(state.second_moment, grads.square(), self.logit_beta2)
        first_hat = first / one_minus_power(self.logit_beta1, step + 1)
        second_hat = second / one_minus_power(self.logit_beta2, step + 1)
        return -self.log_lr.exp() * first_hat / (safe_sqrt(second_hat) + self.config.eps), AdamState(first, second)
