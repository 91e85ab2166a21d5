"""The safeguard study: all methods meet the same problems, and the verdict follows the numbers."""

import csv
import json
import math

import pytest
import torch

import l2o
from meta_train import safeguard_study
from meta_train.safeguard_problems import HELD_OUT, Rows, one_against_the_rest, samples, squares
from meta_train.safeguard_report import Ends, read_ends, write_safeguard_report
from meta_train.safeguard_seen import SEEN, TUNING
from meta_train.safeguard_study import Run, run, run_safeguard

SMALL, OTHER = "digits, hard sigmoid 2 × 20", "digits, autoencoder 32-8-32, tanh"


@pytest.fixture
def short(monkeypatch):
    """Forty steps, two seeds, two optimizees that need no files."""
    monkeypatch.setattr(safeguard_study, "STEPS", 40)
    monkeypatch.setattr(safeguard_study, "SEEDS", 2)
    monkeypatch.setattr(safeguard_study, "HELD_OUT", {name: HELD_OUT[name] for name in (SMALL, OTHER)})


def test_twenty_held_out_optimizees_share_no_network_with_those_seen_before():
    def forms(optimizees):
        return {
            (optimizee.data.removesuffix("-28"), repr(optimizee.build()), str(optimizee.loss))
            for optimizee in optimizees.values()
        }

    assert len(HELD_OUT) == len(forms(HELD_OUT)) == 20
    assert (len(SEEN), len(TUNING)) == (60, 16)
    assert forms(HELD_OUT).isdisjoint(forms(TUNING) | forms(SEEN))


def test_losses_on_one_hot_classes_equal_the_formulas():
    outputs, classes = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64), torch.tensor([2])
    assert squares(outputs, classes).item() == pytest.approx((0.25 + 1 + 1) / 3, rel=1e-12)
    chances = [1 / (1 + math.exp(-x)) for x in (0.5, -1.0, 2.0)]
    expected = -(math.log(1 - chances[0]) + math.log(1 - chances[1]) + math.log(chances[2])) / 3
    assert one_against_the_rest(outputs, classes).item() == pytest.approx(expected, rel=1e-12)


def test_the_targets_of_digits_itself_are_its_pixels():
    inputs, targets = samples("digits-itself", "test")
    assert torch.equal(targets, inputs.flatten(1)) and targets.shape[1] == 64


def test_a_fifth_of_mislabelled_digits_have_another_class_drawn_once():
    (inputs, classes), (same, wrong) = samples("digits", "test"), samples("digits-mislabelled", "test")
    assert torch.equal(inputs, same) and torch.equal(wrong, samples("digits-mislabelled", "test")[1])
    share = (classes != wrong).double().mean().item()
    assert abs(share - 0.2 * 0.9) < 4 * math.sqrt(0.18 * 0.82 / len(classes))  # one in ten drawn anew is right again
    assert wrong.min() >= 0 and wrong.max() <= 9


def test_a_network_over_rows_sees_them_in_order_and_averages_its_outputs():
    gru = torch.nn.GRU(8, 16, batch_first=True)
    network, images = Rows(gru, 16), torch.rand(3, 1, 8, 8)
    state, states = torch.zeros(3, 16), []
    for row in range(8):
        _, state = gru(images[:, :, row], state[None])
        states.append(state := state[0])
    torch.testing.assert_close(network(images), network.head(sum(states) / 8))


def test_diabetes_is_standardised_and_its_halves_are_disjoint():
    (left, _), (right, _) = samples("diabetes", "test"), samples("diabetes", "outer_valid")
    both = torch.cat([left, right])
    assert (len(left), len(right), len(both.unique(dim=0))) == (221, 221, 442)
    torch.testing.assert_close(both.mean(0), torch.zeros(10), rtol=0, atol=1e-5)


def test_runs_of_a_seed_start_alike_and_depend_on_the_seed_alone(short):
    first = [run(HELD_OUT[SMALL], torch.optim.Adam, seed) for seed in (0, 0, 1)]
    guarded = run(HELD_OUT[SMALL], lambda params: l2o.load("lstm-digits", params, guard=True), 0)
    assert first[0].losses == first[1].losses != first[2].losses
    assert guarded.losses[0] == first[0].losses[0]
    assert guarded.losses[-1] < first[0].losses[-1]


def test_the_step_at_which_adam_took_over_is_noted(short):
    strict = l2o.Guard(audition=0, floor=16.0, least_patience=1, patience=1e-9, rest=1, smoothing=0.0)
    result = run(HELD_OUT[SMALL], lambda params: l2o.load("lstm-digits", params, lr=0.0, guard=strict), 0)
    assert result.fell_back_at is not None and 0 < result.fell_back_at < 10


def test_a_study_writes_what_its_report_reads(short, tmp_path):
    run_safeguard(("lstm-digits",), tmp_path, "l2o benchmark safeguard")
    with (tmp_path / "summary.csv").open(newline="") as file:
        summary = list(csv.DictReader(file))
    assert [row["method"] for row in summary] == ["Adam", "boosted Adam", "plain", "guarded"] * 2
    ends = read_ends(summary, "lstm-digits")
    losses = [run(HELD_OUT[SMALL], torch.optim.Adam, seed).losses[-20:] for seed in (0, 1)]
    assert ends[0].adam == pytest.approx(sum(map(sum, losses)) / 40, rel=1e-4)
    fast = [run(HELD_OUT[SMALL], lambda p: torch.optim.Adam(p, 0.004), seed).losses[-20:] for seed in (0, 1)]
    assert ends[0].boosted == pytest.approx(sum(map(sum, fast)) / 40, rel=1e-4)
    table = write_safeguard_report(tmp_path)
    assert f"| {SMALL} |" in table and table in (tmp_path / "README.md").read_text()
    assert (tmp_path / "safeguard-lstm-digits.png").stat().st_size > 10_000


def test_ratio_and_share_kept_follow_the_ends():
    def ends(adam, plain, guarded):
        return Ends("", adam, 1.0, plain, guarded, seeds=1, fell_back=0)

    assert ends(1.0, 0.5, 0.6).kept == pytest.approx(0.8)
    assert ends(1.0, 2.0, 1.2).kept is None
    assert ends(2.0, 2.0, 2.2).ratio == pytest.approx(1.1)
    assert ends(2.0, float("nan"), float("nan")).ratio == float("inf")


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((1.0, 0.6, 0.5, 0.55), ["none of 1 end above 1.1 × Adam", "on 1 of these.", "ends below it on 1 of 1."]),
        ((1.0, 0.6, 0.5, 0.95), ["none of 1 end above 1.1 × Adam", "on 0 of these (NOT on a)", "below it on 0 of 1."]),
        ((1.0, 1.0, 3.0, 1.2), ["1 of 1 DO NOT pass and end above 1.1 × Adam (namely a)", "below Adam on 0 of 1"]),
    ],
)
def test_the_verdict_says_what_was_missed(short, tmp_path, monkeypatch, ends, words):
    losses = iter(ends)
    monkeypatch.setattr(safeguard_study, "SEEDS", 1)
    monkeypatch.setattr(safeguard_study, "HELD_OUT", {"a": HELD_OUT[SMALL]})
    monkeypatch.setattr(safeguard_study, "run", lambda *_: Run([next(losses)] * 40, None, 0.1))
    run_safeguard(("lstm-digits",), tmp_path, "l2o")
    write_safeguard_report(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert all(word in text for word in words)


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"rules": []}))
    with pytest.raises(ValueError, match="is not a safeguard study: FileNotFoundError"):
        write_safeguard_report(tmp_path)


def test_an_unknown_checkpoint_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(l2o.CheckpointError, match="no checkpoint at nowhere"):
        run_safeguard(("nowhere",), tmp_path / "out", "l2o")
    assert not (tmp_path / "out").exists()
