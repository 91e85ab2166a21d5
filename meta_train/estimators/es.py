"""Evolution strategies on one window: full ES where the window is the horizon, truncated ES where it is shorter.

    ĝ = 1/N Σ_i ε_i (L(θ + σ ε_i) − L(θ − σ ε_i)) / (2σ),    ε_i fresh in every window

Every window starts where the unperturbed θ has come to, so a short window does not see what its start owes to θ:
truncated ES has the bias of truncated backpropagation. Three inner steps a task: θ + σ ε, θ − σ ε, and θ itself.
Source: Salimans et al. 2017, arXiv:1703.03864; the truncated form as in Metz et al. 2019, arXiv:1810.10180.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.rule import UpdateRule
from meta_train.estimators.estimator import MetaGradient, MetaLoss
from meta_train.estimators.perturbed import (
    EvolutionStrategy,
    antithetic_gradient,
    draw_noise,
    perturb,
    pick,
    repeat,
    start_particles,
    unroll_particles,
)
from meta_train.unroll import Trajectories
from tasks.task import TaskFamily


@dataclass(frozen=True)
class ES(EvolutionStrategy):
    """Antithetic evolution strategies: unbiased over the whole horizon, biased over less."""

    def start(self, rule: UpdateRule, family: TaskFamily, n_tasks: int, generator: torch.Generator) -> Trajectories:
        """See `Estimator.start`; trajectories of the unperturbed θ."""
        return start_particles(rule, family, n_tasks, generator)

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
        noise = draw_noise(rule, family, trajectories.n_tasks, generator)
        theta = perturb(rule, noise, self.sigma, signs=(1, -1, 0))
        thrice = trajectories._replace(params=repeat(trajectories.params, 3), state=repeat(trajectories.state, 3))
        losses, curve, after = unroll_particles(rule, theta, family, thrice, meta_loss, weights, generator)
        positive, negative, _ = losses.unbind(1)
        grads = antithetic_gradient(noise, positive, negative, self.sigma)
        after = after._replace(params=pick(after.params, 2), state=pick(after.state, 2))
        return MetaGradient(grads, curve[..., 2], after)
