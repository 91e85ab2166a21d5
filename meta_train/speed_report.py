"""What `l2o speed` prints, and results/speed: summary.csv, README.md and the figure."""

import csv
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meta_train.report_styles import LIGHT
from meta_train.run_directory import describe_environment
from meta_train.speed_loops import TRUNCATION, TURN

Results = dict[str, dict[str, float]]
"""What `meta_train.speed.measure` returns."""

METHODS = {
    "stock": "loop by hand",
    "stock_compiled": "loop by hand, its rule compiled",
    "truncated": "ours by autograd",
    "ours": "ours",
    "ours_compiled": "ours, steps compiled",
}
"""Name -> what tables and figures call it."""

_COLOURS = dict(zip(METHODS, ("#8A8A8A", LIGHT[5], LIGHT[3], LIGHT[0], LIGHT[1]), strict=True))


def print_speed(results: Results, as_json: bool) -> None:
    """Print the figures, as one JSON object or as a table."""
    if as_json:
        print(json.dumps({name: {k: round(v, 2) for k, v in row.items()} for name, row in results.items()}))
        return
    print(f"{'workload':<14}{'stock':>12}{'ours':>12}{'ratio':>8}   (inner steps per CPU-second)")
    for name, row in results.items():
        print(f"{name:<14}{row['stock']:>12,.0f}{row['ours']:>12,.0f}{row['ratio']:>8.2f}")


def write_speed(
    results: dict[int, Results], windows: list[dict[str, float]], step_us: float, out: Path, command: str
) -> None:
    """Write results/speed: summary.csv, limits.json, the figure and a README.

    Args:
        results: threads -> `meta_train.speed.measure()`.
        windows: what `meta_train.speed_limits.measure_windows` returns.
        step_us: what `meta_train.speed_limits.measure_step` returns.
    """
    environment = describe_environment()  # before the first file makes the checkout differ from its commit
    out.mkdir(parents=True, exist_ok=True)
    rows = [row for threads, workloads in results.items() for row in _rows(threads, workloads)]
    with (out / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    _draw(rows).savefig(out / "speed.png", dpi=150)
    (out / "limits.json").write_text(json.dumps({"windows": windows, "step_us": step_us}, indent=2) + "\n")
    (out / "README.md").write_text(_readme(rows, windows, step_us, command, environment))


def _rows(threads: int, results: Results) -> list[dict[str, str]]:
    """Return a row per workload and method."""
    rows = []
    for workload, row in results.items():
        for method in (method for method in METHODS if method in row):
            per_cpu_second, per_second = row[method], row[f"{method}_wall"]
            rows.append({
                "workload": workload, "threads": str(threads), "method": method,
                "per_cpu_second": f"{per_cpu_second:.5g}", "per_second": f"{per_second:.5g}",
                "ratio_cpu": f"{per_cpu_second / row['stock']:.3f}",
                "ratio": f"{per_second / row['stock_wall']:.3f}",
            })  # fmt: skip
    return rows


def _draw(rows: list[dict[str, str]]) -> Figure:
    """Draw a panel per number of threads: how many times as fast as the loop by hand, in seconds on the clock."""
    threads = list(dict.fromkeys(row["threads"] for row in rows))
    figure = Figure(figsize=(6.2 * len(threads), 4.4), layout="constrained")
    axes = figure.subplots(1, len(threads), sharey=True, squeeze=False)[0]
    for panel, count in zip(axes, threads, strict=True):
        _draw_panel(panel, [row for row in rows if row["threads"] == count and row["method"] != "stock"])
        panel.set_title(f"{count} thread" + ("s" if count != "1" else ""))
    axes[0].set_ylabel("inner steps per second,\nas a multiple of the loop by hand")
    handles = {name: handle for panel in axes for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _draw_panel(panel: Axes, rows: list[dict[str, str]]) -> None:
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    labelled = set()
    for position, workload in enumerate(workloads):
        bars = [row for row in rows if row["workload"] == workload]
        for i, row in enumerate(bars):
            method, ratio = row["method"], float(row["ratio"])
            label = None if method in labelled else METHODS[method]
            labelled.add(method)
            at = position + 0.27 * (i - (len(bars) - 1) / 2)
            bar = panel.bar(at, ratio, 0.25, color=_COLOURS[method], label=label)
            panel.bar_label(bar, [f"{ratio:.1f}×"], padding=2, fontsize=9)
    panel.axhline(1, color=_COLOURS["stock"], linewidth=1.2, linestyle="--")
    panel.set_xticks(range(len(workloads)), workloads)
    panel.spines[["top", "right"]].set_visible(False)


def _readme(
    rows: list[dict[str, str]],
    windows: list[dict[str, float]],
    step_us: float,
    command: str,
    environment: dict[str, Any],
) -> str:
    return f"""# speed: how many inner steps does a second of meta-training buy?

Command: `{command}`

![inner steps per second as a multiple of a loop written by hand](speed.png)

A whole outer step: unroll K = {TRUNCATION} inner steps, meta-gradient, Adam; medians. Methods take turns of at least
{TURN:g} s, in which outer steps follow one another as in training.

*First order* (quadratic: 128 tasks of 10 variables; mlp8: 16 MLPs 64-32-10 on digits; mnist: 1 MLP 784-20-10): the LSTM
2×20. *Loop by hand* is a loop of `nn.LSTMCell`s under autograd, *its rule compiled* the same with the rule in
`torch.compile`, *ours by autograd* our fused kernels under autograd (`Truncated(1)`), *ours* the recorded gradient; it
takes the families' own losses and gradients (`TaskFamily.evaluator`: a kernel for quadratics, backpropagation by hand
for MLPs), all others those of autograd.

*Second order* (16 MLPs 784-20-10 on MNIST): gradient descent whose step size is learned. *Loop by hand* takes one task
after the other with `torch.autograd.grad(…, create_graph=True)`, *ours* all tasks at once (`Truncated(2)`), *steps
compiled* the same with the inner steps in `torch.compile` (`compile_steps`).

Inner steps per CPU-second, and how many times as many as the loop by hand:

{_table(rows, "per_cpu_second", "ratio_cpu")}

Inner steps per second on the clock:

{_table(rows, "per_second", "ratio")}

## Memory of a window, and a deployed step
What a window of the recorded gradient adds to the memory at most, MNIST MLPs 784-20-10, float32, one thread. The
*record* is the gradients that have to be kept; beside it are the LSTM's state, 5 MB a task, a minibatch, and a block of
coordinates that is being differentiated.

{_windows(windows)}

`optimizer.step()` of the LSTM 2×20 for 1,000,000 parameters: **{step_us:.3f} µs** a parameter, one thread.

Made on {environment["time"][:10]} at commit {environment["commit"]} with torch {environment["packages"]["torch"]},
{environment["machine"]["cpu"]}, {environment["machine"]["cores"]} cores.
"""


def _windows(windows: list[dict[str, float]]) -> str:
    lines = [
        "| tasks | inner steps | added peak, MB | record, MB | beside it, MB | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in windows:
        beside = row["added_mb"] - row["record_mb"]
        numbers = (row["added_mb"], row["record_mb"], beside)
        cells = [
            f"{row['tasks']:,.0f}",
            f"{row['steps']:,.0f}",
            *(f"{n:,.0f}" for n in numbers),
            f"{row['seconds']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _table(rows: list[dict[str, str]], rate: str, ratio: str) -> str:
    """Return a Markdown table with a row per workload and number of threads, and a column per method."""
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    lines = ["| workload | threads | " + " | ".join(METHODS[method] for method in methods) + " |"]
    lines.append("|---" * (len(methods) + 2) + "|")
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        times = "" if row["method"] == "stock" else f" ({float(row[ratio]):.2f} ×)"
        cells.setdefault((row["workload"], row["threads"]), {})[row["method"]] = f"{float(row[rate]):,.0f}{times}"
    for key, cell in cells.items():
        lines.append("| " + " | ".join([*key, *(cell.get(method, "–") for method in methods)]) + " |")
    return "\n".join(lines)
