"""Training rules of sparse codes: the losses, layer by layer, and learning rates of their own."""

import dataclasses
import math

import pytest
import torch

from l2o.rules import ALISTA, ALISTAConfig, HyperLISTAConfig, LISTACPConfig
from meta_train.config import PRESETS, TrainConfig
from meta_train.config_json import from_json, to_json
from meta_train.distributed import Silence
from meta_train.estimators import MetaLoss, Truncated
from meta_train.lengths import Lengths
from meta_train.run_directory import RunDirectory
from meta_train.sharding import cut, join, paste
from meta_train.trainer import Trainer
from meta_train.training_command import training_command
from meta_train.unroll import start
from tasks import Lasso
from tasks.unmixing import Unmixing

SMALL = Lasso(rows=20, columns=40, supervision=1.0)
CONFIG = TrainConfig(
    SMALL,
    ALISTAConfig(layers=4),
    meta_loss=MetaLoss("final"),
    horizon=4,
    truncation=4,
    lengths=Lengths("layerwise"),
    n_tasks=16,
    outer_steps=40,
    outer_lr=0.05,
    valid_tasks=32,
)


def trainer_of(config: TrainConfig, path) -> Trainer:
    return Trainer(RunDirectory.create(path, config), Silence())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- losses


def test_supervision_mixes_the_objective_and_half_the_squared_distance(float64):
    tasks, x = SMALL.sample_tasks(3, seeded()), torch.randn(3, 40, generator=seeded(1))
    distance = torch.stack([0.5 * (x[i] - tasks["x_star"][i]).dot(x[i] - tasks["x_star"][i]) for i in range(3)])
    objective = SMALL.problem(tasks).value(x)
    for weight in (0.0, 0.3, 1.0):
        loss = dataclasses.replace(SMALL, supervision=weight).loss({"x": x}, tasks, {})
        torch.testing.assert_close(loss, (1 - weight) * objective + weight * distance)
    without = {"b": tasks["b"]}
    torch.testing.assert_close(dataclasses.replace(SMALL, supervision=0.0).loss({"x": x}, without, {}), objective)


def test_supervision_out_of_range_is_refused():
    with pytest.raises(ValueError, match="supervision is a weight in \\[0, 1\\], got 1.5"):
        Lasso(supervision=1.5)


@pytest.mark.parametrize("supervision", [0.0, 0.4, 1.0])
def test_the_gradient_of_the_training_loss_equals_central_differences(float64, supervision):
    family = dataclasses.replace(SMALL, supervision=supervision)
    rule, loss = ALISTA(ALISTAConfig(layers=3, support_step=0.0)), MetaLoss("final")

    def final_loss() -> torch.Tensor:
        trajectories = start(rule, family, 8, seeded(3))
        return (
            Truncated().estimate(rule, family, trajectories, loss, loss.weights(0, 3, 3), seeded(4)).losses[-1].mean()
        )

    trajectories = start(rule, family, 8, seeded(3))
    grads = Truncated().estimate(rule, family, trajectories, loss, loss.weights(0, 3, 3), seeded(4)).grads
    for name, parameter in rule.named_parameters():
        with torch.no_grad():
            values = []
            for shift in (1e-6, -2e-6, 1e-6):
                parameter += shift
                values.append(final_loss())
        assert grads[name].item() == pytest.approx((values[0] - values[1]).item() / 2e-6, rel=1e-5, abs=1e-7)


def test_training_halves_the_distance(tmp_path):
    trainer = trainer_of(dataclasses.replace(CONFIG, outer_steps=120, validate_every=120), tmp_path / "run")
    trainer._validate()
    before = trainer.best
    trainer.train()
    assert trainer.best < before / 2


# ---------------------------------------------------------------- layer by layer


def test_depth_grows_by_one_layer_in_equal_parts_of_the_first_half():
    lengths = Lengths("layerwise")
    depths = [lengths.draw(4, 4, step / 40, seeded()) for step in range(40)]
    assert depths == [(min(4, 1 + step // 5),) * 2 for step in range(40)]


def test_learning_rates_are_the_newest_layers_then_all_alike():
    lengths = Lengths("layerwise", layer_lr=0.1)
    assert [lengths.lr_factor(layer, 4, 0.3) for layer in (0, 1, 2, None)] == [0.1, 0.1, 1.0, 1.0]
    assert [lengths.lr_factor(layer, 4, 0.5) for layer in (0, 1, 2, 3)] == [1.0] * 4
    assert Lengths("layerwise").lr_factor(0, 4, 0.3) == 1.0


def test_layers_move_at_learning_rates_of_their_own_in_the_trainer(tmp_path):
    factor, steps = 0.125, CONFIG.outer_steps
    config = dataclasses.replace(CONFIG, lengths=Lengths("layerwise", layer_lr=factor), clip=None, final_outer_lr=1.0)
    slow, plain = trainer_of(config, tmp_path / "a"), trainer_of(
        dataclasses.replace(config, lengths=Lengths("layerwise")), tmp_path / "b"
    )  # fmt: skip
    for trainer in (slow, plain):
        trainer.outer_step = steps // 4  # three of the four layers are in training, from the same weights
    grads = {name: torch.randn(p.shape, generator=seeded(1)) for name, p in slow.rule.named_parameters()}
    moves = []
    for trainer in (slow, plain):
        before = {name: p.detach().clone() for name, p in trainer.rule.named_parameters()}
        trainer._apply(grads)
        moves.append({name: (p.detach() - before[name]).item() for name, p in trainer.rule.named_parameters()})
    for name, move in moves[1].items():
        layer = int(name[-1])
        assert moves[0][name] == pytest.approx(move * (factor if layer < 2 else 1.0), rel=1e-4)
    scaled = {name: factor * grad for name, grad in grads.items()}  # what does nothing under Adam
    fresh = trainer_of(dataclasses.replace(config, lengths=Lengths("layerwise")), tmp_path / "c")
    before = {name: p.detach().clone() for name, p in fresh.rule.named_parameters()}
    fresh._apply(scaled)
    for name, p in fresh.rule.named_parameters():
        assert (p.detach() - before[name]).item() == pytest.approx(moves[1][name], rel=1e-4)


def test_matrices_move_at_a_learning_rate_of_their_own(tmp_path):
    rule = LISTACPConfig(rows=20, columns=40, layers=4)
    config = dataclasses.replace(CONFIG, rule=rule, matrix_lr=0.1, final_outer_lr=1.0, clip=None)
    trainer = trainer_of(config, tmp_path / "run")
    before = {name: p.detach().clone() for name, p in trainer.rule.named_parameters()}
    trainer._apply({name: torch.ones_like(p) for name, p in trainer.rule.named_parameters()})
    for name, p in trainer.rule.named_parameters():
        expected = 0.05 * (0.1 if p.dim() > 1 else 1.0)  # Adam's first step has the size of the learning rate
        torch.testing.assert_close(before[name] - p.detach(), torch.full_like(p, expected), rtol=1e-3, atol=1e-6)


def test_without_factors_there_is_one_group_as_ever(tmp_path):
    trainer = trainer_of(CONFIG, tmp_path / "run")
    assert len(trainer.adam.param_groups) == 1
    assert len(trainer.adam.param_groups[0]["params"]) == len(list(trainer.rule.parameters()))


@pytest.mark.parametrize("rule", [ALISTAConfig(layers=4), LISTACPConfig(rows=20, columns=40, layers=4)])
def test_a_resumed_run_with_groups_equals_an_uninterrupted_one(tmp_path, rule):
    config = dataclasses.replace(
        CONFIG, rule=rule, lengths=Lengths("layerwise", layer_lr=0.3), matrix_lr=0.5, checkpoint_every=5
    )
    whole = trainer_of(config, tmp_path / "whole")
    whole.train()
    first = trainer_of(config, tmp_path / "parts")
    while first.outer_step < 15:
        first._make_outer_step()
    first.save()
    second = Trainer(first.run, Silence())
    second.train()
    for name, tensor in whole.rule.state_dict().items():
        assert torch.equal(second.rule.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lengths("layerwise", layer_lr=0.0), "layer_lr is a factor in \\(0, 1\\]"),
        (lambda: Lengths("fixed", layer_lr=0.5), "layer_lr goes with schedule layerwise"),
        (lambda: Lengths("layerwise", min_horizon=2), "min_horizon and min_truncation go with"),
        (lambda: dataclasses.replace(CONFIG, matrix_lr=0.0), "matrix_lr must be positive"),
        (lambda: dataclasses.replace(CONFIG, task=Unmixing(), rule=LISTACPConfig()).build_rule(None), "of Lasso tasks"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------- what all tasks share


def test_what_all_tasks_share_stays_whole_when_tasks_are_cut():
    shared, own, living = torch.randn(1, 3, 2), torch.randn(4, 3), torch.tensor([0, 2])
    assert cut(shared, 4, living) is shared and cut(own, 4, living).equal(own[living])
    assert paste(shared, shared + 1, living).equal(shared + 1)
    assert join([shared, shared], [3, 1]).equal(shared)
    assert cut(join([shared, shared], [1, 1]), 2, slice(1, 2)).equal(shared)


def test_a_lost_trajectory_costs_a_model_based_rule_one_task(tmp_path):
    trainer = trainer_of(dataclasses.replace(CONFIG, lengths=Lengths(), truncation=2), tmp_path / "run")
    batch = trainer.batches[0]
    batch.trajectories.tasks["b"][3] = math.nan
    assert batch.estimate(0.0).lost == 1
    batch.settle(True, 0.0)
    assert batch.estimate(0.5).living == 15


# ---------------------------------------------------------------- configurations


@pytest.mark.parametrize("preset", ["sparse", "sparse-snr20"])
def test_presets_survive_json_and_have_a_command(preset):
    config = PRESETS[preset]
    assert from_json(to_json(config)) == config
    assert training_command(config) == f"l2o train {preset}"
    other = dataclasses.replace(config, rule=HyperLISTAConfig(threshold_scale=0.1), matrix_lr=0.5)
    assert from_json(to_json(other)) == other
    assert "rule:hyperlista --rule.threshold-scale 0.1" in str(training_command(other))
