"""Backpropagation through the unrolled window by autograd.

With the horizon as window it is the full gradient; with a shorter one, truncated backpropagation through time (biased:
what the window's start owes to θ is ignored). First order detaches the inner gradient, as Andrychowicz et al. 2016
(§2.1) do; second order differentiates through it. Memory grows with the window and with the optimizee's graph.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from l2o.rule import UpdateRule
from meta_train.estimators.estimator import Estimator, MetaGradient, MetaLoss
from meta_train.unroll import Trajectories, apply_rule, value_and_grad
from tasks.task import TaskFamily


@dataclass(frozen=True)
class Truncated(Estimator):
    """Autograd through the window.

    Args:
        order: 1 (inner gradients detached) or 2.
    """

    order: Literal[1, 2] = 1

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
        own_batches = meta_loss.split != meta_loss.inner_split
        total, curve = torch.zeros(()), []
        for k in range(len(weights)):
            losses, grads = value_and_grad(family, trajectories, meta_loss.inner_split, generator, self.order)
            if k > 0 and not own_batches:
                total = total + weights[k - 1] * losses.mean()
            curve.append(losses.detach())
            trajectories = apply_rule(rule, trajectories, losses, grads)
            if own_batches or k == len(weights) - 1:
                losses, _ = value_and_grad(family, trajectories, meta_loss.split, generator, order=1)
                total = total + weights[k] * losses.mean()
        pieces = torch.autograd.grad(total, list(rule.parameters()), materialize_grads=True)
        grads = dict(zip(dict(rule.named_parameters()), pieces, strict=True))
        return MetaGradient(grads, torch.stack(curve), detach(trajectories))


def detach(trajectories: Trajectories) -> Trajectories:
    """Cut the graph at a window's end."""
    params = {name: tensor.detach() for name, tensor in trajectories.params.items()}
    state = type(trajectories.state)(*(tensor.detach() for tensor in trajectories.state))
    return trajectories._replace(params=params, state=state)
