"""Gains of an LSTM: the same as the LSTM that has taken them up, their gradients, and what a run makes of them."""

import dataclasses
import shutil

import pytest
import torch

from l2o.checkpoint import load_rule, save_rule
from l2o.rule import CoordinatewiseRule
from l2o.rules import AdamConfig, LSTMConfig
from l2o.rules.lstm import CoordinatewiseLSTM
from meta_train.config import TrainConfig
from meta_train.lengths import Lengths
from meta_train.lstm_gains import LSTMGains
from meta_train.run_directory import RunDirectory
from meta_train.tracking import Progress
from meta_train.trainer import Trainer
from tasks import Quadratic

CONFIGS = [
    LSTMConfig(hidden_size=5, p=10.0),
    LSTMConfig(1, 1),
    LSTMConfig(hidden_size=4, layers=1, p=None),
    LSTMConfig(3, 3, forget_bias=1),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(config: LSTMConfig) -> tuple[CoordinatewiseLSTM, LSTMGains]:
    """Return an LSTM in float64 and gains on it that are not zero."""
    rule = CoordinatewiseLSTM(config, seeded()).double()
    gains = LSTMGains(rule)
    with torch.no_grad():
        for number, parameter in enumerate(gains.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=seeded(number), dtype=torch.float64))
    return rule, gains


def steps(rule: CoordinatewiseRule, count: int = 4) -> torch.Tensor:
    """Return the updates of some steps on random gradients, shape (count, 7)."""
    grads = torch.randn(count, 7, generator=seeded(9), dtype=torch.float64)
    state, found = rule.init_coordinates(grads[0]), []
    for t, grad in enumerate(grads):
        updates, state = rule.update(grad, state, torch.tensor(t))
        found.append(updates)
    return torch.stack(found)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gains_of_zero_are_the_lstm_itself(config):
    rule, _ = moved(config)
    assert torch.equal(steps(LSTMGains(rule)), steps(rule))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_merged_lstm_makes_the_same_steps_which_are_not_those_of_the_first(config):
    rule, gains = moved(config)
    assert type(gains.merged()) is CoordinatewiseLSTM
    torch.testing.assert_close(steps(gains), steps(gains.merged()), rtol=0, atol=0)
    assert (steps(gains) - steps(rule)).abs().max() > 0.1 * steps(rule).abs().max()


def test_each_kind_of_gain_does_to_the_weights_what_its_name_says():
    rule, _ = moved(CONFIGS[0])
    gains = LSTMGains(rule)
    with torch.no_grad():
        gains.log_gates[1, 2], gains.shifts[0, 3], gains.log_inputs[1] = 0.5, 0.25, -1.0
        gains.log_recurrent[1], gains.log_output[0], gains.output_shift[0] = 0.125, 2.0, 3.0
    got, size = gains.merged(), 5
    expected = [weight.detach().clone() for weight in rule.weights]
    expected[0][:, 1] *= torch.tensor(-1.0).double().exp()
    expected[1][2 * size : 3 * size] *= torch.tensor(0.5).double().exp()
    expected[1][:, size:] *= torch.tensor(0.125).double().exp()
    for weight, other in zip(got.weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), other)
    bias = rule.biases[0].detach().clone()
    bias[3 * size :] += 0.25
    torch.testing.assert_close(got.biases[0].detach(), bias)
    assert torch.equal(got.biases[1], rule.biases[1])
    factor = torch.tensor(2.0).double().exp()
    torch.testing.assert_close(got.output_weight.detach(), factor * rule.output_weight.detach())
    shift = rule.output_bias + 3 * 0.1 * rule.output_weight.std()
    torch.testing.assert_close(got.output_bias.detach(), (factor * shift).detach())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradient_of_a_sequence_is_that_of_autograd_through_its_steps(config):
    _, gains = moved(config)
    assert len(dict(gains.named_parameters())) == 6
    grads, cotangents = torch.randn(2, 4, 7, generator=seeded(3), dtype=torch.float64)
    state = gains.init_coordinates(grads[0])
    found = gains.update_vjp(grads, cotangents, state, torch.tensor(0))
    total, step = torch.zeros((), dtype=torch.float64), torch.tensor(0)
    for grad, cotangent in zip(grads, cotangents, strict=True):
        updates, state = gains.update(grad, state, step)
        total, step = total + (cotangent * updates).sum(), step + 1
    expected = torch.autograd.grad(total, list(gains.parameters()))
    for name, other in zip(dict(gains.named_parameters()), expected, strict=True):
        torch.testing.assert_close(found[name], other, rtol=1e-10, atol=1e-12)


def run(path, config: TrainConfig, stop_at: int | None = None) -> Trainer:
    fresh = not (path / "config.json").exists()
    directory = RunDirectory.create(path, config) if fresh else RunDirectory.open(path)
    trainer = Trainer(directory, Progress(directory, "off"))
    if stop_at is None:
        trainer.train()
        return trainer
    while trainer.outer_step < stop_at:
        trainer._make_outer_step()
    trainer.save()
    return trainer


@pytest.mark.parametrize("options", [{"estimator": "pes", "sigma": 0.05}, {}, {"average": 0.5}], ids=str)
def test_a_run_keeps_a_plain_lstm_moved_along_its_gains_alone_and_resumes_exactly(options, tmp_path):
    first = CoordinatewiseLSTM(LSTMConfig(hidden_size=4, p=None), seeded())
    save_rule(first, tmp_path / "first")
    config = TrainConfig(
        Quadratic(dim=4), first.config, learn="gains", start_from=str(tmp_path / "first"),
        horizon=10, truncation=10, n_tasks=4, outer_steps=6, validate_every=3, valid_tasks=8, **options,
    )  # fmt: skip
    whole = run(tmp_path / "whole", config)
    run(tmp_path / "pieces", config, stop_at=2)
    run(tmp_path / "pieces", config)
    last = load_rule(tmp_path / "whole" / "checkpoints" / "last")
    assert type(last) is CoordinatewiseLSTM and whole.outer_step == 6
    for name, weight in load_rule(tmp_path / "pieces" / "checkpoints" / "last").named_parameters():
        assert torch.equal(weight, dict(last.named_parameters())[name]), name
    for weight, before in zip(last.weights, first.weights, strict=True):
        ratio = (weight / before).detach().unflatten(0, (4, -1))
        assert (ratio - 1).abs().max() > 1e-4
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=0)  # one factor for a gate


@pytest.mark.parametrize(("layers", "p", "count"), [(2, 10.0, 22), (1, None, 12), (3, 10.0, 31)])
def test_gains_are_as_many_as_said(layers, p, count):
    gains = LSTMGains(CoordinatewiseLSTM(LSTMConfig(hidden_size=6, layers=layers, p=p), seeded()))
    assert sum(parameter.numel() for parameter in gains.parameters()) == count
    assert gains.merged().weights[0].shape == (24, 6 + (1 if p is None else 2))


@pytest.mark.parametrize("learn", ["weights", "gains"])
def test_a_run_resumes_without_the_rule_that_it_started_from(learn, tmp_path):
    first = CoordinatewiseLSTM(LSTMConfig(hidden_size=4, p=None), seeded())
    save_rule(first, tmp_path / "first")
    config = TrainConfig(
        Quadratic(dim=4), first.config, learn=learn, start_from=str(tmp_path / "first"),
        horizon=10, truncation=10, n_tasks=4, outer_steps=4, valid_tasks=8,
    )  # fmt: skip
    run(tmp_path / "whole", config)
    run(tmp_path / "pieces", config, stop_at=2)
    shutil.rmtree(tmp_path / "first")
    run(tmp_path / "pieces", config)
    last, other = (
        dict(load_rule(tmp_path / name / "checkpoints/last").named_parameters()) for name in ("whole", "pieces")
    )
    assert not [name for name, weight in last.items() if not torch.equal(weight, other[name])]


def test_a_run_that_spoils_its_start_keeps_the_start_as_its_best(tmp_path):
    first = CoordinatewiseLSTM(LSTMConfig(hidden_size=4, p=None), seeded())
    save_rule(first, tmp_path / "first")
    config = TrainConfig(
        Quadratic(dim=4), first.config, start_from=str(tmp_path / "first"), clip=None,
        horizon=10, truncation=10, n_tasks=2, outer_steps=2, outer_lr=50.0, validate_every=1, valid_tasks=8,
    )  # fmt: skip
    run(tmp_path / "run", config)
    for name, weight in load_rule(tmp_path / "run").named_parameters():
        assert torch.equal(weight, dict(first.named_parameters())[name]), name


def test_other_rules_and_names_are_refused():
    with pytest.raises(ValueError, match="gains are those of rule:lstm, got AdamConfig; use --learn weights"):
        TrainConfig(Quadratic(), AdamConfig(), learn="gains")
    with pytest.raises(ValueError, match="gains refine an LSTM that was trained before; say which with --start-from"):
        TrainConfig(Quadratic(), learn="gains")
    for options in ({"matrix_lr": 0.1}, {"lengths": Lengths("layerwise", layer_lr=0.5)}):
        with pytest.raises(ValueError, match="gains are neither matrices nor layers: matrix_lr and layer_lr must be 1"):
            TrainConfig(Quadratic(), learn="gains", start_from="lstm-quadratic", **options)
    with pytest.raises(ValueError, match="learn must be weights or gains, got 'biases'"):
        dataclasses.replace(TrainConfig(Quadratic()), learn="biases")  # pyright: ignore
