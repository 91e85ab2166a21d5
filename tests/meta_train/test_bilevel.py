"""BMO on a problem with a closed form, where T alone stops at the wrong fixed point."""

import re

import pytest
import torch
from torch import Tensor

from l2o.metric import Dense
from meta_train.bilevel import InnerConfig, aggregate, aggregated_steps, hyper_train
from meta_train.bilevel_problem import BOX, AffineBilevel, WeightedMetric

PROBLEM = AffineBilevel.sample()
OMEGA = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
START = torch.zeros(1, 20, dtype=torch.float64)


def inner(config: InnerConfig, omega: Tensor = OMEGA, weighted: bool = False) -> Tensor:
    """u^K with T and H in the Euclidean norm, or in that of ℓ."""
    metric = WeightedMetric(PROBLEM.weights) if weighted else None
    points = aggregated_steps(
        lambda u, k: PROBLEM.step(u, omega, weighted), START, lambda u: PROBLEM.upper(u, omega), config, metric
    )
    return points[-1][0]


def error(config: InnerConfig, weighted: bool = False) -> float:
    best = PROBLEM.best_point(OMEGA)
    with torch.no_grad():
        return float((inner(config, weighted=weighted) - best).norm() / best.norm())


def test_closed_forms_agree_with_their_own_optimality_conditions():
    omega = OMEGA.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(PROBLEM.value(omega), omega)[0], PROBLEM.slope(OMEGA))
    torch.testing.assert_close(PROBLEM.slope(PROBLEM.best_omega()), torch.zeros(3).double(), atol=1e-12, rtol=0)
    best = PROBLEM.best_point(OMEGA).unsqueeze(0)
    for weighted in (False, True):
        torch.testing.assert_close(PROBLEM.step(best, OMEGA, weighted), best)
    for seed in range(5):  # no other fixed point is better
        noise = torch.randn(1, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert float(PROBLEM.upper(PROBLEM.step(best + 0.1 * noise, OMEGA), OMEGA)) > float(PROBLEM.value(OMEGA))


def test_bmo_finds_the_best_fixed_point_where_t_alone_does_not():
    best = PROBLEM.best_point(OMEGA)
    plain = inner(InnerConfig(400, aggregation=0.0))
    torch.testing.assert_close(PROBLEM.step(plain.unsqueeze(0), OMEGA)[0], plain)  # it is a fixed point,
    assert float((plain - best).norm() / best.norm()) > 0.3  # but the wrong one
    for weighted in (False, True):
        errors = [error(InnerConfig(K, 0.5, 5.0), weighted) for K in (50, 100, 200, 400)]
        assert all(1.7 < first / second < 2.3 for first, second in zip(errors, errors[1:], strict=False))  # O(1/K)
    errors = [error(InnerConfig(K, 0.5, 2.0, 4.0, annealed=True), weighted=True) for K in (25, 50, 100)]
    assert errors[-1] < 1e-5 and all(12 < a / b < 20 for a, b in zip(errors, errors[1:], strict=False))  # O(K⁻⁴)


def test_training_and_hyper_training_converge_together():
    omega = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    config = InnerConfig(100, 0.5, 2.0, 4.0, annealed=True, radius=50.0)

    def objective() -> Tensor:
        return PROBLEM.upper(inner(config, omega, weighted=True).unsqueeze(0), omega)[0]

    def project() -> None:
        omega.data.clamp_(-BOX, BOX)

    history = hyper_train(objective, [omega], 0.06, 60, project)
    best = PROBLEM.best_omega()
    assert abs(history[-1].value - float(PROBLEM.value(best))) < 1e-4 * float(PROBLEM.value(best))
    assert float((omega.detach() - best).norm()) < 1e-4 * float(best.norm())
    assert float(PROBLEM.slope(omega.detach()).norm()) < 1e-4 * float(PROBLEM.slope(torch.zeros(3).double()).norm())


def test_hypergradient_through_all_steps_is_that_of_differences():
    config = InnerConfig(7, 0.4, 2.0, decay=0.7, radius=3.0)

    def objective(omega: Tensor) -> Tensor:
        return PROBLEM.upper(inner(config, omega).unsqueeze(0), omega)[0]

    assert torch.autograd.gradcheck(objective, OMEGA.clone().requires_grad_())


def test_descent_uses_the_metric():
    H = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    u = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    points = aggregated_steps(lambda u, k: u, u, lambda u: 0.5 * u.square().sum(-1), InnerConfig(1, 0.5, 1.0), Dense(H))
    torch.testing.assert_close(points[-1], 0.5 * u + 0.5 * (u - u / torch.tensor([4.0, 1.0], dtype=torch.float64)))


def test_points_stay_in_the_ball_of_the_metric():
    H = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    u = torch.tensor([[3.0, 0.0], [0.1, 0.1]], dtype=torch.float64)
    config = InnerConfig(1, 0.0, radius=1.0)
    out = aggregated_steps(lambda u, k: u, u, lambda u: u.sum(-1), config, Dense(H))[-1]
    torch.testing.assert_close(out, torch.tensor([[0.5, 0.0], [0.1, 0.1]], dtype=torch.float64))


def test_the_error_falls_by_the_power_that_descent_has_until_one_over_k():
    """On {u: Au = b} with T the projection onto it, ℓ = ½‖u − c‖²: m = 1 and argmin ℓ = T(c)."""
    A, c = (
        torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        torch.arange(6.0).double(),
    )
    project = lambda u, k=0: u - (u @ A.mT - 1) @ torch.linalg.pinv(A).mT  # noqa: E731
    best = project(c.unsqueeze(0))

    def distance(steps: int, **options) -> float:
        config = InnerConfig(steps, aggregation=0.5, **options)
        upper = lambda u: 0.5 * (u - c).square().sum(-1)  # noqa: E731
        with torch.no_grad():
            return float((aggregated_steps(project, torch.zeros_like(best), upper, config)[-1] - best).norm())

    for s, power in ((0.5, 0.25), (1.0, 0.5), (5.0, 1.0)):  # μ s m, and at most 1
        assert distance(200, descent=s) / distance(800, descent=s) == pytest.approx(4**power, rel=0.05)
    assert distance(800, descent=1.0, decay=0.7) < 0.5 * distance(800, descent=1.0)


def test_a_start_without_items_and_a_loss_of_all_items_are_refused():
    start = torch.tensor([3.0, 4.0])
    upper = lambda u: 0.5 * u.square().sum(-1)  # noqa: E731
    for config in (InnerConfig(1, 0.0, radius=1.0), InnerConfig(1, radius=1.0)):
        with pytest.raises(ValueError, match=r"shape \(items, own axes…\), got \[\(2,\)\].*start.unsqueeze\(0\)"):
            aggregated_steps(lambda u, k: u, start, upper, config)
        one = aggregated_steps(lambda u, k: u, start.unsqueeze(0), upper, config)[-1]
        assert float(one.detach().norm()) == pytest.approx(1.0)
    for wrong, shape in ((lambda u: u.square().sum(), "()"), (lambda u: u.square(), "(1, 2)")):
        with pytest.raises(ValueError, match=f"upper must give ℓ of each item, shape \\(1,\\), got {re.escape(shape)}"):
            aggregated_steps(lambda u, k: u, start.unsqueeze(0), wrong, InnerConfig(1))
        with pytest.raises(ValueError, match="upper must give"):
            aggregate(start.unsqueeze(0), start.unsqueeze(0), wrong, 0.5, 1.0, Dense(torch.eye(2)))


def test_an_inner_loop_that_explodes_is_said():
    upper = lambda u: 200 * u.square().sum(-1) + u.sum(-1)  # noqa: E731
    start = torch.ones(1, 3, dtype=torch.float64)
    for factor in (1.0, 1e7):  # grown, and no longer finite
        with pytest.raises(
            ValueError, match="exploded: the largest entry of u.k went from 1.0e.00 to .*smaller `descent`"
        ):
            aggregated_steps(lambda u, k: u, start, lambda u, f=factor: f * upper(u), InnerConfig(100))
    with pytest.raises(ValueError, match="exploded"):
        aggregated_steps(lambda u, k: u / 0, start, upper, InnerConfig(1, 0.0))
    points = [u.detach() for u in aggregated_steps(lambda u, k: u, start, upper, InnerConfig(300, descent=0.2))]
    assert float(points[20].abs().max()) > 1e9  # a transient that has gone in the end
    torch.testing.assert_close(points[-1], torch.full_like(start, -1 / 400))


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="steps must be"):
        InnerConfig(steps=0)
    with pytest.raises(ValueError, match="aggregation"):
        InnerConfig(aggregation=1.0)
    for options in ({"decay": 0.0}, {"decay": 0.0, "annealed": True}, {"decay": 1.5}, {"descent": 0.0}):
        with pytest.raises(ValueError, match="decay"):
            InnerConfig(**options)
    with pytest.raises(ValueError, match="radius"):
        InnerConfig(radius=-1.0)
    omega = torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError, match="rate must be positive"):
        hyper_train(lambda: omega.sum(), [omega], 0.0, 1)
    with pytest.raises(ValueError, match="lower the rate"):
        hyper_train(lambda: (omega / 0).sum(), [omega], 1.0, 1)
    far = AffineBilevel(PROBLEM.matrix, 100 * PROBLEM.offset, PROBLEM.influence, PROBLEM.weights, PROBLEM.target)
    with pytest.raises(ValueError, match="outside"):
        far.best_omega()
