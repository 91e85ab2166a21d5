"""A study of BMO on a known problem: whether training and hyper-training converge together."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from l2o.metric import Euclidean
from meta_train.bilevel import InnerConfig, aggregated_steps, hyper_train
from meta_train.bilevel_problem import BOX, AffineBilevel, WeightedMetric
from meta_train.run_directory import describe_environment

INNER_STEPS = (5, 10, 20, 50, 100)
OUTER_STEPS = 60
SHOWN = 100
"""K whose outer iterations are written to curves.csv."""
VARIANTS = {
    "unrolling (μ = 0)": (InnerConfig(aggregation=0.0), False),
    "BMO, H = I": (InnerConfig(descent=5.0, radius=100.0), False),
    "BMO, H = W": (InnerConfig(descent=5.0, radius=100.0), True),
    "BMO, H = I, annealed": (InnerConfig(descent=2.0, decay=4.0, annealed=True, radius=100.0), False),
    "BMO, H = W, annealed": (InnerConfig(descent=2.0, decay=4.0, annealed=True, radius=100.0), True),
}
"""Name -> the inner loop but for K, and whether T projects in the metric W of ℓ."""


def run_joint(checkpoints: Sequence[str], out: Path, command: str) -> None:
    """Measure the joint convergence of u^K and ω on `AffineBilevel`; write summary.csv, curves.csv and study.json.

    Raises:
        ValueError: if checkpoints are given: nothing here is trained beforehand.
    """
    refuse(checkpoints, "bilevel")
    environment = describe_environment()
    out.mkdir(parents=True, exist_ok=True)
    problem, summary, curves = AffineBilevel.sample(), [], []
    for name, (config, weighted) in tqdm(VARIANTS.items(), unit="variant", disable=None):
        for steps in INNER_STEPS:
            rows = joint_run(problem, replace(config, steps=steps), weighted)
            summary.append({"method": name, "K": steps} | {k: v for k, v in rows[-1].items() if k != "iteration"})
            curves += [{"method": name, "K": steps} | row for row in rows if steps == SHOWN]
    write_csv(out / "summary.csv", summary)
    write_csv(out / "curves.csv", curves)
    write_study(out, command, environment, {"outer": OUTER_STEPS, "shown": SHOWN})


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


def refuse(checkpoints: Sequence[str], study: str) -> None:
    """Refuse checkpoints.

    Raises:
        ValueError: if there are any.
    """
    if checkpoints:
        raise ValueError(f"{study} trains its own rules and takes no --checkpoint, got {', '.join(checkpoints)}")


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows that all have the keys of the first; numbers get six digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def write_study(out: Path, command: str, environment: dict, more: dict) -> None:
    """Write study.json: the command, the environment before the first file was written, and more."""
    study = {"command": command, "environment": environment} | more
    (out / "study.json").write_text(json.dumps(study, indent=1, default=str) + "\n")
