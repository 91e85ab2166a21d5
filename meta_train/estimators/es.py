"""Evolution strategies on one window: full ES where the window is the horizon, truncated ES where it is shorter.

    ĝ = 1/(2σN) Σ_i ε_i (L(θ + σ ε_i) − L(θ − σ ε_i)),    E ĝ = ∇ E_ε L(θ + σ ε)

for the window's L. Every window starts where the unperturbed θ has come to, so a short window does not see what its
start owes to θ: truncated ES has the bias of truncated backpropagation. Source: Salimans et al. 2017, arXiv:1703.03864;
the truncated form as in Metz et al. 2019, arXiv:1810.10180.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.rule import UpdateRule
from meta_train.estimators.estimator import Estimator, MetaGradient, MetaLoss
from meta_train.estimators.perturbed import (
    PerturbedTrajectories,
    antithetic_gradient,
    draw_noise,
    start_pairs,
    unroll_pairs,
)
from tasks.task import TaskFamily


@dataclass(frozen=True)
class ES(Estimator):
    """Antithetic evolution strategies, one pair a task.

    Args:
        sigma: scale σ of the perturbations, units of θ.
    """

    sigma: float = 0.01

    def start(
        self, rule: UpdateRule, family: TaskFamily, n_tasks: int, generator: torch.Generator
    ) -> PerturbedTrajectories:
        """See `Estimator.start`; both members of a pair stay together between windows."""
        return start_pairs(rule, family, n_tasks, generator)

    def estimate(
        self,
        rule: UpdateRule,
        family: TaskFamily,
        trajectories: PerturbedTrajectories,
        meta_loss: MetaLoss,
        weights: Tensor,
        generator: torch.Generator,
    ) -> MetaGradient:
        """See `Estimator.estimate`."""
        noise = draw_noise(rule, trajectories.n_tasks, generator)
        losses, _, _ = unroll_pairs(rule, noise, self.sigma, family, trajectories, meta_loss, weights, generator)
        # The unperturbed θ carries the trajectories on: the same unroll with σ = 0.
        _, curve, after = unroll_pairs(rule, noise, 0.0, family, trajectories, meta_loss, weights, generator)
        return MetaGradient(antithetic_gradient(noise, losses, self.sigma), curve[:, : trajectories.n_tasks], after)
