"""What all evolution strategies share: pairs of perturbed rules on the same task and the same minibatches.

Pair i runs θ + σ ε_i and θ − σ ε_i, ε_i ~ N(0, I), on one task (antithetic, common random numbers), and

    ĝ = 1/N Σ_i ξ_i (L_i⁺ − L_i⁻) / (2σ)

estimates the gradient of the smoothed meta-loss E_ε L(θ + σ ε), without derivatives through the loop: any rule, any
optimizee. The estimators differ in the perturbation ξ_i that answers for the window's meta-loss L_i^±, and in where
the next window starts. Params, state and θ of the particles have two leading axes: N tasks, C particles on each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2o.rule import Observation, Params, State, UpdateRule
from l2o.rules.checks import check_positive
from meta_train.estimators.estimator import Estimator, MetaLoss
from meta_train.sharding import draw_share
from meta_train.unroll import Trajectories, losses_and_grads
from tasks.task import Split, TaskFamily

Theta = dict[str, Tensor]
"""θ, or perturbations of it, with leading axes, by the name of the rule's parameter."""


class ParticleState(NamedTuple):
    """What pairs carry from window to window, in the place of the rule's state."""

    rule: State
    """State of the rule, shape (N, 2, …)."""
    noise: Theta
    """ξ: what the estimator remembers of the perturbations since the reset, shape (N, …)."""


@dataclass(frozen=True)
class EvolutionStrategy(Estimator):
    """Antithetic Gaussian perturbations of θ, one pair a task.

    Args:
        sigma: scale σ of the perturbations, units of θ.

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
) -> Trajectories:
    """Return n_tasks fresh problems, both members of a pair at the same start."""
    trajectories = start_particles(rule, family, n_tasks, generator)
    state = ParticleState(repeat(trajectories.state, 2), noise)
    return trajectories._replace(params=repeat(trajectories.params, 2), state=state)


def draw_noise(rule: UpdateRule, family: TaskFamily, n_tasks: int, generator: torch.Generator) -> Theta:
    """Draw ε ~ N(0, I) for the pair on every task, shape (N, …)."""

    def draw(n_pairs: int) -> Theta:
        return {
            name: torch.randn(n_pairs, *p.shape, generator=generator, device=generator.device, dtype=p.dtype)
            for name, p in rule.named_parameters()
        }

    return draw_share(family, n_tasks, draw)


def perturb(rule: UpdateRule, noise: Theta, sigma: float, signs: tuple[int, ...]) -> Theta:
    """Return θ + sign · σ ε_i for each sign, shape (N, len(signs), …)."""
    return {
        name: p.detach() + sigma * torch.stack([sign * noise[name] for sign in signs], 1)
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
    trajectories: Trajectories,
    meta_loss: MetaLoss,
    weights: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Trajectories]:
    """Unroll len(weights) steps, every particle with a θ of its own; those on one task see the same minibatches.

    Args:
        theta: shape (N, C, …).
        trajectories: with params and states of shape (N, C, …).

    Returns: weighted meta-loss of each particle, shape (N, C); losses as in `MetaGradient`, shape (K + 1, N, C); the
        trajectories after the window.
    """
    n_tasks, n_copies = next(iter(theta.values())).shape[:2]
    tasks, step = trajectories.tasks, trajectories.step
    # Without the copies' axis for as long as the loop lasts: one vmap instead of two, no reshaping per step.
    theta, params, state = _flat(theta), _flat(trajectories.params), _flat(trajectories.state)
    tasks_of_particles = _flat(repeat(tasks, n_copies))

    def evaluate(params: Params, split: Split) -> tuple[Tensor, Params]:
        batch = _flat(repeat(family.sample_batch(tasks, n_tasks, split, generator), n_copies))
        return losses_and_grads(family, params, tasks_of_particles, batch)

    own_batches = meta_loss.split != meta_loss.inner_split
    inner, meta = [], []
    for k in range(len(weights)):
        losses, grads = evaluate(params, meta_loss.inner_split)
        inner.append(losses)
        params, state = _apply(rule, theta, params, grads, losses, state, step + k)
        if own_batches or k == len(weights) - 1:
            meta.append(evaluate(params, meta_loss.split)[0])
    curve = torch.stack([*inner, meta[-1]]).unflatten(1, (n_tasks, n_copies))
    meta = torch.stack(meta).unflatten(1, (n_tasks, n_copies)) if own_batches else curve[1:]
    total = torch.tensordot(weights.to(meta), meta_loss.of(meta), 1)
    params, state = (_map(lambda tensor: tensor.unflatten(0, (n_tasks, n_copies)), tree) for tree in (params, state))
    after = Trajectories(tasks, params, state, step + len(weights))
    return total, curve, after


def repeat(tensors: Any, copies: int) -> Any:
    """Return a dict or NamedTuple of tensors with an axis of copies after the first one, (N, …) to (N, copies, …)."""
    return _map(lambda tensor: tensor.unsqueeze(1).expand(-1, copies, *tensor.shape[1:]), tensors)


def pick(tensors: Any, copy: int) -> Any:
    """Return one particle of every task, (N, C, …) to (N, …)."""
    return _map(lambda tensor: tensor[:, copy].clone(), tensors)


def _flat(tensors: Any) -> Any:
    return _map(lambda tensor: tensor.flatten(0, 1), tensors)


def _map(function: Callable[[Tensor], Tensor], tensors: Any) -> Any:
    if isinstance(tensors, dict):
        return {name: function(tensor) for name, tensor in tensors.items()}
    return type(tensors)(*map(function, tensors))


def _apply(
    rule: UpdateRule, theta: Theta, params: Params, grads: Params, losses: Tensor, state: State, step: Tensor
) -> tuple[Params, State]:
    def one_particle(theta, params, grads, loss, state):
        return torch.func.functional_call(rule, theta, (Observation(params, grads, loss, step), state))

    return torch.func.vmap(one_particle)(theta, params, grads, losses, state)
