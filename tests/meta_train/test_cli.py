"""The command line: help, wrong values, damaged files; one clear line and exit status 2, never a traceback."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from l2o.checkpoint import available, load_rule
from l2o.rules import RULES, LSTMConfig, SGDConfig
from meta_train import cli
from meta_train.config import PRESETS, TrainConfig
from meta_train.estimators import MetaLoss
from meta_train.protocols import PROTOCOLS
from meta_train.run_directory import RunDirectory
from tasks import Quadratic

TINY = (
    "--task.dim", "3", "--horizon", "10", "--truncation", "5", "--n-tasks", "2", "--outer-steps", "4",
    "--validate-every", "2", "--valid-tasks", "2", "--wandb", "off",
)  # fmt: skip
RULE = ("rule:lstm", "--rule.hidden-size", "4")


@pytest.fixture
def l2o(capsys, monkeypatch, tmp_path):
    """Run a command in an empty directory; return exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        status = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            status = exit_.code or 0
        return status, *capsys.readouterr()

    return run


def plain(text: str) -> str:
    """Undo line breaks, frames and hyphenation of a help text."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


# --- help ---


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ("train", "resume", "benchmark", "report", "list")),
        (("train",), tuple(PRESETS)),
        (("resume",), ("bit for bit", "Directory that l2o train made", "--wandb", "--threads")),
        (("benchmark",), (*PROTOCOLS, "--checkpoint", "--out", "--threads", "tuned classics")),
        (("report",), ("README.md", "Directories that l2o benchmark wrote")),
        (("list",), ("List rules",)),
    ],
    ids=lambda value: " ".join(value) or "l2o",
)
def test_help_explains_every_command(command, words, l2o):
    status, output, _ = l2o(*command, "--help")
    assert status == 0
    missing = [word for word in words if word not in plain(output)]
    assert not missing, output


@pytest.mark.parametrize("preset", PRESETS)
def test_help_of_train_mentions_every_field_of_the_configuration_with_an_explanation(preset, l2o):
    status, output, _ = l2o("train", preset, "--help")
    text = plain(output)
    assert status == 0
    fields = {field.name for field in dataclasses.fields(TrainConfig)} - {"task", "rule", "meta_loss"}
    names = [*sorted(fields), "out", "wandb", "threads"]
    names += [f"task.{field.name}" for field in dataclasses.fields(PRESETS[preset].task)]
    names += [f"meta-loss.{field.name}" for field in dataclasses.fields(MetaLoss)]
    for name in names:
        assert f"--{name.replace('_', '-')}" in text, name
    assert text.count("(default: ") >= len(names)
    assert all(f"rule:{name}" in text for name in RULES)


@pytest.mark.parametrize("name", RULES)
def test_help_of_every_rule_mentions_its_fields(name, l2o):
    status, output, _ = l2o("train", "quadratic", f"rule:{name}", "--help")
    assert status == 0
    for field in dataclasses.fields(RULES[name][1]):
        assert f"--rule.{field.name.replace('_', '-')}" in plain(output)


def test_list_names_rules_presets_protocols_and_shipped_checkpoints(l2o):
    status, output, _ = l2o("list")
    assert status == 0
    for name in (*RULES, *PRESETS, *PROTOCOLS, *available()):
        assert re.search(rf"\b{name}\b", output), name
    assert all(protocol.question in output for protocol in PROTOCOLS.values())


# --- what works ---


def test_train_writes_a_run_that_load_takes_and_prints_where(l2o, tmp_path):
    status, output, _ = l2o("train", "quadratic", *TINY, "--seed", "3", "--out", "run", "--clip", "None", *RULE)
    assert status == 0
    assert "outer_steps 4, best_validation" in output and "run/checkpoints/best" in output
    config = RunDirectory.open(tmp_path / "run").config
    assert (config.seed, config.clip, config.horizon, config.rule.hidden_size) == (3, None, 10, 4)
    assert config.task == dataclasses.replace(PRESETS["quadratic"].task, dim=3)
    assert load_rule("run").config == config.rule


def test_train_makes_a_directory_of_its_own_under_runs(l2o, tmp_path):
    status, _, _ = l2o("train", "quadratic", *TINY, "rule:sgd")
    (path,) = (tmp_path / "runs").iterdir()
    assert status == 0 and re.fullmatch(r"quadratic-\d{8}-\d{6}", path.name)
    assert RunDirectory.open(path).config.rule == SGDConfig()


def test_resume_of_a_finished_run_says_where_its_checkpoint_is(l2o):
    l2o("train", "quadratic", *TINY, "--out", "run", "rule:sgd")
    status, output, _ = l2o("resume", "run", "--wandb", "off")
    assert status == 0 and "outer_steps 4" in output and "run/checkpoints/best" in output


def test_a_run_without_a_finite_validation_names_the_checkpoint_that_exists(l2o):
    status, output, _ = l2o("train", "quadratic", *TINY, "--out", "run", "rule:sgd", "--rule.lr", "1e9")
    assert status == 0
    assert "skipped_windows 4" in output and "run/checkpoints/last" in output


def test_threads_are_set(l2o):
    before = torch.get_num_threads()
    try:
        assert l2o("train", "quadratic", *TINY, "--threads", "2", "rule:sgd")[0] == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- what does not ---

WRONG = {
    "negative count": (("--horizon", "-3"), "horizon must be an integer of at least 1, got -3"),
    "zero count": (("--n-tasks", "0"), "n_tasks must be an integer of at least 1, got 0"),
    "truncation > horizon": (("--truncation", "11"), r"truncation \(11\) must not exceed horizon \(10\)"),
    "not a number": (("--horizon", "many"), "--horizon.*'many'"),
    "fractional count": (("--outer-steps", "2.5"), "--outer-steps.*'2.5'"),
    "order 3": (("--order", "3"), "invalid choice '3'"),
    "order 2 recorded": (
        ("--order", "2", "--estimator", "recorded"),
        "recorded gradients are first-order; use --order 1",
    ),
    "clip 0": (("--clip", "0"), "clip must be positive and finite, got 0"),
    "clip word": (("--clip", "off"), "--clip"),
    "nan lr": (("--outer-lr", "nan"), "outer_lr must be positive and finite, got nan"),
    "negative lr": (("--outer-lr", "-1"), "outer_lr must be positive and finite, got -1"),
    "infinite divergence": (("--divergence", "inf"), "divergence must be positive and finite, got inf"),
    "final lr": (("--final-outer-lr", "2"), r"final_outer_lr is a fraction in \[0, 1\], got 2"),
    "huge seed": (("--seed", "9" * 40), "seed must be an integer of 64 bits"),
    "no threads": (("--threads", "0"), "threads must be at least 1, got 0"),
    "test split": (("--meta-loss.split", "test"), "--meta-loss.split"),
    "unknown option": (("--learning-rate", "1"), "--learning-rate"),
    "dimension": (("--task.dim", "0"), "dim must be at least 1, got 0"),
    "unknown wandb mode": (("--wandb", "maybe"), "--wandb"),
    "unknown rule": (("rule:magic",), "rule:magic"),
    "rule's lr": (("rule:sgd", "--rule.lr", "-1"), "lr must be positive and finite, got -1.0"),
    "hidden size": (("rule:lstm", "--rule.hidden-size", "0"), "hidden_size and layers must be at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_get_a_short_message_status_2_and_no_run_directory(case, l2o, tmp_path):
    options, message = WRONG[case]
    status, _, errors = l2o("train", "quadratic", *TINY, "--out", "run", *options)
    assert status == 2
    assert re.search(message, plain(errors)), errors
    assert "Traceback" not in errors and len(errors.splitlines()) <= 15
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "train.*resume.*benchmark"),
        (("fly",), "fly"),
        (("train", "cifar"), "cifar"),
        (("benchmark", "cifar"), "cifar"),
        (("benchmark",), "Missing from l2o benchmark: .*quadratic"),
        (("resume",), "Missing from l2o resume: PATH Directory that l2o train made"),
        (("benchmark", "quadratic", "--checkpoint", "nowhere"), "no checkpoint at nowhere"),
        (("benchmark", "quadratic", "--threads", "-1"), "threads must be at least 1, got -1"),
        (("resume", "nowhere"), "nowhere is not a run directory"),
        (("resume", "."), "is not a run directory"),
        (("resume", "nowhere", "--threads", "0"), "threads must be at least 1"),
        (("report", "nowhere"), "nowhere is not a benchmark's directory"),
    ],
    ids=str,
)
def test_wrong_commands_get_a_short_message_and_status_2(arguments, message, l2o):
    status, output, errors = l2o(*arguments)
    assert status == 2
    assert re.search(message, plain(errors)), errors
    assert "Traceback" not in output + errors and len(errors.splitlines()) <= 20


def test_train_refuses_a_directory_that_holds_a_run_and_leaves_it_alone(l2o, tmp_path):
    l2o("train", "quadratic", *TINY, "--out", "run", "rule:sgd")
    before = (tmp_path / "run/state.safetensors").read_bytes()
    status, _, errors = l2o("train", "quadratic", *TINY, "--out", "run", "rule:sgd")
    assert (status, errors) == (
        2, "l2o: run already holds a run; continue it with l2o resume run, or choose another --out\n",
    )  # fmt: skip
    assert (tmp_path / "run/state.safetensors").read_bytes() == before


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nothing/run"])
@pytest.mark.parametrize("command", ["train", "benchmark"])
def test_directories_that_cannot_be_written_are_one_line(out, command, l2o, tmp_path):
    (tmp_path / "file").write_text("mine")
    l2o("train", "quadratic", *TINY, "--out", "run", "rule:sgd")
    arguments = ("quadratic", *TINY) if command == "train" else ("quadratic", "--checkpoint", "run")
    status, output, errors = l2o(command, *arguments, "--out", out)
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


@pytest.mark.parametrize("content", [b"", b"garbage"], ids=["empty", "garbage"])
def test_a_damaged_mnist_file_is_one_clear_line_and_the_run_can_go_on_once_it_is_mended(
    content, l2o, tmp_path, monkeypatch
):
    folder = tmp_path / "data/mnist"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    for name in ("train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (folder / name).write_bytes(b"")
    monkeypatch.setenv("L2O_DATA", str(tmp_path / "data"))
    options = [option for option in TINY if option not in ("--task.dim", "3")]
    status, _, errors = l2o("train", "mnist", *options, "--out", "run", *RULE)
    assert status == 2
    (line,) = errors.splitlines()
    assert re.match(r"l2o: .*/train-images-idx3-ubyte\.gz is damaged .* was not used: expected 9912422 bytes", line)
    assert not (tmp_path / "run/state.safetensors").exists()
    assert RunDirectory.open(tmp_path / "run").load_state() is None


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

    monkeypatch.setattr(cli, "write_report", interrupted)
    assert l2o("report", "somewhere") == (130, "", "l2o: interrupted\n")


def test_a_config_written_by_train_trains_again_from_its_directory_alone(l2o, tmp_path):
    """A run that was killed before its first checkpoint has only config.json."""
    l2o("train", "quadratic", *TINY, "--out", "run", *RULE)
    shutil.copytree(tmp_path / "run", tmp_path / "again", ignore=shutil.ignore_patterns("state*", "checkpoints"))
    assert l2o("resume", "again", "--wandb", "off")[0] == 0
    weights = "checkpoints/last/rule.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "again" / weights).read_bytes()
    assert len((tmp_path / "again/metrics.jsonl").read_text().splitlines()) == 3
    assert RunDirectory.open(tmp_path / "again").config == dataclasses.replace(
        RunDirectory.open(tmp_path / "run").config, rule=dataclasses.replace(PRESETS["quadratic"].rule, hidden_size=4)
    )
    assert isinstance(PRESETS["quadratic"].rule, LSTMConfig) and isinstance(PRESETS["quadratic"].task, Quadratic)


def test_report_without_a_directory_asks_for_one(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["report"])
    assert ended.value.code == 2 and "name at least one directory" in capsys.readouterr().err
