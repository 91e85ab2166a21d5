"""The fused least squares against a loop in float64, and where they leave the work to autograd."""

import pytest
import torch

from l2o.kernels.least_squares import squared_residual

pytestmark = pytest.mark.usefixtures("compiled")

# (batch, rows, columns) on both sides of the widths of vector registers, and enough work for several threads.
SHAPES = [(128, 10, 10), (1, 1, 1), (3, 16, 16), (3, 17, 33), (5, 40, 3), (2, 3, 40), (70, 40, 50)]
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5}


def draw(batch, rows, columns, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, rows, columns), (batch, rows), (batch, columns))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def closed_form(a, b, x):
    """Item by item in float64."""
    residuals = [matrix.double() @ point.double() - side.double() for matrix, side, point in zip(a, b, x, strict=True)]
    gradients = [2 * matrix.double().T @ residual for matrix, residual in zip(a, residuals, strict=True)]
    return torch.stack([residual.dot(residual) for residual in residuals]), torch.stack(gradients)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradients_equal_the_closed_form_wherever_x_has_moved(shape, dtype):
    a, b, x = draw(*shape, dtype=dtype)
    evaluate, out = squared_residual(a, b, x), torch.full((x.numel(),), torch.nan, dtype=dtype)
    assert evaluate is not None
    for _ in range(2):
        losses = evaluate(out)
        for found, expected in zip((losses, out.view_as(x)), closed_form(a, b, x), strict=True):
            error = (found.double() - expected).norm() / expected.norm()
            assert found.dtype is dtype and error < TOLERANCES[dtype]
        x += 1


def test_results_do_not_depend_on_the_number_of_threads():
    a, b, x = draw(70, 40, 50, torch.float32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = torch.empty_like(x)
        results.append((squared_residual(a, b, x)(out), out))
    assert all(torch.equal(p, q) for result in results[1:] for p, q in zip(result, results[0], strict=True))


def test_what_is_not_a_number_stays_with_its_item():
    a, b, x = draw(4, 10, 10)
    x[1, 3], b[2, 9] = torch.nan, torch.inf
    out = torch.empty_like(x)
    losses = squared_residual(a, b, x)(out)
    assert losses.isfinite().tolist() == out.isfinite().all(1).tolist() == [True, False, False, True]


def test_there_is_no_kernel_for_other_tensors_and_other_callers():
    a, b, x = draw(2, 3, 4)
    assert squared_residual(a, b, x) is not None
    assert squared_residual(a, b, x.clone().requires_grad_()) is None
    with torch.no_grad():  # a loop without a graph, whose params are variables
        assert squared_residual(a, b, x.clone().requires_grad_()) is not None
    assert squared_residual(a.float(), b, x) is None
    assert squared_residual(a.bfloat16(), b.bfloat16(), x.bfloat16()) is None
    assert squared_residual(a.mT.contiguous().mT, b, x) is None
    assert squared_residual(a[0], b[0], x[0]) is None
    assert squared_residual(a, b[:1], x) is None
    assert squared_residual(a, b, b) is None
    assert squared_residual(a[:, :0], b[:, :0], x) is None
    seen = []
    torch.func.vmap(lambda *given: seen.append(squared_residual(*given)) or given[2])(a[None], b[None], x[None])
    assert seen == [None]


@pytest.mark.parametrize("out", [torch.empty(7), torch.empty(8).double(), torch.empty(16)[::2]])
def test_gradients_have_to_fit_into_out(out):
    a, b, x = draw(2, 3, 4, torch.float32)
    with pytest.raises(ValueError, match=r"out should be 8 numbers, torch.float32, contiguous, but is"):
        squared_residual(a, b, x)(out)


def test_without_a_compiler_there_is_none(fresh_library, monkeypatch):
    monkeypatch.setenv("L2O_KERNELS", "off")
    assert squared_residual(*draw(2, 3, 4)) is None
