"""Turn a benchmark's CSV files into a README and a figure; everything can be rebuilt from the files."""

import csv
import json
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
"""Okabe & Ito's palette, which colour-blind readers can tell apart."""
_STYLES = ("--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
"""Line styles of the classics; learned rules are solid."""


def write_report(directory: Path) -> str:
    """Write README.md and curves.png from summary.csv, curves.csv and protocol.json.

    Returns: the table, as Markdown.

    Raises:
        ValueError: if the directory was not written by `l2o benchmark`.
    """
    try:
        protocol = json.loads((directory / "protocol.json").read_text())
        summary, curves = _read_csv(directory / "summary.csv"), _read_csv(directory / "curves.csv")
        table = "\n\n".join(_table(setting, _rows(summary, setting)) for setting in protocol["settings"])
        readme = _readme(protocol, summary, table)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{directory} is not a benchmark's directory: {type(error).__name__}, {error}") from error
    draw_curves(protocol, summary, curves, directory / "curves.png")
    (directory / "README.md").write_text(readme)
    return table


def draw_curves(protocol: dict, summary: list[dict], curves: list[dict], path: Path) -> None:
    """Draw mean loss against step on a log axis, with the quartiles as a band, a panel per setting."""
    settings = list(protocol["settings"])
    columns = min(len(settings), 2)
    rows = math.ceil(len(settings) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(6.4 * columns, 4.4 * rows), squeeze=False, layout="constrained")
    styles = _line_styles(summary)
    for axis, setting in zip(axes.flat, settings, strict=False):
        _draw_panel(axis, setting, _rows(curves, setting), styles, protocol["sum_steps"])
    for axis in axes.flat[len(settings) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{protocol['name']}: mean loss and quartiles of {protocol['problems']} test problems")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_panel(axis, setting: str, rows: list[dict], styles: dict[str, dict], sum_steps: int) -> None:
    for method, style in styles.items():
        points = [row for row in rows if row["method"] == method]
        steps, mean, low, high = ([float(row[key]) for row in points] for key in ("step", "mean", "q25", "q75"))
        axis.plot(steps, mean, label=method, **style)
        axis.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
    if max(int(row["step"]) for row in rows) > sum_steps:
        axis.axvline(sum_steps, color="0.6", linewidth=0.8)
        note = {"va": "top", "ha": "right", "fontsize": 7, "color": "0.4", "rotation": 90}
        axis.annotate("trained and tuned up to here", (sum_steps, 0.98), xycoords=("data", "axes fraction"), **note)
    axis.set(yscale="log", xlabel="step", ylabel="loss", title=setting)
    axis.grid(which="major", alpha=0.3)


def _line_styles(summary: list[dict]) -> dict[str, dict]:
    kinds = {row["method"]: row["kind"] for row in summary}
    classics = [method for method, kind in kinds.items() if kind == "classic"]
    styles = {}
    for index, (method, kind) in enumerate(kinds.items()):
        line = "-" if kind == "learned" else _STYLES[classics.index(method) % len(_STYLES)]
        width = 2.2 if kind == "learned" else 1.4
        styles[method] = {"color": _COLOURS[index % len(_COLOURS)], "linestyle": line, "linewidth": width}
    return styles


def _table(setting: str, rows: list[dict]) -> str:
    lines = [
        f"**{setting}**\n",
        "| method | mean sum of losses | ± s.e. | median | final loss (sd) | wins | lr | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    best = min(_score(row) for row in rows)
    for row in sorted(rows, key=_score):
        name = f"**{row['method']}**" if row["kind"] == "learned" else row["method"]
        score = f"**{_score(row):.2f}**" if _score(row) == best else f"{_score(row):.2f}"
        wins = "–" if row["method"] == row["best_classic"] else f"{float(row['wins']):.0%}"
        cells = (name, score, f"{_standard_error(row):.2f}", f"{float(row['sum_loss_median']):.2f}",
                 f"{float(row['final_loss']):.3g} ({float(row['final_loss_sd']):.2g})", wins,
                 row["lr"] or "–", f"{float(row['cpu_s']):.2g}")  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _verdict(setting: str, rows: list[dict]) -> str:
    classic = min((row for row in rows if row["kind"] == "classic"), key=_score)
    sentences = []
    for row in (row for row in rows if row["kind"] == "learned"):
        if not math.isfinite(_score(row)):
            sentences.append(f"{row['method']} LOSES: it diverged on {row['diverged']} of {row['seeds']} problems.")
            continue
        change = _score(row) / _score(classic) - 1
        word = "wins" if change < 0 else "LOSES"
        diverged = f", {row['diverged']} runs diverged" if int(row["diverged"]) else ""
        sentences.append(
            f"{row['method']} {word}: {abs(change):.0%} {'below' if change < 0 else 'above'} {classic['method']}, the "
            f"best classic, in the mean sum of losses, lower on {float(row['wins']):.0%} of the problems{diverged}."
        )
    return f"- *{setting}*: " + " ".join(sentences)


def _readme(protocol: dict, summary: list[dict], table: str) -> str:
    environment = protocol["environment"]
    tried = [int(row["lrs_tried"]) for row in summary if row["kind"] == "classic"]
    verdicts = "\n".join(_verdict(setting, _rows(summary, setting)) for setting in protocol["settings"])
    directory = protocol.get("directory", f"results/{protocol['name']}")
    settings = "\n".join(f"- *{name}*: `{family}`" for name, family in protocol["settings"].items())
    return f"""# {protocol["name"]}: {protocol["question"]}

Command: `{protocol["command"]}`
(rebuild this page and the figure from the CSV files: `l2o report {directory}`)

## Verdict
{verdicts}

## Table
Losses of {protocol["problems"]} test problems per setting, the same problems and minibatches for every method. The
score is the sum of the losses at θ₀ … θ_{protocol["sum_steps"] - 1}; the final loss is the mean of the last ten of
{protocol["steps"]} steps. *Wins*: share of the problems with a lower sum than the best classic's. *CPU s*: per problem.

{table}

![curves](curves.png)

## Method
Every classic's learning rate minimises the mean sum of losses on {protocol["tuning_problems"]} problems of its own
(another seed, the outer_valid split), over a grid of four a decade from 3e-4 to 3, extended at the ends and refined
around the best: {min(tried)} to {max(tried)} learning rates a method and setting. Learned rules run as they are, at
lr 1. Lines are means, bands the quartiles.

Settings:
{settings}

Made on {environment["time"][:10]} at commit {environment["commit"]} with torch {environment["packages"]["torch"]},
{environment["machine"]["cpu"]}, {environment["threads"]} threads.
"""


def _rows(rows: list[dict], setting: str) -> list[dict]:
    return [row for row in rows if row["setting"] == setting]


def _score(row: dict) -> float:
    value = float(row["sum_loss"])
    return value if math.isfinite(value) else math.inf


def _standard_error(row: dict) -> float:
    return float(row["sum_loss_sd"]) / math.sqrt(int(row["seeds"]))


def _read_csv(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows
