"""Gradient descent, θ_{t+1} = θ_t − η g_t, with a learnable step size."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.rule import CoordinatewiseRule
from l2o.rules.checks import check_positive


@dataclass(frozen=True)
class SGDConfig:
    """Initial hyper-parameters of `SGD`."""

    lr: float = 0.01
    """Step size η > 0, parameter units per gradient unit."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if lr is not positive and finite.
        """
        check_positive(lr=self.lr)


class SGDState(NamedTuple):
    """Gradient descent remembers nothing."""


class SGD(CoordinatewiseRule):
    """Gradient descent, θ = {log_lr ()}. Equals `torch.optim.SGD` without momentum."""

    def __init__(self, config: SGDConfig | None = None):
        super().__init__()
        self.config = config or SGDConfig()
        self.log_lr = nn.Parameter(torch.tensor(math.log(self.config.lr)))

    def init_coordinates(self, like: Tensor) -> SGDState:
        """Return the empty state."""
        return SGDState()

    def update(self, grads: Tensor, state: SGDState, step: Tensor) -> tuple[Tensor, SGDState]:
        """u_t = −η g_t."""
        return -self.log_lr.exp() * grads, state
