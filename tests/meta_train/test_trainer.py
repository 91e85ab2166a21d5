"""The outer loop: it learns, is reproducible, can be interrupted at any moment, survives exploding trajectories."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tasks
from l2o.checkpoint import load_rule
from l2o.rules import RULES, LSTMConfig, SGDConfig
from meta_train.config import TrainConfig
from meta_train.config_json import to_json
from meta_train.estimators import MetaLoss
from meta_train.lengths import Lengths
from meta_train.run_directory import RunDirectory
from meta_train.seeds import derive_seed
from meta_train.tracking import Progress
from meta_train.trainer import Trainer
from meta_train.unroll import evaluate
from tasks import MLP, Quadratic
from tasks.task import Data, Params, TaskFamily

REPOSITORY = Path(__file__).parents[2]

TINY = TrainConfig(
    Quadratic(dim=4),
    LSTMConfig(hidden_size=4, p=None),
    horizon=10,
    truncation=5,
    n_tasks=4,
    outer_steps=23,
    validate_every=6,
    valid_tasks=8,
    checkpoint_every=9,
)


def trainer(path: Path, config: TrainConfig = TINY) -> Trainer:
    """Start a run in a fresh directory, or go on with the one there."""
    fresh = not (path / "config.json").exists()
    run = RunDirectory.create(path, config) if fresh else RunDirectory.open(path)
    return Trainer(run, Progress(run, "off"))


def run_to_the_end(path: Path, config: TrainConfig = TINY) -> Trainer:
    finished = trainer(path, config)
    finished.train()
    return finished


def stop_after(interrupted: Trainer, outer_step: int) -> None:
    """Ask for a stop while an outer step is reported, as a signal does."""
    report = interrupted.progress.outer_step

    def reporting(now, *facts):
        interrupted.stop_requested = now >= outer_step
        report(now, *facts)

    interrupted.progress.outer_step = reporting
    interrupted.train()


def metrics(path: Path) -> list[dict]:
    """Return what was logged, without the two numbers that measure time."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    times = ("inner_steps_per_s", "cpu_s")
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


def assert_same_run(path: Path, reference: Path) -> None:
    """Weights byte for byte, everything to resume from bit for bit, the same records once each."""
    for checkpoint in ("last", "best"):
        for file in ("rule.safetensors", "rule.json"):
            name = f"checkpoints/{checkpoint}/{file}"
            assert (path / name).read_bytes() == (reference / name).read_bytes(), name
    (found, counters), (expected, expected_counters) = (
        RunDirectory.open(directory).load_state() for directory in (path, reference)
    )
    assert counters == expected_counters
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]
    assert metrics(path) == metrics(reference)


# --- it learns ---


def test_meta_training_lowers_the_validation_loss_of_quadratics_to_less_than_two_thirds(tmp_path):
    config = dataclasses.replace(
        TINY, rule=LSTMConfig(hidden_size=8, p=None), horizon=20, truncation=10, n_tasks=16, outer_steps=150,
        validate_every=50, valid_tasks=128, outer_lr=0.01,
    )  # fmt: skip
    untrained = trainer(tmp_path / "run", config)
    generator = torch.Generator().manual_seed(5)

    def sum_loss(rule):
        return evaluate(rule, config.task, 256, 20, "test", generator.manual_seed(5)).sum(0).mean().item()

    before = sum_loss(untrained.rule)
    summary = untrained.train()
    after = sum_loss(load_rule(tmp_path / "run"))
    assert after < before * 2 / 3
    # The mean over steps on 128 other problems, without θ_0; a mean of heavy-tailed sums varies by some 10 %.
    assert summary["best_validation"] * 20 == pytest.approx(after, rel=0.4)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_trains_all_its_weights(name, tmp_path):
    rule = LSTMConfig(hidden_size=4, p=None) if name == "lstm" else RULES[name][1]()
    # A filter moves matrices alone, of which quadratics have none.
    task = MLP("digits", (3,), batch_size=64) if name.startswith("sobolev") else TINY.task
    begun = trainer(tmp_path / name, dataclasses.replace(TINY, task=task, rule=rule, outer_steps=4))
    before = {key: tensor.clone() for key, tensor in begun.rule.named_parameters()}
    begun.train()
    for key, tensor in begun.rule.named_parameters():
        assert torch.isfinite(tensor).all()
        assert not torch.equal(tensor, before[key]), key
    assert begun.skipped == 0


@pytest.mark.parametrize(
    "options",
    [
        {"order": 2},
        {"estimator": "truncated"},
        {"meta_loss": MetaLoss("linear")},
        {"meta_loss": MetaLoss("final")},
        {"meta_loss": MetaLoss(split="inner_valid"), "task": MLP("digits", (3,), batch_size=64, init_scale=1.0)},
        {"clip": None},
        {"truncation": 10},
        {"horizon": 1, "truncation": 1},
        {"n_tasks": 1},
    ],
    ids=str,
)
def test_a_learnable_step_size_moves_in_the_right_direction_under_every_option(options, tmp_path):
    # lr = 1e-5 makes no progress on any of these tasks, so every meta-gradient must raise it.
    config = dataclasses.replace(TINY, rule=SGDConfig(lr=1e-5), outer_steps=20, outer_lr=0.1, **options)
    begun = trainer(tmp_path, config)
    before = begun.rule.log_lr.item()
    begun.train()
    assert before + 0.5 < begun.rule.log_lr.item() < before + 2.5  # 20 Adam steps of at most 0.1, decaying to 0.001


def test_order_2_gives_other_weights_than_order_1(tmp_path):
    first, second = (run_to_the_end(tmp_path / f"{o}", dataclasses.replace(TINY, order=o)) for o in (1, 2))
    assert not torch.allclose(first.rule.weights[0], second.rule.weights[0])


def test_a_horizon_that_is_no_multiple_of_the_truncation_ends_with_a_shorter_window(tmp_path):
    begun = trainer(tmp_path, dataclasses.replace(TINY, horizon=12, truncation=5))
    positions = []
    for _ in range(7):
        begun._make_outer_step()
        positions.append(int(begun.batches[0].trajectories.step))
    assert positions == [5, 10, 12, 5, 10, 12, 5]


def test_problems_change_with_every_trajectory_and_not_within_one(tmp_path):
    begun = trainer(tmp_path)
    seen = []
    for _ in range(4):
        begun._make_outer_step()
        seen.append(begun.batches[0].trajectories.tasks["W"])
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[1], seen[2])


def test_staggered_batches_stand_at_different_steps_ever_after(tmp_path):
    begun = trainer(tmp_path, dataclasses.replace(TINY, horizon=15, truncation=5, stagger=3, n_tasks=5))
    assert [batch.n_tasks for batch in begun.batches] == [2, 2, 1]
    positions = []
    for _ in range(9):
        begun._make_outer_step()
        positions.append(sorted(int(batch.trajectories.step) for batch in begun.batches))
    assert positions == [[5, 5, 5], [5, 10, 10]] + 7 * [[5, 10, 15]]


def test_staggered_batches_average_over_all_tasks(tmp_path):
    config = dataclasses.replace(TINY, stagger=2, n_tasks=5, outer_lr=1e-9, clip=None)
    begun = trainer(tmp_path, config)
    found = [batch.estimate(0.0) for batch in begun.batches]
    grads, loss, living, lost = begun._average(found)
    assert (living, lost) == ([3, 2], 0)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, (found[0].grads[name] + found[1].grads[name]) / 5)
    assert loss == pytest.approx(((found[0].loss + found[1].loss) / 5).item())


def test_lengths_that_are_drawn_end_trajectories_at_different_steps(tmp_path):
    config = dataclasses.replace(TINY, lengths=Lengths("log-uniform", min_horizon=2), outer_steps=60)
    begun, ends = trainer(tmp_path, config), set()
    for _ in range(60):
        begun._make_outer_step()
        batch = begun.batches[0]
        assert int(batch.trajectories.step) <= batch.horizon
        ends.add(batch.horizon)
    assert len(ends) >= 4 and min(ends) >= 2 and max(ends) <= 10


def test_the_step_size_decays_along_a_cosine_to_its_final_fraction(tmp_path):
    config = dataclasses.replace(TINY, outer_steps=100, outer_lr=0.5, final_outer_lr=0.2)
    begun = trainer(tmp_path, config)
    grads = {name: torch.zeros_like(p) for name, p in begun.rule.named_parameters()}

    def lr_at(outer_step):
        begun.outer_step = outer_step
        begun._apply(grads)
        return begun.adam.param_groups[0]["lr"]

    assert [lr_at(0), lr_at(50), lr_at(100)] == pytest.approx([0.5, 0.5 * 0.6, 0.5 * 0.2])


def test_the_meta_gradient_is_clipped_to_its_norm(tmp_path):
    for clip, expected in ((0.5, 0.5), (1e9, 300.0), (None, 300.0)):
        begun = trainer(tmp_path / f"{clip}", dataclasses.replace(TINY, clip=clip))
        count = sum(p.numel() for p in begun.rule.parameters())
        begun._apply({name: torch.full_like(p, 300 / count**0.5) for name, p in begun.rule.named_parameters()})
        norm = torch.cat([p.grad.flatten() for p in begun.rule.parameters()]).norm().item()
        assert norm == pytest.approx(expected, rel=1e-5)  # float32 sum; clip_grad_norm_ adds 1e-6 to the norm


# --- it is reproducible ---


def test_the_same_seed_gives_the_same_run_bit_for_bit(tmp_path):
    for name in ("a", "b"):
        run_to_the_end(tmp_path / name)
        torch.rand(5)  # the global generator must not matter
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_another_seed_gives_other_weights_and_other_validation_problems(tmp_path):
    first, second = (run_to_the_end(tmp_path / f"{s}", dataclasses.replace(TINY, seed=s)) for s in (0, 1))
    assert not torch.equal(first.rule.weights[0], second.rule.weights[0])
    assert first.best != second.best


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_the_extreme_seeds_train(seed, tmp_path):
    finished = run_to_the_end(tmp_path, dataclasses.replace(TINY, seed=seed, outer_steps=3))
    assert finished.outer_step == 3 and finished.best < float("inf")


# --- it can be interrupted ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": SGDConfig()},  # a rule without memory
        {"task": MLP("digits", (3,), batch_size=8), "horizon": 13},  # tasks without data of their own, minibatches
        {"order": 2},
        {"stagger": 3},
        {"lengths": Lengths("log-uniform", min_horizon=3, min_truncation=2)},
        {"lengths": Lengths("growing", min_horizon=2)},
        {"estimator": "truncated", "checkpoint_steps": 2},
        {"record_dtype": "bfloat16"},
        {"average": 0.8},
        {"divergence": 1.02},  # most trajectories are left out
    ],
    ids=str,
)
def test_resuming_in_the_middle_of_a_trajectory_gives_the_uninterrupted_run_bit_for_bit(options, tmp_path):
    config = dataclasses.replace(TINY, outer_steps=45, **options)
    run_to_the_end(tmp_path / "whole", config)
    for outer_step in (1, 23, 32):
        stop_after(interrupted := trainer(tmp_path / "pieces", config), outer_step)
        assert interrupted.outer_step == outer_step
    run_to_the_end(tmp_path / "pieces")
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_a_run_killed_after_every_file_it_writes_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """Every rename, which is what makes a written file count, is once the last thing that happens."""
    run_to_the_end(tmp_path / "whole")
    names = ("replace", "rename")  # os.replace: state, logs; Path.rename: checkpoints

    class Killed(BaseException):
        pass

    def killing_after(count):
        left = [count]

        def wrap(original):
            def renaming(*paths):
                original(*paths)
                left[0] -= 1
                if left[0] == 0:
                    raise Killed

            return renaming

        return wrap

    trainer(tmp_path / "pieces")
    kills = 0
    for count in (1, 2, 3, 5, 7, 4, 6, 3, 2, 1, 1, 1):
        with monkeypatch.context() as patch:
            wrap = killing_after(count)
            patch.setattr(os, names[0], wrap(os.replace))
            patch.setattr(Path, names[1], wrap(Path.rename))
            try:
                trainer(tmp_path / "pieces").train()
            except Killed:
                kills += 1
    assert kills >= 8
    run_to_the_end(tmp_path / "pieces")
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_what_a_kill_in_the_middle_of_a_write_leaves_behind_does_no_harm(tmp_path):
    run_to_the_end(tmp_path / "whole")
    path = tmp_path / "pieces"
    stop_after(trainer(path), 14)
    (path / "state.new").write_bytes(b"half")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"outer_step": 20, "train/loss": 1.0}\n{"outer_step": 21, "trai')
    for checkpoint in ("last", "best"):
        fresh = path / "checkpoints" / f"{checkpoint}.new"
        fresh.mkdir()
        (fresh / "rule.safetensors").write_bytes(b"half")
    (path / "checkpoints/best").rename(path / "checkpoints/best.old")  # killed between the two renames
    assert load_rule(path) is not None
    run_to_the_end(path)
    assert_same_run(path, tmp_path / "whole")
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["best", "last"]


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    run_to_the_end(tmp_path / "run")
    before = metrics(tmp_path / "run"), (tmp_path / "run/checkpoints/last/rule.safetensors").read_bytes()
    summary = trainer(tmp_path / "run").train()
    assert summary["outer_steps"] == TINY.outer_steps
    assert before == (metrics(tmp_path / "run"), (tmp_path / "run/checkpoints/last/rule.safetensors").read_bytes())


def test_a_state_that_does_not_fit_the_config_is_an_error_that_says_so(tmp_path):
    run_to_the_end(tmp_path / "run")
    values = to_json(dataclasses.replace(TINY, rule=LSTMConfig(hidden_size=5, p=None)))
    (tmp_path / "run/config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"run: state.safetensors does not fit config.json"):
        trainer(tmp_path / "run")


LONG = [
    "train", "quadratic", "--wandb", "off", "--threads", "1", "--task.dim", "4", "--horizon", "10", "--truncation", "5",
    "--n-tasks", "4", "--outer-steps", "300", "--validate-every", "11", "--valid-tasks", "4", "--checkpoint-every", "7",
    "rule:lstm", "--rule.hidden-size", "4",
]  # fmt: skip


def start_command(*arguments: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "meta_train.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment,
    )  # fmt: skip


def wait_for_checkpoints(process: subprocess.Popen, path: Path, count: int) -> None:
    """Return when the run has written its state `count` times more, or has ended."""
    state = path / "state.safetensors"
    seen = state.stat().st_mtime_ns if state.exists() else None
    while count > 0 and process.poll() is None:
        now = state.stat().st_mtime_ns if state.exists() else None
        count, seen = count - (now != seen), now
        time.sleep(0.001)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> Path:
    """The run of `LONG`, never interrupted."""
    path = tmp_path_factory.mktemp("long") / "whole"
    process = start_command(*LONG[:2], "--out", path, *LONG[2:])
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return path


def test_a_process_killed_at_random_moments_and_resumed_gives_the_uninterrupted_run_byte_for_byte(tmp_path, long_run):
    path = tmp_path / "pieces"
    moments = torch.Generator().manual_seed(int.from_bytes(os.urandom(4)))
    kills = 0
    for count in (2, 7, 15):
        go_on = ("resume", path, *LONG[2:6])
        process = start_command(*go_on) if path.exists() else start_command(*LONG[:2], "--out", path, *LONG[2:])
        wait_for_checkpoints(process, path, count)
        time.sleep(0.03 * torch.rand((), generator=moments).item())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 1  # three, unless this machine let the run end while the test waited
    process = start_command("resume", path, *LONG[2:6])
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "outer_steps 300" in output
    assert_same_run(path, long_run)
    logged = Counter((line["outer_step"], "train/loss" in line) for line in metrics(path))
    assert set(logged.values()) == {1}
    assert sum(train for _, train in logged) == 300 / 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signals_end_a_run_with_a_checkpoint_and_the_command_that_continues_it(number, tmp_path, long_run):
    path = tmp_path / "run"
    process = start_command(*LONG[:2], "--out", path, *LONG[2:])
    wait_for_checkpoints(process, path, 3)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == f"l2o: stopped with a checkpoint; continue with: l2o resume {path}"
    assert "Traceback" not in errors
    _, counters = RunDirectory.open(path).load_state()
    assert 7 * 3 <= counters["outer_step"] < 300
    assert (
        json.loads((path / "checkpoints/last/rule.json").read_text())["training"]["outer_step"]
        == (counters["outer_step"])
    )
    if number == signal.SIGTERM:
        run_to_the_end(path)
        assert_same_run(path, long_run)


# --- trajectories that explode ---


@dataclass(frozen=True)
class Exploding(TaskFamily):
    """½θ² whose loss is `value` (NaN, inf, huge) on about a fifth of the minibatches, but for validation and tests."""

    value: float = float("nan")

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        return {"theta": torch.ones(n_tasks, 2)}

    def sample_batch(self, tasks, n_tasks, split, generator) -> Data:
        bad = torch.rand(n_tasks, generator=generator) < 0.02
        return {"bad": bad & (split == "train")}

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        return torch.where(batch["bad"], self.value, 1.0) * params["theta"].square().sum() / 2


@pytest.fixture
def exploding(monkeypatch) -> type[Exploding]:
    monkeypatch.setitem(tasks.TASKS, "exploding", Exploding)
    return Exploding


ESTIMATORS = [{}, {"order": 2}, {"estimator": "pes"}, {"estimator": "es"}, {"estimator": "nres"}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("options", ESTIMATORS, ids=str)
def test_trajectories_that_explode_are_counted_and_left_out(value, options, exploding, tmp_path):
    config = dataclasses.replace(TINY, task=exploding(value), rule=SGDConfig(lr=0.02), outer_steps=60, **options)
    finished = trainer(tmp_path, config)
    summary = finished.train()
    assert summary["outer_steps"] == 60
    # 30 batches of 4 tasks and 11 minibatches, 2 % of them bad: a fifth of the trajectories, and hardly ever all four.
    assert 10 < summary["diverged_trajectories"] < 45
    assert summary["skipped_windows"] <= 3
    assert torch.isfinite(finished.rule.log_lr) and finished.rule.log_lr != torch.tensor(0.02).log()
    assert summary["best_validation"] < 4  # ½θ² from 1 in every step
    logged = [line for line in metrics(tmp_path) if "train/loss" in line]
    assert logged[-1]["diverged"] == summary["diverged_trajectories"]
    assert all(0 < line["train/loss"] <= 1 for line in logged)  # the lost trajectories do not spoil the mean


@pytest.mark.parametrize("options", [{}, {"order": 2}, {"estimator": "truncated"}], ids=str)
def test_the_meta_gradient_is_that_of_the_living_tasks_alone(options, exploding, tmp_path):
    """All tasks are alike but for their death, so that the gradient is the one that a family without deaths has."""
    config = dataclasses.replace(TINY, rule=SGDConfig(lr=0.02), n_tasks=6, **options)
    dying = trainer(tmp_path / "dying", dataclasses.replace(config, task=exploding()))
    immortal = trainer(tmp_path / "immortal", dataclasses.replace(config, task=exploding(1.0)))
    seen = set()
    for _ in range(20):
        batch, other = dying.batches[0], immortal.batches[0]
        part, whole = batch.estimate(0.0), other.estimate(0.0)
        seen.add(part.living)
        assert whole.living == 6
        for name, grad in part.grads.items():
            torch.testing.assert_close(grad / part.living, whole.grads[name] / 6, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(part.loss / part.living, whole.loss / 6)
        assert torch.equal(dying.generator.get_state(), immortal.generator.get_state())
        batch.settle(True, 0.0), other.settle(True, 0.0)
    assert len(seen & {2, 3, 4, 5}) >= 2


def test_a_lost_trajectory_rests_until_the_batch_starts_afresh(exploding, tmp_path):
    begun = trainer(tmp_path, dataclasses.replace(TINY, task=exploding(), rule=SGDConfig(lr=0.02)))
    batch, rested = begun.batches[0], 0
    for _ in range(60):
        before, at = batch.trajectories.params["theta"].clone(), int(batch.trajectories.step)
        begun._make_outer_step()
        after = batch.trajectories.params["theta"]
        if int(batch.trajectories.step) > at:  # went on in the same trajectories
            moved = (after != before).any(1)
            assert torch.equal(moved, batch.alive)
            rested += int((~batch.alive).sum())
        if at == 10 and int(batch.trajectories.step) == 5:  # started afresh with all
            assert batch.first_losses.isfinite().any()
    assert rested > 3


def test_a_window_in_which_none_lives_is_skipped_and_followed_by_fresh_problems(exploding, tmp_path):
    """One task alone; a skipped window changes neither the weights nor the memory of Adam."""
    config = dataclasses.replace(TINY, task=exploding(), rule=SGDConfig(lr=0.02), n_tasks=1)
    begun = trainer(tmp_path, config)
    outcomes = Counter()
    for _ in range(80):
        before, skipped = begun.rule.log_lr.item(), begun.skipped
        moments = [slot["exp_avg"].clone() for slot in begun.adam.state.values()]
        begun._make_outer_step()
        was_skipped = begun.skipped > skipped
        outcomes[was_skipped] += 1
        if was_skipped:
            assert begun.rule.log_lr.item() == before
            assert all(
                torch.equal(slot["exp_avg"], m) for slot, m in zip(begun.adam.state.values(), moments, strict=True)
            )
            assert int(begun.batches[0].trajectories.step) == 0
            assert torch.equal(begun.batches[0].trajectories.params["theta"], torch.ones(1, 2))
        else:
            assert begun.rule.log_lr.item() != before
    assert outcomes[True] >= 3 and outcomes[False] >= 5
    assert begun.diverged == begun.skipped == outcomes[True]


def test_resuming_counts_lost_trajectories_on(exploding, tmp_path):
    config = dataclasses.replace(TINY, task=exploding(), rule=SGDConfig(lr=0.02), outer_steps=40)
    run_to_the_end(tmp_path / "whole", config)
    stop_after(trainer(tmp_path / "pieces", config), 21)
    assert run_to_the_end(tmp_path / "pieces").diverged > 0
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_a_rule_whose_every_window_explodes_ends_normally_with_finite_weights(tmp_path):
    config = dataclasses.replace(TINY, rule=SGDConfig(lr=1e6), outer_steps=12)
    finished = trainer(tmp_path, config)
    summary = finished.train()
    assert summary["skipped_windows"] == 12
    assert finished.rule.log_lr.item() == pytest.approx(torch.tensor(1e6).log().item())
    assert torch.isfinite(load_rule(tmp_path).log_lr)  # no validation was finite, so there is only checkpoints/last
    assert all(line["valid/meta_loss"] is None for line in metrics(tmp_path) if "valid/meta_loss" in line)


def test_a_divergence_threshold_decides_what_counts_as_exploded(tmp_path):
    # lr 0.5 on 4-D quadratics multiplies most losses by more than 2 within a window, and none by 1e30.
    config = dataclasses.replace(TINY, rule=SGDConfig(lr=0.5), outer_steps=6)
    strict = run_to_the_end(tmp_path / "strict", dataclasses.replace(config, divergence=2.0))
    lax = run_to_the_end(tmp_path / "lax", dataclasses.replace(config, divergence=1e30))
    assert strict.skipped == 6 and lax.skipped == 0


# --- validation and splits ---


def test_the_best_checkpoint_is_the_one_with_the_lowest_validation(tmp_path):
    config = dataclasses.replace(TINY, outer_lr=0.3, final_outer_lr=1.0, outer_steps=40, validate_every=2)
    validations = {}
    begun = trainer(tmp_path, config)
    validate = begun._validate

    def keep():
        validate()
        validations[begun.outer_step] = {name: t.clone() for name, t in begun.rule.state_dict().items()}

    begun._validate = keep
    begun.train()
    logged = {line["outer_step"]: line["valid/meta_loss"] for line in metrics(tmp_path) if "valid/meta_loss" in line}
    assert logged.keys() == validations.keys() and len(logged) == 20
    best = min(logged, key=logged.get)
    assert best != max(logged), "the large step size should make the last validation worse than the best"
    found = load_rule(tmp_path / "checkpoints/best").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in validations[best].items())
    card = json.loads((tmp_path / "checkpoints/best/rule.json").read_text())
    assert card["training"]["outer_step"] == best
    assert card["results"]["outer_valid_meta_loss"] == logged[best] == begun.best


def test_validation_counts_logarithms_where_the_meta_loss_does(tmp_path):
    config = dataclasses.replace(TINY, meta_loss=MetaLoss(measure="log"), outer_steps=1, validate_every=1)
    begun = trainer(tmp_path, config)
    begun.train()
    losses = begun._validation_losses().double()
    assert begun.best == pytest.approx(losses[1:].log().mean().item(), rel=1e-6)  # weights of float32


def test_an_average_of_the_weights_is_what_is_validated_and_kept(tmp_path):
    """θ̄_1 = θ_1, θ̄_t = d θ̄_{t−1} + (1 − d) θ_t."""
    config = dataclasses.replace(TINY, average=0.8, outer_steps=9, validate_every=9, outer_lr=0.05)
    begun, path = trainer(tmp_path, config), []
    for _ in range(config.outer_steps):
        begun._make_outer_step()
        path.append({name: p.detach().clone() for name, p in begun.rule.named_parameters()})
    expected = path[0]
    for weights in path[1:]:
        expected = {name: 0.8 * mean + 0.2 * weights[name] for name, mean in expected.items()}
    begun._validate()
    begun.save()
    for checkpoint in ("best", "last"):
        found = dict(load_rule(tmp_path / "checkpoints" / checkpoint).named_parameters())
        torch.testing.assert_close(found, expected)
    validated = next(line["valid/sum_loss"] for line in metrics(tmp_path) if "valid/sum_loss" in line)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "validation"))
    losses = evaluate(load_rule(tmp_path), config.task, config.valid_tasks, config.horizon, "outer_valid", generator)
    assert validated == pytest.approx(losses.sum(0).mean().item(), rel=1e-5)
    assert any(not torch.allclose(path[-1][name], mean) for name, mean in expected.items())


def test_validation_problems_are_the_same_every_time_and_draw_nothing_from_training(tmp_path):
    begun = trainer(tmp_path)
    before = begun.generator.get_state()
    begun._validate()
    begun._validate()
    first, second = (line["valid/sum_loss"] for line in metrics(tmp_path))
    assert first == second
    assert torch.equal(begun.generator.get_state(), before)


def test_validating_more_often_does_not_change_the_weights(tmp_path):
    often, rarely = (
        run_to_the_end(tmp_path / f"{every}", dataclasses.replace(TINY, validate_every=every)) for every in (1, 23)
    )
    assert all(torch.equal(a, b) for a, b in zip(often.rule.parameters(), rarely.rule.parameters(), strict=True))


@dataclass(frozen=True)
class Recording(TaskFamily):
    """A family that remembers which splits it was asked for."""

    asked = Counter()

    def init_params(self, tasks, n_tasks, generator) -> Params:
        return {"theta": torch.ones(n_tasks, 2)}

    def sample_batch(self, tasks, n_tasks, split, generator) -> Data:
        self.asked[split] += n_tasks
        return {}

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        return params["theta"].square().sum()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("meta_loss", "training"),
    [
        (MetaLoss(), {"train"}),
        (MetaLoss(split="inner_valid"), {"train", "inner_valid"}),
        (MetaLoss(inner_split="inner_valid", split="inner_valid"), {"inner_valid"}),
    ],
)
def test_meta_training_never_draws_test_data_and_validates_on_outer_valid(
    meta_loss, training, order, tmp_path, monkeypatch
):
    monkeypatch.setitem(tasks.TASKS, "recording", Recording)
    config = dataclasses.replace(TINY, task=Recording(), rule=SGDConfig(), meta_loss=meta_loss, order=order)
    Recording.asked.clear()
    run_to_the_end(tmp_path, config)
    assert set(Recording.asked) == training | {"outer_valid"}
    # Validations after 6, 12, 18 and 23 outer steps, at θ_0 … θ_10 of eight problems each.
    assert Recording.asked["outer_valid"] == 4 * 11 * 8
