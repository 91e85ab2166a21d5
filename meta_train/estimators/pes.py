"""Persistent evolution strategies (Vicol et al. 2021, arXiv:2112.13835): unbiased over truncations.

Every particle keeps its own perturbed trajectory from window to window and draws a fresh ε in each. A window's loss
depends on all perturbations since the reset, so it is multiplied with their sum:

    ĝ = 1/N Σ_i ξ_i (L_i⁺ − L_i⁻) / (2σ),   ξ_i = Σ_{windows since the reset, this one included} ε_i.

Summed over the windows of a trajectory, the expectation is the gradient of the meta-loss of the whole horizon, smoothed
over a θ drawn afresh in every window. The variance grows with the number of windows.
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
class PES(EvolutionStrategy):
    """Antithetic persistent evolution strategies."""

    def start(self, rule: UpdateRule, family: TaskFamily, n_tasks: int, generator: torch.Generator) -> Trajectories:
        """See `Estimator.start`; ξ = 0."""
        nothing = {name: torch.zeros_like(p).expand(n_tasks, *p.shape) for name, p in rule.named_parameters()}
        return start_pairs(rule, family, n_tasks, nothing, generator)

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
        state = trajectories.state
        noise = draw_noise(rule, family, trajectories.n_tasks, generator)
        summed = {name: state.noise[name] + epsilon for name, epsilon in noise.items()}
        theta = perturb(rule, noise, self.sigma, signs=(1, -1))
        losses, curve, after = unroll_particles(
            rule, theta, family, trajectories._replace(state=state.rule), meta_loss, weights, generator
        )
        positive, negative = losses.unbind(1)
        grads = antithetic_gradient(summed, positive, negative, self.sigma)
        return MetaGradient(grads, curve.mean(-1), after._replace(state=ParticleState(after.state, summed)))
