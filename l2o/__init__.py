"""Learned optimizers: update rules that are themselves trained, as drop-in `torch.optim` optimizers."""

from l2o.checkpoint import CheckpointError, available, load, load_rule, save_rule
from l2o.footprint import Memory, memory
from l2o.optimizer import LearnedOptimizer
from l2o.rule import CoordinatewiseRule, Observation, UpdateRule

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "CoordinatewiseRule",
    "LearnedOptimizer",
    "Memory",
    "Observation",
    "UpdateRule",
    "available",
    "load",
    "load_rule",
    "memory",
    "save_rule",
]
