"""Draw the curves of the neural-art benchmark: a panel for each setting."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)

from meta_train.report_styles import LIGHT, method_styles  # noqa: E402

_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", None: ""}
_MARKER_GAP = 8
"""A marker after every eighth of the curve."""

Row = dict[str, str]


def draw_curves(curves: list[Row], summary: list[Row], path: Path) -> None:
    """Draw the geometric mean of the loss against steps, log axis; methods tuned for the mean over steps alone.

    Args:
        curves, summary: rows of curves.csv and summary.csv.
        path: PNG to write.
    """
    settings = list(dict.fromkeys(row["setting"] for row in summary))
    drawn = [row for row in summary if not row["method"].endswith("(end)")]
    styles = method_styles(drawn)
    figure, axes = plt.subplots(1, len(settings), figsize=(5.2 * len(settings), 4.6), squeeze=False)
    for axis, setting in zip(axes.flat, settings, strict=True):
        bottom, first = math.inf, 1.0
        for method, style in styles.items():
            points = [row for row in curves if row["setting"] == setting and row["method"] == method]
            if not points:
                continue
            steps, mean, low, high = (
                [float(row[key]) for row in points] for key in ("step", "mean_log", "q25_log", "q75_log")
            )
            losses, gap = [math.exp(min(value, 50.0)) for value in mean], max(len(steps) // _MARKER_GAP, 1)
            axis.plot(
                steps, losses, label=method, color=LIGHT[style.colour], linewidth=style.width,
                linestyle=(0, style.dash) if style.dash else "-", marker=_MARKERS[style.marker], markersize=5,
                markevery=(gap // 2, gap),
            )  # fmt: skip
            if style.marker:
                band = ([math.exp(min(value, 50.0)) for value in values] for values in (low, high))
                axis.fill_between(steps, *band, color=LIGHT[style.colour], alpha=0.15, linewidth=0)
            bottom, first = min(bottom, *losses), losses[0]
        axis.set(yscale="log", title=setting, xlabel="step (L-BFGS: evaluation)", ylim=(bottom / 1.2, 1.3 * first))
        axis.grid(which="both", alpha=0.3)
    axes.flat[0].set_ylabel("loss, geometric mean of the pairs")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", ncols=math.ceil(len(labels) / 2), frameon=False, handlelength=3.5
    )
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, dpi=100)
    plt.close(figure)
