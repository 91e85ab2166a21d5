"""Inner steps per CPU-second of a whole outer step, side by side with loops written by hand.

First order: truncated backpropagation through K = 20 steps with the 2×20 LSTM, next to a stock loop of `nn.LSTMCell`s.
Second order: the learnable step size of gradient descent on 16 MNIST MLPs, next to a loop over tasks. An outer step is
unroll, meta-gradient and Adam. Methods are interleaved and medians taken, so that what else the machine does hits all
of them alike.
"""

import statistics
import time

import torch

from meta_train.estimators import Recorded, Truncated
from meta_train.speed_loops import (
    TRUNCATION,
    TURN,
    OuterStep,
    hand_written_outer_step,
    our_outer_step,
    our_second_order_step,
    stock_outer_step,
)
from meta_train.speed_report import print_speed, write_speed
from tasks import MLP, Quadratic
from tasks.task import TaskFamily

__all__ = ["WORKLOADS", "measure", "print_speed", "write_speed"]

WORKLOADS: dict[str, tuple[TaskFamily, int, float | None]] = {
    "quadratic": (Quadratic(), 128, None),
    "mlp8": (MLP("digits", hidden=(32,)), 16, 10.0),
    "mnist": (MLP("mnist"), 1, 10.0),
}
"""Name -> (family, tasks side by side, p of the LSTM): 1,280, 38,560 and 15,910 coordinates."""

SECOND_ORDER: tuple[MLP, int] = (MLP("mnist"), 16)
"""The family and number of tasks of the workload second-order."""

COMPILE_STEPS = 4
"""Inner steps of a compiled graph."""


def measure(repeats: int = 7, with_truncated: bool = False) -> dict[str, dict[str, float]]:
    """Race the methods on every workload.

    Args:
        with_truncated: race the variants too: autograd through the window, and torch.compile, which compiles for one
            to five minutes.

    Returns: workload -> inner steps per CPU-second (and per second of wall time, `_wall`) of stock (the loop written by
        hand), ours and variants, and the ratio of the CPU figures of ours and stock.
    """
    if with_truncated:
        torch.compiler.reset()  # it counts what it compiles, and gives up beyond some number
    results = {}
    for workload in (*WORKLOADS, "second-order"):
        methods, n_tasks = _methods(workload, with_truncated)
        cpu, wall = _race(methods, repeats)
        steps = n_tasks * TRUNCATION
        row = {name: steps / seconds for name, seconds in cpu.items()}
        row |= {f"{name}_wall": steps / seconds for name, seconds in wall.items()}
        results[workload] = row | {"ratio": row["ours"] / row["stock"]}
    return results


def _methods(workload: str, with_variants: bool) -> tuple[dict[str, OuterStep], int]:
    """Return the outer steps to race, by name, and how many tasks each has."""
    if workload == "second-order":
        family, n_tasks = SECOND_ORDER
        methods = {
            "stock": hand_written_outer_step(family, n_tasks),
            "ours": our_second_order_step(Truncated(2), family, n_tasks),
        }
        if with_variants:
            methods["ours_compiled"] = our_second_order_step(Truncated(2, compile_steps=COMPILE_STEPS), family, n_tasks)
        return methods, n_tasks
    family, n_tasks, p = WORKLOADS[workload]
    methods = {"stock": stock_outer_step(family, n_tasks, p), "ours": our_outer_step(Recorded(), family, n_tasks, p)}
    if with_variants:
        methods["stock_compiled"] = stock_outer_step(family, n_tasks, p, compiled=True)
        methods["truncated"] = our_outer_step(Truncated(1), family, n_tasks, p)
    return methods, n_tasks


def _race(methods: dict[str, OuterStep], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median CPU and wall seconds of each method's outer step; the first turns are not measured."""
    times = {name: ([], []) for name in methods}
    for repeat in range(repeats + 1):
        for name, step in methods.items():
            turn = _take_turn(step)
            if repeat:
                times[name][0].extend(cpu for cpu, _ in turn)
                times[name][1].extend(wall for _, wall in turn)
    cpu = {name: statistics.median(pair[0]) for name, pair in times.items()}
    return cpu, {name: statistics.median(pair[1]) for name, pair in times.items()}


def _take_turn(step: OuterStep) -> list[tuple[float, float]]:
    """Return the CPU and wall seconds of each outer step of a turn."""
    turn, end = [], time.perf_counter() + TURN
    while not turn or time.perf_counter() < end:
        cpu, wall = time.process_time(), time.perf_counter()
        step()
        turn.append((time.process_time() - cpu, time.perf_counter() - wall))
    return turn
