"""Turn the CSV files of `safeguard_study` into a README and a figure; everything can be rebuilt from the files."""

import csv
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)

from meta_train.run_directory import made_on  # noqa: E402
from meta_train.safeguard_seen import SEEN, TUNING  # noqa: E402

_STYLES: dict[str, dict[str, Any]] = {
    "Adam": {"color": "#000000", "linestyle": "--"},
    "boosted Adam": {"color": "#999999", "linestyle": "-."},
    "plain": {"color": "#D55E00", "linestyle": ":"},
    "guarded": {"color": "#0072B2", "linestyle": "-"},
}
"""Okabe & Ito's palette, which colour-blind readers can tell apart, and a line each."""
_LIMIT = 1.1
"""The guarded rule may end at this multiple of Adam's loss."""
_KEPT = 0.8
"""Share of the plain rule's advantage over Adam that the guarded one is to keep."""
_FAR = 100.0
"""The figure shows losses up to this multiple of Adam's largest; the plain rule may go anywhere."""


class Ends(NamedTuple):
    """Losses at the end of one optimizee, and the guard's part."""

    optimizee: str
    adam: float
    boosted: float
    plain: float
    guarded: float
    seeds: int
    fell_back: int

    @property
    def ratio(self) -> float:
        """Guarded over Adam."""
        return self.guarded / self.adam if math.isfinite(self.guarded) else math.inf

    @property
    def kept(self) -> float | None:
        """Share of the plain rule's advantage that the guarded one keeps; None where the plain rule has none."""
        return (self.adam - self.guarded) / (self.adam - self.plain) if self.plain < self.adam else None


def write_safeguard_report(directory: Path) -> str:
    """Write README.md and safeguard-RULE.png from summary.csv, curves.csv and study.json.

    Returns: the tables, as Markdown.

    Raises:
        ValueError: if the directory was not written by `l2o benchmark safeguard`.
    """
    try:
        study = json.loads((directory / "study.json").read_text())
        summary, curves = (_read_csv(directory / f"{name}.csv") for name in ("summary", "curves"))
        ends = {rule: read_ends(summary, rule) for rule in study["rules"]}
        tables = "\n\n".join(f"### {rule}\n{_table(rows)}" for rule, rows in ends.items())
        readme = _readme(study, ends, tables)
        for rule in ends:
            _draw(curves, rule, directory / _picture(rule))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{directory} is not a safeguard study: {type(error).__name__}, {error}") from error
    (directory / "README.md").write_text(readme)
    return tables


def read_ends(summary: list[dict], rule: str) -> list[Ends]:
    """Return the ends of every optimizee with one rule."""
    by_method = {(row["optimizee"], row["rule"], row["method"]): row for row in summary}
    found = []
    for name in dict.fromkeys(row["optimizee"] for row in summary):
        rows = [by_method[name, rule if method in ("plain", "guarded") else "", method] for method in _STYLES]
        adam, boosted, plain, guarded = (float(row["end"]) for row in rows)
        seeds, fell_back = (int(rows[-1][key]) for key in ("n_seeds", "fell_back"))
        found.append(Ends(name, adam, boosted, plain, guarded, seeds, fell_back))
    return found


def _table(rows: list[Ends]) -> str:
    lines = [
        "| optimizee | Adam | boosted Adam | plain rule | guarded | guarded / Adam | advantage kept | Adam took over |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = f"{row.ratio:.3f}" if row.ratio <= _LIMIT else f"**{row.ratio:.3f}**"
        kept = "–" if row.kept is None else f"{row.kept:.0%}" if row.kept >= _KEPT else f"**{row.kept:.0%}**"
        losses = " | ".join(f"{loss:.3g}" for loss in (row.adam, row.boosted, row.plain, row.guarded))
        lines.append(f"| {row.optimizee} | {losses} | {ratio} | {kept} | {row.fell_back} of {row.seeds} |")
    return "\n".join(lines)


def _verdict(rule: str, rows: list[Ends]) -> str:
    above = [row for row in rows if row.ratio > _LIMIT]
    won = [(row, row.kept) for row in rows if row.kept is not None]
    lost = [row for row, kept in won if kept < _KEPT]
    worst = max(rows, key=lambda row: row.ratio)
    plain = [row for row in rows if not row.plain <= _LIMIT * row.adam]
    better = [row for row in rows if row.guarded < row.boosted]
    return "\n".join(
        [
            f"- *{rule}, failures*: {_count(len(above), len(rows))} end above {_LIMIT} × Adam{_names(above)};"
            f" the worst at {worst.ratio:.3f} × ({worst.optimizee}). Without the guard {len(plain)} do.",
            f"- *{rule}, gains*: the plain rule ends below Adam on {len(won)} of {len(rows)}; the guard keeps at least"
            f" {_KEPT:.0%} of the advantage on {len(won) - len(lost)} of these{_names(lost, 'NOT on')}.",
            f"- *{rule}, and an Adam with the boost from the first step*: the guarded rule ends below it on"
            f" {len(better)} of {len(rows)}.",
        ]
    )


def _count(number: int, total: int) -> str:
    return f"none of {total}" if number == 0 else f"{number} of {total} DO NOT pass and"


def _names(rows: list[Ends], word: str = "namely") -> str:
    return f" ({word} {'; '.join(row.optimizee for row in rows)})" if rows else ""


def _draw(curves: list[dict], rule: str, path: Path) -> None:
    """Draw the losses of every optimizee in a panel of its own."""
    names = list(dict.fromkeys(row["optimizee"] for row in curves))
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    size = (3.4 * columns, 2.5 * rows + 0.6)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, layout="constrained", squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        _draw_panel(axis, [row for row in curves if row["optimizee"] == name and row["rule"] in ("", rule)])
        axis.set_title(name, fontsize=9)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("minibatch loss")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    words = {"Adam": "Adam, lr 0.001", "plain": f"{rule}, plain", "guarded": f"{rule}, guarded"}
    texts = [words.get(str(label), str(label)) for label in labels]
    figure.legend(handles, texts, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_panel(axis, rows: list[dict]) -> None:
    limit = _FAR * max(float(row["loss"]) for row in rows if row["method"] == "Adam")
    for method, style in _STYLES.items():
        points = [(int(row["step"]), float(row["loss"])) for row in rows if row["method"] == method]
        shown = [(step, loss if loss < limit else math.nan) for step, loss in points]
        axis.plot(*zip(*shown, strict=True), label=method, linewidth=1.8, **style)
    axis.set_yscale("log")
    axis.grid(which="major", alpha=0.3)
    axis.tick_params(labelsize=8)


def _picture(rule: str) -> str:
    return f"safeguard-{Path(rule).name}.png"


def _readme(study: dict, ends: dict[str, list[Ends]], tables: str) -> str:
    pictures = "\n\n".join(f"![curves with {rule}]({_picture(rule)})" for rule in ends)
    verdict = "\n".join(_verdict(rule, rows) for rule, rows in ends.items())
    return f"""# safeguard: does the guard keep a learned rule's gains and take away its failures on foreign networks?

Command: `{study["command"]}`

## Verdict
{verdict}

## Table
Loss at the end: mean of the last {study["last"]} of {study["steps"]} minibatch losses (ten times the horizon that
the rule was trained for), mean over {study["seeds"]} seeds; all methods have the same weights and minibatches of
{study["batch"]}. Adam: torch's default, lr 0.001; boosted Adam: lr {study["boosted_lr"]}, with which the guard's Adam
starts. *Advantage kept*: (Adam − guarded) / (Adam − plain), where the plain
rule ends below Adam. *Adam took over*: in so many seeds the guard let Adam go on alone before the end. In bold what
misses the aim: at most {_LIMIT} × Adam, at least {_KEPT:.0%} of the advantage.

{tables}

{pictures}

Curves: geometric means over seeds of every {study["last"]} losses; losses beyond {_FAR:.0f} × Adam's largest are not
shown.

## Method
`{study["guard"]}`

`meta_train/safeguard_seen.py` tells how the defaults were chosen. Three earlier guards were judged on 20 optimizees
each and missed an aim: one without boost (6 above 1.1 × Adam, the worst at 1.78 ×), one without audition (4, 1.65 ×),
and one that looked at by how much the loss had fallen, which smoothed labels hide (none above, but 80% of the advantage
kept on 5 of 6). These {len(SEEN)} and {len(TUNING)} more chose the present one; the table's optimizees are 20 new ones,
written down before anything ran on them and run once with each rule that has been lstm-mnist since. A guard that is
changed because of its misses needs new ones.

The audition costs {study["audition"]} of the {study["steps"]} steps, whoever wins it; in the curves it is a jump back.

What the boost means: on these small networks 0.001 is a slow learning rate, so that an Adam with more catches up within
the {study["steps"]} steps. The column *boosted Adam* shows what that does without any learned rule.

{made_on(study["environment"])}
"""


def _read_csv(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows
