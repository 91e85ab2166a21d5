"""Save and load rules: a directory with `rule.json` (what it is) and `rule.safetensors` (θ). Nothing is unpickled."""

import dataclasses
import json
import os
import shutil
import types
import typing
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from l2o.optimizer import LearnedOptimizer
from l2o.rule import ModelBasedRule, UpdateRule
from l2o.rules import CONSTRAINED, MODEL_BASED, RULES

FORMAT_VERSION = 1
_ZOO = Path(__file__).parent / "zoo"
_LARGEST_CARD = 10**7
"""Bytes; a rule.json holds a few thousand."""
_MOST_CALLS = 10_000
"""Calls of torch while a rule is built; an LSTM makes 10 a layer. A card may ask for millions of layers."""
_FLOATS = ("F16", "BF16", "F32", "F64")
"""How safetensors calls the precisions in which weights may come; they are loaded in the default dtype."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or does not fit; the text says which file, what was expected and what came."""


def available() -> list[str]:
    """Return the names of the shipped checkpoints, for `load` and `load_rule`."""
    return sorted(path.parent.name for path in _ZOO.glob("*/rule.json"))


def load(source: str | os.PathLike, params, lr: float | torch.Tensor = 1.0, **options: Any) -> LearnedOptimizer:
    """Return a learned optimizer for a training loop, in place of `torch.optim.Adam(params)`.

    Args:
        source: a shipped name (`available`), a checkpoint directory, a run directory or hf://owner/name[@revision].
        params: parameters or parameter groups, as for every `torch.optim.Optimizer`.
        lr: multiplies the learned update; 1 is what the rule was trained with.
        options: weight_decay, maximize, state_dtype, nonfinite and guard, as for `LearnedOptimizer`.

    Raises:
        CheckpointError: if the checkpoint is missing, damaged or does not fit.
        ValueError: if an option is out of range.
        TypeError: if the rule steps on the structure of a problem, which a training loop does not have.
    """
    rule = load_rule(source)
    if isinstance(rule, ModelBasedRule):
        raise TypeError(
            f"{source} is a {type(rule).__name__}, which steps on a problem's structure and not on gradients: use "
            f'l2o.solve(l2o.load_rule("{source}"), problem)'
        )
    return LearnedOptimizer(params, rule, lr=lr, **options)


def load_rule(source: str | os.PathLike) -> UpdateRule:
    """Return the rule of a checkpoint, on the CPU.

    Args:
        source: a shipped name (`available`), a checkpoint directory, a run directory (its best checkpoint), or
            hf://owner/name[@revision], which is downloaded unless it is in the cache (see `l2o.hub`).

    Raises:
        CheckpointError: if the checkpoint is missing, damaged or does not fit, or cannot be downloaded.
    """
    directory = find(source)
    card, path = read_card(directory), directory / "rule.safetensors"
    description = (card["rule"], card["config"], directory / "rule.json")
    # Options that do not fit the weights may ask for more memory or time than there is.
    with _Bounded(), torch.device("meta"):
        expected = build_rule(*description).state_dict()
    weights = _read_weights(path, expected)
    rule = build_rule(*description)
    rule.load_state_dict(weights)
    if any(not torch.isfinite(tensor).all() for tensor in rule.state_dict().values()):
        raise CheckpointError(f"{path} has weights that are not finite; the training that wrote it diverged")
    return rule


def build_rule(name: str, config: dict[str, Any], origin: object = "config") -> UpdateRule:
    """Build a rule by its name in `RULES`, `MODEL_BASED` or `CONSTRAINED` and its config's fields.

    Raises:
        CheckpointError: if the name or an option is unknown, or an option is of another type or out of range.
    """
    rules = RULES | MODEL_BASED | CONSTRAINED
    if name not in rules:
        raise CheckpointError(f"{origin}: unknown rule {name!r}; this version of l2o has {sorted(rules)}")
    rule_type, config_type = rules[name]
    known = {field.name for field in dataclasses.fields(config_type)}
    if unknown := set(config) - known:
        raise CheckpointError(f"{origin}: unknown options {sorted(unknown)} of rule {name!r}; it has {sorted(known)}")
    try:
        _check_types(config_type, config)
        return rule_type(config_type(**config))
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: more memory than there is
        raise CheckpointError(f"{origin}: rule {name!r} refuses its options {config}: {error}") from error


def rule_name(rule: UpdateRule) -> str:
    """Return the rule's name in `RULES`, `MODEL_BASED` or `CONSTRAINED`.

    Raises:
        TypeError: if the rule is not one of them.
    """
    for name, (rule_type, _) in (RULES | MODEL_BASED | CONSTRAINED).items():
        if type(rule) is rule_type:
            return name
    raise TypeError(
        f"{type(rule).__name__} has no name in l2o.rules.RULES, which lists {sorted(RULES)}; add it there. A rule made "
        "of parts that you give, as GKM is, has none: save rule.state_dict(), and load it into a rule made the same way"
    )


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
    """Return the checkpoint directory for whatever `load_rule` takes.

    Raises:
        CheckpointError: if there is none, or it cannot be downloaded.
    """
    if str(source) in available():
        return _ZOO / str(source)
    if str(source).startswith("hf:"):
        from l2o.hub import fetch  # which imports this module

        return fetch(str(source))
    path = Path(source)
    # `.old` is what a kill in the middle of `save_rule` leaves behind.
    beside = [path.with_name(path.name + ".old")] if path.name else []
    inside = [path / "checkpoints" / name for name in ("best", "best.old", "last", "last.old")]
    try:
        for candidate in (path, *beside, *inside):
            if (candidate / "rule.json").is_file():
                return candidate
        what = "has no rule.json and no checkpoints/best" if path.is_dir() else "is not a directory"
    except OSError as error:  # a name that is too long, a directory that may not be read
        what = f"cannot be looked up ({error.strerror})"
    shown = str(source) if len(str(source)) <= 300 else f"{str(source)[:100]}… ({len(str(source)):,} characters)"
    raise CheckpointError(f"no checkpoint at {shown}: it {what}, and the shipped names are {available()}")


def read_card(directory: Path) -> dict[str, Any]:
    """Return the content of `rule.json`.

    Raises:
        CheckpointError: if it is not JSON, incomplete, or of another format version.
    """
    path = directory / "rule.json"
    try:
        if path.stat().st_size > _LARGEST_CARD:
            raise ValueError(f"it has more than {_LARGEST_CARD} bytes")
        card = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(card, dict) or not isinstance(card.get("rule"), str) or not isinstance(card.get("config"), dict):
        raise CheckpointError(f'{path} lacks "rule" (a name) or "config" (an object); was it written by l2o?')
    if card.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {card.get('format_version')}, this version of l2o reads {FORMAT_VERSION}; "
            "use the l2o version that wrote it, or train again"
        )
    return card


class _Bounded(TorchFunctionMode):
    """Lets torch be called `_MOST_CALLS` times; the next call is a ValueError."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        if self.calls > _MOST_CALLS:
            raise ValueError("it would have more layers or parts than any checkpoint")
        return func(*args, **(kwargs or {}))


def _read_weights(path: Path, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, after its header has been found to say what is expected."""
    try:
        with safe_open(path, "pt") as file:
            headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            _check_fit(path, expected, headers)
            return {name: file.get_tensor(name) for name in headers}
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing, truncated or not a safetensors file: {error}") from error


def _check_fit(path: Path, expected: dict[str, torch.Tensor], headers: dict[str, Any]) -> None:
    """Compare names, shapes and dtypes.

    Raises:
        CheckpointError: with all tensors that do not fit.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    found = {name: tuple(header.get_shape()) for name, header in headers.items()}
    names = sorted(shapes.keys() | found.keys())
    if wrong := {n: (shapes.get(n), found.get(n)) for n in names if shapes.get(n) != found.get(n)}:
        raise CheckpointError(f"{path} does not fit the options in rule.json; (expected, found) shapes: {wrong}")
    if wrong := {n: header.get_dtype() for n, header in headers.items() if header.get_dtype() not in _FLOATS}:
        raise CheckpointError(f"{path} has weights of dtype {wrong}; expected one of {_FLOATS}")


def _check_types(config_type: type, config: dict[str, Any]) -> None:
    """Check plain options, for JSON holds anything, and the text "false" would count as true.

    Raises:
        TypeError: naming the first option of another type.
    """
    hints = typing.get_type_hints(config_type)
    for name, value in config.items():
        if isinstance(value, int) and value > 10**7:  # a list of so many layers would fill the memory
            raise TypeError(f"{name} must be at most 10,000,000, got {value}")
        if not _is_a(value, hints[name]):
            raise TypeError(f"{name} must be {getattr(hints[name], '__name__', hints[name])}, got {value!r}")


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the annotated type, as far as that is plain; the rest is for the config to check."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_is_a(value, part) for part in typing.get_args(hint))
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str, type(None)) else True
