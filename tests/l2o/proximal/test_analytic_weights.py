"""Weights that follow from a dictionary: against constrained least squares by cvxpy, and against published ones."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from l2o.proximal import Dictionary

REAL = os.environ.get("L2O_DATA")
needs_sparse = pytest.mark.skipif(not REAL or not Path(REAL, "sparse").is_dir(), reason="needs L2O_DATA/sparse")


def random_dictionary(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    A = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return A / A.norm(dim=0)


def coherence(W, A) -> float:
    product = np.abs(W.T @ A)
    return float((product - np.diag(np.diag(product))).max())


@pytest.fixture
def published():
    file = np.load(Path(str(REAL), "sparse", "alista_A250x500.npz"))
    return file["A"], file["W"]


def test_analytic_weights_minimise_the_coherence_under_the_constraint(float64):
    cp = pytest.importorskip("cvxpy")
    A = random_dictionary(5, 9).numpy()
    W = cp.Variable(A.shape)
    cp.Problem(cp.Minimize(cp.sum_squares(W.T @ A)), [cp.diag(W.T @ A) == 1]).solve(solver="CLARABEL")
    found = Dictionary(torch.from_numpy(A)).analytic_weights.numpy()
    np.testing.assert_allclose(found, W.value, atol=1e-6)  # the solver's accuracy


def test_symmetric_weights_minimise_it_among_those_of_a_symmetric_matrix(float64):
    cp = pytest.importorskip("cvxpy")
    A = random_dictionary(5, 9).numpy()
    G = cp.Variable((5, 5), symmetric=True)
    cp.Problem(cp.Minimize(cp.sum_squares(A.T @ G @ A)), [cp.diag(A.T @ G @ A) == 1]).solve(solver="CLARABEL")
    found = Dictionary(torch.from_numpy(A)).symmetric_weights.numpy()
    np.testing.assert_allclose(found, G.value @ A, atol=1e-6)  # the solver's accuracy


def test_symmetric_weights_have_a_symmetric_positive_jacobian_with_unit_diagonal(float64):
    A = random_dictionary(30, 60)
    jacobian = Dictionary(A).symmetric_weights.mT @ A
    torch.testing.assert_close(jacobian, jacobian.mT)
    torch.testing.assert_close(jacobian.diagonal(), torch.ones(60))
    assert torch.linalg.eigvalsh(jacobian).min() > -1e-10


@pytest.mark.parametrize("kind", ["analytic_weights", "symmetric_weights", "pseudo_inverse"])
def test_a_batch_of_dictionaries_equals_a_loop(float64, kind):
    matrices = torch.stack([random_dictionary(4, 7, seed) for seed in range(3)])
    together = getattr(Dictionary(matrices), kind)
    for A, found in zip(matrices, together, strict=True):
        torch.testing.assert_close(found, getattr(Dictionary(A), kind))


def test_tall_and_degenerate_dictionaries_have_finite_weights(float64):
    tall = random_dictionary(9, 4)
    torch.testing.assert_close(Dictionary(tall).symmetric_weights, torch.linalg.pinv(tall).mT)
    with_zero = torch.cat([random_dictionary(4, 6), torch.zeros(4, 1)], 1)
    for kind in ("analytic_weights", "symmetric_weights"):
        W = getattr(Dictionary(with_zero), kind)
        assert W.isfinite().all() and not W[:, -1].any()
        torch.testing.assert_close((W.mT @ with_zero).diagonal()[:-1], torch.ones(6))


@needs_sparse
def test_the_closed_forms_are_as_incoherent_as_the_published_weights(published):
    A, W = published
    analytic, symmetric = (
        getattr(Dictionary(torch.from_numpy(A)), kind).numpy() for kind in ("analytic_weights", "symmetric_weights")
    )
    assert coherence(A, A) == pytest.approx(0.285, abs=5e-4)  # as SOURCES.md of the data has it
    assert coherence(W, A) == pytest.approx(0.206, abs=5e-4)
    assert coherence(analytic, A) == pytest.approx(0.207, abs=5e-4)
    assert coherence(symmetric, A) == pytest.approx(0.206, abs=5e-4)
    # The published ones end at diag(WᵀA) = .998 and 0.2 % from the minimiser.
    scaled = W / np.sum(W * A, 0)
    assert np.linalg.norm(analytic.T @ A) <= np.linalg.norm(scaled.T @ A)
    assert np.linalg.norm(analytic - scaled) < 2e-3 * np.linalg.norm(scaled)
