"""The contract of what is optimised: a distribution of optimizees with data splits.

Sampling is batched over tasks and draws from an explicit generator, outside any transform; `loss` is for one task and
pure, so that the loop can vectorise it with `torch.func.vmap`.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from l2o.problem import Problem

Params = dict[str, Tensor]
Data = dict[str, Tensor]
"""Tensors by name: what defines a task, or a minibatch. May be empty."""

Split = Literal["train", "inner_valid", "outer_valid", "test"]
"""Where minibatches come from. Rules are trained on train (and inner_valid), chosen and tuned on outer_valid, and
reported on test, which meta-training never touches."""

SPLITS: tuple[Split, ...] = get_args(Split)


class TaskFamily(ABC):
    """A distribution of optimizees; knows no optimizer.

    Functions that need to be implemented: `sample_tasks`, `init_params`, `loss`, and `sample_batch` where the loss
    uses sampled data. All tensors are made on `generator.device`.
    """

    vectorized: Literal["axes", "vmap", "loop"] = "vmap"
    """How the loop evaluates all tasks at once: `loss` itself takes a leading task axis on everything and returns
    (n_tasks,), which is fastest; `torch.func.vmap` of `loss`; or one task after the other, which always works."""

    def sample_tasks(self, n_tasks: int, generator: torch.Generator) -> Data:
        """Return what defines each task, each tensor with a leading task axis; empty if all tasks share their data."""
        return {}

    @abstractmethod
    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        """Return the start θ_0 of each task, each tensor with a leading task axis."""

    def sample_batch(self, tasks: Data, n_tasks: int, split: Split, generator: torch.Generator) -> Data:
        """Return one minibatch per task from a split, leading task axis; empty if the loss needs no sampled data."""
        return {}

    def sample_share(
        self, tasks: Data, n_tasks: int, split: Split, generator: torch.Generator, part: slice | Tensor
    ) -> Data:
        """Return the minibatches of some of the tasks, after the same draws as `sample_batch` for all of them.

        Many ranks that share the tasks call it; worth overriding where a minibatch costs more than its random numbers.
        """
        batch = self.sample_batch(tasks, n_tasks, split, generator)
        return {name: tensor[part] for name, tensor in batch.items()}

    def problem(self, tasks: Data) -> Problem | None:
        """Return all tasks as one batched problem whose structure a model-based rule may use; None if there is none."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return facts, as JSON holds them, by which a run that is continued recognises its tasks."""
        # Nearly every family is a dataclass, which the base class cannot say.
        fields = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        return {field.name: repr(getattr(self, field.name)) for field in fields}

    def evaluator(self, params: Params, tasks: Data) -> Callable[[Data, Tensor], Tensor] | None:
        """Return a function that evaluates all tasks without autograd, at what the params hold when it is called.

        It takes a minibatch, writes the gradients of the sum of all losses into a tensor of shape (n,) and the params'
        dtype, name by name in the dict's order, and returns the losses, shape (n_tasks,). None, the default, leaves all
        to autograd. Worth having where autograd takes longer than the arithmetic; a subclass that changes `loss` goes
        back to autograd.
        """
        return None

    def __init_subclass__(cls, **options: Any) -> None:
        """Part a new loss from the gradients of the inherited one."""
        super().__init_subclass__(**options)
        if "loss" in cls.__dict__ and "evaluator" not in cls.__dict__:
            cls.evaluator = TaskFamily.evaluator

    @abstractmethod
    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        """Return the loss of one task on one minibatch, shape ()."""
