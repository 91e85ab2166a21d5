"""Two studies of BMO: joint convergence on a known problem, and robust sparse coding beyond the trained layers."""

import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2o.metric import Euclidean
from l2o.rule import ModelBasedRule
from l2o.rules.d_ladmm import DLADMM, DLADMMConfig
from l2o.rules.gkm import GKM
from l2o.rules.ladmm import LADMM, LADMMConfig
from meta_train.bilevel import InnerConfig, aggregated_steps, hyper_train
from meta_train.bilevel_problem import BOX, AffineBilevel, WeightedMetric
from meta_train.bmo_rules import AggregatedGKM, gkm_rule, iterates, settle
from meta_train.bmo_training import TrainingPlan, train, tuned_d_ladmm
from meta_train.run_directory import describe_environment
from tasks.robust_sparse_coding import RobustSparseCoding

LAYERS = 15
BEYOND = 10 * LAYERS
TEST_SIGNALS = 1024
CERTIFIED = 128
"""Test signals whose optimum is bounded by duality."""
REFERENCE_STEPS = 400
LEARNED = {
    "D-LADMM": TrainingPlan(beyond=0, iterations=470),
    "D-LADMM, loss to 2K": TrainingPlan(iterations=265),
    "UNH": TrainingPlan(iterations=210),
    "GKM with D_net": TrainingPlan(iterations=165),
    "BMO": TrainingPlan(iterations=130),
}
"""Iterations are such that all take about 20 CPU-seconds; the learning rates of D-LADMM are replaced by tuned ones."""
RATES = (0.001, 0.002, 0.004)
TRIAL = 60
"""Learning rates of D-LADMM, and iterations of each trial."""
PENALTIES = (0.25, 0.5, 1.0, 2.0, 4.0)
PROVEN = ((1.0, 1.0), (1.0, 1.6), (1.33, 1.0))
BEYOND_PROOF = ((2.0, 1.0), (2.0, 1.6), (2.5, 1.0))
"""(step, dual step) of LADMM."""

INNER_STEPS = (5, 10, 20, 50, 100)
OUTER_STEPS = 60
FINISH = 20
SHOWN = 100
"""K whose outer iterations are written to curves.csv."""
VARIANTS = {
    "unrolling (μ = 0)": (InnerConfig(aggregation=0.0), False),
    "BMO, H = I": (InnerConfig(descent=5.0, radius=100.0), False),
    "BMO, H = W": (InnerConfig(descent=5.0, radius=100.0), True),
    "BMO, H = W, ends with T": (InnerConfig(descent=5.0, radius=100.0, finish=FINISH), True),
}
"""Name -> the inner loop but for K, and whether T projects in the metric W of ℓ."""


def run_joint(checkpoints: Sequence[str], out: Path, command: str) -> None:
    """Measure the joint convergence of u^K and ω on `AffineBilevel`; write summary.csv, curves.csv and study.json.

    Raises:
        ValueError: if checkpoints are given: nothing here is trained beforehand.
    """
    _refuse(checkpoints, "bilevel")
    out.mkdir(parents=True, exist_ok=True)
    problem, summary, curves = AffineBilevel.sample(), [], []
    for name, (config, weighted) in VARIANTS.items():
        for steps in INNER_STEPS:
            inner = replace(config, steps=steps, finish=min(config.finish, steps // 4))
            rows = joint_run(problem, inner, weighted)
            summary.append({"method": name, "K": steps} | {k: v for k, v in rows[-1].items() if k != "iteration"})
            curves += [{"method": name, "K": steps} | row for row in rows if steps == SHOWN]
    _write_csv(out / "summary.csv", summary)
    _write_csv(out / "curves.csv", curves)
    _write_study(out, command, {"outer": OUTER_STEPS, "shown": SHOWN, "finish": FINISH})


def joint_run(problem: AffineBilevel, config: InnerConfig, weighted: bool) -> list[dict[str, float]]:
    """Return the errors of u^K, ω, φ_K and ∇φ before every outer iteration and after the last."""
    omega = torch.zeros(problem.influence.shape[1], dtype=torch.float64, requires_grad=True)
    start = torch.zeros(1, len(problem.target), dtype=torch.float64)
    metric = WeightedMetric(problem.weights) if weighted else Euclidean()

    def point() -> Tensor:
        step: Callable[[Tensor, int], Tensor] = lambda u, k: problem.step(u, omega, weighted)  # noqa: E731
        return aggregated_steps(step, start, lambda u: problem.upper(u, omega), config, metric)[-1]

    best_omega = problem.best_omega()
    best_point, best_value = problem.best_point(best_omega), problem.value(best_omega)
    first_slope = problem.slope(torch.zeros_like(best_omega)).norm()
    rows: list[dict[str, float]] = []

    def observe(iteration: int) -> None:
        with torch.no_grad():
            u = point()
            errors = {
                "iteration": iteration,
                "u": (u[0] - best_point).norm() / best_point.norm(),
                "omega": (omega - best_omega).norm() / best_omega.norm(),
                "value": (problem.upper(u, omega)[0] - best_value).abs() / best_value,
                "slope": problem.slope(omega).norm() / first_slope,
            }
        rows.append({name: float(value) for name, value in errors.items()})

    def project() -> None:
        omega.data.clamp_(-BOX, BOX)

    hyper_train(lambda: problem.upper(point(), omega)[0], [omega], 0.06, OUTER_STEPS, project, observe)
    observe(OUTER_STEPS)
    return rows


def run_sparse_coding(checkpoints: Sequence[str], out: Path, command: str) -> None:
    """Tune and train all rules, and follow them to ten times the trained layers; write the three files and the losses.

    Raises:
        ValueError: if checkpoints are given: the study trains its own rules.
    """
    _refuse(checkpoints, "bmo-sparse-coding")
    out.mkdir(parents=True, exist_ok=True)
    task = RobustSparseCoding()
    tuning = task.sample(128, torch.Generator().manual_seed(3))
    rules, training, plans = _learned(task, tuning.x)
    classic = {"LADMM": PROVEN, "LADMM beyond its proof": BEYOND_PROOF}
    rules = {name: tuned_ladmm(task, tuning.x, steps) for name, steps in classic.items()} | rules
    test = task.sample(TEST_SIGNALS, torch.Generator().manual_seed(2))
    optimum, gap = reference(task, test.x[:CERTIFIED].double(), test.value[:CERTIFIED].double())
    curves = [row for name, rule in rules.items() for row in follow(name, rule, task, test.x.double(), optimum)]
    at = (LAYERS, 2 * LAYERS, 4 * LAYERS, BEYOND)
    summary = [row | {"train_cpu_s": plans.get(row["method"], {}).get("cpu_s", 0.0)} for row in curves]
    _write_csv(out / "curves.csv", curves)
    _write_csv(out / "summary.csv", [row for row in summary if row["layer"] in at])
    _write_csv(out / "training.csv", training)
    found: dict[str, Any] = {name: asdict(rules[name].config) for name in classic}  # pyright: ignore
    sizes = {
        "layers": LAYERS,
        "test_signals": TEST_SIGNALS,
        "certified": CERTIFIED,
        "relative_gap": gap,
        "rates": RATES,
    }
    _write_study(out, command, {"task": asdict(task), "rules": found, "plans": plans} | sizes)


def _learned(task: RobustSparseCoding, x: Tensor) -> tuple[dict[str, ModelBasedRule], list[dict], dict[str, dict]]:
    """Return the trained rules, their losses and what was spent on them; x are the tuning signals."""
    rules, training, plans = {}, [], {}
    for name, plan in LEARNED.items():
        plan, tuning_s = replace(plan, layers=LAYERS), 0.0
        if name.startswith("D-LADMM"):
            rate, tuning_s = tuned_d_ladmm(task, x, plan, RATES, TRIAL)
            plan = replace(plan, lr=rate)
        torch.manual_seed(0)
        rule = _untrained(name, task)
        history = train(rule, task, plan)
        training += [{"method": name, "iteration": i, "suboptimality": g, "cpu_s": s} for i, g, s in history]
        plans[name] = asdict(plan) | {"cpu_s": history[-1][2], "tuning_cpu_s": tuning_s}
        if isinstance(rule, GKM | AggregatedGKM):
            begun = time.process_time()
            rule, (after, factor) = settle(rule.double(), task, x[:48].double(), BEYOND)
            spent = time.process_time() - begun
            plans[name] |= {"tuning_cpu_s": spent, "rest_from": after, "rest_factor": factor}
        rules[name] = rule
    return rules, training, plans


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
def follow(name: str, rule: ModelBasedRule, task: RobustSparseCoding, x: Tensor, optimum: Tensor) -> list[dict]:
    """Return suboptimality of the certified signals and relative change of all, after every layer up to `BEYOND`."""
    rule, problem, certified = rule.double(), task.problem(x), task.problem(x[: len(optimum)])
    before = torch.cat([problem.zeros(), torch.zeros_like(x), torch.zeros_like(x)], -1)
    rows = []
    for layer, point in enumerate(iterates(rule, task, x, BEYOND), start=1):
        after = torch.cat(point, -1)
        change = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-30)
        gaps = (certified.value(point[0][: len(optimum)]) - optimum) / optimum.clamp(min=1e-12)
        rows.append({
            "method": name, "layer": layer, "suboptimality": float(gaps.mean()), "worst": float(gaps.max()),
            "change": float((after - before).norm() / before.norm().clamp(min=1e-30)),
            "median_change": float(change.median()),
        })  # fmt: skip
        before = after
    return rows


def _refuse(checkpoints: Sequence[str], study: str) -> None:
    if checkpoints:
        raise ValueError(f"{study} trains its own rules and takes no --checkpoint, got {', '.join(checkpoints)}")


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def _write_study(out: Path, command: str, more: dict) -> None:
    study = {"command": command, "environment": describe_environment()} | more
    (out / "study.json").write_text(json.dumps(study, indent=1, default=str) + "\n")
