"""What a benchmark left on disk, read back: the facts, a row per method, a row per step, and what follows from them."""

import contextlib
import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, str]

_HEADROOM = 10.0
"""Curves are drawn up to so many times the highest loss at step 0: a diverging method would hide all others."""
_DECADES = 12
"""Orders of magnitude that an axis spans at most; below lies rounding."""


@dataclass(frozen=True)
class Results:
    """The files of one benchmark."""

    directory: Path
    protocol: dict[str, Any]
    """protocol.json: question, command, settings, environment."""
    summary: list[Row]
    """summary.csv, a row per setting and method."""
    curves: list[Row]
    """curves.csv, a row per setting, method and step."""

    @property
    def settings(self) -> list[str]:
        """Names of the problem families, the one trained on first."""
        return list(self.protocol["settings"])


def read_results(directory: Path) -> Results:
    """Return what `l2o benchmark` wrote.

    Raises:
        ValueError: if a file is missing, empty or damaged.
    """
    with naming(directory):
        protocol = json.loads((directory / "protocol.json").read_text())
        summary, curves = _read_csv(directory / "summary.csv"), _read_csv(directory / "curves.csv")
        return Results(directory, protocol, summary, curves)


@contextlib.contextmanager
def naming(directory: Path) -> Iterator[None]:
    """Turn what damaged files lead to into an error that names the directory."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{directory} is not a benchmark's directory: {type(error).__name__}, {error}") from error


def rows_of(rows: list[Row], setting: str) -> list[Row]:
    """Return the rows of one setting."""
    return [row for row in rows if row["setting"] == setting]


def score(row: Row) -> float:
    """Return the mean sum of losses of a row of the summary; infinity if a run diverged."""
    value = float(row["sum_loss"])
    return value if math.isfinite(value) else math.inf


def standard_error(row: Row) -> float:
    """Return the standard error of `score`."""
    return float(row["sum_loss_sd"]) / math.sqrt(int(row["seeds"]))


def best_classic(rows: list[Row]) -> Row:
    """Return the row of the classic with the least mean sum of losses, of the rows of one setting."""
    return min((row for row in rows if row["kind"] == "classic"), key=score)


def banded_methods(rows: list[Row]) -> set[str]:
    """Return whose spread a figure shows, of the rows of one setting: learned rules and the best classic.

    Bands of all methods lie on each other and hide the lines.
    """
    return {row["method"] for row in rows if row["kind"] == "learned"} | {best_classic(rows)["method"]}


def loss_limits(curves: list[Row]) -> tuple[float, float]:
    """Return the range of losses that a logarithmic axis should show, of the curves of one setting.

    >>> rows = [{"step": "0", "mean": "2"}, {"step": "1", "mean": "0.5"}, {"step": "2", "mean": "1e30"}]
    >>> loss_limits(rows)
    (0.5, 20.0)
    """
    means = [(int(row["step"]), float(row["mean"])) for row in curves]
    positive = [(step, mean) for step, mean in means if 0 < mean < math.inf]
    if not positive:
        return 0.1, 1.0
    first = min(step for step, _ in positive)
    roof = _HEADROOM * max(mean for step, mean in positive if step == first)
    high = min(max(mean for _, mean in positive), roof)
    low = max(min(mean for _, mean in positive), high * 10.0**-_DECADES)
    return low, high


def _read_csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows
