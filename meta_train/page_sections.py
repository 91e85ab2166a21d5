"""The sections of the results page: one for every directory with a README, with curves where a benchmark left them."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meta_train.report_results import (
    Results,
    Row,
    banded_methods,
    best_classic,
    loss_limits,
    naming,
    read_results,
    rows_of,
    score,
)  # fmt: skip
from meta_train.report_styles import method_styles


@dataclass(frozen=True)
class Section:
    """One directory of results."""

    directory: Path
    name: str
    question: str
    verdict: str
    """One sentence, Markdown; empty if the README has none."""
    markdown: str
    """The README."""
    curves: dict[str, Any] | None
    """What the page draws in the place of curves.png; see `curve_data`."""


def is_benchmark(directory: Path) -> bool:
    """Return whether `l2o benchmark` wrote a directory."""
    return (directory / "protocol.json").is_file()


def find_directories(folder: Path) -> list[Path]:
    """Return the directories of results below a folder, those of benchmarks first."""
    found = {path.parent for name in ("README.md", "protocol.json") for path in folder.glob(f"**/{name}")}
    found = {path for path in found - {folder} if "wandb" not in path.relative_to(folder).parts}
    return sorted(found, key=lambda path: (not is_benchmark(path), path))


def read_section(directory: Path) -> Section:
    """Return the section of one directory.

    Raises:
        ValueError: if it has no README.md, or files of a benchmark that are damaged.
    """
    try:
        markdown = (directory / "README.md").read_text()
    except OSError as error:
        raise ValueError(f"{directory} has no README.md to show; results directories have one ({error})") from error
    title = re.match(r"# (.*)", markdown)
    name, _, question = (title[1] if title else directory.name).partition(": ")
    if not is_benchmark(directory):
        return Section(directory, name, question, _first_verdict(markdown), markdown, None)
    results = read_results(directory)
    with naming(directory):
        return Section(directory, name, question, _tally(results), markdown, curve_data(results))


def curve_data(results: Results) -> dict[str, Any]:
    """Return the curves of a benchmark for the page: styles of all methods, and a panel per setting."""
    styles = method_styles(results.summary)
    methods = [{"name": name} | style._asdict() for name, style in styles.items()]
    panels = [
        {
            "title": setting,
            "limits": loss_limits(rows := rows_of(results.curves, setting)),
            "steps": sorted({int(row["step"]) for row in rows}),
            "mark": results.protocol["sum_steps"],
            "banded": sorted(banded_methods(rows_of(results.summary, setting))),
            "series": {name: _columns(rows, name) for name in styles},
        }
        for setting in results.settings
    ]
    return {"name": results.protocol["name"], "methods": methods, "panels": panels}


def _columns(rows: list[Row], method: str) -> dict[str, list[float | None]]:
    """Return mean and quartiles at every step of the setting; None where there is no finite number."""
    steps = sorted({int(row["step"]) for row in rows})
    by_step = {int(row["step"]): row for row in rows if row["method"] == method}
    return {
        key: [_finite(by_step[step][key]) if step in by_step else None for step in steps]
        for key in ("mean", "q25", "q75")
    }


def _finite(text: str) -> float | None:
    """Return a number, or None: JSON has no word for infinity."""
    value = float(text)
    return value if math.isfinite(value) else None


def _tally(results: Results) -> str:
    """Return in how many settings every learned rule beat the best classic."""
    wins: dict[str, list[bool]] = {}
    for setting in results.settings:
        rows = rows_of(results.summary, setting)
        for row in (row for row in rows if row["kind"] == "learned"):
            wins.setdefault(row["method"], []).append(score(row) < score(best_classic(rows)))
    tally = "; ".join(
        f"**{method}** beats the best classic in {sum(won)} of {len(won)} setting{'s' * (len(won) > 1)}"
        for method, won in wins.items()
    )
    return f"{tally}." if tally else ""


def _first_verdict(markdown: str) -> str:
    """Return the first item or paragraph below "## Verdict"."""
    found = re.search(r"^## Verdict\n+(?:- )?(.+?)(?=\n- |\n\n|\n#|\Z)", markdown, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""
