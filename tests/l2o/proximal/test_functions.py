"""Laws of every proximal operator: against cvxpy, Fenchel and Moreau, firm nonexpansiveness, batches, vmap."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proximal_cases import CASES, Case, draw

from l2o.proximal import (
    L1,
    L2,
    L21,
    AffineSet,
    Box,
    Conjugate,
    HalfSpace,
    Indicator,
    L1Ball,
    L2Ball,
    Linf,
    LinfBall,
    Nonnegative,
    NuclearNorm,
    Simplex,
    SquaredL2,
    TotalVariation,
)

pytestmark = pytest.mark.usefixtures("float64")
INFINITE = float("inf")


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


CONJUGABLE = [name for name in CASES if not name.startswith("tv")]
SETS = [name for name, case in CASES.items() if isinstance(case.make(), Indicator)]
TENSORLESS = [name for name in CASES if not any(isinstance(x, torch.Tensor) for x in vars(CASES[name].make()).values())]


@pytest.mark.parametrize(("seed", "step", "scale"), [(10, 0.7, 1.0), (11, 1.9, 1.0), (12, 1.0, 0.1)])
def test_prox_equals_the_minimiser_found_by_cvxpy(case, seed, step, scale):
    v = draw(*case.shape, seed=seed, scale=scale)
    x = cp.Variable(case.shape)
    objective, constraints = case.cvxpy(x)
    quadratic = cp.sum_squares(x - v.numpy()) / (2 * step)
    tight = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}
    best = cp.Problem(cp.Minimize(objective + quadratic), constraints).solve(solver=cp.CLARABEL, **tight)
    ours = case.make().prox(v, step)
    # by strong convexity an objective right to 1e-10 gives x to sqrt(2 · step · 1e-10) = 2e-5
    np.testing.assert_allclose(ours, x.value, atol=2e-5)
    value = case.make().value(ours) + (ours - v).square().sum() / (2 * step)
    np.testing.assert_allclose(value, best, atol=1e-7, rtol=1e-7)


def test_value_equals_cvxpy_at_any_point_of_the_domain(case):
    point = case.make().prox(draw(*case.shape, seed=13))
    x = cp.Variable(case.shape)
    x.value = point.numpy()
    objective, _ = case.cvxpy(x)
    expected = objective.value if isinstance(objective, cp.Expression) else objective
    np.testing.assert_allclose(case.make().value(point), expected, atol=1e-9)


@pytest.mark.parametrize("name", CONJUGABLE)
def test_fenchel_young_is_an_equality_at_the_prox_and_an_inequality_elsewhere(name):
    case = CASES[name]
    function, conjugate = case.make(), case.make().conjugate()
    v, step = draw(50, *case.shape, seed=14, scale=2.0), 0.8
    x = function.prox(v, step)
    y = (v - x) / step  # a subgradient of f at x, which is what makes x optimal
    torch.testing.assert_close(function.value(x) + conjugate.value(y), (x * y).flatten(1).sum(1), atol=1e-9, rtol=1e-9)
    gap = function.value(x[:-1]) + conjugate.value(y[1:]) - (x[:-1] * y[1:]).flatten(1).sum(1)
    assert (gap > -1e-9).all()
    assert (gap > 1e-3).any() or isinstance(function, AffineSet)  # where it is an equality at every pair


DUALS = {
    "l1 and the linf ball": (L1(0.6), LinfBall(0.6), (5,)),
    "linf and the l1 ball": (Linf(0.7), L1Ball(0.7), (5,)),
    "l2 and the l2 ball": (L2(0.8), L2Ball(0.8), (5,)),
    "squared l2 and its inverse": (SquaredL2(2.0), SquaredL2(0.5), (5,)),
    "the two orthants": (Nonnegative(), Box(-INFINITE, 0.0), (5,)),
    "a group norm and balls of columns": (L21(0.8, axis=-2, ndim=2), L2Ball(0.8), (5, 1)),
}


@pytest.mark.parametrize("name", DUALS)
def test_moreau_decomposes_every_point_into_two_independent_proxes(name):
    function, dual, shape = DUALS[name]
    v, step = draw(20, *shape, seed=15, scale=2.0), 0.7
    dual_point = dual.prox((v / step).reshape(20, *shape), 1 / step)
    if shape == (5, 1):  # the one column, as a vector
        dual_point = dual.prox((v / step).squeeze(-1), 1 / step).unsqueeze(-1)
    torch.testing.assert_close(function.prox(v, step) + step * dual_point, v)


def test_prox_of_the_conjugate_of_the_nuclear_norm_clips_singular_values():
    v = draw(3, 4, seed=16, scale=2.0)
    u, sigma, vh = torch.linalg.svd(v, full_matrices=False)
    torch.testing.assert_close(NuclearNorm(0.8).conjugate().prox(v, 1.7), (u * sigma.clamp(max=0.8)) @ vh)


@pytest.mark.parametrize("name", CONJUGABLE)
def test_the_conjugate_of_the_conjugate_is_the_function(name):
    case = CASES[name]
    function, v = case.make(), draw(*case.shape, seed=17)
    assert function.conjugate().conjugate() is function
    twice = Conjugate(function.conjugate())
    torch.testing.assert_close(twice.prox(v, 0.6), function.prox(v, 0.6), atol=1e-9, rtol=1e-9)
    x = function.prox(v)
    torch.testing.assert_close(function.conjugate().conjugate_value(x), function.value(x))


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(CASES)),
    seed=st.integers(0, 2**30),
    log_scale=st.floats(-3, 3),
    log_distance=st.floats(-4, 2),
    step=st.floats(0.01, 10),
)
def test_prox_is_firmly_nonexpansive(name, seed, log_scale, log_distance, step):
    case = CASES[name]
    u = draw(*case.shape, seed=seed, scale=10**log_scale)
    v = u + draw(*case.shape, seed=seed + 1, scale=10 ** (log_scale + log_distance))
    function = case.make()
    moved = function.prox(u, step) - function.prox(v, step)
    # the inner solver of total variation is exact to about 1e-9 of the scale only
    slack = 1e-7 if isinstance(function, TotalVariation) else 1e-11
    scale = 1 + u.abs().max() + v.abs().max()
    assert moved.square().sum() <= (moved * (u - v)).sum() + slack * scale**2


@pytest.mark.parametrize("name", SETS)
def test_indicator_is_zero_on_its_projection_and_infinite_outside(name):
    case = CASES[name]
    function = case.make()
    v = draw(40, *case.shape, seed=18, scale=3.0)
    projection = function.prox(v)
    outside = (v - projection).flatten(1).norm(dim=1) > 1e-3
    assert outside.any() and (function.value(v)[outside] == INFINITE).all()
    assert (function.value(projection) == 0).all()
    torch.testing.assert_close(function.prox(projection), projection)
    assert torch.equal(function.prox(v, 0.1), function.prox(v, 7.0))  # whatever the step


def test_batch_of_items_equals_loop_with_a_step_for_each(case):
    function, v = case.make(), draw(2, 3, *case.shape, seed=19, scale=2.0)
    step = torch.rand(2, 3, generator=torch.Generator().manual_seed(20)) + 0.2
    together, values = function.prox(v, step), function.value(v)
    assert together.shape == v.shape and values.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], function.prox(v[i, j], step[i, j].item()))
            torch.testing.assert_close(values[i, j], function.value(v[i, j]))


def test_empty_batch_gives_an_empty_batch(case):
    function, none = case.make(), torch.zeros(0, *case.shape)
    assert function.prox(none, torch.zeros(0)).shape == none.shape and function.value(none).shape == (0,)


def test_vmap_equals_batch(case):
    function, v = case.make(), draw(4, *case.shape, seed=21, scale=2.0)
    step = torch.tensor([0.3, 0.7, 1.1, 2.0])
    torch.testing.assert_close(torch.func.vmap(function.prox)(v, step), function.prox(v, step))
    torch.testing.assert_close(torch.func.vmap(function.value)(v), function.value(v))
    gradients = torch.func.vmap(torch.func.grad(lambda v, t: function.prox(v, t).square().sum()))(v, step)
    expected = torch.func.grad(lambda v: function.prox(v, step).square().sum())(v)
    torch.testing.assert_close(gradients, expected)


SCALED = {"l1": L1, "l2": L2, "linf": Linf, "nuclear": NuclearNorm, "l21-rows": L21, "tv-isotropic": TotalVariation}
BALLS = {"l1-ball": L1Ball, "l2-ball": L2Ball, "linf-ball": LinfBall, "simplex": Simplex}


@pytest.mark.parametrize("name", [*SCALED, *BALLS])
def test_strength_or_radius_for_each_item_equals_loop(name):
    kind, shape = (SCALED | BALLS)[name], CASES[name].shape
    scalars, v = torch.tensor([0.3, 0.9, 1.5]), draw(3, *shape, seed=22)
    function = kind(scalars)
    for i, scalar in enumerate(scalars.tolist()):
        torch.testing.assert_close(function.prox(v, 0.7)[i], kind(scalar).prox(v[i], 0.7))
        torch.testing.assert_close(function.conjugate().prox(v, 0.7)[i], kind(scalar).conjugate().prox(v[i], 0.7))
    mapped = torch.func.vmap(lambda scalar, v: kind(scalar).prox(v, 0.7))(scalars, v)
    torch.testing.assert_close(mapped, function.prox(v, 0.7))


def test_sets_for_each_item_equal_loop():
    matrix, target, v = draw(3, 2, 5), draw(3, 2, seed=1), draw(3, 5, seed=2)
    affine, half = AffineSet.from_system(matrix, target), HalfSpace(matrix[:, 0], target[:, 0])
    for i in range(3):
        alone = AffineSet.from_system(matrix[i], target[i])
        torch.testing.assert_close(affine.prox(v)[i], alone.prox(v[i]))
        half_alone = HalfSpace(matrix[i, 0], target[i, 0].item())
        torch.testing.assert_close(half.prox(v)[i], half_alone.prox(v[i]))
        y = 1.5 * matrix[i, 0]
        torch.testing.assert_close(half_alone.conjugate_value(y), 1.5 * target[i, 0])


@pytest.mark.parametrize("name", TENSORLESS)
def test_float32_stays_float32_and_near_float64(name):
    function, v = CASES[name].make(), draw(3, *CASES[name].shape, seed=23)
    single = function.prox(v.float(), torch.full((3,), 0.7))  # the step is float64
    assert single.dtype == torch.float32 and function.value(v.float()).dtype == torch.float32
    torch.testing.assert_close(single.double(), function.prox(v, 0.7), atol=2e-6, rtol=2e-6)
