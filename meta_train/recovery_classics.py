"""The classics of the sparse-recovery benchmark, each with the options among which one is chosen.

What is tuned: λ of ISTA and FISTA; λ and ρ of ADMM; λ and the balance of primal and dual steps of Condat–Vũ; α of AMP;
the K of NIHT. Every option is tried on problems of their own, for the number of steps of the race.
"""

import dataclasses
from typing import NamedTuple

import torch

from l2o.problem import Composite, Problem
from l2o.proximal import L1, Box, Diagonal
from l2o.rule import ModelBasedRule
from l2o.rules import (
    ADMM,
    AMP,
    FISTA,
    ISTA,
    NIHT,
    ADMMConfig,
    AMPConfig,
    CondatVu,
    CondatVuConfig,
    FISTAConfig,
    NIHTConfig,
)
from meta_train.recovery_measures import nmse, run
from tasks import Data, Lasso


class Option(NamedTuple):
    """A rule and a λ that could be raced."""

    rule: ModelBasedRule
    strength: float | None
    """λ of the problem; None keeps the family's, which the rule does not look at."""
    label: str
    """What was chosen, for the table."""


_STRENGTHS = tuple(10 ** (exponent / 6) for exponent in range(-18, 1, 2))
_FEWER_STRENGTHS = tuple(10 ** (-exponent / 2) for exponent in range(9))
"""λ where a second option is tuned too; down to 1e-4, for ADMM comes so near to the minimum that its bias remains."""
_SCALES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""ρ in units of ‖A‖², and the balance of Condat–Vũ."""

CLASSICS: dict[str, tuple[Option, ...]] = {
    "ISTA": tuple(Option(ISTA(), s, f"λ = {s:.3g}") for s in _STRENGTHS),
    "FISTA": tuple(Option(FISTA(FISTAConfig(restart="none")), s, f"λ = {s:.3g}") for s in _STRENGTHS),
    "ADMM": tuple(
        Option(ADMM(ADMMConfig(rho)), s, f"λ = {s:.3g}, ρ = {rho:g} ‖A‖²") for s in _FEWER_STRENGTHS for rho in _SCALES
    ),
    "Condat–Vũ": tuple(
        Option(CondatVu(CondatVuConfig(balance)), s, f"λ = {s:.3g}, balance {balance:g}")
        for s in _FEWER_STRENGTHS
        for balance in _SCALES
    ),
    "AMP": tuple(Option(AMP(AMPConfig(0.8 + 0.1 * i)), None, f"α = {0.8 + 0.1 * i:.3g}") for i in range(12)),
    "NIHT": tuple(Option(NIHT(NIHTConfig(kept)), None, f"K = {kept}") for kept in range(30, 81, 5)),
}
"""Name -> what is tried."""


def pose(family: Lasso, tasks: Data, rule: ModelBasedRule, strength: float | None) -> Problem:
    """Return the tasks as the problem that a rule is given, with another λ; Condat–Vũ has λ‖x‖₁ split off."""
    problem = dataclasses.replace(family, strength=strength or family.strength).problem(tasks)
    return split(problem) if isinstance(rule, CondatVu) else problem


def split(problem: Problem) -> Problem:
    """Return the same objective with λ‖x‖₁ as h(Kx), K = I, and g = 0; unsplit, Condat–Vũ is ISTA."""
    identity = Diagonal(torch.ones(problem.operator.in_shape, dtype=problem.b.dtype, device=problem.b.device))
    assert isinstance(problem.regularizer, L1)
    nothing = Box(-torch.inf, torch.inf)
    return dataclasses.replace(problem, regularizer=nothing, composite=Composite(problem.regularizer, identity))


def tune(name: str, family: Lasso, tasks: Data, steps: int) -> tuple[Option, int]:
    """Return the option of a classic with the least NMSE after these many steps, and how many were tried."""

    def score(option: Option) -> float:
        problem = pose(family, tasks, option.rule, option.strength)
        value = nmse(run(option.rule, problem, steps)[-1], tasks["x_star"])
        return value if value == value else float("inf")

    return min(CLASSICS[name], key=score), len(CLASSICS[name])
