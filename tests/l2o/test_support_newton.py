"""The Newton step on a support: kernel against plain torch, and both against a dense solution."""

import pytest
import torch

from l2o import solve
from l2o.kernels import support_newton as module
from l2o.kernels.support_newton import reference, support_newton
from l2o.rules import FISTA, FirmALISTA, FirmALISTAConfig, SupportNewton, SupportNewtonConfig
from tasks.lasso import problem


def case(dtype=torch.float64, items=12, rows=30, columns=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rows, columns, dtype=dtype, generator=generator) / rows**0.5
    b = torch.randn(items, rows, dtype=dtype, generator=generator)
    return problem(A, b, 0.3 * (b @ A).abs().amax(-1))


def arguments(made, x):
    A = made.operator.matrix
    return A.mT @ A, made.b @ A, made.regularizer.strength, x, made.smooth_grad(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("limit", [60, 12, 0])
def test_kernel_equals_plain_torch(dtype, rounds, limit):
    made = case(dtype)
    x = solve(FISTA(), made, steps=6).x
    options = {"step": 0.7, "rounds": rounds, "limit": limit}
    ours, plain = support_newton(*arguments(made, x), **options), reference(*arguments(made, x), **options)
    assert torch.equal(ours[2], plain[2])
    assert limit == 0 or (ours[2] > 0).any()
    tolerance = 1e-4 if dtype is torch.float32 else 1e-9  # a solution is as exact as its matrix is well conditioned
    for mine, other in zip(ours[:2], plain[:2], strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def test_plain_torch_takes_over_without_a_compiler(monkeypatch):
    made = case()
    x = solve(FISTA(), made, steps=6).x
    expected = support_newton(*arguments(made, x), step=1.0, rounds=3, limit=60)
    monkeypatch.setattr(module, "library", lambda: None)
    for mine, other in zip(support_newton(*arguments(made, x), step=1.0, rounds=3, limit=60), expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_one_round_is_the_dense_solution_on_the_support_without_wrong_signs():
    made = case()
    x = solve(FISTA(), made, steps=30).x
    gram, correlation, strength, _, gradient = arguments(made, x)
    y, y_gradient, _ = support_newton(gram, correlation, strength, x, gradient, step=0.5, rounds=1, limit=60)
    for i in range(12):
        v = x[i] - 0.5 * gradient[i]
        S = (v.abs() > 0.5 * strength[i]).nonzero().flatten()
        sign = v[S].sign()
        dense = torch.linalg.solve(gram[S][:, S], correlation[i, S] - strength[i] * sign)
        expected = torch.zeros(60, dtype=torch.float64)
        expected[S] = torch.where(dense * sign > 0, dense, 0.0)
        torch.testing.assert_close(y[i], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(y_gradient, made.smooth_grad(y))


def test_a_matrix_of_its_own_for_each_item():
    parts = [case(items=1, seed=seed) for seed in range(4)]
    A, b = torch.stack([p.operator.matrix for p in parts]), torch.cat([p.b for p in parts])
    made = problem(A, b, torch.cat([p.regularizer.strength for p in parts]))
    x = solve(FISTA(), made, steps=8).x
    together = solve(SupportNewton(), made, steps=1, start=x).x
    for i, part in enumerate(parts):
        torch.testing.assert_close(solve(SupportNewton(), part, steps=1, start=x[i : i + 1]).x[0], together[i])


def test_dependent_columns_leave_the_item_where_it_is():
    A = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    made = problem(A, torch.tensor([[1.0, 0.0]], dtype=torch.float64), 0.1)
    x = torch.full((1, 2), 0.2, dtype=torch.float64)
    assert torch.equal(solve(SupportNewton(), made, steps=1, start=x).x, x)


def test_near_the_solution_it_is_exact_in_one_step():
    made = case()
    x = solve(FISTA(), made, steps=400).x
    assert solve(SupportNewton(), made, steps=1, start=x).certificate.relative_gap.max() < 1e-13


@pytest.mark.parametrize("options", [{"step": 0.0}, {"rounds": 0}, {"limit": 0.0}, {"limit": 1.5}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SupportNewtonConfig(**options)


def test_firm_thresholding_shrinks_the_small_and_leaves_the_large():
    rule = FirmALISTA(FirmALISTAConfig(layers=1, threshold=1.0, gain=0.5)).double()
    made = problem(torch.eye(5, dtype=torch.float64), torch.tensor([0.5, 1.5, 2.0, 3.0, -5.0]).double(), 0.1)
    # |u| − 1 is stretched by 1.5 until it meets |u|, at 3
    expected = torch.tensor([0.0, 0.75, 1.5, 3.0, -5.0]).double()
    torch.testing.assert_close(solve(rule, made, steps=1).x, expected)


@pytest.mark.parametrize("options", [{"layers": 0}, {"step_size": 0.0}, {"threshold": -1.0}, {"gain": 0.0}])
def test_firm_alista_refuses_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FirmALISTAConfig(**options)
