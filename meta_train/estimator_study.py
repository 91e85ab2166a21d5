"""Bias and variance of every meta-gradient estimator, and where it trains to, on the problems of `estimator_problems`.

Estimates are compared with the exact gradient g, by autograd through the whole horizon, in a frame of its own: the part
along g, which is 1 for an exact estimate, and the part across it, which is 0.
"""

import csv
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from l2o.rule import UpdateRule
from meta_train.estimator_problems import PROBLEMS, Problem
from meta_train.estimators import ES, NRES, PES, Estimator, MetaLoss, Truncated
from meta_train.estimators.perturbed import repeat, start_particles, unroll_particles
from meta_train.run_directory import describe_environment

PASSES = {"truncated": 1, "es": 3, "pes": 2, "nres": 2}
"""Inner steps evaluated per task and step of the trajectory; a backward pass is not counted."""
META_LOSS = MetaLoss("mean")

Row = dict[str, Any]


def run_study(out: Path, particles: int, repeats: int, command: str) -> None:
    """Measure bias and variance, train with every estimator, and write the CSV files and study.json.

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
    origin = {"command": command, "directory": str(out), "environment": describe_environment()}
    out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[Row]] = {"summary": [], "curves": [], "landscape": []}
    facts = {problem.name: _study(problem, particles // 2, repeats, tables) for problem in PROBLEMS}
    for name, rows in tables.items():
        _write_csv(out / f"{name}.csv", rows)
    study = {"particles": particles, "repeats": repeats, "problems": facts, **origin}
    (out / "study.json").write_text(json.dumps(study, indent=2) + "\n")


def _study(problem: Problem, pairs: int, repeats: int, tables: dict[str, list[Row]]) -> Row:
    """Append a problem's rows to the tables, and return what else the report says of it."""
    training, exact, start = problem.training, exact_gradient(problem), _theta(problem.rule())
    settings = [(name, length) for name in PASSES for length in problem.truncations]
    trained = [(name, length) for name, lengths in training.truncations.items() for length in lengths]
    runs = list(itertools.product(trained, range(training.seeds)))
    with tqdm(total=len(settings) + len(runs), unit="run", disable=None) as bar:
        for name, length in settings:
            bar.set_description_str(f"{problem.name}: {name}, K = {length}")
            tables["summary"].append(measure(problem, name, length, pairs, repeats, exact))
            bar.update()
        for (name, length), seed in runs:
            bar.set_description_str(f"{problem.name}: training with {name}, K = {length}")
            tables["curves"] += train(problem, name, length, pairs, seed)
            bar.update()
    surface = landscape(problem)
    tables["landscape"] += surface
    return {
        "start": start.tolist(), "exact": exact.tolist(), "horizon": problem.horizon, "sigma": problem.sigma,
        "smoothing_moves": ((smoothed_gradient(problem, problem.sigma) - exact).norm() / exact.norm()).item(),
        "least_meta_loss": min(float(row["meta_loss"]) for row in surface), "near": training.near,
        "training_sigma": training.sigma, "trajectories": training.trajectories, "seeds": training.seeds,
    }  # fmt: skip


def measure(problem: Problem, name: str, length: int, pairs: int, repeats: int, exact: Tensor) -> Row:
    """Return a row of summary.csv: an estimator's mean and spread where the rule starts, in units of |exact|."""
    estimator, n_tasks = _build(name, pairs, problem.sigma)
    repeats = 1 if name == "truncated" else repeats
    rule, generator = problem.rule(), torch.Generator().manual_seed(length)
    estimates = []
    for _ in range(repeats):
        windows = estimate_windows(problem, estimator, rule, n_tasks, length, generator)
        estimates.append(torch.stack([grads["theta"] for grads in windows]))
    windows = torch.stack(estimates) @ _frame(exact)  # (repeats, windows, components of θ)
    means, noisy = windows.mean(1), repeats > 1
    spread = means.std(0) if noisy else torch.zeros_like(exact)
    along, *across = means.mean(0).tolist()
    errors = (spread / math.sqrt(repeats)).tolist()
    return {
        "problem": problem.name, "estimator": name, "truncation": length, "tasks": n_tasks, "repeats": repeats,
        "cost_outer_step": PASSES[name] * n_tasks * length,
        "relative_mean": f"{along:.5g}", "standard_error": f"{errors[0]:.4g}" if noisy else 0,
        "across": f"{across[0]:.5g}" if across else "", "across_error": f"{errors[1]:.4g}" if across and noisy else 0,
        "sd_outer_step": f"{windows.var(0).sum(-1).mean().sqrt().item():.4g}" if noisy else 0,
        "sd_trajectory": f"{spread.norm().item():.4g}" if noisy else 0,
    }  # fmt: skip


def train(problem: Problem, name: str, length: int, pairs: int, seed: int) -> list[Row]:
    """Return rows of curves.csv, one a trajectory: the θ reached, and the mean meta-loss of those it passed through."""
    training, n_windows = problem.training, problem.horizon // length
    estimator, n_tasks = _build(name, pairs, training.sigma)
    rule, generator = problem.rule(), torch.Generator().manual_seed(seed)
    optimizer = training.optimizer(list(rule.parameters()), length)
    thetas = [_theta(rule)]
    for _ in range(training.trajectories):
        for grads in estimate_windows(problem, estimator, rule, n_tasks, length, generator):
            rule.get_parameter("theta").grad = grads["theta"]
            optimizer.step()
            thetas.append(_theta(rule))
    losses = meta_losses(problem, torch.stack(thetas))
    passed = [losses[0], *losses[1:].view(training.trajectories, n_windows).mean(1)]
    cost = PASSES[name] * n_tasks * problem.horizon
    return [
        {
            "problem": problem.name, "estimator": name, "truncation": length, "seed": seed, "trajectory": index,
            "cost": index * cost, **_components(theta), "meta_loss": f"{loss.item():.6g}",
        }
        for index, (theta, loss) in enumerate(zip(thetas[::n_windows], passed, strict=True))
    ]  # fmt: skip


def estimate_windows(
    problem: Problem, estimator: Estimator, rule: UpdateRule, n_tasks: int, length: int, generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Yield the meta-gradients of the windows of one trajectory; their mean estimates that of the whole horizon."""
    trajectories = estimator.start(rule, problem.family, n_tasks, generator)
    for begun in range(0, problem.horizon, length):
        weights = META_LOSS.weights(begun, length, problem.horizon)
        result = estimator.estimate(rule, problem.family, trajectories, META_LOSS, weights, generator)
        trajectories = result.trajectories
        yield result.grads


def exact_gradient(problem: Problem, theta: Tensor | None = None) -> Tensor:
    """Return the gradient of the meta-loss over the whole horizon, by autograd; at the start, or at another θ."""
    rule = problem.rule()
    if theta is not None:
        rule.load_state_dict({"theta": theta})
    return next(estimate_windows(problem, Truncated(2), rule, 1, problem.horizon, torch.Generator()))["theta"]


def smoothed_gradient(problem: Problem, sigma: float, nodes: int = 7) -> Tensor:
    """Return E ∇L(θ + σ ε), ε ~ N(0, I), at the start, by Gauss-Hermite quadrature of the exact gradient."""
    at, weights = (torch.tensor(values) for values in np.polynomial.hermite_e.hermegauss(nodes))
    start, total = _theta(problem.rule()), torch.zeros(())
    for chosen in itertools.product(range(nodes), repeat=len(start)):
        weight = weights[list(chosen)].prod() / weights.sum() ** len(start)
        total = total + weight * exact_gradient(problem, start + sigma * at[list(chosen)])
    return total


def meta_losses(problem: Problem, thetas: Tensor) -> Tensor:
    """Return the mean loss over the horizon of each θ, shape (n,), for thetas of shape (n, components)."""
    rule, generator = problem.rule(), torch.Generator()
    weights = META_LOSS.weights(0, problem.horizon, problem.horizon)
    trajectories = start_particles(rule, problem.family, 1, generator)
    trajectories = trajectories._replace(params=repeat(trajectories.params, len(thetas)))
    theta = {"theta": thetas[None]}
    return unroll_particles(rule, theta, problem.family, trajectories, META_LOSS, weights, generator)[0][0]


def landscape(problem: Problem) -> list[Row]:
    """Return the meta-loss on the problem's grid, a row a θ."""
    axes = [torch.linspace(first, last, count, dtype=torch.float64) for first, last, count in problem.grid]
    thetas = torch.cartesian_prod(*axes).view(-1, len(axes))
    losses = meta_losses(problem, thetas).tolist()
    rows = zip(thetas, losses, strict=True)
    return [{"problem": problem.name, **_components(theta), "meta_loss": f"{loss:.6g}"} for theta, loss in rows]


def _theta(rule: UpdateRule) -> Tensor:
    return rule.get_parameter("theta").detach().clone()


def _components(theta: Tensor) -> Row:
    """Return θ as two columns, of which a scalar leaves one empty."""
    values = [f"{value:.6g}" for value in theta.tolist()]
    return dict(zip(("theta_1", "theta_2"), [*values, ""], strict=False))


def _frame(exact: Tensor) -> Tensor:
    """Return what turns a gradient into its parts along and across the exact one, in units of its length."""
    basis = torch.linalg.qr(exact[:, None], mode="complete").Q
    return basis * (torch.sign(basis[:, 0] @ exact) / exact.norm())


def _build(name: str, pairs: int, sigma: float) -> tuple[Estimator, int]:
    """Return an estimator and the number of tasks that it takes: without noise, one says it all."""
    if name == "truncated":
        return Truncated(2), 1
    return {"es": ES, "pes": PES, "nres": NRES}[name](sigma), pairs


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
