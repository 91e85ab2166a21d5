"""Learned optimizers: update rules that are themselves trained, as drop-in `torch.optim` optimizers."""

from l2o.certificate import Certificate, certify
from l2o.checkpoint import CheckpointError, available, load, load_rule, save_rule
from l2o.footprint import Memory, memory
from l2o.guard import Guard
from l2o.optimizer import LearnedOptimizer
from l2o.problem import Composite, Problem
from l2o.rule import CoordinatewiseRule, ModelBasedRule, Observation, UpdateRule
from l2o.solve import Solution, solve

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "CheckpointError",
    "Composite",
    "CoordinatewiseRule",
    "Guard",
    "LearnedOptimizer",
    "Memory",
    "ModelBasedRule",
    "Observation",
    "Problem",
    "Solution",
    "UpdateRule",
    "available",
    "certify",
    "load",
    "load_rule",
    "memory",
    "save_rule",
    "solve",
]
