"""Every linear operator against the dense matrix it stands for."""

import math

import pytest
import torch
from proximal_cases import BOUNDED, OPERATORS, draw

from l2o.proximal import (
    ChannelConvolution,
    CircularConvolution,
    Composition,
    Diagonal,
    Gradient,
    LinearOperator,
    Matrix,
)

pytestmark = pytest.mark.usefixtures("float64")
SOLVABLE = [name for name in OPERATORS if name not in BOUNDED]


@pytest.fixture(params=OPERATORS)
def operator(request) -> LinearOperator:
    return OPERATORS[request.param]()


def dense(operator: LinearOperator) -> torch.Tensor:
    """The matrix of an operator, from its action on the standard basis."""
    n = math.prod(operator.in_shape)
    columns = operator(torch.eye(n).reshape(n, *operator.in_shape))
    return columns.reshape(n, -1).T


def test_forward_and_adjoint_are_transposes(operator):
    x, y = draw(2, 3, *operator.in_shape), draw(2, 3, *operator.out_shape, seed=1)
    forward, adjoint = operator(x), operator.adjoint(y)
    assert forward.shape == y.shape and adjoint.shape == x.shape
    torch.testing.assert_close((forward * y).flatten(2).sum(2), (adjoint * x).flatten(2).sum(2))
    torch.testing.assert_close(operator.T(y), adjoint)
    torch.testing.assert_close(operator.T.T(x), forward)


def test_forward_equals_the_dense_matrix(operator):
    x = draw(4, *operator.in_shape)
    torch.testing.assert_close(operator(x).reshape(4, -1), x.reshape(4, -1) @ dense(operator).T)


@pytest.mark.parametrize("name", OPERATORS)
def test_norm_is_the_largest_singular_value_or_a_bound_of_it(name):
    operator = OPERATORS[name]()
    exact = torch.linalg.matrix_norm(dense(operator), 2)
    if name in BOUNDED:
        assert exact <= operator.norm() <= 3 * exact
    else:
        torch.testing.assert_close(operator.norm(), exact)


@pytest.mark.parametrize("name", SOLVABLE)
@pytest.mark.parametrize("rho", [0.01, 3.0])
def test_solve_equals_the_dense_solve(name, rho):
    operator = OPERATORS[name]()
    A, b = dense(operator), draw(4, *operator.in_shape)
    expected = torch.linalg.solve(A.T @ A + rho * torch.eye(A.shape[1]), b.reshape(4, -1).T).T
    torch.testing.assert_close(operator.solve(b, rho).reshape(4, -1), expected)
    torch.testing.assert_close(operator.solve(b[0], rho), operator.solve(b, rho)[0])


@pytest.mark.parametrize("name", SOLVABLE)
def test_solve_of_an_empty_batch_is_empty(name):
    operator = OPERATORS[name]()
    b = torch.zeros(0, *operator.in_shape)
    assert operator.solve(b, 0.5).shape == b.shape


@pytest.mark.parametrize("name", SOLVABLE)
def test_rho_for_each_item_equals_loop_and_vmap(name):
    operator, rho = OPERATORS[name](), torch.tensor([0.1, 0.5, 2.0])
    b = draw(3, *operator.in_shape)
    together = operator.solve(b, rho)
    for i in range(3):
        torch.testing.assert_close(together[i], operator.solve(b[i], rho[i].item()))
    torch.testing.assert_close(torch.func.vmap(operator.solve)(b, rho), together)


def test_empty_batch_gives_an_empty_batch(operator):
    x, y = torch.zeros(0, *operator.in_shape), torch.zeros(0, *operator.out_shape)
    assert operator(x).shape == y.shape and operator.adjoint(y).shape == x.shape


def test_vmap_equals_batch(operator):
    x, y = draw(3, *operator.in_shape), draw(3, *operator.out_shape, seed=1)
    torch.testing.assert_close(torch.func.vmap(operator.forward)(x), operator(x))
    torch.testing.assert_close(torch.func.vmap(operator.adjoint)(y), operator.adjoint(y))


def test_gradient_of_a_quadratic_equals_finite_differences(operator):
    y = draw(*operator.out_shape)
    x = draw(*operator.in_shape, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: (operator(x) - y).square().sum(), x)


MAKERS = {
    "matrix": (Matrix, (3, 5), (5,)),
    "diagonal": (Diagonal, (5,), (5,)),
    "convolution": (lambda kernel: CircularConvolution.from_kernel(kernel, (4, 5)), (3, 3), (4, 5)),
    "channels": (lambda kernel: ChannelConvolution.from_kernel(kernel, (4, 5)), (2, 2, 3, 3), (2, 4, 5)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_operator_for_each_item_equals_loop_and_vmap(name):
    make, shape, in_shape = MAKERS[name]
    defining, x = draw(3, *shape), draw(3, *in_shape, seed=1)
    operator = make(defining)

    def one(defining, x):
        return make(defining)(x), make(defining).solve(x, 0.7), make(defining).norm()

    together = operator(x), operator.solve(x, 0.7), operator.norm()
    for i in range(3):
        for whole, alone in zip(together, one(defining[i], x[i]), strict=True):
            torch.testing.assert_close(whole[i], alone)
    for whole, mapped in zip(together, torch.func.vmap(one)(defining, x), strict=True):
        torch.testing.assert_close(mapped, whole)
    y = draw(3, *operator.out_shape, seed=2)
    torch.testing.assert_close(operator.adjoint(y)[1], make(defining[1]).adjoint(y[1]))


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_reach_what_defines_the_operator(name):
    make, shape, in_shape = MAKERS[name]
    x = draw(2, *in_shape, seed=1)

    def outputs(defining):
        return make(defining)(x), make(defining).norm(), make(defining).solve(x, 0.7)

    assert torch.autograd.gradcheck(outputs, draw(*shape).requires_grad_())


def test_convolution_equals_torch_with_circular_padding():
    kernel, x = draw(2, 3, 3, 3), draw(4, 3, 6, 7, seed=1)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    expected = torch.nn.functional.conv2d(padded, kernel.flip(-1, -2))  # torch correlates
    torch.testing.assert_close(ChannelConvolution.from_kernel(kernel, (6, 7))(x), expected)
    blur = CircularConvolution.from_kernel(kernel[0, 0], (6, 7))
    one = torch.nn.functional.conv2d(padded[:, :1], kernel[:1, :1].flip(-1, -2))
    torch.testing.assert_close(blur(x)[:, :1], one)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_convolution_equals_its_definition_for_kernels_of_even_and_odd_size(size):
    kernel, x = draw(size), draw(7, seed=1)
    y = [sum(kernel[j] * x[(i - j + size // 2) % 7] for j in range(size)) for i in range(7)]
    torch.testing.assert_close(CircularConvolution.from_kernel(kernel, (7,))(x), torch.stack(y))


def test_convolution_with_a_centred_unit_impulse_is_the_identity():
    kernel, x = torch.zeros(3, 5), draw(6, 7)
    kernel[1, 2] = 1.0
    torch.testing.assert_close(CircularConvolution.from_kernel(kernel, (6, 7))(x), x)


def test_one_kernel_for_each_image_blurs_all_its_channels():
    kernels, images = draw(2, 1, 3, 3), draw(2, 3, 5, 6, seed=1)
    blurred = CircularConvolution.from_kernel(kernels, (5, 6))(images)
    alone = CircularConvolution.from_kernel(kernels[1, 0], (5, 6))(images[1, 2])
    torch.testing.assert_close(blurred[1, 2], alone)


def test_gradient_of_a_ramp_is_constant_but_for_the_border():
    ramp = 2.0 * torch.arange(4.0).unsqueeze(1).expand(4, 3)
    down, right = Gradient((4, 3))(ramp)
    assert torch.equal(down, torch.tensor([2.0, 2.0, 2.0, 0.0]).unsqueeze(1).expand(4, 3))
    assert torch.equal(right, torch.zeros(4, 3))


@pytest.mark.parametrize("shape", [(6,), (4, 3), (2, 3, 4)])
def test_gradient_of_float32_stays_float32(shape):
    operator, x = Gradient(shape), draw(3, *shape)
    assert operator(x.float()).dtype == torch.float32
    assert (x.float() / operator.norm()).dtype == torch.float32
    torch.testing.assert_close(operator.solve(x.float(), 0.1).double(), operator.solve(x, 0.1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rho", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("name", SOLVABLE)
def test_rho_that_is_not_positive_is_refused(name, rho):
    with pytest.raises(ValueError, match="rho must be above 0"):
        OPERATORS[name]().solver(rho)


def test_input_of_the_wrong_shape_is_refused(operator):
    wrong = torch.ones(7, 11, 13)
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(…, .*\), got \(7, 11, 13\)"):
        operator(wrong)
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(…, "):
        operator.adjoint(wrong)


@pytest.mark.parametrize("name", SOLVABLE)
def test_right_hand_side_of_the_wrong_shape_is_refused(name):
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(…, "):
        OPERATORS[name]().solve(torch.ones(7, 11, 13), 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Matrix(torch.ones(3)), "expected a matrix of shape"),
        (lambda: Diagonal(torch.ones(3), ndim=2), "ndim must be from 1 to 1"),
        (lambda: Diagonal(torch.ones(3), ndim=0), "ndim must be from 1 to 1"),
        (lambda: CircularConvolution.from_kernel(torch.ones(5, 2), (4, 4)), "does not fit a signal"),
        (lambda: CircularConvolution.from_kernel(torch.ones(2), (4, 4)), "does not fit a signal"),
        (lambda: ChannelConvolution.from_kernel(torch.ones(3, 3), (4, 4)), "expected a kernel"),
        (lambda: Gradient(()), "one or more positive sizes"),
        (lambda: Gradient((3, 0)), "one or more positive sizes"),
        (lambda: Composition(Matrix(torch.ones(2, 3)), Matrix(torch.ones(2, 3))), "takes .3,., the inner gives .2,."),
    ],
)
def test_wrong_definitions_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_composition_has_no_fast_inverse():
    with pytest.raises(NotImplementedError, match="Composition has no fast inverse; use an iteration"):
        OPERATORS["composition"]().solve(torch.ones(5), 1.0)
