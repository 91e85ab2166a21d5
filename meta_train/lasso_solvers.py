"""Reference solvers of other packages in the race on the LASSO's objective: coordinate descent and working sets.

Each problem is solved alone, from its b to the codes, in float64, with the loosest of its tolerances that brings the
mean relative suboptimality below that of the table. A package that is not installed is left out, and named.
"""

import importlib.util
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import L1
from meta_train.lasso_race import TOLERANCES, Optima, Row, figures
from meta_train.recovery_measures import support_f1

Fit = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]
"""(A, b, λ / rows, tolerance) -> x."""
_TOLERANCES = tuple(10.0**-k for k in range(2, 13))


def reference_rows(problem: Problem, optima: Optima, count: int, like: Row) -> tuple[list[Row], list[str]]:
    """Return a row for every solver that is installed, and the packages that are not.

    Args:
        count: how many of the problems are solved.
        like: a row of the table, whose other columns stay empty.
    """
    rows, missing = [], []
    for name, (package, make) in SOLVERS.items():
        if importlib.util.find_spec(package) is None:
            missing.append(name)
        else:
            rows.append(_row(f"{name} ({count} problems)", make(problem), problem, optima, count, like))
    return rows, missing


def _row(name: str, fit: Fit, problem: Problem, optima: Optima, count: int, like: Row) -> Row:
    row: Row = dict.fromkeys(key for key in like if key != "setting") | {"method": name, "parameters": 0}
    part = Problem(problem.operator, problem.b[:count], problem.regularizer).double()
    _solve(fit, part, _TOLERANCES[0])  # what is compiled at the first call is not in the times
    remaining = list(TOLERANCES)
    for tolerance in _TOLERANCES:
        codes, seconds = _solve(fit, part, tolerance)
        errors = (part.value(codes) - optima.values[:count]) / optima.values[:count]
        while remaining and errors.mean() <= remaining[0]:
            row[f"ms_mean_{remaining.pop(0):.0e}"] = f"{1000 * seconds / count:.4g}"
        if not remaining:
            return row | figures(errors) | {"f1": f"{support_f1(codes, optima.x[:count]):.4f}"}
    return row


def _solve(fit: Fit, problem: Problem, tolerance: float) -> tuple[Tensor, float]:
    """Return the codes of all items and the CPU seconds."""
    assert isinstance(problem.regularizer, L1)
    A = np.asfortranarray(problem.operator.matrix.numpy())  # pyright: ignore (a dictionary)
    strength, begun, codes = float(problem.regularizer.strength) / len(A), time.process_time(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the tolerance was not reached: what was is measured here
        for b in problem.b.numpy():
            codes.append(torch.from_numpy(fit(A, b, strength, tolerance)))
    return torch.stack(codes), time.process_time() - begun


def _scikit_learn(problem: Problem) -> Fit:
    from sklearn.linear_model import Lasso

    A = problem.operator.matrix.double()  # pyright: ignore (a dictionary)
    gram = (A.mT @ A).numpy()

    def fit(A: np.ndarray, b: np.ndarray, strength: float, tolerance: float) -> np.ndarray:
        rule = Lasso(strength, fit_intercept=False, precompute=gram, tol=tolerance, max_iter=10_000)  # pyright: ignore
        return rule.fit(A, b).coef_.copy()

    return fit


def _celer(problem: Problem) -> Fit:
    from celer import Lasso  # pyright: ignore (an extra)

    return lambda A, b, strength, tolerance: Lasso(strength, fit_intercept=False, tol=tolerance).fit(A, b).coef_.copy()


def _skglm(problem: Problem) -> Fit:
    from skglm import Lasso  # pyright: ignore (an extra)

    return lambda A, b, strength, tolerance: Lasso(strength, fit_intercept=False, tol=tolerance).fit(A, b).coef_.copy()


SOLVERS: dict[str, tuple[str, Callable[[Problem], Fit]]] = {
    "scikit-learn CD": ("sklearn", _scikit_learn),
    "celer": ("celer", _celer),
    "skglm": ("skglm", _skglm),
}
"""Name -> its package, and what makes the solver for the dictionary of a problem."""
