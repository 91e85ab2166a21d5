"""Fields of experts: the gradient is that of R, the filters are what they should be."""

import pytest
import torch

from l2o.fields_of_experts import FieldsOfExperts, FieldsOfExpertsConfig, cosine_filters


@pytest.fixture
def experts():
    torch.manual_seed(0)
    module = FieldsOfExperts(FieldsOfExpertsConfig(filters=5, knots=9)).double()
    with torch.no_grad():
        module.slopes.add_(0.1 * torch.randn(5, 9, dtype=torch.float64))
        module.raw_filters.add_(0.1 * torch.randn(5, 3, 3, dtype=torch.float64))
    return module


def test_the_gradient_is_that_of_the_value_inside_and_beyond_the_knots(experts):
    x = 0.8 * torch.randn(2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    z = torch.nn.functional.conv2d(x.unsqueeze(1), experts.filters()).abs()
    assert bool((z > 0.8).any()) and bool((z < 0.8).any())
    (expected,) = torch.autograd.grad(experts(x).sum(), x)
    torch.testing.assert_close(experts.gradient(x), expected, rtol=1e-10, atol=1e-12)


def test_the_derivative_of_the_potential_is_numpys_interpolation(experts):
    """One pixel of a filtered image, moved along the filter itself, which has norm 1."""
    np = pytest.importorskip("numpy")
    filters = experts.filters().detach()
    knots = np.linspace(-0.8, 0.8, 9)
    for z in (-1.5, -0.8, -0.33, 0.0, 0.1, 0.79, 2.0):
        x = z * filters[2]
        responses = (filters * filters[2]).sum((1, 2, 3)) * z
        slopes = [
            np.interp(float(r), knots, row.numpy()) for r, row in zip(responses, experts.slopes.detach(), strict=True)
        ]
        expected = (torch.tensor(slopes, dtype=torch.float64)[:, None, None] * filters[:, 0]).sum(0)
        torch.testing.assert_close(experts.gradient(x)[0], expected.detach(), rtol=1e-10, atol=1e-12, check_dtype=True)


def test_a_constant_added_to_an_image_changes_nothing(experts):
    x = torch.rand(1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(experts.gradient(x + 3), experts.gradient(x), rtol=0, atol=1e-12)


def test_filters_have_mean_zero_and_norm_one(experts):
    filters = experts.filters().detach()
    assert float(filters.mean((1, 2, 3)).abs().max()) < 1e-15
    torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_cosine_filters_are_orthonormal_and_orthogonal_to_a_constant(size):
    rows = cosine_filters(size).flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(size**2 - 1), rtol=0, atol=1e-5)  # float32
    assert float(rows.sum(1).abs().max()) < 1e-5


@pytest.mark.parametrize("options", [{"size": 1}, {"filters": 9}, {"knots": 1}, {"reach": 0.0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match="need (size|knots)"):
        FieldsOfExpertsConfig(**options)
