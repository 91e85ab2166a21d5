"""The figures of the BMO studies."""

from pathlib import Path

import matplotlib
import matplotlib.figure
import matplotlib.pyplot as plt

from meta_train.report_styles import LIGHT

matplotlib.use("Agg")

Row = dict[str, str]

_STYLES = (
    (("solid", LIGHT[0]), ("solid", LIGHT[1]), ("dashed", LIGHT[2]), ("dashdot", LIGHT[6]))
    + tuple(("solid", LIGHT[i]) for i in (3, 4, 5))
    + (("dotted", LIGHT[5]), ("dotted", LIGHT[2]), ("dotted", LIGHT[0]))
)
_FLOOR = 1e-16
"""Lower than this is rounding, and cannot stand on a logarithmic axis."""


def draw_joint(study: dict, summary: list[Row], curves: list[Row], path: Path) -> None:
    """Draw the errors of u^K (solid) and ω (dotted) over outer iterations, and the largest error over K."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    methods = list(dict.fromkeys(row["method"] for row in summary))
    for index, method in enumerate(methods):
        colour = _STYLES[index % len(_STYLES)][1]
        rows = [row for row in curves if row["method"] == method]
        for name, dash in (("u", "solid"), ("omega", "dotted")):
            symbol = "u" if name == "u" else "ω"
            left.plot(*_series(rows, "iteration", name), linestyle=dash, color=colour, label=f"{symbol}: {method}")
        rows = [row for row in summary if row["method"] == method]
        right.plot(*_series(rows, "K", "value"), marker="o", color=colour, label=f"|φ_K(ω) − φ*| / φ*: {method}")
        right.plot(*_series(rows, "K", "slope"), marker="s", linestyle="dotted", color=colour)
    left.set(
        xlabel="outer iteration", ylabel="relative error", title=f"training and hyper-training, K = {study['shown']}"
    )
    right.set(
        xlabel="inner steps K", ylabel="relative error", xscale="log", title="φ_K (solid) and ‖∇φ‖ (dotted) over K"
    )
    _finish(figure, (left, right), path)


def draw_sparse_coding(study: dict, curves: list[Row], path: Path) -> None:
    """Draw suboptimality and relative change of every method over layers, a line for each seed."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    methods = list(dict.fromkeys(row["method"] for row in curves))
    for name, axis, title in zip(
        ("suboptimality", "change"),
        axes,
        ("(F − F*) / F*", "relative change of u, all signals as one vector"),
        strict=True,
    ):
        for index, method in enumerate(methods):
            dash, colour = _STYLES[index % len(_STYLES)]
            mine = [row for row in curves if row["method"] == method and (name != "change" or int(row["layer"]) > 2)]
            for number, seed in enumerate(dict.fromkeys(row["seed"] for row in mine)):
                series = _series([row for row in mine if row["seed"] == seed], "layer", name)
                label = None if number else method
                axis.plot(*series, linestyle=dash, color=colour, linewidth=1, alpha=0.8, label=label)
        axis.axvline(study["layers"], color="grey", linewidth=0.8)
        axis.set(xlabel=f"layer ({study['layers']} are trained)", title=title)
    axes[1].axhline(1e-6, color="grey", linewidth=0.8)
    _finish(figure, tuple(axes), path)


def _series(rows: list[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    return [float(row[x]) for row in rows], [max(float(row[y]), _FLOOR) for row in rows]


def _finish(figure: matplotlib.figure.Figure, axes: tuple, path: Path) -> None:
    for axis in axes:
        axis.set_yscale("log")
        axis.grid(which="major", alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
