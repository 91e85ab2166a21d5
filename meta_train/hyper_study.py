"""Hyperparameters by gradient, measured: weight decays, a regularisation, a stopping time, and a game.

Every part is a function of the study's sizes that returns rows of summary.csv and points of curves.csv.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import l2o
from l2o.saddle import Saddle, descent_ascent, extragradient, gradient_field
from meta_train.hyper_flow import FlowConfig, noisy_crops, optimality, psnr, psnr_by_time, train
from meta_train.hyper_logistic import Fit, learn_decays, refit, search_single
from meta_train.hyper_memory import held_by_mode
from meta_train.hyper_polynomial import all_fits
from meta_train.hyper_speed import race
from meta_train.run_directory import describe_environment
from tasks.games import random_game
from tasks.image_crops import CropSource
from tasks.logistic import LogisticRegression, mostly_noise, real_rows
from tasks.polynomial import noisy_wave

FLOW_GRID = tuple(2 ** (i / 8) for i in range(-24, 17))
"""Stopping times that are compared with the learned one, in units of it."""


SPEED_TOLERANCES = (1e-3, 1e-4, 1e-5)
"""Of the implicit hypergradient; unrolling is to be as accurate as it is with the last."""


@dataclass(frozen=True)
class HyperConfig:
    """Sizes of the study."""

    source: CropSource = "embedded"
    """Crops to denoise."""
    repeats: int = 5
    """Draws of every logistic regression."""
    noise_features: int = 280
    """Beside 20 that say something."""
    speed_rows: int = 5000
    speed_features: int = 1000
    speed_cases: tuple[tuple[float, tuple[int, ...], tuple[int, ...]], ...] = (
        (0.0, (200, 800, 1200, 1600, 2000), (50, 100, 150, 200, 250, 300)),
        (0.6, (200, 800), (100, 200, 400, 600, 800, 1000)),
    )
    """Correlation of neighbouring features, and how many steps of plain and of accelerated descent are tried."""
    memory_rows: int = 500
    memory_features: int = 100
    memory_iterations: tuple[int, ...] = (10, 100, 1000, 10_000)
    """After which the memory of every gradient mode is measured."""
    polynomial_steps: int = 200
    flow_steps: int = 300
    flow_tests: int = 48
    """Crops on which stopping times are compared."""
    game_steps: int = 400


class Row(NamedTuple):
    """One measurement: a line of summary.csv."""

    part: str
    case: str
    method: str
    setting: str
    quantity: str
    mean: float
    error: float | str = ""
    """Standard error of the mean; empty for a single value."""
    n: int = 1


class Point(NamedTuple):
    """A point of a line: a line of curves.csv."""

    part: str
    case: str
    line: str
    x: float
    y: float


Part = tuple[list[Row], list[Point]]


def run_hyper(config: HyperConfig, out: Path, command: str) -> None:
    """Run all parts, and write summary.csv, curves.csv and study.json.

    Args:
        command: what was typed, for the README.

    Raises:
        DataError: if the crops need a file that is missing.
    """
    noisy_crops(config.source, "test", 1, 8, 0.0, torch.Generator())  # a missing file is told before the long part
    facts = {"command": command, "directory": str(out), "config": asdict(config)}
    facts["environment"] = describe_environment()  # before the first file makes the checkout differ from its commit
    out.mkdir(parents=True, exist_ok=True)
    rows, points = [], []
    for part in tqdm((games, polynomial, flow, speed, memory, logistic), unit="part", disable=None):
        new_rows, new_points = part(config)
        rows, points = rows + new_rows, points + new_points
        _write(out / "summary.csv", Row._fields, rows)  # a study that is stopped leaves the parts that are done
        _write(out / "curves.csv", Point._fields, points)
    (out / "study.json").write_text(json.dumps(facts, indent=2) + "\n")


def logistic(config: HyperConfig) -> Part:
    """A weight decay for each feature against the best single one, on rows that neither has seen."""
    mixed = (300, 400, 200, 2000)
    cases: dict[str, Callable[[torch.Generator], LogisticRegression]] = {
        f"20 features and {config.noise_features} of noise": lambda generator: mostly_noise(
            mixed, 20, config.noise_features, generator
        ),
        "digits": lambda generator: real_rows("digits", (200, 700, 300), generator),
        "breast_cancer": lambda generator: real_rows("breast_cancer", (100, 200, 100), generator),
    }
    rows, points = [], []
    for case, draw in cases.items():
        found: dict[tuple[str, str], list[float]] = {}
        for seed in range(config.repeats):
            problem = draw(torch.Generator().manual_seed(seed))
            single = search_single(problem)
            descent = learn_decays(problem, single.log_decay.expand(problem.features))
            fits = {"single": single, "per feature": descent.best}
            fits |= {f"{name}, refit": refit(problem, fit) for name, fit in fits.items()}
            for key, value in _judged(problem, fits).items():
                found.setdefault(key, []).append(value)
            if seed == 0:
                tests = [float(problem.loss(fit.weights, problem.test)) for fit in descent.fits]
                for line, losses in (("validation", descent.valid), ("stop", descent.stop), ("test", tests)):
                    points += [Point("logistic", case, line, step, loss) for step, loss in enumerate(losses)]
        rows += [_mean("logistic", case, method, quantity, values) for (method, quantity), values in found.items()]
    return rows, points


def _judged(problem: LogisticRegression, fits: dict[str, Fit]) -> dict[tuple[str, str], float]:
    """Return losses and accuracies, and what every method gains over its single decay on the same rows."""
    values = {}
    for name, fit in fits.items():
        values[name, "validation loss"] = float(problem.loss(fit.weights, problem.valid))
        values[name, "test loss"] = float(problem.loss(fit.weights, problem.test))
        values[name, "test accuracy"] = problem.accuracy(fit.weights, problem.test)
    for suffix in ("", ", refit"):
        for quantity in ("validation loss", "test loss"):
            gain = values["single" + suffix, quantity] - values["per feature" + suffix, quantity]
            values["per feature" + suffix, f"gain in {quantity}"] = gain
    return values


def speed(config: HyperConfig) -> Part:
    """CPU seconds and error of the implicit and the unrolled hypergradient."""
    rows = []
    for correlation, *counts in config.speed_cases:
        sizes, features = (config.speed_rows, config.speed_rows // 2, 1, 1), config.speed_features
        generator = torch.Generator().manual_seed(0)
        informative = features // 20
        problem = mostly_noise(sizes, informative, features - informative, generator, correlation=correlation)
        log_decay = torch.full((features,), math.log(1e-3), dtype=torch.float64)
        for one in race(problem, log_decay, SPEED_TOLERANCES, counts):
            cell = "speed", f"correlation {correlation:g}", one.method, f"{one.setting:g}"
            rows += [Row(*cell, "error", one.error), Row(*cell, "cpu_s", one.cpu_s)]
    return rows, []


def memory(config: HyperConfig) -> Part:
    """Bytes that every gradient mode holds, and its error, by the number of iterations."""
    sizes, features = (config.memory_rows, config.memory_rows // 2, 1, 1), config.memory_features
    problem = mostly_noise(sizes, features // 20, features - features // 20, torch.Generator().manual_seed(0))
    log_decay, rows = torch.full((features,), math.log(1e-3), dtype=torch.float64), []
    for held in held_by_mode(problem, log_decay, config.memory_iterations):
        cell = "memory", "logistic", held.mode, str(held.iterations)
        rows += [Row(*cell, "peak_bytes", held.peak), Row(*cell, "error", held.error)]
    return rows, []


def polynomial(config: HyperConfig) -> Part:
    """Fits with too little, too much and learned regularisation."""
    problem = noisy_wave(torch.Generator().manual_seed(0))
    rows, points = [], []
    for name, fit in all_fits(problem, config.polynomial_steps).items():
        for quantity, part in (("validation", problem.valid), ("test", problem.test)):
            rms = math.sqrt(2 * float(problem.loss(fit.weights, part)))
            rows.append(Row("polynomial", "wave", name, "", f"{quantity} rms error", rms))
        rows.append(Row("polynomial", "wave", name, "", "mean λ", float(fit.log_decay.mean())))
        curve = problem.predict(fit.weights, problem.test.x)
        points += _line("polynomial", "wave", name, problem.test.x.tolist(), curve.tolist())
    for name, part in (("truth", problem.test), ("points", problem.train)):
        points += _line("polynomial", "wave", name, part.x.tolist(), part.y.tolist())
    return rows, points


def flow(config: HyperConfig) -> Part:
    """A variational network whose stopping time is learned, then the time alone for another noise."""
    first = FlowConfig(source=config.source, outer_steps=config.flow_steps)
    second = FlowConfig(source=config.source, outer_steps=config.flow_steps // 3, noise=15 / 255, start_time=0.02)
    rows, points, regularizer = [], [], None
    for case, options in (("σ = 25, both learned", first), ("σ = 15, T alone learned", second)):
        history = list(train(options, torch.Generator().manual_seed(0), regularizer))
        trained, _ = history[-1]
        regularizer = trained.regularizer.requires_grad_(False)
        points += [Point("flow", case, "T", step, progress.time) for step, (_, progress) in enumerate(history)]
        for split in ("train", "test"):
            generator = torch.Generator().manual_seed(1)
            pairs = noisy_crops(options.source, split, config.flow_tests, 48, options.noise, generator)
            times = [trained.time * factor for factor in FLOW_GRID]
            values = psnr_by_time(trained, pairs, times)
            found = {"noisy": psnr(pairs.noisy, pairs.clean), "at T": values[FLOW_GRID.index(1.0)]}
            found |= {"at the best T": max(values), "T": trained.time, "best T": times[values.index(max(values))]}
            found["cosine"] = optimality(trained, pairs)
            rows += [Row("flow", case, "variational network", split, name, value) for name, value in found.items()]
            points += _line("flow", case, f"PSNR, {split}", times, values)
    return rows, points


def games(config: HyperConfig) -> Part:
    """Descent–ascent and extragradient on a bilinear game."""
    game, step_size = random_game(20, 0.3, torch.Generator().manual_seed(0)), 0.6
    field, rows, points = gradient_field(game.payoff), [], []
    zero = Saddle(torch.zeros_like(game.x), torch.zeros_like(game.y))
    for make, rate in zip((descent_ascent, extragradient), game.rates(step_size), strict=True):
        z, name, distances = zero, make.__name__.replace("_", "–"), [float(game.distance(*zero))]
        for _ in range(config.game_steps):
            z = l2o.fixed_point(make(field, step_size), z, gradient=None, steps=1).u
            distances.append(float(game.distance(*z)))
        last = len(distances) // 4
        measured = (distances[-1] / distances[-1 - last]) ** (1 / last)
        rows += [
            Row("games", "bilinear", name, "", "rate", measured),
            Row("games", "bilinear", name, "", "theory", rate),
        ]
        points += _line("games", "bilinear", name, range(len(distances)), distances)
    return rows, points


def _line(part: str, case: str, name: str, x: Iterable[float], y: Iterable[float]) -> list[Point]:
    return [Point(part, case, name, a, b) for a, b in zip(x, y, strict=True)]


def _mean(part: str, case: str, method: str, quantity: str, values: Sequence[float]) -> Row:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1))
    return Row(part, case, method, "", quantity, mean, spread / math.sqrt(len(values)), len(values))


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
