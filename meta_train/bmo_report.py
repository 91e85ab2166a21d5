"""Turn the files of `bmo_study` into READMEs and figures; everything can be rebuilt from the files."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from meta_train.bmo_figure import draw_joint, draw_sparse_coding
from meta_train.bmo_sparse_coding import SETTLED
from meta_train.run_directory import made_on

Row = dict[str, str]

_JOINT, _CHANGE, _GAIN = 1e-4, SETTLED, 10.0
"""The aims: joint error at K = 100, relative change at the end, gain over LADMM after the trained layers."""
_DESCRIBED = {
    "u": "‖u^K − u*‖ / ‖u*‖",
    "omega": "‖ω − ω*‖ / ‖ω*‖",
    "value": "φ_K(ω) − φ*, relative",
    "slope": "‖∇φ(ω)‖, relative",
}
_MEASURED = {
    "suboptimality": "suboptimality",
    "worst": "worst signal",
    "change": "relative change, all signals as one vector",
    "mean_change": "mean of the signals",
    "median_change": "median signal",
    "moving": "signals above 1e-6",
}
_GKM = ("BMO", "UNH", "GKM with D_net")
_COMPARED = ("suboptimality", "mean_change", "change")
"""What comes with its least and largest value over the seeds."""


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
what of the inner loop is the paper's and what is ours. s_k = 5/(k + 1), of the paper's kind, leaves u^K about s_K away
from the fixed points, so that errors fall like 1/K. *Annealed* rows take the same loop with s_k = 2 (1 − k/K)⁴, which
is ours: s_k still goes to 0 in the loop, but for each K it is another sequence, of which the paper's theorem does not
speak. Where H = W is the metric of ℓ and T the projection in it, the descent along the set does not depend on the
distance from it, and errors of u and φ fall like K⁻⁴. With H = I they fall slowly. The lengths 5 and 2 and the power 4
were chosen on this problem, among few; 60 outer iterations leave ω about 1e-6 away.

{made_on(study["environment"])}
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
    ends = {f"{name}_{end}" for name in _COMPARED for end in ("low", "high")}
    study, summary, curves = _read(directory, {"method", "layer", *_MEASURED}, ends)
    header = ["method", "layer", *_MEASURED.values(), "training, CPU s"]
    cells = [[*(_measured(r, n) for n in _MEASURED), f"{float(r['train_cpu_s']):.0f}"] for r in summary]
    table = _table(header, [[r["method"], r["layer"], *more] for r, more in zip(summary, cells, strict=True)])
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
e, λ) of all {study["test_signals"]} test signals as one vector, in which the few slowest count most; its mean and
median over the signals, each by itself; and the share of the signals whose own is above {_CHANGE:g}. It is the larger
of two steps, as one that throws a leap back changes nothing. Means over
{len(study["seeds"])} training seeds, which say on which signals a rule is trained, with the least and the largest in
brackets; worst, median and share: the largest over the seeds. Everything is measured in float64, and so are the test
signals made: rounding x to float32 would be one more, dense, error to code.

{table}

![suboptimality and relative change over layers](sparse-coding.png)

## Method
min ‖z‖₁ + ‖e‖₁ s.t. Az + e = x, A {task["rows"]} × {task["columns"]} Gaussian with unit columns; z and e are Bernoulli
({task["density"]}) Gaussian. **The density was chosen after trials**: 0.1, that of published experiments on 250 × 500,
was tried first, then 0.03, which is easier. With 0.1 half of the linear programs have other solutions than (z, e). This
table says nothing about other densities. {study["layers"]} layers are trained, on {study["plans"]["BMO"]["signals"]:,}
signals, with the same loss for all (`meta_train/bmo_training.py`): the objective F after each layer, relative to its
value at the code behind the signal, so that the codes enter through that number only.

Numbers of iterations are such that training takes about the same CPU time, which the table states; tuning comes on top:
{_spent(study["plans"])}.

- *LADMM*: {_settings(rules["LADMM"])}, the best at {study["layers"]} steps of a grid in which convergence is proven.
- *LADMM beyond its proof*: {_settings(rules["LADMM beyond its proof"])}, of longer steps, for which nothing is proven.
- *D-LADMM*: matrices, thresholds and penalties of every layer are learned; later steps use the last layer's. The loss
  sees the {study["layers"]} layers. The learning rate is the best of {_numbers(study["rates"])} in short trials.
- *D-LADMM, loss to 2K*: the same, but the loss sees as many steps past the layers as there are layers, as it does for
  the rows below; its learning rate is tuned in the same way.
- *UNH*: GKM with D_num = linearised ALM, whose penalty matrix, steps and relaxation are learned in every layer, D_net =
  Id and μ = 0: plain unrolling. Every layer is averaged in its own metric whatever is learned. The step past the layers
  is learned too, and taken up to layer {2 * study["layers"]}, as far as training looks. **From there on nothing is
  learned**: D_num with fixed steps, balanced for each signal, with Anderson's leaps and a safeguard that keeps its
  residual going down (`l2o/rules/gkm_accelerated.py`, `meta_train/bmo_tail.py`): one evaluation of D_num a layer, in
  four to six times its time.
- *GKM with D_net*: the same with a learned nonexpansive network on the multipliers before each of the
  {study["layers"]} layers (`l2o/rules/gkm_network.py`), none after them; μ = 0.
- *BMO*: UNH's T inside the paper's aggregation, μ = 0.1, s_k = s/(k + 1) with s learned, and ℓ the smoothed objective;
  s_k = 0 past the layers. The inner solutions are (nearly always) unique, so there is nothing to select here: what it
  gains or loses against UNH is the price or use of the aggregation alone.
- Controls: *BMO, plain end* takes plain steps u ← D_num(u) from layer {2 * study["layers"]} on; *D-LADMM, same end* and
  *LADMM, same end* change there to the end of UNH and BMO. The end finds the last digits from any start: what is
  learned shows up to layer {2 * study["layers"]}, and in how near the end begins.

{made_on(study["environment"])}
""")
    return table


def _measured(row: Row, name: str) -> str:
    value = f"{float(row[name]):.1e}"
    if name not in _COMPARED or int(row["n_seeds"]) == 1:
        return value
    return f"{value} ({float(row[f'{name}_low']):.1e}–{float(row[f'{name}_high']):.1e})"


def _sparse_verdict(summary: list[Row], layers: int) -> str:
    """What every seed reaches: the worst one decides."""

    def at(method: str, layer: int, name: str) -> float:
        return next(float(r[name]) for r in summary if r["method"] == method and int(r["layer"]) == layer)

    last = max(int(row["layer"]) for row in summary)
    later = sorted({int(row["layer"]) for row in summary if int(row["layer"]) >= 2 * layers})
    lines = []
    for method in _GKM:
        for classic in ("LADMM", "LADMM beyond its proof"):
            best = at(classic, layers, "suboptimality")
            least, most = (best / at(method, layers, f"suboptimality_{end}") for end in ("high", "low"))
            word = "reaches" if least >= _GAIN else "does NOT reach"
            lines.append(
                f"- {method} is {least:.1f} to {most:.1f} × below {classic} at {layers} layers; {word} {_GAIN:g} ×."
            )
        for baseline in ("D-LADMM", "D-LADMM, loss to 2K"):
            high, low = "suboptimality_high", "suboptimality_low"
            below = [layer for layer in later if at(method, layer, high) < at(baseline, layer, low)]
            found, tried = ", ".join(map(str, below)) or "none", ", ".join(map(str, later))
            lines.append(f"- {method} is below {baseline} with every seed at {found} of the layers {tried}.")
    for method in dict.fromkeys(row["method"] for row in summary):
        least, most = (at(method, last, f"change_{end}") for end in ("low", "high"))
        low, high = (at(method, last, f"mean_change_{end}") for end in ("low", "high"))
        word = "at most" if most <= _CHANGE else "NOT down to"
        end = f", from {2 * layers} on by the end, which is not learned" if method in _GKM else ""
        lines.append(
            f"- Relative change of {method} at {last} layers{end}: {least:.1e} to {most:.1e}, {word} {_CHANGE:g}; "
            f"mean of the signals {low:.1e} to {high:.1e}, {at(method, last, 'moving'):.1%} of them above."
        )
    return "\n".join(lines)


def _spent(plans: dict) -> str:
    parts = []
    for name, plan in plans.items():
        tuning = f", tuning {plan['tuning_cpu_s']:.0f} CPU s" if plan["tuning_cpu_s"] else ""
        parts.append(f"{name} {plan['iterations']} iterations, lr {plan['lr']:g}{tuning}")
    return "; ".join(parts)


def _settings(config: dict) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in config.items())


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _read(directory: Path, columns: set[str], of_summary: Iterable[str] = ()) -> tuple[dict, list[Row], list[Row]]:
    try:
        study = json.loads((directory / "study.json").read_text())
        tables = []
        for name in ("summary", "curves"):
            with (directory / f"{name}.csv").open(newline="") as file:
                tables.append(list(csv.DictReader(file)))
            needed = columns.union(of_summary if name == "summary" else ())
            if not tables[-1] or not needed <= set(tables[-1][0]):
                raise ValueError(f"{name}.csv needs rows with {', '.join(sorted(needed))}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory} is no such study: {type(error).__name__}, {error}") from error
    return study, tables[0], tables[1]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
