"""How well sparse codes are recovered: error in two conventions, its spread, and the support.

NMSE = 10 log₁₀(Σ ‖x − x*‖² / Σ ‖x*‖²)   (ratio of sums)      or of each problem, to be averaged over problems
"""

import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.rule import ModelBasedRule
from l2o.solve import stepper

PRESENT = 1e-3
"""An entry counts as found where |x_i| exceeds it; the codes' standard deviation is 1."""


@torch.no_grad()
def run(rule: ModelBasedRule, problem: Problem, steps: int) -> list[Tensor]:
    """Return the iterates after every step from x = 0."""
    x, iterates = problem.zeros(), []
    advance = stepper(rule, problem, x)
    for _ in range(steps):
        x = advance(x)
        iterates.append(x)
    return iterates


def nmse(x: Tensor, target: Tensor) -> float:
    """Return the ratio of sums in dB: 10 log₁₀(Σ ‖x − x*‖² / Σ ‖x*‖²)."""
    x, target = x.double(), target.double()
    return (10 * ((x - target).square().sum() / target.square().sum()).log10()).item()


def nmse_each(x: Tensor, target: Tensor) -> Tensor:
    """NMSE of each problem in dB, float64, not below that of float32's last bit squared."""
    x, target = x.double(), target.double()
    return 10 * ((x - target).square().sum(-1) / target.square().sum(-1)).clamp(min=1e-15).log10()


def spread(x: Tensor, target: Tensor, resamples: int = 1000) -> tuple[float, float, float]:
    """Return `nmse` and its 95 % interval over resampled problems (bootstrap)."""
    errors, sizes = (v.double().square().sum(-1) for v in (x - target, target))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(errors), (resamples, len(errors)), generator=generator)
    ratios = 10 * (errors[chosen].sum(1) / sizes[chosen].sum(1)).log10()
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=ratios.dtype)).tolist()
    return nmse(x, target), low, high


def support_f1(x: Tensor, target: Tensor) -> float:
    """Return the mean over problems of the F1 score of the support, entries above `PRESENT` counting as found."""
    found, present = x.abs() > PRESENT, target.abs() > PRESENT
    hits = (found & present).sum(-1)
    return (2 * hits / (found.sum(-1) + present.sum(-1)).clamp(min=1)).double().mean().item()
