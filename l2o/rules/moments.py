"""Arithmetic that rules with exponential moving averages share."""

import torch
from torch import Tensor, nn


def lerp(old: Tensor, new: Tensor, logit_decay: Tensor) -> Tensor:
    """β old + (1 − β) new with β = σ(logit_decay); σ(−x) keeps the digits of 1 − σ(x) when β is near one."""
    return torch.sigmoid(logit_decay) * old + torch.sigmoid(-logit_decay) * new


def one_minus_power(logit_decay: Tensor, power: Tensor) -> Tensor:
    """1 − β^power, shape of `power`; expm1 and log σ keep the digits that 1 − β^t would cancel."""
    return -torch.expm1(power * nn.functional.logsigmoid(logit_decay))


def safe_sqrt(value: Tensor) -> Tensor:
    """√value with derivative 0 at 0, where the true one is infinite and would turn a second-order gradient to NaN."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1).sqrt(), 0)
