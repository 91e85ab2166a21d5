"""What the guard of `l2o.load` keeps of a learned rule's gains, and leaves of its failures, on foreign networks.

Every held-out optimizee is trained with the plain rule, the guarded one, Adam at its default learning rate and Adam at
the one that the guard's Adam starts with, from the same weights and on the same minibatches, for ten times the horizon
that the rule was trained for.
"""

import csv
import functools
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import l2o
from l2o.guard import Guard
from meta_train.run_directory import describe_environment
from meta_train.safeguard_problems import HELD_OUT, Optimizee, samples
from tasks.task import Split

RULES = ("lstm-mnist",)
"""Shipped rules that are judged unless others are named."""
STEPS = 1000
"""Ten times the horizon of 100 for which the shipped rules were trained."""
SEEDS = 6
BATCH = 128
LAST = 20
"""The end of a run is the mean of its last losses, so many of them."""
METHODS = ("Adam", "boosted Adam", "plain", "guarded")


class Run(NamedTuple):
    """What one run leaves."""

    losses: list[float]
    """Minibatch losses before each step."""
    fell_back_at: int | None
    """The step from which on Adam moved the parameters."""
    cpu_s: float
    """CPU seconds, data and model included."""


def run_safeguard(checkpoints: Sequence[str], out: Path, command: str) -> None:
    """Run all optimizees with all methods, and write summary.csv, curves.csv and study.json.

    Args:
        checkpoints: learned rules; empty takes `RULES`.
        command: what was typed, for the README.

    Raises:
        CheckpointError: if a checkpoint cannot be loaded.
        DataError: if MNIST or CIFAR-10 is missing.
    """
    sources = tuple(checkpoints) or RULES
    rules = {source: l2o.load_rule(source) for source in sources}
    environment = describe_environment()  # before the first file makes the checkout differ from its commit
    out.mkdir(parents=True, exist_ok=True)
    summary, curves = [], []
    with tqdm(total=len(HELD_OUT) * (2 + 2 * len(rules)), unit="optimizee", disable=None) as bar:
        for name, optimizee in HELD_OUT.items():
            for rule, method, make in _methods(rules):
                bar.set_description_str(f"{name}: {method}")
                runs = [run(optimizee, make, seed) for seed in range(SEEDS)]
                row = {"optimizee": name, "rule": rule, "method": method}
                summary.append(row | _summarise(runs))
                curves += [row | point for point in _curve(runs)]
                bar.update()
    _write_csv(out / "summary.csv", summary)
    _write_csv(out / "curves.csv", curves)
    facts = {"rules": sources, "steps": STEPS, "seeds": SEEDS, "batch": BATCH, "last": LAST, "guard": repr(Guard())}
    facts |= {"boosted_lr": Guard().boost * Guard().lr, "audition": Guard().audition}
    origin = {"command": command, "directory": str(out), "environment": environment}
    (out / "study.json").write_text(json.dumps(facts | origin, indent=2) + "\n")


def _methods(rules: dict[str, Any]):
    """Yield (rule, method, how to build the optimizer); Adam needs no rule."""
    yield "", "Adam", torch.optim.Adam
    yield "", "boosted Adam", functools.partial(torch.optim.Adam, lr=Guard().boost * Guard().lr)
    for source, rule in rules.items():
        yield source, "plain", functools.partial(l2o.LearnedOptimizer, rule=rule)
        yield source, "guarded", functools.partial(l2o.LearnedOptimizer, rule=rule, guard=True)


def run(optimizee: Optimizee, make: Callable[..., torch.optim.Optimizer], seed: int, split: Split = "test") -> Run:
    """Train a fresh network for `STEPS` steps; weights and minibatches depend on the seed alone."""
    begun = time.process_time()
    inputs, targets = samples(optimizee.data, split)
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = optimizee.build()
    optimizer, losses, fell_back_at = make(model.parameters()), [], None
    learned = isinstance(optimizer, l2o.LearnedOptimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # gradients that are not finite, Adam taking over
        for step in range(STEPS):
            batch = torch.randint(len(inputs), (BATCH,), generator=generator)
            loss = optimizee.loss(model(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss) if learned else optimizer.step()  # pyright: ignore (an optimizer of both kinds)
            losses.append(loss.item())
            if fell_back_at is None and getattr(optimizer, "fallen_back", False):
                fell_back_at = step
    return Run(losses, fell_back_at, time.process_time() - begun)


def _summarise(runs: Sequence[Run]) -> dict[str, Any]:
    ends = torch.tensor([_mean(one.losses[-LAST:]) for one in runs], dtype=torch.float64)
    fallen = [one.fell_back_at for one in runs if one.fell_back_at is not None]
    return {
        "n_seeds": len(runs),
        "end": f"{ends.mean().item():.5g}",
        "end_sd": f"{ends.std().item():.3g}" if len(runs) > 1 else "",
        "ends": " ".join(f"{end:.5g}" for end in ends.tolist()),
        "fell_back": len(fallen),
        "fell_back_at": " ".join(map(str, fallen)),
        "cpu_s": f"{_mean([one.cpu_s for one in runs]):.3g}",
    }


def _curve(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the geometric mean over seeds of every `LAST` losses' mean: losses of one network differ by factors."""
    points = []
    for begin in range(0, STEPS, LAST):
        means = [_mean(one.losses[begin : begin + LAST]) for one in runs]
        level = math.exp(_mean([math.log(max(value, 1e-12)) for value in means]))
        points.append({"step": begin + LAST, "loss": f"{level:.5g}"})
    return points


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
