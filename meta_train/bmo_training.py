"""Train rules for robust sparse coding: D-LADMM and GKM by BMO, on the same signals and with the same loss.

The loss of a rule is Σ_k 0.7^{K−k} of the mean relative suboptimality (F(z_k) − F(z*)) / F(z*) after k of K layers,
where F(z) = ‖z‖₁ + ‖x − Az‖₁ and z* is the code behind the signal.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.rule import ModelBasedRule
from l2o.rules.gkm import GKM, GKMConfig
from l2o.rules.gkm_alm import LinearizedALM, Spectrum
from tasks.robust_sparse_coding import RobustSparseCoding, Signals

DISCOUNT = 0.7
"""Weight of a layer relative to the one after it."""
TAILS = tuple((size, relaxation) for size in (0.06, 0.1, 0.15) for relaxation in (1.1, 1.25, 1.4))
"""d_z = d_e and α of the steps past the layers."""


@dataclass(frozen=True)
class TrainingPlan:
    """How a rule is trained."""

    layers: int = 15
    signals: int = 10_000
    batch: int = 64
    iterations: int = 600
    lr: float = 0.03
    """Of Adam; falls to 0 along a cosine."""
    seed: int = 1


def gkm_rule(task: RobustSparseCoding, layers: int) -> GKM:
    """Return an untrained GKM: a linearised ALM with weights of its own in each layer, and one for all later steps."""
    spectrum = Spectrum(task.dictionary)
    return GKM([LinearizedALM(spectrum) for _ in range(layers + 1)], config=GKMConfig(1.5, 2.0))


def iterates(rule: ModelBasedRule, task: RobustSparseCoding, x: Tensor, steps: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield (z, e, λ) after every step from 0, each of shape (signals, …)."""
    problem = task.problem(x)
    z = problem.zeros()
    state = rule.init_problem(problem, z)
    for step in range(steps):
        z, state = rule.iterate(problem, z, state, step)
        yield z, state.second, state.multiplier


def train(rule: ModelBasedRule, task: RobustSparseCoding, plan: TrainingPlan) -> list[tuple[int, float, float]]:
    """Train in place by Adam through all layers; return (iteration, last suboptimality, CPU seconds)."""
    generator = torch.Generator().manual_seed(plan.seed)
    signals = task.sample(plan.signals, generator)
    optimizer = torch.optim.Adam(rule.parameters(), lr=plan.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.iterations)
    history, begun = [], time.process_time()
    for iteration in range(plan.iterations):
        chosen = torch.randint(plan.signals, (plan.batch,), generator=generator)
        batch = Signals(*(tensor[chosen] for tensor in signals))
        gaps = _gaps(rule, task, batch, plan.layers)
        weights = DISCOUNT ** torch.arange(plan.layers - 1, -1, -1.0)
        optimizer.zero_grad()
        (weights * gaps).sum().backward()
        torch.nn.utils.clip_grad_norm_(rule.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if iteration % 20 == 0 or iteration == plan.iterations - 1:
            history.append((iteration, float(gaps[-1].detach()), time.process_time() - begun))
    return history


def _gaps(rule: ModelBasedRule, task: RobustSparseCoding, batch: Signals, layers: int) -> Tensor:
    """Mean relative suboptimality after every layer, shape (layers,)."""
    problem, best = task.problem(batch.x), batch.value.clamp(min=1e-12)  # a signal may be 0
    found = [problem.value(z) for z, *_ in iterates(rule, task, batch.x, layers)]
    return ((torch.stack(found) - best) / best).mean(-1)


@torch.no_grad()
def tail(rule: GKM, task: RobustSparseCoding, x: Tensor, steps: int = 60) -> None:
    """Choose the weights of all steps past the layers, in place: those that are nearest to rest after `steps` of them.

    All of `TAILS` are tried on the signals x, from where the trained layers have come.
    """
    last, found = len(rule.numerical) - 1, []
    for size, relaxation in TAILS:
        _set_tail(rule, last, size, relaxation)
        before = after = torch.zeros(())
        for point in iterates(rule, task, x, last + steps):
            before, after = after, torch.cat(point, -1)
        found.append((float((after - before).norm()), size, relaxation))
    _set_tail(rule, last, *min(found)[1:])


def _set_tail(rule: GKM, last: int, size: float, relaxation: float) -> None:
    part = rule.part(last)
    assert isinstance(part, LinearizedALM)
    part.log_first.fill_(math.log(size))
    part.log_second.fill_(math.log(size))
    rule.logit_relaxation[last] = math.log(relaxation / (rule.config.most_relaxation - relaxation))
