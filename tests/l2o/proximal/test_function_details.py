"""Derivatives, kinks, hand-computed cases and errors of the proximal operators."""

import dataclasses

import pytest
import torch
from proximal_cases import CASES, draw

from l2o.proximal import (
    L1,
    L2,
    L21,
    AffineSet,
    Box,
    ElasticNet,
    HalfSpace,
    Indicator,
    L1Ball,
    L2Ball,
    Linf,
    NuclearNorm,
    Simplex,
    TotalVariation,
    singular_value_threshold,
    soft_threshold,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_prox_and_value_equal_finite_differences(name):
    case = CASES[name]
    function = case.make()
    if isinstance(function, TotalVariation):  # the iterations are what is differentiated; few of them are quicker
        function = dataclasses.replace(function, steps=15)
    v = draw(2, *case.shape, seed=30).requires_grad_()
    step = torch.tensor([0.7, 1.3], requires_grad=True)
    assert torch.autograd.gradcheck(function.prox, (v, step))
    if not isinstance(function, Indicator):
        assert torch.autograd.gradcheck(function.value, draw(2, *case.shape, seed=31).abs().requires_grad_())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["zero", "ones", "threshold", "boundary", "rank one"])
def test_gradients_are_finite_at_kinks(name, kind):
    case = CASES[name]
    function = case.make()
    if isinstance(function, TotalVariation):
        function = dataclasses.replace(function, steps=15)
    v = {
        "zero": torch.zeros(case.shape),
        "ones": torch.ones(case.shape),  # ties, and equal groups
        "threshold": torch.full(case.shape, getattr(function, "strength", 1.0)),
        "boundary": function.prox(draw(*case.shape, seed=32, scale=3.0)),
        "rank one": torch.ones(case.shape) * torch.arange(case.shape[-1]),
    }[kind].requires_grad_()
    step = torch.tensor(1.0, requires_grad=True)
    weights = draw(*case.shape, seed=33)
    gradients = torch.autograd.grad((weights * function.prox(v, step)).sum(), (v, step), materialize_grads=True)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    # a firmly nonexpansive map has no Jacobian longer than 1
    assert gradients[0].norm() <= weights.norm() * (1 + 1e-9)


@pytest.mark.parametrize("function", [L1Ball(), L2Ball(), Box(-1.0, 1.0)])
def test_projection_has_the_identity_as_jacobian_at_zero(function):
    jacobian = torch.autograd.functional.jacobian(function.prox, torch.zeros(3))
    torch.testing.assert_close(jacobian, torch.eye(3))


def test_l2_ball_projection_keeps_what_is_inside_and_scales_what_is_outside():
    v = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(L2Ball(2.0).prox(v), torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0]]))


def test_linf_prox_has_the_factor_step_once():
    # the largest entry falls by step · λ = 1; a second factor of the step would give 2.5 or 3.5
    torch.testing.assert_close(Linf(0.5).prox(torch.tensor([4.0, 1.0, -0.5]), 2.0), torch.tensor([3.0, 1.0, -0.5]))


def test_ista_step_thresholds_at_strength_times_step():
    torch.testing.assert_close(L1(0.2).prox(torch.tensor([1.0, -0.04]), 0.25), torch.tensor([0.95, 0.0]))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e30])
def test_soft_threshold_by_a_number_equals_that_by_a_tensor_and_keeps_nan(scale):
    v = torch.cat([draw(50, scale=scale), torch.tensor([0.3, -0.3, 0.0, float("inf"), float("nan")])])
    by_number, by_tensor = soft_threshold(v, 0.3), soft_threshold(v, torch.tensor(0.3))
    torch.testing.assert_close(by_number[:-2], by_tensor[:-2])
    assert by_number[-2].isinf() and by_tensor[-2].isinf() and by_number[-1].isnan() and by_tensor[-1].isnan()
    mapped = torch.func.vmap(torch.func.grad(lambda v: soft_threshold(v, 0.3)))(v[:50])
    torch.testing.assert_close(mapped, (v[:50].abs() > 0.3).to(v.dtype))


def test_step_zero_is_the_identity_for_functions_and_stays_a_projection_for_sets():
    v = draw(4, 3)
    for function in (L1(), L2(), Linf(), ElasticNet(), L21(), NuclearNorm(), TotalVariation()):
        torch.testing.assert_close(function.prox(v, 0.0), v)
    torch.testing.assert_close(Simplex().prox(v, 0.0), Simplex().prox(v, 1.0))


def test_radius_zero_projects_onto_zero():
    v = draw(4, 3)
    for function in (L1Ball(0.0), L2Ball(0.0), Simplex(0.0)):
        torch.testing.assert_close(function.prox(v), torch.zeros(4, 3))


@pytest.mark.parametrize("function", [Simplex(), L1Ball()])
def test_projection_of_large_float32_numbers_loses_no_digits(function):
    v = (1000 + draw(5, 100).abs()).float()  # neighbours are 6e-5 apart
    torch.testing.assert_close(function.prox(v).double(), function.prox(v.double()), atol=1e-6, rtol=0)


def test_half_space_with_zero_normal_is_everything():
    v = draw(3)
    assert torch.equal(HalfSpace(torch.zeros(3), 0.0).prox(v), v)


def test_inconsistent_affine_system_projects_onto_its_least_squares_solutions():
    matrix, target, v = draw(4, 2), draw(4, seed=1), draw(2, seed=2)
    affine = AffineSet.from_system(matrix, target)
    torch.testing.assert_close(affine.prox(v), torch.linalg.lstsq(matrix, target.unsqueeze(1)).solution.squeeze(1))
    assert affine.value(affine.prox(v)) == 0  # of that set


def test_affine_conjugate_is_infinite_off_the_range():
    affine = AffineSet.from_system(torch.tensor([[1.0, 1.0]]), torch.tensor([2.0]))
    torch.testing.assert_close(affine.conjugate_value(torch.tensor([3.0, 3.0])), torch.tensor(6.0))
    assert affine.conjugate_value(torch.tensor([3.0, 2.0])) == float("inf")


def test_unbounded_box_has_a_finite_support_function_where_it_should():
    box = Box(0.0, float("inf"))
    assert box.conjugate_value(torch.tensor([-1.0, 0.0])) == 0 and box.conjugate_value(torch.tensor([1.0])).isinf()


def test_derivative_of_singular_value_thresholding_is_right_for_equal_and_zero_singular_values():
    # at the identity, d/dM of U max(Σ − τ, 0) Vᵀ is 1 on symmetric and 1 − τ on skew directions (Σ = I, f(1) = 1 − τ)
    def derivative(matrix, direction):
        return torch.autograd.functional.jvp(lambda m: singular_value_threshold(m, 0.25), matrix, direction)[1]

    symmetric, skew = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(derivative(torch.eye(2), symmetric), symmetric)
    torch.testing.assert_close(derivative(torch.eye(2), skew), 0.75 * skew)
    rank_one = torch.outer(draw(3), draw(2, seed=1))
    step = 1e-6
    direction = draw(3, 2, seed=2)
    ends = [singular_value_threshold(rank_one + sign * step * direction, 0.25) for sign in (1, -1)]
    difference = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(derivative(rank_one, direction), difference, atol=1e-8, rtol=1e-6)


def test_second_derivative_of_singular_value_thresholding_equals_finite_differences():
    matrix = draw(3, 2, scale=2.0).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda m: singular_value_threshold(m, 0.3), matrix)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1(-0.1), "strength must be finite and at least 0, got -0.1"),
        (lambda: L1(float("nan")), "strength must be finite"),
        (lambda: ElasticNet(1.0, -2.0), "ridge must be finite and at least 0"),
        (lambda: Simplex(float("inf")), "radius must be finite"),
        (lambda: L2(ndim=0), "an item needs at least one axis, got ndim=0"),
        (lambda: L21(axis=1), "axis must be from -2 to -1"),
        (lambda: L21(axis=-3), "axis must be from -2 to -1"),
        (lambda: Box(1.0, 0.0), "lower must not be above upper"),
        (lambda: TotalVariation(steps=0), "steps and tolerance must be positive"),
        (lambda: TotalVariation(tolerance=0.0), "steps and tolerance must be positive"),
        (lambda: AffineSet.from_system(torch.ones(2, 3), torch.ones(3)), "expected A of shape"),
        (lambda: AffineSet.from_system(torch.ones(3), torch.ones(3)), "expected A of shape"),
        (lambda: L1().prox(torch.ones(3), -1.0), "must be at least 0, got -1.0"),
        (lambda: L1().prox(torch.ones(3), float("nan")), "must be at least 0, got nan"),
        (lambda: L1(ndim=2).prox(torch.ones(3)), "an item has 2 axes"),
        (lambda: TotalVariation().value(torch.ones(3)), "an item has 2 axes"),
        (lambda: L1().conjugate().prox(torch.ones(3), 0.0), "needs a step above 0"),
    ],
)
def test_wrong_numbers_and_shapes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_conjugate_of_total_variation_has_a_prox_but_no_value():
    v = draw(3, 4)
    total = TotalVariation(0.2).prox(v, 0.5) + 0.5 * TotalVariation(0.2).conjugate().prox(v / 0.5, 2.0)
    torch.testing.assert_close(total, v)
    with pytest.raises(NotImplementedError, match="conjugate of TotalVariation has no closed form"):
        TotalVariation().conjugate().value(v)
