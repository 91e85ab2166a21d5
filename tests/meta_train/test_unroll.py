"""The loop over inner steps: vectorised equals one by one, and the same as a training loop written by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from l2o.rule import UpdateRule
from l2o.rules import SGD, Adam, AdamConfig, Momentum, MomentumConfig, RMSprop, RMSpropConfig, SGDConfig
from meta_train.unroll import (
    Trajectories,
    apply_rule,
    evaluate,
    init_state,
    losses_and_grads,
    start,
    task_losses,
    value_and_grad,
)
from tasks import MLP, TASKS, ModuleTask, Quadratic


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def one_by_one(family):
    """The same family, which the loop may not vectorise."""
    family = copy.copy(family)
    object.__setattr__(family, "vectorized", "loop")
    return family


class Delegate(UpdateRule):
    """Hides that a rule is coordinate-wise, so that the loop takes the path for any rule."""

    def __init__(self, rule):
        super().__init__()
        self.rule, self.config = rule, rule.config

    def init_state(self, params):
        return self.rule.init_state(params)

    def forward(self, observation, state):
        return self.rule(observation, state)


def test_every_family_of_the_library_is_in_the_conformance_suite(all_tasks):
    assert {type(build()) for build in all_tasks.values()} == {*TASKS.values(), ModuleTask}


def test_vmap_over_tasks_equals_loop_over_tasks(family, rule):
    curves = [evaluate(rule, f, 3, 4, "train", seeded()) for f in (family, one_by_one(family))]
    torch.testing.assert_close(*curves, rtol=1e-11, atol=1e-12)
    assert (curves[0][0] != curves[0][-1]).all()


def test_flat_path_of_coordinatewise_rules_equals_vmap_path(family, rule):
    curves = [evaluate(r, family, 3, 4, "train", seeded()) for r in (rule, Delegate(rule))]
    torch.testing.assert_close(*curves, rtol=1e-11, atol=1e-12)


def test_batch_of_tasks_equals_tasks_on_their_own(family, rule):
    now = start(rule, family, 3, seeded())
    losses, grads = value_and_grad(family, now, "train", seeded(6))
    moved = apply_rule(rule, now, losses, grads)
    batch = family.sample_batch(now.tasks, 3, "train", seeded(6))
    for i in range(3):
        params, task, minibatch = ({n: t[i] for n, t in data.items()} for data in (now.params, now.tasks, batch))
        expected, loss = torch.func.grad_and_value(family.loss)(params, task, minibatch)
        torch.testing.assert_close(losses[i], loss, rtol=1e-12, atol=1e-13)
        alone = {n: p[None] for n, p in params.items()}
        single = apply_rule(
            rule,
            Trajectories({}, alone, init_state(rule, family, {}, alone), now.step),
            losses[i : i + 1],
            {n: g[None] for n, g in expected.items()},
        )
        for name in params:
            torch.testing.assert_close(grads[name][i], expected[name], rtol=1e-11, atol=1e-13)
            torch.testing.assert_close(moved.params[name][i], single.params[name][0], rtol=1e-9, atol=1e-11)
    assert (moved.step, now.step, moved.n_tasks) == (1, 0, 3)


def test_global_rule_normalises_each_task_by_its_own_norm(normalized_sgd, float64):
    family = Quadratic(dim=4, start="normal")
    together = start(normalized_sgd, family, 3, seeded())
    assert together.state.mean_norm.shape == (3,)
    curve = evaluate(normalized_sgd, family, 3, 5, "train", seeded())
    for i in range(3):
        params = {"theta": together.params["theta"][i]}
        task, state = {n: t[i] for n, t in together.tasks.items()}, normalized_sgd.init_state(params)
        for step in range(5):
            torch.testing.assert_close(curve[step, i], family.loss(params, task, {}), rtol=1e-12, atol=1e-13)
            alone = Trajectories(
                {}, {n: p[None] for n, p in params.items()}, type(state)(*(s[None] for s in state)), torch.tensor(step)
            )
            grads = {n: g[None] for n, g in torch.func.grad(family.loss)(params, task, {}).items()}
            moved = apply_rule(normalized_sgd, alone, curve[step, i : i + 1], grads)
            params = {n: p[0].detach() for n, p in moved.params.items()}
            state = type(state)(*(s[0] for s in moved.state))


def test_same_seed_gives_every_rule_the_same_problems_and_minibatches(family, all_rules):
    rules = {name: build(seeded(2)) for name, build in all_rules.items()}
    curves = {name: evaluate(rule, family, 4, 3, "outer_valid", seeded()) for name, rule in rules.items()}
    first = curves.pop("sgd")
    for curve in curves.values():
        assert torch.equal(curve[0], first[0])
        assert not torch.equal(curve[1], first[1])


def test_same_minibatches_at_every_step_for_a_rule_that_does_not_move(family):
    """Later minibatches do not depend on the rule either."""
    still = evaluate(SGD(SGDConfig(1e-300)), family, 2, 4, "train", seeded())
    other = evaluate(Momentum(MomentumConfig(1e-300)), family, 2, 4, "train", seeded())
    assert torch.equal(still, other)


def test_seed_decides_and_splits_differ(float64):
    family, rule = MLP("digits", hidden=(4,), batch_size=16, init_scale=0.3), SGD()
    curve = evaluate(rule, family, 2, 3, "train", seeded())
    assert torch.equal(evaluate(rule, family, 2, 3, "train", seeded()), curve)
    assert not torch.equal(evaluate(rule, family, 2, 3, "train", seeded(6)), curve)
    assert not torch.equal(evaluate(rule, family, 2, 3, "test", seeded()), curve)


OPTIMIZERS = {
    "sgd": (lambda: SGD(SGDConfig(0.3)), lambda params: torch.optim.SGD(params, 0.3)),
    "nesterov": (
        lambda: Momentum(MomentumConfig(0.1, 0.9, nesterov=True)),
        lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, nesterov=True),
    ),
    "rmsprop": (lambda: RMSprop(RMSpropConfig(0.01)), lambda params: torch.optim.RMSprop(params, 0.01)),
    "adam": (lambda: Adam(AdamConfig(0.03)), lambda params: torch.optim.Adam(params, 0.03)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_evaluate_equals_a_hand_written_torch_loop(name, float64):
    family = MLP("digits", hidden=(8,), batch_size=32, init_scale=0.1)
    make_rule, make_optimizer = OPTIMIZERS[name]
    curve = evaluate(make_rule(), family, 1, 25, "test", seeded())

    generator = seeded()
    params = family.init_params({}, 1, generator)
    model = nn.Sequential(nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 10))
    for p, value in zip(model.parameters(), params.values(), strict=True):
        p.data.copy_(value[0])
    optimizer, losses = make_optimizer(model.parameters()), []
    for _ in range(25):
        batch = family.sample_batch({}, 1, "test", generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch["inputs"][0]), batch["targets"][0])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert curve[:, 0].tolist() == pytest.approx(losses, rel=1e-9)
    assert losses[-1] < losses[0]


def test_evaluate_returns_losses_at_every_iterate_without_a_graph(rule):
    curve = evaluate(rule, Quadratic(dim=3), 7, 5, "train", seeded())
    assert curve.shape == (5, 7)
    assert not curve.requires_grad
    assert torch.equal(curve[0], Quadratic(dim=3).sample_tasks(7, seeded())["y"].square().sum(1))  # θ_0 = 0


def test_diverged_run_shows_as_inf_or_nan():
    curve = evaluate(SGD(SGDConfig(1e6)), Quadratic(), 3, 30, "train", seeded())
    assert curve[0].isfinite().all()
    assert not curve[-1].isfinite().any()


def test_order_says_what_stays_connected(float64):
    family, rule = Quadratic(dim=3, start="normal"), SGD(SGDConfig(0.1))
    fresh = start(rule, family, 2, seeded())
    losses, grads = value_and_grad(family, fresh, "train", seeded())
    moved = apply_rule(rule, fresh, losses, grads)
    connected = {0: (False, False), 1: (True, False), 2: (True, True)}
    for order, expected in connected.items():
        losses, grads = value_and_grad(family, moved, "train", seeded(), order)
        assert (losses.requires_grad, grads["theta"].requires_grad) == expected
        torch.testing.assert_close(losses, task_losses(family, moved.params, moved.tasks, {}), rtol=1e-12, atol=0)


def test_parameters_that_the_loss_ignores_get_zero_gradients(float64, generator):
    class Partial(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, inputs):
            return self.used(inputs)

    data = torch.randn(20, 2, generator=generator), torch.randn(20, 1, generator=generator)
    family = ModuleTask(Partial, F.mse_loss, data, batch_size=4)
    now = start(SGD(), family, 2, seeded())
    _, grads = value_and_grad(family, now, "train", seeded())
    assert torch.equal(grads["unused.weight"], torch.zeros(2, 1, 2))
    assert grads["used.weight"].abs().min() > 0


@pytest.mark.parametrize("build", [Quadratic, lambda: MLP(hidden=(5,), batch_size=4)])
def test_a_loss_that_takes_task_axes_equals_vmap(build, float64):
    family = build()
    trajectories = start(SGD(), family, 3, seeded())
    batch = family.sample_batch(trajectories.tasks, 3, "train", seeded())
    assert family.vectorized == "axes"
    by_axes = task_losses(family, trajectories.params, trajectories.tasks, batch)
    by_vmap = torch.func.vmap(family.loss)(trajectories.params, trajectories.tasks, batch)
    torch.testing.assert_close(by_axes, by_vmap, rtol=1e-12, atol=0)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_gradients_are_those_of_torch_autograd_to_the_bit(family, order):
    now = start(SGD(), family, 3, seeded())
    if order:
        now = now._replace(params={name: p.requires_grad_() for name, p in now.params.items()})
    batch = family.sample_batch(now.tasks, 3, "train", seeded())
    losses, grads = losses_and_grads(family, now.params, now.tasks, batch, order)
    params = {name: p.detach().requires_grad_() for name, p in now.params.items()}
    expected = task_losses(family, params, now.tasks, batch)
    pieces = torch.autograd.grad(expected.sum(), list(params.values()), create_graph=True)
    assert torch.equal(losses, expected)
    assert all(torch.equal(grads[name], piece) for name, piece in zip(params, pieces, strict=True))
    if order == 2:
        for found, right in zip(differentiate(grads.values(), now.params), differentiate(pieces, params), strict=True):
            assert torch.equal(found, right)
    if order:  # the graph is still there
        torch.autograd.grad(losses.sum(), list(now.params.values()))


def differentiate(grads, params):
    """The gradient of the squared length of a gradient."""
    return torch.autograd.grad(sum(g.square().sum() for g in grads), list(params.values()), retain_graph=True)


def test_a_loss_that_cannot_be_differentiated_says_so():
    family = Quadratic(dim=2)
    object.__setattr__(family, "loss", lambda params, task, batch: task["y"].sum(1))
    with pytest.raises(RuntimeError, match="does not require grad"):
        value_and_grad(family, start(SGD(), family, 2, seeded()), "train", seeded())
