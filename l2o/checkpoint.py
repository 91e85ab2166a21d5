"""Save and load rules: a directory with `rule.json` (what it is) and `rule.safetensors` (θ). Nothing is unpickled."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from l2o.optimizer import LearnedOptimizer
from l2o.rule import UpdateRule
from l2o.rules import RULES

FORMAT_VERSION = 1
_ZOO = Path(__file__).parent / "zoo"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or does not fit; the text says which file, what was expected and what came."""


def available() -> list[str]:
    """Return the names of the shipped checkpoints, for `load` and `load_rule`."""
    return sorted(path.parent.name for path in _ZOO.glob("*/rule.json"))


def load(source: str | os.PathLike, params, lr: float | torch.Tensor = 1.0, **options: Any) -> LearnedOptimizer:
    """Return a learned optimizer for a training loop, in place of `torch.optim.Adam(params)`.

    Args:
        source: a shipped name (`available`), a checkpoint directory or a run directory.
        params: parameters or parameter groups, as for every `torch.optim.Optimizer`.
        lr: multiplies the learned update; 1 is what the rule was trained with.
        options: weight_decay, maximize, state_dtype and nonfinite, as for `LearnedOptimizer`.

    Raises:
        CheckpointError: if the checkpoint is missing, damaged or does not fit.
        ValueError: if an option is out of range.
    """
    return LearnedOptimizer(params, load_rule(source), lr=lr, **options)


def load_rule(source: str | os.PathLike) -> UpdateRule:
    """Return the rule of a checkpoint, on the CPU.

    Args:
        source: a shipped name (`available`), a checkpoint directory, or a run directory (its best checkpoint).

    Raises:
        CheckpointError: if the checkpoint is missing, damaged or does not fit.
    """
    directory = find(source)
    card = read_card(directory)
    rule = build_rule(card["rule"], card["config"], directory / "rule.json")
    _load_weights(rule, directory / "rule.safetensors")
    return rule


def build_rule(name: str, config: dict[str, Any], origin: object = "config") -> UpdateRule:
    """Build a rule by its name in `RULES` and its config's fields.

    Raises:
        CheckpointError: if the name or an option is unknown, or an option is out of range.
    """
    if name not in RULES:
        raise CheckpointError(f"{origin}: unknown rule {name!r}; this version of l2o has {sorted(RULES)}")
    rule_type, config_type = RULES[name]
    known = {field.name for field in dataclasses.fields(config_type)}
    if unknown := set(config) - known:
        raise CheckpointError(f"{origin}: unknown options {sorted(unknown)} of rule {name!r}; it has {sorted(known)}")
    try:
        return rule_type(config_type(**config))
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: more memory than there is
        raise CheckpointError(f"{origin}: rule {name!r} refuses its options {config}: {error}") from error


def rule_name(rule: UpdateRule) -> str:
    """Return the rule's name in `RULES`.

    Raises:
        TypeError: if the rule is not one of them.
    """
    for name, (rule_type, _) in RULES.items():
        if type(rule) is rule_type:
            return name
    raise TypeError(f"{type(rule).__name__} has no name in l2o.rules.RULES, which lists {sorted(RULES)}; add it there")


def save_rule(rule: UpdateRule, directory: str | os.PathLike, **card: Any) -> Path:
    """Write a checkpoint; an existing one is replaced only when the new one is complete.

    Args:
        card: JSON-able facts for `rule.json`, such as training=… and results=….
    """
    directory = Path(directory)
    fresh, old = directory.with_name(directory.name + ".new"), directory.with_name(directory.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in rule.state_dict().items()}
    save_file(weights, fresh / "rule.safetensors")
    content = {"format_version": FORMAT_VERSION, "rule": rule_name(rule), "config": dataclasses.asdict(rule.config)}
    (fresh / "rule.json").write_text(json.dumps(content | card, indent=2) + "\n")
    if directory.exists():  # only then: else `.old`, left by a kill, is the one complete checkpoint
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
    fresh.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
    return directory


def find(source: str | os.PathLike) -> Path:
    """Return the checkpoint directory for a shipped name, a checkpoint directory or a run directory.

    Raises:
        CheckpointError: if there is none.
    """
    if str(source) in available():
        return _ZOO / str(source)
    path = Path(source)
    # `.old` is what a kill in the middle of `save_rule` leaves behind.
    beside = [path.with_name(path.name + ".old")] if path.name else []
    inside = [path / "checkpoints" / name for name in ("best", "best.old", "last", "last.old")]
    for candidate in (path, *beside, *inside):
        if (candidate / "rule.json").is_file():
            return candidate
    what = "has no rule.json and no checkpoints/best" if path.is_dir() else "is not a directory"
    raise CheckpointError(f"no checkpoint at {source}: it {what}, and the shipped names are {available()}")


def read_card(directory: Path) -> dict[str, Any]:
    """Return the content of `rule.json`.

    Raises:
        CheckpointError: if it is not JSON, incomplete, or of another format version.
    """
    path = directory / "rule.json"
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(card, dict) or not isinstance(card.get("rule"), str) or not isinstance(card.get("config"), dict):
        raise CheckpointError(f'{path} lacks "rule" (a name) or "config" (an object); was it written by l2o?')
    if card.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {card.get('format_version')}, this version of l2o reads {FORMAT_VERSION}; "
            "use the l2o version that wrote it, or train again"
        )
    return card


def _load_weights(rule: UpdateRule, path: Path) -> None:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing, truncated or not a safetensors file: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in rule.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        wrong = {name: (expected.get(name), found.get(name)) for name in sorted(set(expected) ^ set(found))}
        wrong |= {n: (expected[n], found[n]) for n in expected.keys() & found.keys() if expected[n] != found[n]}
        raise CheckpointError(f"{path} does not fit the options in rule.json; (expected, found) shapes: {wrong}")
    rule.load_state_dict(weights)
    if any(not torch.isfinite(tensor).all() for tensor in weights.values()):
        raise CheckpointError(f"{path} has weights that are not finite; the training that wrote it diverged")
