"""Choose learning rates for the neural-art benchmark: walk down a grid until the best is bracketed, then refine."""

import math
from collections.abc import Callable

from torch import Tensor

CRITERIA = ("mean", "end")
"""What a learning rate is best for: the log loss averaged over all steps, or after the last."""

_RATIO = 10**0.25
_MAX_EXTENSIONS = 16

Scores = dict[float, dict[str, float]]
"""Learning rate -> the scores of `scores`."""


def scores(losses: Tensor) -> dict[str, float]:
    """Return the mean over pairs of log f, over steps 1 … T ("mean") and at T ("end"); infinity if a run diverged.

    Args:
        losses: at θ_0 … θ_T, shape (T + 1, pairs).
    """
    logs = losses[1:].double().log().mean(1)
    found = {"mean": logs.mean().item(), "end": logs[-1].item()}
    return {name: value if math.isfinite(value) else math.inf for name, value in found.items()}


def tune(run: Callable[[float], Tensor], start: float) -> tuple[dict[str, float], Scores]:
    """Find the learning rates with the least scores.

    Four a decade from `start` downhill, until the best for each criterion has a worse one on both sides, then half a
    step around each.

    Args:
        run: learning rate -> losses, as `scores` takes them.

    Returns: the best learning rate for each criterion, and all that were tried.
    """
    tried: Scores = {}

    def score(exponent: float) -> dict[str, float]:
        lr = start * _RATIO**exponent
        if lr not in tried:
            tried[lr] = scores(run(lr))
        return tried[lr]

    def best(exponents: list[int], name: str) -> int:
        return min(exponents, key=lambda exponent: score(exponent)[name])

    low, high = -1, 1
    for _ in range(_MAX_EXTENSIONS):
        chosen = {best(list(range(low, high + 1)), name) for name in CRITERIA}
        if low < min(chosen) and max(chosen) < high:
            break
        low, high = min(low, min(chosen) - 1), max(high, max(chosen) + 1)
    for name in CRITERIA:
        exponent = best(list(range(low, high + 1)), name)
        for half in (exponent - 0.5, exponent + 0.5):
            score(half)
    return {name: min(tried, key=lambda lr: tried[lr][name]) for name in CRITERIA}, tried
