"""The structure of a problem against autograd and dense arithmetic, and what it refuses."""

import pytest
import torch

import l2o
from l2o.proximal import L1, L21, CircularConvolution, Dictionary, Gradient, Matrix, NonnegativeL1, Simplex


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["shared", "each", "single", "convolution", "composite"])
def problem(request, float64) -> l2o.Problem:
    """One problem of every kind."""
    if request.param == "shared":
        return l2o.Problem(Dictionary(random(4, 6)), random(3, 4), L1(0.3))
    if request.param == "each":
        return l2o.Problem(Matrix(random(3, 4, 6)), random(3, 4), L1(torch.tensor([0.1, 0.2, 0.3])))
    if request.param == "single":
        return l2o.Problem(Dictionary(random(4, 6)), random(4), NonnegativeL1(0.3))
    if request.param == "convolution":
        blur = CircularConvolution.from_kernel(random(3, 3), (5, 4))
        return l2o.Problem(blur, random(2, 3, 5, 4), L1(0.3, ndim=2))
    term = l2o.Composite(L21(0.2, axis=-2, ndim=2), Gradient((6,)))
    return l2o.Problem(Dictionary(random(4, 6)), random(3, 4), L1(0.3), term)


def test_smooth_gradient_is_that_of_the_smooth_value(problem):
    x = random(*problem.x_shape, seed=1).requires_grad_()
    (expected,) = torch.autograd.grad(problem.smooth_value(x).sum(), x)
    torch.testing.assert_close(problem.smooth_grad(x), expected)


def test_value_is_the_sum_of_its_terms(problem):
    x = random(*problem.x_shape, seed=1).abs()
    ndim = len(problem.operator.out_shape)
    expected = 0.5 * (problem.operator(x) - problem.b).square().flatten(-ndim).sum(-1) + problem.regularizer.value(x)
    if problem.composite is not None:
        expected = expected + 0.2 * x.diff(dim=-1).abs().sum(-1)
    torch.testing.assert_close(problem.value(x), expected)
    assert problem.value(x).shape == problem.batch_shape


def test_lipschitz_bound_holds_and_a_shorter_one_would_not(problem):
    x = random(*problem.x_shape, seed=1)
    for _ in range(500):  # power iteration on AᵀA
        x = problem.operator.adjoint(problem.operator(x))
        x = x / x.flatten(-problem.ndim).norm(dim=-1).reshape(*problem.batch_shape, *(1,) * problem.ndim)
    largest = problem.operator(x).square().flatten(-len(problem.operator.out_shape)).sum(-1)
    torch.testing.assert_close(problem.lipschitz.expand(largest.shape), largest, rtol=1e-3, atol=0)
    assert not problem.lipschitz.requires_grad


def test_zero_operator_has_a_lipschitz_bound_to_divide_by():
    zero = l2o.Problem(Dictionary(torch.zeros(2, 3, 4)), torch.ones(2, 3), L1(0.1))
    assert torch.equal(zero.lipschitz, torch.ones(2))


def test_double_converts_every_tensor_and_cuts_the_graph(float64):
    strength = torch.tensor([0.1, 0.2], dtype=torch.float32, requires_grad=True)
    blur = CircularConvolution.from_kernel(random(3).float(), (5,))
    term = l2o.Composite(L1(strength), CircularConvolution.from_kernel(random(3).float(), (5,)))
    wide = l2o.Problem(blur, random(2, 5).float(), L1(strength), term).double()
    assert wide.b.dtype == torch.float64 and wide.operator.transfer.dtype == torch.complex128
    assert wide.composite.operator.transfer.dtype == torch.complex128
    assert wide.regularizer.strength.dtype == torch.float64 and not wide.regularizer.strength.requires_grad
    x = random(2, 5, seed=2)
    narrow = l2o.Problem(blur, random(2, 5).float(), L1(strength), term)
    torch.testing.assert_close(wide.value(x).float(), narrow.value(x.float()).detach(), rtol=1e-5, atol=1e-5)


def test_zeros_and_per_item_have_the_shapes_of_x(problem):
    assert problem.zeros().shape == problem.x_shape and problem.zeros().count_nonzero() == 0
    scalar = random(*problem.batch_shape, seed=3)
    x = random(*problem.x_shape, seed=4)
    index = (0,) * len(problem.batch_shape)
    torch.testing.assert_close((problem.per_item(scalar) * x)[index], scalar[index] * x[index])
    assert problem.per_item(0.5) == 0.5


def test_with_data_keeps_operator_and_regularizer(problem):
    other = problem.with_data(problem.b + 1)
    assert other.operator is problem.operator and other.regularizer is problem.regularizer
    assert torch.equal(other.b, problem.b + 1)


def test_problems_of_an_empty_batch_are_problems():
    empty = l2o.Problem(Dictionary(torch.ones(0, 3, 4)), torch.ones(0, 3), L1(0.1))
    assert empty.value(empty.zeros()).shape == (0,) and empty.lipschitz.shape == (0,)


A = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Dictionary(A), torch.ones(2, 4), L1()), r"b must have shape \(batch…, 3\), as A gives; got \(2, 4\)"),
        ((Dictionary(A), torch.ones(()), L1()), r"b must have shape"),
        ((Dictionary(A), torch.ones(2, 3, dtype=torch.int64), L1()), r"floating type, got torch.int64; use b.float"),
        ((Dictionary(torch.ones(2, 3, 4)), torch.ones(5, 3), L1()), r"A has batch axes \(2,\), b has \(5,\)"),
        ((Dictionary(torch.ones(2, 3, 4)), torch.ones(3), L1()), r"A has batch axes \(2,\), b has \(\)"),
        ((Dictionary(A), torch.ones(2, 3), L1(ndim=2)), r"A takes items with 1 axes, g with 2; set ndim of g"),
        (
            (Dictionary(A), torch.ones(2, 3), L1(), l2o.Composite(L1(), Matrix(torch.ones(2, 5)))),
            r"K must take what A takes, \(4,\); it takes \(5,\)",
        ),
        (
            (Dictionary(A), torch.ones(2, 3), L1(), l2o.Composite(L1(), Gradient((4,)))),
            r"K gives items with 2 axes, h takes 1; set ndim of h",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        l2o.Problem(*arguments)


def test_prox_is_that_of_the_regularizer_and_refuses_to_forget_a_second_term():
    problem = l2o.Problem(Dictionary(A), torch.ones(2, 3), Simplex())
    v = random(2, 4)
    assert torch.equal(problem.prox(v, 0.3), Simplex().prox(v, 0.3))
    with_term = l2o.Problem(Dictionary(A), torch.ones(2, 3), L1(), l2o.Composite(L1(), Matrix(torch.eye(4))))
    with pytest.raises(NotImplementedError, match="has no prox in closed form"):
        with_term.prox(v)


@pytest.mark.parametrize("strength", ["0.1", None, 1j], ids=str)
def test_a_strength_that_is_no_number_is_refused(strength):
    with pytest.raises(ValueError, match="strength must be a number, or a tensor with one entry per item; got "):
        l2o.Problem(Dictionary(A), torch.ones(2, 3), L1(strength))


def test_a_repr_is_one_short_line_with_shapes_and_numbers():
    problem = l2o.Problem(Dictionary(random(250, 500)), random(1000, 250).float(), L1(torch.tensor(0.25)))
    assert repr(problem) == (
        "Problem(A=Dictionary (500,) → (250,), b=float32 (1000, 250), g=L1(strength=0.25, ndim=1))"
    )
    each = l2o.Problem(Dictionary(A), torch.ones(2, 3), L1(torch.tensor([0.1, 0.2])))
    assert "g=L1(strength=float32 (2,), ndim=1)" in repr(each)
    both = l2o.Problem(Dictionary(A), torch.ones(3), L1(0.1), l2o.Composite(L1(0.2), Matrix(torch.ones(5, 4))))
    assert repr(both).endswith("g=L1(strength=0.1, ndim=1), h=L1(strength=0.2, ndim=1) of Matrix)")


def test_a_repr_can_be_made_inside_a_transform():
    seen = []

    def value(strength: torch.Tensor) -> torch.Tensor:
        problem = l2o.Problem(Dictionary(A), torch.ones(3), L1(strength))
        seen.append(repr(problem))
        return problem.value(torch.ones(4))

    torch.func.vmap(value)(torch.tensor([0.1, 0.2]))
    assert seen == ["Problem(A=Dictionary (4,) → (3,), b=float32 (3,), g=L1(strength=float32 (), ndim=1))"]
