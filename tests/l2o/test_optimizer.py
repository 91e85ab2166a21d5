"""The torch.optim shell: the same numbers as torch and as the bare rule, and the contract of torch.optim.Optimizer."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from l2o import LearnedOptimizer
from l2o.rules import SGD, Adam, AdamConfig, CoordinatewiseLSTM, LSTMConfig, Momentum, SGDConfig


def mlp(seed=0, dtype=None):
    """A small MLP with its data."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
        inputs, targets = torch.randn(20, 4, dtype=dtype), torch.randint(3, (20,))
    return model, inputs, targets


def train(model, inputs, targets, optimizer, steps, zero=True):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def lstm(generator, **options):
    return CoordinatewiseLSTM(LSTMConfig(hidden_size=4, **options), generator)


def parameter(value, grad=None, dtype=None):
    """A parameter whose gradient is given."""
    param = nn.Parameter(torch.as_tensor(value, dtype=dtype).clone())
    param.grad = None if grad is None else torch.as_tensor(grad, dtype=param.dtype)
    return param


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


def test_shell_equals_a_loop_over_the_rules_updates(rule):
    model, inputs, targets = mlp()
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    states = {name: rule.init_coordinates(p.reshape(-1)) for name, p in params.items()}

    def loss(params):
        return F.cross_entropy(torch.func.functional_call(model, params, (inputs,)), targets)

    for step in range(12):
        grads = torch.func.grad(loss)(params)
        for name, grad in grads.items():
            update, states[name] = rule.update(grad.reshape(-1), states[name], torch.tensor(step))
            params[name] = params[name] + update.detach().reshape(grad.shape)
    train(model, inputs, targets, LearnedOptimizer(model.parameters(), rule), 12)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), params[name], rtol=1e-10, atol=1e-12)


def test_scalar_and_four_dimensional_parameters_move_as_the_same_numbers_in_a_vector(rule, generator):
    values, grads = torch.randn(13, generator=generator), torch.randn(13, generator=generator)
    vector = parameter(values, grads)
    pieces = [parameter(values[0], grads[0]), parameter(values[1:].reshape(2, 1, 3, 2), grads[1:].reshape(2, 1, 3, 2))]
    for params in ([vector], pieces):
        optimizer = LearnedOptimizer(params, rule)
        for _ in range(3):
            optimizer.step()
    assert [tuple(p.shape) for p in pieces] == [(), (2, 1, 3, 2)]
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


def test_bfloat16_parameter_gets_the_float32_update_rounded_once(make_rule, generator):
    rule = make_rule()
    values, grads = (torch.randn(50, generator=generator).bfloat16() for _ in range(2))
    narrow, wide = parameter(values, grads), parameter(values.float(), grads.float())
    for param in (narrow, wide):
        LearnedOptimizer([param], rule, lr=100.0).step()  # large enough for eight bits of mantissa to move
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow.detach(), wide.detach().bfloat16())
    assert not torch.equal(narrow.detach(), values)


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


def test_scheduler_changes_the_lr():
    param = parameter([0.0], [1.0])
    optimizer = LearnedOptimizer([param], SGD(SGDConfig(1.0)))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    values = []
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        values.append(param.item())
    assert values == pytest.approx([-1.0, -1.5, -1.75])


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


# ---------------------------------------------------------------- saving and copying


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_from_a_state_dict_is_bit_for_bit(make_rule, dtype):
    model, inputs, targets = mlp(dtype=dtype)
    optimizer = LearnedOptimizer(model.parameters(), make_rule(), lr=0.5)
    train(model, inputs, targets, optimizer, 4)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, inputs, targets, optimizer, 4)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, _, _ = mlp(seed=9, dtype=dtype)
    resumed.load_state_dict(saved["model"])
    again = LearnedOptimizer(resumed.parameters(), make_rule())
    again.load_state_dict(saved["optimizer"])
    assert again.param_groups[0]["lr"] == 0.5
    train(resumed, inputs, targets, again, 4)
    for left, right in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(left, right)
        state = optimizer.state[right]
        assert state["step"] == 8
        for name, value in again.state[left].items():
            assert value.dtype == state[name].dtype == (torch.int64 if name == "step" else torch.float32)
            assert torch.equal(value, state[name])


def test_loading_copies_the_state_dict(generator):
    param = parameter([1.0], [1.0])
    optimizer = LearnedOptimizer([param], Momentum())
    optimizer.step()
    saved = optimizer.state_dict()
    other = LearnedOptimizer([parameter([1.0], [1.0])], Momentum())
    other.load_state_dict(saved)
    next(iter(other.state.values()))["momentum"].add_(100)
    assert optimizer.state[param]["momentum"].item() == 1.0


def test_state_dict_of_other_parameters_is_refused(generator):
    optimizer = LearnedOptimizer([parameter([1.0])], SGD())
    two = LearnedOptimizer([parameter([1.0]), parameter([1.0])], SGD())
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(two.state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_copy_of_model_and_optimizer_continues_like_the_original(make_rule, duplicate):
    model, inputs, targets = mlp()
    optimizer = LearnedOptimizer(model.parameters(), make_rule())
    train(model, inputs, targets, optimizer, 3)
    twin, twin_optimizer = duplicate((model, optimizer))
    untouched = [p.detach().clone() for p in model.parameters()]
    train(twin, inputs, targets, twin_optimizer, 3)
    assert all(torch.equal(left, right) for left, right in zip(model.parameters(), untouched, strict=True))
    train(model, inputs, targets, optimizer, 3)
    assert all(torch.equal(left, right) for left, right in zip(model.parameters(), twin.parameters(), strict=True))
    assert not torch.equal(next(model.parameters()), untouched[0])


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("lr", [-0.1, math.inf, math.nan])
def test_lr_out_of_range_is_refused(lr):
    with pytest.raises(ValueError, match=f"lr must be a finite number of at least 0, got {lr}"):
        LearnedOptimizer([parameter([1.0])], SGD(), lr=lr)


def test_rule_that_is_no_gradient_rule_is_refused(normalized_sgd):
    with pytest.raises(TypeError, match="NormalizedSGD is not a gradient rule; .* needs a CoordinatewiseRule"):
        LearnedOptimizer([parameter([1.0])], normalized_sgd)


def test_sparse_gradient_is_refused():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(RuntimeError, match="dense real gradients; got a sparse or complex one"):
        LearnedOptimizer(embedding.parameters(), SGD()).step()


def test_complex_gradient_is_refused():
    param = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    param.abs().sum().backward()
    with pytest.raises(RuntimeError, match="dense real gradients; got a sparse or complex one"):
        LearnedOptimizer([param], SGD()).step()


def test_no_parameters_are_refused_as_by_every_optimizer():
    with pytest.raises(ValueError, match="empty parameter list"):
        LearnedOptimizer([], SGD())
