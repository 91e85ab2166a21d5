"""What a training configuration is refused for: ranges, contradictions, and a rule that does not fit the run."""

import dataclasses
import inspect
from typing import Any

from l2o.rule import CoordinatewiseRule, ModelBasedRule, UpdateRule
from l2o.rules import MODEL_BASED, RULES
from l2o.rules.lstm import CoordinatewiseLSTM
from meta_train.estimators import ESTIMATORS
from meta_train.estimators.perturbed import EvolutionStrategy
from tasks.task import TaskFamily

_COUNTS = (
    "horizon", "truncation", "n_tasks", "stagger", "outer_steps", "validate_every", "valid_tasks", "checkpoint_every",
)  # fmt: skip
_ESTIMATOR_OPTIONS = {"checkpoint_steps": "truncated", "compile_steps": "truncated", "record_dtype": "recorded"}
"""Options that mean nothing to other estimators."""


def rule_type(rule_config: Any) -> type[UpdateRule] | None:
    """Return the rule that a config belongs to; None if it has no name in `RULES` or `MODEL_BASED`."""
    return next((rule for rule, kind in (RULES | MODEL_BASED).values() if type(rule_config) is kind), None)


def check_ranges(config: Any) -> None:
    """Check every number of a `TrainConfig`, and those that limit one another.

    Raises:
        ValueError: if a count is below one, a size is not positive, or a fraction is outside its range.
    """
    for name in _COUNTS:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value}")
    for name in ("outer_lr", "matrix_lr", "sigma", "clip", "divergence"):
        value = getattr(config, name)
        if not (value is None and name == "clip") and not (value is not None and 0 < value < float("inf")):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not 0 <= config.average < 1:
        raise ValueError(f"average is a decay in [0, 1), got {config.average}")
    if not 0 <= config.final_outer_lr <= 1:
        raise ValueError(f"final_outer_lr is a fraction in [0, 1], got {config.final_outer_lr}")
    if not isinstance(config.seed, int) or not -(2**63) <= config.seed < 2**63:
        raise ValueError(f"seed must be an integer of 64 bits, got {config.seed}")
    if config.truncation > config.horizon:
        raise ValueError(f"truncation ({config.truncation}) must not exceed horizon ({config.horizon})")
    if config.stagger > config.n_tasks:
        raise ValueError(f"stagger ({config.stagger}) must not exceed n_tasks ({config.n_tasks})")
    for most, least in (("horizon", config.lengths.min_horizon), ("truncation", config.lengths.min_truncation)):
        if least is not None and least > getattr(config, most):
            raise ValueError(f"min_{most} ({least}) must not exceed {most} ({getattr(config, most)})")


def check_estimator(config: Any) -> None:
    """Check the name, the order and the options of the estimator, and that it can differentiate the rule.

    Raises:
        ValueError: if one is unknown, or they contradict each other.
    """
    names = ("auto", *ESTIMATORS)
    if config.estimator not in names or config.order not in (1, 2):
        raise ValueError(f"estimator is one of {names} and order 1 or 2, got {config.estimator!r} and {config.order!r}")
    if config.estimator == "recorded" and config.order == 2:
        raise ValueError("recorded gradients are first-order; use --order 1 or --estimator truncated")
    chosen = type(config.build_estimator())
    for name, owner in _ESTIMATOR_OPTIONS.items():
        if getattr(config, name) is not None and name not in {field.name for field in dataclasses.fields(chosen)}:
            raise ValueError(f"{name} is an option of --estimator {owner}, but this run takes {chosen.__name__}")
    rule = rule_type(config.rule)
    if rule is not None and config.estimator == "recorded" and not issubclass(rule, CoordinatewiseRule):
        raise ValueError(
            f"recorded gradients are for coordinate-wise rules, and {rule.__name__} is none; use --estimator truncated"
        )
    if rule is not None and issubclass(rule, ModelBasedRule) and issubclass(chosen, EvolutionStrategy):
        raise ValueError(
            f"--estimator {config.estimator} runs every task with weights of its own, and {rule.__name__} steps on "
            "all tasks at once; use --estimator truncated, or l2o search for a rule with few weights"
        )


def check_rule(config: Any) -> None:
    """Check that a rule has what is to be learned, and a model-based one weights and tasks with a structure to step on.

    Raises:
        ValueError: if it has no gains or no weights, or the task family shows no structure.
    """
    rule, task = rule_type(config.rule), type(config.task)
    if config.learn not in ("weights", "gains"):
        raise ValueError(f"learn must be weights or gains, got {config.learn!r}")
    if config.learn == "gains" and rule is not CoordinatewiseLSTM:
        raise ValueError(f"gains are those of rule:lstm, got {type(config.rule).__name__}; use --learn weights")
    if config.learn == "gains" and config.start_from is None:
        raise ValueError("gains refine an LSTM that was trained before; say which with --start-from")
    if config.learn == "gains" and not config.matrix_lr == config.lengths.layer_lr == 1:
        raise ValueError("gains are neither matrices nor layers: matrix_lr and layer_lr must be 1 with --learn gains")
    if rule is None or not issubclass(rule, ModelBasedRule):
        return
    if task.problem is TaskFamily.problem:
        raise ValueError(
            f"{rule.__name__} steps on a problem's structure, which {task.__name__} has not; take tasks that have one, "
            "such as Lasso, or a rule that steps on gradients, such as rule:lstm"
        )
    wanted = inspect.signature(rule).parameters  # a rule that starts from a generator or a matrix has weights
    if not {"generator", "dictionary"} & set(wanted) and not list(rule(config.rule).parameters()):
        raise ValueError(
            f"{rule.__name__} has no weights, so there is nothing to learn; run it as it is, with l2o.solve, or choose "
            "a rule with weights, such as rule:alista"
        )
