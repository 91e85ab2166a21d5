"""Choose ρ and over-relaxation of ADMM for a λ, on codes that no table is about."""

import torch

from l2o.problem import Problem
from l2o.rules import ADMM, ADMMConfig
from l2o.solve import init_state, make_step
from meta_train.lasso_race import Row, optima
from meta_train.lasso_settings import ADMM_CODES, ADMM_PROBLEMS, ADMM_RELAXATIONS, ADMM_RHOS, ADMM_STEPS
from tasks import Lasso

EVERY = 2
"""Steps between two looks at F."""


def tune_admm(family: Lasso, tolerance: float = 1e-6) -> tuple[ADMMConfig, list[Row]]:
    """Return the options that take the fewest steps to a mean relative suboptimality, and all that were tried.

    All steps cost the same, whatever ρ and α are. Without any that comes there, the options with the least error win.
    """
    problem = family.problem(family.sample_tasks(ADMM_PROBLEMS, torch.Generator().manual_seed(ADMM_CODES)))
    optimum, rows = optima(problem).values, []
    for rho in ADMM_RHOS:
        for relaxation in ADMM_RELAXATIONS:
            steps, error = steps_to(problem, ADMM(ADMMConfig(rho, relaxation)), optimum, tolerance)
            rows.append({"rho": rho, "relaxation": relaxation, "steps": steps or "", "error": error})
    best = min(rows, key=lambda row: (row["steps"] or ADMM_STEPS + 1, row["error"]))
    return ADMMConfig(best["rho"], best["relaxation"]), rows


@torch.no_grad()
def steps_to(problem: Problem, rule: ADMM, optimum: torch.Tensor, tolerance: float) -> tuple[int | None, float]:
    """Return after how many steps a tolerance is reached, None if it is not, and the last mean error."""
    double, x, error = problem.double(), problem.zeros(), float("inf")
    state = init_state(rule, problem, x)
    for step in range(ADMM_STEPS):
        x, state = make_step(rule, problem, x, state, step)
        if step % EVERY == EVERY - 1:
            error = ((double.value(x.double()) - optimum) / optimum).mean().item()
            if error <= tolerance:
                return step + 1, error
    return None, error
