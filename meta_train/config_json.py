"""The JSON form of a training run's configuration, as config.json and model cards hold it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from l2o.checkpoint import build_rule
from l2o.rules import MODEL_BASED, RULES
from meta_train.config import TrainConfig
from meta_train.estimators import MetaLoss
from meta_train.lengths import Lengths
from tasks import TASKS
from tasks.task import TaskFamily


def config_name(rule_config: Any) -> str:
    """Return the name in `RULES` or `MODEL_BASED` of a rule's config.

    Raises:
        ValueError: if it has none.
    """
    return _name(
        rule_config, {name: config_type for name, (_, config_type) in (RULES | MODEL_BASED).items()}, "l2o.rules.RULES"
    )


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Return the config as JSON-able dictionaries; `from_json` is its inverse.

    A task family that is not in `tasks.TASKS`, such as a ModuleTask, is only named: `from_json` needs it again.

    Raises:
        ValueError: if the rule has no name.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return values | {
        "task": _task_to_json(config.task),
        "rule": {"name": config_name(config.rule), **dataclasses.asdict(config.rule)},
        "meta_loss": dataclasses.asdict(config.meta_loss),
        "lengths": dataclasses.asdict(config.lengths),
    }


def from_json(values: dict[str, Any], task: TaskFamily | None = None) -> TrainConfig:
    """Rebuild a config that `to_json` wrote.

    Args:
        task: the task family, which is needed if it was made in Python and else not looked at.

    Raises:
        ValueError: if a name or an option is unknown or out of range, or a task family is missing or of another type.
    """
    try:
        values = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
        task = _task_from_json(values.pop("task"), task)
        rule = build_rule(values["rule"].pop("name"), values.pop("rule")).config
        meta_loss = MetaLoss(**values.pop("meta_loss"))
        lengths = Lengths(**values.pop("lengths", {}))
        return TrainConfig(task=task, rule=rule, meta_loss=meta_loss, lengths=lengths, **values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a training configuration of this version of l2o: {error!r}") from error


def _task_to_json(task: TaskFamily) -> dict[str, Any]:
    if type(task) not in TASKS.values():
        return {"python": _type_name(task), **task.describe()}
    # Every family in TASKS is a dataclass, which the base class cannot say.
    return {"name": _name(task, TASKS, "tasks.TASKS"), **dataclasses.asdict(task)}  # pyright: ignore


def _task_from_json(values: dict[str, Any], task: TaskFamily | None) -> TaskFamily:
    made_in_python = values.get("python")
    if made_in_python is None:
        family = TASKS[values.pop("name")]
        return family(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    if task is None:
        raise ValueError(
            f"the tasks of this run are a {made_in_python} made in Python: continue it there, with meta_train.api.train"
        )
    now = _task_to_json(task)
    if now.get("python") != made_in_python:
        raise ValueError(f"the tasks of this run are a {made_in_python}, not a {_type_name(task)}")
    changed = [f"{name} was {values.get(name)} and is {now[name]}" for name in now if values.get(name) != now[name]]
    if changed:
        raise ValueError(f"the tasks of this run are others than those given: {'; '.join(changed)}")
    return task


def _type_name(task: TaskFamily) -> str:
    return f"{type(task).__module__}.{type(task).__qualname__}"


def _name(value: object, types: Mapping[str, type], table: str) -> str:
    for name, known in types.items():
        if type(value) is known:
            return name
    raise ValueError(f"{type(value).__name__} has no name in {table}, which lists {sorted(types)}; add it there")
