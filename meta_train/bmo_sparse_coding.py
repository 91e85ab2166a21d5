"""A study of BMO on robust sparse coding: whether a learned rule goes on converging beyond its layers."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from l2o.rule import ModelBasedRule
from l2o.rules.d_ladmm import DLADMM, DLADMMConfig
from l2o.rules.ladmm import LADMM, LADMMConfig
from meta_train.bmo_rules import AggregatedGKM, gkm_rule, iterates
from meta_train.bmo_study import refuse, write_csv, write_study
from meta_train.bmo_tail import PLAIN, continued
from meta_train.bmo_training import TrainingPlan, train, tuned_d_ladmm
from meta_train.run_directory import describe_environment
from tasks.robust_sparse_coding import RobustSparseCoding

LAYERS = 15
BEYOND = 10 * LAYERS
SEEDS = (1, 2, 3)
"""Of training: which signals a rule is trained on, in which order."""
TEST_SIGNALS = 1024
TUNING_SIGNALS = 256
CERTIFIED = 128
"""Test signals whose optimum is bounded by duality."""
REFERENCE_STEPS = 400
SETTLED = 1e-6
"""Relative change of a signal's u below which it counts as converged."""
LEARNED = {
    "D-LADMM": TrainingPlan(beyond=0, iterations=700),
    "D-LADMM, loss to 2K": TrainingPlan(iterations=400),
    "UNH": TrainingPlan(iterations=315),
    "GKM with D_net": TrainingPlan(iterations=245),
    "BMO": TrainingPlan(iterations=195),
}
"""Iterations are such that all take about the same CPU time; the learning rates of D-LADMM give way to tuned ones."""
RATES = (0.001, 0.002, 0.004)
TRIAL = 60
"""Learning rates of D-LADMM, and iterations of each trial."""
CONTROLS = ("BMO, plain end", "D-LADMM, same end", "LADMM, same end")
"""How much of what comes past twice the layers is the rule's, and how much that of `meta_train/bmo_tail.py`."""
PENALTIES = (0.25, 0.5, 1.0, 2.0, 4.0)
PROVEN = ((1.0, 1.0), (1.0, 1.6), (1.33, 1.0))
BEYOND_PROOF = ((2.0, 1.0), (2.0, 1.6), (2.5, 1.0))
"""(step, dual step) of LADMM."""


class Learned(NamedTuple):
    """A trained rule."""

    name: str
    seed: int
    rule: ModelBasedRule


def run_sparse_coding(checkpoints: Sequence[str], out: Path, command: str) -> None:
    """Tune and train all rules, and follow them to ten times the trained layers; write the three files and the losses.

    Raises:
        ValueError: if checkpoints are given: the study trains its own rules.
    """
    refuse(checkpoints, "bmo-sparse-coding")
    environment = describe_environment()
    out.mkdir(parents=True, exist_ok=True)
    task = RobustSparseCoding()
    tuning = task.sample(TUNING_SIGNALS, torch.Generator().manual_seed(33), torch.float64).x
    learned, training, plans = learned_rules(task, tuning)
    classic = {"LADMM": PROVEN, "LADMM beyond its proof": BEYOND_PROOF}
    rules = [Learned(name, 0, tuned_ladmm(task, tuning[:128].float(), steps)) for name, steps in classic.items()]
    found: dict[str, Any] = {entry.name: asdict(entry.rule.config) for entry in rules}  # pyright: ignore
    rules.append(Learned(CONTROLS[2], 0, continued(rules[0].rule, task, 2 * LAYERS)))
    test = task.sample(TEST_SIGNALS, torch.Generator().manual_seed(2), torch.float64)
    optimum, gap = reference(task, test.x[:CERTIFIED], test.value[:CERTIFIED])
    entries = sorted(rules + learned, key=lambda entry: entry.name in CONTROLS)
    bar = tqdm(entries, desc="followed", unit="rule", disable=None)
    curves = [row for entry in bar for row in follow(entry, task, test.x, optimum)]
    at = (LAYERS, 2 * LAYERS, 4 * LAYERS, BEYOND)
    write_csv(out / "curves.csv", curves)
    write_csv(out / "summary.csv", summarised([row for row in curves if row["layer"] in at], plans))
    write_csv(out / "training.csv", training)
    sizes = {
        "layers": LAYERS, "seeds": SEEDS, "test_signals": TEST_SIGNALS, "tuning_signals": len(tuning),
        "certified": CERTIFIED, "relative_gap": gap, "rates": RATES,
    }  # fmt: skip
    write_study(out, command, environment, {"task": asdict(task), "rules": found, "plans": plans} | sizes)


def learned_rules(task: RobustSparseCoding, x: Tensor) -> tuple[list[Learned], list[dict], dict[str, dict]]:
    """Return the rules of all seeds, their losses and what was spent on them; and `variants` of some.

    The learning rate of D-LADMM is tuned with the first seed.

    Args:
        x: tuning signals, shape (signals, rows).
    """
    learned, training, plans = [], [], {}
    for name, plan in LEARNED.items():
        plan, tuning_s = replace(plan, layers=LAYERS), 0.0
        if name.startswith("D-LADMM"):
            rate, tuning_s = tuned_d_ladmm(task, x[:128].float(), plan, RATES, TRIAL)
            plan = replace(plan, lr=rate)
        spent = []
        for seed in tqdm(SEEDS, desc=f"trained {name}", unit="seed", disable=None):
            torch.manual_seed(0)
            rule = _untrained(name, task)
            history = train(rule, task, replace(plan, seed=seed))
            training += [
                {"method": name, "seed": seed, "iteration": i, "suboptimality": g, "cpu_s": s} for i, g, s in history
            ]
            spent.append(history[-1][2])
            learned += [Learned(called, seed, variant) for called, variant in variants(name, rule, task).items()]
        plans[name] = asdict(plan) | {"cpu_s": sum(spent) / len(spent), "tuning_cpu_s": tuning_s}
    return learned, training, plans


def variants(name: str, rule: ModelBasedRule, task: RobustSparseCoding) -> dict[str, ModelBasedRule]:
    """Return a trained rule as it goes on past twice its layers, and controls of how much that does, by name."""
    if name == "D-LADMM":
        return {name: rule, CONTROLS[1]: continued(rule, task, 2 * LAYERS)}
    if name.startswith("D-LADMM"):
        return {name: rule}
    found: dict[str, ModelBasedRule] = {name: continued(rule, task, 2 * LAYERS)}
    return found | ({CONTROLS[0]: continued(rule, task, 2 * LAYERS, PLAIN)} if name == "BMO" else {})


def _untrained(name: str, task: RobustSparseCoding) -> ModelBasedRule:
    if name.startswith("D-LADMM"):
        return DLADMM(DLADMMConfig(task.rows, task.columns, LAYERS), task.dictionary)
    gkm = gkm_rule(task, LAYERS, network=name == "GKM with D_net")
    return AggregatedGKM(gkm, LAYERS) if name == "BMO" else gkm


@torch.no_grad()
def tuned_ladmm(task: RobustSparseCoding, x: Tensor, steps: Sequence[tuple[float, float]]) -> LADMM:
    """Return the LADMM with the least mean F after `LAYERS` steps, of all `PENALTIES` and the pairs of steps."""
    problem, best = task.problem(x), (float("inf"), LADMMConfig())
    for penalty in PENALTIES:
        for step, dual_step in steps:
            config = LADMMConfig(penalty, step, dual_step)
            *_, (z, _, _) = iterates(LADMM(config), task, x, LAYERS)
            best = min(best, (float(problem.value(z).mean()), config), key=lambda pair: pair[0])
    return LADMM(best[1])


@torch.no_grad()
def reference(task: RobustSparseCoding, x: Tensor, feasible: Tensor) -> tuple[Tensor, float]:
    """Return the least F known of each signal, and the largest relative gap to its dual bound.

    Args:
        feasible: F at the code behind each signal, shape (signals,).
    """
    rule, problem = gkm_rule(task, 0, size=0.1).double(), task.problem(x)
    dual = torch.full_like(feasible, -torch.inf)
    for k, (z, _, multiplier) in enumerate(iterates(rule, task, x, REFERENCE_STEPS)):
        if k % 50 == 49:
            feasible = torch.minimum(feasible, problem.value(z))
            dual = torch.maximum(dual, problem.dual_value(multiplier))
    return feasible, float(((feasible - dual) / feasible.clamp(min=1e-12)).max())


@torch.no_grad()
def follow(entry: Learned, task: RobustSparseCoding, x: Tensor, optimum: Tensor) -> list[dict]:
    """Return suboptimality of the certified signals and relative change of all, after every layer up to `BEYOND`.

    Relative changes are the larger of two steps: one that throws a leap back changes nothing.
    """
    rule, problem, certified = entry.rule.double(), task.problem(x), task.problem(x[: len(optimum)])
    before = torch.cat([problem.zeros(), torch.zeros_like(x), torch.zeros_like(x)], -1)
    rows, last = [], torch.zeros(len(x) + 1, dtype=torch.float64)
    for layer, point in enumerate(iterates(rule, task, x, BEYOND), start=1):
        after = torch.cat(point, -1)
        now = _relative(after - before, before)
        change, whole = torch.maximum(last, now).split([len(x), 1])
        before, last = after, now
        gaps = (certified.value(point[0][: len(optimum)]) - optimum) / optimum.clamp(min=1e-12)
        rows.append({
            "method": entry.name, "seed": entry.seed, "layer": layer, "suboptimality": float(gaps.mean()),
            "worst": float(gaps.max()), "change": float(whole), "mean_change": float(change.mean()),
            "median_change": float(change.median()), "moving": float((change > SETTLED).double().mean()),
        })  # fmt: skip
    return rows


def _relative(move: Tensor, before: Tensor) -> Tensor:
    """‖move‖ / ‖before‖ of every signal, then of all as one vector; shape (signals + 1,)."""
    norms = [torch.cat([t.norm(dim=-1), t.norm().unsqueeze(0)]) for t in (move, before)]
    return norms[0] / norms[1].clamp(min=1e-30)


def summarised(rows: list[dict], plans: dict[str, dict]) -> list[dict]:
    """Return one row per method and layer: the mean over seeds, and the least and largest where they are compared."""
    out = []
    for method, layer in dict.fromkeys((row["method"], row["layer"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["layer"]) == (method, layer)]
        row = {"method": method, "layer": layer, "n_seeds": len(mine)}
        for name in ("suboptimality", "change", "mean_change"):
            values = [r[name] for r in mine]
            row |= {name: sum(values) / len(values), f"{name}_low": min(values), f"{name}_high": max(values)}
        row |= {name: max(r[name] for r in mine) for name in ("worst", "median_change", "moving")}
        out.append(row | {"train_cpu_s": plans.get(method, {}).get("cpu_s", 0.0)})
    return out
