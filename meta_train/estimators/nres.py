"""Noise-reuse evolution strategies (Li et al. 2023, arXiv:2304.12180): unbiased like PES, with less variance.

Every particle keeps one ε for its whole trajectory, so that every window's loss depends on a single perturbation:

    ĝ = 1/N Σ_i ε_i (L_i⁺ − L_i⁻) / (2σ),   ε_i drawn at the reset.

Summed over the windows of a trajectory at a fixed θ, it is full ES. ES-Single (Vicol 2023, arXiv:2304.11153) is the
same estimator.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.rule import UpdateRule
from meta_train.estimators.estimator import MetaGradient, MetaLoss
from meta_train.estimators.perturbed import (
    EvolutionStrategy,
    ParticleState,
    antithetic_gradient,
    draw_noise,
    perturb,
    start_pairs,
    unroll_particles,
)
from meta_train.unroll import Trajectories
from tasks.task import TaskFamily


@dataclass(frozen=True)
class NRES(EvolutionStrategy):
    """Antithetic noise-reuse evolution strategies."""

    def start(self, rule: UpdateRule, family: TaskFamily, n_tasks: int, generator: torch.Generator) -> Trajectories:
        """See `Estimator.start`; draws the ε that the whole trajectory keeps."""
        return start_pairs(rule, family, n_tasks, draw_noise(rule, family, n_tasks, generator), generator)

    def estimate(
        self,
        rule: UpdateRule,
        family: TaskFamily,
        trajectories: Trajectories,
        meta_loss: MetaLoss,
        weights: Tensor,
        generator: torch.Generator,
    ) -> MetaGradient:
        """See `Estimator.estimate`."""
        noise = trajectories.state.noise
        theta = perturb(rule, noise, self.sigma, signs=(1, -1))
        losses, curve, after = unroll_particles(
            rule, theta, family, trajectories._replace(state=trajectories.state.rule), meta_loss, weights, generator
        )
        positive, negative = losses.unbind(1)
        grads = antithetic_gradient(noise, positive, negative, self.sigma)
        return MetaGradient(grads, curve.mean(-1), after._replace(state=ParticleState(after.state, noise)))
