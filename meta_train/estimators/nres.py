"""Noise-reuse evolution strategies (Li et al. 2023, arXiv:2304.12180): unbiased like PES, with less variance.

Every particle keeps one ε for its whole trajectory, so that each window's loss is a function of a single perturbation:

    ĝ = 1/(2σN) Σ_i ε_i (L_i⁺ − L_i⁻),   ε_i drawn at the reset.

The same idea as ES-Single (Vicol 2023, arXiv:2304.11153).
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
class NRES(Estimator):
    """Antithetic noise-reuse evolution strategies, one pair a task.

    Args:
        sigma: scale σ of the perturbations, units of θ.
    """

    sigma: float = 0.01

    def start(
        self, rule: UpdateRule, family: TaskFamily, n_tasks: int, generator: torch.Generator
    ) -> PerturbedTrajectories:
        """See `Estimator.start`; draws the ε that the whole trajectory keeps."""
        return start_pairs(rule, family, n_tasks, generator)._replace(noise=draw_noise(rule, n_tasks, generator))

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
        noise = trajectories.noise
        losses, curve, after = unroll_pairs(
            rule, noise, self.sigma, family, trajectories, meta_loss, weights, generator
        )
        return MetaGradient(antithetic_gradient(noise, losses, self.sigma), curve, after)
