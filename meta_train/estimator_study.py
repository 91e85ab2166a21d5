"""Bias and variance of every meta-gradient estimator where truncation is known to fail: influence balancing.

A linear system is driven by a single weight θ, which pushes the first p units up and the others down:

    s_{t+1} = A s_t + θ (1, …, 1, −1, …, −1),   A_ii = A_{i,i+1} = 1/2,   s_0 = 1,   f(s) = ½ (s¹ − 1)².

A unit reaches s¹ only through those before it, so over a few steps θ raises s¹, and over many it lowers it: the
gradient of a short window has the wrong sign. Source: Tallec & Ollivier 2017, arXiv:1702.05043, §5 (n = 23 units,
p = 10, start at θ = 0.5); Vicol et al. 2021, arXiv:2112.13835, §5 for PES (σ = 0.1). Differs from them: the mean of the
losses over a horizon with resets, not one endless sequence. That meta-loss is a quadratic function of θ, which
smoothing does not tilt: every unbiased estimator has the exact gradient as expectation, at any σ.
"""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from l2o.rule import Observation, Params, UpdateRule
from meta_train.estimators import ES, NRES, PES, Estimator, MetaLoss, Truncated
from meta_train.estimators.perturbed import repeat, start_particles, unroll_particles
from meta_train.run_directory import describe_environment
from tasks.task import Data, TaskFamily

UNITS, POSITIVE = 23, 10
START = 0.5
"""θ at which the estimators are compared and from which they train."""
HORIZON = 200
"""Inner steps T; the influence of θ on s¹ is +16 after 20 steps, negative from step 41 on, −6 after 70."""
TRUNCATIONS = (1, 5, 10, 20, 50, 100, 200)
SIGMA = 0.1
OUTER_LR, TRAJECTORIES, SEEDS = 2.5e-5, 40, 3
"""Plain gradient descent with step size OUTER_LR · K for all estimators, so that θ moves as far in a trajectory
whatever K is: with the curvature of 50 that the meta-loss has, a quarter of the way to its minimum."""
TRAINED = {"truncated": (20, 200), "es": (20, 200), "pes": (1, 20), "nres": (1, 20)}
"""Truncations at which each estimator also trains."""
PASSES = {"truncated": 1, "es": 3, "pes": 2, "nres": 2}
"""Inner steps evaluated per task and step of the trajectory; a backward pass is not counted."""


class NoState(NamedTuple):
    """The linear system remembers nothing but its units."""


class LinearSystem(UpdateRule):
    """One step of the system as an update rule, θ = {theta ()}; its optimizee's params are the units."""

    config = None

    def __init__(self, theta: float = START):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        self.signs = torch.ones(UNITS, dtype=torch.float64)
        self.signs[POSITIVE:] = -1

    def init_state(self, params: Params) -> NoState:
        """Return the empty state."""
        return NoState()

    def forward(self, observation: Observation, state: NoState) -> tuple[Params, NoState]:
        """See the module's equation."""
        units = observation.params["units"]
        next_units = nn.functional.pad(units[..., 1:], (0, 1))
        return {"units": 0.5 * units + 0.5 * next_units + self.theta * self.signs}, state


class InfluenceBalancing(TaskFamily):
    """f(s) = ½ (s¹ − 1)² from s_0 = 1; all tasks are the same, there are no minibatches."""

    vectorized = "axes"

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        """Return units (n_tasks, 23)."""
        return {"units": torch.ones(n_tasks, UNITS, dtype=torch.float64, device=generator.device)}

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        """½ (s¹ − 1)², shape (), or (n_tasks,) with a leading task axis."""
        return 0.5 * (params["units"][..., 0] - 1).square()


FAMILY, META_LOSS = InfluenceBalancing(), MetaLoss("mean")


def run_study(out: Path, particles: int, repeats: int, command: str) -> None:
    """Measure bias and variance, train with every estimator, and write summary.csv, curves.csv and study.json.

    Args:
        particles: of each evolution strategy, 2N.
        repeats: trajectories over which bias and variance are taken.
        command: what was typed, for the README.

    Raises:
        ValueError: if particles are not pairs or there are fewer than two repeats.
    """
    if particles < 2 or particles % 2:
        raise ValueError(f"particles come in pairs: an even number of at least 2 is needed, got {particles}")
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2 for a variance, got {repeats}")
    out.mkdir(parents=True, exist_ok=True)
    exact = exact_gradient(START)
    settings = [(name, length) for name in PASSES for length in TRUNCATIONS]
    runs = [(name, length, seed) for name, lengths in TRAINED.items() for length in lengths for seed in range(SEEDS)]
    with tqdm(total=len(settings) + len(runs), unit="run", disable=None) as bar:
        summary, curves = [], []
        for name, length in settings:
            bar.set_description_str(f"{name}, K = {length}")
            summary.append(measure(name, length, particles // 2, repeats, exact))
            bar.update()
        for name, length, seed in runs:
            bar.set_description_str(f"training with {name}, K = {length}")
            curves += train(name, length, particles // 2, seed)
            bar.update()
    _write_csv(out / "summary.csv", summary)
    _write_csv(out / "curves.csv", curves)
    facts = {"particles": particles, "repeats": repeats, "exact": exact, "least_meta_loss": least_meta_loss()}
    facts |= {"horizon": HORIZON, "sigma": SIGMA, "outer_lr": OUTER_LR, "trajectories": TRAJECTORIES, "seeds": SEEDS}
    origin = {"command": command, "directory": str(out), "environment": describe_environment()}
    (out / "study.json").write_text(json.dumps(facts | origin, indent=2) + "\n")


def measure(name: str, length: int, pairs: int, repeats: int, exact: float) -> dict[str, object]:
    """Return a row of summary.csv: an estimator's mean and spread at θ = START, in units of the exact gradient."""
    estimator, n_tasks = _build(name, pairs)
    repeats = 1 if name == "truncated" else repeats
    rule, generator = LinearSystem(), torch.Generator().manual_seed(length)
    estimates = []
    for _ in range(repeats):
        windows = estimate_windows(estimator, rule, n_tasks, length, generator)
        estimates.append(torch.stack([grads["theta"] for grads in windows]))
    windows = torch.stack(estimates) / exact
    means = windows.mean(1)
    cost = PASSES[name] * n_tasks * length
    return {
        "estimator": name,
        "truncation": length,
        "tasks": n_tasks,
        "repeats": repeats,
        "cost_outer_step": cost,
        "relative_mean": f"{means.mean().item():.5g}",
        "standard_error": f"{means.std().item() / math.sqrt(repeats):.4g}" if repeats > 1 else 0,
        "sd_outer_step": f"{windows.var(0).mean().sqrt().item():.4g}" if repeats > 1 else 0,
        "sd_trajectory": f"{means.std().item():.4g}" if repeats > 1 else 0,
    }


def train(name: str, length: int, pairs: int, seed: int) -> list[dict[str, object]]:
    """Return rows of curves.csv, one a trajectory: the θ reached, and the mean meta-loss of those it passed through."""
    estimator, n_tasks = _build(name, pairs)
    rule, generator = LinearSystem(), torch.Generator().manual_seed(seed)
    thetas = []
    for _ in range(TRAJECTORIES):
        for grads in estimate_windows(estimator, rule, n_tasks, length, generator):
            with torch.no_grad():
                rule.theta.sub_(OUTER_LR * length * grads["theta"])
            thetas.append(rule.theta.item())
    passed = torch.tensor(meta_losses(thetas)).view(TRAJECTORIES, -1).mean(1).tolist()
    reached = thetas[HORIZON // length - 1 :: HORIZON // length]
    rows = [(START, meta_losses([START])[0]), *zip(reached, passed, strict=True)]
    cost = PASSES[name] * n_tasks * HORIZON
    return [
        {
            "estimator": name, "truncation": length, "seed": seed, "trajectory": index, "cost": index * cost,
            "theta": f"{theta:.6g}", "meta_loss": f"{loss:.6g}",
        }
        for index, (theta, loss) in enumerate(rows)
    ]  # fmt: skip


def estimate_windows(
    estimator: Estimator, rule: UpdateRule, n_tasks: int, length: int, generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Yield the meta-gradients of the windows of one trajectory; their mean estimates that of the whole horizon."""
    trajectories = estimator.start(rule, FAMILY, n_tasks, generator)
    for begun in range(0, HORIZON, length):
        weights = META_LOSS.weights(begun, length, HORIZON)
        result = estimator.estimate(rule, FAMILY, trajectories, META_LOSS, weights, generator)
        trajectories = result.trajectories
        yield result.grads


def exact_gradient(theta: float) -> float:
    """Return the derivative of the meta-loss over the whole horizon, by autograd."""
    windows = estimate_windows(Truncated(2), LinearSystem(theta), 1, HORIZON, torch.Generator())
    return next(windows)["theta"].item()


def meta_losses(thetas: list[float]) -> list[float]:
    """Return the mean loss over the horizon of each θ."""
    rule, generator = LinearSystem(), torch.Generator()
    weights = META_LOSS.weights(0, HORIZON, HORIZON)
    trajectories = start_particles(rule, FAMILY, 1, generator)
    trajectories = trajectories._replace(params=repeat(trajectories.params, len(thetas)))
    theta = {"theta": torch.tensor([thetas], dtype=torch.float64)}
    losses, _, _ = unroll_particles(rule, theta, FAMILY, trajectories, META_LOSS, weights, generator)
    return losses[0].tolist()


def least_meta_loss() -> float:
    """Return the minimum over θ: the gradient is linear in θ, so two of them give its zero."""
    at_zero, at_one = exact_gradient(0.0), exact_gradient(1.0)
    return meta_losses([-at_zero / (at_one - at_zero)])[0]


def _build(name: str, pairs: int) -> tuple[Estimator, int]:
    """Return an estimator and the number of tasks that it takes: without noise, one says it all."""
    if name == "truncated":
        return Truncated(2), 1
    return {"es": ES, "pes": PES, "nres": NRES}[name](SIGMA), pairs


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
