"""Draw the curves of the sparse-recovery benchmark: a panel for each setting, every line named where it ends."""

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)

from meta_train.report_styles import LIGHT  # noqa: E402

Row = dict[str, str]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""As many as have no divisor in common with the colours: 56 learned rules differ."""
_DASHES = ((7, 2), (2, 2), (8, 2, 2, 2), (4, 2), (1, 2), (10, 2, 2, 2, 2, 2))
_LABEL_GAP = 0.042
"""Between two names, at least, of the height of a panel."""


def draw_recovery(facts: dict, summary: list[Row], curves: list[Row], path: Path) -> None:
    """Draw NMSE against step, learned rules in colour with markers, classics grey and without.

    Args:
        facts: of recovery.json.
        summary, curves: rows of the CSV files.
    """
    settings = list(facts["settings"])
    figure, axes = plt.subplots(1, len(settings), figsize=(6.8 * len(settings), 6.6), squeeze=False)
    looks = line_looks(summary)
    for axis, setting in zip(axes.flat, settings, strict=True):
        _draw_panel(axis, [row for row in curves if row["setting"] == setting], looks)
        for row in summary:
            if row["setting"] == setting and row["kind"] == "bound" and float(row["nmse"]) > -100:
                axis.axhline(float(row["nmse"]), color="0.5", linewidth=1.0)
                axis.annotate("oracle support", (0, float(row["nmse"])), va="bottom", color="0.35", fontsize=8)
        axis.set(title=setting, xlabel="step", ylabel="NMSE, ratio of sums (dB)", ylim=(None, 3))
        axis.grid(alpha=0.3)
        _label_ends(axis)
    figure.suptitle(f"sparse recovery, 250×500, {facts['problems']:,} test codes")
    figure.tight_layout(w_pad=7.5, rect=(0, 0, 0.93, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def line_looks(summary: list[Row]) -> dict[str, dict]:
    """Return how each method's line is drawn, the same in every panel; no two are drawn alike."""
    kinds = {row["method"]: row["kind"] for row in summary if row["kind"] != "bound"}
    learned = [method for method, kind in kinds.items() if kind == "learned"]
    classics = [method for method, kind in kinds.items() if kind != "learned"]
    looks = {
        method: {
            "color": LIGHT[i % len(LIGHT)], "marker": _MARKERS[i % len(_MARKERS)], "linewidth": 2.0, "markersize": 5.5,
            "markevery": (i % 4, 4), "linestyle": "-" if i < len(LIGHT) else (0, (6, 1.5)),
        }
        for i, method in enumerate(learned)
    }  # fmt: skip
    return looks | {
        method: {"color": str(0.25 + 0.07 * (i % 5)), "linestyle": (0, _DASHES[i % len(_DASHES)]), "linewidth": 1.4}
        for i, method in enumerate(classics)
    }


def spread_out(values: list[float], gap: float, low: float) -> list[float]:
    """Return places at least `gap` apart, near the values and in their order; the lowest is not below `low`.

    >>> spread_out([0.0, -1.0, -1.0], 0.5, -3.0)
    [0.0, -1.0, -1.5]
    >>> spread_out([-1.0, -1.0, 0.0], 0.5, -1.0)
    [-0.5, -1.0, 0.0]
    """
    order = sorted(range(len(values)), key=lambda i: -values[i])
    places = [values[i] for i in order]
    for above, here in pairwise(range(len(places))):
        places[here] = min(places[here], places[above] - gap)
    floor = low
    for here in reversed(range(len(places))):
        places[here] = max(places[here], floor)
        floor = places[here] + gap
    result = [0.0] * len(values)
    for i, place in zip(order, places, strict=True):
        result[i] = place
    return result


def _draw_panel(axis, curves: list[Row], looks: dict[str, dict]) -> None:
    for method, look in looks.items():
        points = [row for row in curves if row["method"] == method]
        if points:
            x, y = ([float(row[key]) for row in points] for key in ("step", "nmse"))
            axis.plot(x, y, label=method, **look)


def _label_ends(axis) -> None:
    """Write every line's name beside its end, in its colour, and lead from one to the other."""
    lines = [line for line in axis.get_lines() if not line.get_label().startswith("_")]
    if not lines:
        return
    bottom, top = axis.get_ylim()
    last = max(float(line.get_xdata()[-1]) for line in lines)
    ends = [float(line.get_ydata()[-1]) for line in lines]
    axis.set_xlim(-0.3, last)
    for line, end, place in zip(lines, ends, spread_out(ends, _LABEL_GAP * (top - bottom), bottom), strict=True):
        arrow = {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0}
        arrow |= {"relpos": (0, 0.5)}  # to the middle of the name's left edge
        axis.annotate(
            line.get_label(), (last, end), (last * 1.05, place), color=line.get_color(), fontsize=9, va="center",
            annotation_clip=False, arrowprops=arrow,
        )  # fmt: skip
