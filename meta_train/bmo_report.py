"""Turn the files of `bmo_study` into READMEs and figures; everything can be rebuilt from the files."""

import csv
import json
from pathlib import Path

from meta_train.bmo_figure import draw_joint, draw_sparse_coding

Row = dict[str, str]

_JOINT, _CHANGE, _GAIN = 1e-4, 1e-6, 10.0
"""The aims: joint error at K = 100, relative change at the end, gain over LADMM after the trained layers."""
_DESCRIBED = {
    "u": "‖u^K − u*‖ / ‖u*‖",
    "omega": "‖ω − ω*‖ / ‖ω*‖",
    "value": "φ_K(ω) − φ*, relative",
    "slope": "‖∇φ(ω)‖, relative",
}


def write_joint_report(directory: Path) -> str:
    """Write README.md and joint.png from summary.csv, curves.csv and study.json; return the table, as Markdown.

    Raises:
        ValueError: if the directory was not written by `l2o benchmark bilevel`.
    """
    study, summary, curves = _read(directory, {"method", "K", *_DESCRIBED})
    header = ["method", "K", *_DESCRIBED.values()]
    table = _table(
        header, [[row["method"], row["K"], *(f"{float(row[n]):.1e}" for n in _DESCRIBED)] for row in summary]
    )
    draw_joint(study, summary, curves, directory / "joint.png")
    (directory / "README.md").write_text(f"""# bilevel: do training and hyper-training converge together?

Command: `{study["command"]}`

## Verdict
{_joint_verdict(summary)}

## Table
After {study["outer"]} outer iterations from ω = 0. ∇φ is that of the true φ, in units of its norm at ω = 0.

{table}

![errors over outer iterations, and over K](joint.png)

## Method
`meta_train/bilevel_problem.py`: T(u, ω) is the projection onto {{u : Au = b + Cω}}, whose fixed points are not unique;
ℓ(u, ω) = ½‖u − t‖²_W + ½ρ‖ω‖² in 20 + 3 unknowns, so that u*, ω* and φ have closed forms. `meta_train/bilevel.py` tells
what of the inner loop is the paper's and what is ours: s_k = s/(k + 1) leaves u^K about s_K away from the fixed points,
so errors fall like 1/K. The last {study["finish"]} steps (at most K/4) of "ends with T" take that away, exactly so
where H = W is the metric of ℓ: then the descent along the set does not depend on the distance from it, and T is the
projection in that metric.

{_made(study)}
""")
    return table


def _joint_verdict(summary: list[Row]) -> str:
    most = max(int(row["K"]) for row in summary)
    lines = []
    for row in summary:
        if int(row["K"]) == most:
            joint = max(float(row[name]) for name in _DESCRIBED)
            word = "reaches" if joint <= _JOINT else "does NOT reach"
            lines.append(f"- *{row['method']}*, K = {most}: largest of the four errors {joint:.1e}; {word} {_JOINT:g}.")
    return "\n".join(lines)


def write_sparse_coding_report(directory: Path) -> str:
    """Write README.md and sparse-coding.png from summary.csv, curves.csv and study.json; return the table, as Markdown.

    Raises:
        ValueError: if the directory was not written by `l2o benchmark bmo-sparse-coding`.
    """
    study, summary, curves = _read(directory, {"method", "layer", "suboptimality", "worst", "change", "median_change"})
    header = ["method", "layer", "suboptimality", "worst signal", "relative change", "median signal's"]
    names = ("suboptimality", "worst", "change", "median_change")
    table = _table(header, [[r["method"], r["layer"], *(f"{float(r[n]):.1e}" for n in names)] for r in summary])
    draw_sparse_coding(study, curves, directory / "sparse-coding.png")
    task, rules = study["task"], study["rules"]
    (
        directory / "README.md"
    ).write_text(f"""# bmo-sparse-coding: does a learned rule go on converging beyond its layers?

Command: `{study["command"]}`

## Verdict
{_sparse_verdict(summary, study["layers"])}

## Table
Suboptimality: (F(z) − F*) / F*, F(z) = ‖z‖₁ + ‖x − Az‖₁, mean over {study["certified"]} of the test signals, whose F*
is certified by duality to {study["relative_gap"]:.1e}, relative. Relative change: ‖u^k+1 − u^k‖ / ‖u^k‖ with u = (z,
e, λ) of all {study["test_signals"]} test signals as one vector, and of the median signal.

{table}

![suboptimality and relative change over layers](sparse-coding.png)

## Method
min ‖z‖₁ + ‖e‖₁ s.t. Az + e = x, A {task["rows"]} × {task["columns"]} Gaussian with unit columns; z and e are Bernoulli
({task["density"]}) Gaussian. With a density of 0.1 half of the linear programs have other solutions than (z, e) and
every method here is slow; this density is below that limit. {study["layers"]} layers are trained, the signals are
{study["plans"]["BMO"]["signals"]:,} at the start of training, the loss is unsupervised but for its scale
(`meta_train/bmo_training.py`).

- *LADMM*: {rules["LADMM"]}, the best at {study["layers"]} steps of a grid in which convergence is proven.
- *LADMM beyond its proof*: {rules["LADMM beyond its proof"]}, of longer steps, for which nothing is proven.
- *D-LADMM*: matrices, thresholds and penalties of every layer are learned; later steps use the last layer's.
- *BMO*: GKM with D_num = linearised ALM, whose penalty matrix, steps and relaxation are learned in every layer, D_net =
  Id and μ = 0 (the inner solutions are unique, so there is nothing to select). Every layer is averaged in its own
  metric whatever is learned, and the step past the layers, chosen of a grid on tuning signals, stays the same: it
  converges.

{_made(study)}
""")
    return table


def _sparse_verdict(summary: list[Row], layers: int) -> str:
    def at(method: str, layer: int, name: str = "suboptimality") -> float:
        return next(float(r[name]) for r in summary if r["method"] == method and int(r["layer"]) == layer)

    last = max(int(row["layer"]) for row in summary)
    lines = []
    for classic in ("LADMM", "LADMM beyond its proof"):
        gain = at(classic, layers) / at("BMO", layers)
        reached = "reaches" if gain >= _GAIN else "does NOT reach"
        lines.append(f"- BMO is {gain:.1f} × below {classic} at {layers} layers; {reached} {_GAIN:g} ×.")
    later = sorted({int(row["layer"]) for row in summary if int(row["layer"]) >= 2 * layers})
    below = [layer for layer in later if at("BMO", layer) < at("D-LADMM", layer)]
    lines.append(
        f"- BMO is below D-LADMM at {', '.join(map(str, below)) or 'none'} of the layers {', '.join(map(str, later))}."
    )
    for method in ("BMO", "D-LADMM"):
        change = at(method, last, "change")
        word = "at most" if change <= _CHANGE else "NOT down to"
        lines.append(f"- Relative change of {method} at {last} layers: {change:.1e}, {word} {_CHANGE:g}.")
    return "\n".join(lines)


def _read(directory: Path, columns: set[str]) -> tuple[dict, list[Row], list[Row]]:
    try:
        study = json.loads((directory / "study.json").read_text())
        tables = []
        for name in ("summary", "curves"):
            with (directory / f"{name}.csv").open(newline="") as file:
                tables.append(list(csv.DictReader(file)))
            if not tables[-1] or not columns <= set(tables[-1][0]):
                raise ValueError(f"{name}.csv needs rows with {', '.join(sorted(columns))}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory} is no such study: {type(error).__name__}, {error}") from error
    return study, tables[0], tables[1]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _made(study: dict) -> str:
    environment = study["environment"]
    return (
        f"Made on {environment['time'][:10]} at commit {environment['commit']} with torch "
        f"{environment['packages']['torch']}, {environment['machine']['cpu']}, {environment['threads']} threads."
    )
