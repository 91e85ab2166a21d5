"""A checkpoint's model card, README.md, written from its rule.json, its weights and the benchmarks it took part in.

Nothing in a card is typed by hand: what was observed about a checkpoint and stands in no other file goes into the list
"notes" of its rule.json, by `l2o card NAME --note "…"`.
"""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from l2o.checkpoint import available, find, load_rule, read_card
from l2o.footprint import memory
from l2o.rule import CoordinatewiseRule, ModelBasedRule, UpdateRule
from l2o.rules.sobolev import GradientRule, SobolevRule
from meta_train.config import TrainConfig
from meta_train.config_json import from_json
from meta_train.lasso_card import objective_results
from meta_train.recovery_card import MODEL_BASED_LIMIT, recovery_results, usage
from meta_train.training_command import training_command

Row = dict[str, str]
"""A row of a benchmark's summary.csv, with the benchmark's directory."""

_COLUMNS = {"setting", "method", "kind", "seeds", "sum_loss", "best_classic", "wins", "diverged"}
"""What a summary.csv needs to have to be a benchmark's."""
_WEIGHTING = {"mean": "mean of the losses", "linear": "losses weighted by their step", "final": "the last loss"}
_INTRODUCTION = """\
A learned optimizer for l2o: an update rule that was itself trained. It goes where `torch.optim.Adam` was.

    optimizer = l2o.load("{}", model.parameters())"""
_METADATA = "---\nlibrary_name: l2o\ntags:\n- learned-optimizer\n- pytorch\n---\n"
"""What the Hub reads at the top of a card."""


def write_card(source: str | os.PathLike, results: Sequence[Path], notes: Sequence[str] = ()) -> Path:
    """Write README.md into a checkpoint's directory and return its path.

    Args:
        source: as for `l2o.load_rule`.
        results: directories of benchmarks, or directories that hold such directories, as a run directory may itself.
        notes: kept in rule.json, in the place of those that are there; none keeps those.

    Raises:
        CheckpointError: if it is no checkpoint.
        OSError: if the directory cannot be written.
    """
    load_rule(source)
    directory = find(source)
    if notes:
        facts = json.dumps(read_card(directory) | {"notes": list(notes)}, indent=2, ensure_ascii=False)
        _replace(directory / "rule.json", facts + "\n")
    _replace(directory / "README.md", card_text(source, results))
    return directory / "README.md"


def card_text(source: str | os.PathLike, results: Sequence[Path], address: str | None = None) -> str:
    """Return the card's Markdown.

    Args:
        source: as for `l2o.load_rule`.
        results: as for `write_card`.
        address: where it will be on the Hub, owner/name.

    Raises:
        CheckpointError: if it is no checkpoint.
    """
    facts, rule = read_card(find(source)), load_rule(source)
    config = _training_config(facts)
    rows = list(_benchmark_rows((*results, Path(source))))
    own = [row for row in rows if row["kind"] == "learned" and row["method"] == Path(source).resolve().name]
    title, where = (address.split("/")[-1], f"hf://{address}") if address else (Path(source).resolve().name, source)
    own_command = f"`l2o card {source}` writes this page; do not edit it." if str(source) in available() else ""
    found, limits = _results(own, rows), _limits(facts, rule, config, own, rows)
    introduction = _INTRODUCTION.format(where)
    if isinstance(rule, ModelBasedRule):
        introduction = usage(where, rule.layers)
        recovered, losses = recovery_results(Path(source).resolve().name, (*results, Path(source)), config)
        found = found if own else objective_results(rule, (*results, Path(source))) or recovered
        limits = "\n".join([limits, *(f"- {text}" for text in losses)])
    return (
        f"""{_METADATA if address else ""}# {title}

{introduction}

{_properties(facts, rule, config)}

## Results
{found}

## Limits
{limits}

{own_command}
""".rstrip()
        + "\n"
    )


def _properties(facts: dict[str, Any], rule: UpdateRule, config: TrainConfig | None) -> str:
    options = ", ".join(f"{name} {value}" for name, value in facts["config"].items())
    training, found = facts.get("training", {}), facts.get("results", {})
    lines = {
        "rule": f"`{facts['rule']}`: {options}",
        "weights": f"{sum(p.numel() for p in rule.parameters()):,} numbers",
    }
    if isinstance(rule, GradientRule):
        lines["state"] = f"{_bytes(rule):.0f} bytes per parameter (Adam: 8), "
        lines["state"] += f"{_bytes(rule, torch.bfloat16):.0f} with `state_dtype=torch.bfloat16`"
    if "imported_from" in training:
        lines["origin"] = (
            f"`{training['imported_from']}`, SHA-256 {training['sha256']}; converted: `{training['command']}`"
        )
    if config is not None:
        lines["trained on"] = f"`{config.task}`"
        lines["horizon"] = f"{config.horizon} inner steps, {config.truncation} at most between two outer steps"
        loss = config.meta_loss
        measure = "" if loss.measure == "loss" else ", of their logarithms"
        lines["meta-loss"] = (
            f"{_WEIGHTING[loss.weighting]}{measure}, on {loss.split}; inner steps on {loss.inner_split}"
        )
        if "search" in training:
            lines["random search"] = ", ".join(f"{name} {value}" for name, value in training["search"].items())
        else:
            lines["meta-gradient"] = f"{type(config.build_estimator()).__name__}, order {config.order}"
        if "outer_step" in training:
            lines["chosen"] = f"after outer step {training['outer_step']} of {config.outer_steps}"
        lines["command"] = f"`{_command(facts, config)}`"
    if found:
        lines["validation"] = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {text} |" for name, text in lines.items())


def _command(facts: dict[str, Any], config: TrainConfig) -> str:
    return facts["training"].get("command") or training_command(config) or "meta_train.api.train, from Python"


def _results(own: list[Row], rows: list[Row]) -> str:
    if not own:
        return "It has taken part in no benchmark that is recorded here; `l2o benchmark` runs one."
    lines = [
        "Mean over test problems of the sum of the losses, against classics whose learning rates were tuned.",
        "",
        "| benchmark | setting | problems | this rule | best classic | difference | lower on |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in own:
        cells = (
            f"`{row['directory']}`", row["setting"], row["seeds"], f"{float(row['sum_loss']):.4g}",
            f"{row['best_classic']} {_best_classic(row, rows):.4g}", f"{_difference(row, rows):+.0%}",
            f"{float(row['wins']):.0%} of the problems",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _limits(
    facts: dict[str, Any], rule: UpdateRule, config: TrainConfig | None, own: list[Row], rows: list[Row]
) -> str:
    limits = ["A specialist: do not expect it to train what is not listed here; compare with a tuned Adam first."]
    if isinstance(rule, ModelBasedRule):
        limits = [MODEL_BASED_LIMIT]
    if config is not None:
        limits.append(f"It was trained to make {config.horizon} steps; what it does later was no part of its training.")
    for row in own:
        if not (change := _difference(row, rows)) < 0:
            limits.append(f"**It loses** on *{row['setting']}*: {change:+.0%} against {row['best_classic']}.")
        if int(row["diverged"]):
            limits.append(f"**It diverged** on {row['diverged']} of {row['seeds']} problems of *{row['setting']}*.")
    coordinates = rule.coordinates if isinstance(rule, SobolevRule) else rule
    if isinstance(coordinates, CoordinatewiseRule) and (drift := _drift(coordinates)):
        limits.append(f"A parameter whose gradient is zero all the time moves by {drift:.2g} in 100 steps (lr 1).")
    return "\n".join(f"- {text}" for text in (*limits, *facts.get("notes", [])))


def _training_config(facts: dict[str, Any]) -> TrainConfig | None:
    """Return what the checkpoint was trained with, if that is known and this version understands it."""
    try:
        return from_json(facts["training"]["config"])
    except (KeyError, TypeError, ValueError):
        return None


def _bytes(rule: GradientRule, state_dtype: torch.dtype | None = None) -> float:
    return memory(rule, [torch.empty(10**6, device="meta", requires_grad=True)], state_dtype).per_parameter


@torch.no_grad()
def _drift(rule: CoordinatewiseRule, steps: int = 100) -> float:
    grads, position = torch.zeros(1), torch.zeros(1)
    state = rule.init_coordinates(grads)
    for step in range(steps):
        update, state = rule.update(grads, state, torch.tensor(step))
        position += update
    return position.abs().item()


def _benchmark_rows(results: Sequence[Path]) -> Iterator[Row]:
    for folder in results:
        for path in (folder / "summary.csv", *sorted(folder.glob("*/summary.csv"))):
            if path.is_file():
                with path.open(newline="") as file:
                    reader = csv.DictReader(file)
                    if set(reader.fieldnames or ()) >= _COLUMNS:
                        yield from (row | {"directory": str(path.parent)} for row in reader)


def _best_classic(row: Row, rows: list[Row]) -> float:
    same = (row["directory"], row["setting"], row["best_classic"])
    found = [
        float(other["sum_loss"]) for other in rows if (other["directory"], other["setting"], other["method"]) == same
    ]
    return found[0] if found else float("nan")


def _difference(row: Row, rows: list[Row]) -> float:
    return float(row["sum_loss"]) / _best_classic(row, rows) - 1


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.replace(path)
