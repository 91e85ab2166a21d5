"""Classic optimizers, tuned fairly: the learning rate that is best on problems of their own."""

import math
from collections.abc import Callable

import torch

from l2o.rule import UpdateRule
from l2o.rules import SGD, Adam, AdamConfig, Momentum, MomentumConfig, RMSprop, RMSpropConfig, SGDConfig
from meta_train.unroll import evaluate
from tasks.task import TaskFamily

CLASSICS: dict[str, Callable[[float], UpdateRule]] = {
    "SGD": lambda lr: SGD(SGDConfig(lr)),
    "momentum": lambda lr: Momentum(MomentumConfig(lr)),
    "NAG": lambda lr: Momentum(MomentumConfig(lr, nesterov=True)),
    "RMSprop": lambda lr: RMSprop(RMSpropConfig(lr)),
    "Adam": lambda lr: Adam(AdamConfig(lr)),
}
"""Method -> rule for a learning rate; the other constants are torch.optim's defaults, momentum is 0.9."""

GRID = tuple(10 ** (exponent / 4) for exponent in range(-14, 3))
"""17 learning rates from 3e-4 to 3, four a decade; extended where the best lies at an end, refined around the best."""

_MAX_EXTENSIONS = 8
_RATIO = 10**0.25


def tune(
    build: Callable[[float], UpdateRule], family: TaskFamily, problems: int, horizon: int, seed: int
) -> tuple[float, int]:
    """Find the learning rate with the lowest mean sum of losses on outer_valid problems.

    Returns: the learning rate, and how many were tried.
    """
    scores: dict[float, float] = {}

    def score(lr: float) -> float:
        if lr not in scores:
            generator = torch.Generator().manual_seed(seed)
            losses = evaluate(build(lr), family, problems, horizon, "outer_valid", generator)
            mean = losses.double().sum(0).mean().item()
            scores[lr] = mean if math.isfinite(mean) else math.inf
        return scores[lr]

    best = min(GRID, key=score)
    for _ in range(_MAX_EXTENSIONS):
        if best not in (min(scores), max(scores)):
            break
        best = min(best, best * _RATIO if best == max(scores) else best / _RATIO, key=score)
    for power in (0.5, 0.25):
        best = min(best, best * _RATIO**power, best / _RATIO**power, key=score)
    return best, len(scores)
