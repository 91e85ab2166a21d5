"""What meta-gradients keep in memory: a record instead of a graph, a few steps' graph instead of a window's."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from l2o.rules import CoordinatewiseLSTM, LSTMConfig
from meta_train.estimators import MetaLoss, Recorded, Truncated
from meta_train.estimators.estimator import Estimator
from meta_train.estimators.recorded import _blocks
from meta_train.unroll import start
from tasks import MLP, Quadratic
from tasks.data import Minibatches, Samples

REPOSITORY = Path(__file__).parents[2]
LENGTH = 7
COORDINATES = 15_910
"""Parameters of an MLP 784-20-10."""
MB = 1e6
SAME, OWN = MetaLoss("linear"), MetaLoss("mean", split="inner_valid")


def two_windows(estimator: Estimator, rule, family, meta_loss: MetaLoss = SAME, length: int = LENGTH):
    """Return the results of two windows, one going on where the other stopped, and what the generator gives next."""
    generator = torch.Generator().manual_seed(7)
    trajectories, results = start(rule, family, 3, generator), []
    for begun in (0, length):
        weights = meta_loss.weights(begun, length, 2 * length)
        results.append(estimator.estimate(rule, family, trajectories, meta_loss, weights, generator))
        trajectories = results[-1].trajectories
    return results, torch.rand(3, generator=generator)


def distance(left: dict, right: dict) -> float:
    """Return the distance of two meta-gradients, relative to the length of the right one."""
    left, right = (torch.cat([grads[name].flatten() for name in sorted(right)]) for grads in (left, right))
    return ((left - right).norm() / right.norm()).item()


# --- gradient checkpointing ---


def assert_same_results(estimator: Estimator, rule, family, meta_loss: MetaLoss) -> None:
    """Compare with `Truncated` of the same order without checkpoints."""
    (found, next_found), (expected, next_expected) = (
        two_windows(each, rule, family, meta_loss) for each in (estimator, Truncated(estimator.order))
    )
    assert torch.equal(next_found, next_expected)  # not a draw more or less
    for one, other in zip(found, expected, strict=True):
        assert distance(one.grads, other.grads) < 1e-12
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(one.trajectories, other.trajectories, rtol=1e-12, atol=1e-12)
        assert not any(tensor.requires_grad for tensor in one.trajectories.params.values())


@pytest.mark.parametrize("meta_loss", [SAME, OWN], ids=["same minibatches", "own minibatches"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("checkpoint_steps", [1, 3, 6, 7, 100])
def test_checkpoints_change_no_meta_gradient(checkpoint_steps, order, meta_loss, float64):
    rule = CoordinatewiseLSTM(LSTMConfig(hidden_size=3), torch.Generator().manual_seed(2))
    family = MLP("digits", hidden=(3,), batch_size=8, init_scale=0.3)
    assert_same_results(Truncated(order, checkpoint_steps), rule, family, meta_loss)


@pytest.mark.parametrize("order", [1, 2])
def test_checkpoints_change_no_meta_gradient_of_any_rule_and_family(order, rule, family):
    assert_same_results(Truncated(order, 3), rule, family, SAME)


@pytest.mark.parametrize("order", [1, 2])
def test_checkpoints_change_no_meta_gradient_of_a_rule_that_mixes_coordinates(order, normalized_sgd):
    assert_same_results(Truncated(order, 2), normalized_sgd, Quadratic(dim=4), SAME)


def test_fewer_than_one_step_between_checkpoints_is_an_error():
    with pytest.raises(ValueError, match="checkpoint_steps must be at least 1, or None for none, got 0"):
        Truncated(1, 0)


# --- the record ---


def test_a_record_in_bfloat16_moves_the_meta_gradient_by_less_than_a_hundredth():
    rule = CoordinatewiseLSTM(LSTMConfig(hidden_size=8), torch.Generator().manual_seed(2))
    family = MLP("digits", hidden=(8,), batch_size=32, init_scale=0.1)
    exact, rounded = (two_windows(Recorded(dtype), rule, family, length=20)[0] for dtype in (None, "bfloat16"))
    for one, other in zip(rounded, exact, strict=True):
        # 8 significant bits: every stored number is off by 2e-3 on average, in both directions
        assert 1e-5 < distance(one.grads, other.grads) < 1e-2
        assert torch.equal(one.losses, other.losses)  # the roll itself rounds nothing
        assert one.grads["output_weight"].dtype == torch.float32


def test_many_small_blocks_of_the_record_give_the_same_meta_gradient(coordinatewise_rule, monkeypatch):
    rule, family = coordinatewise_rule, MLP("digits", hidden=(3,), batch_size=8, init_scale=0.3)
    whole, _ = two_windows(Recorded(), rule, family)
    monkeypatch.setattr(
        "meta_train.estimators.recorded._blocks",
        lambda _, n, least: [slice(i, min(i + 100, n)) for i in range(0, n, 100)],
    )
    pieces, _ = two_windows(Recorded(), rule, family)
    for one, other in zip(pieces, whole, strict=True):
        assert distance(one.grads, other.grads) < 1e-12


def test_a_block_of_the_record_is_bounded_whatever_the_window():
    for steps in range(1, 100_001, 97):
        blocks = _blocks(steps, COORDINATES, CoordinatewiseLSTM.least_coordinates)
        assert [block.start for block in blocks[1:]] == [block.stop for block in blocks[:-1]]
        assert blocks[0].start == 0 and blocks[-1].stop == COORDINATES
        numbers = steps * max(block.stop - block.start for block in blocks)
        assert 4 * numbers <= (8.5 * MB if steps <= 32_768 else 26 * MB)


# --- measured ---

N_TASKS, LONG = 16, 600


def mnist_like(batch_size: int = 32) -> MLP:
    """784-20-10 on noise, which needs no data set."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (256, 1, 28, 28), generator=generator).to(torch.uint8)
    family = MLP("mnist", batch_size=batch_size)
    family.__dict__["data"] = Minibatches(
        {"train": Samples(pixels, torch.randint(10, (256,), generator=generator))}, 255.0
    )
    return family


def added_peak(estimator: Estimator, family, n_tasks: int, length: int) -> float:
    """Return by how many megabytes the resident memory of this process rises at most during one window."""
    rule = CoordinatewiseLSTM(LSTMConfig(), torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(3)
    weights = torch.full((length,), 1 / length)
    estimator.estimate(rule, family, start(rule, family, 1, generator), MetaLoss(), weights[:3], generator)  # warm up
    trajectories = start(rule, family, n_tasks, generator)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = resident("VmRSS")
    estimator.estimate(rule, family, trajectories, MetaLoss(), weights, generator)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith(field))


def measure() -> None:
    """Print all measurements; run in a process of its own, which gives back freed memory at once."""
    torch.set_num_threads(1)
    mnist, digits = mnist_like(), MLP("digits", batch_size=32)
    print(json.dumps({
        "recorded 20": added_peak(Recorded(), mnist, N_TASKS, 20),
        "recorded 60": added_peak(Recorded(), mnist, N_TASKS, 60),
        "recorded 60 bfloat16": added_peak(Recorded("bfloat16"), mnist, N_TASKS, 60),
        "whole": added_peak(Truncated(1), digits, 4, 100),
        "checkpoints": added_peak(Truncated(1, 10), digits, 4, 100),
    }))  # fmt: skip


def measure_long() -> None:
    """Print what a long window adds; run in a process of its own, with the C library's malloc as users have it."""
    torch.set_num_threads(1)
    print(added_peak(Recorded(), mnist_like(128), 1, LONG))


@pytest.fixture(scope="module")
def peaks() -> dict[str, float]:
    """Added peak memory, megabytes."""
    return in_a_process("measure", {"MALLOC_MMAP_THRESHOLD_": "65536"})


def in_a_process(function: str, variables: dict[str, str]) -> Any:
    """Return what a function of this module prints."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    search_path = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": search_path} | variables
    command = [sys.executable, "-c", f"import test_memory; test_memory.{function}()"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=True)
    return json.loads(result.stdout)


ROW, STATE = (numbers * 4 * N_TASKS * COORDINATES / MB for numbers in (1, 80))
"""One step of the record, and the LSTM's state, of all tasks in float32: 1.02 and 81.5 MB."""


def test_recorded_gradients_of_16_mnist_mlps_keep_the_record_one_state_and_little_else(peaks):
    # Little else: params, gradients and updates, a minibatch, a block of cotangents (8 MB, three copies).
    assert peaks["recorded 60"] < 61 * ROW + STATE + 70


def test_of_a_longer_window_recorded_gradients_keep_a_longer_record_only(peaks):
    # With autograd, the LSTM's states alone would add 82 MB a step.
    assert peaks["recorded 60"] - peaks["recorded 20"] == pytest.approx(40 * ROW, abs=12)


def test_beside_the_record_a_long_window_leaves_no_gaps_in_the_memory():
    # Beside it: 5 MB of state, minibatches, blocks. A tensor kept per step, among minibatches that go, made it 74 MB.
    assert in_a_process("measure_long", {}) < (LONG + 1) * ROW / N_TASKS + 50


def test_a_record_in_bfloat16_needs_half_the_memory(peaks):
    assert peaks["recorded 60"] - peaks["recorded 60 bfloat16"] == pytest.approx(61 * ROW / 2, abs=25)


def test_checkpoints_every_square_root_of_the_window_need_less_than_a_third_of_its_memory(peaks):
    assert peaks["checkpoints"] < peaks["whole"] / 3
