"""Race a method on a batch of LASSO problems: its suboptimality, CPU time and products after every step.

    relative suboptimality = (F(x) − F*) / F*,   F in float64, F* of a float64 run certified by its duality gap

CPU time is that of the process, for all problems in one batch on one thread, from b to x; what depends on A alone is
computed before.
"""

import ctypes
import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from l2o.problem import Problem
from l2o.proximal import Dictionary
from l2o.rule import ModelBasedRule, UpdateRule
from l2o.rules import ProximalLSTM, Safeguarded, acceptance_rate
from l2o.rules.safeguarded import SafeguardedState
from l2o.solve import init_state, make_step, solve
from meta_train.recovery_measures import support_f1
from tasks import Lasso

TOLERANCES = (1e-4, 1e-6)
REPEATS = 3

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
    f1: float = float("nan")
    """Of the support of the last iterate, against that of the minimiser; mean over problems."""


class Optima(NamedTuple):
    """What the methods are compared with."""

    values: Tensor
    """F* of every problem, float64, shape (problems,)."""
    gap: float
    """The largest relative duality gap."""
    x: Tensor
    """The minimisers, float64, shape (problems, columns)."""


@torch.no_grad()
def optima(problem: Problem, steps: int = 5000) -> Optima:
    """Return the minima of all problems, of a run in float64."""
    solution = solve(Safeguarded(None), problem.double(), tol=1e-11, max_steps=steps, history=False)
    return Optima(solution.certificate.primal, solution.certificate.relative_gap.max().item(), solution.x)


Methods = dict[str, tuple[UpdateRule, int]]
"""Name -> rule, and how many steps it makes."""


def race_all(problem: Problem, methods: Methods, best: Optima, count: bool = True) -> dict[str, Run]:
    """Run all methods in turn, several times; their CPU times are the medians of the turns."""
    runs = {name: race(problem, rule, steps, best, count) for name, (rule, steps) in methods.items()}
    clocks = {name: [run.cpu_ms] for name, run in runs.items()}
    for _ in range(REPEATS - 1):
        for name, (rule, steps) in methods.items():
            clocks[name].append(_turn(problem, rule, steps)[0])
    return {name: run._replace(cpu_ms=torch.stack(clocks[name]).median(0).values) for name, run in runs.items()}


@torch.no_grad()
def race(problem: Problem, rule: UpdateRule, steps: int, best: Optima, count: bool = True) -> Run:
    """Run a method once from x = 0.

    Args:
        best: what the iterates are compared with.
        count: whether to count products, which takes another run; NaN otherwise, and for rules that step on gradients
            or hold an LSTM, whose own matrix products are another matter.
    """
    milliseconds, iterates, state = _turn(problem, rule, steps)
    double = problem.double()
    values = torch.stack([double.value(x.double()) for x in iterates])
    accepted = acceptance_rate(state).nanmean().item() if isinstance(state, SafeguardedState) else float("nan")
    count = count and isinstance(rule, ModelBasedRule) and not isinstance(rule, ProximalLSTM)
    products = _products(problem, rule, steps) if count else torch.full_like(milliseconds, float("nan"))
    f1 = support_f1(iterates[-1], best.x)
    return Run((values - best.values) / best.values, milliseconds, products, accepted, f1)


@torch.no_grad()
def _turn(problem: Problem, rule: UpdateRule, steps: int) -> tuple[Tensor, list[Tensor], Any]:
    """Return CPU-ms a problem up to every step, the iterates and the last state."""
    iterates, clock, begun = [], [], time.process_time()
    x = problem.zeros()
    state = init_state(rule, problem, x)
    for step in range(steps):
        x, state = make_step(rule, problem, x, state, step)
        clock.append(time.process_time() - begun)
        iterates.append(x)
    return torch.tensor(clock, dtype=torch.float64) * 1000 / len(problem.b), iterates, state


def _products(problem: Problem, rule: UpdateRule, steps: int) -> Tensor:
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
            row[f"products_{label}"] = _number(run.products[reached[0]].item(), ".4g") if reached else ""
    return (
        row | figures(run.suboptimality[-1]) | {"accepted": _number(run.accepted, ".3f"), "f1": _number(run.f1, ".4f")}
    )


def figures(errors: Tensor) -> Row:
    """Return mean, 90 % quantile and largest of the last suboptimalities, shape (problems,)."""
    values = {"final_mean": errors.mean(), "final_q90": errors.quantile(0.9), "final_max": errors.amax()}
    return {name: f"{value.item():.2e}" for name, value in values.items()}


def _number(value: float, form: str) -> str:
    return "" if value != value else format(value, form)


def points(run: Run) -> list[Row]:
    """Return a row per step, for the figure."""
    columns = (run.cpu_ms, run.products, run.suboptimality.mean(1), run.suboptimality.amax(1))
    names = ("cpu_ms", "products", "mean", "max")
    values = torch.stack(columns, 1).tolist()
    return [
        {"step": step + 1} | {n: f"{v:.5g}" for n, v in zip(names, row, strict=True)} for step, row in enumerate(values)
    ]


def setup_ms() -> float:
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


def keep_memory() -> None:
    """Tell glibc to keep freed tensors of 2 MB: fetched from the kernel anew, an operation is up to 17 × slower."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 1_000_000_000)  # M_TRIM_THRESHOLD
        mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, at its greatest
