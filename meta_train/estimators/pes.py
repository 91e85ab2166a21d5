"""Persistent evolution strategies (Vicol et al. 2021, arXiv:2112.13835): unbiased over truncations.

Every particle keeps its own perturbed trajectory from window to window and draws a fresh ε in each. A window's loss
depends on all perturbations since the reset, so it is multiplied with their sum ξ (equation 9 there):

    ĝ = 1/(2σN) Σ_i ξ_i (L_i⁺ − L_i⁻),   ξ_i = Σ_{windows since the reset} ε_i.

Summed over the windows of a trajectory, the expectation is the gradient of the smoothed meta-loss of the whole horizon.
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
class PES(Estimator):
    """Antithetic persistent evolution strategies, one pair a task.

    Args:
        sigma: scale σ of the perturbations, units of θ.
    """

    sigma: float = 0.01

    def start(
        self, rule: UpdateRule, family: TaskFamily, n_tasks: int, generator: torch.Generator
    ) -> PerturbedTrajectories:
        """See `Estimator.start`; ξ = 0."""
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
        summed = {name: trajectories.noise[name] + eps for name, eps in noise.items()}
        losses, curve, after = unroll_pairs(
            rule, noise, self.sigma, family, trajectories, meta_loss, weights, generator
        )
        return MetaGradient(antithetic_gradient(summed, losses, self.sigma), curve, after._replace(noise=summed))
