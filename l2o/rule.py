"""The contract of a step: what a rule may look at, and what it gives back.

A rule maps (observation, state) to (next iterate, next state) and is pure: no in-place writes, no `.item()`, no random
draws. The same code therefore runs under autograd, under `torch.func.vmap` over tasks, with perturbed weights through
`torch.func.functional_call`, and inside `l2o.LearnedOptimizer`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]
"""The optimizee's variables: name -> tensor."""

_CHUNK = 2048
"""Coordinates that `update_vjp` replays at a time."""

State = Any
"""A rule's memory: a NamedTuple of tensors."""


class Observation(NamedTuple):
    """What a step may look at."""

    params: Params
    """The current iterate θ_t."""
    grads: Params | None
    """Gradient of the inner loss at `params`, same names and shapes."""
    loss: Tensor | None
    """Inner loss at `params`, shape ()."""
    step: Tensor
    """Number of updates made before this one, int64, shape ()."""
    problem: Any = None
    """Structure for model-based rules (operator, prox, data)."""


class UpdateRule(nn.Module, ABC):
    """One step of an optimizer; its weights θ are its `nn.Module` parameters.

    A subclass is final and implements `init_state` and `forward`. `config` is the frozen dataclass it was built from,
    so that `type(rule)(rule.config)` makes a rule of the same shape.
    """

    config: Any

    @abstractmethod
    def init_state(self, params: Params) -> State:
        """Return the state before the first step: a NamedTuple of tensors on the device of `params`."""

    @abstractmethod
    def forward(self, observation: Observation, state: State) -> tuple[Params, State]:
        """Return the next iterate and the next state."""


class CoordinatewiseRule(UpdateRule):
    """A rule whose update of a coordinate depends on that coordinate's gradients alone.

    The coordinates of all tensors (and of all tasks) are one flat axis of length n, the *last* axis of every state
    tensor. A subclass implements `init_coordinates` and `update`; the mapping to named tensors is done here. Because
    nothing mixes coordinates, `forward` also accepts tensors with extra leading task axes, without vmap.
    """

    least_coordinates: int = _CHUNK
    """What `update_vjp` should be given at a time, at least, to be fast on a CPU."""

    @abstractmethod
    def init_coordinates(self, like: Tensor) -> State:
        """Return the state of n fresh coordinates.

        Args:
            like: shape (n,); only its length, dtype and device count.
        """

    @abstractmethod
    def update(self, grads: Tensor, state: State, step: Tensor) -> tuple[Tensor, State]:
        """Return the additive updates u_t of n coordinates, shape (n,), and their next state.

        Args:
            grads: gradients, shape (n,), at least float32.
            state: as from `init_coordinates`.
            step: number of earlier updates, int64, shape () or (n,).
        """

    def update_(self, grads: Tensor, state: State, step: Tensor) -> tuple[Tensor, State]:
        """`update` for loops without autograd; may write the next state into the tensors of `state`.

        The state may be stored in bfloat16. The next one comes in the precision of `update`, for the caller to round,
        or has been written into the tensors of `state`.
        """
        wide = (tensor.to(grads.dtype) if tensor.dtype is torch.bfloat16 else tensor for tensor in state)
        return self.update(grads, type(state)(*wide), step)

    def stepper(self, state: State) -> Callable[[Tensor, Tensor], tuple[Tensor, State]]:
        """Return `update_` for a loop of many steps that begins at this state, without the state among its arguments.

        The weights must not change while the loop runs.
        """

        def advance(grads: Tensor, step: Tensor) -> tuple[Tensor, State]:
            nonlocal state
            updates, state = self.update_(grads, state, step)
            return updates, state

        return advance

    def update_vjp(self, grads: Tensor, cotangents: Tensor, state: State, step: Tensor) -> dict[str, Tensor]:
        """Return the gradient of Σ_t ⟨c_t, u_t⟩ with respect to θ, by name, where u_t are the updates of K steps.

        Replays the steps under autograd, a chunk of coordinates at a time, so that the graph stays in the cache.

        Args:
            grads: g_t, shape (K, n), constants.
            cotangents: c_t, shape (K, n).
            state, step: before the first of the K steps.
        """
        theta = dict(self.named_parameters())
        totals = [torch.zeros_like(parameter) for parameter in theta.values()]
        for first in range(0, grads.shape[1], _CHUNK):
            part = slice(first, first + _CHUNK)
            memory = type(state)(*(tensor[..., part] for tensor in state))
            with torch.enable_grad():
                total = torch.zeros((), device=grads.device)
                for t, (grad, cotangent) in enumerate(zip(grads[:, part], cotangents[:, part], strict=True)):
                    updates, memory = self.update(grad, memory, step + t)
                    total = total + (cotangent * updates).sum()
                pieces = torch.autograd.grad(total, list(theta.values()), materialize_grads=True)
            for sum_of_pieces, piece in zip(totals, pieces, strict=True):
                sum_of_pieces += piece
        return dict(zip(theta, totals, strict=True))

    def init_state(self, params: Params) -> State:
        """See `UpdateRule.init_state`."""
        return self.init_coordinates(flatten(params))

    def forward(self, observation: Observation, state: State) -> tuple[Params, State]:
        """Apply `update` to all coordinates: θ_{t+1} = θ_t + u_t.

        Raises:
            ValueError: if the observation has no gradients.
        """
        if observation.grads is None:
            raise ValueError(f"{type(self).__name__} needs gradients, but observation.grads is None")
        updates, state = self.update(flatten(observation.grads), state, observation.step)
        return add_flat(observation.params, updates), state


class ModelBasedRule(UpdateRule):
    """A rule that steps on the structure of a problem, `observation.problem`, instead of on gradients of a loss.

    There is one variable, "x", with the problem's batch axes: rules are batched, and need no vmap. A subclass
    implements `init_problem` and `iterate`.
    """

    layers: int | None = None
    """Number of steps that have weights of their own; a later step uses those of the last. None: all are alike."""

    iterated: tuple[str, ...] | None = ()
    """Entries of the state that converge along with x (dual variables), each with the batch axes of x first. None: all
    but the first entry, which is x itself.

    Together with x they are the fixed point that `solve(gradient="implicit")` differentiates: its map is
    `iterate` on the state of a fresh `init_problem` with these entries put in, so that everything else, factorisations
    and step sizes, is a function of the problem and differentiated with it. Momentum does not belong here: at a fixed
    point it starts afresh.
    """

    @abstractmethod
    def init_problem(self, problem: Any, x: Tensor) -> State:
        """Return the state before the first step from x: a NamedTuple of tensors; what is computed once goes here."""

    @abstractmethod
    def iterate(self, problem: Any, x: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        """Return the next iterate, the shape of x, and the next state.

        Args:
            problem: an `l2o.Problem`.
            x: shape (batch…, item…), at least float32.
            step: number of earlier steps.
        """

    def init_state(self, params: Params) -> State:
        """Refuse: without a problem there is no state.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{type(self).__name__} needs a problem: use l2o.solve(rule, problem), or rule.init_problem")

    def forward(self, observation: Observation, state: State) -> tuple[Params, State]:
        """Apply `iterate` to "x".

        Raises:
            ValueError: if the observation has no problem.
        """
        if observation.problem is None:
            raise ValueError(f"{type(self).__name__} needs the structure of a problem, but observation.problem is None")
        x, state = self.iterate(observation.problem, observation.params["x"], state, int(observation.step))
        return {"x": x}, state


def flatten(tensors: Params) -> Tensor:
    """Concatenate all tensors into one axis of coordinates, shape (n,), in the dict's order, at least float32."""
    return torch.cat([accumulator(tensor).reshape(-1) for tensor in tensors.values()])


def add_flat(params: Params, updates: Tensor) -> Params:
    """Return params + updates, where updates has the layout of `flatten`; each tensor keeps its shape and dtype."""
    # Nothing to split and nothing to cast are common, and cost small tasks as much as the sum itself.
    single = len(params) == 1
    pieces = [updates] if single else updates.split([tensor.numel() for tensor in params.values()])
    return {
        name: _cast(tensor + piece.reshape(tensor.shape), tensor.dtype)
        for (name, tensor), piece in zip(params.items(), pieces, strict=True)
    }


def accumulator(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32, the precision in which rules compute and accumulate."""
    return _cast(tensor, torch.promote_types(tensor.dtype, torch.float32))


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)
