"""The compiled elementwise part of a safeguarded FISTA step equals plain torch, and lets NaN through."""

import pytest
import torch

from l2o.kernels import fista_step
from l2o.kernels.build import library

NAMES = ("x", "previous", "gradient", "previous_gradient")


def inputs(dtype, shape=(7, 37)):
    generator = torch.Generator().manual_seed(0)
    items = {name: torch.randn(shape, generator=generator, dtype=dtype) for name in NAMES}
    scalars = {name: torch.rand(shape[0], generator=generator, dtype=dtype) for name in ("weight", "step", "strength")}
    return items | scalars


@pytest.mark.skipif(library() is None, reason="there is no compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 37), (3, 4, 5), (0, 6)])
def test_compiled_is_what_torch_computes(dtype, shape):
    given = inputs(dtype, shape)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12  # sums of tens of terms, in another order
    for ours, plain in zip(fista_step.look_ahead(**given), fista_step.look_ahead_reference(**given), strict=True):
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    four = (given["x"], given["gradient"], given["previous"], given["previous_gradient"], given["strength"])
    torch.testing.assert_close(
        fista_step.change(*four), fista_step.change_reference(*four), rtol=tolerance, atol=10 * tolerance
    )


def test_look_ahead_is_ista_without_momentum():
    given = inputs(torch.float64)
    given["weight"] = torch.zeros(7, dtype=torch.float64)
    ahead = fista_step.look_ahead(**given)
    s, x = given["step"].unsqueeze(-1), given["x"]
    v = x - s * given["gradient"]
    expected = v.sign() * (v.abs() - s * given["strength"].unsqueeze(-1)).clamp(min=0)
    torch.testing.assert_close(ahead.z, expected)
    torch.testing.assert_close(ahead.residual, (x - expected).square().sum(-1))


def test_change_is_exact_for_a_quadratic():
    generator = torch.Generator().manual_seed(1)
    A, b = torch.randn(5, 8, dtype=torch.float64, generator=generator), torch.randn(5, dtype=torch.float64)
    x, z = torch.randn(2, 3, 8, dtype=torch.float64, generator=generator)
    gradients = [(point @ A.mT - b) @ A for point in (x, z)]
    values = [0.5 * (point @ A.mT - b).square().sum(-1) + 0.3 * point.abs().sum(-1) for point in (x, z)]
    strength = torch.full((3,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(fista_step.change(x, gradients[0], z, gradients[1], strength), values[1] - values[0])


def test_nan_stays_in_its_item():
    given = inputs(torch.float32)
    given["gradient"][2, 3] = float("nan")
    ahead = fista_step.look_ahead(**given)
    assert ahead.residual.isnan().tolist() == ahead.uphill.isnan().tolist() == [i == 2 for i in range(7)]
    assert ahead.z.isnan().any(-1).tolist() == [i == 2 for i in range(7)]


def test_other_types_take_plain_torch():
    given = inputs(torch.bfloat16)
    assert fista_step.look_ahead(**given).z.dtype == torch.bfloat16
