"""Turn the CSV files of `estimator_study` into a README and a figure; everything can be rebuilt from the files."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)

_LABELS = {"truncated": "backpropagation", "es": "ES", "pes": "PES", "nres": "NRES"}
_STYLES: dict[str, dict[str, Any]] = {
    "truncated": {"color": "#000000", "marker": "o"},
    "es": {"color": "#D55E00", "marker": "s"},
    "pes": {"color": "#0072B2", "marker": "^"},
    "nres": {"color": "#009E73", "marker": "v"},
}
"""Okabe & Ito's palette, which colour-blind readers can tell apart, and a marker each."""
_OUTSIDE = 5.0
"""Standard errors beyond which a mean is not the exact gradient."""
_NEAR = 1.1
"""Training has succeeded when the meta-loss is within this factor of its minimum."""


def write_estimator_report(directory: Path) -> str:
    """Write README.md and estimators.png from summary.csv, curves.csv and study.json.

    Returns: the table, as Markdown.

    Raises:
        ValueError: if the directory was not written by `l2o estimators`.
    """
    try:
        study = json.loads((directory / "study.json").read_text())
        summary, curves = (_read_csv(directory / f"{name}.csv") for name in ("summary", "curves"))
        table = _table(summary)
        readme = _readme(study, summary, curves, table)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{directory} is not an estimator study: {type(error).__name__}, {error}") from error
    draw(study, summary, curves, directory / "estimators.png")
    (directory / "README.md").write_text(readme)
    return table


def draw(study: dict, summary: list[dict], curves: list[dict], path: Path) -> None:
    """Draw mean and spread of the meta-gradients against cost on the left, meta-training on the right."""
    figure, axes = plt.subplot_mosaic(
        [["mean", "training"], ["spread", "training"]], figsize=(12.5, 6), height_ratios=(2, 1), layout="constrained"
    )
    axes["spread"].sharex(axes["mean"])
    for name, style in _STYLES.items():
        rows = _rows(summary, name)
        cost, mean, spread = _columns(rows, "cost_outer_step", "relative_mean", "sd_outer_step")
        errors = [_OUTSIDE * float(row["standard_error"]) for row in rows]
        axes["mean"].errorbar(cost, mean, errors, label=_LABELS[name], capsize=3, linewidth=1.5, markersize=6, **style)
        axes["spread"].plot(cost, spread, linewidth=1.5, markersize=6, **style)
        for row in rows:
            _annotate_truncation(axes["mean"], row, style["color"])
    for value in (0, 1):
        axes["mean"].axhline(value, color="0.6", linewidth=0.8, zorder=0)
    notes = {"xycoords": ("axes fraction", "data"), "fontsize": 8, "color": "0.35"}
    axes["mean"].annotate("below: wrong sign", (0.01, 0.04), **notes)
    axes["mean"].set(xscale="log", ylabel="mean / exact gradient", ylim=(-1, 1.5))
    axes["mean"].set_title("Meta-gradient at θ = 0.5: bias (bars: 5 standard errors) …")
    axes["mean"].tick_params(labelbottom=False)
    axes["mean"].legend(loc="upper left", frameon=False, fontsize=9)
    axes["spread"].set(ylabel="sd / exact gradient", xlabel="inner steps evaluated per outer step (K × particles)")
    axes["spread"].set_title("… and noise of a single outer step's estimate")
    _draw_training(axes["training"], study, curves)
    for axis in axes.values():
        axis.grid(which="major", alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _annotate_truncation(axis, row: dict, colour: str) -> None:
    """Write K under the biased estimators' points, and above those of NRES, which PES shares."""
    if row["estimator"] == "pes":
        return
    where = (float(row["cost_outer_step"]), 1.22 if row["estimator"] == "nres" else float(row["relative_mean"]))
    offset = (0, 0) if row["estimator"] == "nres" else (6, -13)
    text = f"K={row['truncation']}" if row["truncation"] == "1" else row["truncation"]
    axis.annotate(text, where, offset, textcoords="offset points", fontsize=8, color=colour, ha="center")


def _draw_training(axis, study: dict, curves: list[dict]) -> None:
    lines = {1: ":", 20: "--", study["horizon"]: "-"}
    for name, length in _trained(curves):
        seeds = _runs(curves, name, length)
        cost = _columns(seeds[0], "cost")[0][1:]
        losses = list(zip(*(_columns(run, "meta_loss")[0][1:] for run in seeds), strict=True))
        label = f"{_LABELS[name]}, K = {length}" + (" = T" if length == study["horizon"] else "")
        style = {"color": _STYLES[name]["color"], "linestyle": lines.get(length, "-.")}
        axis.plot(cost, [sum(values) / len(values) for values in losses], label=label, linewidth=2, **style)
        low, high = ([pick(values) for values in losses] for pick in (min, max))
        axis.fill_between(cost, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axis.axhline(study["least_meta_loss"], color="0.6", linewidth=0.8, zorder=0)
    note = axis.annotate("least possible", (0.01, study["least_meta_loss"]), (0, -11), ("axes fraction", "data"),
                         textcoords="offset points", fontsize=8, color="0.35")  # fmt: skip
    note.set_in_layout(False)  # a minimum outside the axes must not squeeze them
    axis.set(xscale="log", yscale="log", ylim=(0.12, 100), title="Meta-training from θ = 0.5")
    axis.set(xlabel="inner steps evaluated", ylabel="meta-loss over T steps")
    axis.legend(loc="upper center", bbox_to_anchor=(0.48, 1), frameon=False, fontsize=9)


def _table(summary: list[dict]) -> str:
    lines = [
        "| estimator | K | inner steps a step | mean / exact | ± s.e. | bias in s.e. | sd, step | sd, trajectory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in summary:
        mean, error, step, trajectory = (
            float(row[name]) for name in ("relative_mean", "standard_error", "sd_outer_step", "sd_trajectory")
        )
        noise = (f"{error:.3f}", f"{_bias(row):+.1f}") if error else ("–", "–")
        name, cost = _LABELS[row["estimator"]], f"{int(row['cost_outer_step']):,}"
        cells = (name, row["truncation"], cost, f"{mean:.3f}", *noise, f"{step:.3f}", f"{trajectory:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _bias(row: dict) -> float:
    """Bias in standard errors; of an estimator without noise, infinite unless it is exact to the digits written."""
    bias, error = float(row["relative_mean"]) - 1, float(row["standard_error"])
    return bias / error if error else (0.0 if bias == 0 else math.copysign(math.inf, bias))


def _verdict(study: dict, summary: list[dict], curves: list[dict]) -> str:
    lines = [_judge_bias(label, _rows(summary, name)) for name, label in _LABELS.items()]
    lines.append(_compare_spread(summary))
    costs = {setting: _cost_to_succeed(study, curves, *setting) for setting in _trained(curves)}
    for (name, length), cost in costs.items():
        final = max(float(run[-1]["meta_loss"]) for run in _runs(curves, name, length))
        word = f"succeeds after {cost:,.0f} inner steps" if cost else "FAILS"
        lines.append(f"- *Training with {_LABELS[name]}, K = {length}*: {word}; final meta-loss {final:.4g}.")
    full_gradient = costs.get(("truncated", study["horizon"]))
    strategies = [cost for (name, _), cost in costs.items() if name != "truncated" and cost]
    if full_gradient and strategies:
        ratio = min(strategies) / full_gradient
        lines.append(
            f"- *Cost*: the cheapest evolution strategy takes {ratio:,.0f} times the inner steps of the full gradient"
            f" ({study['particles']} particles against one trajectory of a task without noise)."
            + (" Where the whole horizon can be differentiated, it does NOT pay here." if ratio > 1 else "")
        )
    return "\n".join(lines)


def _judge_bias(label: str, rows: list[dict]) -> str:
    outside = [row["truncation"] for row in rows if abs(_bias(row)) > _OUTSIDE]
    wrong = [row["truncation"] for row in rows if float(row["relative_mean"]) < 0]
    if not outside:
        return (
            f"- *{label}*: no bias found at any K, at most {max(abs(_bias(row)) for row in rows):.1f} standard errors."
        )
    signs = f"; the wrong sign at K = {', '.join(wrong)}" if wrong else ""
    return f"- *{label}*: BIASED at K = {', '.join(outside)}{signs}."


def _compare_spread(summary: list[dict]) -> str:
    """Compare PES with NRES, the geometric mean over all truncations short of the horizon, where they are the same."""
    lengths = sorted({int(row["truncation"]) for row in summary})[:-1]
    ratios = {}
    for measure in ("sd_outer_step", "sd_trajectory"):
        spread = {(row["estimator"], int(row["truncation"])): float(row[measure]) for row in summary}
        logarithms = [math.log(spread["pes", length] / spread["nres", length]) for length in lengths]
        ratios[measure] = math.exp(sum(logarithms) / len(lengths))
    # A standard deviation of n values has the relative error 1/√(2n); a ratio of two has √2 times that.
    error = 1 / math.sqrt(len(lengths) * min(int(row["repeats"]) for row in summary if row["estimator"] == "pes"))
    words = [
        f"{ratio:.2f} ± {ratio * error:.2f} of NRES's" + (" (NOT more)" if ratio < 1 + 2 * error else "")
        for ratio in ratios.values()
    ]
    return (
        f"- *PES against NRES*, over all K < T: the noise of an outer step's estimate is {words[0]}; that of the mean"
        f" over a trajectory, in which PES's windows average out, is {words[1]}."
    )


def _cost_to_succeed(study: dict, curves: list[dict], name: str, length: int) -> float | None:
    """Return the inner steps after which every seed stays near the least meta-loss, or None."""
    limit, costs = _NEAR * study["least_meta_loss"], []
    for run in _runs(curves, name, length):
        late = [index for index, row in enumerate(run) if not float(row["meta_loss"]) <= limit]
        if late and late[-1] == len(run) - 1:
            return None
        costs.append(float(run[late[-1] + 1]["cost"]))
    return max(costs)


def _readme(study: dict, summary: list[dict], curves: list[dict], table: str) -> str:
    environment = study["environment"]
    return f"""# estimators: which meta-gradients survive truncation, and at what cost?

Command: `{study["command"]}`
(rebuild this page and the figure from the CSV files: `l2o estimators --rebuild --out {study["directory"]}`)

## Verdict
{_verdict(study, summary, curves)}

## Table
Estimates of the gradient of the mean loss over T = {study["horizon"]} inner steps at θ = 0.5, divided by the exact
one ({study["exact"]:.4f}, by autograd through the whole horizon). The mean is over the windows of a trajectory and
over {study["repeats"]} trajectories of {study["particles"] // 2} pairs of particles. *Inner steps a step*: what the
window of one outer step costs, over all particles; a backward pass is not counted. Standard deviations, also over the
exact gradient, are those of one window's estimate (the noise alone: not what distinguishes early windows from late
ones) and of the mean over a trajectory. At K = {study["horizon"]} backpropagation is the full gradient, ES full ES.

{table}

![bias, spread and training](estimators.png)

## Method
Influence balancing (Tallec & Ollivier 2017, arXiv:1702.05043; for PES Vicol et al. 2021, arXiv:2112.13835): a linear
system of 23 units, s' = A s + θ (1, …, 1, −1, …, −1) with ten ones, A = ½ on and above the diagonal, s = 1 at first,
and the loss ½ (s¹ − 1)². θ is one number. Its influence on s¹ is positive for some 40 steps, negative in the long run.
Here the trajectories are reset after T steps and the meta-loss is the mean of all losses: a quadratic function of θ, so
that every unbiased estimator has the exact gradient as its expectation. σ = {study["sigma"]}, antithetic pairs.

Training is gradient descent on θ with step size {study["outer_lr"]:g} · K for every estimator,
{study["trajectories"]} trajectories, {study["seeds"]} seeds (lines: means, bands: range; numbers above: the worst
seed). The meta-loss is the mean over the θ passed during a trajectory. Success: every seed stays within
{_NEAR - 1:.0%} of the least meta-loss. The step size must shrink with K: at 0.002, with which they train at K = 20, PES
and NRES diverge at K = 1 (a test repeats it), for particles lag behind a θ that moves far within their trajectory.

Made on {environment["time"][:10]} at commit {environment["commit"]} with torch {environment["packages"]["torch"]},
{environment["machine"]["cpu"]}, {environment["threads"]} threads.
"""


def _rows(summary: list[dict], name: str) -> list[dict]:
    return [row for row in summary if row["estimator"] == name]


def _trained(curves: list[dict]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["estimator"], int(row["truncation"])) for row in curves))


def _runs(curves: list[dict], name: str, length: int) -> list[list[dict]]:
    """Return the rows of each seed."""
    rows = [row for row in curves if (row["estimator"], row["truncation"]) == (name, str(length))]
    return [[row for row in rows if row["seed"] == seed] for seed in dict.fromkeys(row["seed"] for row in rows)]


def _columns(rows: list[dict], *names: str) -> list[list[float]]:
    return [[float(row[name]) for row in rows] for name in names]


def _read_csv(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows
