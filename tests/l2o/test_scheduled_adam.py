"""`ScheduledAdam` against torch.optim.Adam, its equations in numpy, and finite differences."""

import math

import numpy as np
import pytest
import torch

import l2o
from l2o.rules import Adam, AdamConfig, ScheduledAdam, ScheduledAdamConfig

SCHEDULE = ScheduledAdamConfig(
    lr=0.05, lr_power=0.7, warmup=0.4, beta1=0.6, beta1_power=0.9, look_ahead=0.2, beta2=0.95, timescale=5.0, eps=1e-6
)


def gradients(generator, steps=30, coordinates=7):
    return torch.randn(steps, coordinates, generator=generator) * torch.logspace(-3, 2, coordinates)


def run(rule, sequence):
    """Return the updates of a sequence of gradients, shape (steps, n)."""
    state, updates = rule.init_coordinates(sequence[0]), []
    for step, grads in enumerate(sequence):
        update, state = rule.update(grads, state, torch.tensor(step))
        updates.append(update)
    return torch.stack(updates)


def by_the_equations(config, sequence):
    """The module's equations in numpy, with every moment as the sum that its recursion stands for."""
    updates = []
    s = np.log1p(np.arange(len(sequence)) / config.timescale)
    odds = config.beta1 / (1 - config.beta1) * np.exp(config.beta1_power * s)
    decays = odds / (1 + odds)
    for t, g in enumerate(sequence):
        shares = np.array([(1 - decays[k]) * decays[k + 1 : t + 1].prod() for k in range(t + 1)])
        mean = shares @ sequence[: t + 1] / shares.sum()
        shares = config.beta2 ** np.arange(t, -1, -1)
        scale = np.sqrt(shares @ sequence[: t + 1] ** 2 / shares.sum()) + config.eps
        lr = config.lr * (1 + t / config.timescale) ** -config.lr_power
        lr *= math.exp(config.warmup * math.exp(-4 * t / config.timescale))
        updates.append(-lr * ((1 - config.look_ahead) * mean + config.look_ahead * g) / scale)
    return np.stack(updates)


def test_updates_are_those_of_the_equations(float64, generator):
    sequence = gradients(generator)
    found = run(ScheduledAdam(SCHEDULE), sequence).detach().numpy()
    np.testing.assert_allclose(found, by_the_equations(SCHEDULE, sequence.numpy()), rtol=1e-11)


def test_default_schedule_is_adam(float64, generator):
    config, sequence = ScheduledAdamConfig(lr=0.02, beta1=0.8, beta2=0.99, eps=1e-6), gradients(generator, 100)
    expected = run(Adam(AdamConfig(lr=0.02, beta1=0.8, beta2=0.99, eps=1e-6)), sequence)
    torch.testing.assert_close(run(ScheduledAdam(config), sequence), expected, rtol=1e-11, atol=0)
    assert ScheduledAdamConfig() == ScheduledAdamConfig(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-8)


def test_scaled_loss_moves_alike(float64, generator):
    rule, sequence = ScheduledAdam(ScheduledAdamConfig(lr=0.05, lr_power=0.7, eps=1e-300)), gradients(generator)
    torch.testing.assert_close(run(rule, 1e4 * sequence), run(rule, sequence), rtol=1e-11, atol=0)


def test_update_vjp_equals_central_differences(float64, generator):
    rule, first, sequence = ScheduledAdam(SCHEDULE), gradients(generator, 4), gradients(generator, 9)
    cotangents = torch.randn(sequence.shape, generator=generator)
    state = rule.init_coordinates(first[0])
    with torch.no_grad():
        for step, grads in enumerate(first):
            _, state = rule.update(grads, state, torch.tensor(step))

    @torch.no_grad()
    def total():
        memory, value = state, 0.0
        for step, (grads, cotangent) in enumerate(zip(sequence, cotangents, strict=True), len(first)):
            update, memory = rule.update(grads, memory, torch.tensor(step))
            value += (cotangent * update).sum().item()
        return value

    found = rule.update_vjp(sequence, cotangents, state, torch.tensor(len(first)))
    for name, parameter in rule.named_parameters():
        value, sides = parameter.item(), []
        for sign in (1, -1):
            parameter.data.fill_(value + sign * 1e-5)
            sides.append(total())
        parameter.data.fill_(value)
        # Central differences of step 1e-5 leave an error of 1e-10 of the value, and rounding one of 1e-11.
        assert found[name].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-6, abs=1e-8), name


def test_learned_optimizer_with_the_rule_equals_torchs_adam_on_a_network(generator):
    inputs, targets = torch.randn(32, 3, generator=generator), torch.randn(32, 1, generator=generator)
    ends = []
    for make in (
        lambda params: l2o.LearnedOptimizer(params, ScheduledAdam(ScheduledAdamConfig(lr=0.01))),
        lambda params: torch.optim.Adam(params, lr=0.01),
    ):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
        optimizer = make(model.parameters())
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
        ends.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)  # float32, 30 steps


@pytest.mark.parametrize(
    "options, match",
    [
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"timescale": -1.0}, "timescale must be positive and finite, got -1.0"),
        ({"eps": 0.0}, "eps must be positive and finite, got 0.0"),
        ({"beta1": 1.0}, "beta1 must lie strictly between 0 and 1, got 1.0"),
        ({"beta2": 0.0}, "beta2 must lie strictly between 0 and 1, got 0.0"),
        ({"lr_power": math.inf}, "lr_power must be finite, got inf"),
        ({"warmup": math.nan}, "warmup must be finite, got nan"),
        ({"beta1_power": math.nan}, "beta1_power must be finite, got nan"),
        ({"look_ahead": -math.inf}, "look_ahead must be finite, got -inf"),
    ],
)
def test_config_out_of_range_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ScheduledAdamConfig(**options)
