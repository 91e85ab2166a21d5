"""ISTA, FISTA, AMP, NIHT, ADMM and Condat–Vũ against their papers' formulas, written out one item at a time."""

import numpy as np
import pytest
import torch

import l2o
from l2o.proximal import L1, L21, Box, Dictionary, ElasticNet, Gradient, Matrix, NonnegativeL1, Simplex
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
    ISTAConfig,
    NIHTConfig,
)
from l2o.rules.niht import hard_threshold
from tasks import Lasso

STRENGTH = 0.02


def lasso(rows: int = 15, columns: int = 24, items: int = 3, strength: float = STRENGTH, seed: int = 0) -> l2o.Problem:
    family = Lasso(rows, columns, strength, density=0.2)
    return family.problem(family.sample_tasks(items, torch.Generator().manual_seed(seed)))


def soft(v: np.ndarray, threshold: float) -> np.ndarray:
    return np.sign(v) * np.maximum(np.abs(v) - threshold, 0)


def arrays(problem: l2o.Problem) -> tuple[np.ndarray, np.ndarray]:
    return problem.operator.matrix.numpy(), problem.b.numpy()


def fista_by_the_paper(A: np.ndarray, b: np.ndarray, steps: int, restart: str) -> tuple[np.ndarray, int]:
    L, restarts = np.linalg.norm(A, 2) ** 2, 0
    x = y = np.zeros(A.shape[1])
    t, value = 1.0, np.inf
    for _ in range(steps):
        new = soft(y - A.T @ (A @ y - b) / L, STRENGTH / L)
        new_value = 0.5 * np.square(A @ new - b).sum() + STRENGTH * np.abs(new).sum()
        t_new = (1 + np.sqrt(1 + 4 * t**2)) / 2
        uphill = {"none": False, "gradient": (y - new) @ (new - x) > 0, "function": new_value > value}[restart]
        y_new = new if uphill else new + (t - 1) / t_new * (new - x)
        x, y, t, value, restarts = new, y_new, 1.0 if uphill else t_new, new_value, restarts + uphill
    return x, restarts


@pytest.mark.parametrize("restart", ["none", "gradient", "function"])
@pytest.mark.parametrize("columns", [24, 40], ids=["gram", "two products"])
def test_fista_is_that_of_the_papers(float64, restart, columns):
    problem = lasso(columns=columns)
    A, b = arrays(problem)
    x = l2o.solve(FISTA(FISTAConfig(restart=restart)), problem, steps=80).x
    restarts = []
    for i in range(3):
        expected, count = fista_by_the_paper(A, b[i], 80, restart)
        np.testing.assert_allclose(x[i].numpy(), expected, atol=1e-9)
        restarts.append(count)
    assert (max(restarts) > 0) == (restart != "none")


def test_fista_restarts_each_item_by_itself(float64):
    problem = lasso(items=8)
    rule = FISTA()
    x, state = problem.zeros(), rule.init_problem(problem, problem.zeros())
    restarted = torch.zeros(8, dtype=torch.bool)
    for step in range(60):
        x, state = rule.iterate(problem, x, state, step)
        now = state.momentum.flatten() == 1
        if step > 0 and now.any():
            assert not now.all()
            restarted |= now
    assert restarted.sum() > 3


@pytest.mark.parametrize("growth", [1.5, 2.0])
def test_backtracking_finds_a_step_for_each_item_that_is_not_much_shorter_than_needed(float64, growth):
    problem = lasso(items=6)
    rule = FISTA(FISTAConfig(backtracking=True, growth=growth))
    x, state = problem.zeros(), rule.init_problem(problem, problem.zeros())
    start = 1 / state.step_size
    for step in range(100):
        x, state = rule.iterate(problem, x, state, step)
    found = 1 / state.step_size
    assert (start <= problem.lipschitz).all() and (found <= growth * problem.lipschitz).all()
    assert (found > start).any() and found.unique().numel() > 1


def test_item_whose_trial_fails_stays_with_its_memory_and_a_shorter_step(float64):
    problem = lasso(items=6)
    rule = FISTA(FISTAConfig(restart="none", backtracking=True))
    x, state = problem.zeros(), rule.init_problem(problem, problem.zeros())
    rejected = 0
    for step in range(30):
        new, after = rule.iterate(problem, x, state, step)
        stayed = after.step_size < state.step_size
        assert torch.equal(new[stayed], x[stayed])
        assert torch.equal(after.previous[stayed], state.previous[stayed])
        assert torch.equal(after.momentum[stayed], state.momentum[stayed])
        rejected += int(stayed.sum())
        x, state = new, after
    assert rejected > 0


def amp_by_the_paper(A: np.ndarray, b: np.ndarray, steps: int, alpha: float) -> np.ndarray:
    m, n = A.shape
    x, z = np.zeros(n), np.zeros(m)
    for _ in range(steps):
        z = b - A @ x + z * np.count_nonzero(x) / m
        x = soft(x + A.T @ z, alpha * np.linalg.norm(z) / np.sqrt(m))
    return x


def test_amp_is_that_of_the_paper(float64):
    problem = lasso()
    A, b = arrays(problem)
    x = l2o.solve(AMP(AMPConfig(alpha=1.3)), problem, steps=7).x
    for i in range(3):
        np.testing.assert_allclose(x[i].numpy(), amp_by_the_paper(A, b[i], 7, 1.3), atol=1e-12)


def nmse_db(x: torch.Tensor, x_star: torch.Tensor) -> float:
    return 10 * float(torch.log10((x - x_star).square().sum() / x_star.square().sum()))


def test_recovery_of_250_by_500_codes_has_the_measured_accuracy():
    family = Lasso()
    tasks = family.sample_tasks(200, torch.Generator().manual_seed(0))
    problem, x_star = family.problem(tasks), tasks["x_star"]
    reached = {
        name: nmse_db(l2o.solve(rule, problem, steps=steps, history=False).x, x_star)
        for name, rule, steps in [("fista", FISTA(), 16), ("amp", AMP(), 16), ("niht", NIHT(NIHTConfig(60)), 100)]
    }
    # Reference: −10.1 and −29.7 for 1,000 codes and another matrix; matrices and 200 codes differ by a dB or two.
    assert reached["fista"] == pytest.approx(-10.1, abs=0.5)
    assert reached["amp"] == pytest.approx(-29.7, abs=2.5)
    assert reached["niht"] < -30


def test_amp_keeps_codes_nonnegative_where_the_problem_says_so(float64):
    problem = lasso()
    nonnegative = l2o.Problem(problem.operator, problem.b, NonnegativeL1(0.1))
    assert (l2o.solve(AMP(), nonnegative, steps=5).x >= 0).all()
    assert (l2o.solve(AMP(), problem, steps=5).x < 0).any()


def test_amp_refuses_regularizers_without_its_threshold():
    problem = lasso()
    with pytest.raises(ValueError, match="AMP is for g = L1 or NonnegativeL1 alone, got ElasticNet"):
        l2o.solve(AMP(), l2o.Problem(problem.operator, problem.b, ElasticNet()), steps=1)


def niht_by_the_paper(A: np.ndarray, b: np.ndarray, kept: int, trials: int) -> np.ndarray:
    def threshold(v):
        out = np.zeros_like(v)
        index = np.argsort(-np.abs(v))[:kept]
        out[index] = v[index]
        return out

    x, shortening = np.zeros(A.shape[1]), 1.0
    for _ in range(trials):
        g = A.T @ (b - A @ x)
        support = (x if x.any() else threshold(g)) != 0
        restricted = np.where(support, g, 0)
        mu = shortening * np.square(restricted).sum() / np.square(A @ restricted).sum()
        new = threshold(x + mu * g)
        d = new - x
        if ((new != 0) == support).all() or mu <= 0.99 * np.square(d).sum() / np.square(A @ d).sum():
            x, shortening = new, 1.0
        else:
            shortening /= 2 * 0.99
    return x


def test_niht_is_that_of_the_paper_with_its_trials_as_steps(float64):
    problem = lasso(items=5)
    A, b = arrays(problem)
    x = l2o.solve(NIHT(NIHTConfig(sparsity=6)), problem, steps=25).x
    for i in range(5):
        np.testing.assert_allclose(x[i].numpy(), niht_by_the_paper(A, b[i], 6, 25), atol=1e-10)
    assert ((x != 0).sum(1) <= 6).all()


def test_niht_lowers_the_residual_and_recovers_sparse_codes_exactly(float64):
    family = Lasso(40, 60)
    code = torch.zeros(4, 60)
    code[:, [3, 17, 40]] = torch.tensor([1.0, -2.0, 1.5])
    A = family.shared_dictionary(code)
    problem = l2o.Problem(Dictionary(A), code @ A.mT, L1(0.0))
    solution = l2o.solve(NIHT(NIHTConfig(sparsity=3)), problem, steps=100)
    torch.testing.assert_close(solution.x, code, atol=1e-9, rtol=0)
    assert (solution.history.diff(dim=0) <= 1e-12).all()


def test_hard_threshold_keeps_the_largest_of_each_item():
    v = torch.tensor([[[1.0, -3.0], [2.0, 0.5]], [[0.0, 0.1], [0.0, 0.0]]])
    assert hard_threshold(v, 2, ndim=2).tolist() == [[[0.0, -3.0], [2.0, 0.0]], [[0.0, pytest.approx(0.1)], [0.0, 0.0]]]


@pytest.mark.parametrize("columns", [24, 40], ids=["inverse", "woodbury"])
def test_admm_is_that_of_the_paper(float64, columns):
    problem = lasso(columns=columns)
    A, b = arrays(problem)
    rho, alpha = 0.2 * np.linalg.norm(A, 2) ** 2, 1.6
    found = l2o.solve(ADMM(ADMMConfig(rho=0.2, relaxation=alpha)), problem, steps=9).x
    for i in range(3):
        z, u = np.zeros(columns), A.T @ b[i] / rho
        for _ in range(9):
            x = np.linalg.solve(A.T @ A + rho * np.eye(columns), A.T @ b[i] + rho * (z - u))
            relaxed = alpha * x + (1 - alpha) * z
            z = soft(relaxed + u, STRENGTH / rho)
            u = u + relaxed - z
        np.testing.assert_allclose(found[i].numpy(), z, atol=1e-10)


def test_ista_and_condat_vu_without_a_second_term_are_the_same(float64):
    problem = lasso()
    torch.testing.assert_close(l2o.solve(CondatVu(), problem, steps=20).x, l2o.solve(ISTA(), problem, steps=20).x)


@pytest.mark.parametrize("balance", [0.3, 1.0, 3.0])
def test_condat_vu_solves_the_fused_lasso_in_a_box_and_certifies_it(float64, balance):
    import cvxpy

    problem = lasso(items=2)
    A, b = arrays(problem)
    K = Gradient((24,))
    fused = l2o.Problem(problem.operator, problem.b, Box(-0.5, 0.6), l2o.Composite(L1(0.1, ndim=2), K))
    solution = l2o.solve(CondatVu(CondatVuConfig(balance)), fused, tol=1e-7, max_steps=20_000, history=False)
    assert solution.converged
    for i in range(2):
        x = cvxpy.Variable(24)
        value = cvxpy.sum_squares(A @ x - b[i]) / 2 + 0.1 * cvxpy.norm1(cvxpy.diff(x))
        best = cvxpy.Problem(cvxpy.Minimize(value), [x >= -0.5, x <= 0.6]).solve(cvxpy.CLARABEL)
        assert float(solution.certificate.primal[i]) == pytest.approx(best, rel=1e-6)
        assert float(solution.certificate.dual[i]) <= best + 1e-7


def test_condat_vu_denoises_by_isotropic_total_variation_with_the_ell1_norm(float64):
    b = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(3))
    from l2o.proximal import Diagonal, TotalVariation

    term = l2o.Composite(L21(0.4, axis=-3, ndim=3), Gradient((6, 5)))
    problem = l2o.Problem(Diagonal(torch.ones(6, 5), ndim=2), b, L1(0.0, ndim=2), term)
    x = l2o.solve(CondatVu(), problem, steps=3000, history=False).x
    expected = TotalVariation(0.4, steps=3000).prox(b)
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)  # both are iterations, to about 1e-8


def test_condat_vu_takes_a_second_term_for_each_item(float64):
    matrices = torch.randn(3, 4, 24, generator=torch.Generator().manual_seed(2))
    problem, composites = lasso(), [l2o.Composite(L1(0.1), Matrix(K)) for K in matrices]
    together = l2o.Problem(problem.operator, problem.b, L1(0.05), l2o.Composite(L1(0.1), Matrix(matrices)))
    x = l2o.solve(CondatVu(), together, steps=30).x
    for i, term in enumerate(composites):
        alone = l2o.Problem(problem.operator, problem.b[i], L1(0.05), term)
        torch.testing.assert_close(x[i], l2o.solve(CondatVu(), alone, steps=30).x)


@pytest.mark.parametrize("rule", [ISTA(), FISTA(), FISTA(FISTAConfig(backtracking=True)), CondatVu()])
def test_iterates_on_the_simplex_are_on_it_at_every_step(float64, rule):
    problem = lasso(rows=30, columns=10)
    simplex = l2o.Problem(problem.operator, problem.b, Simplex())
    x = torch.full((3, 10), 0.1)
    state = rule.init_problem(simplex, x)
    for step in range(10):
        x, state = rule.iterate(simplex, x, state, step)
        torch.testing.assert_close(x.sum(1), torch.ones(3))
        assert (x >= 0).all()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (ISTAConfig, {"relaxation": 2.0}, "relaxation must be in"),
        (FISTAConfig, {"restart": "sometimes"}, "restart must be one of none, gradient, function, got 'sometimes'"),
        (FISTAConfig, {"growth": 1.0}, "growth must be above 1"),
        (AMPConfig, {"alpha": 0.0}, "alpha must be positive"),
        (NIHTConfig, {"sparsity": 0}, "sparsity must be at least 1"),
        (NIHTConfig, {"margin": 1.0}, "margin must be in"),
        (NIHTConfig, {"shrinkage": 1.0}, "shrinkage must be above 1 / .1 - margin."),
        (ADMMConfig, {"rho": 0.0}, "rho must be positive"),
        (ADMMConfig, {"relaxation": 2.0}, "relaxation must be in .0, 2."),
        (CondatVuConfig, {"balance": -1.0}, "balance must be positive"),
    ],
)
def test_options_out_of_range_are_refused(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_niht_cannot_keep_more_entries_than_there_are():
    with pytest.raises(ValueError, match="sparsity must be at most the 24 entries of an item, got 25"):
        l2o.solve(NIHT(NIHTConfig(sparsity=25)), lasso(), steps=1)
