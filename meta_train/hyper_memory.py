"""What a hypergradient holds in memory, by how it is made and by the number of iterations it goes through.

    W_{k+1} = W_k − ∇L(W_k; λ) / L,   k = 0 … K − 1,   then dℓ(W_K)/dλ by each mode of `l2o.fixed_point`

Counted are the bytes of all tensors that are alive at once, forward and backward, beyond those that were there before:
what is saved for the backward pass, what that pass needs, and the vectors of the linear solver. The count is exact and
the same on every machine; what a kernel of PyTorch takes within itself is not in it.
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import l2o
from meta_train.hyper_speed import exact_hypergradient
from tasks.logistic import LogisticRegression

LAST = 10
"""Steps of the truncated gradient, no more than the fewest iterations that are measured."""
MODES: dict[str, dict[str, Any]] = {
    "implicit": {"gradient": "implicit", "on_failure": "ignore"},  # after few iterations it is wrong, and told so
    f"truncated, last {LAST}": {"gradient": "truncated", "last": LAST},
    "one step": {"gradient": "one_step"},
    "unrolled": {"gradient": "unrolled"},
}


class Held(NamedTuple):
    """One hypergradient."""

    mode: str
    """Key of `MODES`."""
    iterations: int
    """K."""
    peak: int
    """Bytes of the tensors that were alive at once, at most."""
    error: float
    """‖g − g*‖ / ‖g*‖."""


def held_by_mode(problem: LogisticRegression, log_decay: Tensor, iterations: Sequence[int]) -> list[Held]:
    """Measure the hypergradient of every mode after every number of iterations, K by K.

    Raises:
        ValueError: if there are more than two classes.
    """
    exact, rows = exact_hypergradient(problem, log_decay), []
    for count in iterations:
        for mode in MODES:
            make = functools.partial(hypergradient, problem, log_decay, mode, count, exact.largest)
            found, peak = with_peak(make)
            rows.append(Held(mode, count, peak, float((found - exact.gradient).norm() / exact.gradient.norm())))
    return rows


def hypergradient(problem: LogisticRegression, log_decay: Tensor, mode: str, iterations: int, largest: float) -> Tensor:
    """Return dℓ/dλ by a mode after so many steps of gradient descent of size 1 / largest."""
    log_decay = log_decay.clone().requires_grad_()
    step = lambda W: W - problem.gradient(W, log_decay) / largest  # noqa: E731
    end = l2o.fixed_point(step, problem.zero_weights(), steps=iterations, **MODES[mode])
    return torch.autograd.grad(problem.loss(end.u, problem.valid), log_decay)[0]


def with_peak(make: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Return what a function returns, and the most bytes that the tensors made in it held at once.

    >>> with_peak(lambda: torch.ones(1000, dtype=torch.float64) + 1)[1]
    16000
    """
    with _Living() as living:
        made = make()
    return made, living.peak


class _Living(TorchDispatchMode):
    """Counts the storages that operators return, from their birth to their end."""

    def __init__(self):
        super().__init__()
        self.bytes, self.peak = 0, 0
        self.born: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for storage in _storages((made,)):
            key = id(storage)
            if key not in self.born and all(storage is not given for given in _storages(args)):  # no view of another
                self.born[key] = weakref.ref(storage, functools.partial(self._end, key, storage.nbytes()))
                self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        return made

    def _end(self, key: int, size: int, _: Any) -> None:
        del self.born[key]
        self.bytes -= size


def _storages(values: Iterable[Any]) -> Iterator[torch.UntypedStorage]:
    """Yield those of the tensors in nested lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value.untyped_storage()
        elif isinstance(value, list | tuple):
            yield from _storages(value)
