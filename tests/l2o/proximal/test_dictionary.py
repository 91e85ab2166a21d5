"""Dictionary: a `Matrix` that keeps what was computed once, and the analytic weights against their definition."""

import cvxpy
import numpy as np
import pytest
import torch

from l2o.proximal import Dictionary, Matrix


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch", [(), (3,)])
def test_dictionary_is_a_matrix(float64, batch):
    A, x, y = random(*batch, 4, 7), random(3, 7, seed=1), random(3, 4, seed=2)
    ours, plain = Dictionary(A), Matrix(A)
    assert (ours.in_shape, ours.out_shape) == ((7,), (4,))
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours.adjoint(y), plain.adjoint(y))
    torch.testing.assert_close(ours.norm(), plain.norm())
    torch.testing.assert_close(ours.solve(x, 0.3), plain.solve(x, 0.3))
    torch.testing.assert_close(ours.gram, A.mT @ A)


def test_constants_are_computed_once_and_have_no_graph(float64):
    A = random(4, 7).requires_grad_()
    dictionary = Dictionary(A)
    for constant in (lambda: dictionary.norm(), lambda: dictionary.gram, lambda: dictionary.analytic_weights):
        assert constant() is constant() and not constant().requires_grad


def test_analytic_weights_solve_their_problem(float64):
    A = random(5, 8)
    A = A / A.norm(dim=0)
    W = cvxpy.Variable((5, 8))
    constraints = [W[:, i] @ A[:, i].numpy() == 1 for i in range(8)]
    objective = cvxpy.Minimize(cvxpy.sum_squares(W.T @ A.numpy()))
    best = cvxpy.Problem(objective, constraints).solve(cvxpy.CLARABEL)
    ours = Dictionary(A).analytic_weights
    torch.testing.assert_close((ours * A).sum(0), torch.ones(8))
    assert float((ours.mT @ A).square().sum()) == pytest.approx(best, rel=1e-7)  # Clarabel stops near 1e-8
    np.testing.assert_allclose(ours.numpy(), W.value, atol=1e-5)


def test_analytic_weights_of_many_matrices_equal_a_loop(float64):
    A = random(3, 5, 8)
    together = Dictionary(A).analytic_weights
    for i in range(3):
        torch.testing.assert_close(together[i], Dictionary(A[i]).analytic_weights)


@pytest.mark.parametrize("shape", [(8, 5), (5, 5)])
def test_analytic_weights_of_tall_matrices_are_biorthogonal(float64, shape):
    A = random(*shape)
    identity = torch.eye(5)
    torch.testing.assert_close(Dictionary(A).analytic_weights.mT @ A, identity)


def test_column_of_zeros_has_the_weight_zero_and_the_others_theirs(float64):
    A = random(5, 8)
    A[:, 2] = 0
    W = Dictionary(A).analytic_weights
    assert W.isfinite().all() and W[:, 2].count_nonzero() == 0
    kept = [i for i in range(8) if i != 2]
    torch.testing.assert_close(W[:, kept], Dictionary(A[:, kept]).analytic_weights)


def test_float32_weights_are_computed_in_float64():
    A = random(20, 40)
    expected = Dictionary(A.double()).analytic_weights
    assert torch.equal(Dictionary(A).analytic_weights, expected.float())


@pytest.mark.parametrize("shape", [(), (4,)])
def test_fewer_than_two_axes_are_refused(shape):
    with pytest.raises(ValueError, match="expected a matrix of shape"):
        Dictionary(torch.ones(shape))
