"""torchdeq itself, on an equilibrium layer: the same point, and the same gradients, implicit and by the last steps."""

import pytest
import torch

torchdeq = pytest.importorskip("torchdeq", reason="torchdeq is not installed: make interop")

import l2o  # noqa: E402  (after the skip)

TIGHT = {"f_max_iter": 500, "f_tol": 1e-12}


@pytest.fixture
def layer(float64, generator):
    """Return u ↦ tanh(Wu + x) with ‖W‖ = 0.8, its parameters (W, x), a start and a random cotangent."""
    matrix = torch.randn(12, 12, generator=generator)
    matrix = (0.8 * matrix / torch.linalg.matrix_norm(matrix, 2)).requires_grad_()
    x = torch.randn(5, 12, generator=generator).requires_grad_()
    return lambda u: (u @ matrix.T + x).tanh(), (matrix, x), torch.zeros(5, 12), torch.randn(5, 12, generator=generator)


def theirs(layer, **options):
    """torchdeq's point and the gradients of its product with the cotangent."""
    step, params, start, cotangent = layer
    points, _ = torchdeq.get_deq(**TIGHT, **options)(step, start)
    return points[-1].detach(), torch.autograd.grad((points[-1] * cotangent).sum(), params)


def ours(layer, **options):
    """The same by `fixed_point`."""
    step, params, start, cotangent = layer
    point = l2o.fixed_point(step, start, tol=1e-13, **options).u
    return point.detach(), torch.autograd.grad((point * cotangent).sum(), params)


@pytest.mark.parametrize("solver", ["fixed_point_iter", "anderson", "broyden"])
def test_implicit_gradients_are_those_of_torchdeq(layer, solver):
    expected = theirs(layer, f_solver=solver, b_solver=solver, ift=True, b_max_iter=500, b_tol=1e-12)
    torch.testing.assert_close(ours(layer), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("steps", "options"), [(1, {"gradient": "one_step"}), (5, {"gradient": "truncated", "last": 5})]
)
def test_gradients_of_the_last_steps_are_torchdeqs_phantom_gradients(layer, steps, options):
    expected = theirs(layer, f_solver="fixed_point_iter", grad=steps, tau=1.0)
    torch.testing.assert_close(ours(layer, **options), expected, rtol=0, atol=1e-10)
