"""The objective of the LASSO against CPU time: a learned rule with a safeguard against the classics.

    relative suboptimality = (F(x) − F*) / F*,   F in float64, F* of a float64 run certified by its duality gap

CPU time is that of the process, for all problems in one batch on one thread, from b to x; what depends on A alone is
computed before. `lasso_report` turns the files into a README and a figure.
"""

import csv
import ctypes
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from l2o.checkpoint import load_rule, read_card, save_rule
from l2o.problem import Problem
from l2o.proximal import Dictionary
from l2o.rule import ModelBasedRule
from l2o.rules import ADMM, FISTA, ISTA, FISTAConfig, Safeguarded, acceptance_rate
from l2o.solve import init_state, make_step, solve
from meta_train.run_directory import describe_environment
from tasks import Lasso

SETTINGS = {f"λ = {strength:g}": Lasso(dictionary="published", strength=strength) for strength in (0.1, 0.005)}
TRAINING = {
    "λ = 0.1": "rule:firm-alista --rule.layers 6 --horizon 6 --truncation 6 --outer-steps 600 "
    "--task.supervision 0 --task.strength 0.1",
    "λ = 0.005": "rule:firm-alista --rule.layers 10 --horizon 10 --truncation 10 --outer-steps 800",
}
"""What follows `l2o train sparse`: by the objective for the large λ, by x* for the small, whose solution is near."""
UNSEEN = {
    "other seed": Lasso(dictionary_seed=7, strength=0.1),
    "other seed, λ = 0.005": Lasso(dictionary_seed=7, strength=0.005),
    "condition number 50": Lasso(dictionary_seed=8, condition=50.0, strength=0.1),
    "200×600": Lasso(rows=200, columns=600, dictionary_seed=9, strength=0.1),
    "λ = 0.03, SNR 20 dB": Lasso(dictionary_seed=10, strength=0.03, snr_db=20.0),
}
"""Dictionaries that no rule was trained on, raced with the rule trained for λ = 0.1."""
TOLERANCES = (1e-4, 1e-6)
STEPS = {"ISTA": 150, "FISTA": 250, "FISTA-restart": 250, "ADMM": 80, "FISTA + Newton": 250}
SAFEGUARDED_STEPS = 12
REPEATS = 3
COORDINATE_DESCENT_PROBLEMS = 50
UNSEEN_PROBLEMS = 500

Row = dict[str, Any]


class Run(NamedTuple):
    """One race of one method."""

    suboptimality: Tensor
    """Relative, after every step, shape (steps, problems)."""
    cpu_ms: Tensor
    """Per problem, up to and including every step, shape (steps,)."""
    products: Tensor
    """Products with AᵀA (2n² operations) per problem, shape (steps,); the Newton steps' own work is not among them."""
    accepted: float
    """Fraction of the candidates that were kept; NaN without a safeguard."""


def run_lasso(checkpoints: Sequence[str], out: Path, command: str) -> None:
    """Race all methods and write summary.csv, curves.csv, unseen.csv, lasso.json; train what is not in `out`/rules.

    Args:
        checkpoints: none can be given; the rules are trained by the command that the README states.
        command: what was typed, for the README.

    Raises:
        ValueError: if checkpoints are given.
        OSError: if `out` cannot be written.
        DataError: if the published matrix and codes are not there.
    """
    if checkpoints:
        raise ValueError("lasso-objective trains its own rules; remove its rules/ to train them anew")
    _keep_memory()
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    summary, curves, unseen, gaps = [], [], [], {}
    rules = {setting: trained(setting, out / "rules") for setting in SETTINGS}
    for setting, family in SETTINGS.items():
        problem = family.problem(family.published_tasks(torch.Generator().manual_seed(0)))
        optimum, gaps[setting] = optima(problem)
        for name, (rule, steps) in _methods(*rules[setting][:1]).items():
            run = race(problem, rule, steps, optimum)
            facts = rules[setting][1] if name.startswith("learned") else {"parameters": 0, "train_cpu_s": ""}
            summary.append({"setting": setting, "method": name, **summarise(run), **facts})
            curves += [{"setting": setting, "method": name, **point} for point in _points(run)]
            print(f"{setting}: {name}: {summary[-1]}", flush=True)
        summary.append({"setting": setting, **_coordinate_descent(problem, optimum, summary[-1])})
    for name, family in UNSEEN.items():
        unseen.append({"setting": name, **_compare(family, rules["λ = 0.1"][0])})
        print(unseen[-1], flush=True)
    for name, rows in (("summary", summary), ("curves", curves), ("unseen", unseen)):
        _write_csv(out / f"{name}.csv", rows)
    facts = {"command": command, "gaps": gaps, "training": TRAINING, "setup_ms": _setup_ms(), "problems": 1000}
    facts |= {"unseen_problems": UNSEEN_PROBLEMS}
    facts |= {"unseen": {name: str(family) for name, family in UNSEEN.items()}, "environment": describe_environment()}
    (out / "lasso.json").write_text(json.dumps(facts, indent=2) + "\n")


def trained(setting: str, folder: Path) -> tuple[ModelBasedRule, Row]:
    """Return a setting's learned rule and what the table says of it, trained now if it is not in the folder."""
    path = folder / f"firm-alista-{SETTINGS[setting].strength:g}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            begun = resource.getrusage(resource.RUSAGE_CHILDREN)
            options = [*TRAINING[setting].split(), "--out", f"{scratch}/run", "--wandb", "off", "--threads", "1"]
            subprocess.run([sys.executable, "-m", "meta_train.cli", "train", "sparse", *options], check=True)
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
            save_rule(load_rule(f"{scratch}/run"), path, training={"cpu_s": round(seconds, 1)})
    rule = load_rule(str(path))
    assert isinstance(rule, ModelBasedRule)
    seconds = read_card(path).get("training", {}).get("cpu_s", "")
    return rule, {"parameters": sum(p.numel() for p in rule.parameters()), "train_cpu_s": seconds}


def _methods(learned: ModelBasedRule) -> dict[str, tuple[ModelBasedRule, int]]:
    rules = {
        "ISTA": ISTA(), "FISTA": FISTA(FISTAConfig(restart="none")), "FISTA-restart": FISTA(), "ADMM": ADMM(),
        "FISTA + Newton": Safeguarded(None),
    }  # fmt: skip
    methods: dict[str, tuple[ModelBasedRule, int]] = {name: (rule, STEPS[name]) for name, rule in rules.items()}
    methods["learned"] = learned, learned.layers or 1
    methods["learned + safeguarded"] = Safeguarded(learned), SAFEGUARDED_STEPS
    return methods


@torch.no_grad()
def optima(problem: Problem, steps: int = 5000) -> tuple[Tensor, float]:
    """Return F* of every problem in float64, and the largest relative duality gap."""
    certificate = solve(Safeguarded(None), problem.double(), tol=1e-11, max_steps=steps, history=False).certificate
    return certificate.primal, certificate.relative_gap.max().item()


@torch.no_grad()
def race(problem: Problem, rule: ModelBasedRule, steps: int, optimum: Tensor, repeats: int = REPEATS) -> Run:
    """Run a method from x = 0; its CPU time is the median of some repeats, each with one turn before it."""
    clocks, iterates, state = [], [], None
    for _ in range(repeats):
        iterates = []
        begun, clock = time.process_time(), []
        x = problem.zeros()
        state = init_state(rule, problem, x)
        for step in range(steps):
            x, state = make_step(rule, problem, x, state, step)
            clock.append(time.process_time() - begun)
            iterates.append(x)
        clocks.append(clock)
    double, n_items = problem.double(), len(problem.b)
    values = torch.stack([double.value(x.double()) for x in iterates])
    accepted = acceptance_rate(state).nanmean().item() if isinstance(rule, Safeguarded) else float("nan")  # pyright: ignore
    milliseconds = torch.tensor(clocks, dtype=torch.float64).median(0).values * 1000 / n_items
    return Run((values - optimum) / optimum, milliseconds, _products(problem, rule, steps), accepted)


def _products(problem: Problem, rule: ModelBasedRule, steps: int) -> Tensor:
    """Count the operations of matrix products, in units of one product with AᵀA for every problem."""
    counter, counts, x = FlopCounterMode(display=False), [], problem.zeros()
    unit = 2 * problem.operator.in_shape[0] ** 2 * len(problem.b)
    with counter:
        state = init_state(rule, problem, x)
        for step in range(steps):
            x, state = make_step(rule, problem, x, state, step)
            counts.append(counter.get_total_flops() / unit)
    return torch.tensor(counts, dtype=torch.float64)


def summarise(run: Run) -> Row:
    """Return when the mean, and the largest, suboptimality come below the tolerances: steps, CPU-ms, products."""
    row: Row = {}
    for tolerance in TOLERANCES:
        for name, errors in (("mean", run.suboptimality.mean(1)), ("max", run.suboptimality.amax(1))):
            reached = (errors <= tolerance).nonzero().flatten().tolist()
            label = f"{name}_{tolerance:.0e}"
            row[f"steps_{label}"] = reached[0] + 1 if reached else ""
            row[f"ms_{label}"] = f"{run.cpu_ms[reached[0]].item():.4g}" if reached else ""
            row[f"products_{label}"] = f"{run.products[reached[0]].item():.4g}" if reached else ""
    row["final_mean"] = f"{run.suboptimality[-1].mean().item():.2e}"
    row["final_q90"] = f"{run.suboptimality[-1].quantile(0.9).item():.2e}"
    row["final_max"] = f"{run.suboptimality[-1].amax().item():.2e}"
    return row | {"accepted": "" if run.accepted != run.accepted else f"{run.accepted:.3f}"}


def _points(run: Run) -> list[Row]:
    columns = (run.cpu_ms, run.products, run.suboptimality.mean(1), run.suboptimality.amax(1))
    names = ("cpu_ms", "products", "mean", "max")
    values = torch.stack(columns, 1).tolist()
    return [
        {"step": step + 1} | {n: f"{v:.5g}" for n, v in zip(names, row, strict=True)} for step, row in enumerate(values)
    ]


def _coordinate_descent(problem: Problem, optimum: Tensor, like: Row) -> Row:
    """Return the row of scikit-learn with a precomputed Gram matrix, its tolerance halved until F is met."""
    from sklearn.linear_model import Lasso as CoordinateDescent  # an extra that only this row needs

    A, count = problem.operator.matrix.double(), COORDINATE_DESCENT_PROBLEMS  # pyright: ignore
    gram, matrix = (A.mT @ A).numpy(), A.numpy()
    row: Row = dict.fromkeys(key for key in like if key != "setting") | {"method": "scikit-learn CD (50 problems)"}
    for tolerance in TOLERANCES:
        for sklearn_tolerance in (10.0**-k for k in range(2, 12)):
            rule = CoordinateDescent(
                problem.regularizer.strength / len(matrix), fit_intercept=False, precompute=gram, tol=sklearn_tolerance,  # pyright: ignore
                max_iter=10_000,
            )  # fmt: skip
            begun, codes = time.process_time(), []
            for b in problem.b[:count].double().numpy():
                codes.append(torch.from_numpy(rule.fit(matrix, b).coef_.copy()))
            seconds = time.process_time() - begun
            part = Problem(problem.operator, problem.b[:count], problem.regularizer).double()
            errors = (part.value(torch.stack(codes)) - optimum[:count]) / optimum[:count]
            if errors.mean() <= tolerance:
                row[f"ms_mean_{tolerance:.0e}"] = f"{1000 * seconds / count:.4g}"
                break
    return row | {"parameters": 0}


def _compare(family: Lasso, learned: ModelBasedRule) -> Row:
    """Return the times of FISTA-restart and of the safeguarded rule on a family, and their ratio."""
    problem = family.problem(family.sample_tasks(UNSEEN_PROBLEMS, torch.Generator().manual_seed(1)))
    optimum, gap = optima(problem)
    fista, ours = (race(problem, rule, 250, optimum) for rule in (FISTA(), Safeguarded(learned)))
    row: Row = {"gap": f"{gap:.1e}", "accepted": f"{ours.accepted:.3f}"}
    for tolerance in TOLERANCES:
        label = f"{tolerance:.0e}"
        times = [summarise(run)[f"ms_mean_{label}"] for run in (fista, ours)]
        row |= {f"fista_ms_{label}": times[0], f"ours_ms_{label}": times[1]}
        row[f"ratio_{label}"] = f"{float(times[1]) / float(times[0]):.3f}" if all(times) else ""
    return row


def _setup_ms() -> float:
    """CPU-ms of what depends on A alone: AᵀA, ‖A‖ and the analytic weights, once per dictionary."""
    matrix = Lasso(dictionary="published").shared_dictionary(torch.empty(0))
    times = []
    for _ in range(3):
        dictionary, begun = Dictionary(matrix.clone()), time.process_time()
        for name in ("gram", "analytic_weights"):
            getattr(dictionary, name)  # computed and kept
        dictionary.norm()
        times.append(1000 * (time.process_time() - begun))
    return round(statistics.median(times), 1)


def _keep_memory() -> None:
    """Tell glibc to keep freed tensors of 2 MB: fetched from the kernel anew, an operation is up to 17 × slower."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 1_000_000_000)  # M_TRIM_THRESHOLD
        mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, at its greatest


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
