"""Denoising problems: closed forms, a conic solver, and image sets."""

import math
import os
from pathlib import Path

import pytest
import torch

import l2o
from l2o.proximal import Gradient, TotalVariation
from l2o.rules import CondatVu, CondatVuConfig
from l2o.solve_gradient import fixed_point_map
from tasks import DataError
from tasks.denoising import add_noise, crops, denoising_problem, psnr, tikhonov
from tasks.denoising_images import FOLDERS, load_images

needs_images = pytest.mark.skipif(
    not Path(os.environ.get("L2O_DATA", ""), "deblur", "bsd68_gray").is_dir(), reason="needs L2O_DATA/deblur"
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(*shape: int, sigma: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy and true images in float64: parts of a photograph."""
    count, height, width = shape
    whole = load_images("embedded-test")[1].double()
    truth = torch.stack([whole[100 + 40 * k : 100 + 40 * k + height, 100 : 100 + width] for k in range(count)])
    return add_noise(truth, sigma, seeded()), truth


def difference_matrix(height: int, width: int) -> torch.Tensor:
    """∇ as a matrix: a row for each pair of neighbours."""
    index, rows = torch.arange(height * width).reshape(height, width), []
    for left, right in ((index[:-1], index[1:]), (index[:, :-1], index[:, 1:])):
        for one, other in zip(left.flatten(), right.flatten(), strict=True):
            row = torch.zeros(height * width, dtype=torch.float64)
            row[one], row[other] = -1, 1
            rows.append(row)
    return torch.stack(rows)


def test_tikhonov_and_its_hypergradient_equal_dense_linear_algebra():
    noisy, truth = pair(2, 5, 7)
    D, strengths = difference_matrix(5, 7), torch.tensor([0.3, 4.0], dtype=torch.float64)
    log_strength = strengths.log().requires_grad_()
    x = tikhonov(noisy, log_strength)
    (found,) = torch.autograd.grad((x - truth).square().sum(), log_strength)
    for k, strength in enumerate(strengths):
        system = torch.eye(35, dtype=torch.float64) + 2 * strength * D.mT @ D
        exact = torch.linalg.solve(system, noisy[k].flatten())
        torch.testing.assert_close(x[k].flatten(), exact, rtol=1e-10, atol=1e-10)
        move = -torch.linalg.solve(system, 2 * strength * D.mT @ D @ exact)  # dx / d log λ
        slope = 2 * (exact - truth[k].flatten()) @ move
        torch.testing.assert_close(found[k], slope, rtol=1e-8, atol=0)


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_condat_vu_gives_tikhonovs_closed_form_and_hypergradient(gradient):
    noisy, truth = pair(2, 12, 9)
    slopes = []
    for way in ("closed form", "rule"):
        log_strength = torch.tensor([-1.0, 0.5], dtype=torch.float64, requires_grad=True)
        if way == "closed form":
            x = expected = tikhonov(noisy, log_strength)
        else:
            problem = denoising_problem("tikhonov", noisy, log_strength)
            adjoint = l2o.GMRES(tol=1e-12, restart=100)
            x = l2o.solve(CondatVu(), problem, steps=1000, gradient=gradient, adjoint=adjoint, history=False).x
            torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-8)
        slopes.append(torch.autograd.grad(psnr(x, truth).sum(), log_strength)[0])
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-8, atol=1e-8)


def test_total_variation_of_64_by_64_pixels_equals_a_conic_solvers_optimum():
    import cvxpy

    (noisy,), _ = pair(1, 64, 64)
    strength, b = 0.07, noisy.numpy()
    x = cvxpy.Variable((64, 64))
    down = cvxpy.vstack([cvxpy.diff(x, axis=0), torch.zeros(1, 64).numpy()])
    right = cvxpy.hstack([cvxpy.diff(x, axis=1), torch.zeros(64, 1).numpy()])
    lengths = cvxpy.norm(cvxpy.vstack([cvxpy.vec(down, order="F"), cvxpy.vec(right, order="F")]), 2, axis=0)
    optimum = cvxpy.Problem(cvxpy.Minimize(0.5 * cvxpy.sum_squares(x - b) + strength * cvxpy.sum(lengths)))
    optimum.solve(solver=cvxpy.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    problem = denoising_problem("tv", noisy, torch.tensor(math.log(strength), dtype=torch.float64))
    step = fixed_point_map(CondatVu(CondatVuConfig(balance=10.0)), problem, ("dual",), 0)
    first = TotalVariation(strength, steps=300).solve(noisy)
    fast = l2o.Anderson(5)
    end = l2o.fixed_point(step, (first.x, first.dual), gradient=None, tol=2e-8, max_steps=4000, acceleration=fast)
    assert bool(end.converged)
    assert problem.value(end.u[0]).item() == pytest.approx(optimum.value, rel=1e-8)
    assert problem.value(first.x).item() > optimum.value * (1 + 2e-8)  # 1e-8 tells them apart
    assert (end.u[0] - torch.from_numpy(x.value)).abs().max() < 1e-4  # F differs by the distance squared


def test_the_values_of_both_problems_are_the_stated_ones():
    noisy, truth = pair(2, 4, 6)
    log_strength = torch.tensor([-1.0, 0.2], dtype=torch.float64)
    field = Gradient((4, 6)).forward(truth)
    fit, strength = 0.5 * (truth - noisy).square().sum((-2, -1)), log_strength.exp()
    values = [denoising_problem(name, noisy, log_strength).value(truth) for name in ("tikhonov", "tv")]
    torch.testing.assert_close(values[0], fit + strength * field.square().sum((-3, -2, -1)))
    torch.testing.assert_close(values[1], fit + strength * field.square().sum(-3).sqrt().sum((-2, -1)))


def test_noise_has_the_given_standard_deviation_of_each_image():
    images = torch.full((2, 200, 200), 0.5)
    noise = add_noise(images, torch.tensor([0.05, 0.2]), seeded()) - images
    # The standard error of a standard deviation of 40,000 numbers is 0.35 %; 5 of them.
    torch.testing.assert_close(noise.std((-2, -1)), torch.tensor([0.05, 0.2]), rtol=0.018, atol=0)
    assert noise.mean().abs() < 5 * 0.15 / math.sqrt(80_000)
    assert torch.equal(add_noise(images, 0.1, seeded()), add_noise(images, 0.1, seeded()))


def test_psnr_of_a_constant_error():
    truth = torch.rand(3, 8, 8, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(psnr(truth + 0.1, truth), torch.full((3,), 20.0, dtype=torch.float64))


def test_crops_are_parts_of_different_images():
    images = [torch.arange(48.0).reshape(6, 8) + 100 * k for k in range(3)]
    found = crops(images, 5, 4, seeded())
    assert found.shape == (5, 4, 4)
    assert sorted((found[:3, 0, 0] // 100).tolist()) == [0, 1, 2]
    for crop in found:
        number, corner = divmod(int(crop[0, 0]), 100)
        y, x = divmod(corner, 8)
        assert torch.equal(crop, images[number][y : y + 4, x : x + 4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: denoising_problem("huber", torch.ones(3, 3), torch.zeros(())), "must be one of tikhonov, tv, got 'hu"),  # pyright: ignore
        (lambda: denoising_problem("tv", torch.ones(3), torch.zeros(())), r"must have the shape \(batch…, height, w"),
        (
            lambda: tikhonov(torch.ones(3), torch.zeros(())),
            r"must have the shape \(batch…, height, width\), got \(3,\)",
        ),
        (lambda: add_noise(torch.ones(3, 3), -0.1, seeded()), "sigma must be finite and at least 0, got -0.1"),
        (
            lambda: crops([torch.ones(5, 9)], 2, 6, seeded()),
            "crops of 6×6 pixels need images at least as large, got 5×9",
        ),
        (lambda: crops([], 2, 6, seeded()), "need images at least as large, got none"),
        (lambda: load_images("set14"), "image set must be one of train400, set12, .*, got 'set14'"),  # pyright: ignore
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_embedded_halves_share_no_pixel():
    train, test = load_images("embedded-train"), load_images("embedded-test")
    assert [image.shape for image in (*train, *test)] == [(427, 320)] * 4
    assert not torch.equal(train[0], test[0]) and 0 <= min(float(i.min()) for i in train) < 0.1
    assert 0.9 < max(float(image.max()) for image in (*train, *test)) <= 1


@needs_images
def test_the_published_sets_have_their_published_sizes():
    shapes = {name: [tuple(image.shape) for image in load_images(name)] for name in ("train400", "set12", "bsd68")}
    assert shapes["train400"] == [(180, 180)] * 400
    assert shapes["set12"] == [(256, 256)] * 7 + [(512, 512)] * 5
    assert len(shapes["bsd68"]) == 68 and set(shapes["bsd68"]) == {(321, 481), (481, 321)}
    for name in ("set12", "bsd68"):
        assert all(0 <= float(image.min()) < float(image.max()) <= 1 for image in load_images(name))


def test_images_that_are_missing_or_damaged_are_named(tmp_path, monkeypatch):
    load_images.cache_clear()
    monkeypatch.delenv("L2O_DATA", raising=False)
    with pytest.raises(DataError, match="01.png is needed; set L2O_DATA to a folder that holds it in deblur/set12"):
        load_images("set12")
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"test001.png is needed, but it is not in {tmp_path}/deblur/bsd68_gray"):
        load_images("bsd68")
    path = tmp_path / "deblur" / "set12" / FOLDERS["set12"][1][0].name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match="01.png is damaged or not the published file"):
        load_images("set12")
