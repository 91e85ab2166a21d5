"""Turn the files of `denoising_study` into a README and a figure; everything can be rebuilt from the files."""

import csv
import json
from pathlib import Path
from typing import Any

from meta_train.denoising_figure import draw
from meta_train.run_directory import made_on

Row = dict[str, str]
TABLES = ("hypergradients", "learning", "grid", "summary", "training", "predictor")
TARGET_DB = 0.02
"""By how much the λ learned may be worse than the best of the grid on the test set itself."""
NAMES = {"tikhonov": "Tikhonov", "tv": "total variation"}


def write_denoising_report(directory: Path) -> str:
    """Write README.md and denoising.png from the CSV files and study.json.

    Returns: the tables, as Markdown.

    Raises:
        ValueError: if the directory was not written by `l2o denoising`.
    """
    try:
        facts = json.loads((directory / "study.json").read_text())
        tables = {name: _read(directory / f"{name}.csv") for name in TABLES}
        readme = _readme(facts, tables)
        draw(facts, tables, directory / "denoising.png")
    except (AttributeError, OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{directory} is not a denoising study: {type(error).__name__}, {error}") from error
    (directory / "README.md").write_text(readme)
    return f"{_one_level(tables['summary'])}\n\n{_many_levels(tables['predictor'])}"


def mean_psnr(rows: list[Row], **wanted: str) -> float:
    """Return the mean PSNR of the rows that have the values, in dB."""
    found = [float(row["psnr"]) for row in rows if all(row[key] == value for key, value in wanted.items())]
    return sum(found) / len(found)


def distinct(rows: list[Row], key: str) -> list[str]:
    """Return the values of a column, each once, in the order of the file."""
    return list(dict.fromkeys(row[key] for row in rows))


def _one_level(summary: list[Row]) -> str:
    lines = [
        "| regularizer | test set | images | noisy | λ learned | PSNR | best λ of the grid | PSNR | short of it |",
        "|---" * 9 + "|",
    ]
    for row in summary:
        cells = [NAMES[row["regularizer"]], row["set"], row["images"], f"{float(row['psnr_noisy']):.2f}"]
        cells += [f"{float(row['learned']):.4g}", f"{float(row['psnr_learned']):.3f}", f"{float(row['best']):.4g}"]
        cells += [f"{float(row['psnr_best']):.3f}", f"{float(row['short_of_best']):.4f} dB"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _many_levels(rows: list[Row]) -> str:
    methods = distinct(rows, "method")
    methods.sort(key=lambda method: mean_psnr(rows, method=method))
    lines = ["| test set | σ · 255 | " + " | ".join(methods) + " |", "|---" * (2 + len(methods)) + "|"]
    for name in distinct(rows, "set"):
        mine = [row for row in rows if row["set"] == name]
        sigmas = distinct(mine, "sigma")
        for sigma in sigmas:
            cells = [f"{mean_psnr(mine, sigma=sigma, method=method):.2f}" for method in methods]
            lines.append(f"| {name} | {255 * float(sigma):.0f} | " + " | ".join(cells) + " |")
        cells = [f"**{mean_psnr(mine, method=method):.2f}**" for method in methods]
        lines.append(f"| {name} | all | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _verdict(facts: dict[str, Any], tables: dict[str, list[Row]]) -> str:
    lines = []
    for row in tables["summary"]:
        short, inside = float(row["short_of_best"]), row["best_is_inside"] == "True"
        reached = "within" if short <= TARGET_DB else "NOT within"
        lines.append(
            f"- *{NAMES[row['regularizer']]}, {row['set']}*: λ = {float(row['learned']):.4g}, learned on "
            f"{facts['settings']['train']}, is {short:.4f} dB short of the best λ of the grid, "
            f"{float(row['best']):.4g}: {reached} {TARGET_DB} dB."
            + ("" if inside else " That best λ lies at the END of the grid.")
        )
    rows = tables["predictor"]
    for name in distinct(rows, "set"):
        mine = [row for row in rows if row["set"] == name]
        found = {method: mean_psnr(mine, method=method) for method in distinct(mine, "method")}
        gain, room = (found[way] - found["one λ for all"] for way in ("network", "best λ of each image"))
        told = found["network"] - found["λ ∝ σ, σ known"]
        lines.append(
            f"- *Many noise levels, {name}*: the network ({facts['weights']} weights) "
            f"{'gains' if gain > 0 else 'LOSES'} {abs(gain):.2f} dB against one λ for all images and levels, of "
            f"{room:.2f} dB that the best λ of each image would gain; it is {abs(told):.2f} dB "
            f"{'above' if told > 0 else 'BELOW'} λ ∝ σ, which is told σ."
        )
    return "\n".join(lines)


def _hypergradients(rows: list[Row]) -> str:
    reference = float(rows[0]["gradient"])
    lines = ["| way | d PSNR / d log λ, dB | off by |", "|---|---|---|"]
    for row in rows:
        value = float(row["gradient"])
        lines.append(f"| {row['way']} | {value:.8g} | {abs(value / reference - 1):.1e} |")
    return "\n".join(lines)


def _readme(facts: dict[str, Any], tables: dict[str, list[Row]]) -> str:
    settings = facts["settings"]
    level = f"{255 * settings['sigma']:.0f}"
    pictures = ", ".join(f"{name} {value:.2f} dB" for name, value in facts["pictures"].items())
    return f"""# denoising: Is a λ learned by hypergradients as good as the best one, and can a network predict it?

Command: `{facts["command"]}` ({facts["cpu_s"]:.0f} CPU s)

½‖x − b‖² + λ‖∇x‖² (Tikhonov) and ½‖x − b‖² + λ TV(x) (total variation, isotropic), pixels in [0, 1], white noise.

## Verdict
{_verdict(facts, tables)}

## One noise level, σ = {level}/255
PSNR in dB, mean over whole images.

{_one_level(tables["summary"])}

![PSNR against λ, learning, and many noise levels](denoising.png)

The first image of {settings["tests"][0]}: noisy, Tikhonov, total variation, truth ({pictures}).

![noisy, Tikhonov, total variation, truth](images.png)

## Many noise levels, total variation
{_many_levels(tables["predictor"])}

*One λ for all* ({facts["constant"]:.4g}) and the *network* saw the same crops, of all levels from the lowest to the
highest. *λ ∝ σ* takes the λ of the table above times σ · 255 / {level}. *Best λ of each image* sees the truth: it is
the best of a grid of 12, and so may be a little below a λ between two of its points.

## Hypergradients of total variation
Mean of two crops of 12×12 pixels, float64.

{_hypergradients(tables["hypergradients"])}

{_method(settings, facts["float32_error_db"])}

{made_on(facts["environment"])}
"""


def _method(settings: dict[str, Any], float32_error: float) -> str:
    training, lower, steps = settings["training"], settings["lower"], settings["solver_steps"]
    crops = "{0} crops of {1}×{1} pixels".format(settings["learning_crops"], settings["crop"])
    pool = "{0} crops of {1}×{1} pixels".format(settings["pool"], settings["pool_crop"])
    first, second = settings["starts"]
    return f"""## Method
λ is learned on {crops} of {settings["train"]} by {settings["learning_steps"]} steps of Adam on log λ, uphill on the
mean PSNR, from {first} (Tikhonov) and {second} (total variation). Tikhonov's solution has a closed form, which autograd
differentiates. That of total variation comes from {lower["steps"]} steps of the accelerated dual method, from where the
λ before has left it, and {lower["last"]} steps of Condat–Vũ, through which the gradient goes. The grid of a test set
has {2 * settings["grid_half"] + 1} values with a ratio of {settings["grid_ratio"]}, the λ learned in their middle, on
the same noise. The network is trained for {training["steps"]} steps of {training["batch"]} out of {pool}.

Tests run in float32, {steps} steps of the dual method at the first λ of a grid and {steps // 4} at each after it. On
one image of {settings["tests"][-1]} that is within {float32_error:.1e} dB of ten times as many in float64, at every λ
of the grid."""


def _read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows
