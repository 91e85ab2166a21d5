"""Turn the files of `recovery_benchmark` into a README and a figure; everything can be rebuilt from the files."""

import csv
import json
from pathlib import Path

from meta_train.recovery_figure import draw_recovery
from meta_train.run_directory import made_on

Row = dict[str, str]

TARGETS = {
    ("noiseless", "alista"): -67.0,
    ("noiseless", "hyperlista"): -68.0,
    ("noiseless", "lista-cpss"): -45.0,
    ("noiseless", "best learned"): -75.0,
    ("SNR 20 dB", "best learned"): -20.0,
}
"""What was to be reached, NMSE in dB after 16 steps."""


def write_recovery_report(directory: Path) -> str:
    """Write README.md and curves.png from summary.csv, curves.csv and recovery.json.

    Returns: the tables, as Markdown.

    Raises:
        ValueError: if the directory was not written by `l2o benchmark sparse-recovery`.
    """
    try:
        facts = json.loads((directory / "recovery.json").read_text())
        summary, curves = _read_csv(directory / "summary.csv"), _read_csv(directory / "curves.csv")
        tables = "\n\n".join(_table(name, _of(summary, name), facts["long"]) for name in facts["settings"])
        readme = _readme(facts, summary, tables)
        draw_recovery(facts, summary, curves, directory / "curves.png")
    except (AttributeError, OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{directory} is no sparse-recovery benchmark: {type(error).__name__}, {error}") from error
    (directory / "README.md").write_text(readme)
    return tables


def _table(setting: str, rows: list[Row], long: int) -> str:
    lines = [
        f"**{setting}**\n",
        "| method | steps | NMSE dB, ratio of sums (95 %) | mean of dB ± sd | median | float64 "
        f"| run on to {long} | support F1 | weights | training | CPU-ms a problem |",
        "|---" * 11 + "|",
    ]
    for row in sorted(rows, key=lambda row: float(row["nmse"])):
        name = f"**{row['method']}**" if row["kind"] == "learned" else row["method"]
        seconds = f"{float(row['train_cpu_s']):.0f} CPU-s" if row["train_cpu_s"] else ""
        effort = seconds if row["kind"] == "learned" else row["training"]
        interval = f"({float(row['nmse_low']):.1f} … {float(row['nmse_high']):.1f})"
        cells = (
            name, row["steps"], f"{float(row['nmse']):.1f} {interval}",
            f"{float(row['mean_db']):.1f} ± {float(row['mean_db_sd']):.1f}", f"{float(row['median_db']):.1f}",
            f"{float(row['nmse_float64']):.1f}", _long(row), f"{float(row['f1']):.3f}", f"{int(row['parameters']):,}",
            effort or "–", row["cpu_ms"] or "–",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _long(row: Row) -> str:
    if not row["nmse_long"]:
        return "–"
    value = float(row["nmse_long"])
    return f"{value:.1f}" if value < 0 else "**diverges**"


def _verdict(facts: dict, summary: list[Row]) -> str:
    lines = [_compare(setting, _of(summary, setting)) for setting in facts["settings"]]
    for (setting, name), target in TARGETS.items():
        learned = [row for row in _of(summary, setting) if row["kind"] == "learned"]
        found = [row for row in learned if name in (row["method"], "best learned")]
        if found:
            best = min(found, key=lambda row: float(row["nmse"]))
            word = "reached" if float(best["nmse"]) <= target else "NOT reached"
            label = f"best of the family ({best['method']})" if name == "best learned" else name
            lines.append(f"- *{setting}*, {label}: {float(best['nmse']):.1f} dB; the target, {target:g} dB, is {word}.")
    return "\n".join(lines)


def _compare(setting: str, rows: list[Row]) -> str:
    learned = [row for row in rows if row["kind"] == "learned"]
    classics = [row for row in rows if row["kind"] == "classic"]
    same = [row for row in classics if row["steps"] == learned_steps(rows)]
    if not learned or not same:
        return f"- *{setting}*: nothing to compare."
    best, rival = (min(found, key=lambda row: float(row["nmse"])) for found in (learned, same))
    longest = min(classics, key=lambda row: float(row["nmse"]))
    word = "beats" if float(best["nmse"]) < float(rival["nmse"]) else "does NOT beat"
    return (
        f"- *{setting}*: **{best['method']}**, {float(best['nmse']):.1f} dB, {word} the best classic of as many steps, "
        f"{rival['method']} ({float(rival['nmse']):.1f} dB); the best of all, {longest['method']} with "
        f"{longest['steps']} steps, comes to {float(longest['nmse']):.1f} dB."
    )


def learned_steps(rows: list[Row]) -> str:
    """Return the number of steps of the learned rules, as text; of a table without them, the least."""
    learned = [row["steps"] for row in rows if row["kind"] == "learned"]
    return learned[0] if learned else min((row["steps"] for row in rows if row["kind"] == "classic"), key=int)


def _readme(facts: dict, summary: list[Row], tables: str) -> str:
    commands = dict.fromkeys(
        f"    {row['training']}" for row in summary if row["kind"] == "learned" and row["training"]
    )
    problems, steps = facts["problems"], facts["steps"]
    return f"""# sparse-recovery: Which rule finds a sparse code from half as many measurements in {steps} steps?

    {facts["command"]}

b = Ax* + ε with the published 250×500 matrix of ALISTA and its {problems:,} published test codes (Bernoulli(0.1),
N(0, 1)), which neither training nor tuning saw: rules were trained on codes drawn from other seeds, and the option of
every classic was tuned on {facts["tuning_problems"]} further ones, for its number of steps. NMSE is
10 log₁₀(Σ‖x − x*‖² / Σ‖x*‖²) over all problems, in which a few failures weigh most (95 %: bootstrap over problems), and
the mean over problems of the same in dB, which hides them. All in float32, with float64 beside it. An entry counts as
found above 10⁻³. CPU-ms: all problems in one batch, ‖A‖ and the weights that follow from A computed before; ADMM's
factorisation is in its time. Condat–Vũ has λ‖x‖₁ split off as h(Kx) with K = I, for without a second term it is ISTA.
*Oracle*: least squares on the true support.

{tables}

![NMSE against steps](curves.png)

## Verdict
{_verdict(facts, summary)}

## Training
{chr(10).join(commands) or "No command is recorded."}

Where several recipes of a rule were tried, the one with the lowest final loss on *outer_valid* was kept, not the one
that does best in the tables above; the card of a shipped rule tells what was tried.

{made_on(facts["environment"])}
"""


def _of(rows: list[Row], setting: str) -> list[Row]:
    return [row for row in rows if row["setting"] == setting]


def _read_csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
