"""The inner steps of a window that autograd goes through: draw a minibatch, evaluate, differentiate, apply the rule.

In second order a step is a pure function

    (θ_t, state_t, minibatch) ↦ (f(θ_t), θ_{t+1}, state_{t+1}),   ∇f by torch.func.grad,

and torch.compile turns one or several of them into two graphs, a forward and a backward pass (AOTAutograd, inductor);
the autograd of the window, eager as ever, chains these.
"""

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from l2o.kernels.matmul import FewRows
from l2o.rule import Params, State, UpdateRule
from meta_train.unroll import Trajectories, apply_rule, losses_and_grads, task_losses
from tasks.task import Data, Split, TaskFamily

_BACKEND = "inductor"
_made: "weakref.WeakKeyDictionary[UpdateRule, InnerSteps]" = weakref.WeakKeyDictionary()


class InnerSteps:
    """The inner steps of a rule on a family.

    Args:
        order: 1 (inner gradients detached) or 2.
        compiled: compile second-order steps, at the first call. Where that is impossible they run eagerly, with one
            warning.
    """

    def __init__(self, family: TaskFamily, order: int = 1, compiled: bool = False):
        self.made_for = (family, order, compiled)
        self._family, self._order = family, order
        self._compiled: Callable[..., Any] | None = None
        self._warm = False
        self._kept: list[Data] = []
        self._spare: list[Data] = []
        if compiled and family.vectorized == "loop":
            self._warn("its loss takes one task at a time, and the compiler would unroll the loop over tasks")
        elif compiled:
            self._compiled = _compile(family)

    def begin(self) -> None:
        """Begin a stretch of steps whose graph is held at a time.

        The graph holds the stretch's minibatches. Let go all at once they would go back to the operating system, and
        their successors be faulted in again page by page: a fifth of the time of 16 MNIST MLPs in second order. So the
        minibatches of a stretch stay, and make room one by one as those of the next one are drawn.
        """
        self._spare, self._kept = self._kept, []

    def __call__(
        self, rule: UpdateRule, trajectories: Trajectories, split: Split, generator: torch.Generator, count: int = 1
    ) -> tuple[list[Tensor], Trajectories]:
        """Make steps of every task on fresh minibatches.

        Returns: losses before each of the `count` steps, shape (n_tasks,), and the trajectories after them, connected
            to θ and, in second order or where they require gradients, to what the steps started from.
        """
        batches = [self._draw(trajectories, split, generator) for _ in range(count)]
        if self._compiled is not None:
            try:
                return self._run_compiled(rule, trajectories, batches)
            except Exception as error:  # what is wrong with the loss or the rule itself is raised again below
                self._compiled = None
                self._warn(f"{type(error).__name__}: {error}")
        curve = []
        for batch in batches:
            tasks, params = trajectories.tasks, trajectories.params
            losses, grads = losses_and_grads(self._family, params, tasks, batch, self._order)
            problem = self._family.problem(tasks)
            trajectories = apply_rule(rule, trajectories, losses, grads, problem=problem)
            curve.append(losses)
        return curve, trajectories

    def losses(self, trajectories: Trajectories, split: Split, generator: torch.Generator) -> Tensor:
        """Return the losses of every task on fresh minibatches, shape (n_tasks,), connected to the params."""
        batch = self._draw(trajectories, split, generator)
        with torch.enable_grad():
            return task_losses(self._family, trajectories.params, trajectories.tasks, batch)

    def _draw(self, trajectories: Trajectories, split: Split, generator: torch.Generator) -> Data:
        if self._spare:
            self._spare.pop()
        batch = self._family.sample_batch(trajectories.tasks, trajectories.n_tasks, split, generator)
        self._kept.append(batch)
        return batch

    def _run_compiled(
        self, rule: UpdateRule, begun: Trajectories, batches: list[Data]
    ) -> tuple[list[Tensor], Trajectories]:
        assert self._compiled is not None
        params = {name: _variable(tensor) for name, tensor in begun.params.items()}
        state = type(begun.state)(*(_variable(tensor) for tensor in begun.state))
        with torch.enable_grad(), contextlib.nullcontext() if self._warm else _first_call():
            losses, params, state = self._compiled(rule, begun.tasks, params, state, begun.step, batches)
        self._warm = True
        return losses, Trajectories(begun.tasks, params, state, begun.step + len(batches))

    def _warn(self, cause: str) -> None:
        family = type(self._family).__name__
        message = f"the inner steps on {family} cannot be compiled, so they run eagerly. Cause: {cause:.500}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def inner_steps(rule: UpdateRule, family: TaskFamily, order: int, compiled: bool) -> InnerSteps:
    """Return the rule's inner steps, the same in every window: compiled code and memory outlive a window."""
    steps = _made.get(rule)
    if steps is None or steps.made_for != (family, order, compiled):
        steps = _made[rule] = InnerSteps(family, order, compiled)
    return steps


def largest_divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of a number up to a bound."""
    return next(divisor for divisor in range(min(number, at_most), 0, -1) if number % divisor == 0)


def _compile(family: TaskFamily) -> Callable[..., Any]:
    """Return the compiled steps. They take the rule as an argument: `_made` must not keep its own keys alive."""

    def run(rule: UpdateRule, tasks: Data, params: Params, state: State, step: Tensor, batches: list[Data]):
        now, curve = Trajectories(tasks, params, state, step), []
        for batch in batches:
            grads, losses = torch.func.grad(_sum_and_losses, has_aux=True)(now.params, family, tasks, batch)
            now = apply_rule(rule, now, losses, grads)
            curve.append(losses)
        return curve, now.params, now.state

    options = _options() if _BACKEND == "inductor" else None
    return torch.compile(run, fullgraph=True, dynamic=False, backend=_BACKEND, options=options)


def _options() -> dict[str, Any]:
    """Return inductor's options. Its checks of its own shapes take a tenth of a small step."""
    from torch._inductor.custom_graph_pass import CustomGraphPass  # seconds of every start, for those who compile

    pass_over_graph = type("FewRowsPass", (FewRows, CustomGraphPass), {})()
    return {"size_asserts": False, "alignment_asserts": False, "post_grad_custom_post_pass": pass_over_graph}


def _sum_and_losses(params: Params, family: TaskFamily, tasks: Data, batch: Data) -> tuple[Tensor, Tensor]:
    losses = task_losses(family, params, tasks, batch)
    return losses.sum(), losses


@contextlib.contextmanager
def _first_call() -> Iterator[None]:
    """Compile the backward pass too, while eager mode is still open; keep what torch warns itself of to itself."""
    import torch._functorch.config

    with warnings.catch_warnings(), torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
        warnings.simplefilter("ignore")
        yield


def _variable(tensor: Tensor) -> Tensor:
    """Return what a window starts from as a variable: with the same inputs at every call, one graph serves them all."""
    if tensor.requires_grad or not tensor.is_floating_point():
        return tensor
    return tensor.detach().requires_grad_()
