"""`Lasso.problem` and `tasks.lasso.problem`: one's own data as a problem, and what is refused."""

import math

import numpy as np
import pytest
import torch

import l2o
from l2o.rules import FISTA
from tasks.lasso import Lasso, problem


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dictionary", ["sampled", "fixed"])
def test_value_of_the_problem_is_the_loss_of_the_family(float64, dictionary):
    family = Lasso(rows=5, columns=8, strength=0.3, dictionary=dictionary)
    tasks = family.sample_tasks(4, torch.Generator().manual_seed(0))
    x = random(4, 8)
    torch.testing.assert_close(family.problem(tasks).value(x), family.loss({"x": x}, tasks, {}))


def test_problems_of_a_family_share_their_dictionary():
    family = Lasso(rows=5, columns=8)
    first, second = (family.problem(family.sample_tasks(2, torch.Generator().manual_seed(s))) for s in range(2))
    assert first.operator is second.operator and not torch.equal(first.b, second.b)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_own_data_are_the_problem_they_say(float64, batch):
    A, b, x = random(4, 6), random(*batch, 4, seed=1), random(*batch, 6, seed=2)
    made = problem(A, b, 0.2)
    expected = 0.5 * (x @ A.mT - b).square().sum(-1) + 0.2 * x.abs().sum(-1)
    torch.testing.assert_close(made.value(x), expected)
    torch.testing.assert_close(problem(A.numpy(), b.numpy(), 0.2).value(x), expected)


def test_a_matrix_and_a_strength_for_each_item(float64):
    A, b, strengths = random(3, 4, 6), random(3, 4, seed=1), torch.tensor([0.1, 0.2, 0.3])
    together = l2o.solve(FISTA(), problem(A, b, strengths), steps=30).x
    for i in range(3):
        alone = l2o.solve(FISTA(), problem(A[i], b[i], float(strengths[i])), steps=30).x
        torch.testing.assert_close(together[i], alone)


@pytest.mark.parametrize(
    ("dtype_a", "dtype_b", "expected"),
    [
        (torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.int64, torch.int64, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float16, torch.float64),
    ],
)
def test_precision_is_the_wider_one_and_at_least_float32(dtype_a, dtype_b, expected):
    made = problem((10 * random(4, 6)).to(dtype_a), (10 * random(2, 4)).to(dtype_b), 0.5)
    assert made.b.dtype == made.operator.matrix.dtype == expected
    solution = l2o.solve(FISTA(), made, tol=1e-3)
    assert solution.converged and solution.x.dtype == expected


def test_any_layout_of_numpy_arrays_is_taken():
    A, b = random(4, 6).numpy(), random(3, 4, seed=1).numpy()
    expected = problem(A, b, 0.1)
    fixed = A.copy()
    fixed.setflags(write=False)
    for same in (fixed, A[:, ::-1].copy()[:, ::-1], A.astype(">f4"), np.asfortranarray(A)):
        made = problem(same, np.broadcast_to(b[0], (3, 4)), np.full(3, 0.1)[::-1])
        assert torch.equal(made.operator.matrix, expected.operator.matrix)
        assert torch.equal(made.b, expected.b[:1].expand(3, 4))
    assert problem(A.astype(np.float64), b, 0.1).regularizer.strength == 0.1  # not rounded to float32


def test_empty_batches_are_solved():
    for A in (random(4, 6), random(0, 4, 6)):
        solution = l2o.solve(FISTA(), problem(A, random(0, 4), 0.1), tol=1e-6)
        assert solution.x.shape == (0, 6) and solution.converged
    assert problem(random(4, 6), random(0, 4), torch.ones(0)).batch_shape == (0,)


def with_entry(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[1] = value
    return tensor


A, B = random(4, 6), random(3, 4, seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((with_entry(A, math.nan), B, 0.1), "A must be finite, but 1 of its entries are not"),
        ((A, with_entry(B, math.inf), 0.1), "b must be finite, but 1 of its entries are not"),
        ((A, B, math.nan), "strength must be finite"),
        ((A, B, torch.tensor([0.1, math.inf, 0.1])), "strength must be finite, but 1"),
        ((A, B, 0.0), r"strength \(λ\) must be positive, got 0.0"),
        ((A, B, -1.0), r"strength \(λ\) must be positive, got -1.0"),
        ((A, B, torch.tensor([0.5, -0.25, 0.5])), r"strength \(λ\) must be positive, got -0.25"),
        ((A, random(3, 5), 0.1), r"b must have shape \(batch…, 4\), as A gives; got \(3, 5\)"),
        ((A, random(6), 0.1), r"b must have shape"),
        ((A[0], B, 0.1), "expected a matrix of shape"),
        ((random(2, 4, 6), B, 0.1), r"A has batch axes \(2,\), b has \(3,\)"),
        ((A, B, torch.tensor([0.1, 0.2])), r"one entry per item, \(3,\); got \(2,\)"),
        ((A, B[0], torch.tensor([0.1])), r"one entry per item, \(\); got \(1,\)"),
        ((A + 0j, B, 0.1), "A and b must be real, got torch.complex64 and torch.float32"),
        ((A[:, :0], B, 0.1), r"A must have at least one column, got shape \(4, 0\)"),
    ],
)
def test_data_that_make_no_problem_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        problem(*arguments)
    with pytest.raises(ValueError, match=message):
        problem(*(value.numpy() if isinstance(value, torch.Tensor) else np.float64(value) for value in arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("A.npy", B, 0.1), "A must be a tensor or an array of numbers, got 'A.npy'"),
        ((A, None, 0.1), "b must be a tensor or an array of numbers, got None"),
        (([[1.0, 2.0], [3.0]], B, 0.1), "A must be a tensor or an array of numbers, got a list: expected sequence of"),
        ((np.array([[1, None]]), B, 0.1), "A must be a tensor or an array of numbers, got a ndarray"),
        ((A.to_sparse(), B, 0.1), r"A must be dense, got a sparse tensor; use A.to_dense\(\)"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        problem(*arguments)
