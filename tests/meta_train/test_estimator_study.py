"""The influence-balancing study: the problem is the published one, and the verdict follows the numbers."""

import csv
import json
from pathlib import Path

import pytest
import torch

from meta_train import estimator_study
from meta_train.cli import main
from meta_train.estimator_report import write_estimator_report
from meta_train.estimator_study import (
    LinearSystem,
    exact_gradient,
    least_meta_loss,
    measure,
    meta_losses,
    run_study,
    train,
)

PUBLISHED = Path(__file__).parents[2] / "results" / "estimators"


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


def test_meta_loss_and_its_gradient_equal_those_of_the_dense_matrix():
    theta = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    expected = dense_losses(theta, 200).mean()
    # the weights 1/T of the meta-loss are float32
    assert meta_losses([0.1, 0.37])[1] == pytest.approx(expected.item(), rel=1e-7)
    assert exact_gradient(0.37) == pytest.approx(torch.autograd.grad(expected, theta)[0].item(), rel=1e-7)


def test_influence_of_theta_is_positive_at_first_and_minus_six_in_the_end():
    rule = LinearSystem(1e-3)
    units = {"units": torch.zeros(23, dtype=torch.float64)}
    raised = []
    for _ in range(200):
        units, _ = rule(estimator_study.Observation(units, None, None, torch.tensor(0)), rule.init_state(units))
        raised.append(units["units"][0].item() / 1e-3)
    assert raised[19] == pytest.approx(16.476, abs=1e-3)
    assert raised[39] > 0 > raised[40]
    assert raised[-1] == pytest.approx(-6)


def test_least_meta_loss_is_below_its_neighbours():
    least = least_meta_loss()
    losses = meta_losses([-0.2 + 0.002 * k for k in range(150)])
    assert least <= min(losses) < least * 1.001


@pytest.fixture
def short(monkeypatch):
    """A study of seconds: fewer steps, two trajectories of training."""
    monkeypatch.setattr(estimator_study, "HORIZON", 100)
    monkeypatch.setattr(estimator_study, "TRUNCATIONS", (20, 100))
    monkeypatch.setattr(estimator_study, "TRAINED", {name: (100,) for name in estimator_study.PASSES})
    monkeypatch.setattr(estimator_study, "TRAJECTORIES", 3)
    monkeypatch.setattr(estimator_study, "SEEDS", 2)


def test_rows_say_what_an_outer_step_costs(short):
    costs = {name: measure(name, 20, 5, 2, 1.0)["cost_outer_step"] for name in ("truncated", "es", "pes", "nres")}
    assert costs == {"truncated": 20, "es": 3 * 5 * 20, "pes": 2 * 5 * 20, "nres": 2 * 5 * 20}


def test_mean_and_spread_are_in_units_of_the_exact_gradient(short):
    exact = exact_gradient(0.5)
    full, half = (measure("truncated", 100, 1, 2, each) for each in (exact, 2 * exact))
    assert (full["relative_mean"], half["relative_mean"]) == ("1", "0.5")
    assert full["standard_error"] == full["sd_outer_step"] == 0
    assert float(measure("nres", 20, 5, 4, exact)["sd_outer_step"]) > 0


def test_training_by_the_full_gradient_goes_down_and_by_a_truncated_one_up(short):
    full, truncated = train("truncated", 100, 1, 0), train("truncated", 20, 1, 0)
    losses = [float(row["meta_loss"]) for row in full]
    assert losses == sorted(losses, reverse=True)
    assert float(full[-1]["theta"]) < 0.5 < float(truncated[-1]["theta"])
    assert [row["cost"] for row in train("pes", 100, 4, 0)] == [0, 800, 1600, 2400]


def test_study_writes_all_files_and_the_report_can_be_rebuilt(short, tmp_path, capsys):
    run_study(tmp_path, 4, 3, "l2o estimators")
    table = write_estimator_report(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "curves.csv", "estimators.png", "study.json", "summary.csv",
    }  # fmt: skip
    assert len(table.splitlines()) == 2 + 4 * 2
    readme, figure = (tmp_path / "README.md").read_text(), (tmp_path / "estimators.png").read_bytes()
    assert table in readme and "BIASED at K = 20" in readme
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
        if row["estimator"] == estimator:
            row.update(values)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_verdict_follows_the_numbers(short, tmp_path):
    run_study(tmp_path, 4, 3, "l2o estimators")
    change(tmp_path, "pes", relative_mean="1.06", standard_error="0.01", sd_outer_step="0.1")
    change(tmp_path, "nres", relative_mean="0.97", standard_error="0.01", sd_outer_step="0.4")
    write_estimator_report(tmp_path)
    readme = (tmp_path / "README.md").read_text()
    assert "*PES*: BIASED at K = 20, 100." in readme
    assert "*NRES*: no bias found at any K, at most 3.0 standard errors." in readme
    assert "outer step's estimate is 0.25 ± 0.14 of NRES's (NOT more)" in readme


def test_training_that_ends_high_is_called_a_failure(short, tmp_path):
    run_study(tmp_path, 4, 3, "l2o estimators")
    study = json.loads((tmp_path / "study.json").read_text())
    for least, verdict in ((1e-3, "FAILS"), (5.0, "succeeds after")):
        (tmp_path / "study.json").write_text(json.dumps(study | {"least_meta_loss": least}))
        write_estimator_report(tmp_path)
        assert f"backpropagation, K = 100*: {verdict}" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["pes", "nres"])
def test_particles_lag_behind_a_theta_that_moves_far_within_their_trajectory(name, monkeypatch):
    """The negative result of the README: a step that trains at K = 20 diverges at K = 1, without bias."""
    monkeypatch.setattr(estimator_study, "TRAJECTORIES", 2)
    for length, low, high in ((20, 0, 1), (1, 1e4, float("inf"))):
        monkeypatch.setattr(estimator_study, "OUTER_LR", 0.002 / length)
        assert low < float(train(name, length, 100, 0)[-1]["meta_loss"]) < high


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
    for name in ("summary.csv", "curves.csv", "study.json"):
        (tmp_path / name).write_bytes((PUBLISHED / name).read_bytes())
    write_estimator_report(tmp_path)
    assert (tmp_path / "README.md").read_text() == (PUBLISHED / "README.md").read_text()
