"""A batch of trajectories that start together, window after window, without those that explode.

A trajectory is lost when its loss exceeds `divergence` times its first one, or is not a number. The window is then
estimated again without it, from the same random numbers, and the lost task rests until the batch starts afresh: one bad
problem costs one problem. With several ranks, each holds a share of the batch's tasks (see `sharding`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2o.rule import CoordinatewiseRule, UpdateRule
from meta_train.config import TrainConfig
from meta_train.estimators import MetaGradient
from meta_train.estimators.perturbed import EvolutionStrategy
from meta_train.sharding import Sharded, cut, join, paste, share
from meta_train.tree import flatten_tree, map_tree, rebuild_tree


class Contribution(NamedTuple):
    """What one rank's share of a batch adds to an outer step."""

    grads: dict[str, Tensor]
    """Σ over living tasks of dL/dθ, by the name of the rule's parameter."""
    loss: Tensor
    """Σ over living tasks of the window's mean inner loss, shape ()."""
    living: int
    """Tasks in the sums."""
    lost: int
    """Tasks whose trajectory exploded in this window."""
    inner_steps: int
    """Length K of the window."""


class Batch:
    """Some of a run's trajectories.

    Args:
        n_tasks: in this batch, on all ranks together.
        rank, n_ranks: which share of them is held here.
        phase: in (0, 1]; the fraction of the first trajectory's length after which the batch starts afresh, so that
            batches of different phases stand at different steps ever after.
    """

    def __init__(
        self, config: TrainConfig, rule: UpdateRule, generator: torch.Generator, n_tasks: int, rank: int, n_ranks: int,
        phase: float = 1.0,
    ):  # fmt: skip
        self.config, self.rule, self.generator, self.n_tasks = config, rule, generator, n_tasks
        self.estimator = config.build_estimator()
        self.parts = [share(n_tasks, other, n_ranks) for other in range(n_ranks)]
        self.sizes = [part.stop - part.start for part in self.parts]
        self.rank, self.family = rank, Sharded(config.task, n_tasks, self.parts[rank])
        self.restart(0.0)
        self.horizon = max(1, round(phase * self.horizon))

    def restart(self, progress: float) -> None:
        """Draw fresh problems; progress is the fraction of the run's outer steps made."""
        self.horizon, self.truncation = self.config.lengths.draw(
            self.config.horizon, self.config.truncation, progress, self.generator
        )
        size = self.sizes[self.rank]
        self.trajectories = self.estimator.start(self.rule, self.family, size, self.generator)
        self.alive = torch.ones(size, dtype=torch.bool, device=self.generator.device)
        self.first_losses = torch.full((size,), torch.inf, device=self.generator.device)

    def estimate(self, progress: float) -> Contribution:
        """Estimate the meta-gradient of the next window; `settle` then closes it."""
        if int(self.trajectories.step) >= self.horizon:
            self.restart(progress)
        begun = int(self.trajectories.step)
        weights = self.config.meta_loss.weights(begun, min(self.truncation, self.horizon - begun), self.horizon)
        numbers, alive = self.generator.get_state(), self.alive
        result = self._estimate(alive, weights)
        if begun == 0:
            self.first_losses = result.losses[0].abs()
        while alive.any() and (lost := self._lost(result.losses, alive)).any():
            alive = alive.index_put((alive.nonzero()[lost].flatten(),), torch.tensor(False, device=alive.device))
            if alive.any():
                self.generator.set_state(numbers)
                result = self._estimate(alive, weights)
        return self._conclude(result, alive, len(weights))

    def settle(self, usable: bool, progress: float) -> None:
        """Go on where the window ended, or start afresh if it can't be used; all ranks decide alike."""
        if usable:
            self.alive, self.trajectories = self._following
        else:
            self.restart(progress)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return by name everything that the next window depends on."""
        loop = {f"{prefix}/alive": self.alive, f"{prefix}/first_losses": self.first_losses}
        return flatten_tree(self.trajectories, f"{prefix}/trajectories") | loop

    def join(self, name: str, shares: Sequence[Tensor]) -> Tensor:
        """Return a tensor of all ranks' tasks from those that their `tensors` hold."""
        return join(shares, self.sizes, self._widths(name))

    def cut(self, name: str, tensor: Tensor, rank: int) -> Tensor:
        """Return a rank's share of what `join` returned."""
        return cut(tensor, self.n_tasks, self.parts[rank], self._widths(name))

    def restore(self, prefix: str, tensors: dict[str, Tensor], lengths: Sequence[int]) -> None:
        """Go on from `tensors` of this prefix; those of all ranks' tasks are there too, under "all_" + their name."""
        self.trajectories = rebuild_tree(self.trajectories, tensors, f"{prefix}/trajectories")
        self.family.all_tasks = rebuild_tree(self.family.all_tasks, tensors, f"all_{prefix}/trajectories/tasks")
        self.alive, self.first_losses = tensors[f"{prefix}/alive"], tensors[f"{prefix}/first_losses"]
        self.horizon, self.truncation = lengths

    def _estimate(self, alive: Tensor, weights: Tensor) -> MetaGradient:
        """Estimate over the living tasks, or over all of them where none lives, which draws as many numbers."""
        family, trajectories = self.family, self.trajectories
        if alive.any() and not alive.all():
            living = alive.nonzero().flatten()
            everyone = torch.arange(self.n_tasks, device=living.device)
            family = Sharded(self.config.task, self.n_tasks, everyone[self.parts[self.rank]][living])
            family.all_tasks = self.family.all_tasks
            trajectories = map_tree(
                lambda name, tensor: cut(tensor, len(alive), living, self._widths(name)), trajectories, "trajectories"
            )
        return self.estimator.estimate(self.rule, family, trajectories, self.config.meta_loss, weights, self.generator)

    def _lost(self, losses: Tensor, alive: Tensor) -> Tensor:
        """Return which of the living tasks exploded; NaN compares as False."""
        return ~(losses <= self.config.divergence * self.first_losses[alive]).all(0)

    def _conclude(self, result: MetaGradient, alive: Tensor, length: int) -> Contribution:
        n_living = int(alive.sum())
        self._following = alive, self._resting_where_lost(result, alive, length)
        lost = int(self.alive.sum()) - n_living
        if n_living == 0:  # of no use, but it has the right names and shapes
            nothing = {name: torch.zeros_like(grad) for name, grad in result.grads.items()}
            return Contribution(nothing, result.losses.new_zeros(()), 0, lost, length)
        grads = {name: n_living * grad for name, grad in result.grads.items()}
        return Contribution(grads, result.losses[:-1].mean(0).sum(), n_living, lost, length)

    def _resting_where_lost(self, result: MetaGradient, alive: Tensor, length: int) -> Any:
        """Return all tasks' trajectories: those of the living where the window ended, the others where it began."""
        if alive.all():
            return result.trajectories
        if not alive.any():
            return self.trajectories._replace(step=self.trajectories.step + length)
        living = alive.nonzero().flatten()

        def put(name: str, old: Tensor, new: Tensor) -> Tensor:
            return paste(old, new, living, self._widths(name))

        return map_tree(put, self.trajectories, "trajectories", result.trajectories)

    def _widths(self, name: str) -> Sequence[int] | None:
        """Return where a tensor of the trajectories has its task axis, as `sharding.join` takes it."""
        flat = isinstance(self.rule, CoordinatewiseRule) and not isinstance(self.estimator, EvolutionStrategy)
        if not (flat and "trajectories/state/" in name):
            return None
        return [tensor[0].numel() for tensor in self.trajectories.params.values()]
