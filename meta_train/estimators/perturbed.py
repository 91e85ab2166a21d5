"""What all evolution strategies share: pairs of perturbed rules on the same task and the same minibatches.

Pair i runs θ + σ ε_i and θ − σ ε_i, ε_i ~ N(0, I), on one task (antithetic, common random numbers), and

    ĝ = 1/N Σ_i ξ_i (L_i⁺ − L_i⁻) / (2σ)

estimates the gradient of the smoothed meta-loss E_ε L(θ + σ ε), without derivatives through the loop: any rule, any
optimizee. The estimators differ in the perturbation ξ_i that answers for the window's meta-loss L_i^±, and in where
the next window starts. Particles lie along one leading axis: copies of the N tasks, one copy after the other.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2o.rule import Observation, Params, State, UpdateRule
from l2o.rules.checks import check_positive
from meta_train.estimators.estimator import Estimator, MetaLoss
from meta_train.unroll import Trajectories, losses_and_grads
from tasks.task import Data, Split, TaskFamily

Theta = dict[str, Tensor]
"""θ, or perturbations of it, with a leading axis, by the name of the rule's parameter."""


class PairedTrajectories(NamedTuple):
    """Where N antithetic pairs stand: a leading axis of N on tasks and noise, of 2N on params and state."""

    tasks: Data
    params: Params
    """First the N particles of θ + σ ε, then the N of θ − σ ε."""
    state: State
    step: Tensor
    """Updates made so far, int64, shape ()."""
    noise: Theta
    """ξ: what the estimator remembers of the perturbations since the reset, shape (N, …)."""

    @property
    def n_tasks(self) -> int:
        """Number of pairs; each has a task of its own."""
        return next(iter(self.params.values())).shape[0] // 2


@dataclass(frozen=True)
class EvolutionStrategy(Estimator):
    """Antithetic Gaussian perturbations of θ, one pair a task.

    Args:
        sigma: scale σ > 0 of the perturbations, units of θ.
    Raises:
        ValueError: if sigma is not positive and finite.
    """

    sigma: float

    def __post_init__(self):
        """Check the range."""
        check_positive(sigma=self.sigma)


def start_particles(rule: UpdateRule, family: TaskFamily, n_tasks: int, generator: torch.Generator) -> Trajectories:
    """Return n_tasks fresh problems; also a coordinate-wise rule's state has the leading axis of tasks."""
    tasks = family.sample_tasks(n_tasks, generator)
    params = family.init_params(tasks, n_tasks, generator)
    state = torch.func.vmap(rule.init_state)(params)
    return Trajectories(tasks, params, state, torch.zeros((), dtype=torch.int64, device=generator.device))


def start_pairs(
    rule: UpdateRule, family: TaskFamily, n_tasks: int, noise: Theta, generator: torch.Generator
) -> PairedTrajectories:
    """Return n_tasks fresh problems, both members of a pair at the same start."""
    tasks, params, state, step = start_particles(rule, family, n_tasks, generator)
    return PairedTrajectories(tasks, repeat(params, 2), repeat(state, 2), step, noise)


def draw_noise(rule: UpdateRule, n_pairs: int, generator: torch.Generator) -> Theta:
    """Draw ε ~ N(0, I) for every pair, shape (n_pairs, …)."""
    return {
        name: torch.randn(n_pairs, *p.shape, generator=generator, device=generator.device, dtype=p.dtype)
        for name, p in rule.named_parameters()
    }


def perturb(rule: UpdateRule, noise: Theta, sigma: float, signs: tuple[int, ...]) -> Theta:
    """Return θ + sign · σ ε_i, one copy of the N pairs for each sign, shape (len(signs) · N, …)."""
    return {
        name: p.detach() + sigma * torch.cat([sign * noise[name] for sign in signs])
        for name, p in rule.named_parameters()
    }


def antithetic_gradient(noise: Theta, positive: Tensor, negative: Tensor, sigma: float) -> Theta:
    """Return the mean over pairs of ξ_i (L_i⁺ − L_i⁻) / (2σ).

    Args:
        noise: ξ_i, shape (N, …).
        positive, negative: L_i⁺ and L_i⁻, shape (N,).
    """
    slopes = (positive - negative) / (2 * sigma)
    return {name: torch.tensordot(slopes.to(xi.dtype), xi, 1) / len(slopes) for name, xi in noise.items()}


@torch.no_grad()
def unroll_particles(
    rule: UpdateRule,
    theta: Theta,
    family: TaskFamily,
    trajectories: Any,
    meta_loss: MetaLoss,
    weights: Tensor,
    generator: torch.Generator,
    copies: int,
) -> tuple[Tensor, Tensor, Any]:
    """Unroll len(weights) steps, every particle with a θ of its own; all copies of a task see the same minibatches.

    Args:
        theta: shape (P, …) for P = copies · N particles.
        trajectories: N tasks, P params and states.
    Returns: weighted meta-loss of each particle, shape (P,); inner losses, shape (K, copies, N); the trajectories
        after the window.
    """
    n_tasks = next(iter(theta.values())).shape[0] // copies
    tasks = repeat(trajectories.tasks, copies)

    def evaluate(params: Params, split: Split) -> tuple[Tensor, Params]:
        batch = family.sample_batch(trajectories.tasks, n_tasks, split, generator)
        return losses_and_grads(family, params, tasks, repeat(batch, copies))

    own_batches = meta_loss.split != meta_loss.inner_split
    params, state, step = trajectories.params, trajectories.state, trajectories.step
    inner, meta = [], []
    for k in range(len(weights)):
        losses, grads = evaluate(params, meta_loss.inner_split)
        inner.append(losses)
        params, state = _apply(rule, theta, params, grads, losses, state, step + k)
        if own_batches or k == len(weights) - 1:
            meta.append(evaluate(params, meta_loss.split)[0])
    total = torch.einsum("k,kp->p", weights.to(losses), torch.stack(meta if own_batches else inner[1:] + meta))
    after = trajectories._replace(params=params, state=state, step=step + len(weights))
    return total, torch.stack(inner).unflatten(1, (copies, n_tasks)), after


def repeat(tensors: Any, copies: int) -> Any:
    """Return a dict or NamedTuple of tensors with `copies` copies, one after the other: leading axis N to copies · N."""
    if isinstance(tensors, dict):
        return {name: torch.cat([tensor] * copies) for name, tensor in tensors.items()}
    return type(tensors)(*(torch.cat([tensor] * copies) for tensor in tensors))


def _apply(
    rule: UpdateRule, theta: Theta, params: Params, grads: Params, losses: Tensor, state: State, step: Tensor
) -> tuple[Params, State]:
    def one_particle(theta, params, grads, loss, state):
        return torch.func.functional_call(rule, theta, (Observation(params, grads, loss, step), state))

    return torch.func.vmap(one_particle)(theta, params, grads, losses, state)
