"""The figure of `hyper_report`: eight panels, one or two for each question."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)
from matplotlib.axes import Axes  # noqa: E402

Row = dict[str, str]

_BLACK, _BLUE, _RED, _GREEN, _GREY = "#000000", "#0072B2", "#D55E00", "#009E73", "#999999"
"""Okabe & Ito's palette, which colour-blind readers can tell apart."""
_LOSSES = {"validation": (_BLUE, "--"), "stop": (_GREY, "-."), "test": (_RED, "-")}
_METHODS = {"implicit": (_BLUE, "o"), "unrolled": (_BLACK, "s"), "unrolled, accelerated": (_RED, "^")}
_FITS = {
    "too little": (_GREY, ":"),
    "too much": (_BLACK, "--"),
    "grid": (_RED, "-."),
    "learned, one a degree": (_BLUE, "-"),
}
_MODES = ((_BLUE, "o", "-"), (_GREEN, "v", "--"), (_GREY, "D", "-."), (_BLACK, "s", ":"))
"""Implicit, truncated, one step, unrolled."""
_GAMES = {"descent–ascent": (_RED, "--"), "extragradient": (_BLUE, "-")}


def draw(summary: list[Row], curves: list[Row], path: Path) -> None:
    """Draw all panels into one PNG."""
    figure, axes = plt.subplots(2, 4, figsize=(20, 8.6), layout="constrained")
    _draw_logistic(axes[0, 0], [row for row in curves if row["part"] == "logistic"])
    _draw_speed(axes[0, 1], [row for row in summary if row["part"] == "speed"])
    _draw_fits(axes[0, 2], [row for row in curves if row["part"] == "polynomial"])
    _draw_times(axes[1, 0], axes[1, 1], [row for row in summary if row["part"] == "flow"], curves)
    _draw_games(axes[1, 2], [row for row in curves if row["part"] == "games"])
    _draw_memory(axes[0, 3], axes[1, 3], [row for row in summary if row["part"] == "memory"])
    for letter, axis in zip("abcdefgh", axes.flat, strict=True):
        axis.set_title(f"{letter}. {axis.get_title()}", fontsize=11)
        axis.grid(which="major", alpha=0.3)
        axis.legend(frameon=False, fontsize=8, loc="lower left" if letter == "b" else "best")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def line(curves: list[Row], case: str, name: str) -> tuple[list[float], list[float]]:
    """Return x and y of a line."""
    rows = [row for row in curves if (row["case"], row["line"]) == (case, name)]
    return [float(row["x"]) for row in rows], [float(row["y"]) for row in rows]


def cases(rows: list[Row]) -> list[str]:
    """Return the cases in their order."""
    return list(dict.fromkeys(row["case"] for row in rows))


def _draw_logistic(axis: Axes, curves: list[Row]) -> None:
    first = cases(curves)[0]
    for name, (colour, dashes) in _LOSSES.items():
        steps, losses = line(curves, first, name)
        axis.plot(steps, losses, color=colour, linestyle=dashes, label=f"{name} rows", linewidth=1.8)
        if name == "stop":
            axis.axvline(losses.index(min(losses)), color=_GREY, linewidth=0.8, label="stopped")
    axis.set(xlabel="steps on log weight decays", ylabel="cross-entropy, nats")
    axis.set_title(f"A weight decay a feature: {first}")


def _draw_speed(axis: Axes, summary: list[Row]) -> None:
    for filled, case in zip(("full", "none"), cases(summary), strict=False):
        for name, (colour, marker) in _METHODS.items():
            rows = [row for row in summary if (row["case"], row["method"]) == (case, name)]
            seconds, errors = ([float(row["mean"]) for row in rows if row["quantity"] == q] for q in ("cpu_s", "error"))
            axis.loglog(seconds, errors, color=colour, marker=marker, fillstyle=filled, label=f"{name}, {case}",
                        linestyle="-" if filled == "full" else ":")  # fmt: skip
    axis.set(xlabel="CPU seconds", ylabel="relative error of the hypergradient")
    axis.set_ylim(bottom=axis.get_ylim()[0] * 1e-5)  # room for the legend
    axis.set_title("What a hypergradient costs")


def _draw_fits(axis: Axes, curves: list[Row]) -> None:
    case = cases(curves)[0]
    truth, points = line(curves, case, "truth"), line(curves, case, "points")
    axis.plot(*truth, color=_GREEN, linewidth=4, alpha=0.4, label="truth")
    axis.plot(*points, "k.", label="training points")
    for name, (colour, dashes) in _FITS.items():
        axis.plot(*line(curves, case, name), color=colour, linestyle=dashes, linewidth=1.6, label=name)
    low, high = min(points[1]), max(points[1])
    axis.set(xlabel="x", ylabel="y", ylim=(low - 0.6 * (high - low), high + 0.6 * (high - low)))
    axis.set_title("A polynomial of degree 15")


def _draw_times(levels: Axes, paths: Axes, summary: list[Row], curves: list[Row]) -> None:
    flow = [row for row in curves if row["part"] == "flow"]
    for case, colour in zip(cases(summary), (_BLUE, _RED), strict=False):
        learned = next(float(row["mean"]) for row in summary if (row["case"], row["quantity"]) == (case, "T"))
        times, values = line(flow, case, "PSNR, test")
        levels.semilogx(times, values, color=colour, label=case)
        levels.plot(learned, values[times.index(min(times, key=lambda t: abs(t - learned)))], "o", color=colour)
        paths.semilogy(*line(flow, case, "T"), color=colour, label=case)
        best = [row for row in summary if (row["case"], row["quantity"], row["setting"]) == (case, "best T", "test")]
        paths.axhline(float(best[0]["mean"]), color=colour, linestyle=":", label="best on test crops, by grid")
    top = max(float(row["y"]) for row in flow if row["line"] == "PSNR, test")
    levels.set(xlabel="stopping time T", ylabel="PSNR of test crops, dB", ylim=(top - 14, top + 1))
    levels.set_title("Stopping a gradient flow (dots: the learned T)")
    paths.set(xlabel="outer steps", ylabel="T")
    paths.set_title("The stopping time while it is learned")


def _draw_games(axis: Axes, curves: list[Row]) -> None:
    case = cases(curves)[0]
    for name, (colour, dashes) in _GAMES.items():
        axis.semilogy(*line(curves, case, name), color=colour, linestyle=dashes, linewidth=1.8, label=name)
    axis.set(xlabel="steps", ylabel="distance to the saddle point", ylim=(1e-4, 1e6))
    axis.set_title("A bilinear game")


def _draw_memory(held: Axes, wrong: Axes, summary: list[Row]) -> None:
    for method, (colour, marker, dashes) in zip(dict.fromkeys(row["method"] for row in summary), _MODES, strict=True):
        for axis, quantity, unit in ((held, "peak_bytes", 1e6), (wrong, "error", 1.0)):
            rows = [row for row in summary if (row["method"], row["quantity"]) == (method, quantity)]
            counts, values = [int(row["setting"]) for row in rows], [float(row["mean"]) / unit for row in rows]
            axis.loglog(counts, values, color=colour, marker=marker, linestyle=dashes, label=method)
    held.set(xlabel="iterations", ylabel="peak of living tensors, MB")
    held.set_title("What a hypergradient holds in memory")
    wrong.set(xlabel="iterations", ylabel="relative error of the hypergradient")
    wrong.set_title("… and how far it is off")
