"""Draw a benchmark's curves as a picture for its README."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)

from meta_train.report_results import Results, Row, banded_methods, loss_limits, rows_of  # noqa: E402
from meta_train.report_styles import LIGHT, Style, method_styles  # noqa: E402

_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", None: ""}
_MARKER_GAP = 8
"""A marker after every eighth of the curve."""
_WIDTHS = (6.4, 6.4, 5.2)
"""Of a panel in inches, by their number in a row."""
_LEGEND_LETTERS = 11.5
"""Letters of the legend's font in an inch of the figure."""


def draw_curves(results: Results, path: Path) -> None:
    """Draw mean loss against step on a log axis, a panel per setting, with some quartiles as bands."""
    settings = results.settings
    columns = len(settings) if len(settings) <= 3 else 2
    rows = math.ceil(len(settings) / columns)
    size = (_WIDTHS[columns - 1] * columns, 4.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    styles = method_styles(results.summary)
    for axis, setting in zip(axes.flat, settings, strict=False):
        banded = banded_methods(rows_of(results.summary, setting))
        _draw_panel(axis, rows_of(results.curves, setting), styles, banded)
        _draw_mark(axis, rows_of(results.curves, setting), results.protocol["sum_steps"])
        axis.set(title=setting, ylabel=_measure(results))
    for axis in axes.flat[len(settings) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    # As many columns as fit: a name of the user's own may be long.
    n_columns = max(1, min(4, int(_LEGEND_LETTERS * figure.get_figwidth() / (max(map(len, labels)) + 12))))
    figure.legend(handles, labels, loc="outside lower center", ncols=n_columns, frameon=False, handlelength=4)
    measure = f"mean {_measure(results)}, {results.protocol['problems']} test problems"
    figure.suptitle(f"{results.protocol['name']}: {measure}")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _measure(results: Results) -> str:
    """Return what the curves show."""
    return "(f − f*) / mean f*" if results.protocol.get("relative") else "loss"


def _draw_panel(axis, curves: list[Row], styles: dict[str, Style], banded: set[str]) -> None:
    for order, (method, style) in enumerate(styles.items()):
        points = [row for row in curves if row["method"] == method]
        steps, mean, low, high = ([float(row[key]) for row in points] for key in ("step", "mean", "q25", "q75"))
        gap = max(len(steps) // _MARKER_GAP, 1)
        looks = {
            "color": LIGHT[style.colour], "linewidth": style.width, "linestyle": (0, style.dash) if style.dash else "-",
            "marker": _MARKERS[style.marker], "markersize": 6, "markevery": (order * 3 % gap, gap),
        }  # fmt: skip
        axis.plot(steps, mean, label=method, **looks)
        if method in banded:
            axis.fill_between(steps, low, high, color=LIGHT[style.colour], alpha=0.15, linewidth=0)
    bottom, top = loss_limits(curves)
    axis.set(yscale="log", xlabel="step", ylim=(bottom / 1.3, top * 1.3))
    axis.grid(which="major", alpha=0.3)


def _draw_mark(axis, curves: list[Row], sum_steps: int) -> None:
    """Mark where training and tuning ended, if the curves go on."""
    if max(int(row["step"]) for row in curves) <= sum_steps:
        return
    axis.axvline(sum_steps, color="0.6", linewidth=0.8)
    note = {"va": "top", "ha": "right", "fontsize": 7, "color": "0.4", "rotation": 90}
    axis.annotate("trained and tuned up to here", (sum_steps, 0.98), xycoords=("data", "axes fraction"), **note)
