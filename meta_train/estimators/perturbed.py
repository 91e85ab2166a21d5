"""What all evolution strategies share: pairs of perturbed rules on the same task and the same minibatches.

Pair i runs θ + σ ε_i and θ − σ ε_i, ε_i ~ N(0, I), on one task (antithetic, common random numbers). All 2N particles
are one leading axis: first the N positive ones, then the N negative ones.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from l2o.rule import Observation, Params, State, UpdateRule
from meta_train.estimators.estimator import MetaLoss
from meta_train.unroll import losses_and_grads
from tasks.task import Data, Split, TaskFamily

Theta = dict[str, Tensor]
"""θ, or perturbations of it with a leading axis, by the name of the rule's parameter."""


class PerturbedTrajectories(NamedTuple):
    """Where N antithetic pairs stand; a leading axis of N for tasks and noise, of 2N particles for params and state."""

    tasks: Data
    params: Params
    state: State
    step: Tensor
    """Updates made so far, int64, shape ()."""
    noise: Theta
    """ε since the last reset, as the estimator combines it, shape (N, …)."""

    @property
    def n_tasks(self) -> int:
        """Number of pairs; each has a task of its own."""
        return next(iter(self.params.values())).shape[0] // 2


def start_pairs(
    rule: UpdateRule, family: TaskFamily, n_pairs: int, generator: torch.Generator
) -> PerturbedTrajectories:
    """Sample n_pairs fresh problems, both members of a pair at the same θ_0, and no noise yet."""
    tasks = family.sample_tasks(n_pairs, generator)
    params = both(family.init_params(tasks, n_pairs, generator))
    state = torch.func.vmap(rule.init_state)(params)
    step = torch.zeros((), dtype=torch.int64, device=generator.device)
    return PerturbedTrajectories(tasks, params, state, step, draw_noise(rule, n_pairs, generator, scale=0.0))


def draw_noise(rule: UpdateRule, n_pairs: int, generator: torch.Generator, scale: float = 1.0) -> Theta:
    """Draw ε ~ N(0, scale²) for every pair, shape (n_pairs, …)."""
    return {
        name: scale * torch.randn(n_pairs, *p.shape, generator=generator, device=generator.device, dtype=p.dtype)
        for name, p in rule.named_parameters()
    }


@torch.no_grad()
def unroll_pairs(
    rule: UpdateRule,
    noise: Theta,
    sigma: float,
    family: TaskFamily,
    trajectories: PerturbedTrajectories,
    meta_loss: MetaLoss,
    weights: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, PerturbedTrajectories]:
    """Unroll len(weights) steps with θ ± σ ε.

    Returns: weighted meta-loss of each particle, shape (2N,); inner losses (K, 2N); trajectories after the window.
    """
    theta = {name: p + sigma * torch.cat([noise[name], -noise[name]]) for name, p in rule.named_parameters()}
    own_batches = meta_loss.split != meta_loss.inner_split
    total, curve = torch.zeros(2 * trajectories.n_tasks, device=generator.device), []
    for k in range(len(weights)):
        losses, grads = _evaluate(family, trajectories, meta_loss.inner_split, generator)
        if k > 0 and not own_batches:
            total = total + weights[k - 1] * losses
        curve.append(losses)
        trajectories = _apply(rule, theta, trajectories, losses, grads)
        if own_batches or k == len(weights) - 1:
            losses, _ = _evaluate(family, trajectories, meta_loss.split, generator)
            total = total + weights[k] * losses
    return total, torch.stack(curve), trajectories


def antithetic_gradient(noise: Theta, meta_losses: Tensor, sigma: float) -> Theta:
    """Mean over pairs of ε_i (L_i⁺ − L_i⁻) / (2σ): an estimate of the gradient of the smoothed meta-loss.

    Args:
        noise: ε_i, shape (N, …).
        meta_losses: shape (2N,).
    """
    positive, negative = meta_losses.chunk(2)
    slope = (positive - negative) / (2 * sigma)
    return {name: torch.tensordot(slope.to(eps.dtype), eps, 1) / len(slope) for name, eps in noise.items()}


def both(tensors: Data) -> Data:
    """Give both members of every pair the same data: leading axis N -> 2N."""
    return {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}


def _evaluate(family: TaskFamily, trajectories: PerturbedTrajectories, split: Split, generator: torch.Generator):
    batch = both(family.sample_batch(trajectories.tasks, trajectories.n_tasks, split, generator))
    return losses_and_grads(family, trajectories.params, both(trajectories.tasks), batch)


def _apply(
    rule: UpdateRule, theta: Theta, trajectories: PerturbedTrajectories, losses: Tensor, grads: Params
) -> PerturbedTrajectories:
    def one_particle(theta, params, grads, loss, state):
        observation = Observation(params, grads, loss, trajectories.step)
        return torch.func.functional_call(rule, theta, (observation, state))

    params, state = torch.func.vmap(one_particle)(theta, trajectories.params, grads, losses, trajectories.state)
    return trajectories._replace(params=params, state=state, step=trajectories.step + 1)
