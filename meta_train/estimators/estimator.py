"""The contract of a meta-gradient estimator.

Over one window of K inner steps that starts at trajectories standing at θ_s, the meta-loss is

    L = mean over tasks of Σ_{k=1..K} w_k f(θ_{s+k}),   or of log f by option,

measured on minibatches of `MetaLoss.split`. If that is the split on which the inner steps train, f(θ_{s+k}) is the
inner loss itself, on the minibatch of the next inner step; else it is measured on minibatches of its own.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from l2o.rule import UpdateRule
from meta_train.unroll import Trajectories, start
from tasks.task import TaskFamily

MetaSplit = Literal["train", "inner_valid"]
"""Splits that meta-training may use: rules are chosen on outer_valid, and test is for benchmarks alone."""


@dataclass(frozen=True)
class MetaLoss:
    """Which losses of a trajectory count, and on which data."""

    weighting: Literal["mean", "linear", "final"] = "mean"
    """Weight of the loss after inner step t of horizon T: 1/K, 2t/(TK), or only t = T."""
    inner_split: MetaSplit = "train"
    """Split of the minibatches that the rule sees."""
    split: MetaSplit = "train"
    """Split on which the meta-loss is measured."""
    measure: Literal["loss", "log"] = "loss"
    """What is averaged: the loss, or its logarithm, which counts relative progress alike at every scale; a loss of 0
    or less then counts as the smallest positive number, and has no slope."""

    def __post_init__(self):
        """Keep validation and test data out of the meta-gradient.

        Raises:
            ValueError: if a split or the weighting is unknown or not for training.
        """
        for split in (self.inner_split, self.split):
            if split not in get_args(MetaSplit):
                raise ValueError(f"meta-training uses the splits {get_args(MetaSplit)} only, got {split!r}")
        if self.weighting not in ("mean", "linear", "final"):
            raise ValueError(f"weighting is mean, linear or final, got {self.weighting!r}")
        if self.measure not in ("loss", "log"):
            raise ValueError(f"measure is loss or log, got {self.measure!r}")

    def of(self, losses: Tensor) -> Tensor:
        """Return what is averaged, the shape of the losses."""
        return losses if self.measure == "loss" else losses.clamp(min=torch.finfo(losses.dtype).tiny).log()

    def slope(self, losses: Tensor) -> Tensor | None:
        """Return d of(f) / df, the shape of the losses; None where it is 1."""
        if self.measure == "loss":
            return None
        positive = losses >= torch.finfo(losses.dtype).tiny
        return torch.where(positive, 1 / torch.where(positive, losses, 1.0), 0.0)

    def weights(self, start: int, length: int, horizon: int) -> Tensor:
        """Return w_1 … w_K for the window that starts after `start` updates, shape (length,)."""
        steps = torch.arange(start + 1, start + length + 1, dtype=torch.get_default_dtype())
        if self.weighting == "final":
            return (steps == horizon).to(steps.dtype)
        if self.weighting == "linear":
            return 2 * steps / (horizon * length)
        return torch.full_like(steps, 1 / length)


class MetaGradient(NamedTuple):
    """What an estimator returns for one window."""

    grads: dict[str, Tensor]
    """dL/dθ by the name of the rule's parameter."""
    losses: Tensor
    """Inner losses at θ_s … θ_{s+K−1} and, in the last row, f(θ_{s+K}) of the meta-loss; shape (K + 1, n_tasks)."""
    trajectories: Trajectories
    """Where the problems stand after the window, detached."""


@dataclass(frozen=True)
class Estimator(ABC):
    """One way to differentiate a window of the loop; its fields are its options.

    A subclass implements `estimate`, and `start` if it carries more than the trajectories from window to window.
    """

    def start(self, rule: UpdateRule, family: TaskFamily, n_tasks: int, generator: torch.Generator) -> Trajectories:
        """Return n_tasks fresh problems, as `estimate` takes them."""
        return start(rule, family, n_tasks, generator)

    @abstractmethod
    def estimate(
        self,
        rule: UpdateRule,
        family: TaskFamily,
        trajectories: Trajectories,
        meta_loss: MetaLoss,
        weights: Tensor,
        generator: torch.Generator,
    ) -> MetaGradient:
        """Unroll len(weights) steps and return the gradient of the weighted meta-loss.

        Args:
            weights: w_1 … w_K, shape (K,).
        """
