"""What the model card of a rule tells of the race on the LASSO's objective, which knows its rules by their weights."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from l2o.checkpoint import CheckpointError, load_rule
from l2o.rule import UpdateRule
from meta_train.lasso_settings import SETTINGS, rule_name

Row = dict[str, str]

_TOLERANCES = ("1e-04", "1e-06")
_COLUMNS = {"setting", "method", "parameters", "final_mean"}
_COLUMNS |= {f"{what}_mean_{tolerance}" for what in ("ms", "products") for tolerance in _TOLERANCES}
"""What a summary.csv needs to have to be a lasso-objective benchmark's."""


def objective_results(rule: UpdateRule, results: Sequence[Path]) -> str | None:
    """Return the results section of a rule that took part, None if it did not.

    Args:
        results: directories of benchmarks, or directories that hold such directories.
    """
    lines = [
        "CPU-milliseconds a problem (products with A or Aᵀ in brackets) until the mean relative suboptimality is below "
        "a tolerance, one thread; with Safeguarded, which the rule is made for.",
        "",
        "| benchmark | setting | tolerance | with Safeguarded | fastest classic | FISTA-restart | alone it ends at |",
        "|---|---|---|---|---|---|---|",
    ]
    for directory, setting, rows in _races(rule, results):
        methods = {row["method"]: row for row in rows if row["setting"] == setting}
        for tolerance in _TOLERANCES:
            name, best = _best_classic(methods, tolerance)
            lines.append(
                f"| `{directory}` | {setting} | {float(tolerance):g} | "
                f"{_cost(methods['learned + safeguarded'], tolerance)} | {name} {_cost(best, tolerance)} | "
                f"{_cost(methods['FISTA-restart'], tolerance)} | {float(methods['learned']['final_mean']):.1e} |"
            )
    return "\n".join(lines) if len(lines) > 4 else None


def _races(rule: UpdateRule, results: Sequence[Path]) -> Iterator[tuple[Path, str, list[Row]]]:
    """Yield directory, setting and table of every race that this very rule ran in."""
    for folder in results:
        for path in (folder / "summary.csv", *sorted(folder.glob("*/summary.csv"))):
            for setting, family in SETTINGS.items():
                if path.is_file() and _is_kept_at(path.parent / "rules" / rule_name(family.strength), rule):
                    with path.open(newline="") as file:
                        reader = csv.DictReader(file)
                        if set(reader.fieldnames or ()) >= _COLUMNS:
                            yield path.parent, setting, list(reader)


def _is_kept_at(path: Path, rule: UpdateRule) -> bool:
    try:
        other = load_rule(str(path))
    except CheckpointError:
        return False
    if type(other) is not type(rule) or other.config != rule.config:
        return False
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in rule.state_dict().items())


def _best_classic(methods: dict[str, Row], tolerance: str) -> tuple[str, Row]:
    """Return the fastest method that is not learned."""
    classics = {n: r for n, r in methods.items() if not float(r["parameters"] or 0) and r[f"ms_mean_{tolerance}"]}
    name = min(classics, key=lambda name: float(classics[name][f"ms_mean_{tolerance}"]), default="FISTA-restart")
    return name, methods[name]


def _cost(row: Row, tolerance: str) -> str:
    milliseconds, products = (row[f"{what}_mean_{tolerance}"] for what in ("ms", "products"))
    if not milliseconds:
        return "not reached"
    return f"{float(milliseconds):.3g} ms" + (f" ({float(products):.3g})" if products else "")
