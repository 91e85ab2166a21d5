"""Run directories: what is written, what is refused, what a kill may leave behind."""

import errno
import json
import os
import sys
from datetime import datetime

import pytest
import torch
from safetensors.torch import save_file

from meta_train import run_directory
from meta_train.config import TrainConfig
from meta_train.lock import locked
from meta_train.run_directory import RunDirectory, changes_since, describe_environment, made_on
from tasks import Quadratic

CONFIG = TrainConfig(Quadratic(dim=3), seed=7)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", CONFIG)


def test_open_gives_back_the_config_of_create(run):
    assert RunDirectory.open(run.path).config == CONFIG
    assert not list(run.path.glob("*.new"))


def test_create_makes_parents_and_takes_an_existing_empty_directory(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a/b/c", tmp_path / "empty"):
        assert RunDirectory.open(RunDirectory.create(path, CONFIG).path).config == CONFIG


def test_create_refuses_an_existing_run_and_names_the_command_that_continues_it(run):
    before = (run.path / "config.json").read_bytes()
    with pytest.raises(
        FileExistsError, match=f"{run.path} already holds a run; continue it with l2o resume {run.path}"
    ):
        RunDirectory.create(run.path, TrainConfig(Quadratic()))
    assert (run.path / "config.json").read_bytes() == before


@pytest.mark.parametrize("content", [None, "", "{", "[1]", '{"task": {"name": "nonsense"}}', b"\xff\xfe"])
def test_open_refuses_a_directory_without_an_intact_config(run, content):
    config = run.path / "config.json"
    if content is None:
        config.unlink()
    else:
        config.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="not a run directory: config.json|not a training configuration"):
        RunDirectory.open(run.path)


def test_open_refuses_what_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a run directory: config.json cannot be read"):
        RunDirectory.open(tmp_path / "nowhere")


def test_state_comes_back_bit_for_bit(run):
    tensors = {
        "a/x": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).T,  # not contiguous
        "a/step": torch.tensor(5),
        "b/empty": torch.zeros(0, 2),
        "b/bytes": torch.Generator().manual_seed(1).get_state(),
        "c/double": torch.tensor([0.1], dtype=torch.float64),
    }
    counters = {"outer_step": 3, "best": float("inf"), "window": [0.1, float("nan"), 1e300]}
    run.save_state(tensors, counters)
    loaded, found = run.load_state()
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    assert repr(found) == repr(counters)  # repr: nan is not equal to itself
    assert not list(run.path.glob("*.new"))


def test_there_is_no_state_before_the_first_checkpoint(run):
    assert run.load_state() is None


def test_a_damaged_state_is_an_error_that_says_so(run):
    run.save_state({"x": torch.zeros(100)}, {"outer_step": 1})
    path = run.path / "state.safetensors"
    intact = path.read_bytes()
    for damaged in (b"", intact[:4], intact[: len(intact) // 2], intact[:-1], b"\xff" * len(intact), os.urandom(500)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"state.safetensors is damaged \(.*\); start the run again"):
            run.load_state()


def test_a_state_that_cannot_be_read_is_not_called_damaged(run):
    (run.path / "state.safetensors").mkdir()
    with pytest.raises(ValueError, match="state.safetensors cannot be read: Is a directory"):
        run.load_state()


def test_a_state_without_counters_is_an_error(run):
    save_file({"x": torch.zeros(1)}, run.path / "state.safetensors")
    with pytest.raises(ValueError, match="state.safetensors is damaged"):
        run.load_state()
    save_file({"x": torch.zeros(1)}, run.path / "state.safetensors", metadata={"counters": "{"})
    with pytest.raises(ValueError, match="state.safetensors is damaged"):
        run.load_state()


def test_a_write_that_was_cut_short_leaves_the_last_state(run):
    run.save_state({"x": torch.ones(2)}, {"outer_step": 1})
    (run.path / "state.safetensors.new").write_bytes(b"half of a sta")
    (run.path / "config.json.new").write_text("{")
    (run.path / "metrics.jsonl.new").write_text("{")
    again = RunDirectory.open(run.path)
    assert again.load_state()[1] == {"outer_step": 1}
    again.save_state({"x": torch.zeros(2)}, {"outer_step": 2})
    assert again.load_state()[1] == {"outer_step": 2}


def test_a_write_that_fails_leaves_the_last_state_and_no_half_file(run, monkeypatch):
    run.save_state({"x": torch.ones(2)}, {"outer_step": 1})
    before = sorted(run.path.iterdir())

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half of a sta")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_directory, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        run.save_state({"x": torch.zeros(2)}, {"outer_step": 2})
    assert sorted(run.path.iterdir()) == before
    assert run.load_state()[1] == {"outer_step": 1}


def test_a_run_without_a_checkpoint_can_be_discarded_and_made_again(run):
    run.log({"outer_step": 1})
    (run.checkpoints / "last.new").mkdir(parents=True)  # cut short
    with locked(run.path):
        run.discard_unless_checkpointed()
    assert not run.path.exists()
    assert RunDirectory.create(run.path, CONFIG).config == CONFIG


def test_discarding_leaves_the_files_of_others(tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory.create(tmp_path, CONFIG).discard_unless_checkpointed()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "wandb"]


@pytest.mark.parametrize("what", ["state", "best", "last"])
def test_a_run_with_a_checkpoint_is_not_discarded(what, run):
    if what == "state":
        run.save_state({"x": torch.ones(2)}, {"outer_step": 1})
    else:
        (run.checkpoints / what).mkdir(parents=True)
    before = sorted(run.path.rglob("*"))
    run.discard_unless_checkpointed()
    assert sorted(run.path.rglob("*")) == before


def records(run: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_truncating_the_log_drops_later_records_and_a_line_cut_short(run):
    for step in (1, 2, 3, 4):
        run.log({"outer_step": step, "train/loss": step / 10})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('5\n[]\n{"loss": 1}\n\n{"outer_step": 2, "train/lo')
    run.truncate_log(2)
    assert records(run) == [{"outer_step": 1, "train/loss": 0.1}, {"outer_step": 2, "train/loss": 0.2}]
    run.log({"outer_step": 3})
    assert records(run)[-1] == {"outer_step": 3}
    run.truncate_log(0)
    assert records(run) == []


def test_truncating_a_log_that_does_not_exist_makes_none(run):
    run.truncate_log(10)
    assert not (run.path / "metrics.jsonl").exists()


def test_numbers_that_are_not_finite_are_logged_as_null(run):
    run.log({"outer_step": 1, "train/loss": float("nan"), "valid/sum_loss": float("inf"), "skipped": 2})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = (run.path / "metrics.jsonl").read_text()
    values = json.loads(line, parse_constant=refuse)
    assert values == {"outer_step": 1, "train/loss": None, "valid/sum_loss": None, "skipped": 2}


def test_env_json_names_versions_commit_and_machine(run):
    environment = json.loads((run.path / "env.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert {"numpy", "safetensors"} <= environment["packages"].keys()
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["machine"]["cores"] == os.cpu_count()
    assert environment["machine"]["cpu"] and environment["machine"]["system"]
    assert environment["threads"] == torch.get_num_threads()
    assert datetime.fromisoformat(environment["time"]).tzinfo is not None
    assert environment["commit"] is None or len(environment["commit"]) >= 7  # None outside a git checkout


def test_only_what_decides_the_last_bits_counts_as_a_change(run):
    then = run.environment()
    assert changes_since(then) == []
    assert changes_since(then | {"commit": "0", "python": "2.7", "time": "never"}) == []
    then["packages"]["torch"], then["machine"]["cpu"] = "1.0", "abacus"
    now = describe_environment()
    assert changes_since(then | {"threads": 77, "ranks": 8}) == [
        f"torch 1.0 (now {torch.__version__})", f"CPU abacus (now {now['machine']['cpu']})",
        f"threads 77 (now {torch.get_num_threads()})", "ranks 8 (now 1)",
    ]  # fmt: skip


@pytest.mark.parametrize("content", [None, "", "{", "[1]", '{"packages": 3, "machine": null}'])
def test_an_environment_that_cannot_be_read_has_not_changed(content, run):
    path = run.path / "env.json"
    path.unlink() if content is None else path.write_text(content)
    assert changes_since(run.environment()) == []


def test_the_environment_can_be_described_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_environment()["commit"] is None


def test_a_report_says_when_from_which_commit_and_where_it_was_made():
    facts = describe_environment()
    first, second = made_on(facts | {"commit": "1a2b3c4", "threads": 2}).split("\n")
    assert first == f"Made on {facts['time'][:10]} at commit 1a2b3c4 with torch {torch.__version__},"
    assert second == f"{facts['machine']['cpu']}, {facts['machine']['cores']} cores, 2 threads."
    assert made_on(facts | {"threads": 1}).endswith(" 1 thread.")


def test_settings_come_back_and_are_no_part_of_the_config(tmp_path):
    made = RunDirectory.create(tmp_path / "run", CONFIG, {"wandb": "off"})
    assert RunDirectory.open(made.path).settings() == {"wandb": "off"}
    assert RunDirectory.open(made.path).config == CONFIG
    made.discard_unless_checkpointed()
    assert not made.path.exists()


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_run_without_settings_has_none(run, content):
    path = run.path / "settings.json"
    path.unlink() if content is None else path.write_text(content)
    assert run.settings() == {}
