"""Turn the files of `estimator_study` into a README and a figure; everything can be rebuilt from the files."""

import csv
import json
import math
from pathlib import Path

from meta_train.estimator_figure import LABELS, OUTSIDE, Row, draw, runs, trained
from meta_train.run_directory import made_on


def write_estimator_report(directory: Path) -> str:
    """Write README.md and estimators.png from summary.csv, curves.csv, landscape.csv and study.json.

    Returns: the tables, as Markdown.

    Raises:
        ValueError: if the directory was not written by `l2o estimators`.
    """
    try:
        study = json.loads((directory / "study.json").read_text())
        tables = {name: _read_csv(directory / f"{name}.csv") for name in ("summary", "curves", "landscape")}
        markdown = {name: _table(_of(tables["summary"], name)) for name in study["problems"]}
        readme = _readme(study, tables, markdown)
    except (AttributeError, OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{directory} is not an estimator study: {type(error).__name__}, {error}") from error
    draw(study, tables, directory / "estimators.png")
    (directory / "README.md").write_text(readme)
    return "\n\n".join(f"{name}\n\n{table}" for name, table in markdown.items())


def _table(summary: list[Row]) -> str:
    planar = bool(summary[0]["across"])
    header = ["estimator", "K", "inner steps a step", "mean / exact", "± s.e."]
    header += ["across", "± s.e."] if planar else []
    header += ["bias in s.e.", "sd, step", "sd, trajectory"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in summary:
        noisy = float(row["standard_error"]) > 0
        cells = [LABELS[row["estimator"]], row["truncation"], f"{int(row['cost_outer_step']):,}"]
        for value, error in (("relative_mean", "standard_error"), ("across", "across_error"))[: 1 + planar]:
            cells += [f"{float(row[value]):.3f}", f"{float(row[error]):.3f}" if noisy else "–"]
        cells += [f"{_bias(row):+.1f}" if noisy else "–"]
        cells += [f"{float(row[name]):.3f}" for name in ("sd_outer_step", "sd_trajectory")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _bias(row: Row) -> float:
    """Bias in standard errors, along the exact gradient or across it, whichever is more; without noise, 0 or ±∞."""
    found = [_in_errors(float(row["relative_mean"]) - 1, float(row["standard_error"]))]
    if row["across"]:
        found.append(_in_errors(float(row["across"]), float(row["across_error"])))
    return max(found, key=abs)


def _in_errors(bias: float, error: float) -> float:
    if error:
        return bias / error
    return 0.0 if abs(bias) < 1e-4 else math.copysign(math.inf, bias)  # 1e-4: the digits written


def _verdict(particles: int, facts: dict, summary: list[Row], curves: list[Row]) -> str:
    lines = [_judge_bias(label, _rows(summary, name)) for name, label in LABELS.items()]
    lines.append(_compare_spread(summary))
    costs = {setting: _cost_to_succeed(facts, curves, *setting) for setting in trained(curves)}
    for (name, length), cost in costs.items():
        final = max(float(run[-1]["meta_loss"]) for run in runs(curves, name, length))
        word = f"succeeds after {cost:,.0f} inner steps" if cost else "FAILS"
        lines.append(f"- *Training with {LABELS[name]}, K = {length}*: {word}; final meta-loss {final:.4g}.")
    full_gradient = costs.get(("truncated", facts["horizon"]))
    strategies = [cost for (name, _), cost in costs.items() if name != "truncated" and cost]
    if full_gradient and strategies:
        ratio = min(strategies) / full_gradient
        lines.append(
            f"- *Cost*: the cheapest evolution strategy takes {ratio:,.0f} times the inner steps of the full gradient"
            f" ({particles} particles against one trajectory of a task without noise)."
            + (" Where the whole horizon can be differentiated, it does NOT pay here." if ratio > 1 else "")
        )
    elif strategies and ("truncated", facts["horizon"]) in costs:
        lines.append(
            "- *Cost*: the full gradient, exact as it is, does NOT train here, and an evolution strategy does: it pays."
        )
    return "\n".join(lines)


def _judge_bias(label: str, rows: list[Row]) -> str:
    outside = [row["truncation"] for row in rows if abs(_bias(row)) > OUTSIDE]
    wrong = [row["truncation"] for row in rows if float(row["relative_mean"]) < 0]
    if not outside:
        return (
            f"- *{label}*: no bias found at any K, at most {max(abs(_bias(row)) for row in rows):.1f} standard errors."
        )
    signs = f"; the wrong sign at K = {', '.join(wrong)}" if wrong else ""
    return f"- *{label}*: BIASED at K = {', '.join(outside)}{signs}."


def _compare_spread(summary: list[Row]) -> str:
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


def _cost_to_succeed(facts: dict, curves: list[Row], name: str, length: int) -> float | None:
    """Return the inner steps after which every seed stays near the least meta-loss, or None."""
    limit, costs = facts["near"] * facts["least_meta_loss"], []
    for run in runs(curves, name, length):
        late = [index for index, row in enumerate(run) if not float(row["meta_loss"]) <= limit]
        if late and late[-1] == len(run) - 1:
            return None
        costs.append(float(run[late[-1] + 1 if late else 0]["cost"]))
    return max(costs)


def _readme(study: dict, tables: dict[str, list[Row]], markdown: dict[str, str]) -> str:
    parts = []
    for name, facts in study["problems"].items():
        summary, curves = (_of(tables[table], name) for table in ("summary", "curves"))
        verdict = _verdict(study["particles"], facts, summary, curves)
        parts.append(f"## {name.capitalize()}\n{_ABOUT.get(name, '')}\n\n{_setting(facts)}\n\n{verdict}")
        parts.append(markdown[name])
    body = "\n\n".join(parts)
    return f"""# estimators: which meta-gradients survive truncation, and at what cost?

Command: `{study["command"]}`
(rebuild this page and the figure from the CSV files: `l2o estimators --rebuild --out {study["directory"]}`)

![bias, noise and training](estimators.png)

{body}

## Method
Estimates of the gradient of the mean loss over T inner steps at the start, in units of the exact gradient's length (by
autograd through the whole horizon). *Mean / exact* is the part along the exact gradient, *across* the part at right
angles to it, where θ has two components. The mean is over the windows of a trajectory and over {study["repeats"]}
trajectories of {study["particles"] // 2} antithetic pairs of particles. *Inner steps a step*: what the window of one
outer step costs, over all particles; a backward pass is not counted. *Bias in s.e.*: along or across, whichever is
more. Standard deviations are those of one window's estimate (the noise alone: not what distinguishes early windows from
late ones) and of the mean over a trajectory. At K = T backpropagation is the full gradient, ES full ES.

Training: lines are means over seeds, bands ranges; numbers above are of the worst seed. The meta-loss is the mean over
the θ passed during a trajectory. The outer step size is proportional to K, so that θ moves as far in a trajectory
whatever K is: on influence balancing, at a step size of 0.002, with which they train at K = 20, PES and NRES diverge at
K = 1 (a test repeats it), for particles lag behind a θ that moves far within their trajectory.

{made_on(study["environment"])}
"""


_ABOUT = {
    "toy regression": """\
Two learning rates, the two-dimensional problem of the PES paper (Vicol et al. 2021, arXiv:2112.13835, §5.1): gradient
descent on f(x) = √(x₁² + 5) − √5 + sin²(x₂) exp(−5 x₁²) + |x₂ − 100| / 4 from (1, 1), with a step size that moves
linearly from exp θ₁ to exp θ₂ over T steps. Training is Adam(0.99, 0.999) with step size 0.001 · K, as in the paper's
code at K = 10. A short window sees little of what θ brings about; for large θ the trajectory is chaotic and its
gradient, although exact, of no use.""",
    "influence balancing": """\
Tallec & Ollivier 2017, arXiv:1702.05043; for PES Vicol et al. 2021, arXiv:2112.13835: a linear system of 23 units,
s' = A s + θ (1, …, 1, −1, …, −1) with ten ones, A = ½ on and above the diagonal, s = 1 at first, and the loss
½ (s¹ − 1)². θ is one number, in the paper too. Its influence on s¹ is positive for some 40 steps, negative in the long
run. Here the trajectories are reset after T steps and the meta-loss is the mean of all losses. Training is gradient
descent with step size 2.5e-5 · K.""",
}


def _setting(facts: dict) -> str:
    start, exact = (", ".join(f"{value:.4g}" for value in facts[name]) for name in ("start", "exact"))
    return f"""\
T = {facts["horizon"]}, start at θ = ({start}), where the exact gradient is ({exact}); σ = {facts["sigma"]:g}, whose
smoothing alone moves the gradient by {facts["smoothing_moves"]:.1%} (Gauss-Hermite quadrature). Training with
σ = {facts["training_sigma"]:g}, {facts["trajectories"]} trajectories, {facts["seeds"]} seeds; success: every seed \
stays within {facts["near"] - 1:.0%} of the
least meta-loss on a grid, {facts["least_meta_loss"]:.4g}."""


def _of(rows: list[Row], problem: str) -> list[Row]:
    return [row for row in rows if row["problem"] == problem]


def _rows(summary: list[Row], name: str) -> list[Row]:
    return [row for row in summary if row["estimator"] == name]


def _read_csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows
