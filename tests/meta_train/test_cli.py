"""The command line: help, wrong values, damaged files; one clear line and exit status 2, never a traceback."""

import dataclasses
import hashlib
import json
import re
import shlex
import shutil
from importlib.metadata import version

import numpy as np
import pytest
import torch

from l2o.checkpoint import available, load_rule, read_card
from l2o.rules import RULES, SGD, LSTMConfig, SGDConfig
from meta_train import benchmark_commands, commands, train_commands
from meta_train.config import PRESETS, TrainConfig
from meta_train.estimators import MetaLoss
from meta_train.protocols import PROTOCOLS
from meta_train.run_directory import RunDirectory
from meta_train.training_command import training_command
from tasks import Quadratic
from tasks.lasso import _shared_operator

TINY = (
    "--task.dim", "3", "--horizon", "10", "--truncation", "5", "--n-tasks", "2", "--outer-steps", "4",
    "--validate-every", "2", "--valid-tasks", "2", "--wandb", "off",
)  # fmt: skip
RULE = ("rule:lstm", "--rule.hidden-size", "4")


def plain(text: str) -> str:
    """Undo line breaks, frames and hyphenation of a help text."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


# --- help ---


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ("train", "resume", "benchmark", "report", "list")),
        (("train",), tuple(PRESETS)),
        (("resume",), ("bit for bit", "Directory that l2o train or l2o search made", "--wandb", "--threads")),
        (("benchmark",), (*PROTOCOLS, "--checkpoint", "--out", "--threads", "tuned classics")),
        (("report",), ("README.md", "Directories that l2o benchmark wrote", "report.html", "--out", "--wandb-report")),
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


def test_a_config_written_by_train_trains_again_from_its_directory_alone(l2o, tmp_path):
    """A run that was killed before its first checkpoint has only config.json."""
    l2o("train", "quadratic", *TINY, "--out", "run", *RULE)
    shutil.copytree(tmp_path / "run", tmp_path / "again", ignore=shutil.ignore_patterns("state*", "checkpoints"))
    status, _, errors = l2o("resume", "again", "--wandb", "off")
    assert status == 0 and "l2o: again holds no state.safetensors: it begins again at step 0" in errors
    weights = "checkpoints/last/rule.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "again" / weights).read_bytes()
    assert len((tmp_path / "again/metrics.jsonl").read_text().splitlines()) == 3
    assert RunDirectory.open(tmp_path / "again").config == dataclasses.replace(
        RunDirectory.open(tmp_path / "run").config, rule=dataclasses.replace(PRESETS["quadratic"].rule, hidden_size=4)
    )
    assert isinstance(PRESETS["quadratic"].rule, LSTMConfig) and isinstance(PRESETS["quadratic"].task, Quadratic)


def test_threads_are_set(l2o):
    before = torch.get_num_threads()
    try:
        assert l2o("train", "quadratic", *TINY, "--threads", "2", "rule:sgd")[0] == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_resume_takes_the_threads_the_run_began_with(l2o, tmp_path):
    before = torch.get_num_threads()
    try:
        l2o("train", "quadratic", *TINY, "--out", "run", "--threads", "2", "rule:sgd")
        torch.set_num_threads(1)
        assert l2o("resume", "run", "--wandb", "off")[::2] == (0, "")
        assert torch.get_num_threads() == 2
        status, _, errors = l2o("resume", "run", "--wandb", "off", "--threads", "1")
        assert (status, errors) == (0, "l2o: other last bits than without the interruption: threads 2 (now 1)\n")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_resume_on_another_number_of_ranks_leaves_the_threads_to_torch(l2o, tmp_path):
    l2o("train", "quadratic", *TINY, "--out", "run", "rule:sgd")
    before, path = torch.get_num_threads(), tmp_path / "run/env.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threads": before + 1, "ranks": 2}))
    status, _, errors = l2o("resume", "run", "--wandb", "off")
    assert status == 0 and torch.get_num_threads() == before
    assert errors.endswith(f": threads {before + 1} (now {before}), ranks 2 (now 1)\n")


def test_resume_with_another_torch_on_another_machine_says_so_in_one_line(l2o, tmp_path):
    l2o("train", "quadratic", *TINY, "--out", "run", "rule:sgd")
    path = tmp_path / "run/env.json"
    environment = json.loads(path.read_text())
    environment["packages"]["torch"], environment["machine"]["cpu"] = "1.0", "abacus"
    path.write_text(json.dumps(environment))
    status, _, errors = l2o("resume", "run", "--wandb", "off")
    assert status == 0
    assert re.fullmatch(r"l2o: other last bits .*: torch 1\.0 \(now 2\..*\), CPU abacus \(now .*\)\n", errors)


@pytest.mark.parametrize(
    ("arguments", "directory"),
    [
        ((), "results/quadratic"),
        (("--checkpoint", "lstm-quadratic"), r"runs/benchmark-quadratic-\d{8}-\d{6}"),
        (("--checkpoint", "lstm-quadratic", "--out", "mine"), "mine"),
    ],
    ids=str,
)
def test_a_benchmark_of_other_checkpoints_does_not_overwrite_the_results(arguments, directory, l2o, monkeypatch):
    written = []
    monkeypatch.setattr(
        benchmark_commands, "run_benchmark", lambda protocol, checkpoint, out, command: written.append(out)
    )
    monkeypatch.setattr(benchmark_commands, "write_report", lambda out: "table")
    monkeypatch.setattr(benchmark_commands, "log_benchmark", lambda out, checkpoints, wandb: None)
    status, output, _ = l2o("benchmark", "quadratic", *arguments)
    assert status == 0 and re.fullmatch(directory, str(written[0])) and str(written[0]) in output


def test_version_is_that_of_the_package(l2o):
    assert l2o("--version") == (0, f"l2o {version('l2o')}\n", "")


# --- what does not; failures of runs and files are in test_cli_failures.py ---

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
    "no threads": (("--threads", "0"), "threads must be at least 1 and at most 1024, got 0"),
    "test split": (("--meta-loss.split", "test"), "--meta-loss.split"),
    "unknown option": (("--learning-rate", "1"), "--learning-rate"),
    "dimension": (("--task.dim", "0"), "dim must be at least 1, got 0"),
    "unknown wandb mode": (("--wandb", "maybe"), "--wandb"),
    "unknown rule": (("rule:magic",), "rule:magic"),
    "nan dimension": (("--task.dim", "nan"), "--task.dim.*'nan'"),
    "rule's lr": (("rule:sgd", "--rule.lr", "-1"), "lr must be positive and finite, got -1.0"),
    "hidden size": (("rule:lstm", "--rule.hidden-size", "0"), "hidden_size and layers must be at least 1"),
}


ONE_LINE = (
    "negative count", "zero count", "truncation > horizon", "order 2 recorded", "clip 0", "nan lr", "final lr",
    "huge seed", "no threads", "dimension", "rule's lr", "hidden size",
)  # fmt: skip
"""Values of the right type that a configuration refuses: no frame around the message."""


@pytest.mark.parametrize("case", ONE_LINE)
def test_a_refused_value_is_one_line_without_a_frame(case, l2o):
    options, message = WRONG[case]
    status, output, errors = l2o("train", "quadratic", *TINY, *options)
    assert (status, output) == (2, "")
    assert re.fullmatch(f"l2o: [^│╭]*{message}[^│╭]*\n", errors), errors


def test_a_refused_value_is_one_line_for_every_preset(l2o):
    assert l2o("train", "mnist", "--task.hidden", "0")[2] == (
        "l2o: hidden must be a tuple of sizes of at least 1, such as (20,), got (0,)\n"
    )
    assert l2o("train", "mnist", "--horizon", "5", "--truncation", "20")[2] == (
        "l2o: truncation (20) must not exceed horizon (5)\n"
    )
    assert l2o("train", "quadratic", "rule:adam", "--rule.lr", "-1")[2] == (
        "l2o: lr must be positive and finite, got -1.0\n"
    )


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_get_a_short_message_status_2_and_no_run_directory(case, l2o, tmp_path):
    options, message = WRONG[case]
    status, _, errors = l2o("train", "quadratic", *TINY, "--out", "run", *options)
    assert status == 2
    assert re.search(message, plain(errors)), errors
    assert "Traceback" not in errors and "dummy" not in errors and len(errors.splitlines()) <= 15
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "train.*resume.*benchmark"),
        (("fly",), "fly"),
        (("train", "cifar"), "cifar"),
        (("benchmark", "cifar"), "cifar"),
        (("benchmark",), "Missing from l2o benchmark: .*quadratic"),
        (("resume",), "Missing from l2o resume: PATH Directory that l2o train or l2o search made"),
        (("benchmark", "quadratic", "--checkpoint", "nowhere"), "no checkpoint at nowhere"),
        (("benchmark", "quadratic", "--threads", "-1"), "threads must be at least 1 and at most 1024, got -1"),
        (("benchmark", "quadratic", "--threads", "100000"), "at most 1024, got 100000"),
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


def test_report_without_a_directory_asks_for_one_where_there_are_no_results(l2o):
    status, output, errors = l2o("report")
    assert (status, output) == (2, "") and "name at least one directory" in errors


def test_resume_does_with_wandb_as_the_run_began(l2o, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(train_commands, "run_training", lambda run, wandb, ranks: told.append(wandb) or {})
    monkeypatch.setattr(train_commands, "load_rule", lambda path: SGD())
    monkeypatch.setattr(train_commands, "find", lambda path: path)
    arguments = [option for option in TINY if option not in ("--wandb", "off")]
    for mode in ("off", "offline"):
        assert l2o("train", "quadratic", *arguments, "--wandb", mode, "--out", mode, "rule:sgd")[0] == 0
        assert l2o("resume", mode)[0] == 0
    assert l2o("resume", "off", "--wandb", "offline")[0] == 0
    (tmp_path / "off/settings.json").unlink()  # a run of an earlier version
    assert l2o("resume", "off")[0] == 0
    assert told == ["off", "off", "offline", "offline", "offline", "auto"]


def test_list_leaves_room_between_a_name_and_what_is_said_of_it(l2o):
    lines = l2o("list")[1].splitlines()
    for name in (*PROTOCOLS, *available()):
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert re.match(rf"  {name}  +\S", line), line
    starts = {re.match(r"  \S+ +", line).end() for line in lines if re.match(r"  [a-z0-9.-]+ {2,}\S", line)}
    assert len(starts) == 1  # one column


def test_train_on_a_matrix_of_ones_own_resumes_with_that_matrix_alone(l2o, tmp_path):
    A = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", A=A)
    options = (
        "--task.matrix", "mine.npz", "--horizon", "2", "--truncation", "2", "--n-tasks", "4", "--outer-steps", "2",
        "--valid-tasks", "4", "--wandb", "off", "--out", "run", "rule:lista-cp", "--rule.layers", "2",
    )  # fmt: skip
    status, _, errors = l2o("train", "sparse", *options)
    assert status == 2 and "250" in errors and "8" in errors and errors.count("\n") == 1  # weights for another size
    assert l2o("train", "sparse", *options, "--rule.rows", "8", "--rule.columns", "12")[0] == 0
    task = read_card(tmp_path / "run/checkpoints/best")["training"]["config"]["task"]
    sha256 = hashlib.sha256((tmp_path / "mine.npz").read_bytes()).hexdigest()
    assert (task["rows"], task["columns"], task["dictionary"], task["matrix_sha256"]) == (8, 12, "file", sha256)
    config = RunDirectory.open(tmp_path / "run").config
    asked = commands.parse(shlex.split(training_command(config))[1:])  # what a card tells trains the same again
    assert config in (*asked.args, *asked.keywords.values())
    np.savez(tmp_path / "mine.npz", A=2 * A)
    _shared_operator.cache_clear()  # as in another process
    status, _, errors = l2o("resume", "run")
    assert status == 2 and "mine.npz is not the one that this run was made with" in errors and errors.count("\n") == 1


@pytest.mark.parametrize("preset", ["sparse", "lasso"])
def test_a_matrix_that_cannot_be_used_is_one_line_and_no_run(preset, l2o, tmp_path):
    np.save(tmp_path / "mine.npy", np.full((3, 4), np.nan))
    for path, words in (("mine.npy", "must be finite, but 12 of its 12 entries are not"), ("no.npy", "cannot be read")):
        status, output, errors = l2o("train", preset, "--task.matrix", path, "--out", "run")
        assert (status, output, errors.count("\n")) == (2, "", 1) and errors.startswith(f"l2o: matrix {path} {words}")
    assert not (tmp_path / "run").exists()
