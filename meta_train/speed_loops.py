"""The outer steps that `meta_train.speed` races: loops as one writes them by hand, and this library's estimators.

The loops by hand take losses and minibatches from the task families and all else from torch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2o.rule import UpdateRule
from l2o.rules import SGD, CoordinatewiseLSTM, LSTMConfig, SGDConfig
from meta_train.estimators import Estimator, MetaLoss
from meta_train.unroll import task_losses
from tasks import MLP
from tasks.task import TaskFamily

TRUNCATION = 20
"""Inner steps K of an outer step."""
TURN = 0.1
"""Seconds that a turn of a method in the race lasts at least: outer steps follow one another, as in training. A single
one of a few milliseconds would mostly measure how the caches fill again after the method before."""
LR = 0.1
"""Where the learnable step size of the second-order workload starts."""

OuterStep = Callable[[], None]


class StockLoop(nn.Module):
    """The rule that everybody writes first: `nn.LSTMCell`s over coordinates."""

    def __init__(self, p: float | None, size: int = 20):
        super().__init__()
        self.p = p
        self.cells = nn.ModuleList([nn.LSTMCell(1 if p is None else 2, size), nn.LSTMCell(size, size)])
        self.output = nn.Linear(size, 1)

    def forward(self, grads: Tensor, state: list[tuple[Tensor, Tensor]]):
        """Return updates (n,) and the next state."""
        inputs = grads[:, None]
        if self.p is not None:
            small = grads.abs() < torch.e**-self.p
            logarithm = torch.where(small, -1.0, grads.abs().clamp(min=1e-30).log() / self.p)
            inputs = torch.stack([logarithm, torch.where(small, torch.e**self.p * grads, grads.sign())], 1)
        following = []
        for cell, memory in zip(self.cells, state, strict=True):
            memory = cell(inputs, memory)
            inputs = memory[0]
            following.append(memory)
        return 0.1 * self.output(inputs)[:, 0], following


def stock_outer_step(family: TaskFamily, n_tasks: int, p: float | None, compiled: bool = False) -> OuterStep:
    """Return a function that makes one outer step with the stock loop: autograd through everything.

    Args:
        compiled: put the rule through torch.compile.
    """
    generator = torch.Generator().manual_seed(0)
    rule = StockLoop(p)
    update = torch.compile(rule, dynamic=False) if compiled else rule
    adam = torch.optim.Adam(rule.parameters(), lr=0.001, fused=True)
    tasks = family.sample_tasks(n_tasks, generator)
    start = family.init_params(tasks, n_tasks, generator)

    def step() -> None:
        adam.zero_grad()
        stock_meta_loss(update, family, tasks, start, generator).backward()
        adam.step()

    return step


def stock_meta_loss(
    rule: Callable[..., tuple[Tensor, list[tuple[Tensor, Tensor]]]],
    family: TaskFamily,
    tasks: dict[str, Tensor],
    start: dict[str, Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Return the mean loss after K steps of a rule with two layers of 20 units, inner gradients detached."""
    params = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    n_tasks = len(next(iter(params.values())))
    sizes = [tensor.numel() for tensor in params.values()]
    state = [(torch.zeros(sum(sizes), 20), torch.zeros(sum(sizes), 20)) for _ in range(2)]
    total = torch.zeros(())
    for k in range(TRUNCATION + 1):
        batch = family.sample_batch(tasks, n_tasks, "train", generator)
        losses = task_losses(family, params, tasks, batch)
        if k > 0:
            total = total + losses.mean() / TRUNCATION
        if k == TRUNCATION:
            break
        grads = torch.autograd.grad(losses.sum(), list(params.values()), retain_graph=True)
        updates, state = rule(torch.cat([grad.flatten() for grad in grads]), state)
        pieces = updates.split(sizes)
        params = {k: v + piece.view_as(v) for (k, v), piece in zip(params.items(), pieces, strict=True)}
    return total


def hand_written_outer_step(family: MLP, n_tasks: int) -> OuterStep:
    """Return a function that learns the step size of gradient descent in second order, a task at a time."""
    generator = torch.Generator().manual_seed(0)
    log_lr = nn.Parameter(torch.tensor(LR).log())
    adam = torch.optim.Adam([log_lr], lr=0.001, fused=True)
    start = family.init_params({}, n_tasks, generator)

    def step() -> None:
        adam.zero_grad()
        for i in range(n_tasks):
            params = [tensor[i] for tensor in start.values()]
            (hand_written_meta_loss(family, log_lr, params, generator) / n_tasks).backward()
        adam.step()

    return step


def hand_written_meta_loss(family: MLP, log_lr: Tensor, start: list[Tensor], generator: torch.Generator) -> Tensor:
    """Return the mean loss of one task after K steps of gradient descent through which autograd differentiates."""
    params = [tensor.clone().requires_grad_() for tensor in start]
    total = torch.zeros(())
    for k in range(TRUNCATION + 1):
        batch = family.sample_batch({}, 1, "train", generator)
        hidden = torch.sigmoid(F.linear(batch["inputs"][0], params[0], params[1]))
        loss = F.cross_entropy(F.linear(hidden, params[2], params[3]), batch["targets"][0])
        if k > 0:
            total = total + loss / TRUNCATION
        if k == TRUNCATION:
            break
        grads = torch.autograd.grad(loss, params, create_graph=True)
        params = [tensor - log_lr.exp() * grad for tensor, grad in zip(params, grads, strict=True)]
    return total


def our_outer_step(estimator: Estimator, family: TaskFamily, n_tasks: int, p: float | None) -> OuterStep:
    """Return a function that makes one outer step of the LSTM with one of our estimators."""
    generator = torch.Generator().manual_seed(0)
    return _estimated_outer_step(estimator, CoordinatewiseLSTM(LSTMConfig(p=p), generator), family, n_tasks, generator)


def our_second_order_step(estimator: Estimator, family: TaskFamily, n_tasks: int) -> OuterStep:
    """Return a function that learns the step size of gradient descent with one of our estimators."""
    return _estimated_outer_step(estimator, SGD(SGDConfig(LR)), family, n_tasks, torch.Generator().manual_seed(0))


def _estimated_outer_step(
    estimator: Estimator, rule: UpdateRule, family: TaskFamily, n_tasks: int, generator: torch.Generator
) -> OuterStep:
    adam = torch.optim.Adam(rule.parameters(), lr=0.001, fused=True)
    trajectories = estimator.start(rule, family, n_tasks, generator)
    weights = torch.full((TRUNCATION,), 1 / TRUNCATION)

    def step() -> None:
        result = estimator.estimate(rule, family, trajectories, MetaLoss(), weights, generator)
        for name, parameter in rule.named_parameters():
            parameter.grad = result.grads[name]
        adam.step()

    return step
