"""The search for expansion: against known Jacobians, close calls, rounding, and maps without derivatives."""

import pytest
import torch
from torch import Tensor

from l2o.metric import Dense, Euclidean
from l2o.nonexpansive import certify_affine, certify_samples
from l2o.nonexpansive_search import worst_directions
from l2o.packing import Packing


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(draw(n, n, seed=seed))[0]


def ratios(step, points: Tensor, iterations: int = 100) -> Tensor:
    """Of each point, how far the direction that was found is stretched."""
    d, image = worst_directions(step, points, Packing(points, batch_axes=1), Euclidean(), iterations)
    return image.norm(dim=-1) / d.norm(dim=-1)


def test_every_point_has_its_own_worst_direction_also_where_the_jacobian_is_zero():
    points = draw(5, 30)
    points[0], points[1] = 0.0, 2.0
    points[2, 1:] = 0.0
    torch.testing.assert_close(ratios(lambda u: u.square() / 2, points), points.abs().amax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("others", ["equal", "spread"])
def test_one_barely_expanding_direction_among_many_is_found(others, dtype):
    singular = torch.full((200,), 0.9999) if others == "equal" else torch.linspace(0, 0.9999, 200)
    singular[7] = 1.0005
    W = (orthogonal(200) @ singular.double().diag() @ orthogonal(200, seed=1)).to(dtype)
    certificate = certify_samples(lambda u: u @ W, draw(4, 200).to(dtype))
    assert not certificate.nonexpansive
    # 1e-5: single precision, and the Lanczos steps of "spread"
    assert certificate.lipschitz == pytest.approx(1.0005, abs=1e-5)


def test_search_never_exceeds_the_norm_and_stops_early_where_it_is_found():
    calls, norms = [], []
    U = orthogonal(64)

    def step(u: Tensor) -> Tensor:
        return u @ U

    class Counting(Dense):
        def apply(self, u):
            calls.append(1)
            return super().apply(u)

    certify_samples(step, draw(3, 64), Counting(torch.eye(64).double()))
    assert len(calls) < 30  # one Lanczos step, not a hundred
    for iterations in (1, 3, 10, 30, 64):
        norms.append(float(ratios(lambda u: u @ draw(64, 64, seed=3), draw(2, 64), iterations).max()))
    assert norms == sorted(norms)
    assert norms[-1] == pytest.approx(float(torch.linalg.matrix_norm(draw(64, 64, seed=3), 2)), rel=1e-10)


def test_search_in_a_metric_finds_the_norm_of_the_whitened_matrix():
    root, W = draw(20, 20), draw(20, 20, seed=1)
    metric = Dense(root @ root.mT + torch.eye(20).double())
    exact, found = (
        certify(lambda u: u @ W, draw(items, 20, seed=2), metric)
        for certify, items in ((certify_affine, 1), (certify_samples, 4))
    )
    # 1e-6: the metric is solved with, at a condition number of 1e2
    assert found.lipschitz == pytest.approx(exact.lipschitz, rel=1e-6)


@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4])
def test_near_points_do_not_make_a_rotation_expansive_in_single_precision(apart):
    Q = orthogonal(50).float()
    points = draw(1, 50) + apart * draw(40, 50, seed=1)
    points[0] += 1
    certificate = certify_samples(lambda u: u @ Q, points.float())
    assert certificate.nonexpansive, certificate
    # 1e-5: single precision
    assert certificate.lipschitz == pytest.approx(1, abs=1e-5)


def test_points_that_rounding_cannot_tell_apart_are_refused():
    near = draw(1, 50) + 1e-4 * draw(6, 50, seed=1)
    with pytest.raises(ValueError, match="too near to each other for torch.float32.*float64"):
        certify_samples(lambda u: u, near.float())
    assert certify_samples(lambda u: u / 2, near).lipschitz == pytest.approx(0.5)
    with pytest.raises(ValueError, match="too near"):
        certify_samples(lambda u: u, near[:1].expand(3, -1))


def test_single_precision_projection_is_averaged_by_one_half():
    basis = orthogonal(400)[:, :150]
    P = (basis @ basis.mT).float()
    certificate = certify_samples(lambda u: u @ P + 1, draw(8, 400).float())
    # 1e-3: rounding of small differences in single precision
    assert certificate.averaged and certificate.averagedness == pytest.approx(0.5, abs=1e-3)


def test_constant_map_is_a_contraction_of_norm_zero():
    for constant in (torch.ones_like, lambda u: torch.ones_like(u) + 0 * u):
        certificate = certify_samples(constant, draw(4, 5))
        assert certificate.contraction and certificate.lipschitz == 0 and certificate.averagedness == 0.5


def test_maps_without_derivatives_are_refused():
    with pytest.raises(ValueError, match="differentiable by autograd.*detached"):
        certify_samples(lambda u: u.detach() / 2, draw(4, 5))
    with pytest.raises(ValueError, match="derivatives of the map are not finite"):
        certify_samples(lambda u: u.abs().sqrt(), torch.eye(3, dtype=torch.float64))
