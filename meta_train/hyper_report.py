"""Turn the files of `hyper_study` into a README and a figure; everything can be rebuilt from the files."""

import csv
import json
from pathlib import Path

from meta_train.hyper_figure import Row, cases, draw
from meta_train.run_directory import made_on

_AIM = 5.0
"""The implicit hypergradient is to be so many times as fast as unrolling."""
_NEAR = 0.1
"""The learned stopping time may cost so many dB against the best one."""
_LEVEL = 1.5
"""Memory that grows by at most this factor counts as independent of the number of iterations."""


def write_hyper_report(directory: Path) -> str:
    """Write README.md and hypergradients.png from summary.csv, curves.csv and study.json.

    Returns: the tables, as Markdown.

    Raises:
        ValueError: if the directory was not written by `l2o hypergradients`.
    """
    try:
        study = json.loads((directory / "study.json").read_text())
        summary, curves = (_read_csv(directory / f"{name}.csv") for name in ("summary", "curves"))
        parts = {part: [row for row in summary if row["part"] == part] for part in _SECTIONS}
        sections = {part: make(parts[part]) for part, make in _SECTIONS.items()}
        readme = _readme(study, sections)
        draw(summary, curves, directory / "hypergradients.png")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{directory} is not a study of hypergradients: {type(error).__name__}, {error}") from error
    (directory / "README.md").write_text(readme)
    return "\n\n".join(sections.values())


def value(rows: list[Row], case: str, method: str, quantity: str, setting: str = "") -> float:
    """Return the mean of one row.

    Raises:
        LookupError: if there is none.
    """
    return float(_row(rows, case, method, quantity, setting)["mean"])


def speed_up(rows: list[Row], case: str, method: str) -> float | None:
    """Return how many times as long a method takes to be as accurate as the implicit gradient at its last tolerance.

    Returns: None if the method never was so accurate.
    """
    target, seconds = [_measured(rows, case, "implicit", quantity)[-1] for quantity in ("error", "cpu_s")]
    found = zip(*(_measured(rows, case, method, quantity) for quantity in ("error", "cpu_s")), strict=True)
    good = [taken for error, taken in found if error <= target]
    return min(good) / seconds if good else None


def _logistic(rows: list[Row]) -> str:
    lines = [
        "| rows | method | validation loss | test loss | test accuracy | gain in test loss over the single decay |",
        "|---|---|---|---|---|---|",
    ]
    verdicts = []
    for case in cases(rows):
        for method in dict.fromkeys(row["method"] for row in rows):
            losses = [_cell(_row(rows, case, method, quantity)) for quantity in ("validation loss", "test loss")]
            accuracy = f"{value(rows, case, method, 'test accuracy'):.1%}"
            gain = _cell(_row(rows, case, method, "gain in test loss")) if method.startswith("per") else "–"
            lines.append(f"| {case} | {method} | {losses[0]} | {losses[1]} | {accuracy} | {gain} |")
        verdicts += [_gain_verdict(rows, case, method) for method in ("per feature", "per feature, refit")]
    return "\n".join([*verdicts, "", *lines])


def _gain_verdict(rows: list[Row], case: str, method: str) -> str:
    row = _row(rows, case, method, "gain in test loss")
    gain, error = float(row["mean"]), float(row["error"])
    word = "BETTER" if gain > 2 * error else "WORSE" if gain < -2 * error else "no clear difference"
    return f"- *{case}, {method}*: test loss lower by {gain:.4f} ± {error:.4f} than with the single decay: {word}."


def _speed(rows: list[Row]) -> str:
    lines, verdicts = ["| problem | method | tolerance or steps | error | CPU s |", "|---|---|---|---|---|"], []
    for case in cases(rows):
        mine = [row for row in rows if row["case"] == case]
        for row in (row for row in mine if row["quantity"] == "error"):
            taken = value(mine, case, row["method"], "cpu_s", row["setting"])
            lines.append(f"| {case} | {row['method']} | {row['setting']} | {float(row['mean']):.1e} | {taken:.2f} |")
        target = _measured(mine, case, "implicit", "error")[-1]
        for method in dict.fromkeys(row["method"] for row in mine if row["method"] != "implicit"):
            verdicts.append(_speed_verdict(mine, case, method, target))
    return "\n".join([*verdicts, "", *lines])


def _speed_verdict(rows: list[Row], case: str, method: str, target: float) -> str:
    times, lead = speed_up(rows, case, method), f"- *{case}, {method}*: "
    if times is None:
        least = min(_measured(rows, case, method, "error"))
        longest = max(_measured(rows, case, method, "cpu_s")) / _measured(rows, case, "implicit", "cpu_s")[-1]
        return f"{lead}never within {target:.1e}; at {least:.1e} after {longest:.1f} times the implicit one's time."
    word = "reached" if times >= _AIM else "NOT reached"
    return f"{lead}takes {times:.1f} times as long to be within {target:.1e} (aim: {_AIM:g}, {word})."


def _memory(rows: list[Row]) -> str:
    """Bytes and error by mode and number of iterations."""
    counts = list(dict.fromkeys(row["setting"] for row in rows))
    lines = [
        "| iterations | " + " | ".join(f"{int(count):,}" for count in counts) + " |",
        "|---" * (len(counts) + 1) + "|",
    ]
    verdicts = []
    for method in dict.fromkeys(row["method"] for row in rows):
        held, errors = (_measured(rows, "logistic", method, quantity) for quantity in ("peak_bytes", "error"))
        cells = [f"{size / 1e6:,.3f} MB, error {error:.1e}" for size, error in zip(held, errors, strict=True)]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
        verdicts.append(_memory_verdict(method, counts, held))
    return "\n".join([*verdicts, "", *lines])


def _memory_verdict(method: str, counts: list[str], held: list[float]) -> str:
    times, word = max(held) / min(held), "independent of"
    if times > _LEVEL:
        word = "grows with"
    ends = f"between {int(counts[0]):,} and {int(counts[-1]):,} of them"
    return f"- *{method}*: memory {word} the number of iterations (a factor of {times:.2f} {ends})."


def _polynomial(rows: list[Row]) -> str:
    lines = ["| regularisation | mean λ | validation rms error | test rms error |", "|---|---|---|---|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [
            value(rows, "wave", method, quantity) for quantity in ("mean λ", "validation rms error", "test rms error")
        ]
        lines.append(f"| {method} | {cells[0]:.2f} | {cells[1]:.3f} | {cells[2]:.3f} |")
    return "\n".join(lines)


def _flow(rows: list[Row]) -> str:
    quantities = ("noisy", "at T", "at the best T", "T", "best T", "cosine")
    lines = ["| case | crops | noisy, dB | at the learned T | at the best T | T | best T | cosine |", "|---" * 8 + "|"]
    verdicts = []
    for case in cases(rows):
        for split in ("train", "test"):
            found = {name: value(rows, case, "variational network", name, split) for name in quantities}
            levels = " | ".join(f"{found[name]:.2f}" for name in quantities[:3])
            rest = " | ".join(f"{found[name]:.3g}" for name in quantities[3:])
            lines.append(f"| {case} | {split} | {levels} | {rest} |")
            lost = found["at the best T"] - found["at T"]
            word = "near" if lost <= _NEAR else f"NOT within {_NEAR} dB of"
            verdicts.append(f"- *{case}, {split} crops*: {lost:.3f} dB below the best T of the grid: {word} it.")
    return "\n".join([*verdicts, "", *lines])


def _games(rows: list[Row]) -> str:
    lines = ["| method | factor a step, measured | in closed form |", "|---|---|---|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        rates = (value(rows, "bilinear", method, quantity) for quantity in ("rate", "theory"))
        lines.append(f"| {method} | " + " | ".join(f"{rate:.4f}" for rate in rates) + " |")
    return "\n".join(lines)


_SECTIONS = {
    "logistic": _logistic,
    "speed": _speed,
    "memory": _memory,
    "polynomial": _polynomial,
    "flow": _flow,
    "games": _games,
}


def _readme(study: dict, sections: dict[str, str]) -> str:
    config = study["config"]
    return f"""# hypergradients: what does learning hyperparameters by gradient gain, and what does it cost?

Command: `{study["command"]}`
(rebuild this page and the figure from the CSV files: `l2o hypergradients --rebuild --out {study["directory"]}`)

![eight panels](hypergradients.png)

## A weight decay for every feature
Logistic regression, {config["repeats"]} draws of rows each, mean ± standard error over them. *Single*: the best of 33
decays for all features, by the loss on validation and stop rows. *Per feature*: hypergradients on the validation rows
from there on, until the loss on the stop rows rises. *Refit*: the same decays, trained once more on all rows but the
test's: what a user would do in the end. The test rows choose nothing.

{sections["logistic"]}

## What a hypergradient costs
{config["speed_rows"]:,} rows, {config["speed_features"]:,} features, decay 10⁻³, float64, one thread, all in one run.
Error: against the hypergradient by a dense Hessian. *Unrolled*: backpropagation through gradient descent with step 1/L;
*accelerated*: Nesterov's, with the best momentum. Both are given L and μ of the Hessian at the minimum for nothing, and
the first number of steps that is as accurate as the implicit gradient at its last tolerance counts, the search for it
not. The implicit gradient solves the lower level from 0 by Newton's method and conjugate gradients.

{sections["speed"]}

## What a hypergradient holds in memory
{config["memory_rows"]} rows, {config["memory_features"]} features, decay 10⁻³, float64: gradient
descent with step 1/L from 0, and the hypergradient by every mode of `l2o.fixed_point`. Memory: the most bytes that
tensors held at once, forward and backward, beyond the problem's own. Error: against the hypergradient by a dense
Hessian; the implicit gradient is told to go on (`on_failure="ignore"`) where the iteration has not converged, which
it would refuse.

{sections["memory"]}

## Too little, too much and learned regularisation
A polynomial of degree 15 on 20 noisy points, 40 more to validate; test points have no noise.

{sections["polynomial"]}

## When to stop a gradient flow
Denoising of crops ({config["source"]}) by x' = −∇F(x) until T, in 8 Euler steps; 8 filters of 3×3 with their
potentials and T are learned at σ = 25, then, for σ = 15, T alone. Best T: the best of 41 from 1/8 to 4 times the
learned one. Cosine: of ∇F(x_T) and the gradient of the loss, 0 where T is optimal.

{sections["flow"]}

## Min–max
x ↦ (x − x*)ᵀA(y − y*) with 20 + 20 variables, singular values from 0.3 to 1, η = 0.6.

{sections["games"]}

{made_on(study["environment"])}
"""


def _row(rows: list[Row], case: str, method: str, quantity: str, setting: str = "") -> Row:
    wanted = (case, method, quantity, setting)
    for row in rows:
        if (row["case"], row["method"], row["quantity"], row["setting"]) == wanted:
            return row
    raise LookupError(f"no row for {wanted}")


def _measured(rows: list[Row], case: str, method: str, quantity: str) -> list[float]:
    wanted = (case, method, quantity)
    return [float(row["mean"]) for row in rows if (row["case"], row["method"], row["quantity"]) == wanted]


def _cell(row: Row) -> str:
    return f"{float(row['mean']):.4f} ± {float(row['error']):.4f}"


def _read_csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows
