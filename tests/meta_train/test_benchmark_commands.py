"""`l2o benchmark`: where it writes, who takes part in the sparse race, and what cards tell of the races."""

import csv
from pathlib import Path

import pytest
import torch

import l2o
from l2o.rules import ALISTA, SGD, ALISTAConfig, FirmALISTA, FirmALISTAConfig
from meta_train import benchmark_commands, recovery_benchmark
from meta_train.commands import parse
from meta_train.config import PRESETS, TrainConfig
from meta_train.config_json import to_json
from meta_train.lasso_card import objective_results
from meta_train.lasso_settings import rule_name
from meta_train.model_card import card_text
from meta_train.recovery_benchmark import run_recovery
from tasks import Lasso


@pytest.mark.parametrize(
    ("arguments", "directory"),
    [
        ((), "results/lasso-objective"),
        (("--checkpoint", "alista"), "runs/benchmark-lasso-objective-"),
        (("--checkpoint", "alista", "--out", "mine"), "mine"),
    ],
    ids=str,
)
def test_a_study_of_other_checkpoints_does_not_overwrite_the_results(arguments, directory, monkeypatch):
    written = []
    study = (lambda sources, out, typed: written.append(str(out)), lambda out: written.append(str(out)) or "tables")
    monkeypatch.setitem(benchmark_commands.STUDIES, "lasso-objective", study)
    parse(["benchmark", "lasso-objective", "--wandb", "off", *arguments])()
    assert len(written) == 2 == sum(out.startswith(directory) for out in written)


# ---------------------------------------------------------------- who takes part in sparse-recovery


@pytest.fixture
def checkpoint(tmp_path):
    """Save an ALISTA with the record of a training, and return its path."""

    def save(name: str, config: TrainConfig | None) -> str:
        training = {} if config is None else {"outer_step": 3, "config": to_json(config)}
        return str(l2o.save_rule(ALISTA(ALISTAConfig()), tmp_path / name, training=training))

    return save


def of(task: Lasso) -> TrainConfig:
    return TrainConfig(task, ALISTAConfig())


def test_rules_of_other_matrices_or_noise_are_named_and_left_out(checkpoint, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(recovery_benchmark, "shipped", lambda: [])
    sources = {
        checkpoint("fits", PRESETS["sparse-snr20"]): None,
        checkpoint("fixed", of(Lasso())): "the race is on the published matrix, and it was trained on dictionary fixed",
        checkpoint("bare", None): "it was trained on nothing that its card tells",
        checkpoint("noisy", of(Lasso(dictionary="published", snr_db=30.0))): "at SNR 20 dB, and it was trained at 30.0",
        str(l2o.save_rule(SGD(), tmp_path / "sgd")): "SGD does not step on the structure of a problem",
    }
    ((setting, method),) = recovery_benchmark._entries(list(sources))
    assert (setting, method.name) == ("SNR 20 dB", "fits")
    said = capsys.readouterr().err.splitlines()
    left_out = {source: words for source, words in sources.items() if words}
    assert len(said) == len(left_out)
    for line, (source, words) in zip(said, left_out.items(), strict=True):
        assert line.startswith(f"l2o: {source} takes no part: ") and words in line


def test_a_race_in_which_no_checkpoint_can_take_part_is_refused_before_anything_is_written(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="none of the checkpoints can take part; train one with l2o train sparse"):
        run_recovery([checkpoint("fixed", of(Lasso()))], tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- cards of the objective's race

HEADER = ("setting", "method", "ms_mean_1e-04", "products_mean_1e-04", "ms_mean_1e-06", "products_mean_1e-06")
ROWS = (
    ("FISTA-restart", "0.5", "50", "0.75", "80", "1e-9", "0"),
    ("ADMM", "0.25", "20", "", "", "1e-5", "0"),
    ("lstm-lasso", "0.001", "1", "0.002", "2", "1e-9", "300"),  # learned too: no classic
    ("learned", "", "", "", "", "0.0123", "24"),
    ("learned + safeguarded", "0.125", "8", "0.13", "9", "1e-10", "24"),
)


@pytest.fixture
def race(tmp_path):
    """The files of a race on the objective, and the rule that took part in it."""
    rule = FirmALISTA(FirmALISTAConfig(layers=2))
    with torch.no_grad():
        next(rule.parameters()).add_(0.25)
    folder = tmp_path / "results" / "lasso-objective"
    l2o.save_rule(rule, folder / "rules" / rule_name(0.1))
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*HEADER, "final_mean", "parameters"))
        writer.writerows(("λ = 0.1", *row) for row in ROWS)
        writer.writerows(("λ = 0.005", *row) for row in ROWS)
    return folder, rule


def test_a_card_takes_its_numbers_from_the_race_that_the_rule_was_in(race, tmp_path):
    folder, rule = race
    mine = l2o.save_rule(rule, tmp_path / "any-name")
    text = card_text(mine, (tmp_path / "results",))
    for line in (
        f"| `{folder}` | λ = 0.1 | 0.0001 | 0.125 ms (8) | ADMM 0.25 ms (20) | 0.5 ms (50) | 1.2e-02 |",
        f"| `{folder}` | λ = 0.1 | 1e-06 | 0.13 ms (9) | FISTA-restart 0.75 ms (80) | 0.75 ms (80) | 1.2e-02 |",
    ):
        assert line in text
    assert "λ = 0.005" not in text and "in no benchmark" not in text  # it was not the rule of that setting


def test_a_card_of_other_weights_does_not_show_the_race(race, tmp_path):
    folder, rule = race
    with torch.no_grad():
        next(rule.parameters()).add_(1e-6)
    assert objective_results(rule, (folder,)) is None
    assert objective_results(FirmALISTA(FirmALISTAConfig(layers=3)), (folder,)) is None
    assert "in no benchmark" in card_text(l2o.save_rule(rule, tmp_path / "other"), (folder,))


@pytest.mark.parametrize("name", ["lasso-firm-alista", "lasso-firm-alista-0.005"])
def test_the_shipped_rules_are_those_of_the_shipped_results(name):
    text = objective_results(l2o.load_rule(name), (Path(__file__).parents[2] / "results",))
    assert text is not None and text.count("| λ = ") == 2
