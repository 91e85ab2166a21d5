"""Learned optimizers: update rules that are themselves trained, as drop-in `torch.optim` optimizers."""

from l2o import constrained, gradient_flow, layer_norms, nonexpansive, proximal, rules, saddle
from l2o.anderson import Anderson, AndersonSolver
from l2o.certificate import Certificate, certify
from l2o.checkpoint import CheckpointError, available, load, load_rule, save_rule
from l2o.equilibrium import FixedPoint
from l2o.fixed_point import FixedPointResult, fixed_point
from l2o.footprint import Memory, memory
from l2o.guard import Guard
from l2o.implicit import NotConvergedError, NotConvergedWarning
from l2o.krylov import CG, GMRES
from l2o.linear_solvers import Dense, LinearReport, LinearSolver, Neumann
from l2o.newton import Newton
from l2o.optimizer import LearnedOptimizer
from l2o.problem import Composite, Problem
from l2o.root import root
from l2o.rule import CoordinatewiseRule, ModelBasedRule, Observation, UpdateRule
from l2o.solve import Solution, solve

__version__ = "0.1.0"

__all__ = [
    "CG",
    "GMRES",
    "Anderson",
    "AndersonSolver",
    "Certificate",
    "CheckpointError",
    "Composite",
    "CoordinatewiseRule",
    "Dense",
    "FixedPoint",
    "FixedPointResult",
    "Guard",
    "LearnedOptimizer",
    "LinearReport",
    "LinearSolver",
    "Memory",
    "ModelBasedRule",
    "Neumann",
    "Newton",
    "NotConvergedError",
    "NotConvergedWarning",
    "Observation",
    "Problem",
    "Solution",
    "UpdateRule",
    "available",
    "certify",
    "constrained",
    "fixed_point",
    "gradient_flow",
    "layer_norms",
    "load",
    "load_rule",
    "memory",
    "nonexpansive",
    "proximal",
    "root",
    "rules",
    "saddle",
    "save_rule",
    "solve",
]
