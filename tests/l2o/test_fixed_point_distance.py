"""A small residual is not nearness: points far from every fixed point are refused, and near ones are not."""

import pytest
import torch

import l2o
from l2o import Anderson, NotConvergedError, NotConvergedWarning, fixed_point, root
from l2o.fixed_point_distance import distance
from l2o.proximal import L1, Matrix
from l2o.rules import ISTA

SLOW = torch.tensor([1.0] * 19 + [3e-5])  # in float32 the first step leaves a residual of 7e-6, and 22 % of u


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(b, **options):
    return fixed_point(lambda u: u - (SLOW * u - b), torch.zeros(20), **options)


def explicit(b, **options):
    return fixed_point(lambda u, b: u - (SLOW * u - b), torch.zeros(20), b, **options)


def plain_root(b, **options):
    return root(lambda u: SLOW * u - b, torch.zeros(20), solver=Anderson(), **options)


def explicit_root(b, **options):
    return root(lambda u, b: SLOW * u - b, torch.zeros(20), b, solver=Anderson(), **options)


@pytest.mark.parametrize("find", [plain, explicit, plain_root, explicit_root])
def test_a_slow_direction_that_has_not_come_is_refused(find):
    b = SLOW.clone().requires_grad_()
    with pytest.raises(NotConvergedError, match=r"did not converge.*changes so slowly .* distance of 1\.\de-01"):
        find(b)
    with pytest.warns(NotConvergedWarning, match="changes so slowly"):
        find(b, on_failure="warn")
    assert find(b, on_failure="ignore").u.requires_grad


def test_it_is_refused_inside_transforms_too():
    with pytest.raises(NotConvergedError, match="3 of 3 items .* slowly"):
        torch.func.vmap(torch.func.grad(lambda b: explicit(b).u.sum()))(SLOW.expand(3, 20))


def test_solve_refuses_a_run_that_is_too_short_for_the_slowest_direction(float64):
    A = torch.diag(torch.tensor([1.0] * 19 + [1e-3]))
    b = A.sum(1).requires_grad_()
    with pytest.raises(NotConvergedError, match="slowly"):
        l2o.solve(ISTA(), l2o.Problem(Matrix(A), b[None], L1(1e-10)), steps=30, gradient="implicit")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["symmetric", "nonsymmetric", "singular"])
def test_the_distance_is_a_lower_bound_for_affine_maps(dtype, kind):
    A = random(12, 12).double()
    A = A @ A.T / 40 if kind != "nonsymmetric" else A
    if kind == "singular":
        A[:, 6:] = 0
    A, away = A.to(dtype), random(12, seed=1).to(dtype)
    nearest = torch.linalg.pinv(A) @ (A @ away)
    point = (away[None] + 2).requires_grad_()
    image = point - (point - 2) @ A.T
    exact = nearest.norm()
    bound = distance(point, image, is_root=False)
    assert 0 < bound <= exact * 1.001  # the rounding of pinv in float32
    torch.testing.assert_close(distance(point, (point - 2) @ A.T, is_root=True), bound, rtol=1e-3, atol=0)  # float32


@pytest.mark.parametrize("acceleration", [None, Anderson()], ids=["plain", "Anderson"])
def test_fixed_points_that_are_not_unique_pass_as_the_one_that_was_found(acceleration):
    for seed in range(5):
        A, b = random(3, 30, seed=seed), random(3, seed=seed + 50).requires_grad_()
        step = 1 / torch.linalg.matrix_norm(A, 2) ** 2
        result = fixed_point(
            lambda u, A=A, b=b, s=step: u - s * A.T @ (A @ u - b), torch.zeros(30), acceleration=acceleration
        )
        assert result.converged and result.u.requires_grad


def test_a_step_that_does_not_depend_on_u_is_near_at_once():
    b = torch.ones(3, requires_grad=True)
    assert fixed_point(lambda u, b: b * 2, torch.zeros(3), b).u.requires_grad
