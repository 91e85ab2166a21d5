"""Model cards say what the files say, and the shipped ones are up to date."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import torch

from l2o import CheckpointError, available, load_rule, save_rule
from l2o.checkpoint import find, read_card
from l2o.rules import SGD, AdamConfig, CoordinatewiseLSTM, LSTMConfig, MomentumConfig
from l2o.rules.sobolev import GradientRule
from meta_train.commands import parse
from meta_train.config import PRESETS
from meta_train.config_json import to_json
from meta_train.estimators import MetaLoss
from meta_train.lengths import Lengths
from meta_train.model_card import card_text, write_card
from meta_train.training_command import training_command
from tasks import MLP, Quadratic

RESULTS = (Path(__file__).parents[2] / "results",)
DIGITS = PRESETS["digits"]
HEADER = "setting,method,kind,seeds,sum_loss,sum_loss_sd,final_loss,diverged,best_classic,wins\n"


@pytest.fixture
def checkpoint(tmp_path):
    """A small LSTM's checkpoint with a record of its training."""
    training = {"outer_step": 300, "config": to_json(dataclasses.replace(DIGITS, horizon=50))}
    rule = CoordinatewiseLSTM(LSTMConfig(hidden_size=3), torch.Generator().manual_seed(0))
    return save_rule(rule, tmp_path / "mine", training=training, results={"outer_valid_sum_loss": 12.3456})


@pytest.fixture
def results(tmp_path):
    """Benchmarks in which the checkpoint won once and lost twice."""
    rows = {"wide": ("20", "0.75", 0, "40"), "deep": ("50", "0.25", 0, "40"), "odd": ("nan", "0", 3, "40")}
    lines = [
        f"{setting},mine,learned,8,{own},1,0.1,{diverged},Adam,{wins}\n{setting},Adam,classic,8,{best},1,0.2,0,Adam,0\n"
        for setting, (own, wins, diverged, best) in rows.items()
    ]
    for name, text in {"digits": HEADER + "".join(lines), "speed": "workload,threads\nquadratic,1\n"}.items():
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "summary.csv").write_text(text)
    return tmp_path / "results"


# ---------------------------------------------------------------- cards


@pytest.mark.parametrize("name", available())
def test_card_of_a_shipped_checkpoint_is_what_l2o_card_writes_now(name, monkeypatch):
    monkeypatch.chdir(RESULTS[0].parent)
    written = (find(name) / "README.md").read_text()
    assert written == card_text(name, (Path("results"),)), f"run: l2o card {name}"
    assert "`l2o train " in written or "`l2o search " in written
    assert ("bytes per parameter" in written) == isinstance(load_rule(name), GradientRule)


def test_card_tells_training_size_and_validation(checkpoint):
    text = card_text(checkpoint, ())
    for words in (
        "# mine\n",
        f'l2o.load("{checkpoint}", model.parameters())',
        "| rule | `lstm`: hidden_size 3, layers 2, ",
        "| state | 48 bytes per parameter (Adam: 8), 24 with",  # 2 states of 2 layers of 3 floats
        "| trained on | `MLP(dataset='digits', ",
        "| horizon | 50 inner steps, 20 at most",
        "| chosen | after outer step 300 of 800 |",
        "| command | `l2o train digits --horizon 50` |",
        "outer_valid_sum_loss 12.35",
        "no benchmark that is recorded here",
        "It was trained to make 50 steps",
    ):
        assert words in text


def test_card_shows_wins_and_losses_of_its_benchmarks(checkpoint, results):
    text = card_text(checkpoint, (results,))
    folder = results / "digits"
    assert f"| `{folder}` | wide | 8 | 20 | Adam 40 | -50% | 75% of the problems |" in text
    assert "**It loses** on *deep*: +25% against Adam." in text
    assert "**It loses** on *odd*" in text and "**It diverged** on 3 of 8 problems of *odd*." in text
    assert "It loses** on *wide*" not in text
    assert card_text(checkpoint, (folder,)).count("| 8 |") == text.count("| 8 |") == 3


def test_benchmarks_inside_the_run_directory_are_found(checkpoint, results):
    (results / "digits").rename(checkpoint / "benchmark")
    assert f"| `{checkpoint / 'benchmark'}` | wide | 8 | 20 |" in card_text(checkpoint, ())


def test_card_tells_how_far_zero_gradients_move_a_parameter(checkpoint, tmp_path):
    rule = load_rule(checkpoint)
    state, position = rule.init_coordinates(torch.zeros(1)), torch.zeros(1)
    for step in range(100):
        update, state = rule.update(torch.zeros(1), state, torch.tensor(step))
        position = position + update
    assert f"moves by {abs(position.item()):.2g} in 100 steps" in card_text(checkpoint, ())
    assert "gradient is zero" not in card_text(save_rule(SGD(), tmp_path / "sgd"), ())


def test_notes_are_kept_until_others_come(checkpoint):
    before = load_rule(checkpoint).state_dict()
    for notes, found in (
        (["First.", "Second – é."], "- First.\n- Second – é."),
        ([], "- First."),
        (["Third."], "- Third."),
    ):
        path = write_card(checkpoint, (), notes)
        assert found in path.read_text()
    assert "First" not in path.read_text() and read_card(checkpoint)["notes"] == ["Third."]
    assert sorted(file.name for file in checkpoint.iterdir()) == ["README.md", "rule.json", "rule.safetensors"]
    assert all(torch.equal(before[name], value) for name, value in load_rule(checkpoint).state_dict().items())


def test_card_for_the_hub_starts_with_metadata_and_loads_from_there(checkpoint):
    text = card_text(checkpoint, (), "ann/digits")
    assert (
        text.startswith("---\nlibrary_name: l2o\n") and 'l2o.load("hf://ann/digits", ' in text and "# digits\n" in text
    )


def test_card_of_a_checkpoint_with_nothing_but_its_rule(tmp_path):
    text = card_text(save_rule(SGD(), tmp_path / "sgd", training={"config": {"task": "unknown"}}), ())
    assert "| rule | `sgd`: lr 0.01 |" in text and "command" not in text


def test_what_is_no_checkpoint_gets_no_card(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        write_card(tmp_path / "nothing", ())
    (tmp_path / "rule.json").write_text(json.dumps({"rule": "sgd"}))
    with pytest.raises(CheckpointError, match='lacks "rule"'):
        write_card(tmp_path, ())
    assert not (tmp_path / "README.md").exists()


# ---------------------------------------------------------------- the command of a configuration

CONFIGS = {
    "preset": DIGITS,
    "task": dataclasses.replace(DIGITS, task=MLP("digits", hidden=(20, 40), activation="relu"), n_tasks=3),
    "nested": dataclasses.replace(DIGITS, meta_loss=MetaLoss("linear"), lengths=Lengths("growing", min_horizon=10)),
    "none": dataclasses.replace(DIGITS, clip=None, start_from="runs/a b"),
    "rule options": dataclasses.replace(DIGITS, rule=LSTMConfig(hidden_size=4, p=None, forget_bias=1.0)),
    "rule": dataclasses.replace(DIGITS, rule=AdamConfig(lr=0.5)),
    "rule with a flag": dataclasses.replace(DIGITS, rule=MomentumConfig(nesterov=True)),
    "other task": dataclasses.replace(PRESETS["quadratic"], task=Quadratic(dim=3), estimator="pes", outer_lr=1e-5),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_command_asks_for_the_configuration_that_it_was_made_from(name):
    command = training_command(CONFIGS[name])
    asked = parse(shlex.split(command)[1:])
    assert CONFIGS[name] in (*asked.args, *asked.keywords.values())


def test_command_is_as_short_as_the_presets_allow():
    assert [training_command(PRESETS[name]) for name in PRESETS] == [f"l2o train {name}" for name in PRESETS]
    assert training_command(CONFIGS["none"]) == "l2o train digits --clip None --start-from 'runs/a b'"


def test_tasks_made_in_python_have_no_command(checkpoint):
    class Mine(Quadratic):
        pass

    assert training_command(dataclasses.replace(DIGITS, task=Mine())) is None
