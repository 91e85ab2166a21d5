"""Paint a batch of pairs with one optimizer: the loss after every step, CPU time, and the pictures.

First-order methods and learned rules make one evaluation of loss and gradient a step. L-BFGS makes several, so its
losses are counted by evaluation, and what stands at evaluation k is the least of the first k: what one would keep.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.rule import UpdateRule
from meta_train.unroll import Trajectories, apply_rule, init_state, losses_and_grads
from tasks import NeuralArt
from tasks.task import Data, Split


class Run(NamedTuple):
    """What one optimizer made of some pairs."""

    losses: Tensor
    """At θ_0 … θ_steps, float64, shape (steps + 1, pairs)."""
    cpu_s: Tensor
    """CPU seconds of each pair, shape (pairs,)."""
    pictures: Tensor
    """After `shown_step` steps, uint8, shape (pairs, 3, size, size)."""


Race = Callable[[NeuralArt, Data, int, Split, int], Run]
"""Family, pairs, steps, split and the step after which pictures are kept -> run."""


def racer(rule: UpdateRule) -> Race:
    """Return the race of a rule that makes one evaluation a step."""

    @torch.no_grad()
    def race(family: NeuralArt, tasks: Data, steps: int, split: Split, shown_step: int) -> Run:
        generator, n_tasks = torch.Generator().manual_seed(0), len(tasks["style"])  # the start is the photograph
        batch = family.sample_batch(tasks, n_tasks, split, generator)
        params = family.init_params(tasks, n_tasks, generator)
        begun = time.process_time()
        step = torch.zeros((), dtype=torch.int64)
        trajectories = Trajectories(tasks, params, init_state(rule, family, tasks, params), step)
        curve, pictures = [], params["image"]
        for made in range(steps + 1):
            losses, grads = losses_and_grads(family, trajectories.params, tasks, batch)
            curve.append(losses)
            if made == shown_step:
                pictures = family.picture(trajectories.params, batch)
            trajectories = apply_rule(rule, trajectories, losses, grads, overwrite=True)
        seconds = (time.process_time() - begun) / n_tasks
        return Run(torch.stack(curve).double(), torch.full((n_tasks,), seconds), as_bytes(pictures))

    return race


def lbfgs_racer(lr: float, history: int) -> Race:
    """Return the race of torch's L-BFGS with the strong Wolfe line search, a pair at a time."""

    def race(family: NeuralArt, tasks: Data, steps: int, split: Split, shown_step: int) -> Run:
        runs = []
        for pair in range(len(tasks["style"])):
            alone = {name: tensor[pair : pair + 1] for name, tensor in tasks.items()}
            runs.append(_lbfgs(lr, history, family, alone, steps, split, shown_step))
        losses, cpu_s, pictures = zip(*runs, strict=True)
        return Run(torch.cat(losses, 1), torch.cat(cpu_s), torch.cat(pictures))

    return race


def _lbfgs(
    lr: float, history: int, family: NeuralArt, task: Data, steps: int, split: Split, shown_step: int
) -> Run:  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    batch = family.sample_batch(task, 1, split, generator)
    image = family.init_params(task, 1, generator)["image"].requires_grad_()
    optimizer = torch.optim.LBFGS(
        [image], lr=lr, history_size=history, max_iter=steps, max_eval=steps + 1, line_search_fn="strong_wolfe",
        tolerance_grad=0.0, tolerance_change=0.0,
    )  # fmt: skip
    curve: list[float] = []
    best = shown = image.detach().clone()

    def closure() -> Tensor:
        nonlocal best, shown
        optimizer.zero_grad()
        loss = family.loss({"image": image}, task, batch).sum()
        loss.backward()
        if not curve or loss.item() < min(curve):
            best = image.detach().clone()
        if len(curve) <= shown_step:
            shown = best
        curve.append(loss.item())
        return loss

    begun = time.process_time()
    optimizer.step(closure)
    seconds = time.process_time() - begun
    found = torch.tensor(curve[: steps + 1], dtype=torch.float64).nan_to_num(torch.inf).cummin(0).values
    # It ends early where the line search finds nothing better; a line search in progress goes on past the last.
    losses = torch.cat([found, found[-1:].expand(steps + 1 - len(found))])
    pictures = family.picture({"image": shown}, batch)
    return Run(losses[:, None], torch.tensor([seconds * len(found) / len(curve)]), as_bytes(pictures))


def as_bytes(pictures: Tensor) -> Tensor:
    """Return pictures of grey scale 0 to 1 as uint8; what is not a number is black."""
    return (pictures.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
