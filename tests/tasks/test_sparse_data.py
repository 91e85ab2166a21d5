"""Leukemia and diabetes: the published optima, certified, and scikit-learn; and what is refused."""

import os
from pathlib import Path

import pytest
import torch

import l2o
from l2o.rules import ADMM, FISTA, ADMMConfig
from tasks import DataError
from tasks.sparse_data import _standardised, real_problem

REAL = os.environ.get("L2O_DATA")
needs_sparse = pytest.mark.skipif(not REAL or not Path(REAL, "sparse").is_dir(), reason="needs L2O_DATA/sparse")

OPTIMA = {0.5: (27.055438796, 8), 0.1: (8.731076572, 36), 0.05: (4.780078144, 49)}
"""λ / λ_max: optimum and nonzeros, as SOURCES.md has them; their duality gaps are below 3e-11."""


@needs_sparse
def test_leukemia_is_standardised_as_its_source_says():
    problem = real_problem("leukemia", 1.0)
    A, b = problem.operator.matrix, problem.b
    assert A.shape == (72, 7129) and A.dtype == torch.float64
    torch.testing.assert_close(A.norm(dim=0), torch.ones(7129).double())
    assert A.mean(0).abs().max() < 1e-15 and abs(b.mean()) < 1e-15
    assert (b > 0).sum() == 47  # ALL
    assert problem.regularizer.strength == pytest.approx(6.414124710, abs=1e-8)


@needs_sparse
def test_leukemia_is_solved_to_the_published_optimum_with_a_certificate():
    # FISTA takes 2,200 steps at .5; ADMM is quicker at smaller λ, in the slow test.
    solution = l2o.solve(FISTA(), real_problem("leukemia", 0.5), tol=1e-8 / 28, history=False)
    assert solution.converged and float(solution.certificate.gap) <= 1e-8
    assert float(solution.certificate.primal) == pytest.approx(27.055438796, abs=2e-9)


@needs_sparse
@pytest.mark.slow
@pytest.mark.parametrize("fraction", OPTIMA)
@pytest.mark.parametrize("rule", [FISTA(), ADMM(ADMMConfig(rho=1e-3))], ids=["fista", "admm"])
def test_leukemia_is_certified_at_all_strengths(rule, fraction):
    optimum, nonzeros = OPTIMA[fraction]
    problem = real_problem("leukemia", fraction)
    solution = l2o.solve(rule, problem, tol=1e-8 / (optimum + 1), history=False, max_steps=20_000)
    assert float(solution.certificate.gap) <= 1e-8
    assert float(solution.certificate.primal) == pytest.approx(optimum, abs=2e-9)
    assert int((solution.x.abs() > 1e-6).sum()) == nonzeros


@needs_sparse
@pytest.mark.parametrize("fraction", [0.3, 0.01])
def test_diabetes_agrees_with_scikit_learn(fraction):
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import Lasso

    X, y = load_diabetes(return_X_y=True)
    problem = real_problem("diabetes", fraction)
    alpha = problem.regularizer.strength / len(y)
    oracle = Lasso(alpha=alpha, tol=1e-12, max_iter=100_000).fit(X, y)  # X is standardised in the same way
    solution = l2o.solve(FISTA(), problem, tol=1e-12, history=False)
    torch.testing.assert_close(solution.x, torch.from_numpy(oracle.coef_), rtol=1e-6, atol=1e-4)  # |x| is near 500
    assert real_problem("diabetes", fraction, torch.float32).b.dtype == torch.float32


@needs_sparse
def test_zero_is_optimal_from_the_largest_strength_on():
    for fraction, zero in ((1.0, True), (0.95, False)):
        solution = l2o.solve(FISTA(), real_problem("diabetes", fraction), tol=1e-9, history=False)
        assert (solution.x.abs().max() < 1e-9) == zero


@needs_sparse
def test_problems_share_the_dictionary_and_its_norm():
    assert real_problem("diabetes", 0.5).operator is real_problem("diabetes", 0.1).operator


def test_unknown_data_and_strengths_are_refused():
    with pytest.raises(ValueError, match="name must be one of leukemia, diabetes, got 'iris'"):
        real_problem("iris", 0.1)
    for fraction in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="fraction .* must be positive"):
            real_problem("leukemia", fraction)


def test_missing_and_damaged_files_are_named(tmp_path, monkeypatch):
    _standardised.cache_clear()
    monkeypatch.delenv("L2O_DATA", raising=False)
    with pytest.raises(DataError, match="diabetes_442x10.npz is needed; set L2O_DATA to a folder"):
        real_problem("diabetes", 0.1)
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"it is not in {tmp_path}/sparse"):
        real_problem("diabetes", 0.1)
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse" / "diabetes_442x10.npz").write_bytes(b"PK damaged")
    with pytest.raises(DataError, match="is damaged or not the published file"):
        real_problem("diabetes", 0.1)
