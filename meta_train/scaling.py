"""What an outer step costs on several ranks, from measured parts.

    torchrun --standalone --nproc-per-node 2 -m meta_train.scaling --out results/distributed

With N tasks on R ranks, an outer step of K inner steps takes

    t(R) = draw(N) + fixed + ⌈N/R⌉ · task + reduce · ⌈log₂ R⌉

seconds: `draw`, the random numbers of all N tasks' minibatches, which every rank draws; `task`, all that is done for
one task, its minibatches included; `fixed`, what a window costs without tasks, with Adam; `reduce`, the all-reduce of
the meta-gradient and of the stop flag between two ranks, whose latency grows with the logarithm of the ranks. They are
found from what one rank needs for one task and for all, and from draw and reduce by themselves; t(R) of the ranks that
are there is measured too, in turns with the others.
"""

import csv
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro

from l2o.rules import CoordinatewiseLSTM, LSTMConfig
from meta_train.distributed import Ranks, default_threads, join_ranks
from meta_train.estimators import MetaLoss, Recorded
from meta_train.run_directory import describe_environment, made_on
from meta_train.sharding import Sharded, share
from tasks import MLP
from tasks.task import TaskFamily

TRUNCATION = 20
WORKLOADS: dict[str, tuple[TaskFamily, int]] = {"mnist": (MLP("mnist"), 16), "mlp8": (MLP("digits", hidden=(32,)), 64)}
PREDICTED_RANKS = (1, 2, 4, 8, 16, 32, 64)


def outer_step(family: TaskFamily, n_tasks: int, part: slice, ranks: Ranks) -> Callable[[], None]:
    """Return a function that makes one outer step on a share of the tasks, with the ranks given."""
    generator = torch.Generator().manual_seed(0)
    rule = CoordinatewiseLSTM(LSTMConfig(), generator)
    adam = torch.optim.Adam(rule.parameters(), lr=1e-4)
    shared, mine = Sharded(family, n_tasks, part), part.stop - part.start
    begun = Recorded().start(rule, shared, mine, generator)
    weights = torch.full((TRUNCATION,), 1 / TRUNCATION)

    def step() -> None:
        result = Recorded().estimate(rule, shared, begun, MetaLoss(), weights, generator)
        vector = torch.cat([mine / n_tasks * result.grads[name].flatten() for name, _ in rule.named_parameters()])
        pieces = ranks.sum(vector).split([p.numel() for p in rule.parameters()])
        for parameter, piece in zip(rule.parameters(), pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        adam.step()
        ranks.any(False)

    return step


def measure(ranks: Ranks, family: TaskFamily, n_tasks: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of all parts, measured on rank 0 while the others wait, and of whole outer steps."""
    everyone, alone = slice(0, n_tasks), Ranks()
    generator = torch.Generator().manual_seed(0)
    n_theta = sum(parameter.numel() for parameter in CoordinatewiseLSTM().parameters())
    vector = torch.zeros(n_theta)

    def draw() -> None:
        for _ in range(TRUNCATION + 1):
            family.sample_share({}, n_tasks, "train", generator, slice(0, 0))

    def reduce() -> None:
        for _ in range(20):
            ranks.sum(vector)
            ranks.any(False)

    solo = {
        "draw": draw,
        "one task": outer_step(family, 1, slice(0, 1), alone),
        "t(1)": outer_step(family, n_tasks, everyone, alone),
    }
    together = {
        "reduce": reduce,
        f"t({ranks.n_ranks})": outer_step(family, n_tasks, share(n_tasks, ranks.rank, ranks.n_ranks), ranks),
    }
    times: dict[str, list[float]] = {name: [] for name in (*solo, *together)}
    for repeat in range(repeats + 1):
        for name, run in (solo | together).items():
            ranks.any(False)  # all start together, and wait for rank 0's solos
            if name in together or ranks.is_main:
                begun = time.perf_counter()
                run()
                if repeat:
                    times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds) for name, seconds in times.items() if seconds}


def parts(times: dict[str, float], n_tasks: int) -> dict[str, float]:
    """Return draw, task, fixed and reduce, seconds."""
    draw = times["draw"]
    task = (times["t(1)"] - times["one task"] - (1 - 1 / n_tasks) * draw) / (n_tasks - 1)
    fixed = max(times["t(1)"] - draw - n_tasks * task, 0.0)
    return {"draw": draw, "task": task, "fixed": fixed, "reduce": times["reduce"] / 20}


def predict(costs: dict[str, float], n_tasks: int, n_ranks: int) -> float:
    """Return t(R), seconds."""
    reduce = costs["reduce"] * math.ceil(math.log2(n_ranks)) if n_ranks > 1 else 0.0
    return costs["draw"] + costs["fixed"] + math.ceil(n_tasks / n_ranks) * costs["task"] + reduce


def run(out: Path, repeats: int = 9) -> None:
    """Measure the parts of an outer step on the ranks of this torchrun, and write table and README.

    Args:
        out: Directory to write.
        repeats: Measurements, of which medians are taken.
    """
    with join_ranks() as ranks:
        threads = default_threads() or torch.get_num_threads()
        torch.set_num_threads(threads)
        rows, notes = [], []
        for name, (family, n_tasks) in WORKLOADS.items():
            times = measure(ranks, family, n_tasks, repeats)
            if ranks.is_main:
                costs = parts(times, n_tasks)
                notes.append(_note(name, n_tasks, costs))
                rows += _rows(name, n_tasks, costs, times)
        if ranks.is_main:
            _write(out, rows, notes, ranks.n_ranks, threads, repeats)
            print((out / "README.md").read_text())


def _rows(name: str, n_tasks: int, costs: dict[str, float], times: dict[str, float]) -> list[dict[str, object]]:
    one = predict(costs, n_tasks, 1)
    rows = []
    for n_ranks in (n for n in PREDICTED_RANKS if n <= n_tasks):
        seconds, measured = predict(costs, n_tasks, n_ranks), times.get(f"t({n_ranks})")
        rows.append({
            "workload": name, "tasks": n_tasks, "ranks": n_ranks,
            "predicted_ms": f"{1e3 * seconds:.4g}", "predicted_speedup": f"{one / seconds:.3g}",
            "measured_ms": "" if measured is None else f"{1e3 * measured:.4g}",
            "measured_speedup": "" if measured is None else f"{times['t(1)'] / measured:.3g}",
            **{f"{part}_ms": f"{1e3 * cost:.4g}" for part, cost in costs.items()},
        })  # fmt: skip
    return rows


def _note(name: str, n_tasks: int, costs: dict[str, float]) -> str:
    listed = ", ".join(f"{part} {1e3 * cost:.3g} ms" for part, cost in costs.items())
    return f"- *{name}*, N = {n_tasks}: {listed}."


def _write(
    out: Path, rows: list[dict[str, object]], notes: list[str], n_ranks: int, threads: int, repeats: int
) -> None:
    environment = describe_environment()  # before the first file makes the checkout differ from its commit
    out.mkdir(parents=True, exist_ok=True)
    with (out / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    columns = ("workload", "tasks", "ranks", "predicted_ms", "predicted_speedup", "measured_ms", "measured_speedup")
    lines = ["| " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows]
    table, parts_of_all = "\n".join(lines), "\n".join(notes)
    (out / "README.md").write_text(f"""# distributed: what does an outer step cost on R ranks?

Command: `torchrun --standalone --nproc-per-node {n_ranks} -m meta_train.scaling --out {out}`

An outer step is K = {TRUNCATION} inner steps of N tasks with the LSTM 2×20, the recorded meta-gradient, its all-reduce
(gloo, {sum(p.numel() for p in CoordinatewiseLSTM().parameters()):,} floats) and Adam. Predicted from measured parts,
t(R) = draw + fixed + ⌈N/R⌉ task + reduce ⌈log₂ R⌉, and measured on the ranks of this machine:

{table}

Parts (wall time, medians of {repeats}, {threads} thread(s) a rank):

{parts_of_all}

*draw*: random numbers of all tasks' minibatches, on every rank; *task*: one task's share of everything else; *fixed*: a
window without tasks, and Adam; *reduce*: all-reduce of meta-gradient and stop flag between two ranks on one host. On
several hosts, put in the time that an all-reduce of 20 kB takes on the network between them.

{made_on(environment)}
""")


if __name__ == "__main__":
    tyro.cli(run)
