"""The inner solver of total variation: its certificate, warm starts, stopping, limits."""

import pytest
import torch
from proximal_cases import draw

from l2o.proximal import TotalVariation

pytestmark = pytest.mark.usefixtures("float64")


def noisy_square(n: int = 16) -> torch.Tensor:
    image = torch.zeros(n, n)
    image[n // 4 : 3 * n // 4, n // 4 : 3 * n // 4] = 1
    return image + draw(n, n, scale=0.1)


@pytest.mark.parametrize("isotropic", [True, False])
def test_error_is_below_the_square_root_of_the_gap(isotropic):
    image = noisy_square()
    exact = TotalVariation(0.1, isotropic, steps=4000).solve(image)
    assert exact.gap < 1e-8
    for steps in (1, 5, 30, 150):
        result = TotalVariation(0.1, isotropic, steps=steps).solve(image)
        assert 0 < (result.x - exact.x).norm() <= result.gap.sqrt() + 1e-4  # sqrt(1e-8): how exact is exact


def test_gap_falls_a_hundredfold_from_20_to_200_iterations():
    gaps = [TotalVariation(0.1, steps=steps).solve(noisy_square()).gap for steps in (20, 200)]
    assert gaps[1] < gaps[0] / 100


def test_restarts_reach_the_anisotropic_solution_where_momentum_alone_goes_around_it():
    image = noisy_square(32)
    # without restarts 2e-7 is left, with them 2e-12 (64×64 pixels)
    assert TotalVariation(0.1, isotropic=False, steps=1000).solve(image).gap < 1e-9 * image.square().sum()


def test_warm_start_goes_on_where_the_last_call_ended():
    image, prior = noisy_square(), TotalVariation(0.1, steps=50)
    cold = prior.solve(image)
    warm = prior.solve(image + draw(16, 16, seed=1, scale=1e-3), dual=cold.dual)
    restarted = prior.solve(image + draw(16, 16, seed=1, scale=1e-3))
    assert warm.gap < restarted.gap / 2
    assert torch.equal(prior.solve(image).x, cold.x)  # nothing is remembered


def test_dual_may_start_outside_the_ball_and_ends_inside():
    image, prior = noisy_square(), TotalVariation(0.1, steps=1)
    result = prior.solve(image, 0.5, dual=draw(2, 16, 16, scale=10.0))
    assert result.dual.norm(dim=0).max() <= 0.05 * (1 + 1e-12) and result.gap >= 0


def test_tolerance_stops_once_every_gap_is_small_enough():
    images = torch.stack([noisy_square(), noisy_square() * 3 + 1])
    loose, tight = (TotalVariation(0.1, steps=5000, tolerance=tol).solve(images) for tol in (1e-2, 1e-7))
    energy = 0.5 * images.square().sum((1, 2))
    assert (loose.gap <= 1e-2 * energy).all() and (tight.gap <= 1e-7 * energy).all()
    assert (loose.gap > tight.gap).all()  # it did stop earlier


def test_strong_total_variation_leaves_the_mean():
    image = noisy_square()
    torch.testing.assert_close(TotalVariation(100.0, steps=2000).prox(image), image.mean().expand(16, 16))


def test_channels_and_batches_are_items_of_their_own():
    images = draw(2, 3, 5, 6)
    together = TotalVariation(0.3).solve(images)
    assert together.dual.shape == (2, 3, 2, 5, 6) and together.gap.shape == (2, 3)
    torch.testing.assert_close(together.x[1, 2], TotalVariation(0.3).prox(images[1, 2]))


def test_signal_of_two_points_is_soft_thresholding_of_their_difference():
    v = torch.tensor([[0.0, 3.0], [0.0, 0.5]])
    expected = torch.tensor([[0.4, 2.6], [0.25, 0.25]])
    torch.testing.assert_close(TotalVariation(0.4, ndim=1).prox(v), expected)


def test_single_pixel_is_left_alone():
    assert TotalVariation(0.4).prox(torch.full((1, 1), 2.0)).item() == 2.0


def test_gradient_through_many_iterations_is_that_of_the_piecewise_constant_solution():
    # on each constant piece of the solution, of size m, the Jacobian is the mean over it: 1/m
    v = torch.tensor([0.0, 0.1, 2.0, 2.1, 2.05], requires_grad=True)
    x = TotalVariation(0.3, ndim=1, steps=400).prox(v)
    gradient = torch.autograd.grad(x[3], v)[0]
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, 1 / 3, 1 / 3, 1 / 3]))


def test_dual_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected a dual of shape \(2, 4, 5\), got \(4, 5\)"):
        TotalVariation().solve(torch.ones(4, 5), dual=torch.ones(4, 5))
