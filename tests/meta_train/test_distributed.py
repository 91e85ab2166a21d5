"""Several ranks are one process with the same tasks, through kills, signals and other numbers of ranks."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_trainer import Exploding, assert_same_run, metrics, stop_after
from torch import Tensor

import tasks
from l2o.rules import AdamConfig, LSTMConfig, SGDConfig
from meta_train import cli, scaling
from meta_train.config import TrainConfig
from meta_train.distributed import Ranks, Silence, default_threads, join_ranks
from meta_train.estimators import MetaLoss
from meta_train.lengths import Lengths
from meta_train.run_directory import RunDirectory
from meta_train.sharding import Sharded, cut, join, paste, share
from meta_train.shared_run import open_run
from meta_train.tracking import Progress
from meta_train.trainer import Trainer
from tasks import MLP, Quadratic

REPOSITORY = Path(__file__).parents[2]

# --- shares of the task axis ---


@pytest.mark.parametrize(("n_tasks", "n_ranks"), [(1, 1), (4, 2), (5, 2), (16, 3), (7, 7)])
def test_shares_cover_all_tasks_and_differ_by_one_at_most(n_tasks, n_ranks):
    parts = [share(n_tasks, rank, n_ranks) for rank in range(n_ranks)]
    assert [i for part in parts for i in range(n_tasks)[part]] == list(range(n_tasks))
    sizes = [part.stop - part.start for part in parts]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("widths", [None, [1], [6, 1, 4]], ids=str)
def test_join_puts_together_what_cut_took_apart(widths):
    n_tasks = 5
    whole = torch.randn((n_tasks, 2) if widths is None else (2, 3, n_tasks * sum(widths)))
    parts = [share(n_tasks, rank, 3) for rank in range(3)]
    pieces = [cut(whole, n_tasks, part, widths) for part in parts]
    assert torch.equal(join(pieces, [part.stop - part.start for part in parts], widths), whole)
    assert sum(piece.numel() for piece in pieces) == whole.numel()


@pytest.mark.parametrize("widths", [None, (2, 3, 1)])
def test_paste_replaces_the_tasks_of_the_indices_alone(widths):
    generator = torch.Generator().manual_seed(0)
    shape = (5, 4) if widths is None else (2, 5 * 6)
    tensor, indices = torch.rand(shape, generator=generator), torch.tensor([0, 3])
    others = torch.tensor([1, 2, 4])
    piece = cut(tensor, 5, indices, widths) + 1
    pasted = paste(tensor, piece, indices, widths)
    assert torch.equal(cut(pasted, 5, indices, widths), piece)
    assert torch.equal(cut(pasted, 5, others, widths), cut(tensor, 5, others, widths))
    assert torch.equal(paste(torch.tensor(1), torch.tensor(2), indices, widths), torch.tensor(2))


def test_a_cut_of_a_flat_axis_takes_the_coordinates_of_its_tasks_from_every_parameter():
    # three tasks with parameters a (2 numbers) and b (1), told apart by tens
    whole = torch.tensor([[10, 11, 20, 21, 30, 31, 12, 22, 32]])
    assert cut(whole, 3, slice(1, 3), [2, 1]).tolist() == [[20, 21, 30, 31, 22, 32]]


def test_the_shares_of_all_ranks_are_what_one_process_draws():
    family = Quadratic(dim=3, start="normal")

    def draw(family, n_tasks):
        generator = torch.Generator().manual_seed(4)
        drawn = family.sample_tasks(n_tasks, generator)
        params = family.init_params(drawn, n_tasks, generator)
        return {**drawn, **params, "next": torch.rand(n_tasks, generator=generator)}

    whole = draw(family, 5)
    first, second = (draw(Sharded(family, 5, part), part.stop - part.start) for part in (slice(0, 3), slice(3, 5)))
    for name in ("W", "y", "theta"):
        assert torch.equal(torch.cat([first[name], second[name]]), whole[name])
    assert torch.equal(first["next"][:2], second["next"])  # the generators go on alike
    assert torch.equal(first["next"], whole["next"][:3])


@pytest.mark.parametrize("part", [slice(0, 2), slice(2, 5), slice(0, 5)], ids=str)
def test_a_share_of_minibatches_is_a_slice_of_all_and_draws_as_much(part, family):
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    drawn = family.sample_tasks(5, torch.Generator().manual_seed(3))
    whole = family.sample_batch(drawn, 5, "train", generators[0])
    mine = family.sample_share(drawn, 5, "train", generators[1], part)
    assert mine.keys() == whole.keys()
    assert all(torch.equal(mine[name], whole[name][part]) for name in whole)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


# --- two ranks against one process, in float64 to rounding ---

BASE = TrainConfig(
    Quadratic(dim=4),
    LSTMConfig(hidden_size=4, p=None),
    horizon=10,
    truncation=5,
    n_tasks=4,
    outer_steps=11,
    validate_every=5,
    valid_tasks=6,
    checkpoint_every=4,
)
DIGITS = MLP("digits", (3,), batch_size=8, init_scale=0.3)
OPTIONS = {
    "lstm": {},
    "uneven shares": {"n_tasks": 5, "valid_tasks": 3},
    "fewer validation problems than ranks": {"valid_tasks": 1},
    "mlp": {"task": DIGITS},
    "samples of their own": {"task": dataclasses.replace(DIGITS, samples=30), "n_tasks": 5, "divergence": 1.1},
    "validation minibatches": {"task": DIGITS, "meta_loss": MetaLoss("linear", split="inner_valid"), "n_tasks": 3},
    "order 2": {"order": 2},
    "adam": {"task": DIGITS, "rule": AdamConfig(lr=0.1)},
    "es": {"estimator": "es", "n_tasks": 3},
    "pes": {"estimator": "pes", "n_tasks": 3},
    "nres": {"estimator": "nres", "task": DIGITS},
    "exploding": {"task": Exploding(), "rule": SGDConfig(lr=0.02), "outer_steps": 30, "n_tasks": 3},
    "exploding pes": {"task": Exploding(), "estimator": "pes", "rule": SGDConfig(lr=0.02), "outer_steps": 30},
    "exploding lstm": {"divergence": 1.02, "outer_steps": 30, "n_tasks": 5, "outer_lr": 1e-4},
    "staggered": {"n_tasks": 5, "stagger": 2, "outer_steps": 17},
    "random lengths": {"lengths": Lengths("log-uniform", 3, 2), "n_tasks": 3},
}
IN_TURNS = ("uneven shares", "pes", "exploding lstm", "staggered", "random lengths")


def train_all(root: str) -> None:
    """Under torchrun, continue all runs below a directory; those in float32 with that as default dtype."""
    tasks.TASKS["exploding"] = Exploding
    with join_ranks() as ranks:
        for path in sorted(Path(root).glob("*/*")):
            torch.set_default_dtype(getattr(torch, path.parent.name))
            with open_run(ranks, path) as run:
                trainer = Trainer(run, Progress(run, "off") if ranks.is_main else Silence(), ranks)
                if (path / "stop").exists():
                    stop_after_on(ranks, trainer, 7)
                else:
                    trainer.train()
            threads = json.dumps({"rank": ranks.rank, "threads": default_threads()})
            (path / f"rank{ranks.rank}").write_text(threads)


def stop_after_on(ranks: Ranks, trainer: Trainer, outer_step: int) -> None:
    """Ask the last rank alone for a stop."""
    if ranks.rank == ranks.n_ranks - 1:
        stop_after(trainer, outer_step)
    else:
        trainer.train()


def alone(path: Path, config: TrainConfig | None = None) -> Trainer:
    run = RunDirectory.open(path) if config is None else RunDirectory.create(path, config)
    return Trainer(run, Progress(run, "off"))


def torchrun(*command: object, restarts: int = 0, **variables: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | variables
    search_path = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", str(restarts), *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": search_path},
    )  # fmt: skip


def finish(process: subprocess.Popen, expected: int = 0) -> tuple[str, str]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == expected, errors
    return output, errors


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Every run of `OPTIONS`, made by one process and by two ranks; two of them by one and two in turns."""
    root = tmp_path_factory.mktemp("ranks")
    patch = pytest.MonkeyPatch()
    patch.setitem(tasks.TASKS, "exploding", Exploding)
    configs = {f"float64/{name}": dataclasses.replace(BASE, **options) for name, options in OPTIONS.items()}
    configs |= {f"float64/{name} in turns": configs[f"float64/{name}"] for name in IN_TURNS}
    short = dataclasses.replace(BASE, outer_steps=40)
    configs |= {"float32/quadratic": short, "float32/mlp": dataclasses.replace(short, task=DIGITS)}
    try:
        for name, config in configs.items():
            torch.set_default_dtype(getattr(torch, name.split("/")[0]))
            alone(root / "one" / name, config).train()
            begun = alone(root / "two" / name, config)
            if name.endswith("in turns"):
                stop_after(begun, 3)
                (root / "two" / name / "stop").touch()
        finish(torchrun(__file__, root / "two"))
        torch.set_default_dtype(torch.float64)
        for name in configs:
            if name.endswith("in turns"):
                resumed = alone(root / "two" / name)
                assert resumed.outer_step == 7
                resumed.train()
    finally:
        torch.set_default_dtype(torch.float32)
        patch.undo()
    return {name: (root / "one" / name, root / "two" / name) for name in configs}


def states(paths: tuple[Path, Path]) -> tuple[tuple[dict[str, Tensor], dict], ...]:
    return tuple(RunDirectory(path, BASE).load_state() for path in paths)


@pytest.mark.parametrize("name", [*OPTIONS, *(f"{name} in turns" for name in IN_TURNS)])
def test_two_ranks_end_in_the_state_of_one_process(name, one_and_two):
    (one, counters), (two, others) = states(one_and_two[f"float64/{name}"])
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-10, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}")
    same = ("outer_step", "skipped", "diverged", "lengths")
    assert [others[key] for key in same] == [counters[key] for key in same]
    assert others["best"] == pytest.approx(counters["best"], rel=1e-10)
    if name.startswith("exploding"):
        assert counters["diverged"] > 3 and counters["skipped"] < counters["outer_step"] / 2


@pytest.mark.parametrize("name", ["quadratic", "mlp"])
def test_in_float32_the_weights_of_two_ranks_and_one_process_agree_to_1e_6(name, one_and_two):
    (one, _), (two, _) = states(one_and_two[f"float32/{name}"])
    weights = [key for key in one if key.startswith("rule/")]
    assert len(weights) == 6
    assert max((one[key] - two[key]).abs().max().item() for key in weights) <= 1e-6


def test_rank_0_alone_logs_what_one_process_logs(one_and_two):
    for one, two in one_and_two.values():
        records = [metrics(path) for path in (one, two)]
        assert [line.keys() for line in records[1]] == [line.keys() for line in records[0]]
        for found, expected in zip(*reversed(records), strict=True):
            assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)  # float32 runs are among them


def test_every_rank_takes_its_share_of_the_cores(one_and_two):
    path = one_and_two["float64/lstm"][1]
    ranks = [json.loads((path / f"rank{rank}").read_text()) for rank in range(2)]
    assert [facts["threads"] for facts in ranks] == 2 * [max(1, len(os.sched_getaffinity(0)) // 2)]


# --- kills and signals ---

TRAIN = ("-m", "meta_train.cli", "train", "quadratic", "--wandb", "off", "--threads", "1", "--task.dim", "4",
         "--horizon", "10", "--truncation", "5", "--n-tasks", "4", "--outer-steps", "240", "--validate-every", "11",
         "--valid-tasks", "4", "--checkpoint-every", "7")  # fmt: skip
RULE = ("rule:lstm", "--rule.hidden-size", "4")


def train(path: Path, **options) -> subprocess.Popen:
    return torchrun(*TRAIN, "--out", path, *RULE, **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    output, errors = finish(train(path))
    assert output.count("outer_steps 240") == 1  # rank 0 alone speaks
    assert errors.count("240/240") == 1
    return path


def workers(process: subprocess.Popen) -> list[int]:
    """Return the process ids of the two ranks, once both are there."""
    while process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found = [int(pid) for pid in children if b"meta_train.cli" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if len(found) == 2:
            return found
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


def wait_for_checkpoints(process: subprocess.Popen, path: Path, count: int) -> None:
    """Return when the run has written its state `count` times more, or has ended."""
    state = path / "state.safetensors"
    seen = state.stat().st_mtime_ns if state.exists() else None
    while count > 0 and process.poll() is None:
        now = state.stat().st_mtime_ns if state.exists() else None
        count, seen = count - (now != seen), now
        time.sleep(0.001)


def test_a_rank_killed_at_a_random_moment_is_restarted_and_ends_with_the_undisturbed_weights(tmp_path, undisturbed):
    moments = torch.Generator().manual_seed(int.from_bytes(os.urandom(4)))
    process, path = train(tmp_path / "run", restarts=3), tmp_path / "run"
    wait_for_checkpoints(process, path, 1 + int(torch.randint(9, (), generator=moments)))
    time.sleep(0.02 * torch.rand((), generator=moments).item())
    os.kill(workers(process)[int(torch.randint(2, (), generator=moments))], signal.SIGKILL)
    _, errors = finish(process)
    assert "Signal 9" in errors or "SIGKILL" in errors or "exitcode: -9" in errors
    assert_same_run(path, undisturbed)
    logged = Counter((line["outer_step"], "train/loss" in line) for line in metrics(path))
    assert set(logged.values()) == {1}


def test_sigterm_to_one_rank_or_to_torchrun_ends_with_a_checkpoint_that_resumes(tmp_path, undisturbed):
    path = tmp_path / "run"
    process = train(path)
    wait_for_checkpoints(process, path, 3)
    os.kill(workers(process)[1], signal.SIGTERM)
    _, errors = finish(process, expected=1)
    assert f"l2o: stopped with a checkpoint; continue with: l2o resume {path}" in errors
    _, counters = RunDirectory.open(path).load_state()
    first = counters["outer_step"]
    assert 21 <= first < 240

    process = torchrun("-m", "meta_train.cli", "resume", path, "--wandb", "off", "--threads", "1")
    wait_for_checkpoints(process, path, 2)
    process.send_signal(signal.SIGTERM)  # as Slurm does
    process.communicate(timeout=60)
    assert process.returncode != 0
    _, counters = RunDirectory.open(path).load_state()
    assert first < counters["outer_step"] < 240

    finish(torchrun("-m", "meta_train.cli", "resume", path, "--wandb", "off", "--threads", "1"))
    assert_same_run(path, undisturbed)


def test_a_run_of_many_ranks_is_locked_and_one_that_fails_to_start_can_be_repeated(tmp_path, capsys):
    path = tmp_path / "run"
    failed = torchrun(*TRAIN, "--n-tasks", "1", "--out", path, *RULE)  # a task for one rank only
    assert "l2o: 2 ranks need a task each" in finish(failed, expected=1)[1]
    assert not path.exists()

    process = train(path)
    wait_for_checkpoints(process, path, 1)
    status, errors = l2o(capsys, "resume", path, "--wandb", "off")
    assert status == 2 and f"l2o: {path} is in use by process {min(workers(process))} on " in errors
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


# --- what it costs ---


def test_the_parts_of_an_outer_step_add_up_to_it_on_one_rank_and_shrink_with_ranks():
    times = {"draw": 0.4, "one task": 1.6, "t(1)": 9.4, "reduce": 20 * 0.25}
    costs = scaling.parts(times, 8)
    assert costs["reduce"] == 0.25
    assert costs["task"] == pytest.approx((9.4 - 1.6 - 0.35) / 7)
    assert scaling.predict(costs, 8, 1) == pytest.approx(9.4)
    assert scaling.predict(costs, 1, 1) + 0.4 / 8 - 0.4 == pytest.approx(1.6)
    assert scaling.predict(costs, 8, 4) == pytest.approx(0.4 + costs["fixed"] + 2 * costs["task"] + 2 * 0.25)


def test_scaling_measures_and_writes_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "WORKLOADS", {"tiny": (Quadratic(dim=2), 4)})
    scaling.run(tmp_path / "distributed", repeats=1)
    rows = (tmp_path / "distributed/summary.csv").read_text().splitlines()
    assert len(rows) == 1 + 3  # 1, 2 and 4 ranks
    assert (tmp_path / "distributed/README.md").read_text() in capsys.readouterr().out


# --- errors ---


@pytest.fixture
def under_torchrun(monkeypatch):
    """What torchrun sets for a single process."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return monkeypatch


def l2o(capsys, *arguments: object) -> tuple[int, str]:
    status = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = exit_.code or 0
    return status, capsys.readouterr().err


def test_an_existing_run_is_refused_at_first_and_continued_after_a_restart(under_torchrun, capsys, tmp_path):
    path = tmp_path / "run"
    command = [*TRAIN[2:], "--outer-steps", "14", "--out", path]
    threads = torch.get_num_threads()
    assert l2o(capsys, *command, *RULE)[0] == 0
    status, errors = l2o(capsys, *command, *RULE)
    assert status == 2 and "already holds a run" in errors
    under_torchrun.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert l2o(capsys, *command, *RULE)[0] == 0
    status, errors = l2o(capsys, *command, "--seed", "1", *RULE)  # another run than the one before the restart
    assert status == 2 and "already holds a run" in errors
    torch.set_num_threads(threads)


def test_under_torchrun_the_run_directory_must_have_a_name(under_torchrun, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, errors = l2o(capsys, *TRAIN[2:], *RULE)
    assert status == 2 and "under torchrun, name the run directory with --out" in errors
    assert list(tmp_path.iterdir()) == []


def test_fewer_tasks_than_ranks_are_an_error(tmp_path):
    run = RunDirectory.create(tmp_path / "run", dataclasses.replace(BASE, n_tasks=1))
    with pytest.raises(ValueError, match="2 ranks need a task each.* but n_tasks is 1"):
        Trainer(run, Silence(), Ranks(0, 2))


def test_an_environment_that_torchrun_did_not_make_is_an_error(under_torchrun):
    under_torchrun.setenv("WORLD_SIZE", "2")
    under_torchrun.delenv("LOCAL_RANK")
    with pytest.raises(ValueError, match="LOCAL_RANK is None: start the ranks with torchrun"), join_ranks():
        pass


def test_a_group_that_cannot_be_joined_is_an_error_with_its_address(under_torchrun):
    under_torchrun.setenv("WORLD_SIZE", "2")
    under_torchrun.setenv("MASTER_ADDR", "127.0.0.1")
    under_torchrun.setenv("MASTER_PORT", "no-port")
    with pytest.raises(ConnectionError, match="rank 0 of 2 cannot reach the others at 127.0.0.1:no-port"), join_ranks():
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="--device cuda: torch finds no GPU"), join_ranks("cuda"):
        pass


def test_threads_are_those_that_somebody_set(under_torchrun):
    assert default_threads() == len(os.sched_getaffinity(0))
    under_torchrun.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() is None
    under_torchrun.delenv("RANK")
    assert default_threads() is None


if __name__ == "__main__":
    train_all(sys.argv[1])
