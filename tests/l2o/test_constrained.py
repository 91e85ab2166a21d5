"""Certificates of linearly constrained problems: bounds that cvxpy's optimum lies between, and that close."""

import cvxpy
import numpy as np
import pytest
import torch

from l2o.constrained import ConstrainedProblem
from l2o.proximal import L1, Box, Dictionary, SquaredL2
from l2o.rules import DLADMM, GKM, LADMM, DLADMMConfig, LinearizedALM, Spectrum
from l2o.solve import solve
from tasks.lasso import problem as lasso

ROWS, COLUMNS = 6, 10


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, B = draw(ROWS, COLUMNS), draw(2, ROWS, seed=3)
NORMS = {
    "L1": (L1(), cvxpy.norm1),
    "L1, strength 0.3": (L1(0.3), lambda v: 0.3 * cvxpy.norm1(v)),
    "SquaredL2": (SquaredL2(2.0), cvxpy.sum_squares),
    "Box": (Box(-0.4, 0.4), None),
    "none": (None, None),
}
CASES = [("L1", "L1"), ("L1, strength 0.3", "L1"), ("L1", "SquaredL2"), ("SquaredL2", "L1"), ("L1", "none"),
         ("SquaredL2", "none"), ("Box", "L1")]  # fmt: skip


def problem(first: str, second: str) -> ConstrainedProblem:
    return ConstrainedProblem(Dictionary(A), B, NORMS[first][0], NORMS[second][0])


def optimum(first: str, second: str) -> np.ndarray:
    found = []
    for b in B.numpy():
        z, e = cvxpy.Variable(COLUMNS), cvxpy.Variable(ROWS)
        limits = [A.numpy() @ z + e == b, *([e == 0] if second == "none" else [])]
        limits += [cvxpy.abs(z) <= 0.4] if first == "Box" else []
        terms = [function(v) for name, v in ((first, z), (second, e)) if (function := NORMS[name][1])]
        program = cvxpy.Problem(cvxpy.Minimize(sum(terms)), limits)
        program.solve(solver="CLARABEL", tol_gap_rel=1e-10, tol_gap_abs=1e-10, tol_feas=1e-10)
        found.append(program.value)
    return np.array(found)


@pytest.mark.parametrize(("first", "second"), CASES)
def test_the_optimum_lies_between_the_bounds_for_any_point_and_multiplier(first, second):
    of, best = problem(first, second), optimum(first, second)
    for seed, size in ((0, 0.01), (1, 1.0), (2, 100.0)):
        bounds = of.certificate(size * draw(2, COLUMNS, seed=seed), size * draw(2, ROWS, seed=seed))
        assert bool((bounds.dual.numpy() <= best + 1e-8).all()) and bool((bounds.primal.numpy() >= best - 1e-8).all())


@pytest.mark.parametrize(("first", "second"), CASES)
def test_the_gap_closes_where_ladmm_converges(first, second):
    of, best = problem(first, second), optimum(first, second)
    solution = solve(LADMM(), of, steps=6000, history=False)
    assert float(solution.certificate.gap.max()) < 1e-6
    assert solution.certificate.primal.numpy() == pytest.approx(best, rel=1e-6)


def test_solve_stops_at_the_tolerance_and_not_long_before_it_is_reached():
    of = problem("L1", "L1")
    solution = solve(LADMM(), of, tol=1e-7)
    assert solution.converged and float(solution.certificate.relative_gap.max()) <= 1e-7
    assert float(solve(LADMM(), of, steps=solution.steps // 2).certificate.relative_gap.max()) > 1e-7
    with pytest.warns(RuntimeWarning, match="gave up after 3 steps"):
        assert not solve(LADMM(), of, tol=1e-9, max_steps=3).converged


def test_float32_and_learned_rules_are_certified_too():
    of = ConstrainedProblem(Dictionary(A.float()), B.float(), L1(), L1())
    gkm = GKM(LinearizedALM(Spectrum(A.float())))
    with torch.no_grad():
        for rule in (gkm, DLADMM(DLADMMConfig(ROWS, COLUMNS, 3), A.float())):
            bounds = solve(rule, of, steps=50).certificate
            assert bounds.dual.dtype == torch.float64
            assert bool((bounds.dual.numpy() <= optimum("L1", "L1") + 1e-6).all())
    assert solve(gkm, of, tol=1e-4).converged


def test_without_second_the_point_is_moved_onto_the_constraint_and_inf_says_that_there_is_none():
    of = problem("L1", "none")
    wide = of.certificate(draw(2, COLUMNS, seed=5))
    z = draw(2, COLUMNS, seed=5)
    z = z - (z @ A.mT - B) @ torch.linalg.inv(A @ A.mT) @ A
    torch.testing.assert_close(wide.primal, z.abs().sum(-1))
    tall = ConstrainedProblem(Dictionary(A.mT.contiguous()), draw(2, COLUMNS, seed=6), L1())
    assert bool(tall.certificate(tall.zeros()).primal.isinf().all())


def test_a_step_of_solve_has_the_gradient_of_its_data():
    b = B.clone().requires_grad_()
    of = ConstrainedProblem(Dictionary(A), b, L1(), SquaredL2(2.0))
    direction, values = draw(2, ROWS, seed=7), []
    (slope,) = torch.autograd.grad(solve(LADMM(), of, steps=40, gradient="unrolled").x.square().sum(), b)
    for sign in (1, -1):
        values.append(float(solve(LADMM(), of.with_data(B + sign * 1e-6 * direction), steps=40).x.square().sum()))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(float((slope * direction).sum()), rel=1e-6)


def test_wrong_uses_are_refused():
    with pytest.raises(ValueError, match="b must have shape"):
        ConstrainedProblem(Dictionary(A), B[:, :-1], L1())
    with pytest.raises(ValueError, match="the start must have the shape"):
        solve(LADMM(), problem("L1", "L1"), steps=1, start=torch.zeros(3))
    for rule in (LADMM(), DLADMM(DLADMMConfig(ROWS, COLUMNS, 1))):
        with pytest.raises(TypeError, match="takes an l2o.constrained.ConstrainedProblem"):
            solve(rule, lasso(A, B[0], 0.1), steps=1)
