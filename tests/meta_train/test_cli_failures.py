"""Runs and files that fail: one line, the right exit status, and nothing in the way of the next attempt."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import RULE, TINY

from meta_train import benchmark_commands, run_training
from meta_train.run_directory import RunDirectory

REPOSITORY = Path(__file__).parents[2]
REAL = os.environ.get("L2O_DATA")
MNIST = tuple(option for option in TINY if option not in ("--task.dim", "3"))
WEIGHTS = "checkpoints/last/rule.safetensors"


@pytest.fixture
def full_disk():
    """Call it, and no file can grow over a hundred bytes any more: the system refuses, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def python(*arguments: object, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip


# --- directories and files ---


def test_train_refuses_a_directory_that_holds_a_run_and_leaves_it_alone(l2o, tmp_path):
    l2o("train", "quadratic", *TINY, "--out", "run", "rule:sgd")
    before = (tmp_path / "run/state.safetensors").read_bytes()
    status, _, errors = l2o("train", "quadratic", *TINY, "--out", "run", "rule:sgd")
    assert (status, errors) == (
        2, "l2o: run already holds a run; continue it with l2o resume run, or choose another --out\n",
    )  # fmt: skip
    assert (tmp_path / "run/state.safetensors").read_bytes() == before


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nothing/run"])
@pytest.mark.parametrize("command", ["train", "benchmark", "speed", "estimators"])
def test_directories_that_cannot_be_written_are_one_line(out, command, l2o, tmp_path):
    (tmp_path / "file").write_text("mine")
    l2o("train", "quadratic", *TINY, "--out", "run", "rule:sgd")
    arguments = {"train": ("quadratic", *TINY), "benchmark": ("quadratic", "--checkpoint", "run")}.get(command, ())
    status, output, errors = l2o(command, *arguments, "--out", out)  # before anything is measured
    assert (status, output) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith("l2o: ") and out.split("/")[0] in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("damage", ["config.json", "state.safetensors"])
def test_resuming_a_damaged_run_is_one_line(damage, l2o, tmp_path):
    l2o("train", "quadratic", *TINY, "--out", "run", *RULE)
    path = tmp_path / "run" / damage
    path.write_bytes(path.read_bytes()[:100])
    status, _, errors = l2o("resume", "run", "--wandb", "off")
    assert status == 2
    (line,) = errors.splitlines()
    assert damage in line


def test_a_state_for_another_rule_is_one_line(l2o, tmp_path):
    l2o("train", "quadratic", *TINY, "--out", "run", *RULE)
    path = tmp_path / "run/config.json"
    values = json.loads(path.read_text())
    values["rule"]["hidden_size"] += 1
    path.write_text(json.dumps(values))
    status, _, errors = l2o("resume", "run", "--wandb", "off")
    assert status == 2
    (line,) = errors.splitlines()
    assert "does not fit config.json" in line


def test_the_module_is_a_program_whose_errors_leave_no_traceback(tmp_path):
    """The same through a real process: nothing but the message on stderr, status 2."""
    result = subprocess.run(
        [sys.executable, "-m", "meta_train.cli", "resume", tmp_path],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"l2o: {tmp_path} is not a run directory") and result.stderr.count("\n") == 1


def test_an_interruption_outside_of_training_ends_with_130(l2o, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark_commands, "report_all", interrupted)
    assert l2o("report", "somewhere") == (130, "", "l2o: interrupted\n")


# --- starts that fail leave nothing behind ---


def test_a_start_without_the_data_set_can_be_repeated_once_it_is_there(l2o, tmp_path, monkeypatch):
    monkeypatch.setenv("L2O_DATA", str(tmp_path / "typo"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # answers nobody: as if offline
    command = ("train", "mnist", *MNIST, "--out", "deep/run", *RULE)
    status, output, errors = l2o(*command)
    assert (status, output) == (2, "")
    first, second = errors.splitlines()
    assert first.startswith("l2o: train-images-idx3-ubyte is neither in $L2O_DATA/mnist (L2O_DATA is ")
    assert second.startswith("Set L2O_DATA to a folder with the mnist/ files")
    assert not (tmp_path / "deep/run").exists()
    if REAL and Path(REAL, "mnist").is_dir():
        monkeypatch.setenv("L2O_DATA", REAL)
        assert l2o(*command)[0] == 0


@pytest.mark.parametrize("content", [b"", b"garbage"], ids=["empty", "garbage"])
def test_a_damaged_mnist_file_is_one_clear_line_and_no_run(content, l2o, tmp_path, monkeypatch):
    folder = tmp_path / "data/mnist"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte.gz").write_bytes(content)
    monkeypatch.setenv("L2O_DATA", str(tmp_path / "data"))
    status, _, errors = l2o("train", "mnist", *MNIST, "--wandb", "offline", "--out", "run", *RULE)
    assert status == 2
    (line,) = errors.splitlines()
    assert re.match(r"l2o: .*/train-images-idx3-ubyte\.gz is damaged .* was not used: expected 47040016 bytes", line)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("source", ["nowhere", "lstm-mnist"])
def test_a_wrong_start_from_is_one_line_and_no_run(source, l2o, tmp_path):
    status, _, errors = l2o("train", "quadratic", *TINY, "--out", "run", "--start-from", source, *RULE)
    assert status == 2 and errors.count("\n") == 1 and source in errors
    assert not (tmp_path / "run").exists()


def test_more_memory_than_there_is_is_one_line_and_no_run(l2o, tmp_path):
    # 10^13 quadratics of 3 dimensions are more bytes than a process can address
    status, output, errors = l2o("train", "quadratic", *TINY, "--n-tasks", 10**13, "--out", "run", "rule:sgd")
    assert (status, output) == (1, "")
    assert re.fullmatch(
        r"l2o: out of memory \(it wanted \d+ bytes more\); take a smaller problem, fewer tasks .*\n", errors
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")]
)
def test_memory_that_runs_out_later_is_one_line_and_keeps_the_checkpoints(error, l2o, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(run_training.Trainer, "_validate", fail)  # after the first checkpoint
    status, _, errors = l2o("train", "quadratic", *TINY, "--checkpoint-every", "1", "--out", "run", "rule:sgd")
    assert status == 1 and re.fullmatch(
        r"l2o: out of memory( \(it wanted 2.00 GiB more\))?; take a smaller problem, .*\n", errors
    )
    assert RunDirectory.open(tmp_path / "run").load_state()[1]["outer_step"] == 1


def test_another_runtime_error_is_not_hidden(l2o, monkeypatch):
    def fail(*_):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(benchmark_commands, "report_all", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        l2o("report", "somewhere")


def test_an_interruption_while_a_run_starts_leaves_nothing_behind(l2o, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_training, "Trainer", interrupted)
    assert l2o("train", "quadratic", *TINY, "--out", "run") == (130, "", "l2o: interrupted\n")
    assert not (tmp_path / "run").exists()


def test_a_training_of_which_no_window_could_be_used_fails_with_one_line(l2o, tmp_path):
    status, output, errors = l2o("train", "quadratic", *TINY, "--out", "run", "rule:sgd", "--rule.lr", "1e9")
    assert (status, output) == (1, "")
    last = errors.splitlines()[-1]
    assert last.startswith(
        "l2o: no window could be used: in all 4, every trajectory diverged (a loss above --divergence times"
    )
    assert all(option in last for option in ("--outer-lr", "--rule.scale", "--divergence"))


# --- a full disk ---


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_bit_for_bit_from_its_last_checkpoint(
    l2o, tmp_path, full_disk, monkeypatch
):
    command = ("train", "quadratic", *TINY, "--checkpoint-every", "1", *RULE)
    l2o(*command, "--out", "whole")
    save, saved = RunDirectory.save_state, []

    def save_and_fill_up(*arguments):
        save(*arguments)
        saved.append(1)
        if len(saved) == 2:
            full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_state", save_and_fill_up)
        status, output, errors = l2o(*command, "--out", "run")
    assert (status, output) == (1, "")
    assert re.fullmatch(
        r"l2o: run cannot be written: .*File too large.*; its last checkpoint is intact, continue with: l2o resume run",
        errors.splitlines()[-1],
    )
    assert "Traceback" not in errors
    still_full = l2o("resume", "run", "--wandb", "off")
    assert still_full[0] == 1 and still_full[2].count("\n") == 1
    resource.setrlimit(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)[1:] * 2)
    assert l2o("resume", "run", "--wandb", "off")[0] == 0
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert not list((tmp_path / "run").rglob("*.new"))


def test_a_start_on_a_full_disk_is_one_line_and_can_be_repeated(l2o, full_disk):
    command = ("train", "quadratic", *TINY, "--out", "run", "rule:sgd")
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)
    full_disk()
    status, output, errors = l2o(*command)
    resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert (status, output, errors) == (1, "", "l2o: [Errno 27] File too large\n")
    assert l2o(*command)[0] == 0


# --- the process ---


@pytest.mark.parametrize("package", ["tyro", "tqdm", "matplotlib"])
def test_without_the_extra_the_command_line_says_what_to_install(package):
    script = f"import sys; sys.modules[{package!r}] = None; from meta_train.cli import main; main(['list'])"
    process = python("-c", script)
    output, errors = process.communicate()
    assert (process.returncode, output) == (2, "")
    assert errors == "l2o: the command line needs the extra train: pip install 'l2o[train]'\n"


def test_an_interruption_of_the_imports_is_one_line_and_status_130(tmp_path):
    (tmp_path / "tyro.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    process = python("-m", "meta_train.cli", "list", PYTHONPATH=str(tmp_path))
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "l2o: interrupted\n")
    assert process.returncode == 130


def test_a_run_belongs_to_one_process_until_it_is_killed(l2o, tmp_path):
    command = [*TINY, "--outer-steps", "1000000", "--checkpoint-every", "1", "--out", tmp_path / "run", "rule:sgd"]
    process = python("-m", "meta_train.cli", "train", "quadratic", *command)
    while not (tmp_path / "run/state.safetensors").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    for attempt in (("resume", "run", "--wandb", "off"), ("train", "quadratic", *TINY, "--out", "run", "rule:sgd")):
        status, output, errors = l2o(*attempt)
        assert (status, output) == (2, "")
        assert re.fullmatch(rf"l2o: run is in use by process {process.pid} on .*; wait for it to end, or .*\n", errors)
    process.kill()
    process.communicate()
    config = tmp_path / "run/config.json"  # shorten the rest
    steps = RunDirectory.open(tmp_path / "run").load_state()[1]["outer_step"]
    config.write_text(config.read_text().replace('"outer_steps": 1000000', f'"outer_steps": {steps + 1}'))
    assert l2o("resume", "run", "--wandb", "off")[0] == 0


# --- rules that cannot be trained, or were not ---

SPARSE = (
    "--task.rows", "8", "--task.columns", "12", "--task.dictionary", "fixed", "--horizon", "3", "--truncation", "3",
    "--n-tasks", "2", "--outer-steps", "2", "--valid-tasks", "2", "--wandb", "off", "--out", "run",
)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sparse", *SPARSE, "rule:fista"), "FISTA has no weights, so there is nothing to learn"),
        (("sparse", *SPARSE, "--estimator", "pes"), "--estimator pes runs every task with weights of its own"),
        (("sparse", *SPARSE, "--estimator", "recorded"), "recorded gradients are for coordinate-wise rules"),
        (("quadratic", *TINY, "--out", "run", "rule:alista"), "a problem's structure, which Quadratic has not"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_rule_that_does_not_fit_the_run_is_one_line_and_no_run(arguments, words, l2o, tmp_path):
    status, output, errors = l2o("train", *arguments)
    assert (status, output, errors.count("\n")) == (2, "", 1) and words in errors
    assert not (tmp_path / "run").exists()


def test_a_training_after_which_the_rule_still_diverges_fails_and_keeps_its_directory(l2o, tmp_path):
    """ALISTA with steps of 1e30 is beyond float32 after two steps; the window of one step can be used."""
    options = [option for option in SPARSE if option != "run"]
    options += ["run", "--truncation", "1", "--divergence", "1e300", "rule:alista", "--rule.layers", "1"]
    status, output, errors = l2o("train", "sparse", *options, "--rule.step-size", "1e15")
    assert (status, output) == (1, "")
    last = errors.splitlines()[-1]
    assert last.startswith("l2o: nothing was learned: at every validation the rule diverged on some of the 2 problems")
    assert "run/checkpoints/last" in last and (tmp_path / "run/checkpoints/last").is_dir()
    assert not (tmp_path / "run/checkpoints/best").exists() and RunDirectory.open(tmp_path / "run").has_state
    assert l2o("resume", "run")[0] == 1  # it says so again
