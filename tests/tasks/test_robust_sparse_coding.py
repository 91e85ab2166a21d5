"""Robust sparse coding: the signals are what they are said to be, and the problem's value is the objective."""

import pytest
import torch

from tasks.robust_sparse_coding import RobustSparseCoding


def draw(task: RobustSparseCoding, signals: int, seed: int = 0):
    return task.sample(signals, torch.Generator().manual_seed(seed))


def test_signals_are_codes_seen_through_unit_columns_plus_errors():
    task = RobustSparseCoding(20, 40, 0.2)
    signals = draw(task, 500)
    torch.testing.assert_close(task.dictionary.norm(dim=0), torch.ones(40))
    torch.testing.assert_close(signals.x, signals.code @ task.dictionary.mT + signals.error)
    for part in (signals.code, signals.error):
        assert float((part != 0).float().mean()) == pytest.approx(0.2, abs=0.02)
        assert float(part[part != 0].std()) == pytest.approx(1.0, abs=0.05)


def test_value_of_the_problem_at_the_code_is_that_of_the_signal():
    task = RobustSparseCoding(20, 40, 0.1)
    signals = draw(task, 7)
    torch.testing.assert_close(task.problem(signals.x).value(signals.code), signals.value, rtol=1e-5, atol=1e-5)
    assert task.problem(signals.x.double()).operator.forward(signals.code.double()).dtype == torch.float64


def test_the_same_seed_gives_the_same_signals_and_dictionary():
    first, second = (draw(RobustSparseCoding(20, 40), 3) for _ in range(2))
    assert torch.equal(first.x, second.x) and not torch.equal(first.x, draw(RobustSparseCoding(20, 40), 3, 1).x)
    assert not torch.equal(RobustSparseCoding(20, 40).dictionary, RobustSparseCoding(20, 40, 0.1, 1).dictionary)


@pytest.mark.parametrize("options", [{"rows": 0}, {"density": 0.0}, {"density": 1.5}])
def test_wrong_sizes_are_refused(options):
    with pytest.raises(ValueError, match="density in"):
        RobustSparseCoding(**options)
