"""Sparse recovery on the published 250×500 matrix: learned rules against tuned classics, 1,000 published codes.

    NMSE = 10 log₁₀(Σ ‖x − x*‖² / Σ ‖x*‖²)   (ratio of sums)      or the mean over problems of the same with no sums

The published codes are for the last race alone: rules are trained on codes drawn from other seeds, classics tuned on
further ones. `recovery_report` turns the files into a README and a figure.
"""

import csv
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2o.checkpoint import available, find, load_rule, read_card
from l2o.problem import Problem
from l2o.rule import ModelBasedRule
from l2o.rules import AMP, FISTA, ISTA, NIHT, AMPConfig, FISTAConfig, NIHTConfig
from l2o.solve import stepper
from meta_train.config_json import from_json
from meta_train.run_directory import describe_environment
from meta_train.seeds import derive_seed
from meta_train.training_command import training_command
from tasks import Data, Lasso

SETTINGS = {
    "noiseless": Lasso(dictionary="published", supervision=1.0),
    "SNR 20 dB": Lasso(dictionary="published", supervision=1.0, snr_db=20.0),
}
"""What the rules were trained on, by name."""
STEPS, LONG = 16, 100
"""Steps of every method, and of a second race of the classics alone."""
TUNING_PROBLEMS = 200
PRESENT = 1e-3
"""An entry counts as found where |x_i| exceeds it; the codes' standard deviation is 1."""
SEED = 2021

_STRENGTHS = tuple(10 ** (exponent / 6) for exponent in range(-18, 1, 2))
_CLASSICS: dict[str, tuple[Callable[[float], ModelBasedRule], tuple[float, ...], bool]] = {
    "ISTA": (lambda _: ISTA(), _STRENGTHS, True),
    "FISTA": (lambda _: FISTA(FISTAConfig(restart="none")), _STRENGTHS, True),
    "AMP": (lambda alpha: AMP(AMPConfig(alpha)), tuple(0.8 + 0.1 * i for i in range(12)), False),
    "NIHT": (lambda kept: NIHT(NIHTConfig(round(kept))), tuple(range(30, 81, 5)), False),
}
"""Name -> rule for an option, the options that are tried, and whether the option is the problem's λ."""


class Method(NamedTuple):
    """One entry of the race."""

    name: str
    kind: str
    rule: ModelBasedRule
    strength: float
    """λ of the problem."""
    facts: dict[str, Any]


def run_recovery(checkpoints: Sequence[str], out: Path, command: str) -> None:
    """Race all methods and write summary.csv, curves.csv and recovery.json.

    Args:
        checkpoints: learned rules besides the shipped ones of sparse codes.
        command: what was typed, for the README.

    Raises:
        OSError: if `out` cannot be written.
        CheckpointError: if a checkpoint cannot be loaded.
        DataError: if the published matrix and codes are not there.
    """
    out.mkdir(parents=True, exist_ok=True)
    learned = [found for source in (*shipped(), *checkpoints) if (found := _learned(source))]
    summary, curves = [], []
    for setting, family in SETTINGS.items():
        tasks = family.published_tasks(torch.Generator().manual_seed(derive_seed(SEED, setting)))
        summary.append(_oracle(setting, family, tasks))
        for method, steps in _methods(family, [method for of, method in learned if of == setting]):
            row, curve = race(family, tasks, method, steps)
            summary.append({"setting": setting, **row})
            curves += [{"setting": setting, **point} for point in curve]
            print(f"{setting}: {method.name}, {steps} steps: {row['nmse']} dB", flush=True)
    _write_csv(out / "summary.csv", summary)
    _write_csv(out / "curves.csv", curves)
    facts = {
        "settings": {name: str(family) for name, family in SETTINGS.items()},
        "problems": 1000,
        "steps": STEPS,
        "long": LONG,
    }
    facts |= {"tuning_problems": TUNING_PROBLEMS, "command": command, "environment": describe_environment()}
    (out / "recovery.json").write_text(json.dumps(facts, indent=2) + "\n")


def setting_of(snr_db: float | None) -> str | None:
    """Return the name of the setting of a signal-to-noise ratio."""
    return next((name for name, family in SETTINGS.items() if family.snr_db == snr_db), None)


def shipped() -> list[str]:
    """Return the names of the shipped rules that recover sparse codes; those called lasso-… minimise the objective."""
    names = (name for name in available() if not name.startswith("lasso-"))
    return [name for name in names if isinstance(load_rule(name), ModelBasedRule)]


def race(family: Lasso, tasks: Data, method: Method, steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a row of summary.csv and the rows of curves.csv of one method."""
    problem, target = dataclasses.replace(family, strength=method.strength).problem(tasks), tasks["x_star"]
    begun = time.process_time()
    run(method.rule, problem, steps)
    cpu_ms = 1000 * (time.process_time() - begun) / len(target)
    iterates = run(method.rule, problem, max(steps, LONG))
    x, later = iterates[steps - 1], iterates[LONG - 1]
    in_double = run(method.rule, problem.double(), steps)[-1]
    ratio, low, high = spread(x, target)
    each = _each(x, target)
    row = {
        "method": method.name, "kind": method.kind, "steps": steps, "problems": len(target),
        "nmse": f"{ratio:.2f}", "nmse_low": f"{low:.2f}", "nmse_high": f"{high:.2f}",
        "mean_db": f"{each.mean():.2f}", "mean_db_sd": f"{each.std():.2f}", "median_db": f"{each.median():.2f}",
        "nmse_float64": f"{nmse(in_double, target):.2f}", "nmse_long": f"{nmse(later, target):.2f}",
        "f1": f"{support_f1(x, target):.4f}",
        "parameters": sum(p.numel() for p in method.rule.parameters()),
        "cpu_ms": f"{cpu_ms:.3g}", **method.facts,
    }  # fmt: skip
    zeros = [torch.zeros_like(target), *iterates[:STEPS]] if steps == STEPS else []
    points = [(nmse(x, target), _each(x, target).median().item()) for x in zeros]
    curve = [
        {"method": method.name, "kind": method.kind, "step": step, "nmse": f"{ratio:.3f}", "median_db": f"{median:.3f}"}
        for step, (ratio, median) in enumerate(points)
    ]
    return row, curve


@torch.no_grad()
def run(rule: ModelBasedRule, problem: Problem, steps: int) -> list[Tensor]:
    """Return the iterates after every step from x = 0."""
    x, iterates = problem.zeros(), []
    advance = stepper(rule, problem, x)
    for _ in range(steps):
        x = advance(x)
        iterates.append(x)
    return iterates


def nmse(x: Tensor, target: Tensor) -> float:
    """Return the ratio of sums in dB: 10 log₁₀(Σ ‖x − x*‖² / Σ ‖x*‖²)."""
    x, target = x.double(), target.double()
    return (10 * ((x - target).square().sum() / target.square().sum()).log10()).item()


def spread(x: Tensor, target: Tensor, resamples: int = 1000) -> tuple[float, float, float]:
    """Return `nmse` and its 95 % interval over resampled problems (bootstrap)."""
    errors, sizes = (v.double().square().sum(-1) for v in (x - target, target))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(errors), (resamples, len(errors)), generator=generator)
    ratios = 10 * (errors[chosen].sum(1) / sizes[chosen].sum(1)).log10()
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=ratios.dtype)).tolist()
    return nmse(x, target), low, high


def support_f1(x: Tensor, target: Tensor) -> float:
    """Return the mean over problems of the F1 score of the support, entries above `PRESENT` counting as found."""
    found, present = x.abs() > PRESENT, target.abs() > PRESENT
    hits = (found & present).sum(-1)
    return (2 * hits / (found.sum(-1) + present.sum(-1)).clamp(min=1)).double().mean().item()


def _each(x: Tensor, target: Tensor) -> Tensor:
    """NMSE of each problem in dB, float64, not below that of float32's last bit squared."""
    x, target = x.double(), target.double()
    return 10 * ((x - target).square().sum(-1) / target.square().sum(-1)).clamp(min=1e-15).log10()


def _methods(family: Lasso, learned: Sequence[Method]) -> Iterator[tuple[Method, int]]:
    for method in learned:
        yield method, STEPS
    for steps in (STEPS, LONG):
        for name in _CLASSICS:
            yield _tune(name, family, steps), steps


def _tune(name: str, family: Lasso, steps: int) -> Method:
    """Choose a classic's option, for this number of steps, by NMSE on problems of their own."""
    build, options, is_strength = _CLASSICS[name]
    tasks = family.sample_tasks(TUNING_PROBLEMS, torch.Generator().manual_seed(derive_seed(SEED, "tuning")))

    def score(option: float) -> float:
        strength = option if is_strength else family.strength
        problem = dataclasses.replace(family, strength=strength).problem(tasks)
        value = nmse(run(build(option), problem, steps)[-1], tasks["x_star"])
        return value if value == value else float("inf")

    best = min(options, key=score)
    label = {"ISTA": "λ", "FISTA": "λ", "AMP": "α", "NIHT": "K"}[name]
    facts = {"training": f"{label} = {best:.3g} of {len(options)}", "train_cpu_s": ""}
    return Method(name, "classic", build(best), best if is_strength else family.strength, facts)


def _learned(source: str) -> tuple[str, Method] | None:
    """Return the setting that a rule was trained for, and its entry in the race."""
    card, rule = read_card(find(source)), load_rule(source)
    training = card.get("training", {})
    task = training.get("config", {}).get("task", {})
    setting = setting_of(task.get("snr_db"))
    if setting is None or task.get("dictionary") != "published" or not isinstance(rule, ModelBasedRule):
        return None
    command = training.get("command") or training_command(from_json(training["config"]))
    seconds = training.get("cpu_s", training.get("search", {}).get("cpu_s", ""))
    facts = {"training": command, "train_cpu_s": seconds}
    name = Path(source).resolve().name.removesuffix("-snr20")
    return setting, Method(name, "learned", rule, SETTINGS[setting].strength, facts)


def _oracle(setting: str, family: Lasso, tasks: Data) -> dict[str, Any]:
    """Return the row of least squares on the true support, in float64."""
    A, target = family.shared_dictionary(tasks["b"]).double(), tasks["x_star"].double()
    x = torch.zeros_like(target)
    for row, code, b in zip(x, target, tasks["b"].double(), strict=True):
        support = code.nonzero().flatten()
        row[support] = torch.linalg.lstsq(A[:, support], b.unsqueeze(-1)).solution.squeeze(-1)
    ratio, low, high = spread(x, target)
    each = _each(x, target)
    return {
        "setting": setting, "method": "oracle support", "kind": "bound", "steps": 0, "problems": len(target),
        "nmse": f"{ratio:.2f}", "nmse_low": f"{low:.2f}", "nmse_high": f"{high:.2f}",
        "mean_db": f"{each.mean():.2f}", "mean_db_sd": f"{each.std():.2f}", "median_db": f"{each.median():.2f}",
        "nmse_float64": f"{ratio:.2f}", "nmse_long": "", "f1": f"{support_f1(x, target):.4f}",
        "parameters": 0, "cpu_ms": "", "training": "", "train_cpu_s": "",
    }  # fmt: skip


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
