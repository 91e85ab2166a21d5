"""Inner steps per CPU-second of a whole outer step, side by side with the stock loop of `nn.LSTMCell`s.

First-order truncated backpropagation through K = 20 steps with the 2×20 LSTM: unroll, meta-gradient, Adam. Methods are
interleaved and medians taken, so that what else the machine does hits all of them alike.
"""

import csv
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from l2o.rule import flatten
from l2o.rules import CoordinatewiseLSTM, LSTMConfig
from meta_train.estimators import Estimator, MetaLoss, Recorded, Truncated
from meta_train.run_directory import describe_environment
from meta_train.unroll import task_losses
from tasks import MLP, Quadratic
from tasks.task import TaskFamily

TRUNCATION = 20

WORKLOADS: dict[str, tuple[TaskFamily, int, float | None]] = {
    "quadratic": (Quadratic(), 128, None),
    "mlp8": (MLP("digits", hidden=(32,)), 16, 10.0),
    "mnist": (MLP("mnist"), 1, 10.0),
}
"""Name -> (family, tasks side by side, p of the LSTM): 1,280, 38,560 and 15,910 coordinates."""


class StockLoop(nn.Module):
    """The loop that everybody writes first: `nn.LSTMCell`s over coordinates, autograd through everything."""

    def __init__(self, p: float | None, size: int = 20):
        super().__init__()
        self.p = p
        self.cells = nn.ModuleList([nn.LSTMCell(1 if p is None else 2, size), nn.LSTMCell(size, size)])
        self.output = nn.Linear(size, 1)

    def forward(self, grads: Tensor, state: list[tuple[Tensor, Tensor]]):
        """Return updates (n,) and the next state."""
        inputs = grads[:, None]
        if self.p is not None:
            small = grads.abs() < torch.e**-self.p
            logarithm = torch.where(small, -1.0, grads.abs().clamp(min=1e-30).log() / self.p)
            inputs = torch.stack([logarithm, torch.where(small, torch.e**self.p * grads, grads.sign())], 1)
        following = []
        for cell, memory in zip(self.cells, state, strict=True):
            memory = cell(inputs, memory)
            inputs = memory[0]
            following.append(memory)
        return 0.1 * self.output(inputs)[:, 0], following


def stock_outer_step(family: TaskFamily, n_tasks: int, p: float | None) -> Callable[[], None]:
    """Return a function that makes one outer step of the stock loop."""
    generator = torch.Generator().manual_seed(0)
    rule = StockLoop(p)
    adam = torch.optim.Adam(rule.parameters(), lr=0.001)
    tasks = family.sample_tasks(n_tasks, generator)
    start = family.init_params(tasks, n_tasks, generator)

    def step() -> None:
        params = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        n = sum(tensor.numel() for tensor in params.values())
        state = [(torch.zeros(n, 20), torch.zeros(n, 20)) for _ in rule.cells]
        total = torch.zeros(())
        for _ in range(TRUNCATION):
            batch = family.sample_batch(tasks, n_tasks, "train", generator)
            losses = task_losses(family, params, tasks, batch)
            grads = torch.autograd.grad(losses.sum(), list(params.values()), retain_graph=True)
            updates, state = rule(flatten(dict(zip(params, grads, strict=True))), state)
            pieces = updates.split([tensor.numel() for tensor in params.values()])
            params = {k: v + piece.view_as(v) for (k, v), piece in zip(params.items(), pieces, strict=True)}
            total = total + losses.mean() / TRUNCATION
        batch = family.sample_batch(tasks, n_tasks, "train", generator)
        total = total + task_losses(family, params, tasks, batch).mean() / TRUNCATION
        adam.zero_grad()
        total.backward()
        adam.step()

    return step


def our_outer_step(estimator: Estimator, family: TaskFamily, n_tasks: int, p: float | None) -> Callable[[], None]:
    """Return a function that makes one outer step with one of our estimators."""
    generator = torch.Generator().manual_seed(0)
    rule = CoordinatewiseLSTM(LSTMConfig(p=p), generator)
    adam = torch.optim.Adam(rule.parameters(), lr=0.001)
    trajectories = estimator.start(rule, family, n_tasks, generator)
    weights = torch.full((TRUNCATION,), 1 / TRUNCATION)

    def step() -> None:
        result = estimator.estimate(rule, family, trajectories, MetaLoss(), weights, generator)
        for name, parameter in rule.named_parameters():
            parameter.grad = result.grads[name]
        adam.step()

    return step


def measure(repeats: int = 7, with_truncated: bool = False) -> dict[str, dict[str, float]]:
    """Race the methods on every workload.

    Returns: workload -> inner steps per CPU-second (and per second of wall time, `_wall`) of stock and ours, and the
    ratio of the CPU figures.
    """
    results = {}
    for workload, (family, n_tasks, p) in WORKLOADS.items():
        methods = {
            "stock": stock_outer_step(family, n_tasks, p),
            "ours": our_outer_step(Recorded(), family, n_tasks, p),
        }
        if with_truncated:
            methods["truncated"] = our_outer_step(Truncated(1), family, n_tasks, p)
        cpu, wall = _race(methods, repeats)
        steps = n_tasks * TRUNCATION
        row = {name: steps / seconds for name, seconds in cpu.items()}
        row |= {f"{name}_wall": steps / seconds for name, seconds in wall.items()}
        results[workload] = row | {"ratio": row["ours"] / row["stock"]}
    return results


def _race(methods: dict[str, Callable[[], None]], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median CPU and wall seconds of each method, interleaved, after one unmeasured turn."""
    times = {name: ([], []) for name in methods}
    for repeat in range(repeats + 1):
        for name, step in methods.items():
            cpu, wall = time.process_time(), time.perf_counter()
            step()
            if repeat:
                times[name][0].append(time.process_time() - cpu)
                times[name][1].append(time.perf_counter() - wall)
    cpu = {name: statistics.median(pair[0]) for name, pair in times.items()}
    return cpu, {name: statistics.median(pair[1]) for name, pair in times.items()}


def print_speed(results: dict[str, dict[str, float]], as_json: bool) -> None:
    """Print the figures, as one JSON object or as a table."""
    if as_json:
        print(json.dumps({name: {k: round(v, 2) for k, v in row.items()} for name, row in results.items()}))
        return
    print(f"{'workload':<12}{'stock':>12}{'ours':>12}{'ratio':>8}   (inner steps per CPU-second)")
    for name, row in results.items():
        print(f"{name:<12}{row['stock']:>12,.0f}{row['ours']:>12,.0f}{row['ratio']:>8.2f}")


def write_speed(results: dict[int, dict[str, dict[str, float]]], out: Path, command: str) -> None:
    """Write results/speed: summary.csv, environment and a README, from threads -> `measure()`."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {"workload": workload, "threads": threads} | {name: f"{value:.5g}" for name, value in row.items()}
        for threads, workloads in results.items()
        for workload, row in workloads.items()
    ]
    with (out / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (out / "README.md").write_text(_readme(rows, command))


def _readme(rows: list[dict], command: str) -> str:
    environment = describe_environment()
    lines = [
        "| workload | threads | stock, per CPU-s | ours, per CPU-s | ratio | ours, per s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['workload']} | {row['threads']} | {float(row['stock']):,.0f} | {float(row['ours']):,.0f} "
            f"| {float(row['ratio']):.2f} | {float(row['ours_wall']):,.0f} |"
        )
    table = "\n".join(lines)
    return f"""# speed: how many inner steps does a CPU-second of meta-training buy?

Command: `{command}`

A whole outer step of first-order truncated backpropagation (K = {TRUNCATION}, LSTM 2×20): unroll, meta-gradient, Adam.
*stock* is a plain loop of `nn.LSTMCell`s under autograd, *ours* the recorded gradient with the fused kernels; medians
of interleaved runs.

{table}

Made on {environment["time"][:10]} at commit {environment["commit"]} with torch {environment["packages"]["torch"]},
{environment["machine"]["cpu"]}, {environment["machine"]["cores"]} cores.
"""
