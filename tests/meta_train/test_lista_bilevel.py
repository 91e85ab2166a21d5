"""LISTA as a bilevel problem, its layers below and a loss of the last one above, trains as it does in the trainer."""

import pytest
import torch

import l2o
from l2o.rules import LISTA, LISTACP, LISTAConfig, LISTACPConfig
from l2o.stepping import stepper
from meta_train.estimators import MetaLoss, Truncated
from meta_train.unroll import start
from tasks import Lasso

LAYERS, ROWS, COLUMNS, TASKS = 4, 10, 20, 8
UNUSED = "from_code.0"
"""It multiplies x_0 = 0: its gradient is 0."""
RULES = {"lista": (LISTA, LISTAConfig), "lista-cp": (LISTACP, LISTACPConfig)}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_rule(name: str, family: Lasso):
    rule, config = RULES[name]
    made = rule(config(rows=ROWS, columns=COLUMNS, layers=LAYERS), family.shared_dictionary(torch.zeros(())))
    with torch.no_grad():  # layers that differ: as they start, some mistakes would cancel
        for number, parameter in enumerate(made.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=seeded(number))
    return made


def trainers_gradient(rule, family: Lasso, draw: int) -> dict[str, torch.Tensor]:
    """The meta-gradient of the trainer's estimator through all layers."""
    meta_loss, generator = MetaLoss("final"), seeded(draw)
    trajectories, weights = start(rule, family, TASKS, generator), meta_loss.weights(0, LAYERS, LAYERS)
    return Truncated().estimate(rule, family, trajectories, meta_loss, weights, generator).grads


def bilevel_gradient(rule, family: Lasso, draw: int, route: str) -> dict[str, torch.Tensor]:
    """Lower level: u ← T_k(u), k = 1 … layers; upper level: the mean loss of u over the tasks."""
    tasks = family.sample_tasks(TASKS, seeded(draw))
    problem = family.problem(tasks)
    if route == "solve":
        codes = l2o.solve(rule, problem, steps=LAYERS, gradient="unrolled", history=False).x
    else:
        first = problem.zeros()
        layer = stepper(rule, problem, first)
        codes = l2o.fixed_point(layer, first, gradient="unrolled", steps=LAYERS, batch_axes=1).u
    theta = dict(rule.named_parameters())
    upper = family.loss({"x": codes}, tasks, {}).mean()
    return dict(zip(theta, torch.autograd.grad(upper, list(theta.values())), strict=True))


@pytest.mark.parametrize("route", ["solve", "fixed_point"])
@pytest.mark.parametrize("supervision", [1.0, 0.0])
@pytest.mark.parametrize("name", RULES)
def test_its_gradients_are_the_trainers(float64, name, supervision, route):
    family = Lasso(rows=ROWS, columns=COLUMNS, supervision=supervision)
    rule = make_rule(name, family)
    expected, found = trainers_gradient(rule, family, 5), bilevel_gradient(rule, family, 5, route)
    assert len(expected) == len(found) >= LAYERS
    for key, gradient in expected.items():
        assert (gradient.abs().max() > 1e-5) == (key != UNUSED), key
        torch.testing.assert_close(found[key], gradient, rtol=1e-10, atol=1e-10)


def test_its_gradient_in_a_direction_equals_central_differences(float64):
    family = Lasso(rows=ROWS, columns=COLUMNS, supervision=1.0)
    rule, tasks = make_rule("lista", family), family.sample_tasks(TASKS, seeded(5))
    direction = {key: torch.randn(p.shape, generator=seeded(9)) for key, p in rule.named_parameters()}
    found = bilevel_gradient(rule, family, 5, "fixed_point")
    slope = sum((found[key] * way).sum().item() for key, way in direction.items())
    values = []
    for shift in (-1e-6, 1e-6):  # thresholding has kinks: none may lie in between
        moved = {key: p.detach() + shift * direction[key] for key, p in rule.named_parameters()}
        other = make_rule("lista", family)
        other.load_state_dict(moved)
        codes = l2o.solve(other, family.problem(tasks), steps=LAYERS, history=False).x
        values.append(family.loss({"x": codes}, tasks, {}).mean().item())
    assert slope == pytest.approx((values[1] - values[0]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("route", ["solve", "fixed_point"])
def test_it_trains_the_same(float64, route):
    family = Lasso(rows=ROWS, columns=COLUMNS, supervision=1.0)
    ends = []
    for gradient in (trainers_gradient, lambda *args: bilevel_gradient(*args, route)):
        rule = make_rule("lista", family)
        adam = torch.optim.Adam(rule.parameters(), 0.01)
        for step in range(10):
            found = gradient(rule, family, 100 + step)
            for key, parameter in rule.named_parameters():
                parameter.grad = found[key]
            adam.step()
        ends.append(rule.state_dict())
    begun = make_rule("lista", family).state_dict()
    for key, end in ends[0].items():
        assert ((end - begun[key]).abs().max() > 0.02) == (key != UNUSED), key  # it has trained
        # Adam divides by gradients, some of them near 0, which turns the rounding of 1e-16 into more
        torch.testing.assert_close(ends[1][key], end, rtol=1e-8, atol=1e-8)
