"""The guard's mathematics: the trust region, Adam's step, the audition, the judgement of losses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2o.guard import Guard, adam_step, trusted
from l2o.guard_progress import Turn, begin, observe, radius


def after(guard, losses, progress=None):
    progress = progress or begin(guard)
    for loss in losses:
        progress = observe(guard, progress, loss)
    return progress


# ---------------------------------------------------------------- trust region


def brute_force(update, reference, limit):
    """The formula with Python's numbers."""
    length, allowed = (math.sqrt(sum(x * x for x in values)) for values in (update, reference))
    factor = 1.0 if length <= limit * allowed else limit * allowed / length
    return [factor * x for x in update]


@settings(deadline=None, max_examples=200)
@given(
    pairs=st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e3, 1e3)), min_size=1, max_size=9),
    limit=st.floats(0.01, 100),
)
def test_trust_region_equals_the_formula(pairs, limit):
    update, reference = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    norms = torch.stack([update.norm(), reference.norm()])
    moved = trusted(update, reference, norms, limit)
    expected = torch.tensor(brute_force(update.tolist(), reference.tolist(), limit), dtype=torch.float64)
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-150)
    assert moved.norm() <= limit * reference.norm() * (1 + 1e-12)


def test_short_steps_pass_bit_for_bit_and_long_ones_keep_their_direction():
    update, reference = torch.tensor([3.0, -4.0]), torch.tensor([0.0, 1.0])
    norms = torch.tensor([5.0, 1.0])
    assert torch.equal(trusted(update, reference, norms, 5.0), update)
    torch.testing.assert_close(trusted(update, reference, norms, 1.0), torch.tensor([0.6, -0.8]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_learned_step_that_is_not_finite_is_replaced_by_adams(bad):
    update, reference = torch.tensor([bad, 1.0]), torch.tensor([0.25, 0.5])
    assert torch.equal(trusted(update, reference, torch.tensor([bad, 1.0]), 16.0), reference)


# ---------------------------------------------------------------- Adam


def test_adams_step_equals_torchs(generator):
    param = torch.nn.Parameter(torch.zeros(7, dtype=torch.float64))
    guard = Guard(lr=0.01, beta1=0.7, beta2=0.93, eps=1e-3)
    oracle = torch.optim.Adam([param], lr=0.01, betas=(0.7, 0.93), eps=1e-3)
    value, first, second = (torch.zeros(7, dtype=torch.float64) for _ in range(3))
    for step in range(5):
        grad = torch.randn(7, generator=generator, dtype=torch.float64)
        move, first, second = adam_step(guard, grad, first, second, torch.tensor(step))
        value = value + move
        param.grad = grad
        oracle.step()
    torch.testing.assert_close(value, param.detach(), rtol=1e-13, atol=0)


# ---------------------------------------------------------------- audition

SHORT = Guard(audition=3, ahead=0.7, smoothing=0.0, rest=2)
"""Compares the rule's second and third losses with Adam's third one."""


def test_both_play_equally_long_from_the_same_weights_and_the_rule_goes_on_where_it_is_ahead():
    turns = [(after(SHORT, [1.0] * n).turn, after(SHORT, [1.0] * n).exchanges) for n in range(6)]
    assert turns == [(Turn.AUDITION, 0)] * 3 + [(Turn.RIVAL, 1)] * 3
    won = after(SHORT, [1.0, 0.8, 0.7, 1.0, 0.9, 0.9])
    assert (won.turn, won.exchanges, won.mean, won.other) == (Turn.RULE, 2, 0.7, 0.9)
    for late_or_up_again in ([1.0, 0.95, 0.1], [1.0, 0.1, 0.95]):
        lost = after(SHORT, [*late_or_up_again, 1.0, 0.9, 0.9])
        assert (lost.turn, lost.exchanges, lost.mean, lost.boost) == (Turn.ADAM, 1, 0.9, SHORT.boost)


def test_in_an_audition_means_are_compared_which_forget_what_was_before():
    guard = Guard(audition=2, ahead=0.9, smoothing=0.5)
    # Weights 1/3 and 2/3 of the two losses: the rule has 2, Adam 3 and 1.9.
    assert after(guard, [4.0, 1.0, 7.0, 1.0]).turn == Turn.RULE
    assert after(guard, [4.0, 1.0, 3.7, 1.0]).turn == Turn.ADAM


@settings(deadline=None, max_examples=300)
@given(
    losses=st.lists(st.integers(-9, 9), min_size=40, max_size=40),
    audition=st.integers(0, 15),
    ahead=st.floats(0.1, 0.9),
)
@pytest.mark.parametrize("scale", [lambda x: 1e3 + x / 8, lambda x: 2.0**x, lambda x: x**3 - 5e3], ids=str)
def test_no_increasing_function_of_the_losses_changes_whose_turn_it_is_or_the_trust(scale, losses, audition, ahead):
    # But for the factor `rise`, and for means of several losses; none is 0, above whose `rise` times all would be.
    options = {"audition": audition, "ahead": ahead, "smoothing": 0.0, "rise": 1e30, "least_patience": 3, "rest": 2}
    guard, mine, others = Guard(**options), begin(Guard(**options)), begin(Guard(**options))
    for loss in losses:
        mine, others = observe(guard, mine, loss + 0.5), observe(guard, others, float(scale(loss)))
        assert [getattr(mine, name) for name in SHARED] == [getattr(others, name) for name in SHARED]


SHARED = ("turn", "trust", "earned", "boost", "exchanges")


def test_nobody_loses_trust_or_boost_during_an_audition():
    guard = Guard(audition=50, smoothing=0.0)
    progress = after(guard, [float(1 + step) for step in range(99)])
    assert (progress.turn, progress.trust, progress.boost) == (Turn.RIVAL, guard.trust, guard.boost)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_whose_turn_it_is_and_brings_the_other_weights(bad):
    rule = after(SHORT, [1.0, bad])
    assert (rule.turn, rule.exchanges, rule.boost) == (Turn.ADAM, 1, SHORT.boost)
    rival = after(SHORT, [1.0, 1.0, 0.9, bad])
    assert (rival.turn, rival.exchanges, rival.mean) == (Turn.RULE, 2, 0.9)
    late = after(SHORT, [1.0, 0.1, 0.1, 1.0, 1.0, 0.9, 0.1, bad])
    assert (late.turn, late.exchanges, late.boost) == (Turn.ADAM, 3, SHORT.boost)
    again = after(SHORT, [bad], late)
    assert (again.turn, again.exchanges, again.boost) == (Turn.ADAM, 3, 1)


def test_trouble_above_the_end_of_adams_audition_brings_its_weights_back_and_below_it_costs_trust():
    won = after(SHORT, [1.0, 0.1, 0.1, 1.0, 1.0, 0.9])
    below = after(SHORT, [0.1, 0.8], won)
    assert (below.turn, below.exchanges, below.trust) == (Turn.RULE, 2, SHORT.trust * SHORT.shrink)
    above = after(SHORT, [0.1, 1.0], won)
    assert (above.turn, above.exchanges, above.boost) == (Turn.ADAM, 3, SHORT.boost)
    assert after(SHORT, [0.9, 0.9, 2.0], above).boost < SHORT.boost


# ---------------------------------------------------------------- losses


def alone(**options):
    """A guard without an audition."""
    return Guard(audition=0, **options)


def test_every_new_least_loss_earns_longer_steps_and_no_other_one_does():
    guard = alone(trust=2.0, earned=3.0, grow=1.5, smoothing=0.0)
    radii = [radius(after(guard, losses)) for losses in ([], [16.0], [16.0, 15.0], [16.0, 17.0], [16.0, 1.0, 0.9, 0.8])]
    assert radii == [2.0, 2 * 1.5, 2 * 1.5**2, 2 * 1.5, 2 * 3.0]
    assert after(guard, [16.0, 1.0, 0.9, 0.8]).trust == 2.0


def test_a_rule_earns_in_its_audition_and_not_while_adam_plays():
    guard = Guard(audition=3, smoothing=0.0, grow=1.5)
    assert after(guard, [3.0, 2.0, 1.0]).earned == after(guard, [3.0, 2.0, 1.0, 9.0, 8.0, 7.0]).earned == 1.5**3


def test_a_mean_of_few_losses_is_not_yet_a_least_one():
    guard = alone(smoothing=0.9)
    assert after(guard, [0.1] + [1.0] * 5).best == math.inf
    assert 0.9 < after(guard, [0.1] + [1.0] * 6).best < 0.95  # from the weight 1 − 0.9⁷ = 0.52 on


def test_the_running_mean_is_that_of_its_weights():
    guard, losses = alone(smoothing=0.9), [3.0, 1.0, 4.0, 1.0, 5.0]
    progress = after(guard, losses)
    weights = [0.1 * 0.9 ** (4 - k) for k in range(5)]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert progress.total / progress.weight == pytest.approx(expected, rel=1e-12)


def test_a_rising_loss_costs_trust_once_a_rest_and_then_everything():
    guard = alone(smoothing=0.0, rest=5, shrink=0.5, floor=4.0, trust=16.0)
    fallen = [1.0] * 6
    assert after(guard, [*fallen, 1.19]).trust == 16
    assert after(guard, [*fallen, 1.21]).trust == 8
    assert after(guard, [*fallen, 1.21, 2.0, 3.0, 4.0, 5.0]).trust == 8  # too soon after the first
    assert after(guard, [*fallen, 1.21, 2.0, 3.0, 4.0, 5.0, 6.0]).trust == 4
    last = after(guard, [*fallen, 1.21, *[3.0] * 5, *[9.0] * 5])
    assert last.fallen_back


def test_a_stalling_loss_costs_trust_later_the_longer_training_lasts():
    guard = alone(smoothing=0.0, patience=0.5, least_patience=10, rest=1)
    flat = after(guard, [1.0] * 11)
    assert flat.trust == guard.trust
    assert observe(guard, flat, 1.0).trust == guard.trust * guard.shrink
    falling = after(guard, [2.0 - step / 1000 for step in range(1000)])
    waiting = after(guard, [1.1] * 1000, falling)
    assert waiting.trust == guard.trust
    assert observe(guard, waiting, 1.1).trust < guard.trust


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_without_an_audition_a_loss_that_is_not_finite_leaves_adam_itself_at_once_and_for_good(loss):
    guard = alone(floor=0.0)
    progress = after(guard, [1.0, loss])
    assert progress.fallen_back and progress.boost == 1
    assert after(guard, [0.1, 0.01], progress) == progress


def test_after_the_take_over_every_further_rise_or_stall_takes_boost_until_none_is_left():
    guard = alone(smoothing=0.0, rest=5, cool=0.5, floor=16.0, boost=3.0, least_patience=10, patience=1e-9)
    taken = after(guard, [1.0] * 6 + [2.0])
    assert (taken.turn, taken.boost) == (Turn.ADAM, 3)
    assert after(guard, [1.9 - step / 100 for step in range(100)], taken).boost == 3  # falling
    risen = after(guard, [1.0, 1.1, 1.1, 1.1, 1.21], taken)
    assert risen.boost == 1.5
    stalled = after(guard, [1.21] * 10, risen)
    assert after(guard, [1.21] * 11, risen).boost == 1 < stalled.boost == 1.5
    last = after(guard, [1.21] * 11, risen)
    assert after(guard, [math.nan, 99.0, 0.1], last) == last


def test_noise_of_the_first_losses_costs_nothing():
    guard = alone(smoothing=0.0, rest=10)
    assert after(guard, [1.0, 5.0, 0.9, 7.0, 1.0, 5.0]).trust == guard.trust


# ---------------------------------------------------------------- errors

WRONG = {
    "audition": (-1, "at least 0"),
    "ahead": (1.0, r"in \(0, 1\)"),
    "trust": (0.0, "positive and finite"),
    "earned": (0.5, "at least 1"),
    "smoothing": (1.0, r"in \[0, 1\)"),
    "rise": (1.0, "above 1 and finite"),
    "patience": (math.inf, "positive and finite"),
    "least_patience": (0, "at least 1"),
    "rest": (0, "at least 1"),
    "shrink": (1.0, r"in \(0, 1\)"),
    "grow": (0.99, "at least 1"),
    "boost": (0.5, "at least 1"),
    "cool": (0.0, r"in \(0, 1\)"),
    "floor": (-1.0, "at least 0 and finite"),
    "lr": (math.nan, "positive and finite"),
    "beta1": (-0.1, r"in \[0, 1\)"),
    "beta2": (1.0, r"in \[0, 1\)"),
    "eps": (0.0, "positive and finite"),
}


def test_every_option_has_a_case_below():
    assert set(WRONG) == set(Guard.__dataclass_fields__)


@pytest.mark.parametrize("name", WRONG)
def test_options_out_of_range_are_refused(name):
    value, text = WRONG[name]
    with pytest.raises(ValueError, match=f"{name} must be {text}, got {value}"):
        Guard(**{name: value})
