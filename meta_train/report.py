"""Turn a benchmark's CSV files into a README and a figure; everything can be rebuilt from the files."""

import math
from pathlib import Path
from typing import Any

from meta_train.report_figure import draw_curves
from meta_train.report_results import Row, best_classic, naming, read_results, rows_of, score, standard_error
from meta_train.run_directory import made_on


def write_report(directory: Path) -> str:
    """Write README.md and curves.png from summary.csv, curves.csv and protocol.json.

    Returns: the table, as Markdown.

    Raises:
        ValueError: if the directory was not written by `l2o benchmark`.
    """
    results = read_results(directory)
    with naming(directory):
        table = "\n\n".join(_table(setting, rows_of(results.summary, setting)) for setting in results.settings)
        readme = _readme(results.protocol, results.summary, table)
        draw_curves(results, directory / "curves.png")
    (directory / "README.md").write_text(readme)
    return table


def verdict(setting: str, rows: list[Row]) -> str:
    """Return who won on one setting, and by how much, as an item of a Markdown list."""
    classic = best_classic(rows)
    sentences = []
    for row in (row for row in rows if row["kind"] == "learned"):
        if not math.isfinite(score(row)):
            sentences.append(f"**{row['method']}** LOSES: it diverged on {row['diverged']} of {row['seeds']} problems.")
            continue
        change = score(row) / score(classic) - 1
        word = "wins" if change < 0 else "LOSES"
        diverged = f", {row['diverged']} runs diverged" if int(row["diverged"]) else ""
        sentences.append(
            f"**{row['method']}** {word}: {abs(change):.0%} {'below' if change < 0 else 'above'} {classic['method']}, "
            f"the best classic, in the mean sum of losses, lower on {float(row['wins']):.0%} of the problems{diverged}."
        )
    return f"- *{setting}*: " + " ".join(sentences)


def _table(setting: str, rows: list[Row]) -> str:
    lines = [
        f"**{setting}**\n",
        "| method | mean sum of losses | ± s.e. | median | final loss (sd) | wins | lr | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    best = min(score(row) for row in rows)
    for row in sorted(rows, key=score):
        name = f"**{row['method']}**" if row["kind"] == "learned" else row["method"]
        points = f"**{score(row):.2f}**" if score(row) == best else f"{score(row):.2f}"
        wins = "–" if row["method"] == row["best_classic"] else f"{float(row['wins']):.0%}"
        cells = (name, points, f"{standard_error(row):.2f}", f"{float(row['sum_loss_median']):.2f}",
                 f"{float(row['final_loss']):.3g} ({float(row['final_loss_sd']):.2g})", wins,
                 row["lr"] or "–", f"{float(row['cpu_s']):.2g}")  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _readme(protocol: dict[str, Any], summary: list[Row], table: str) -> str:
    tried = [int(row["lrs_tried"]) for row in summary if int(row["lrs_tried"])]
    verdicts = "\n".join(verdict(setting, rows_of(summary, setting)) for setting in protocol["settings"])
    directory = protocol.get("directory", f"results/{protocol['name']}")
    last_summed = f"θ{_subscript(protocol['sum_steps'] - 1)}"
    loss = "A loss is (f − f*) / mean f*, its mean the ratio of the means.\n" if protocol.get("relative") else ""
    note = protocol["note"] + "\n" if protocol.get("note") else ""
    settings = "\n".join(f"- *{name}*: `{family}`" for name, family in protocol["settings"].items())
    return f"""# {protocol["name"]}: {protocol["question"]}

Command: `{protocol["command"]}`
(rebuild this page and the figure from the CSV files: `l2o report {directory}`)

## Verdict
{verdicts}

## Table
Losses of {protocol["problems"]} test problems per setting, the same problems and minibatches for every method. The
score is the sum of the losses at θ₀ … {last_summed}; the final loss is the mean of the last ten of
{protocol["steps"]} steps. *Wins*: share of the problems with a lower sum than the best classic's. *CPU s*: per problem.
{loss}{note}
{table}

![curves](curves.png)

## Method
Every classic's learning rate minimises the mean sum of losses on {protocol["tuning_problems"]} problems of its own
(another seed, the outer_valid split), over a grid of four a decade from 3e-4 to 3, extended at the ends and refined
around the best: {min(tried)} to {max(tried)} learning rates a method and setting. Learned rules run as they are, at
lr 1. Lines are means; bands, of learned rules and the best classic alone, the quartiles.

Settings:
{settings}

{made_on(protocol["environment"])}
"""


def _subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
