"""The command line of a training configuration: the nearest preset, and an option for every field that differs."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from l2o.rules import MODEL_BASED, RULES
from meta_train.config import PRESETS, TrainConfig
from meta_train.config_json import to_json


def training_command(config: TrainConfig, presets: Mapping[str, TrainConfig] = PRESETS) -> str | None:
    """Return the `l2o train` that asks for this configuration; None if its task family is in no preset.

    Args:
        presets: what each name stands for.

    >>> training_command(dataclasses.replace(PRESETS["digits"], horizon=200, clip=None))
    'l2o train digits --horizon 200 --clip None'
    """
    wanted = to_json(config)
    commands = [
        ["l2o", "train", name, *_options(to_json(preset), wanted)]
        for name, preset in presets.items()
        if type(preset.task) is type(config.task)
    ]
    return shlex.join(min(commands, key=len)) if commands else None


def _options(preset: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return the options, those of the rule behind its name."""
    rule, usual = wanted["rule"], preset["rule"]
    if rule["name"] != usual["name"]:
        usual = {"name": rule["name"], **dataclasses.asdict((RULES | MODEL_BASED)[rule["name"]][1]())}
    own = list(_differences("--rule.", usual, rule))
    chosen = [f"rule:{rule['name']}"] if own or rule["name"] != preset["rule"]["name"] else []
    return [*_differences("--", preset, {k: v for k, v in wanted.items() if k != "rule"}), *chosen, *own]


def _differences(prefix: str, usual: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for name, value in wanted.items():
        option = prefix + name.replace("_", "-")
        if isinstance(value, dict):
            yield from _differences(f"{option}.", usual[name], value)
        elif value != usual[name]:
            if isinstance(value, bool):
                yield option if value else f"{prefix}no-{name.replace('_', '-')}"
            else:
                yield from (option, *map(str, value if isinstance(value, list | tuple) else [value]))
