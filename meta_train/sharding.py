"""A batch of tasks split over ranks: every rank draws for all tasks and keeps its share.

All ranks hold generators in the same state and draw the same numbers, so the union of their tasks, starts, minibatches
and perturbations is what one process with all tasks would have drawn, whatever the number of ranks.

A tensor of tasks, params, state or noise has its task axis in one of two places: leading, or, for the state of a
coordinate-wise rule, hidden in a last axis of coordinates laid out name by name: (n, w_1), (n, w_2), … one after the
other, where w_i is the size of parameter i.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from l2o.problem import Problem
from tasks.task import Data, Params, Split, TaskFamily


def share(n_tasks: int, rank: int, n_ranks: int) -> slice:
    """Return the tasks of a rank: shares differ by one task at most.

    >>> [share(5, rank, 2) for rank in range(2)]
    [slice(0, 3, None), slice(3, 5, None)]
    """
    least, more = divmod(n_tasks, n_ranks)
    return slice(rank * least + min(rank, more), (rank + 1) * least + min(rank + 1, more))


class Sharded(TaskFamily):
    """One rank's share of a batch of tasks; serves one batch of trajectories at a time, whose tasks it remembers.

    Args:
        family: draws for all tasks; must draw from the given generators alone.
        n_tasks: on all ranks together.
        part: which of them are meant: a rank's share, or the indices of some.
    """

    def __init__(self, family: TaskFamily, n_tasks: int, part: slice | Tensor):
        self.family, self.n_tasks, self.part = family, n_tasks, part
        self.vectorized = family.vectorized
        self.all_tasks: Data = {}
        """What defines the tasks of all ranks; sampling a minibatch may need it."""

    def sample_tasks(self, n_tasks: int, generator: torch.Generator) -> Data:
        """See `TaskFamily.sample_tasks`; n_tasks is the size of the share."""
        self.all_tasks = self.family.sample_tasks(self.n_tasks, generator)
        return self.take(self.all_tasks)

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        """See `TaskFamily.init_params`."""
        params = self.family.init_params(self.all_tasks, self.n_tasks, generator)
        return {name: tensor.clone() for name, tensor in self.take(params).items()}  # lets go of the others'

    def sample_batch(self, tasks: Data, n_tasks: int, split: Split, generator: torch.Generator) -> Data:
        """See `TaskFamily.sample_batch`."""
        return self.family.sample_share(self.all_tasks, self.n_tasks, split, generator, self.part)

    def problem(self, tasks: Data) -> Problem | None:
        """See `TaskFamily.problem`."""
        return self.family.problem(tasks)

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        """See `TaskFamily.loss`."""
        return self.family.loss(params, task, batch)

    def take(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's share of tensors with a leading axis of all tasks."""
        return {name: tensor[self.part] for name, tensor in tensors.items()}


def draw_share(family: TaskFamily, n_tasks: int, draw: Callable[[int], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return draw(n_tasks), or of a sharded family's ranks what is this one's of the draw for all tasks."""
    return family.take(draw(family.n_tasks)) if isinstance(family, Sharded) else draw(n_tasks)


def join(pieces: Sequence[Tensor], sizes: Sequence[int], widths: Sequence[int] | None = None) -> Tensor:
    """Return the tensor of all tasks from those of the ranks; `cut` is its inverse.

    Args:
        pieces: one tensor per rank; scalars are the same on all.
        sizes: tasks of each rank.
        widths: sizes of one task's parameters, if the last axis holds coordinates; None: the leading axis holds tasks.
    """
    same = any(_is_shared(piece, size, widths) for piece, size in zip(pieces, sizes, strict=True))
    if pieces[0].dim() == 0 or len(pieces) == 1 or same:
        return pieces[0]
    exposed = [_expose(piece, size, widths) for piece, size in zip(pieces, sizes, strict=True)]
    return _hide(torch.cat(exposed, _axis(widths)), widths)


def cut(tensor: Tensor, n_tasks: int, part: slice | Tensor, widths: Sequence[int] | None = None) -> Tensor:
    """Return what belongs to some of n_tasks tasks, a slice or indices; arguments as for `join`.

    Raises:
        ValueError, RuntimeError: if the tensor is not one of n_tasks tasks with these widths.
    """
    everything = isinstance(part, slice) and part == slice(0, n_tasks)
    if tensor.dim() == 0 or everything or _is_shared(tensor, n_tasks, widths):
        return tensor
    exposed = _expose(tensor, n_tasks, widths)
    return _hide(exposed.movedim(_axis(widths), 0)[part].movedim(0, _axis(widths)), widths)


def paste(tensor: Tensor, piece: Tensor, indices: Tensor, widths: Sequence[int] | None = None) -> Tensor:
    """Return the tensor with the tasks of these indices replaced by those of the piece; scalars are the piece's."""
    if tensor.dim() == 0 or (widths is None and tensor.shape[0] == 1):
        return piece
    n_tasks = tensor.shape[0] if widths is None else tensor.shape[-1] // sum(widths)
    exposed, fresh = _expose(tensor, n_tasks, widths), _expose(piece, len(indices), widths)
    return _hide(exposed.index_copy(_axis(widths), indices, fresh), widths)


def _is_shared(tensor: Tensor, n_tasks: int, widths: Any) -> bool:
    """Whether a model-based rule holds it for all tasks alike: its leading axis has length 1."""
    return widths is None and tensor.dim() > 1 and tensor.shape[0] == 1 and n_tasks != 1


def _axis(widths: Any) -> int:
    return 0 if widths is None else -2


def _expose(tensor: Tensor, n_tasks: int, widths: Sequence[int] | None) -> Tensor:
    """Give the tasks an axis of their own, `_axis`: (n, …) or (…, n, Σ w)."""
    if widths is None:
        if tensor.shape[0] != n_tasks:
            raise ValueError(f"expected a leading axis of {n_tasks} tasks, got shape {tuple(tensor.shape)}")
        return tensor
    blocks = tensor.split([n_tasks * width for width in widths], -1)
    return torch.cat([block.unflatten(-1, (n_tasks, width)) for block, width in zip(blocks, widths, strict=True)], -1)


def _hide(tensor: Tensor, widths: Sequence[int] | None) -> Tensor:
    if widths is None:
        return tensor
    return torch.cat([block.flatten(-2) for block in tensor.split(list(widths), -1)], -1)
