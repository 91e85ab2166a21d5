"""Lengths of trajectories and windows: their distribution, their growth, every check of a range."""

import pytest
import torch

from meta_train.config import TrainConfig
from meta_train.lengths import Lengths
from tasks import Quadratic


def test_fixed_lengths_are_those_of_the_run_and_draw_nothing(generator):
    before = generator.get_state()
    assert Lengths().draw(100, 20, 0.5, generator) == (100, 20)
    assert torch.equal(generator.get_state(), before)


def test_log_uniform_lengths_have_the_probabilities_of_their_logarithms(generator):
    """P(T = n) = log((n + 1) / n) / log((b + 1) / a) for n = a … b; χ² over 20,000 draws with 8 degrees of freedom."""
    least, most, draws = 4, 12, 20_000
    lengths = Lengths("log-uniform", min_horizon=least)
    counts = torch.zeros(most + 1, dtype=torch.float64)
    for _ in range(draws):
        horizon, truncation = lengths.draw(most, 3, 0.0, generator)
        counts[horizon] += 1
        assert truncation == 3
    n = torch.arange(least, most + 1, dtype=torch.float64)
    expected = draws * torch.log((n + 1) / n) / torch.log(torch.tensor((most + 1) / least, dtype=torch.float64))
    assert counts[:least].sum() == 0 and expected.sum() == pytest.approx(draws)
    assert ((counts[least:] - expected).square() / expected).sum() < 30  # exceeded by chance once in 5,000


def test_growing_lengths_go_geometrically_from_least_to_most_and_stay_there(generator):
    lengths = Lengths("growing", min_horizon=10, min_truncation=5)
    drawn = [lengths.draw(1000, 20, progress, generator) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert drawn == [(10, 5), (100, 10), (1000, 20), (1000, 20), (1000, 20)]


def test_a_window_is_never_longer_than_its_trajectory(generator):
    lengths = Lengths("log-uniform", min_horizon=2, min_truncation=10)
    drawn = [lengths.draw(40, 20, 0.0, generator) for _ in range(200)]
    assert all(truncation <= horizon for horizon, truncation in drawn)
    assert any(truncation < 10 for _, truncation in drawn) and any(truncation > 10 for _, truncation in drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "random"}, "schedule is one of fixed, log-uniform, growing"),
        ({"schedule": "growing", "min_horizon": 0}, "min_horizon must be an integer of at least 1"),
        ({"schedule": "growing", "min_truncation": 1.5}, "min_truncation must be an integer"),
        ({"schedule": "growing"}, "needs one of them"),
        ({"min_horizon": 3}, "go with schedule log-uniform or growing, .* set both to None"),
    ],
)
def test_lengths_out_of_range_are_value_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Lengths(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": Lengths("growing", min_horizon=101)}, r"min_horizon \(101\) must not exceed horizon \(100\)"),
        ({"lengths": Lengths("growing", min_truncation=21)}, r"min_truncation \(21\) must not exceed truncation"),
        ({"stagger": 9}, r"stagger \(9\) must not exceed n_tasks \(8\)"),
        ({"average": 1.0}, r"average is a decay in \[0, 1\), got 1.0"),
        ({"stagger": 0}, "stagger must be an integer of at least 1"),
        ({"record_dtype": "int8"}, "record_dtype is one of"),
        ({"record_dtype": "bfloat16", "order": 2}, "record_dtype is an option of --estimator recorded"),
        ({"checkpoint_steps": 2}, "an option of --estimator truncated, but this run takes Recorded"),
        ({"checkpoint_steps": 0, "order": 2}, "checkpoint_steps must be at least 1"),
    ],
)
def test_a_run_whose_options_contradict_its_lengths_or_estimator_is_a_value_error(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(Quadratic(), **options)
