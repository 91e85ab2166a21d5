"""The figure of `estimator_report`: a row a problem, with bias and noise against cost, training, and its paths."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np  # noqa: E402  (the backend must be chosen first)
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import LogNorm  # noqa: E402

LABELS = {"truncated": "backpropagation", "es": "ES", "pes": "PES", "nres": "NRES"}
_STYLES: dict[str, dict[str, Any]] = {
    "truncated": {"color": "#000000", "marker": "o"},
    "es": {"color": "#D55E00", "marker": "s"},
    "pes": {"color": "#0072B2", "marker": "^"},
    "nres": {"color": "#009E73", "marker": "v"},
}
"""Okabe & Ito's palette, which colour-blind readers can tell apart, and a marker each."""
OUTSIDE = 5.0
"""Standard errors beyond which a mean is not the exact gradient."""

Row = dict[str, str]


def draw(study: dict, tables: dict[str, list[Row]], path: Path) -> None:
    """Draw all problems of a study into one PNG."""
    problems = study["problems"]
    figure = plt.figure(figsize=(15, 6.4 * len(problems)), layout="constrained")
    rows = np.atleast_1d(np.asarray(figure.subfigures(len(problems), 1, hspace=0.06)))
    for number, (part, (name, facts)) in enumerate(zip(rows, problems.items(), strict=True)):
        mine = {table: [row for row in rows if row["problem"] == name] for table, rows in tables.items()}
        planar = len(facts["start"]) == 2
        layout = [["mean", "training", "paths" if planar else "training"]]
        layout.append(["spread", *layout[0][1:]])
        axes: dict[str, Any] = part.subplot_mosaic(layout, height_ratios=(2, 1), width_ratios=(1.15, 1, 1))
        part.suptitle(f"{'abcdef'[number]}. {name}, T = {facts['horizon']}", x=0.01, ha="left", weight="bold")
        _draw_gradients(axes["mean"], axes["spread"], mine["summary"])
        _draw_training(axes["training"], facts, mine["curves"])
        if planar:
            _draw_paths(axes["paths"], facts, mine)
        for panel in axes.values():
            panel.grid(which="major", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_gradients(means: Axes, spreads: Axes, summary: list[Row]) -> None:
    spreads.sharex(means)
    for name, style in _STYLES.items():
        rows = [row for row in summary if row["estimator"] == name]
        cost, mean, errors, spread = (
            columns(rows, each) for each in ("cost_outer_step", "relative_mean", "standard_error", "sd_outer_step")
        )
        bars = [OUTSIDE * error for error in errors]
        means.errorbar(cost, mean, bars, label=LABELS[name], capsize=3, linewidth=1.5, markersize=6, **style)
        spreads.plot(cost, spread, linewidth=1.5, markersize=6, **style)
        for row in rows:
            _annotate_truncation(means, row, style["color"])
    for value in (0, 1):
        means.axhline(value, color="0.6", linewidth=0.8, zorder=0)
    low = min(0.0, *columns(summary, "relative_mean"))
    if low < 0:
        means.annotate("below: wrong sign", (0.01, 0.04), xycoords=("axes fraction", "data"), fontsize=8, color="0.35")
    means.set(xscale="log", ylabel="mean / exact gradient", ylim=(1.3 * low - 0.15, 1.75))
    means.set_title("Meta-gradient at the start: bias (bars: 5 s.e.) …", fontsize=11)
    means.tick_params(labelbottom=False)
    means.legend(loc="upper center", frameon=False, fontsize=9, ncols=4, columnspacing=1.2, handletextpad=0.4)
    spreads.set(ylabel="sd / exact gradient", xlabel="inner steps evaluated per outer step (K × particles)")
    spreads.set_title("… and noise of a single outer step's estimate", fontsize=11)


def _annotate_truncation(axis: Axes, row: Row, colour: str) -> None:
    """Write K under the biased estimators' points, and above those of NRES, which PES shares."""
    if row["estimator"] == "pes":
        return
    shared = row["estimator"] == "nres"
    where = (float(row["cost_outer_step"]), 1.3 if shared else float(row["relative_mean"]))
    text = f"K={row['truncation']}" if row["truncation"] == "1" else row["truncation"]
    offset = (0, 0) if shared else (6, -13)
    axis.annotate(text, where, offset, textcoords="offset points", fontsize=8, color=colour, ha="center")


def _line(facts: dict, name: str, length: int) -> tuple[str, dict[str, Any]]:
    """Return label and style of a training's line."""
    whole = length == facts["horizon"]
    style = {"color": _STYLES[name]["color"], "linestyle": "-" if whole else ":" if length == 1 else "--"}
    return f"{LABELS[name]}, K = {length}" + (" = T" if whole else ""), style


def _draw_training(axis: Axes, facts: dict, curves: list[Row]) -> None:
    least = facts["least_meta_loss"]
    for name, length in trained(curves):
        seeds = runs(curves, name, length)
        cost = columns(seeds[0], "cost")[1:]
        losses = list(zip(*(columns(run, "meta_loss")[1:] for run in seeds), strict=True))
        label, style = _line(facts, name, length)
        axis.plot(cost, [sum(values) / len(values) for values in losses], label=label, linewidth=2, **style)
        low, high = ([pick(values) for values in losses] for pick in (min, max))
        axis.fill_between(cost, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axis.axhline(least, color="0.6", linewidth=0.8, zorder=0)
    note = axis.annotate("least possible", (0.01, least), (0, -11), ("axes fraction", "data"),
                         textcoords="offset points", fontsize=8, color="0.35")  # fmt: skip
    note.set_in_layout(False)  # a minimum outside the axes must not squeeze them
    begun = float(curves[0]["meta_loss"])
    axis.set(xscale="log", yscale="log", ylim=(0.7 * least, min(20 * begun, begun * (begun / least) ** 0.8)))
    axis.set(xlabel="inner steps evaluated", ylabel="meta-loss over T steps")
    axis.set_title(f"Meta-training (σ = {facts['training_sigma']:g})", fontsize=11)
    axis.legend(loc="upper center", frameon=False, fontsize=8, ncols=2)


def _draw_paths(axis: Axes, facts: dict, tables: dict[str, list[Row]]) -> None:
    """Draw where the first seed of each training takes θ, over the meta-loss."""
    first, second, losses = (columns(tables["landscape"], each) for each in ("theta_1", "theta_2", "meta_loss"))
    sides = len(set(first)), len(set(second))
    grid = (np.reshape(values, sides) for values in (first, second, losses))
    scale = LogNorm(facts["least_meta_loss"] / 2, 60)  # half: dark grey, on which colours can be seen
    axis.pcolormesh(*grid, norm=scale, cmap="Greys_r", shading="nearest", rasterized=True)
    for name, length in trained(tables["curves"]):
        run = runs(tables["curves"], name, length)[0]
        _, style = _line(facts, name, length)
        path = columns(run, "theta_1"), columns(run, "theta_2")
        axis.plot(*path, linewidth=1.5, **style)
        axis.plot(path[0][-1], path[1][-1], markersize=9, markeredgecolor="white", **_STYLES[name])
    axis.plot(*facts["start"], marker="*", markersize=14, color="white", markeredgecolor="black")
    axis.set(xlabel="θ₁ (log of the first step size)", ylabel="θ₂ (log of the last one)")
    axis.set(xlim=(min(first), max(first)), ylim=(min(second), max(second)))
    axis.set_title("Paths from the star, over the meta-loss (dark: low)", fontsize=11)


def trained(curves: list[Row]) -> list[tuple[str, int]]:
    """Return the estimators and truncations of the trainings."""
    return list(dict.fromkeys((row["estimator"], int(row["truncation"])) for row in curves))


def runs(curves: list[Row], name: str, length: int) -> list[list[Row]]:
    """Return the rows of each seed of a training."""
    rows = [row for row in curves if (row["estimator"], row["truncation"]) == (name, str(length))]
    return [[row for row in rows if row["seed"] == seed] for seed in dict.fromkeys(row["seed"] for row in rows)]


def columns(rows: list[Row], name: str) -> list[float]:
    """Return a column as numbers."""
    return [float(row[name]) for row in rows]
