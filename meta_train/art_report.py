"""Turn the files of `art_benchmark` into a README and a figure."""

import csv
import json
import math
from pathlib import Path
from typing import Any

from meta_train import art_settings as chosen
from meta_train.art_figure import draw_curves
from meta_train.run_directory import made_on

Row = dict[str, str]


def write_art_report(directory: Path) -> str:
    """Write README.md and curves.png from summary.csv, curves.csv, paired.csv, tuning.csv and study.json.

    Returns: the tables, as Markdown.

    Raises:
        ValueError: if the directory was not written by `l2o benchmark neural-art`.
    """
    try:
        facts = json.loads((directory / "study.json").read_text())
        tables = {name: _read(directory / f"{name}.csv") for name in ("summary", "curves", "paired", "tuning")}
        text = "\n\n".join(_table(name, of(tables["summary"], name)) for name in facts["settings"])
        readme = _readme(facts, tables, text)
        draw_curves(tables["curves"], tables["summary"], directory / "curves.png")
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{directory} was not written by l2o benchmark neural-art: {error!r}") from error
    (directory / "README.md").write_text(readme)
    return text


def of(rows: list[Row], setting: str, **wanted: Any) -> list[Row]:
    """Return the rows of a setting with the given values."""
    wanted |= {"setting": setting}
    return [row for row in rows if all(row[key] == str(value) for key, value in wanted.items())]


def verdicts(setting: str, tables: dict[str, list[Row]]) -> list[str]:
    """Return what a setting shows of each learned rule, as sentences."""
    summary = of(tables["summary"], setting)
    first_order = [row for row in summary if row["method"] in _first_order()]
    sentences = []
    for mine in (row for row in summary if row["kind"] == "learned"):
        name, last = mine["method"], mine["steps"]
        best = min(first_order, key=lambda row: _number(row["log_final"]))
        early, late = chosen.COUNTS[-2:]
        half, whole = _number(mine[f"log_{early}"]), min(_number(row[f"log_{late}"]) for row in first_order)
        ends = of(tables["paired"], setting, method=name, against=best["method"], step=last)[0]
        sentences.append(
            f"**{name}** at {last} steps: log loss {_number(mine['log_final']):.3f}, best first-order classic "
            f"{best['method']} {_number(best['log_final']):.3f}; difference {_interval(ends)}, lower on "
            f"{float(ends['lower_on']):.0%} of the pairs; {mine['diverged']} of {mine['seeds']} runs diverged. "
            f"At {early} steps: {half:.3f}, {'not above' if half <= whole else 'ABOVE'} the best first-order classic "
            f"at {late} ({whole:.3f}). {_everywhere(setting, name, tables)}{_beside_control(setting, name, tables)}"
        )
    return sentences


def _everywhere(setting: str, name: str, tables: dict[str, list[Row]]) -> str:
    """Say at which of the steps 16 … last the rule's mean is above a first-order classic's."""
    rows = [
        row for row in of(tables["paired"], setting, method=name)
        if int(row["step"]) >= chosen.COUNTS[0] and row["against"] in _first_order()
    ]  # fmt: skip
    above = sorted({int(row["step"]) for row in rows if not float(row["difference"]) < 0})
    worst = max(rows, key=lambda row: _number(row["difference"]))
    span = f"{chosen.COUNTS[0]} to {max(int(row['step']) for row in rows)}"
    closest = f"closest at {worst['step']} against {worst['against']}: {_interval(worst)}"
    if not above:
        return f"Below every first-order classic at every step from {span} ({closest})."
    span = f"{len(above)} of the steps {span}, between {above[0]} and {above[-1]}"
    return f"ABOVE one of them at {span} (most {closest.removeprefix('closest ')})."


def _beside_control(setting: str, name: str, tables: dict[str, list[Row]]) -> str:
    """Say what the rule gains on the filter without learning, where that takes part."""
    rows = of(tables["paired"], setting, method=name, against=chosen.CONTROL)
    found = [_interval(row) + f" at {row['step']}" for row in rows if int(row["step"]) in chosen.COUNTS[-2:]]
    return f" Against *{chosen.CONTROL}*: {', '.join(found)}." if found else ""


def _first_order() -> set[str]:
    names = {method for setting in chosen.SETTINGS.values() for method in setting.methods} - {"L-BFGS", chosen.CONTROL}
    return names | {f"{name} (end)" for name in names}


def _table(setting: str, rows: list[Row]) -> str:
    counts = "".join(f" {count} |" for count in chosen.COUNTS)
    lines = [
        f"**{setting}** ({rows[0]['seeds']} pairs, {rows[0]['steps']} steps)\n",
        f"| method | mean of log f | loss at{counts} {rows[0]['steps']} steps (sd of log) | options | tried | CPU s |",
        "|---" * (6 + len(chosen.COUNTS)) + "|",
    ]
    for row in sorted(rows, key=lambda row: _number(row["mean_log"])):
        name = f"**{row['method']}**" if row["kind"] == "learned" else row["method"]
        losses = [f"{math.exp(_number(row[f'log_{count}'])):.3f}" for count in chosen.COUNTS]
        final = f"{math.exp(_number(row['log_final'])):.3f} ({float(row['log_final_sd']):.2f})"
        cells = [
            name, f"{_number(row['mean_log']):.3f}", *losses, final, row["options"] or "–", row["tried"],
            f"{float(row['cpu_s']):.2g}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _paired(setting: str, tables: dict[str, list[Row]]) -> str:
    counts = [*chosen.COUNTS, *({int(of(tables["summary"], setting)[0]["steps"])} - set(chosen.COUNTS))]
    lines = [
        f"**{setting}**\n",
        "| rule | against | " + " | ".join(map(str, counts)) + " |",
        "|---" * (2 + len(counts)) + "|",
    ]
    pairs = dict.fromkeys((row["method"], row["against"]) for row in of(tables["paired"], setting))
    for mine, other in pairs:
        cells = [
            _interval(of(tables["paired"], setting, method=mine, against=other, step=count)[0]) for count in counts
        ]
        lines.append(f"| {mine} | {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _readme(facts: dict[str, Any], tables: dict[str, list[Row]], table: str) -> str:
    environment, settings = facts["environment"], facts["settings"]
    found = "\n".join(f"- *{name}*: {text}" for name in settings for text in verdicts(name, tables))
    paired = "\n\n".join(_paired(name, tables) for name in settings)
    families = "\n".join(f"- *{name}*: `{facts['family']}`" for name, facts in settings.items())
    tuning = ", ".join(f"{facts['tuning_pairs']} ({name})" for name, facts in settings.items())
    return f"""# neural-art: Does a rule trained on one painting at 64×64 paint other paintings at higher resolution?

Command: `{facts["command"]}`
(what was painted is kept in `.cache` beside the files: a second call only writes them again)

## Verdict
{found}

## Table
f is the loss of the default weights. Losses are geometric means over the pairs, exp(mean log f); *mean of log f* is
that over all steps and pairs. L-BFGS makes several evaluations of loss and gradient a step and is counted by
evaluation, at each the least loss so far. *CPU s*: per pair, for all steps.

{table}

![curves](curves.png)

## Pictures
![contact sheet](contact-sheet.png)

## Paired differences
log f of the learned rule minus log f of the other at equal numbers of steps, mean over pairs with its 95 % interval
(Student); below zero the learned rule is ahead.

{paired}

## Method
The rules were trained on *{chosen.TRAINED_STYLE}*, 64×64 and the train photographs alone; pairs are crops of test
photographs. Every method starts from the photograph. Learning rates are chosen on other pairs, of outer_valid
photographs, of the same styles and size: {tuning}. They walk downhill on a grid of four a decade until the best is
bracketed, then half a step around it (tuning.csv lists all), for two criteria: log f averaged over all steps, and log f
after the last, which the rows marked *(end)* show; a rule has to beat both. Where both choose the same, the two rows
are one run. Adam, RMSprop and momentum have torch's other defaults, momentum 0.9. L-BFGS is torch's, strong Wolfe.
*{chosen.CONTROL}* is no classic but a control: Adam whose updates pass the low-pass filter that Sobolev rules begin
with (`SobolevAdamConfig`, its default, chosen by hand on train photographs), its learning rate tuned. What a rule
has before it is what learning brings.

{families}

The loss's weights grow with the number of pixels, as if its terms were sums over pixels as in Gatys et al. 2016: means
would make a pixel's gradient shrink with the resolution. Numbers in tables are divided by that factor.

{made_on(environment)}
"""


def _interval(row: Row) -> str:
    return f"{float(row['difference']):+.3f} [{float(row['low']):+.3f}, {float(row['high']):+.3f}]"


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else math.inf


def _read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
