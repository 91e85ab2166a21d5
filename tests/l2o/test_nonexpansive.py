"""Certificates of maps: against closed forms of affine maps, and a network that expands where few pairs show it."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from l2o.layer_norms import nonexpansive
from l2o.metric import Dense, Euclidean, Metric, check_positive_definite, dense, in_metric
from l2o.nonexpansive import certify_affine, certify_samples


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class IndefiniteMetric(Metric):
    def apply(self, u):
        return -u


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(draw(n, n, seed=seed))[0]


def linear(matrix: Tensor):
    return lambda u: u @ matrix.mT + 1.0


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_relaxed_rotation_has_exactly_its_relaxation_as_averagedness(alpha):
    rotation = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    certificate = certify_affine(linear((1 - alpha) * torch.eye(2).double() + alpha * rotation), draw(1, 2))
    assert certificate.exact and certificate.averaged
    assert certificate.averagedness == pytest.approx(alpha, abs=1e-5)
    assert certificate.lipschitz == pytest.approx((alpha**2 + (1 - alpha) ** 2) ** 0.5, abs=1e-12)


def test_reflection_is_nonexpansive_but_not_averaged():
    certificate = certify_affine(linear(-torch.eye(3).double()), draw(1, 3))
    assert certificate.nonexpansive and not certificate.averaged and not certificate.contraction
    assert certificate.averagedness == pytest.approx(1.0, abs=1e-5)


def test_projection_is_firmly_nonexpansive_on_samples_and_by_its_matrix():
    basis = orthogonal(6)[:, :2]
    step = linear(basis @ basis.mT)
    exact, sampled = certify_affine(step, draw(1, 6)), certify_samples(step, draw(8, 6))
    for certificate in (exact, sampled):
        assert certificate.lipschitz == pytest.approx(1.0, abs=1e-6)
        assert certificate.averagedness == pytest.approx(0.5, abs=1e-5)
    assert not sampled.exact and "no proof" in str(sampled) and "proven" in str(exact)


def test_sampled_certificate_of_a_linear_map_finds_its_norm_where_pairs_do_not():
    U, V = orthogonal(40), orthogonal(40, seed=1)
    singular = torch.full((40,), 0.3, dtype=torch.float64)
    singular[0] = 1.7  # one expanding direction of forty
    step, points = linear(U @ singular.diag() @ V.mT), draw(6, 40, seed=2)
    d, t = points - points.roll(1, 0), step(points) - step(points).roll(1, 0)
    assert float((t.norm(dim=-1) / d.norm(dim=-1)).max()) < 1
    certificate = certify_samples(step, points)
    assert not certificate.nonexpansive and certificate.averagedness == float("inf")
    assert certificate.lipschitz == pytest.approx(1.7, rel=1e-6)
    assert str(certificate).startswith("EXPANSIVE")


def test_expansive_network_is_reported_and_its_bounded_twin_is_not():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10)).double()
    with torch.no_grad():
        network[0].weight.mul_(4)
    points = draw(12, 10)
    assert not certify_samples(network, points).nonexpansive
    assert certify_samples(nonexpansive(network, bound=0.9), points).lipschitz <= 0.81 + 1e-9


def test_metric_decides_map_that_expands_in_the_euclidean_norm():
    H = torch.tensor([[4.0, 0.0], [0.0, 0.25]], dtype=torch.float64)
    G = torch.linalg.cholesky(H).mT
    rotation = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    step = linear(torch.linalg.solve(G, rotation @ G))
    assert certify_affine(step, draw(1, 2)).lipschitz == pytest.approx(4.0)
    assert certify_affine(step, draw(1, 2), Dense(H)).lipschitz == pytest.approx(1.0)
    assert certify_samples(step, draw(4, 2), Dense(H)).lipschitz == pytest.approx(1.0, abs=1e-9)


def test_in_metric_makes_a_nonexpansive_network_nonexpansive_in_h():
    root = draw(5, 5)
    H = root @ root.mT + 0.1 * torch.eye(5).double()
    network = nonexpansive(nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).double())
    step = in_metric(network, H)
    assert certify_samples(step, draw(30, 5, seed=3), Dense(H)).lipschitz <= 1 + 1e-9
    identity = in_metric(lambda v: v, H)
    torch.testing.assert_close(identity(draw(2, 5)), draw(2, 5))


def test_points_may_be_named_tuples():
    swap = certify_affine(lambda u: Pair(u.y, u.x), Pair(draw(1, 3), draw(1, 3, seed=1)))
    assert swap.lipschitz == pytest.approx(1.0) and not swap.averaged


def test_dense_metric_solves_what_it_applies_and_weighs_inner_products():
    root = draw(4, 4)
    H = root @ root.mT + torch.eye(4).double()
    metric, u, v = Dense(H), Pair(draw(3, 1), draw(3, 3, seed=5)), Pair(draw(3, 1, seed=6), draw(3, 3, seed=7))
    torch.testing.assert_close(metric.solve(metric.apply(u)).y, u.y)
    flat_u, flat_v = torch.cat(u, 1), torch.cat(v, 1)
    torch.testing.assert_close(metric.inner(u, v), (flat_u @ H * flat_v).sum(-1))
    torch.testing.assert_close(dense(metric, Pair(u.x[:1], u.y[:1])), H)
    torch.testing.assert_close(Euclidean().norm(u), flat_u.norm(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "bent",
    [
        lambda u: torch.where(u.abs() < 20, 0.5 * u, 3 * u - 50 * u.sign()),
        lambda u: 0.9999 * u + 5e-5 * torch.sin(2000 * torch.pi * u),
        lambda u: u.clamp(-1000, 1000) / 2,
    ],
)
def test_map_that_bends_only_far_away_or_only_in_ripples_is_not_proven_affine(bent, dtype):
    with pytest.raises(ValueError, match="not affine.*rounding explains"):
        certify_affine(bent, torch.zeros(1, 10, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvalue_minus_one_is_not_averaged_in_any_precision(dtype):
    certificate = certify_affine(lambda u: u.flip(1), torch.zeros(1, 50, dtype=dtype))
    assert certificate.nonexpansive and not certificate.averaged and not certificate.contraction
    assert str(certificate).startswith("nonexpansive (proven")


@pytest.mark.parametrize("size", [0.0, 100.0, 1e6])
def test_single_precision_rotation_is_nonexpansive_whatever_its_offset(size):
    Q, offset = orthogonal(60).float(), size * draw(60, seed=1).float()
    certificate = certify_affine(lambda u: u @ Q + offset, torch.zeros(1, 60))
    # 1e-5: single precision
    assert certificate.nonexpansive and certificate.lipschitz == pytest.approx(1, abs=1e-5)


def test_slow_contraction_is_averaged_too():
    for dtype in (torch.float32, torch.float64):
        certificate = certify_affine(lambda u: -0.9999 * u, torch.zeros(1, 3, dtype=dtype))
        assert certificate.contraction and certificate.averaged


def test_certify_affine_says_what_it_takes_and_what_map_it_refuses():
    for wrong in (draw(10), draw(2, 5)):
        with pytest.raises(ValueError, match="takes one item, tensors of shape .1, own axes….*unsqueeze"):
            certify_affine(lambda u: u / 2, wrong)
    with pytest.raises(ValueError, match="not finite at 0"):
        certify_affine(lambda u: 1 / u, draw(1, 3))
    indefinite = IndefiniteMetric()
    with pytest.raises(ValueError, match="positive definite"):
        certify_affine(lambda u: u / 2, draw(1, 3), indefinite)


def test_wrong_metrics_and_samples_are_refused():
    with pytest.raises(ValueError, match="smallest eigenvalue is -1"):
        check_positive_definite(torch.diag(torch.tensor([1.0, -1.0])))
    with pytest.raises(ValueError, match="symmetric"):
        Dense(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="positive definite"):
        in_metric(lambda v: v, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="at least two"):
        certify_samples(lambda u: u, draw(1, 3))
    with pytest.raises(ValueError, match="not finite"):
        certify_samples(lambda u: u / 0, draw(2, 3))
    with pytest.raises(ValueError, match="not affine"):
        certify_affine(torch.relu, draw(1, 3))
