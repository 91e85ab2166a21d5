"""Training from Python: any module is one call away, and the same call goes on with an interrupted run."""

import threading

import pytest
import torch
from torch import nn

import l2o
from l2o.rules import LSTMConfig
from meta_train.api import train
from meta_train.cli import main
from meta_train.trainer import Trainer
from tasks import ModuleTask, Quadratic

OPTIONS = {
    "rule": LSTMConfig(hidden_size=4), "horizon": 10, "truncation": 5, "n_tasks": 3, "outer_steps": 12,
    "valid_tasks": 4, "validate_every": 5, "checkpoint_every": 4, "wandb": "off",
}  # fmt: skip


@pytest.fixture
def task() -> ModuleTask:
    inputs = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    data = inputs, inputs.sum(1, keepdim=True)
    return ModuleTask(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), nn.functional.mse_loss, data, batch_size=16
    )


def weights(path) -> list[torch.Tensor]:
    return list(l2o.load_rule(str(path / "checkpoints/last")).parameters())


def interrupt(monkeypatch, outer_step):
    """Ask for a stop after an outer step, as a signal does."""
    original = Trainer._make_outer_step

    def stopping(self):
        original(self)
        self.stop_requested = self.outer_step == outer_step

    monkeypatch.setattr(Trainer, "_make_outer_step", stopping)


def test_a_module_trains_and_gives_a_rule_that_optimizes_it(task, tmp_path, capsys):
    rule = train(task, tmp_path / "run", **OPTIONS)
    assert capsys.readouterr().out == ""
    saved = l2o.load_rule(str(tmp_path / "run"))
    assert all(torch.equal(p, q) for p, q in zip(rule.parameters(), saved.parameters(), strict=True))
    model = nn.Linear(3, 1)
    optimizer = l2o.load(str(tmp_path / "run"), model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()


def test_the_same_call_goes_on_with_an_interrupted_run_bit_for_bit(task, tmp_path, monkeypatch):
    train(task, tmp_path / "whole", **OPTIONS)
    with monkeypatch.context() as patch:
        interrupt(patch, 7)
        with pytest.raises(KeyboardInterrupt, match="continue with: the same call of meta_train.api.train"):
            train(task, tmp_path / "pieces", **OPTIONS)
    train(task, tmp_path / "pieces", **OPTIONS)
    pairs = zip(weights(tmp_path / "whole"), weights(tmp_path / "pieces"), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_another_configuration_in_the_same_directory_is_refused(task, tmp_path):
    train(task, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"another configuration \(outer_steps 12 instead of 13\)"):
        train(task, tmp_path, **OPTIONS | {"outer_steps": 13})
    with pytest.raises(ValueError, match="are a tasks.module.ModuleTask, not a tasks.quadratic.Quadratic"):
        train(Quadratic(), tmp_path, **OPTIONS)


def test_the_command_line_cannot_resume_what_it_has_no_tasks_for(task, tmp_path, capsys):
    train(task, tmp_path, **OPTIONS)
    with pytest.raises(SystemExit) as caught:
        main(["resume", str(tmp_path)])
    assert caught.value.code == 2
    assert "made in Python: continue it there, with meta_train.api.train" in capsys.readouterr().err


def test_options_are_checked_before_anything_is_written(task, tmp_path):
    with pytest.raises(ValueError, match="truncation"):
        train(task, tmp_path / "run", horizon=5, truncation=20)
    with pytest.raises(TypeError, match="no_such_option"):
        train(task, tmp_path / "run", no_such_option=1)
    assert not (tmp_path / "run").exists()


def test_it_also_runs_outside_of_the_main_thread_which_alone_may_handle_signals(task, tmp_path):
    thread = threading.Thread(target=train, args=(task, tmp_path), kwargs=OPTIONS)
    thread.start()
    thread.join()
    assert len(weights(tmp_path)) > 0
