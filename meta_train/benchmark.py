"""Run a protocol: tune every classic, race all methods on the same problems and minibatches, write CSV files.

`report` turns the files into a README and figures; nothing else goes from here to there.
"""

import csv
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from l2o.checkpoint import load_rule
from l2o.rule import UpdateRule
from l2o.rules import FISTA, FISTAConfig
from l2o.solve import solve
from l2o.tensorflow_weights import load_tensorflow_lstm
from meta_train.baselines import CLASSICS, tune
from meta_train.protocols import Protocol
from meta_train.run_directory import describe_environment
from meta_train.seeds import derive_seed
from meta_train.unroll import evaluate
from tasks.task import TaskFamily


def run_benchmark(protocol: Protocol, checkpoints: Sequence[str], out: Path, command: str) -> None:
    """Race all methods and write summary.csv, curves.csv and protocol.json.

    Args:
        checkpoints: learned rules; empty takes the protocol's own.
        command: what was typed, for the README.

    Raises:
        OSError: if `out` cannot be written; found out before anything is computed.
        CheckpointError: if a checkpoint cannot be loaded.
    """
    learned = learned_rules(protocol, checkpoints)
    _check_writable(out)
    environment = describe_environment()  # before the first file makes the checkout differ from its commit
    summary, curves = [], []
    total = len(protocol.settings) * (len(learned) + len(protocol.solvers) + len(CLASSICS))
    with tqdm(total=total, unit="method", disable=None) as bar:
        for setting, family in protocol.settings.items():
            sums: dict[str, Tensor] = {}
            for method, kind, rule, facts in _methods(protocol, family, learned):
                bar.set_description_str(f"{setting}: {method}")
                losses, cpu_s = _race(protocol, family, rule)
                sums[method] = losses[: protocol.sum_steps].sum(0)
                row = {"setting": setting, "method": method, "kind": kind}
                summary.append(row | _summarise(protocol, losses) | facts | {"cpu_s": f"{cpu_s:.4g}"})
                curves += _curve_rows(setting, method, losses)
                bar.update()
                if bar.disable:  # not a terminal: a plain line for each method
                    print(f"{len(summary)}/{total} {setting}: {method} {summary[-1]['sum_loss']}", file=sys.stderr)
            _add_wins(summary, setting, sums)
    _write_csv(out / "summary.csv", summary)
    _write_csv(out / "curves.csv", curves)
    (out / "protocol.json").write_text(json.dumps(_describe(protocol, command, out, environment), indent=2) + "\n")


def learned_rules(protocol: Protocol, checkpoints: Sequence[str]) -> dict[str, UpdateRule]:
    """Return the learned rules of a race by label, published weights included where they are at hand."""
    sources = list(checkpoints or protocol.learned)
    names = [Path(source).resolve().name for source in sources]
    labels = [n if names.count(n) == 1 and n not in CLASSICS else s for n, s in zip(names, sources, strict=True)]
    rules = {label: load_rule(source) for label, source in zip(labels, sources, strict=True)}
    folder = Path(os.environ.get("L2O_DATA", "")) / "checkpoints"
    for name in protocol.published:
        if os.environ.get("L2O_DATA") and (folder / f"{name}.npz").is_file():
            rules[f"published {name}"] = load_tensorflow_lstm(folder / f"{name}.npz")
    return rules


def _methods(protocol: Protocol, family: TaskFamily, learned: dict[str, UpdateRule]):
    """Yield (name, kind, rule, columns) of every method, the classics tuned when their turn comes."""
    for name, rule in learned.items():
        yield name, "learned", rule, {"lr": "", "lrs_tried": 0}
    for name, solver in protocol.solvers.items():
        yield name, "classic", solver, {"lr": "", "lrs_tried": 0}
    for name, build in CLASSICS.items():
        seed = derive_seed(protocol.seed, "tuning")
        lr, tried = tune(build, family, protocol.tuning_problems, protocol.sum_steps, seed)
        yield name, "classic", build(lr), {"lr": f"{lr:.4g}", "lrs_tried": tried}


def _race(protocol: Protocol, family: TaskFamily, rule: UpdateRule) -> tuple[Tensor, float]:
    """Return the losses (steps, problems) in float64 and the CPU seconds per problem."""
    generator = torch.Generator().manual_seed(protocol.seed)
    begun = time.process_time()
    losses = evaluate(rule, family, protocol.problems, protocol.steps, "test", generator)
    cpu_s = (time.process_time() - begun) / protocol.problems
    return _suboptimality(protocol, family, losses.double()) if protocol.relative else losses.double(), cpu_s


def _suboptimality(protocol: Protocol, family: TaskFamily, losses: Tensor) -> Tensor:
    """Return f − f* as a fraction of the problems' mean f*, so that its mean is the ratio of the means."""
    tasks = family.sample_tasks(protocol.problems, torch.Generator().manual_seed(protocol.seed))
    problem = family.problem(tasks)
    if problem is None:
        raise ValueError(f"protocol {protocol.name} measures against the optimum, which {family} does not tell")
    solution = solve(FISTA(FISTAConfig(restart="gradient")), problem.double(), tol=1e-9, history=False)
    optimum = solution.certificate.dual  # a lower bound: what is reported is at least the suboptimality
    return (losses - optimum) / optimum.mean()


def _summarise(protocol: Protocol, losses: Tensor) -> dict[str, Any]:
    sums, final = losses[: protocol.sum_steps].sum(0), losses[-10:].mean(0)
    numbers = {
        "sum_loss": sums.mean(), "sum_loss_sd": sums.std(), "sum_loss_median": sums.median(),
        "final_loss": final.mean(), "final_loss_sd": final.std(),
    }  # fmt: skip
    diverged = int((~torch.isfinite(losses).all(0)).sum())
    return {"seeds": losses.shape[1]} | {k: f"{v.item():.5g}" for k, v in numbers.items()} | {"diverged": diverged}


def _curve_rows(setting: str, method: str, losses: Tensor) -> list[dict[str, Any]]:
    quantiles = losses.nan_to_num(torch.inf).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=losses.dtype), dim=1)
    columns = torch.stack([losses.mean(1), losses.std(1), *quantiles]).T.tolist()
    names = ("mean", "sd", "q25", "median", "q75")
    return [
        {"setting": setting, "method": method, "step": step}
        | {name: f"{value:.5g}" for name, value in zip(names, values, strict=True)}
        for step, values in enumerate(columns)
    ]


def _add_wins(summary: list[dict], setting: str, sums: dict[str, Tensor]) -> None:
    """Add the share of problems on which a method's sum of losses is below that of the best classic."""
    rows = [row for row in summary if row["setting"] == setting]
    classics = [row["method"] for row in rows if row["kind"] == "classic"]
    best = min(classics, key=lambda name: sums[name].nan_to_num(torch.inf).mean().item())
    for row in rows:
        row["best_classic"] = best
        row["wins"] = f"{(sums[row['method']] < sums[best]).double().mean().item():.4g}"


def _describe(protocol: Protocol, command: str, out: Path, environment: dict[str, Any]) -> dict[str, Any]:
    settings = {name: f"{family}" for name, family in protocol.settings.items()}
    facts = {field.name: getattr(protocol, field.name) for field in dataclasses.fields(protocol)}
    origin = {"command": command, "directory": str(out), "environment": environment}
    return facts | {"settings": settings, "solvers": list(protocol.solvers)} | origin


def _check_writable(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    probe = out / ".writable"
    probe.touch()
    probe.unlink()


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
