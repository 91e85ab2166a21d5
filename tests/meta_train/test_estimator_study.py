"""The estimator study: its problems are the published ones, and the verdict follows the numbers."""

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from l2o.rule import Observation
from meta_train import estimator_study
from meta_train.cli import main
from meta_train.estimator_problems import INFLUENCE_BALANCING, TOY_REGRESSION, LinearSystem, Schedule
from meta_train.estimator_report import write_estimator_report
from meta_train.estimator_study import (
    PASSES,
    exact_gradient,
    landscape,
    measure,
    meta_losses,
    run_study,
    smoothed_gradient,
    train,
)

PUBLISHED = Path(__file__).parents[2] / "results" / "estimators"


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def dense_losses(theta, steps):
    """Return the losses after each step, with A as a matrix."""
    matrix = 0.5 * torch.eye(23, dtype=torch.float64) + 0.5 * torch.eye(23, dtype=torch.float64).roll(1, 1)
    matrix[-1, 0] = 0
    signs = torch.tensor([1.0] * 10 + [-1.0] * 13, dtype=torch.float64)
    units, losses = torch.ones(23, dtype=torch.float64), []
    for _ in range(steps):
        units = matrix @ units + theta * signs
        losses.append(0.5 * (units[0] - 1) ** 2)
    return torch.stack(losses)


def toy_losses(theta, steps=100, noise=None, window=None):
    """Return the losses after each step of the toy regression, with the gradient written out.

    Args:
        noise: what is added to θ in each window, shape (windows, 2, n).
    """
    first, second, losses = torch.ones((), dtype=torch.float64), torch.ones((), dtype=torch.float64), []
    for t in range(steps):
        now = theta if noise is None else theta[:, None] + noise[t // window]
        rate = now[0].exp() * (steps - t) / steps + now[1].exp() * t / steps
        bump = (-5 * first**2).exp()
        slope = first / (first**2 + 5).sqrt() - 10 * first * second.sin() ** 2 * bump
        first, second = (
            first - rate * slope, second - rate * ((2 * second).sin() * bump + 0.25 * torch.sign(second - 100))
        )  # fmt: skip
        bump = second.sin() ** 2 * (-5 * first**2).exp()
        losses.append((first**2 + 5).sqrt() - 5**0.5 + bump + 0.25 * (second - 100).abs())
    return torch.stack(losses)


@pytest.mark.parametrize(
    "problem, losses, theta",
    [
        (INFLUENCE_BALANCING, lambda theta: dense_losses(theta[0], 200), (0.37,)),
        (TOY_REGRESSION, toy_losses, (-4.0, -3.0)),
        (TOY_REGRESSION, toy_losses, (-1.0, 0.5)),
    ],
)
def test_meta_loss_and_its_gradient_equal_those_written_by_hand(problem, losses, theta):
    theta = float64(*theta).requires_grad_()
    expected = losses(theta).mean()
    # the weights 1/T of the meta-loss are float32
    others = torch.stack([float64(*[0.1] * len(theta)), theta.detach()])
    assert meta_losses(problem, others)[1].item() == pytest.approx(expected.item(), rel=1e-7)
    (gradient,) = torch.autograd.grad(expected, theta)
    torch.testing.assert_close(exact_gradient(problem, theta.detach()), gradient, rtol=1e-7, atol=0)


def test_toy_regression_starts_where_the_paper_does():
    rule = TOY_REGRESSION.rule()
    assert isinstance(rule, Schedule) and rule.theta.tolist() == [math.log(0.01)] * 2
    assert (rule.horizon, TOY_REGRESSION.horizon) == (100, 100)


def test_smoothed_gradient_is_that_of_a_polynomial_and_of_many_samples():
    """Smoothing does not tilt a quadratic; the toy's is the mean of the gradients at perturbed θ."""
    exact = exact_gradient(INFLUENCE_BALANCING)
    torch.testing.assert_close(smoothed_gradient(INFLUENCE_BALANCING, 2.0), exact, rtol=1e-9, atol=0)
    draws = torch.randn(2, 40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    thetas = (TOY_REGRESSION.rule().theta.detach()[:, None] + 0.5 * draws).requires_grad_()
    (sampled,) = torch.autograd.grad(toy_losses(thetas).mean(0).sum(), thetas)
    error = sampled.std(1) / 200
    smoothed = smoothed_gradient(TOY_REGRESSION, 0.5)
    assert ((smoothed - sampled.mean(1)) / error).abs().max() < 5
    assert ((exact_gradient(TOY_REGRESSION) - sampled.mean(1)) / error).abs().max() > 8


@pytest.mark.parametrize("name, window", [("nres", 20), ("pes", 20), ("es", 100)])
def test_strategies_have_the_mean_of_the_smoothed_gradient_in_two_dimensions(name, window):
    """Oracle: autograd through the loop written by hand, at θ perturbed once (NRES, full ES) or per window (PES)."""
    sigma, generator = 0.5, torch.Generator().manual_seed(1)
    start = TOY_REGRESSION.rule().theta.detach().requires_grad_()
    noise = sigma * torch.randn(100 // window, 2, 10_000, generator=generator, dtype=torch.float64)
    if name != "pes":
        noise = noise[:1].expand_as(noise)
    losses = toy_losses(start, noise=noise, window=window)
    (expected,) = torch.autograd.grad(losses.mean(), start)
    problem = dataclasses.replace(TOY_REGRESSION, sigma=sigma)
    row = measure(problem, name, window, 400, 10, expected)
    # of the oracle's own mean the error is a tenth of this
    assert abs(float(row["relative_mean"]) - 1) < 5 * float(row["standard_error"]) < 0.2
    assert abs(float(row["across"])) < 5 * float(row["across_error"]) < 0.2


def test_a_short_window_of_the_toy_sees_little_of_the_gradient():
    exact = exact_gradient(TOY_REGRESSION)
    full, short, shortest = (measure(TOY_REGRESSION, "truncated", k, 1, 2, exact) for k in (100, 10, 1))
    assert (float(full["relative_mean"]), float(full["across"])) == pytest.approx((1, 0), abs=1e-6)
    assert 0.01 < float(shortest["relative_mean"]) < float(short["relative_mean"]) < 0.2


def test_influence_of_theta_is_positive_at_first_and_minus_six_in_the_end():
    rule = LinearSystem(1e-3)
    units = {"units": torch.zeros(23, dtype=torch.float64)}
    raised = []
    for _ in range(200):
        units, _ = rule(Observation(units, None, None, torch.tensor(0)), rule.init_state(units))
        raised.append(units["units"][0].item() / 1e-3)
    assert raised[19] == pytest.approx(16.476, abs=1e-3)
    assert raised[39] > 0 > raised[40]
    assert raised[-1] == pytest.approx(-6)


def test_least_meta_loss_of_the_grid_is_that_of_the_quadratic():
    """The gradient is linear in θ, so two of them give its zero."""
    at_zero, at_one = (exact_gradient(INFLUENCE_BALANCING, float64(value)) for value in (0.0, 1.0))
    least = meta_losses(INFLUENCE_BALANCING, (-at_zero / (at_one - at_zero))[None]).item()
    found = min(float(row["meta_loss"]) for row in landscape(INFLUENCE_BALANCING))
    # half a step of the grid from the minimum, with a curvature of 50
    assert least <= found < least + 25 * 0.0025**2


def test_landscape_has_a_row_for_every_theta_of_the_grid():
    problem = dataclasses.replace(TOY_REGRESSION, grid=((-2, 0, 3), (-5, -4, 2)))
    rows = landscape(problem)
    found = [(float(row["theta_1"]), float(row["theta_2"])) for row in rows]
    assert found == [(-2, -5), (-2, -4), (-1, -5), (-1, -4), (0, -5), (0, -4)]
    assert float(rows[2]["meta_loss"]) == pytest.approx(toy_losses(float64(-1, -5)).mean().item(), rel=1e-5)


def shortened(problem, horizon, **training):
    training = {"truncations": {name: (horizon,) for name in PASSES}, "trajectories": 3, "seeds": 2} | training
    return dataclasses.replace(
        problem,
        horizon=horizon,
        truncations=(horizon // 5, horizon),
        grid=tuple((first, last, 5) for first, last, _ in problem.grid),
        training=dataclasses.replace(problem.training, **training),
    )


SHORT = shortened(INFLUENCE_BALANCING, 100)
PROBLEMS = (shortened(TOY_REGRESSION, 20), SHORT)


@pytest.fixture
def short(monkeypatch):
    """A study of seconds: fewer steps, three trajectories of training."""
    monkeypatch.setattr(estimator_study, "PROBLEMS", PROBLEMS)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """What such a study wrote."""
    directory = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimator_study, "PROBLEMS", PROBLEMS)
        run_study(directory, 4, 3, "l2o estimators")
    return directory


@pytest.fixture
def study(studied, tmp_path):
    """A copy of it to change."""
    return Path(shutil.copytree(studied, tmp_path / "study"))


def test_rows_say_what_an_outer_step_costs():
    one = float64(1)
    costs = {name: measure(SHORT, name, 20, 5, 2, one)["cost_outer_step"] for name in PASSES}
    assert costs == {"truncated": 20, "es": 3 * 5 * 20, "pes": 2 * 5 * 20, "nres": 2 * 5 * 20}


def test_mean_and_spread_are_in_units_of_the_exact_gradient():
    exact = exact_gradient(SHORT)
    full, half, turned = (measure(SHORT, "truncated", 100, 1, 2, each) for each in (exact, 2 * exact, -exact))
    assert (full["relative_mean"], half["relative_mean"], turned["relative_mean"]) == ("1", "0.5", "-1")
    assert full["standard_error"] == full["sd_outer_step"] == 0
    assert float(measure(SHORT, "nres", 20, 5, 4, exact)["sd_outer_step"]) > 0


def test_what_lies_across_the_exact_gradient_is_told_apart():
    exact = exact_gradient(TOY_REGRESSION)
    claimed = torch.stack([-exact[1], exact[0]])
    row = measure(TOY_REGRESSION, "truncated", 100, 1, 2, claimed + exact)
    assert (float(row["relative_mean"]), abs(float(row["across"]))) == pytest.approx((0.5, 0.5))


def test_training_by_the_full_gradient_goes_down_and_by_a_truncated_one_up():
    full, truncated = train(SHORT, "truncated", 100, 1, 0), train(SHORT, "truncated", 20, 1, 0)
    losses = [float(row["meta_loss"]) for row in full]
    assert losses == sorted(losses, reverse=True)
    assert float(full[-1]["theta_1"]) < 0.5 < float(truncated[-1]["theta_1"])
    assert [row["cost"] for row in train(SHORT, "pes", 100, 4, 0)] == [0, 800, 1600, 2400]


def test_pes_leaves_the_plateau_on_which_truncated_backpropagation_stays():
    problem = shortened(TOY_REGRESSION, 100, trajectories=80)
    ends = {name: float(train(problem, name, 10, 20, 0)[-1]["meta_loss"]) for name in ("truncated", "pes")}
    assert ends["pes"] < 17 < 24 < ends["truncated"]


def test_study_writes_all_files_and_the_report_can_be_rebuilt(short, tmp_path, capsys):
    run_study(tmp_path, 4, 3, "l2o estimators")
    table = write_estimator_report(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "curves.csv", "estimators.png", "landscape.csv", "study.json", "summary.csv",
    }  # fmt: skip
    assert [line.split()[0] for line in table.splitlines() if line[:1] not in ("", "|")] == ["toy", "influence"]
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 2 * (2 + 4 * 2)
    readme, figure = (tmp_path / "README.md").read_text(), (tmp_path / "estimators.png").read_bytes()
    assert all(line in readme for line in table.splitlines() if line.startswith("|"))
    assert "BIASED at K = 20" in readme and "BIASED at K = 4" in readme
    (tmp_path / "README.md").unlink()
    main(["estimators", "--rebuild", "--out", str(tmp_path)])
    assert (tmp_path / "README.md").read_text() == readme
    assert (tmp_path / "estimators.png").read_bytes() == figure
    assert "README are in" in capsys.readouterr().out


def change(directory, estimator, **values):
    path = directory / "summary.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if (row["problem"], row["estimator"]) == ("influence balancing", estimator):
            row.update(values)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_verdict_follows_the_numbers(study):
    change(study, "pes", relative_mean="1.06", standard_error="0.01", sd_outer_step="0.1")
    change(study, "nres", relative_mean="0.97", standard_error="0.01", sd_outer_step="0.4")
    write_estimator_report(study)
    readme = (study / "README.md").read_text()
    assert "*PES*: BIASED at K = 20, 100." in readme
    assert "*NRES*: no bias found at any K, at most 3.0 standard errors." in readme
    assert "outer step's estimate is 0.25 ± 0.14 of NRES's (NOT more)" in readme


def test_training_that_ends_high_is_called_a_failure(study):
    facts = json.loads((study / "study.json").read_text())
    for least, verdict in ((1e-3, "FAILS"), (5.0, "succeeds after")):
        facts["problems"]["influence balancing"]["least_meta_loss"] = least
        (study / "study.json").write_text(json.dumps(facts))
        write_estimator_report(study)
        assert f"backpropagation, K = 100*: {verdict}" in (study / "README.md").read_text()


def test_a_bias_across_the_gradient_counts(study):
    path = study / "summary.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    straight = {"relative_mean": "1.01", "standard_error": "0.01", "across": "0.02", "across_error": "0.01"}
    for row in rows:
        if row["problem"] == "toy regression":
            row.update(straight if row["estimator"] == "pes" else straight | {"across": "-0.2"})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_estimator_report(study)
    readme = (study / "README.md").read_text()
    assert "*PES*: no bias found at any K, at most 2.0 standard errors." in readme
    assert "*NRES*: BIASED at K = 4, 20." in readme and "| -0.200 | 0.010 | -20.0 |" in readme


@pytest.mark.parametrize("name", ["pes", "nres"])
def test_particles_lag_behind_a_theta_that_moves_far_within_their_trajectory(name):
    """The negative result of the README: a step that trains at K = 20 diverges at K = 1, without bias."""
    problem = dataclasses.replace(
        INFLUENCE_BALANCING,
        training=dataclasses.replace(
            INFLUENCE_BALANCING.training,
            trajectories=2,
            optimizer=lambda theta, length: torch.optim.SGD(theta, lr=0.002),
        ),
    )
    for length, low, high in ((20, 0, 1), (1, 1e4, float("inf"))):
        assert low < float(train(problem, name, length, 100, 0)[-1]["meta_loss"]) < high


@pytest.mark.parametrize("particles", [0, 1, 3, -2])
def test_particles_come_in_pairs(particles, tmp_path):
    with pytest.raises(ValueError, match=f"an even number of at least 2 is needed, got {particles}"):
        run_study(tmp_path, particles, 2, "")


def test_one_repeat_has_no_variance(tmp_path):
    with pytest.raises(ValueError, match="repeats must be at least 2 for a variance, got 1"):
        run_study(tmp_path, 2, 1, "")


def test_a_directory_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not an estimator study"):
        write_estimator_report(tmp_path)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no results in this checkout")
def test_published_page_is_what_its_csv_files_say(tmp_path):
    for name in ("summary.csv", "curves.csv", "landscape.csv", "study.json"):
        (tmp_path / name).write_bytes((PUBLISHED / name).read_bytes())
    write_estimator_report(tmp_path)
    assert (tmp_path / "README.md").read_text() == (PUBLISHED / "README.md").read_text()
