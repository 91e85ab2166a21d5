"""Adam whose step size and memory follow a learned schedule.

s_t = log(1 + t / τ),   t = 0, 1, … earlier steps
α_t = α e^{−a s_t + w e^{−4 t / τ}}            step size: a power of time, and a factor e^w that fades out at the start
β_t = σ(b + c s_t)                             memory of the mean: 1 − β_t falls as a power of time
m_t = β_t m_{t−1} + (1 − β_t) g_t,             n_t = β_t n_{t−1} + 1 − β_t
v_t = ρ v_{t−1} + (1 − ρ) g_t²,                v̂_t = v_t / (1 − ρ^t)
u_t = −α_t ((1 − ν) m_t / n_t + ν g_t) / (√v̂_t + ε)

A large step size and a short memory take the loss down at once; a small step size and a long memory bring it lower in
the end. With a = w = c = ν = 0 this is Adam (Kingma & Ba 2015, arXiv:1412.6980), n_t being its 1 − β^t. ν is the
quasi-hyperbolic weight of Ma & Yarats 2019, arXiv:1810.06801, and c = 1 gives Nesterov's 1 − β_t ∝ 1/t. Powers of time
let a schedule that was learned over some steps go on beyond them. Updates do not depend on the loss's scale, which is
why these seven numbers carry over between losses and resolutions.
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
class ScheduledAdamConfig:
    """Initial schedule of `ScheduledAdam`; the default is Adam."""

    lr: float = 0.001
    """α > 0, parameter units."""
    lr_power: float = 0.0
    """a, dimensionless: the step size falls as (1 + t / τ)^−a."""
    warmup: float = 0.0
    """w, dimensionless: the first step is e^w times as large."""
    beta1: float = 0.9
    """σ(b) in (0, 1), the decay β of the mean at the first step, dimensionless."""
    beta1_power: float = 0.0
    """c, dimensionless: β / (1 − β) grows as (1 + t / τ)^c."""
    look_ahead: float = 0.0
    """ν, dimensionless: weight of the last gradient beside the mean."""
    beta2: float = 0.999
    """ρ in (0, 1), dimensionless."""
    timescale: float = 16.0
    """τ > 0, steps; not learned."""
    eps: float = 1e-8
    """ε > 0, gradient units; not learned."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if lr, timescale or eps is not positive and finite, a beta not in (0, 1), or another number not
                finite.
        """
        check_positive(lr=self.lr, timescale=self.timescale, eps=self.eps)
        check_decay(beta1=self.beta1, beta2=self.beta2)
        for name in ("lr_power", "warmup", "beta1_power", "look_ahead"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")


class ScheduledAdamState(NamedTuple):
    """Memory of `ScheduledAdam`."""

    first_moment: Tensor
    """m_t, shape (n,), gradient units."""
    first_weight: Tensor
    """n_t, shape (n,), dimensionless: the sum of the weights of the gradients in m_t."""
    second_moment: Tensor
    """v_t, shape (n,), squared gradient units."""


class ScheduledAdam(CoordinatewiseRule):
    """θ = {log_lr, lr_power, warmup, logit_beta1, beta1_power, tenfold_look_ahead, logit_beta2}, each of shape ().

    ν is learned as 10 ν: a change of 0.1 then matters about as much as one of any other weight, which evolution
    strategies, whose perturbations all have one scale, ask for. Much below ν = 0 a rule with a long memory diverges.
    """

    def __init__(self, config: ScheduledAdamConfig | None = None):
        super().__init__()
        self.config = config = config or ScheduledAdamConfig()

        def number(value: float) -> nn.Parameter:
            return nn.Parameter(torch.tensor(value))

        self.log_lr = number(math.log(config.lr))
        self.lr_power = number(config.lr_power)
        self.warmup = number(config.warmup)
        self.logit_beta1 = number(_logit(config.beta1))
        self.beta1_power = number(config.beta1_power)
        self.tenfold_look_ahead = number(10 * config.look_ahead)
        self.logit_beta2 = number(_logit(config.beta2))

    def init_coordinates(self, like: Tensor) -> ScheduledAdamState:
        """m_0 = n_0 = v_0 = 0."""
        zeros = torch.zeros_like(accumulator(like))
        return ScheduledAdamState(zeros, zeros.clone(), zeros.clone())

    def update(self, grads: Tensor, state: ScheduledAdamState, step: Tensor) -> tuple[Tensor, ScheduledAdamState]:
        """See the module's equations."""
        time = step / self.config.timescale
        log_time = time.log1p().to(self.log_lr.dtype)
        log_lr = self.log_lr - self.lr_power * log_time + self.warmup * (-4 * time).exp().to(self.log_lr.dtype)
        logit_beta1 = self.logit_beta1 + self.beta1_power * log_time
        first = lerp(state.first_moment, grads, logit_beta1)
        weight = lerp(state.first_weight, torch.ones_like(grads), logit_beta1)
        second = lerp(state.second_moment, grads.square(), self.logit_beta2)
        second_hat = second / one_minus_power(self.logit_beta2, step + 1)
        look_ahead = self.tenfold_look_ahead / 10
        direction = (1 - look_ahead) * (first / weight) + look_ahead * grads
        updates = -log_lr.exp() * direction / (safe_sqrt(second_hat) + self.config.eps)
        return updates, ScheduledAdamState(first, weight, second)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
