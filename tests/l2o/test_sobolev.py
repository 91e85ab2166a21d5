"""Sobolev rules: the filter against scipy's cosine transform, and what is left of the rule that is filtered."""

import math

import numpy as np
import pytest
import scipy.fft
import torch

import l2o
from l2o.rule import Observation
from l2o.rules import (
    LSTMConfig,
    ScheduledAdam,
    ScheduledAdamConfig,
    SobolevAdam,
    SobolevAdamConfig,
    SobolevLSTM,
    SobolevLSTMConfig,
)

FILTER = {"cutoff": 0.07, "order": 1.3, "cutoff_power": 0.4}


def random_like(shapes, generator):
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def run(rule, params, sequence):
    """Apply the rule to a sequence of gradients."""
    state = rule.init_state(params)
    for step, grads in enumerate(sequence):
        params, state = rule(Observation(params, grads, None, at(step)), state)
    return params, state


def deployed(rule, params, sequence, guard):
    """Apply the rule by the shell."""
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    optimizer = l2o.LearnedOptimizer(tensors.values(), rule, guard=guard)
    for grads in sequence:
        for name, tensor in tensors.items():
            tensor.grad = grads[name]
        optimizer.step()
    return {name: tensor.detach() for name, tensor in tensors.items()}


def at(step):
    return torch.tensor(step)


def by_cosines(updates, cutoff, order):
    """The filter in the basis of cosines, whose members are those of the picture continued by reflection."""
    height, width = updates.shape[-2:]
    down, across = np.arange(height) / (2 * height), np.arange(width) / (2 * width)
    gain = (1 + (down[:, None] ** 2 + across**2) / cutoff**2) ** (-order / 2)
    return scipy.fft.idctn(gain * scipy.fft.dctn(updates, axes=(-2, -1)), axes=(-2, -1))


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (1, 5), (3, 1), (1, 1)])
def test_filter_is_the_one_in_the_basis_of_cosines(size, float64, generator):
    rule, updates = (
        SobolevAdam(SobolevAdamConfig(cutoff=0.07, order=1.3)),
        torch.randn(2, 3, *size, generator=generator),
    )
    found = rule.filtered(updates, at(5)).detach().numpy()
    np.testing.assert_allclose(found, by_cosines(updates.numpy(), 0.07, 1.3), rtol=1e-10, atol=1e-13)


def test_cutoff_grows_as_a_power_of_time(float64, generator):
    updates = torch.randn(6, 9, generator=generator)
    moving = SobolevAdam(SobolevAdamConfig(**FILTER))
    for step in (0, 16, 48):
        still = SobolevAdam(SobolevAdamConfig(cutoff=0.07 * (1 + step / 16) ** 0.4, order=1.3))
        torch.testing.assert_close(
            moving.filtered(updates, at(step)), still.filtered(updates, at(0)), rtol=1e-12, atol=0
        )


def test_filter_is_symmetric_and_positive_and_lets_a_flat_picture_pass(float64, generator):
    rule = SobolevAdam(SobolevAdamConfig(**FILTER))
    one, other = torch.randn(2, 5, 8, generator=generator)
    assert (one * rule.filtered(other, at(3))).sum().item() == pytest.approx(
        (rule.filtered(one, at(3)) * other).sum().item()
    )
    assert (one * rule.filtered(one, at(3))).sum() > 0
    flat = torch.full((5, 8), 2.5)
    torch.testing.assert_close(rule.filtered(flat, at(3)), flat, rtol=1e-12, atol=0)
    assert rule.filtered(one, at(3)).norm() < 0.9 * one.norm()


@pytest.mark.parametrize(
    ("make", "config"), [(SobolevAdam, SobolevAdamConfig), (SobolevLSTM, SobolevLSTMConfig)], ids=["adam", "lstm"]
)
def test_order_zero_is_the_rule_without_a_filter(make, config, float64, generator):
    rule = make(config(order=0.0))
    params = random_like({"picture": (3, 6, 5), "bias": (4,)}, generator)
    sequence = [random_like({"picture": (3, 6, 5), "bias": (4,)}, generator) for _ in range(3)]
    moved, expected = run(rule, params, sequence)[0], run(rule.coordinates, params, sequence)[0]
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-13)


def test_only_the_last_two_axes_are_filtered_and_vectors_not_at_all(float64, generator):
    shapes = {"scalar": (), "bias": (7,), "empty": (0, 3), "picture": (2, 3, 4, 6)}
    rule, params = SobolevAdam(SobolevAdamConfig(lr=0.1, **FILTER)), random_like(shapes, generator)
    sequence = [random_like(shapes, generator) for _ in range(3)]
    moved, plain = run(rule, params, sequence)[0], run(rule.coordinates, params, sequence)[0]
    assert all(torch.equal(moved[name], plain[name]) for name in ("scalar", "bias"))
    one = {"x": params["picture"][1, 2]}
    alone = run(rule, one, [{"x": grads["picture"][1, 2]} for grads in sequence])[0]["x"]
    torch.testing.assert_close(moved["picture"][1, 2], alone, rtol=1e-12, atol=0)
    assert not torch.allclose(moved["picture"], plain["picture"])


def test_gradient_of_every_weight_of_the_filter_is_that_of_finite_differences(float64, generator):
    rule = SobolevAdam(SobolevAdamConfig(lr=0.1, **FILTER))
    params, sequence = torch.randn(4, 5, generator=generator), torch.randn(3, 4, 5, generator=generator)

    def loss(log_cutoff, order, cutoff_power):
        theta = {"log_cutoff": log_cutoff, "order": order, "cutoff_power": cutoff_power}
        moved, state = {"x": params}, rule.init_state({"x": params})
        for step, grads in enumerate(sequence):
            observation = Observation(moved, {"x": grads}, None, at(step))
            moved, state = torch.func.functional_call(rule, theta, (observation, state))
        return moved["x"].square().sum()

    weights = [rule.log_cutoff, rule.order, rule.cutoff_power]
    assert torch.autograd.gradcheck(loss, weights)


@pytest.mark.parametrize("guard", [None, True])
def test_deployed_it_moves_as_the_rule_says(guard, float64, generator):
    shapes = {"picture": (3, 8, 9), "small": (2, 3), "bias": (4,)}
    rule, params = SobolevAdam(SobolevAdamConfig(lr=0.01, **FILTER)), random_like(shapes, generator)
    sequence = [random_like(shapes, generator) for _ in range(3)]
    moved = deployed(rule, params, sequence, guard)
    if guard is None:
        torch.testing.assert_close(moved, run(rule, params, sequence)[0], rtol=1e-12, atol=1e-13)
    else:  # what the guard lets pass is the filtered step
        plain = deployed(rule.coordinates, params, sequence, guard)
        assert torch.equal(moved["bias"], plain["bias"]) and not torch.equal(moved["bias"], params["bias"])
        assert (moved["picture"] - plain["picture"]).abs().max() > 1e-3


def test_a_forward_without_gradients_is_refused():
    rule, params = SobolevAdam(), {"x": torch.zeros(3, 3)}
    with pytest.raises(ValueError, match="SobolevAdam needs gradients"):
        rule(Observation(params, None, None, at(0)), rule.init_state(params))


@pytest.mark.parametrize(("cutoff", "kept"), [(1e30, 1.0), (1e-30, 0.0)])
def test_a_cutoff_of_any_size_gives_finite_numbers(cutoff, kept):
    waves = torch.ones(6, 8)
    waves[:, ::2] = -1.0
    filtered = SobolevAdam(SobolevAdamConfig(cutoff=cutoff)).filtered(waves + 3, at(0))
    torch.testing.assert_close(filtered, kept * waves + 3, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": 0.0}, "cutoff"),
        ({"cutoff": math.inf}, "cutoff"),
        ({"order": math.nan}, "order must be finite"),
    ],
)
@pytest.mark.parametrize("config", [SobolevAdamConfig, SobolevLSTMConfig])
def test_filters_out_of_range_are_refused(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_configs_keep_the_checks_of_the_rule_that_is_filtered():
    with pytest.raises(ValueError, match="lr"):
        SobolevAdamConfig(lr=-1.0)
    with pytest.raises(ValueError, match="cutoff_power must be finite"):
        SobolevAdamConfig(cutoff_power=math.inf)
    with pytest.raises(ValueError, match="hidden_size"):
        SobolevLSTMConfig(hidden_size=0)
    assert isinstance(SobolevAdamConfig(), ScheduledAdamConfig) and isinstance(SobolevLSTMConfig(), LSTMConfig)
    assert type(SobolevAdam().coordinates) is ScheduledAdam
