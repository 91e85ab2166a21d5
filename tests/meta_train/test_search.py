"""Random search: finds better weights, resumes bit for bit, and treats its directory as `l2o train` does."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import l2o
from l2o.checkpoint import read_card
from l2o.rules import AdamConfig, HyperLISTAConfig, LSTMConfig
from meta_train import search as search_module
from meta_train import search_commands
from meta_train.config import PRESETS, TrainConfig
from meta_train.estimators import MetaLoss
from meta_train.run_directory import RunDirectory
from meta_train.run_training import TrainingError
from meta_train.search import SearchConfig, search
from meta_train.seeds import derive_seed
from meta_train.unroll import evaluate
from tasks import Lasso, Quadratic

SMALL = Lasso(rows=20, columns=40, supervision=1.0)
SIZE = SMALL.columns / 500
CONFIG = TrainConfig(
    SMALL,
    HyperLISTAConfig(4, threshold_scale=0.5 * SIZE, momentum_scale=0.001 * SIZE, support_scale=1.0 / SIZE),
    meta_loss=MetaLoss("final"),
    horizon=4,
    truncation=4,
    n_tasks=1,
    valid_tasks=32,
)
FEW = SearchConfig(rounds=4, candidates=4, elite=2)
TINY = ("--task.dim", "3", "--horizon", "5", "--truncation", "5", "--valid-tasks", "4", "--threads", "1")
ROUNDS = ("--search.rounds", "2", "--search.candidates", "2", "--search.elite", "2")


def interrupt_after(count: int, monkeypatch) -> None:
    """Let the candidates up to a number be scored, and interrupt at the next."""
    score, scored = search_module._score, []

    def counting(*arguments):
        scored.append(1)
        if len(scored) > count:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(search_module, "_score", counting)


def test_search_finds_better_weights_and_saves_them(tmp_path):
    no_move = SearchConfig(rounds=1, candidates=2, elite=2, spread=1e-6)
    start_score = search(RunDirectory.create(tmp_path / "a", CONFIG), no_move, "a")
    options = SearchConfig(rounds=4, candidates=8, spread=2.0)
    least = search(RunDirectory.create(tmp_path / "b", CONFIG), options, "l2o search …")
    assert least < start_score / 2
    found = l2o.load_rule(tmp_path / "b")
    tasks = SMALL.sample_tasks(200, torch.Generator().manual_seed(9))
    error = (l2o.solve(found, SMALL.problem(tasks), steps=4).x - tasks["x_star"]).square().sum(-1).mean() / 2
    assert error < start_score / 1.5
    card = read_card(tmp_path / "b" / "checkpoints" / "best")
    assert card["training"]["command"] == "l2o search …" and card["results"]["meta_loss"] == pytest.approx(least)
    assert card["training"]["search"]["rounds"] == 4


@pytest.mark.parametrize("measure", ["loss", "log"])
def test_what_is_searched_for_is_the_meta_loss_with_its_measure(measure, tmp_path):
    config = dataclasses.replace(CONFIG, meta_loss=MetaLoss("mean", measure=measure))
    rule = search_module.searchable_rule(config, torch.Generator().manual_seed(config.seed))
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "search"))
    losses = evaluate(rule, SMALL, config.valid_tasks, config.horizon + 1, "outer_valid", generator)[1:].double()
    expected = float((losses.log() if measure == "log" else losses).mean())
    no_move = SearchConfig(rounds=1, candidates=2, elite=2, spread=1e-9)
    found = search(RunDirectory.create(tmp_path, config), no_move, "")
    assert found == pytest.approx(expected, rel=1e-3)  # float32 weights move by rounding


@pytest.mark.parametrize("candidates", [16 + 2, 16 + 4 + 4 + 1])
def test_an_interrupted_search_ends_with_the_weights_of_an_uninterrupted_one(candidates, tmp_path, monkeypatch):
    whole = search(RunDirectory.create(tmp_path / "whole", CONFIG), FEW, "")
    parts = RunDirectory.create(tmp_path / "parts", CONFIG)
    with monkeypatch.context() as patch:
        interrupt_after(candidates, patch)
        with pytest.raises(KeyboardInterrupt, match=f"continue with: l2o resume {parts.path}"):
            search(parts, FEW, "")
    made = len((parts.path / "metrics.jsonl").read_text().splitlines())
    assert 0 < made < FEW.rounds
    assert search(RunDirectory.open(parts.path), FEW, "") == whole
    files = [tmp_path / name / "checkpoints/best/rule.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    states = [RunDirectory.open(tmp_path / name).load_state()[0] for name in ("whole", "parts")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert len((parts.path / "metrics.jsonl").read_text().splitlines()) == FEW.rounds


def test_a_finished_search_that_is_resumed_says_the_same(tmp_path):
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    least = search(run, FEW, "")
    assert search(run, FEW, "") == least


def test_a_state_of_other_weights_is_refused(tmp_path):
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    run.save_state({name: torch.zeros(7) for name in ("mean", "deviations", "best", "least")}, {"round": 1})
    with pytest.raises(ValueError, match="state.safetensors is not that of this search .*7 weights instead of 3"):
        search(run, FEW, "")


def test_search_is_for_few_weights(tmp_path):
    config = dataclasses.replace(CONFIG, rule=LSTMConfig(hidden_size=3), task=Quadratic())
    with pytest.raises(ValueError, match=r"random search is for 1 to 20 weights, .*; choose a rule with few, such as"):
        search(RunDirectory.create(tmp_path, config), SearchConfig(), "")
    gains = dataclasses.replace(CONFIG, rule=LSTMConfig(1, 1), start_from="lstm-quadratic", learn="gains")
    with pytest.raises(ValueError, match="gains are learned by l2o train"):
        search_module.searchable_rule(gains, torch.Generator())
    for options, message in (({"rounds": 0}, "must be positive"), ({"elite": 1}, "elite must be from 2")):
        with pytest.raises(ValueError, match=message):
            SearchConfig(**options)


def test_a_search_in_which_every_candidate_diverges_says_that_nothing_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr(search_module, "_score", lambda *_: torch.tensor(math.inf).double())
    run = RunDirectory.create(tmp_path, CONFIG)
    with pytest.raises(TrainingError, match="nothing was found: all candidates diverged on some of the 32 problems"):
        search(run, FEW, "")
    assert not (tmp_path / "checkpoints").exists()


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_starts_from_a_rule_that_can_be_searched(preset):
    default = search_commands.search_default(PRESETS[preset])
    rule = search_module.searchable_rule(default, torch.Generator())
    assert default.task == PRESETS[preset].task and type(default.rule) in (HyperLISTAConfig, AdamConfig)
    assert 0 < sum(p.numel() for p in rule.parameters()) < 10


def test_the_command_names_what_differs_from_the_default_of_a_search():
    config = dataclasses.replace(PRESETS["quadratic"], rule=LSTMConfig(1, 1, p=None))
    found = search_commands.search_command("quadratic", config, SearchConfig())
    assert found == "l2o search quadratic rule:lstm --rule.hidden-size 1 --rule.layers 1 --rule.p None"


def test_the_command_keeps_what_was_typed_and_resume_goes_on(l2o, tmp_path, monkeypatch):
    status, output, _ = l2o("search", "quadratic", *TINY, *ROUNDS, "--out", "whole")
    assert status == 0 and "checkpoint: whole/checkpoints/best" in output
    run = RunDirectory.open(tmp_path / "whole")
    assert run.config.rule == AdamConfig() and run.config.task == dataclasses.replace(PRESETS["quadratic"].task, dim=3)
    card = read_card(tmp_path / "whole/checkpoints/best")
    assert card["training"]["command"] == (
        "l2o search quadratic --task.dim 3 --horizon 5 --truncation 5 --valid-tasks 4 " + " ".join(ROUNDS)
    )
    with monkeypatch.context() as patch:
        interrupt_after(8 + 2, patch)  # in the second round
        status, _, errors = l2o("search", "quadratic", *TINY, *ROUNDS, "--out", "parts")
    assert status == 130 and errors.endswith("l2o: stopped after a whole round; continue with: l2o resume parts\n")
    assert l2o("resume", "parts")[:2] == (0, output.replace("whole", "parts"))
    files = [tmp_path / name / "checkpoints/best/rule.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_search_interrupted_in_its_first_round_leaves_nothing_behind(l2o, tmp_path, monkeypatch):
    interrupt_after(3, monkeypatch)
    assert l2o("search", "quadratic", *TINY, "--out", "run") == (130, "", "l2o: interrupted\n")
    assert not (tmp_path / "run").exists()


def test_a_directory_that_holds_a_run_is_refused_and_left_alone(l2o, tmp_path):
    l2o("search", "quadratic", *TINY, *ROUNDS, "--out", "run")
    before = (tmp_path / "run/state.safetensors").read_bytes()
    status, _, errors = l2o("search", "quadratic", *TINY, "--seed", "1", "--out", "run")
    assert (status, errors) == (
        2, "l2o: run already holds a run; continue it with l2o resume run, or choose another --out\n"
    )  # fmt: skip
    assert (tmp_path / "run/state.safetensors").read_bytes() == before


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nothing/run"])
def test_a_directory_that_cannot_be_written_is_said_before_the_search(out, l2o, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    interrupt_after(0, monkeypatch)
    status, output, errors = l2o("search", "quadratic", *TINY, "--out", out)
    assert (status, output, errors.count("\n")) == (2, "", 1) and out.split("/")[0] in errors


def test_a_rule_with_many_weights_is_refused_before_there_is_a_directory(l2o, tmp_path):
    status, _, errors = l2o("search", "quadratic", *TINY, "--out", "run", "rule:lstm")
    assert status == 2 and errors.startswith("l2o: random search is for 1 to 20 weights, CoordinatewiseLSTM has")
    assert not (tmp_path / "run").exists()


def test_a_search_on_a_matrix_of_ones_own_notes_its_checksum(l2o, tmp_path):
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(12, 20)))
    typed = ("--task.matrix", "mine.npy", "--horizon", "4", "--truncation", "4", "--valid-tasks", "8", "--threads", "1")
    assert l2o("search", "sparse", *typed, *ROUNDS, "--out", "run")[0] == 0
    task = read_card(tmp_path / "run/checkpoints/best")["training"]["config"]["task"]
    assert (task["rows"], task["columns"], task["matrix"]) == (12, 20, "mine.npy") and len(task["matrix_sha256"]) == 64
