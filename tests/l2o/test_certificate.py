"""The certificate is a bound for every regularizer and every point, and tight at the solution."""

import cvxpy
import pytest
import torch

import l2o
from l2o.proximal import (
    L1,
    L2,
    L21,
    Box,
    Dictionary,
    ElasticNet,
    Gradient,
    L1Ball,
    L2Ball,
    Linf,
    LinfBall,
    Matrix,
    Nonnegative,
    NonnegativeL1,
    Simplex,
    SquaredL2,
    TotalVariation,
)
from l2o.rules import FISTA

ROWS, COLUMNS = 8, 12

# Regularizer, and the same for cvxpy: a term and constraints.
CASES = {
    "l1": (L1(0.3), lambda x: (0.3 * cvxpy.norm1(x), [])),
    "l1-of-zero": (L1(0.0), lambda x: (0.0, [])),
    "nonnegative-l1": (NonnegativeL1(0.3), lambda x: (0.3 * cvxpy.sum(x), [x >= 0])),
    "elastic-net": (ElasticNet(0.3, 0.5), lambda x: (0.3 * cvxpy.norm1(x) + 0.25 * cvxpy.sum_squares(x), [])),
    "elastic-net-weak-ridge": (
        ElasticNet(0.3, 1e-3),
        lambda x: (0.3 * cvxpy.norm1(x) + 5e-4 * cvxpy.sum_squares(x), []),
    ),
    "elastic-net-no-ridge": (ElasticNet(0.3, 0.0), lambda x: (0.3 * cvxpy.norm1(x), [])),
    "squared-l2": (SquaredL2(0.4, 0.5), lambda x: (0.2 * cvxpy.sum_squares(x - 0.5), [])),
    "l2": (L2(0.5), lambda x: (0.5 * cvxpy.norm2(x), [])),
    "linf": (Linf(0.5), lambda x: (0.5 * cvxpy.norm_inf(x), [])),
    "simplex": (Simplex(2.0), lambda x: (0.0, [x >= 0, cvxpy.sum(x) == 2])),
    "box": (Box(-0.1, 0.3), lambda x: (0.0, [x >= -0.1, x <= 0.3])),
    "box-without-zero": (Box(0.1, 0.3), lambda x: (0.0, [x >= 0.1, x <= 0.3])),
    "half-line-box": (Box(0.0, float("inf")), lambda x: (0.0, [x >= 0])),
    "nonnegative": (Nonnegative(), lambda x: (0.0, [x >= 0])),
    "l1-ball": (L1Ball(0.5), lambda x: (0.0, [cvxpy.norm1(x) <= 0.5])),
    "l2-ball": (L2Ball(0.5), lambda x: (0.0, [cvxpy.norm2(x) <= 0.5])),
    "linf-ball": (LinfBall(0.2), lambda x: (0.0, [cvxpy.norm_inf(x) <= 0.2])),
}
LOOSE = {"l1-of-zero", "half-line-box", "nonnegative"}
"""Dual points are feasible to rounding only, so that the bound stays at 0."""


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def best_value(problem: l2o.Problem, i: int, case: str) -> float:
    x = cvxpy.Variable(COLUMNS)
    term, constraints = CASES[case][1](x)
    smooth = cvxpy.sum_squares(problem.operator.matrix.numpy() @ x - problem.b[i].numpy()) / 2
    return cvxpy.Problem(cvxpy.Minimize(smooth + term), constraints).solve(cvxpy.CLARABEL, tol_gap_abs=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_bound_holds_everywhere_and_is_tight_at_the_solution(float64, case):
    regularizer = CASES[case][0]
    problem = l2o.Problem(Dictionary(random(ROWS, COLUMNS)), random(3, ROWS, seed=1), regularizer)
    best = torch.tensor([best_value(problem, i, case) for i in range(3)])
    solution = l2o.solve(FISTA(), problem, steps=3000, history=False)
    # 1e-7: how exactly Clarabel's optimum is known
    assert (solution.certificate.primal >= best - 1e-7).all()
    for x in (problem.zeros(), random(3, COLUMNS, seed=2), solution.x + 1e-3 * random(3, COLUMNS, seed=3), solution.x):
        certificate = l2o.certify(problem, x)
        assert (certificate.dual <= best + 1e-7).all()
        assert certificate.dual.isfinite().all() and certificate.primal.dtype == torch.float64
    if case not in LOOSE:
        assert (solution.certificate.gap <= 1e-8).all()


@pytest.mark.parametrize("case", ["l1", "nonnegative-l1", "l2", "linf"])
def test_dual_point_lies_in_the_ball_itself_not_in_the_wider_one_of_conjugate_value(float64, case):
    """Close to the solution s = 1 is outside the ball by less than `conjugate_value` sees; it must not count."""
    problem = l2o.Problem(Dictionary(random(ROWS, COLUMNS)), random(3, ROWS, seed=1), CASES[case][0])
    x = l2o.solve(FISTA(), problem, steps=3000, history=False).x
    best = l2o.certify(problem, x).dual
    for scale in (1e-8, 1e-9, 1e-10):
        near = torch.stack([l2o.certify(problem, x + scale * random(3, COLUMNS, seed=s)).dual for s in range(20)])
        assert (near <= best + 1e-13).all()  # rounding of F, which is near 1


def test_bound_at_zero_is_that_of_the_largest_strength(float64):
    A, b = random(ROWS, COLUMNS), random(1, ROWS, seed=1)
    largest = float((b @ A).abs().max())
    certificate = l2o.certify(l2o.Problem(Dictionary(A), b, L1(largest)), torch.zeros(1, COLUMNS))
    torch.testing.assert_close(certificate.gap, torch.zeros(1), atol=1e-12, rtol=0)  # x = 0 is optimal
    torch.testing.assert_close(certificate.primal, b.square().sum(1) / 2)
    half = l2o.certify(l2o.Problem(Dictionary(A), b, L1(largest / 2)), torch.zeros(1, COLUMNS))
    torch.testing.assert_close(half.dual, 0.75 * b.square().sum(1) / 2)  # s = ½: ½(1 − ¼)‖b‖² … by hand


def test_strength_for_each_item_equals_items_alone(float64):
    A, b, x = random(ROWS, COLUMNS), random(3, ROWS, seed=1), random(3, COLUMNS, seed=2)
    strengths = torch.tensor([0.1, 0.2, 5.0])
    together = l2o.certify(l2o.Problem(Dictionary(A), b, L1(strengths)), x)
    for i in range(3):
        alone = l2o.certify(l2o.Problem(Dictionary(A), b[i], L1(float(strengths[i]))), x[i])
        torch.testing.assert_close(torch.stack([together.primal[i], together.dual[i]]), torch.stack(list(alone)))


def test_groups_and_matrices_are_bounded_too(float64):
    from l2o.proximal import Diagonal, NuclearNorm

    b = random(3, 4, 5)
    for regularizer in (L21(0.4), L21(0.4, axis=-2), NuclearNorm(0.7)):
        problem = l2o.Problem(Diagonal(torch.ones(4, 5), ndim=2), b, regularizer)
        best = regularizer.prox(b)  # A is the identity
        certificate = l2o.certify(problem, best)
        torch.testing.assert_close(certificate.primal, problem.value(best))
        assert (certificate.gap.abs() <= 1e-10).all()
        assert (l2o.certify(problem, b).dual <= certificate.primal + 1e-12).all()
        assert (l2o.certify(problem, b).gap > 1e-3).all()


def test_float32_iterate_on_the_simplex_is_feasible():
    problem = l2o.Problem(Dictionary(random(ROWS, COLUMNS)), random(3, ROWS, seed=1), Simplex())
    solution = l2o.solve(FISTA(), problem, steps=200, history=False)
    assert solution.x.dtype == torch.float32
    assert (solution.certificate.relative_gap < 1e-4).all()


def test_dual_variable_of_a_second_term_tightens_the_bound_and_zero_is_allowed(float64):
    from l2o.rules import CondatVu

    term = l2o.Composite(L1(0.2, ndim=2), Gradient((COLUMNS,)))
    problem = l2o.Problem(Dictionary(random(ROWS, COLUMNS)), random(2, ROWS, seed=1), L1(0.1), term)
    solution = l2o.solve(CondatVu(), problem, steps=5000, history=False)
    best = solution.certificate.primal
    assert (solution.certificate.gap <= 1e-7).all()
    without = l2o.certify(problem, solution.x)
    assert (without.dual < best - 1e-3).all()
    wild = l2o.certify(problem, solution.x, 100 * random(2, 1, COLUMNS, seed=5))  # outside the ball of h*
    assert (wild.dual <= best + 1e-9).all()


def test_empty_batch_and_solution_of_value_zero_have_no_nan():
    A = random(ROWS, COLUMNS)
    assert l2o.certify(
        l2o.Problem(Dictionary(A), torch.zeros(0, ROWS), L1(0.1)), torch.zeros(0, COLUMNS)
    ).gap.shape == (0,)
    nothing = l2o.certify(l2o.Problem(Dictionary(A), torch.zeros(2, ROWS), L1(0.1)), torch.zeros(2, COLUMNS))
    assert nothing.relative_gap.tolist() == [0.0, 0.0]


def test_diverged_iterate_is_not_certified():
    problem = l2o.Problem(Dictionary(random(ROWS, COLUMNS)), random(2, ROWS, seed=1), L1(0.1))
    for bad in (float("nan"), float("inf")):
        assert not (l2o.certify(problem, torch.full((2, COLUMNS), bad)).relative_gap <= 1.0).any()


def test_regularizer_without_a_conjugate_is_refused():
    problem = l2o.Problem(Matrix(torch.eye(4)), torch.ones(4), TotalVariation(0.1, ndim=1))
    with pytest.raises(NotImplementedError, match="conjugate of TotalVariation has no closed form"):
        l2o.certify(problem, torch.zeros(4))


def test_a_repr_is_one_short_line():
    primal, dual = torch.tensor([2.0, 4.0]).double(), torch.tensor([1.5, 3.9]).double()
    assert repr(l2o.Certificate(primal, dual)) == ("Certificate(of (2,) problems, largest gap 0.5, relative gap 0.25)")
    assert repr(l2o.Certificate(primal[0], dual[0])) == ("Certificate(primal 2, dual 1.5, gap 0.5, relative gap 0.25)")
    assert repr(l2o.Certificate(primal[:0], dual[:0])) == "Certificate(of (0,) problems)"
