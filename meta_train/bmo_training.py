"""Train rules for robust sparse coding: all on the same signals and with the same loss.

The loss of a rule is Σ_k w_k log(mean relative suboptimality (F(z_k) − F(z*)) / F(z*) after k layers + 1e-6), where
F(z) = ‖z‖₁ + ‖x − Az‖₁ and z* is the code behind the signal: w_k = 0.7^{K−k} for the K trained layers, and 2/B for each
of the B layers after them, where the plan asks for these. The logarithm gives every layer the same say, though the
suboptimality falls by orders of magnitude from layer to layer.
"""

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from l2o.rule import ModelBasedRule
from l2o.rules.d_ladmm import DLADMM, DLADMMConfig
from meta_train.bmo_rules import iterates
from tasks.robust_sparse_coding import RobustSparseCoding, Signals

DISCOUNT = 0.7
"""Weight of a trained layer relative to the one after it."""
BEYOND_WEIGHT = 2.0
"""Weight of all layers past the trained ones together."""
FLOOR = 1e-6
"""Added to the suboptimality: z* need not be the minimiser, and float32 sees no less."""


@dataclass(frozen=True)
class TrainingPlan:
    """How a rule is trained."""

    layers: int = 15
    """K."""
    beyond: int = 15
    """B; 0 trains the layers alone."""
    signals: int = 10_000
    batch: int = 32
    iterations: int = 180
    lr: float = 0.05
    """Of Adam; falls to 0 along a cosine."""
    seed: int = 1


def train(rule: ModelBasedRule, task: RobustSparseCoding, plan: TrainingPlan) -> list[tuple[int, float, float]]:
    """Train in place by Adam through all layers; return (iteration, suboptimality at layer K, CPU seconds)."""
    generator = torch.Generator().manual_seed(plan.seed)
    signals = task.sample(plan.signals, generator)
    optimizer = torch.optim.Adam(rule.parameters(), lr=plan.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.iterations)
    weights, history, begun = _weights(plan), [], time.process_time()
    for iteration in range(plan.iterations):
        chosen = torch.randint(plan.signals, (plan.batch,), generator=generator)
        batch = Signals(*(tensor[chosen] for tensor in signals))
        with parametrize.cached():
            gaps = _gaps(rule, task, batch, plan.layers + plan.beyond)
            optimizer.zero_grad()
            (weights * (gaps.clamp(min=0) + FLOOR).log()).sum().backward()
        torch.nn.utils.clip_grad_norm_(rule.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if iteration % 20 == 0 or iteration == plan.iterations - 1:
            history.append((iteration, float(gaps[plan.layers - 1].detach()), time.process_time() - begun))
    return history


def _weights(plan: TrainingPlan) -> Tensor:
    """w, shape (layers + beyond,)."""
    within = DISCOUNT ** torch.arange(plan.layers - 1, -1, -1.0)
    return torch.cat([within, torch.full((plan.beyond,), BEYOND_WEIGHT / max(plan.beyond, 1))])


def _gaps(rule: ModelBasedRule, task: RobustSparseCoding, batch: Signals, layers: int) -> Tensor:
    """Mean relative suboptimality after every layer, shape (layers,)."""
    problem, best = task.problem(batch.x), batch.value.clamp(min=1e-12)  # a signal may be 0
    found = [problem.value(z) for z, *_ in iterates(rule, task, batch.x, layers)]
    return ((torch.stack(found) - best) / best).mean(-1)


def tuned_d_ladmm(
    task: RobustSparseCoding, x: Tensor, plan: TrainingPlan, rates: tuple[float, ...], trial: int
) -> tuple[float, float]:
    """Return the learning rate of `rates` whose D-LADMM is best on signals x, and the CPU seconds of all trials.

    Each rate has a run of `trial` iterations with a cosine of its own; best is the least mean F after the
    last layer that its loss sees.
    """
    found, begun = [], time.process_time()
    for rate in rates:
        rule = DLADMM(DLADMMConfig(task.rows, task.columns, plan.layers), task.dictionary)
        train(rule, task, replace(plan, lr=rate, iterations=trial))
        with torch.no_grad():
            problem = task.problem(x)
            values = torch.stack(
                [problem.value(z).mean() for z, *_ in iterates(rule, task, x, plan.layers + plan.beyond)]
            )
        found.append((float(values[-1]), rate))
    return min(found)[1], time.process_time() - begun
