"""The torch.optim shell: the same numbers as torch and as the bare rule, and the contract of torch.optim.Optimizer."""

import copy
import math

import pytest
import torch
from small_models import mlp, parameter, train
from torch import nn
from torch.nn import functional as F

from l2o import LearnedOptimizer
from l2o.rule import CoordinatewiseRule, Observation
from l2o.rules import SGD, Adam, AdamConfig, CoordinatewiseLSTM, LSTMConfig, Momentum, MomentumConfig, SGDConfig


def lstm(generator, **options):
    return CoordinatewiseLSTM(LSTMConfig(hidden_size=4, **options), generator)


# ---------------------------------------------------------------- numbers


def test_adam_in_the_shell_equals_torchs_adam_on_an_mlp(float64):
    ours, inputs, targets = mlp()
    theirs = copy.deepcopy(ours)
    optimizer = LearnedOptimizer(ours.parameters(), Adam(AdamConfig(lr=0.03)))
    expected = train(theirs, inputs, targets, torch.optim.Adam(theirs.parameters(), lr=0.03), 30)
    assert train(ours, inputs, targets, optimizer, 30) == pytest.approx(expected, rel=1e-10)
    assert expected[-1] < 0.7 * expected[0]
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "options", [{"weight_decay": 0.3}, {"maximize": True}, {"weight_decay": 0.3, "maximize": True}]
)
def test_weight_decay_and_maximize_equal_torchs_adamw(float64, options):
    ours, inputs, targets = mlp()
    theirs = copy.deepcopy(ours)
    optimizer = LearnedOptimizer(ours.parameters(), Adam(AdamConfig(lr=1.0)), lr=0.03, **options)
    oracle = torch.optim.AdamW(theirs.parameters(), lr=0.03, **{"weight_decay": 0.0} | options)
    losses = train(ours, inputs, targets, optimizer, 20)
    assert losses == pytest.approx(train(theirs, inputs, targets, oracle, 20), rel=1e-10)
    assert (losses[-1] > losses[0]) == ("maximize" in options)
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-10)


def test_shell_equals_a_loop_over_the_rules_updates(rule):
    model, inputs, targets = mlp()
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    states = {name: rule.init_state({name: p}) for name, p in params.items()}

    def loss(params):
        return F.cross_entropy(torch.func.functional_call(model, params, (inputs,)), targets)

    for step in range(12):
        grads = torch.func.grad(loss)(params)
        for name, grad in grads.items():
            observation = Observation({name: params[name]}, {name: grad}, None, torch.tensor(step))
            moved, states[name] = rule(observation, states[name])
            params[name] = moved[name].detach()
    train(model, inputs, targets, LearnedOptimizer(model.parameters(), rule), 12)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), params[name], rtol=1e-10, atol=1e-12)


def test_tensors_of_zero_to_five_dimensions_move_as_the_same_numbers_in_a_vector(rule, generator):
    values, grads = torch.randn(15, generator=generator), torch.randn(15, generator=generator)
    shapes, first = [(), (2,), (0, 3), (2, 1, 3, 1), (1, 2, 1, 3, 1)], 0
    if not isinstance(rule, CoordinatewiseRule):  # it filters what has two dimensions
        shapes = [(), (2,), (0,), (6,), (6,)]
    vector, pieces = parameter(values, grads), []
    for shape in shapes:
        part = slice(first, first := first + math.prod(shape))
        pieces.append(parameter(values[part].reshape(shape), grads[part].reshape(shape)))
    for params in ([vector], pieces):
        optimizer = LearnedOptimizer(params, rule, weight_decay=0.1)
        for _ in range(3):
            optimizer.step()
    assert ([tuple(p.shape) for p in pieces], first) == (shapes, 15)
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in pieces]), vector.detach(), rtol=1e-12, atol=0)
    assert not torch.equal(vector.detach(), values)


def test_non_contiguous_parameters_move_as_contiguous_ones(rule, generator):
    values, grads = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    plain, transposed = parameter(values, grads), nn.Parameter(values.T.contiguous().T)
    transposed.grad = grads
    for param in (plain, transposed):
        LearnedOptimizer([param], rule).step()
    assert not transposed.is_contiguous()
    assert torch.equal(plain.detach(), transposed.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight_decay", [0.0, 0.003])
def test_narrow_parameter_gets_the_float32_update_rounded_once(make_rule, generator, dtype, weight_decay):
    rule = make_rule()
    values, grads = (torch.randn(50, generator=generator).to(dtype) for _ in range(2))
    narrow, wide = parameter(values, grads), parameter(values.float(), grads.float())
    for param in (narrow, wide):  # an lr that eight bits of mantissa notice
        LearnedOptimizer([param], rule, lr=100.0, weight_decay=weight_decay).step()
    assert narrow.dtype == dtype
    assert torch.equal(narrow.detach(), wide.detach().to(dtype))
    assert not torch.equal(narrow.detach(), values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_accumulators_are_at_least_float32(dtype):
    param = parameter([1.0], [1.0], dtype)
    optimizer = LearnedOptimizer([param], Adam())
    optimizer.step()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {name: value.dtype for name, value in optimizer.state[param].items()} == {
        "step": torch.int64, "first_moment": wide, "second_moment": wide
    }  # fmt: skip


# ---------------------------------------------------------------- learning rate and groups


def test_lr_multiplies_the_update_and_zero_changes_nothing(rule):
    moves = []
    for lr in (1.0, 0.25, 0.0):
        param = parameter([1.0, -2.0], [0.3, -0.1])
        LearnedOptimizer([param], rule, lr=lr).step()
        moves.append(param.detach() - torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(moves[1], 0.25 * moves[0], rtol=1e-12, atol=1e-15)
    assert torch.equal(moves[2], torch.zeros(2))
    assert moves[0].abs().min() > 0


def test_groups_have_their_own_lr():
    params = [parameter([1.0], [1.0]) for _ in range(3)]
    groups = [{"params": params[:1], "lr": 0.5}, {"params": params[1:2]}, {"params": params[2:], "lr": 0.0}]
    LearnedOptimizer(groups, SGD(SGDConfig(0.125)), lr=2.0).step()
    assert [p.item() for p in params] == pytest.approx([1 - 0.0625, 1 - 0.25, 1.0], rel=1e-6)


def test_groups_have_their_own_weight_decay_and_direction():
    params = [parameter([1.0], [1.0]) for _ in range(3)]
    groups = [{"params": params[:1], "weight_decay": 0.5}, {"params": params[1:2], "maximize": True}]
    groups += [{"params": params[2:], "weight_decay": 0.0}]
    LearnedOptimizer(groups, SGD(SGDConfig(0.125)), lr=2.0, weight_decay=0.25).step()
    expected = [1 + 2 * (-0.125 - 0.5), 1 + 2 * (0.125 - 0.25), 1 + 2 * -0.125]
    assert [p.item() for p in params] == pytest.approx(expected, rel=1e-6)


def test_groups_have_their_own_rules(generator):
    values, grads = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    together, apart = ([parameter(v, g) for v, g in zip(values, grads, strict=True)] for _ in range(2))
    rules = [lstm(generator), Adam(), Momentum(MomentumConfig(lr=0.1)), lstm(generator)]
    groups = [{"params": [param], "rule": rule} for param, rule in zip(together, rules, strict=True)]
    optimizers = [LearnedOptimizer([param], rule) for param, rule in zip(apart, rules, strict=True)]
    for optimizer in (LearnedOptimizer(groups, SGD()), *optimizers):
        for _ in range(3):
            optimizer.step()
    for left, right in zip(together, apart, strict=True):
        assert torch.equal(left.detach(), right.detach())


def test_equal_rules_are_kept_once_and_options_tell_them_apart(generator):
    rule, params = lstm(generator), [parameter([1.0]) for _ in range(6)]
    other, same = copy.deepcopy(rule), copy.deepcopy(rule)
    torch.nn.init.ones_(other.output_bias)
    rules = [None, same, other, 0, Adam(AdamConfig(lr=0.1)), Adam(AdamConfig(lr=0.2))]
    groups = [{"params": [p]} | ({} if r is None else {"rule": r}) for p, r in zip(params, rules, strict=True)]
    optimizer = LearnedOptimizer(groups, rule)
    assert [group["rule"] for group in optimizer.param_groups] == [0, 0, 1, 0, 2, 3]
    assert optimizer.rule is optimizer.rules[0]
    assert len(optimizer.rules) == 4


def test_the_callers_groups_are_not_changed(generator):
    group = {"params": [parameter([1.0])], "rule": lstm(generator)}
    before = dict(group)
    LearnedOptimizer([group], SGD())
    assert group == before


def test_lr_may_be_a_tensor_that_a_scheduler_changes(rule):
    moved = []
    for lr in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        params = [parameter([1.0, -2.0], [0.3, -0.1]), parameter(1.0, 0.5)]
        optimizer = LearnedOptimizer(params, rule, lr=lr)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(3):
            optimizer.step()
            scheduler.step()
        moved.append(torch.cat([p.detach().flatten() for p in params]))
        assert float(optimizer.param_groups[0]["lr"]) == 0.0625
    assert torch.equal(moved[0], moved[1]) and torch.equal(moved[0], moved[2])


def test_group_added_later_starts_fresh(generator):
    rule = lstm(generator)
    first, second, alone = (parameter([1.0], [0.5]) for _ in range(3))
    optimizer = LearnedOptimizer([first], rule)
    optimizer.step()
    optimizer.add_param_group({"params": [second], "lr": 2.0})
    optimizer.step()
    LearnedOptimizer([alone], rule, lr=2.0).step()
    assert torch.equal(second.detach(), alone.detach())
    assert (optimizer.state[first]["step"], optimizer.state[second]["step"]) == (2, 1)


def test_named_parameters_are_accepted():
    model, inputs, targets = mlp()
    optimizer = LearnedOptimizer(model.named_parameters(), Adam(AdamConfig(lr=0.01)))
    losses = train(model, inputs, targets, optimizer, 10)
    assert losses[-1] < losses[0]
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


# ---------------------------------------------------------------- the contract of step


def test_closure_is_called_once_with_gradients_and_its_loss_returned():
    param, calls = parameter([2.0]), []
    optimizer = LearnedOptimizer([param], SGD(SGDConfig(0.25)))

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert (loss.item(), calls) == (4.0, [True])
    assert param.item() == pytest.approx(1.0)
    assert optimizer.step() is None


def test_parameters_without_gradient_are_skipped():
    params = [parameter([1.0], [1.0]), parameter([1.0])]
    optimizer = LearnedOptimizer(params, Adam(AdamConfig(lr=0.5)))
    optimizer.step()
    assert [p.item() for p in params] == pytest.approx([0.5, 1.0])
    assert set(optimizer.state) == {params[0]}


def test_step_writes_neither_gradients_nor_the_rule(rule):
    param = parameter([1.0, 2.0], [0.5, -0.5])
    weights = {name: tensor.clone() for name, tensor in rule.state_dict().items()}
    LearnedOptimizer([param], rule).step()
    assert param.grad.tolist() == [0.5, -0.5]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in rule.state_dict().items())


def test_rule_is_copied_and_frozen(rule):
    param, twin = parameter([1.0], [1.0]), parameter([1.0], [1.0])
    optimizer = LearnedOptimizer([param], rule)
    LearnedOptimizer([twin], rule).step()
    assert all(p.requires_grad for p in rule.parameters())
    assert not any(p.requires_grad for p in optimizer.rule.parameters())
    with torch.no_grad():
        for p in rule.parameters():
            p.fill_(3.0)
    optimizer.step()
    assert torch.equal(param.detach(), twin.detach())


def test_no_graph_is_kept(rule):
    param = parameter([1.0], [1.0])
    optimizer = LearnedOptimizer([param], rule)
    optimizer.step()
    assert param.is_leaf
    assert not any(value.requires_grad for value in optimizer.state[param].values())


def test_interrupted_update_leaves_the_state_usable(generator):
    param = parameter([1.0, 2.0], [0.5, 0.5])
    optimizer = LearnedOptimizer([param], lstm(generator))
    optimizer.step()
    before = {name: value.clone() for name, value in optimizer.state[param].items()}
    bias = optimizer.rule.output_bias.data
    optimizer.rule.output_bias.data = torch.zeros(3)  # makes the rule's update fail
    with pytest.raises((RuntimeError, ValueError), match="size|should be"):
        optimizer.step()
    optimizer.rule.output_bias.data = bias
    assert all(torch.equal(optimizer.state[param][name], value) for name, value in before.items())
    optimizer.step()
    assert optimizer.state[param]["step"] == 2


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("lr", [-0.1, math.inf, math.nan])
def test_lr_out_of_range_is_refused(lr):
    with pytest.raises(ValueError, match=f"lr must be a finite number of at least 0, got {lr}"):
        LearnedOptimizer([parameter([1.0])], SGD(), lr=lr)


@pytest.mark.parametrize("decay", [-0.1, math.inf, math.nan])
def test_weight_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"weight_decay must be a finite number of at least 0, got {decay}"):
        LearnedOptimizer([parameter([1.0])], SGD(), weight_decay=decay)


def test_tensor_of_several_lrs_is_refused():
    with pytest.raises(ValueError, match="must have one element, got shape"):
        LearnedOptimizer([parameter([1.0])], SGD(), lr=torch.ones(2))


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="state_dtype must be torch.bfloat16, or None .* got torch.float16"):
        LearnedOptimizer([parameter([1.0])], SGD(), state_dtype=torch.float16)
    with pytest.raises(ValueError, match="nonfinite must be .* got 'ignore'"):
        LearnedOptimizer([parameter([1.0])], SGD(), nonfinite="ignore")


def test_groups_added_with_wrong_options_are_refused(normalized_sgd):
    optimizer = LearnedOptimizer([parameter([1.0])], SGD())
    for option, error in {"lr": ValueError, "weight_decay": ValueError, "rule": TypeError}.items():
        wrong = normalized_sgd if option == "rule" else -1.0
        with pytest.raises(error, match=f"{option} must be|not a gradient rule"):
            optimizer.add_param_group({"params": [parameter([1.0])], option: wrong})
    with pytest.raises(TypeError, match="int is not a gradient rule"):
        optimizer.add_param_group({"params": [parameter([1.0])], "rule": 7})
    assert len(optimizer.param_groups) == 1


def test_parameter_in_two_groups_is_refused_as_by_every_optimizer():
    shared = parameter([1.0])
    with pytest.raises(ValueError, match="more than one parameter group"):
        LearnedOptimizer([{"params": [shared]}, {"params": [shared]}], SGD())


def test_rule_that_is_no_gradient_rule_is_refused(normalized_sgd):
    with pytest.raises(TypeError, match="NormalizedSGD is not a gradient rule; .* needs a CoordinatewiseRule"):
        LearnedOptimizer([parameter([1.0])], normalized_sgd)


def test_no_parameters_are_refused_as_by_every_optimizer():
    with pytest.raises(ValueError, match="empty parameter list"):
        LearnedOptimizer([], SGD())
