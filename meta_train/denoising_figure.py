"""The figure of the denoising study: PSNR against λ with the λ learned, how it was learned, and many noise levels."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

Row = dict[str, str]
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7")
"""Okabe & Ito's palette, which colour-blind readers can tell apart."""
_STYLES = {
    "one λ for all": ("#000000", ":", "o"),
    "network": ("#D55E00", "-", "s"),
    "λ ∝ σ, σ known": ("#0072B2", "--", "^"),
    "best λ of each image": ("#009E73", "-.", "v"),
}


def draw(facts: dict[str, Any], tables: dict[str, list[Row]], path: Path) -> None:
    """Draw all panels into one PNG."""
    figure, axes = plt.subplots(1, 4, figsize=(19, 4.6), layout="constrained")
    for axis, regularizer, title in zip(axes, ("tikhonov", "tv"), ("Tikhonov", "Total variation"), strict=False):
        _draw_grid(axis, [row for row in tables["grid"] if row["regularizer"] == regularizer])
        axis.axvline(facts[f"learned_{regularizer}"], color="0.5", linestyle="--", label="λ learned")
        axis.set_title(f"{title}: test sets, σ = {255 * facts['settings']['sigma']:.0f}/255", fontsize=11)
        axis.legend(frameon=False, fontsize=9)
    _draw_learning(axes[2], tables["learning"])
    _draw_levels(axes[3], tables["predictor"])
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_grid(axis: Axes, rows: list[Row]) -> None:
    for colour, name in zip(_COLOURS, dict.fromkeys(row["set"] for row in rows), strict=False):
        mine = [row for row in rows if row["set"] == name]
        strengths, values = ([float(row[key]) for row in mine] for key in ("strength", "psnr"))
        axis.plot(strengths, values, marker=".", color=colour, label=name)
        best = max(range(len(values)), key=values.__getitem__)
        axis.plot(strengths[best], values[best], marker="*", markersize=13, color=colour)
    axis.set(xscale="log", xlabel="λ (stars: best of the grid)", ylabel="mean PSNR, dB")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="x", which="both", labelsize=8)


def _draw_learning(axis: Axes, rows: list[Row]) -> None:
    for colour, (regularizer, name) in zip(_COLOURS, (("tikhonov", "Tikhonov"), ("tv", "TV")), strict=False):
        mine = [row for row in rows if row["regularizer"] == regularizer]
        final = float(mine[-1]["strength"])
        axis.plot([int(row["step"]) for row in mine], [float(row["psnr"]) for row in mine], color=colour,
                  label=f"{name}, λ → {final:.3g}")  # fmt: skip
    axis.set(xlabel="step on log λ", ylabel="mean PSNR of the training crops, dB")
    axis.set_title("Learning λ by hypergradients", fontsize=11)
    axis.legend(frameon=False, fontsize=9)


def _draw_levels(axis: Axes, rows: list[Row]) -> None:
    first = rows[0]["set"]
    sigmas = list(dict.fromkeys(row["sigma"] for row in rows if row["set"] == first))
    means = {
        method: [_mean(rows, first, sigma, method) for sigma in sigmas]
        for method in _STYLES
    }  # fmt: skip
    for method, (colour, line, marker) in _STYLES.items():
        below = [best - value for value, best in zip(means[method], means["best λ of each image"], strict=True)]
        if method != "best λ of each image":
            axis.plot([255 * float(sigma) for sigma in sigmas], below, line, color=colour, marker=marker, label=method)
    axis.set(xlabel="σ · 255", ylabel="PSNR short of the best λ of each image, dB")
    axis.set_title(f"Many noise levels, total variation: {first}", fontsize=11)
    axis.legend(frameon=False, fontsize=9)


def _mean(rows: list[Row], name: str, sigma: str, method: str) -> float:
    found = [float(row["psnr"]) for row in rows if (row["set"], row["sigma"], row["method"]) == (name, sigma, method)]
    return sum(found) / len(found)
