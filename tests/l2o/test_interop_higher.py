"""Rules inside higher: its meta-gradients are this library's own, and it behaves as with its own optimizers."""

import sys

import pytest
import torch
from interop_oracle import N_TASKS, STEPS, assert_same, grads_of, module_and_loss, our_meta_gradient, weights
from torch import nn

higher = pytest.importorskip("higher", reason="higher is not installed: make interop")

from l2o import LearnedOptimizer  # noqa: E402  (after the skip)
from l2o.interop.higher import detach_all, register  # noqa: E402
from l2o.rule import CoordinatewiseRule  # noqa: E402
from l2o.rules import (  # noqa: E402
    SGD,
    Adam,
    AdamConfig,
    CoordinatewiseLSTM,
    LSTMConfig,
    Momentum,
    MomentumConfig,
    SGDConfig,
)

register()


@pytest.fixture
def rule(rule) -> CoordinatewiseRule:
    """Every rule that higher takes."""
    if not isinstance(rule, CoordinatewiseRule):
        pytest.skip("higher takes coordinate-wise rules")
    return rule


def unroll(model, optimizer, loss, steps=STEPS, **options):
    """Return the weighted sum of the losses after each step, the network and the differentiable optimizer."""
    with higher.innerloop_ctx(model, optimizer, **options) as (fmodel, diffopt):
        total = torch.zeros(())
        for weight in weights("mean")[:steps]:
            diffopt.step(loss(fmodel))
            total = total + weight * loss(fmodel)
        return total, fmodel, diffopt


def mean_meta_loss(make_optimizer, rule, **options):
    """Return the engine's meta-loss, computed by higher."""
    total = torch.zeros(())
    for task in range(N_TASKS):
        model, loss = module_and_loss(rule, task)
        total = total + unroll(model, make_optimizer(model.parameters()), loss, **options)[0] / N_TASKS
    return total


@pytest.fixture
def model_and_loss(float64):
    return module_and_loss(SGD(), 0)


def values(parameters):
    return [parameter.detach().clone() for parameter in parameters]


# ---------------------------------------------------------------- meta-gradients


def test_meta_gradient_is_that_of_our_second_order_unrolling(rule):
    mean_meta_loss(lambda params: LearnedOptimizer(params, rule), rule, override={"rule": [rule]}).backward()
    assert_same(grads_of(rule), our_meta_gradient(rule, order=2))


def test_with_detached_gradients_it_is_that_of_our_first_order_unrolling(rule):
    first, second = our_meta_gradient(rule, order=1), our_meta_gradient(rule, order=2)
    for task in range(N_TASKS):
        model, loss = module_and_loss(rule, task)
        optimizer = LearnedOptimizer(model.parameters(), rule)
        with higher.innerloop_ctx(model, optimizer, override={"rule": [rule]}) as (fmodel, diffopt):
            for weight in weights("mean"):
                diffopt.step(loss(fmodel), grad_callback=detach_all)
                (weight * loss(fmodel) / N_TASKS).backward(retain_graph=True)
    assert_same(grads_of(rule), first)
    assert any((first[name] - second[name]).abs().max() > 1e-8 for name in first)  # else the test says nothing


@pytest.mark.parametrize(
    "rule_type, config, their_type, option, name",
    [
        (SGD, SGDConfig(0.1), torch.optim.SGD, "lr", "log_lr"),
        (Momentum, MomentumConfig(0.1, 0.8), torch.optim.SGD, "lr", "log_lr"),
        (Momentum, MomentumConfig(0.1, 0.8), torch.optim.SGD, "momentum", "logit_momentum"),
        # Their Adam adds eps elsewhere, so it is small here; its derivative with respect to beta2 is known to be wrong.
        (Adam, AdamConfig(0.1, eps=1e-14), torch.optim.Adam, "lr", "log_lr"),
    ],
)
def test_our_engine_agrees_with_the_optimizers_of_higher_itself(rule_type, config, their_type, option, name, float64):
    rule = rule_type(config)
    parameter = dict(rule.named_parameters())[name]
    learned = parameter.exp() if option == "lr" else parameter.sigmoid()
    constants = {"lr": config.lr} | ({"momentum": config.momentum} if rule_type is Momentum else {})
    constants |= {"eps": config.eps} if rule_type is Adam else {}
    total = mean_meta_loss(lambda params: their_type(params, **constants), rule, override={option: [learned]})
    (theirs,) = torch.autograd.grad(total, [parameter])
    torch.testing.assert_close(theirs, our_meta_gradient(rule, order=2)[name], rtol=1e-10, atol=0)


def test_theta_may_be_given_as_tensors(rule):
    theta = {name: parameter.detach().clone().requires_grad_() for name, parameter in rule.named_parameters()}
    total = mean_meta_loss(lambda params: LearnedOptimizer(params, rule), rule, override={"theta": [theta]})
    grads = torch.autograd.grad(total, list(theta.values()), materialize_grads=True)
    assert_same(dict(zip(theta, grads, strict=True)), our_meta_gradient(rule, order=2))
    assert all(parameter.grad is None for parameter in rule.parameters())


def test_lr_and_weight_decay_of_each_group_may_be_learned(model_and_loss):
    model, loss = model_and_loss
    groups = [{"params": [p]} for p in model.parameters()]
    lrs = [torch.tensor(0.3 + 0.1 * i, requires_grad=True) for i in range(4)]
    decay = torch.tensor([0.05], requires_grad=True)

    def meta_loss(lrs, decay):
        optimizer = LearnedOptimizer(groups, Adam(AdamConfig(0.1)))
        return unroll(model, optimizer, loss, override={"lr": list(lrs), "weight_decay": [decay]})[0]

    assert torch.autograd.gradcheck(lambda *x: meta_loss(x[:4], x[4]), (*lrs, decay), rtol=1e-6)


def test_gradient_reaches_the_initial_weights_of_the_network(model_and_loss):
    model, loss = model_and_loss
    optimizer = LearnedOptimizer(model.parameters(), Momentum(MomentumConfig(0.1)))
    unroll(model, optimizer, loss, copy_initial_weights=False)[0].backward()
    found = model[0].weight.grad[1, 2].item()
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            model[0].weight[1, 2] += sign * 1e-5 if sign > 0 else -2e-5
        ends.append(unroll(model, optimizer, loss)[0].item())
    assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


# ---------------------------------------------------------------- the same steps as the shell


def shell_and_higher(model, loss, optimizer, steps):
    """Return the network's values after steps by higher and after steps by the optimizer itself."""
    _, fmodel, _ = unroll(model, optimizer, loss, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    return values(fmodel.parameters()), values(model.parameters())


@pytest.mark.parametrize("options", [{}, {"lr": 0.5}, {"weight_decay": 0.1}, {"maximize": True}])
def test_groups_move_as_in_the_shell(rule, options):
    model, loss = module_and_loss(rule, 0)
    other = Momentum(MomentumConfig(0.05))
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), **options, "rule": other}]
    theirs, ours = shell_and_higher(model, loss, LearnedOptimizer(groups, rule), 3)
    torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_memory_of_the_optimizer_is_taken_over(rule, state_dtype):
    model, loss = module_and_loss(rule, 0)
    optimizer = LearnedOptimizer(model.parameters(), rule, state_dtype=state_dtype)
    shell_and_higher(model, loss, optimizer, 2)
    theirs, ours = shell_and_higher(model, loss, optimizer, 1)  # one step: in between, the shell rounds to bfloat16
    torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-13)


def test_the_optimizer_itself_is_not_touched(rule):
    model, loss = module_and_loss(rule, 0)
    optimizer = LearnedOptimizer(model.parameters(), rule)
    loss(model).backward()
    optimizer.step()
    before = [value.clone() for memory in optimizer.state.values() for value in memory.values()]
    unroll(model, optimizer, loss)
    after = [value for memory in optimizer.state.values() for value in memory.values()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


# ---------------------------------------------------------------- higher's conventions


def test_parameters_without_a_gradient_stay_and_remember_nothing(model_and_loss):
    model, loss = model_and_loss
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    model[0].bias.requires_grad_(False)
    optimizer = LearnedOptimizer(model.parameters(), Adam(AdamConfig(0.1)))
    before = dict(zip(("unused", "bias"), values((model.unused, model[0].bias)), strict=True))
    _, fmodel, diffopt = unroll(model, optimizer, lambda network: loss(network))
    after = dict(fmodel.named_parameters())
    assert torch.equal(after["unused"], before["unused"]) and torch.equal(after["0.bias"], before["bias"])
    assert [bool(diffopt.state[0][index]) for index in range(5)] == [name not in ("unused", "0.bias") for name in after]


def test_without_tracking_no_graph_is_kept(rule):
    model, loss = module_and_loss(rule, 0)
    optimizer = LearnedOptimizer(model.parameters(), rule)
    tracked = unroll(model, optimizer, loss, override={"rule": [rule]})[1]
    _, fmodel, diffopt = unroll(model, optimizer, loss, override={"rule": [rule]}, track_higher_grads=False)
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in fmodel.parameters())
    assert not any(value.requires_grad for memory in diffopt.state[0].values() for value in memory.values())
    torch.testing.assert_close(values(fmodel.parameters()), values(tracked.parameters()), rtol=1e-12, atol=1e-13)


def test_bfloat16_parameters_keep_their_precision_and_a_float32_memory():
    model, inputs = nn.Linear(3, 2, dtype=torch.bfloat16), torch.ones(4, 3, dtype=torch.bfloat16)
    optimizer = LearnedOptimizer(model.parameters(), CoordinatewiseLSTM(LSTMConfig(hidden_size=3)))
    _, fmodel, diffopt = unroll(model, optimizer, lambda network: network(inputs).float().square().mean())
    assert all(parameter.dtype == torch.bfloat16 for parameter in fmodel.parameters())
    assert diffopt.state[0][0]["cell"].dtype == torch.float32


def test_it_can_be_made_from_the_type_as_higher_makes_its_own(model_and_loss):
    model, loss = model_and_loss
    optimizer = higher.optim.create_diff_optim(
        LearnedOptimizer, opt_kwargs={"rule": SGD(SGDConfig(0.25))}, params=list(model.parameters())
    )
    grads = torch.autograd.grad(loss(model), list(model.parameters()))
    moved = optimizer.step(loss(model), params=list(model.parameters()))
    expected = [p - 0.25 * g for p, g in zip(model.parameters(), grads, strict=True)]
    torch.testing.assert_close(list(moved), expected, rtol=1e-12, atol=1e-13)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "override, error, text",
    [
        ({"rule": [torch.optim.SGD]}, TypeError, "takes coordinate-wise rules, got"),
        ({"theta": [{"log_lr": torch.zeros(()), "beta": torch.zeros(())}]}, ValueError, r"names \['beta'\]; SGD has"),
    ],
)
def test_overrides_that_do_not_fit(override, error, text, model_and_loss):
    model, loss = model_and_loss
    with pytest.raises(error, match=text):
        unroll(model, LearnedOptimizer(model.parameters(), SGD()), loss, override=override)


def test_memory_of_another_rule_is_refused(model_and_loss):
    model, loss = model_and_loss
    optimizer = LearnedOptimizer(model.parameters(), SGD())
    shell_and_higher(model, loss, optimizer, 1)
    with pytest.raises(ValueError, match=r"memory holds \['step'\], but Adam keeps"):
        unroll(model, optimizer, loss, override={"rule": [Adam()]})


def test_sparse_gradients_are_refused():
    model = nn.Embedding(4, 2, sparse=True)
    with pytest.raises(RuntimeError, match="need dense real gradients"):
        unroll(model, LearnedOptimizer(model.parameters(), SGD()), lambda network: network(torch.tensor([1])).sum())


def test_without_higher_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "higher", None)
    with pytest.raises(ModuleNotFoundError, match="higher"):
        register()
