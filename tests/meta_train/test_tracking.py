"""What a person sees: plain lines, a bar on a terminal, metrics.jsonl, Weights & Biases."""

import dataclasses
import fcntl
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from wandb_files import wandb_artifacts, wandb_history, wandb_records

from l2o.rules import SGDConfig
from meta_train.config import TrainConfig
from meta_train.run_directory import RunDirectory, last_logged
from meta_train.tracking import Progress, start_wandb
from meta_train.trainer import Trainer
from tasks import Quadratic

TINY = TrainConfig(
    Quadratic(dim=4), SGDConfig(), horizon=10, truncation=5, n_tasks=4, outer_steps=50, validate_every=25, valid_tasks=4
)
LINE = re.compile(
    r"(\d+)/50: loss [\d.e+-]+, [\d,]+ inner steps/s, \d+ min \d\d s left(?:, validation .* \(best .*\))?"
)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "my run, really: #1", TINY)


def train(run: RunDirectory, mode="off", stop_at: int | None = None) -> None:
    progress = Progress(run, mode)
    trainer = Trainer(run, progress)
    report = progress.outer_step

    def reporting(now, *facts):
        trainer.stop_requested = now == stop_at
        report(now, *facts)

    progress.outer_step = reporting
    trainer.train()
    progress.close()


def metrics(run: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


# --- on the screen ---


def test_without_a_terminal_plain_lines_tell_loss_speed_and_time_left(run, capsys):
    train(run)
    output, errors = capsys.readouterr()
    lines = errors.splitlines()
    assert output == ""
    assert lines and all(LINE.fullmatch(line) for line in lines), lines
    assert lines[-1].startswith("50/50: ") and "validation" in lines[-1] and "0 min 00 s left" in lines[-1]
    assert "\r" not in errors


def test_plain_lines_come_every_ten_seconds_at_most_and_at_the_end(run, capsys):
    train(run)
    assert [line.split("/")[0] for line in capsys.readouterr().err.splitlines()] == ["20", "50"]


def test_a_terminal_shows_a_bar_with_loss_speed_time_left_and_validation(run, monkeypatch):
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    seen = []

    def read():
        try:
            while piece := os.read(controller, 4096):
                seen.append(piece)
        except OSError:  # the terminal was closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(terminal, "w") as screen, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        train(run)
    reader.join()
    os.close(controller)
    text = b"".join(seen).decode()
    assert "\r" in text and "50/50" in text
    assert re.search(r"loss [\d.]+, [\d,]+ inner steps/s", text)
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d", text)  # elapsed and left
    assert re.search(r"validation [\d.]+ \(best [\d.]+\)", text)


@pytest.mark.parametrize(
    ("done", "seconds", "expected"),
    [
        (10, 10.0, "0 min 40 s left"),
        (10, 100.0, "6 min 40 s left"),
        (25, 59.7, "1 min 00 s left"),
        (50, 9.0, "0 min 00 s left"),
    ],
)
def test_the_time_left_is_extrapolated_from_the_steps_made_since_the_start(done, seconds, expected, run):
    progress = Progress(run, "off")
    progress._begun = (0, 1000.0)
    assert progress._time_left(done, 1000.0 + seconds) == expected


def test_a_resumed_run_extrapolates_from_its_own_steps(run):
    progress = Progress(run, "off")
    progress._begun = (30, 1000.0)  # resumed at step 30: ten steps took 20 s
    assert progress._time_left(40, 1020.0) == "0 min 20 s left"


# --- in the log ---


def test_the_log_holds_the_mean_loss_of_twenty_steps_the_speed_and_every_validation(run):
    progress = Progress(run, "off")
    for step in range(1, 51):
        progress.outer_step(step, float(step), 20, diverged=step // 10)
    progress.validation(50, {"meta_loss": 7.5, "final_loss": 0.25}, 7.0)
    trained, validated = metrics(run)[:3], metrics(run)[3]
    assert [record["outer_step"] for record in trained] == [20, 40, 50]
    assert [record["train/loss"] for record in trained] == [10.5, 30.5, 45.5]
    assert [record["diverged"] for record in trained] == [2, 4, 5]
    assert all(record["inner_steps_per_s"] > 0 for record in trained)
    assert validated == {"outer_step": 50, "valid/meta_loss": 7.5, "valid/final_loss": 0.25}


def test_the_log_adds_up_cpu_seconds_over_interruptions(run):
    (run.path / "metrics.jsonl").write_text('{"outer_step": 20, "cpu_s": 1000.0}\n')  # left by an earlier process
    progress, begun = Progress(run, "off"), time.process_time()
    for step in range(21, 41):
        progress.outer_step(step, 1.0, 20, diverged=0)
    while time.process_time() < begun + 0.3:
        pass
    for step in range(41, 61):
        progress.outer_step(step, 1.0, 20, diverged=0)
    before, early, *_, late = (record["cpu_s"] for record in metrics(run))
    assert 1000.0 == before <= early and early + 0.2 <= late <= before + time.process_time() - begun + 0.1
    assert last_logged(run.path, "cpu_s") == late


@pytest.mark.parametrize("log", [None, "", '{"outer_step": 20}', "cut sho"])
def test_a_log_that_does_not_tell_gives_none(log, tmp_path):
    if log is not None:
        (tmp_path / "metrics.jsonl").write_text(log)
    assert last_logged(tmp_path, "cpu_s") is None


def test_diverged_trajectories_are_counted_and_windows_that_were_not_used_left_out_of_the_mean(run, capsys):
    progress = Progress(run, "off")
    for step in range(1, 21):
        progress.outer_step(step, float("nan") if step % 2 else 3.0, 20, diverged=(step + 1) // 2)
    for step in range(21, 41):
        progress.outer_step(step, float("nan"), 20, diverged=step - 10)
    assert [record["train/loss"] for record in metrics(run)] == [3.0, None]
    assert "loss 3, " in (errors := capsys.readouterr().err) and ", 10 trajectories diverged" in errors


# --- Weights & Biases ---


def expected_history(run: RunDirectory) -> dict[int, dict[str, float]]:
    history: dict[int, dict[str, float]] = {}
    for record in metrics(run):
        history.setdefault(record.pop("outer_step"), {}).update(record)
    return history


def test_offline_wandb_writes_a_run_that_can_be_read_back_and_goes_on_when_resumed(run, nobody):
    wandb = pytest.importorskip("wandb")
    train(run, "offline", stop_at=30)
    train(RunDirectory.open(run.path), "auto")  # nobody is logged in: offline
    wandb.teardown()  # waits for the service, which may write the last records after `finish`
    files = sorted(run.path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1, "a resumed run must keep its id"
    first, second = (wandb_history(file) for file in files)
    expected = expected_history(run)
    assert first.keys() == {20, 25} and second.keys() == {40, 50}
    assert expected[20].keys() == {"train/loss", "inner_steps_per_s", "diverged", "cpu_s"}
    assert expected[25].keys() == {"valid/meta_loss", "valid/sum_loss", "valid/final_loss"}
    assert first | second == expected

    started = next(r.run for r in wandb_records(files[0]) if r.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert started.display_name == run.path.name and started.project == "l2o"
    assert config["task"]["name"] == "quadratic" and config["outer_steps"] == 50


def test_a_trained_run_leaves_its_checkpoint_as_an_artifact_and_says_how_to_upload(run, nobody, capsys):
    wandb = pytest.importorskip("wandb")
    train(run, "offline")
    wandb.teardown()
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    best = run.path / "checkpoints/best"
    expected = {path.name: path.read_bytes() for path in best.iterdir()}
    assert expected.keys() == {"rule.json", "rule.safetensors"}
    assert wandb_artifacts(file, "model") == {"my-run--really---1": expected}
    lines = [line for line in capsys.readouterr().err.splitlines() if "Weights & Biases" in line]
    assert lines == [f"Weights & Biases logged offline; to upload: wandb sync {shlex.quote(str(file.parent))}"]


def test_a_run_without_a_checkpoint_leaves_no_artifact(run, nobody):
    wandb = pytest.importorskip("wandb")
    progress = Progress(run, "offline")
    progress.outer_step(1, 0.5, 20, 0)
    progress.close()
    wandb.teardown()
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    assert wandb_artifacts(file, "model") == {}


def test_two_runs_that_had_the_same_directory_get_different_ids(tmp_path, nobody):
    pytest.importorskip("wandb")
    ids = set()
    for seed in (0, 1):
        run = RunDirectory.create(tmp_path / "run", dataclasses.replace(TINY, seed=seed))
        environment = json.loads((run.path / "env.json").read_text())
        (run.path / "env.json").write_text(json.dumps(environment | {"time": f"2026-01-0{seed + 1}T00:00:00"}))
        tracked = start_wandb(run, "offline")
        ids.add(tracked.id)
        tracked.finish()
        (run.path / "config.json").unlink()
    assert len(ids) == 2


def test_wandb_starts_with_the_first_outer_step_so_that_a_failed_start_leaves_nothing(run, nobody):
    pytest.importorskip("wandb")
    progress = Progress(run, "offline")
    assert progress.wandb is None and not (run.path / "wandb").exists()
    progress.outer_step(1, 0.5, 20, 0)
    assert (run.path / "wandb").exists()
    progress.close()


@pytest.mark.parametrize(("mode", "variable"), [("off", None), ("auto", "disabled")])
def test_wandb_can_be_switched_off(mode, variable, run, nobody, monkeypatch):
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    train(run, mode)
    assert start_wandb(run, mode) is None
    assert not (run.path / "wandb").exists()


def test_training_works_without_wandb_and_online_asks_to_install_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # `import wandb` raises ImportError
    train(run, "auto")
    assert metrics(run)[-1]["outer_step"] == 50
    assert not (run.path / "wandb").exists()
    with pytest.raises(ValueError, match=r"--wandb online needs wandb: pip install 'l2o\[train\]'"):
        Progress(run, "online")


def test_online_without_a_login_is_an_error_that_names_the_command(run, nobody):
    pytest.importorskip("wandb")
    with pytest.raises(ValueError, match="--wandb online needs a login: run `wandb login` once"):
        start_wandb(run, "online")


def test_an_unreachable_wandb_server_does_not_stop_a_training(run, nobody):
    pytest.importorskip("wandb")
    script = f"""
from pathlib import Path
from meta_train.run_directory import RunDirectory, last_logged
from meta_train.tracking import start_wandb
run = RunDirectory.open(Path({str(run.path)!r}))
start_wandb(run, "auto").finish()
"""
    # Port 9 (discard) of this machine answers nobody; in a process of its own, because wandb keeps a login.
    environment = os.environ | {
        "WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "Weights & Biases goes on offline: " in result.stderr
    assert len(list(run.path.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert result.returncode == 0
