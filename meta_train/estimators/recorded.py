"""Recorded gradients: the exact first-order gradient of a coordinate-wise rule, without the optimizee's graph.

With the inner gradient detached, θ_{s+k} = θ_s + Σ_{t<k} u_t, so the meta-loss L = Σ_k w_k f(θ_{s+k}) has the cotangent

    c_t = ∂L/∂u_t = Σ_{k>t} w_k ∇f(θ_{s+k}),

which does not depend on how u_t was made. Roll once without a graph, store g_t and c_t (one float each per coordinate
and step), then backpropagate Σ_t ⟨c_t, u_t⟩ through the rule alone, a chunk of coordinates at a time. Equal to
`Truncated(order=1)` up to rounding; memory does not depend on the optimizee's graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.rule import CoordinatewiseRule, UpdateRule, flatten
from meta_train.estimators.estimator import Estimator, MetaGradient, MetaLoss
from meta_train.unroll import Trajectories, apply_rule, value_and_grad
from tasks.task import TaskFamily


@dataclass(frozen=True)
class Recorded(Estimator):
    """Roll, record, replay."""

    def estimate(
        self,
        rule: UpdateRule,
        family: TaskFamily,
        trajectories: Trajectories,
        meta_loss: MetaLoss,
        weights: Tensor,
        generator: torch.Generator,
    ) -> MetaGradient:
        """See `Estimator.estimate`.

        Raises:
            TypeError: if the rule is not coordinate-wise.
        """
        if not isinstance(rule, CoordinatewiseRule):
            raise TypeError(f"recorded gradients need a CoordinatewiseRule, got {type(rule).__name__}; use truncated")
        first_state, first_step = trajectories.state, trajectories.step
        # The roll overwrites its state; the replay starts from the one that came.
        trajectories = trajectories._replace(state=type(first_state)(*(tensor.clone() for tensor in first_state)))
        grads, meta_grads, curve, trajectories = roll(rule, family, trajectories, meta_loss, len(weights), generator)
        weighted = meta_grads * (weights / trajectories.n_tasks).to(meta_grads)[:, None]
        cotangents = weighted.flip(0).cumsum(0).flip(0)
        theta_grads = rule.update_vjp(grads, cotangents, first_state, first_step)
        return MetaGradient(theta_grads, curve, trajectories)


@torch.no_grad()
def roll(
    rule: UpdateRule,
    family: TaskFamily,
    trajectories: Trajectories,
    meta_loss: MetaLoss,
    length: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Trajectories]:
    """Unroll without a graph and keep the gradients.

    Returns: inner gradients g_s … g_{s+K−1} and meta-loss gradients ∇f(θ_{s+1}) … ∇f(θ_{s+K}), each (K, n) in the
    layout of `flatten`; losses (K, n_tasks); the trajectories after the window.
    """
    own_batches = meta_loss.split != meta_loss.inner_split
    inner, meta, curve = [], [], []
    for k in range(length):
        losses, grads = value_and_grad(family, trajectories, meta_loss.inner_split, generator)
        curve.append(losses)
        inner.append(flatten(grads))
        trajectories = apply_rule(rule, trajectories, losses, grads, overwrite=True)
        if own_batches or k == length - 1:
            _, grads = value_and_grad(family, trajectories, meta_loss.split, generator)
            meta.append(flatten(grads))
    if not own_batches:
        meta = inner[1:] + meta
    return torch.stack(inner), torch.stack(meta), torch.stack(curve), trajectories
