"""Sparse recovery on the published 250×500 matrix: learned rules against tuned classics, 1,000 published codes.

The published codes are for the last race alone: rules are trained on codes drawn from other seeds, classics tuned on
further ones (`recovery_classics`). `recovery_measures` says what is measured, `recovery_report` turns the files into a
README and a figure.
"""

import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from l2o.checkpoint import available, find, load_rule, read_card
from l2o.rule import ModelBasedRule
from meta_train.config_json import from_json
from meta_train.recovery_classics import CLASSICS, pose, tune
from meta_train.recovery_measures import nmse, nmse_each, run, spread, support_f1
from meta_train.run_directory import describe_environment, last_logged
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
SEED = 2021


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
        ValueError: if checkpoints are given, and none of them can take part.
        DataError: if the published matrix and codes are not there.
    """
    learned = _entries(checkpoints)
    environment = describe_environment()  # before the first file makes the checkout differ from its commit
    out.mkdir(parents=True, exist_ok=True)
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
    facts |= {"tuning_problems": TUNING_PROBLEMS, "command": command, "environment": environment}
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
    problem, target = pose(family, tasks, method.rule, method.strength), tasks["x_star"]
    begun = time.process_time()
    run(method.rule, problem, steps)
    cpu_ms = 1000 * (time.process_time() - begun) / len(target)
    iterates = run(method.rule, problem, max(steps, LONG))
    x, later = iterates[steps - 1], iterates[LONG - 1]
    in_double = run(method.rule, problem.double(), steps)[-1]
    ratio, low, high = spread(x, target)
    each = nmse_each(x, target)
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
    points = [(nmse(x, target), nmse_each(x, target).median().item()) for x in zeros]
    curve = [
        {"method": method.name, "kind": method.kind, "step": step, "nmse": f"{ratio:.3f}", "median_db": f"{median:.3f}"}
        for step, (ratio, median) in enumerate(points)
    ]
    return row, curve


def _methods(family: Lasso, learned: Sequence[Method]) -> Iterator[tuple[Method, int]]:
    for method in learned:
        yield method, STEPS
    tuning = family.sample_tasks(TUNING_PROBLEMS, torch.Generator().manual_seed(derive_seed(SEED, "tuning")))
    for steps in (STEPS, LONG):
        for name in CLASSICS:
            option, tried = tune(name, family, tuning, steps)
            facts = {"training": f"{option.label} of {tried}", "train_cpu_s": ""}
            yield Method(name, "classic", option.rule, option.strength or family.strength, facts), steps


def _entries(checkpoints: Sequence[str]) -> list[tuple[str, Method]]:
    """Return the shipped rules and those given, with their settings; say which of these take no part."""
    found = {source: _learned(source) for source in (*shipped(), *checkpoints)}
    left_out = [source for source in checkpoints if isinstance(found[source], str)]
    for source in left_out:
        print(f"l2o: {source} takes no part: {found[source]}", file=sys.stderr)
    if checkpoints and len(left_out) == len(checkpoints):
        raise ValueError("none of the checkpoints can take part; train one with l2o train sparse or sparse-snr20")
    return [entry for entry in found.values() if not isinstance(entry, str)]


def _learned(source: str) -> tuple[str, Method] | str:
    """Return the setting that a rule was trained for and its entry in the race; or why it takes no part."""
    card, rule = read_card(find(source)), load_rule(source)
    training = card.get("training", {})
    task = training.get("config", {}).get("task", {})
    setting = setting_of(task.get("snr_db"))
    if not isinstance(rule, ModelBasedRule):
        return f"{type(rule).__name__} does not step on the structure of a problem"
    if task.get("dictionary") != "published":
        was = f"on dictionary {task['dictionary']}" if "dictionary" in task else "on nothing that its card tells"
        return f"the race is on the published matrix, and it was trained {was}"
    if setting is None:
        return f"the race is without noise or at SNR 20 dB, and it was trained at {task['snr_db']} dB"
    command = training.get("command") or training_command(from_json(training["config"]))
    logged = last_logged(Path(source), "cpu_s") or ""
    seconds = training.get("cpu_s", training.get("search", {}).get("cpu_s", logged))
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
    each = nmse_each(x, target)
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
