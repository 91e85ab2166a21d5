"""Recorded gradients: the exact first-order gradient of a coordinate-wise rule, without the optimizee's graph.

With the inner gradient detached, θ_{s+k} = θ_s + Σ_{t<k} u_t, so the meta-loss L = Σ_k w_k f(θ_{s+k}) has the cotangent

    c_t = ∂L/∂u_t = Σ_{k>t} w_k ∇f(θ_{s+k}),

which does not depend on how u_t was made. Roll once without a graph and store ∇f at every step (one float per
coordinate and step; two if the meta-loss has minibatches of its own), then backpropagate Σ_t ⟨c_t, u_t⟩ through the
rule alone, a block of coordinates at a time. Equal to `Truncated(order=1)` up to rounding (of the terms: where they
nearly cancel, both are as far from the truth); memory depends neither on the optimizee's graph nor, beyond the record,
on the window.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from l2o.rule import CoordinatewiseRule, Params, UpdateRule, accumulator, add_flat, flatten
from meta_train.estimators.estimator import Estimator, MetaGradient, MetaLoss
from meta_train.unroll import Trajectories, losses_and_grads
from tasks.task import Split, TaskFamily

RecordDtype = Literal["bfloat16", "float16", "float32"]

_BLOCK_NUMBERS, _BLOCK_COORDINATES = 2**21, 2**16
"""What is turned into cotangents at a time: the cotangents of all coordinates would need as much memory as the record,
and their part of the rule's state is copied. Two of 8 MB in float32."""


@dataclass(frozen=True)
class Recorded(Estimator):
    """Roll, record, replay.

    Args:
        record_dtype: how the gradients are stored; None keeps their precision. bfloat16 halves the memory of float32
            and rounds every stored gradient to 8 bits: measured over windows of 20 steps of trained and fresh rules,
            the meta-gradient moves by 2e-5 to 4e-4 of its length on MNIST and digits, by 1e-3 to 8e-3 on quadratics,
            and by up to 5e-2 where few coordinates' gradients nearly cancel.

    Raises:
        ValueError: if there is no such dtype.
    """

    record_dtype: RecordDtype | None = None

    def __post_init__(self):
        """Check the name."""
        if self.record_dtype not in (None, *get_args(RecordDtype)):
            raise ValueError(f"record_dtype is one of {', '.join(get_args(RecordDtype))}, got {self.record_dtype!r}")

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
        dtype = None if self.record_dtype is None else getattr(torch, self.record_dtype)
        grads, meta_grads, curve, meta_losses, trajectories = roll(
            rule, family, trajectories, meta_loss, len(weights), generator, dtype
        )
        slopes = _slopes(meta_loss, meta_losses, trajectories.params)
        precision = _precision(trajectories.params)
        shares = weights.to(grads.device, precision) / trajectories.n_tasks
        totals: dict[str, Tensor] = {}
        blocks = _blocks(len(grads), grads.shape[1], rule.least_coordinates if grads.is_cpu else 4096)
        room = grads.new_empty(2, len(grads) * (blocks[0].stop - blocks[0].start), dtype=precision)
        for part in blocks:
            state = type(first_state)(*(tensor[..., part] for tensor in first_state))
            inner, cotangents = (_copy(rows[:, part], to) for rows, to in zip((grads, meta_grads), room, strict=True))
            cotangents *= shares[:, None]
            if slopes is not None:
                cotangents *= slopes[:, part]
            pieces = rule.update_vjp(inner, _sums_from_the_end(cotangents), state, first_step)
            totals = {name: totals[name] + piece for name, piece in pieces.items()} if totals else pieces
        return MetaGradient(totals, curve, trajectories)


@torch.no_grad()
def roll(
    rule: CoordinatewiseRule,
    family: TaskFamily,
    trajectories: Trajectories,
    meta_loss: MetaLoss,
    length: int,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Trajectories]:
    """Unroll without a graph and keep the gradients.

    Args:
        dtype: of what is kept; None is that of `flatten`.

    Returns: inner gradients g_s … g_{s+K−1} and meta-loss gradients ∇f(θ_{s+1}) … ∇f(θ_{s+K}), each (K, n) in the
        layout of `flatten` (the same memory, a step apart, unless the meta-loss has minibatches of its own); losses
        (K + 1, n_tasks), as in `MetaGradient`; meta-losses f(θ_{s+1}) … f(θ_{s+K}), (K, n_tasks); the trajectories
        after the window.
    """
    own_batches = meta_loss.split != meta_loss.inner_split
    precision, first = _precision(trajectories.params), trajectories.step
    flat, trajectories = _in_one_piece(trajectories)
    advance, evaluate = rule.stepper(trajectories.state), _evaluator(family, trajectories, flat is not None, generator)
    exact, device = dtype in (None, precision), next(iter(trajectories.params.values())).device
    inner = torch.empty(length + 1, _size(trajectories.params), dtype=dtype or precision, device=device)
    meta = torch.empty_like(inner) if own_batches else inner
    exact_row = None if exact else torch.empty_like(inner[0], dtype=precision)  # what is stored in bfloat16 is not it
    rows, steps = inner.unbind(), (first + torch.arange(length + 1, device=first.device)).unbind()
    meta_rows = meta.unbind() if own_batches else rows
    params, state = trajectories.params, trajectories.state
    curve, measured = _Rows(length + 1), _Rows(length if own_batches else 1)
    for k in range(length):
        grads = rows[k] if exact_row is None else exact_row
        curve.append(evaluate(params, meta_loss.inner_split, grads))
        updates, state = advance(grads, steps[k])
        if flat is None:
            params = add_flat(params, updates)
        else:
            flat += updates
        if exact_row is not None:
            rows[k].copy_(exact_row)
        if own_batches or k == length - 1:
            measured.append(evaluate(params, meta_loss.split, meta_rows[k + 1] if exact_row is None else exact_row))
            if exact_row is not None:
                meta_rows[k + 1].copy_(exact_row)
    curve.append(measured.tensor[-1])
    ended = Trajectories(trajectories.tasks, {name: p.detach() for name, p in params.items()}, state, steps[-1])
    return inner[:-1], meta[1:], curve.tensor, measured.tensor if own_batches else curve.tensor[1:], ended


class _Rows:
    """A tensor that is filled row by row, for losses.

    A small tensor per step, kept among minibatches that come and go, leaves gaps that nothing fits into: 47 kB a step.
    """

    def __init__(self, length: int):
        self._length = length
        self._free: Iterator[Tensor] | None = None

    def append(self, row: Tensor) -> None:
        if self._free is None:
            self.tensor = row.new_empty(self._length, *row.shape)
            self._free = iter(self.tensor.unbind())
        next(self._free).copy_(row)


def _in_one_piece(trajectories: Trajectories) -> tuple[Tensor | None, Trajectories]:
    """Return the params as one new axis of coordinates and the trajectories with views of it, variables of autograd.

    A loop that writes to the axis spares itself some tensors per parameter and step. If a parameter has not the
    precision of `flatten`, the axis is None and the trajectories are the given ones.
    """
    params = trajectories.params
    flat = flatten(params)
    if any(tensor.dtype is not flat.dtype for tensor in params.values()):
        return None, trajectories
    pieces = flat.split([tensor.numel() for tensor in params.values()])
    views = (piece.view(tensor.shape).requires_grad_() for piece, tensor in zip(pieces, params.values(), strict=True))
    return flat, trajectories._replace(params=dict(zip(params, views, strict=True)))


def _evaluator(
    family: TaskFamily, begun: Trajectories, in_place: bool, generator: torch.Generator
) -> Callable[[Params, Split, Tensor], Tensor]:
    """Return a function of (params, split, row) that writes the gradients into the row and returns the losses,
    which may be a view of the params.

    Args:
        in_place: the params are always those of `begun`, written to from step to step.
    """
    tasks, n_tasks = begun.tasks, begun.n_tasks
    closed = family.evaluator(begun.params, tasks) if in_place else None

    def in_closed_form(params: Params, split: Split, row: Tensor) -> Tensor:
        assert closed is not None
        return closed(family.sample_batch(tasks, n_tasks, split, generator), row)

    def by_autograd(params: Params, split: Split, row: Tensor) -> Tensor:
        batch = family.sample_batch(tasks, n_tasks, split, generator)
        losses, grads = losses_and_grads(family, params, tasks, batch)
        _write(grads, row)
        return losses

    return by_autograd if closed is None else in_closed_form


def _size(params: Params) -> int:
    return sum(tensor.numel() for tensor in params.values())


def _slopes(meta_loss: MetaLoss, losses: Tensor, params: Params) -> Tensor | None:
    """Return d of(f)/df at each coordinate, (K, n) in the layout of `flatten`; None where it is 1."""
    slope = meta_loss.slope(losses)
    if slope is None:
        return None
    return torch.cat([slope.repeat_interleave(p[0].numel(), 1) for p in params.values()], 1)


def _precision(params: Params) -> torch.dtype:
    """Return the dtype of `flatten`."""
    return functools.reduce(torch.promote_types, (p.dtype for p in params.values()), torch.float32)


def _write(grads: Params, row: Tensor) -> Tensor:
    """Write what `flatten` returns into a row of the record, and return the row."""
    return torch.cat([accumulator(grad).reshape(-1) for grad in grads.values()], out=row)


def _blocks(n_steps: int, n_coordinates: int, least: int) -> Sequence[slice]:
    """Cut the coordinates into blocks of at most `_BLOCK_NUMBERS` over all steps, or of `least` where that is more."""
    size = max(min(_BLOCK_NUMBERS // n_steps, _BLOCK_COORDINATES) // least * least, least)
    return [slice(first, min(first + size, n_coordinates)) for first in range(0, n_coordinates, size)]


def _copy(block: Tensor, room: Tensor) -> Tensor:
    """Copy into memory that all blocks share: what each allocates anew leaves gaps that the next does not fit into."""
    return room[: block.numel()].view(block.shape).copy_(block)


def _sums_from_the_end(rows: Tensor) -> Tensor:
    """Overwrite row t with Σ_{k≥t} of the rows."""
    for later, row in itertools.pairwise(reversed(rows.unbind())):
        row += later
    return rows
