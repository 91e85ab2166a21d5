"""Unmixing: pixels, their abundances on the simplex, and the constrained optimum against cvxpy."""

import cvxpy
import pytest
import torch

import l2o
from l2o.proximal import Simplex
from l2o.rules import FISTA
from tasks import Unmixing


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_abundances_are_on_the_simplex_and_spectra_are_reflectances(float64):
    family = Unmixing(bands=50, endmembers=8)
    tasks = family.sample_tasks(500, seeded())
    assert tasks["b"].shape == (500, 50) and tasks["x_star"].shape == (500, 8)
    torch.testing.assert_close(tasks["x_star"].sum(1), torch.ones(500))
    assert (tasks["x_star"] >= 0).all()
    E = family.spectra(tasks["b"])
    assert (E > 0).all() and (E < 1).all() and torch.linalg.matrix_rank(E) == 8
    assert E.diff(dim=0).abs().max() < 0.2  # smooth


def test_materials_are_present_with_the_stated_probability():
    x = Unmixing(endmembers=10, density=0.3).sample_tasks(4000, seeded())["x_star"]
    # 0.3, and one material in the (1 − 0.3)¹⁰ = 2.8 % of pixels that would have none
    expected = 0.3 + 0.7**10 / 10
    present = x > 1e-30
    assert abs(present.float().mean() - expected) < 5 * (0.3 * 0.7 / x.numel()) ** 0.5
    assert present.any(1).all()


def test_abundances_of_one_material_alone_are_one():
    x = Unmixing(endmembers=6, density=1e-6).sample_tasks(50, seeded())["x_star"]
    torch.testing.assert_close(x.amax(1), torch.ones(50))


@pytest.mark.parametrize("snr_db", [None, 20.0])
def test_noise_has_the_stated_signal_to_noise_ratio(float64, snr_db):
    family = Unmixing(snr_db=snr_db)
    tasks = family.sample_tasks(400, seeded())
    clean = tasks["x_star"] @ family.spectra(tasks["b"]).mT
    ratio = (tasks["b"] - clean).square().sum(1) / clean.square().sum(1)
    if snr_db is None:
        assert ratio.max() < 1e-25
    else:
        assert abs(100 * ratio.mean() - 1) < 5 * (2 / 100 / 400) ** 0.5  # χ² with 100 degrees of freedom, over 100


def test_optimum_on_the_simplex_is_that_of_cvxpy(float64):
    family = Unmixing(bands=30, endmembers=5)
    tasks = family.sample_tasks(3, seeded())
    problem = family.problem(tasks)
    assert isinstance(problem.regularizer, Simplex)
    solution = l2o.solve(FISTA(), problem, steps=5000, history=False)
    for i in range(3):
        a = cvxpy.Variable(5, nonneg=True)
        misfit = cvxpy.sum_squares(problem.operator.matrix.numpy() @ a - tasks["b"][i].numpy()) / 2
        best = cvxpy.Problem(cvxpy.Minimize(misfit), [cvxpy.sum(a) == 1]).solve(cvxpy.CLARABEL, tol_gap_abs=1e-12)
        assert float(solution.certificate.primal[i]) == pytest.approx(best, abs=1e-9)
        torch.testing.assert_close(solution.x[i], torch.from_numpy(a.value), atol=1e-3, rtol=0)  # E is ill-conditioned
    assert (solution.certificate.gap < 1e-9).all()


def test_without_noise_the_abundances_are_recovered(float64):
    family = Unmixing(bands=60, endmembers=4, snr_db=None)
    tasks = family.sample_tasks(5, seeded())
    found = l2o.solve(FISTA(), family.problem(tasks), steps=20_000, history=False).x
    torch.testing.assert_close(found, tasks["x_star"], atol=1e-6, rtol=0)


def test_loss_is_the_value_of_the_problem_on_the_simplex_and_the_start_is_its_center(float64):
    family = Unmixing(bands=9, endmembers=4)
    tasks = family.sample_tasks(3, seeded())
    start = family.init_params(tasks, 3, seeded())
    assert torch.equal(start["x"], torch.full((3, 4), 0.25))
    torch.testing.assert_close(family.loss(start, tasks, {}), family.problem(tasks).value(start["x"]))
    off = {"x": start["x"] + 1}
    assert family.loss(off, tasks, {}).isfinite().all() and family.problem(tasks).value(off["x"]).isinf().all()


def test_spectra_depend_on_their_seed_alone_and_not_on_the_precision():
    like = torch.zeros(1)
    E = Unmixing().spectra(like)
    assert torch.equal(E, Unmixing(density=0.9).spectra(like))
    assert not torch.equal(E, Unmixing(spectra_seed=1).spectra(like))
    assert torch.equal(E, Unmixing().spectra(like.double()).float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": 0}, "bands and endmembers must be at least 1, got 0 and 10"),
        ({"endmembers": 0}, "bands and endmembers must be at least 1"),
        ({"density": 0.0}, "density must be above 0 and at most 1"),
        ({"snr_db": float("nan")}, "snr_db must be finite"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Unmixing(**options)
