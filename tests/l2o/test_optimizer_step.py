"""Which gradients enter a step, and which tensors share a call of their rule."""

import pytest
import torch
from small_models import mlp, parameter, train
from torch import nn

from l2o import LearnedOptimizer, optimizer_step
from l2o.rules import SGD, Adam, AdamConfig, SGDConfig

# ---------------------------------------------------------------- joining small tensors


def mixture(generator):
    """Groups of tensors of several sizes, precisions and options, two without gradient at first."""
    sizes = [(3,), (2, 2), (), (1100,), (0,), (5,), (7, 3), (1, 1, 2)]
    params = [parameter(torch.randn(size, generator=generator)) for size in sizes]
    params += [parameter(torch.randn(4, generator=generator), dtype=dtype) for dtype in (torch.float64, torch.bfloat16)]
    groups = [
        {"params": params[:4]},
        {"params": params[4:7], "lr": 0.5, "weight_decay": 0.1},
        {"params": params[7:], "maximize": True},
    ]
    return params, groups


def test_joined_tensors_move_as_separate_ones(make_rule, monkeypatch):
    results = []
    for join_below in (0, 10_000):
        monkeypatch.setattr(optimizer_step, "JOIN_BELOW", join_below)
        generator = torch.Generator().manual_seed(0)
        params, groups = mixture(generator)
        optimizer = LearnedOptimizer(groups, make_rule())
        for step in range(4):
            for index, param in enumerate(params):
                late = index in (1, 5) and step < 2
                grad = torch.randn(param.shape, generator=generator).to(param.dtype)
                param.grad = None if late else grad
            optimizer.step()
        results.append((params, [optimizer.state[param] for param in params]))
    (alone, memories), (joined, others) = results
    assert [int(memory["step"]) for memory in others] == [4, 2, 4, 4, 4, 2, 4, 4, 4, 4]
    # The kernel computes the last few coordinates of a call in another order of operations.
    close = {"rtol": 1e-5, "atol": 1e-6}
    for left, right, memory, other in zip(alone, joined, memories, others, strict=True):
        torch.testing.assert_close(left.float(), right.float(), **close)
        for name in memory:
            torch.testing.assert_close(memory[name], other[name], **close)


def test_small_tensors_of_one_age_and_precision_share_a_call(generator):
    params, groups = mixture(generator)
    optimizer = LearnedOptimizer(groups, SGD())
    calls, update = [], optimizer.rule.update
    optimizer.rule.update = lambda grads, *rest: calls.append((len(grads), grads.dtype)) or update(grads, *rest)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    # the tensor of 1,100 coordinates alone, 36 in float32 with 4 in bfloat16, 4 in float64
    assert calls == [(1100, torch.float32), (40, torch.float32), (4, torch.float64)]
    params[0].grad = None
    optimizer.step()
    params[0].grad = torch.ones_like(params[0])  # one step younger now
    del calls[:]
    optimizer.step()
    assert sorted(length for length, _ in calls) == [3, 4, 37, 1100]


# ---------------------------------------------------------------- gradients that are not finite


def three(bad=float("nan"), dtype=None):
    """Three parameters, of which the second has a bad gradient."""
    return [parameter([1.0, 2.0], grad, dtype) for grad in ([0.5, 0.5], [0.5, bad], [0.5, 0.5])]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensor_with_a_bad_gradient_is_left_alone_and_counted(make_rule, bad, dtype):
    good, bad_one, other = params = three(bad, dtype)
    optimizer = LearnedOptimizer(params, make_rule(), lr=100.0, weight_decay=0.001)
    with pytest.warns(UserWarning, match=r"not finite, .*in this step: group 0\[1\]\. "):
        optimizer.step()
    optimizer.step()  # silent: warnings are errors here
    assert bad_one.tolist() == [1.0, 2.0]
    assert optimizer.skipped == 2
    assert bad_one not in optimizer.state
    assert [int(optimizer.state[param]["step"]) for param in (good, other)] == [2, 2]
    assert good.tolist() != [1.0, 2.0] and torch.equal(good.detach(), other.detach())


def test_after_a_bad_gradient_training_goes_on_as_if_there_had_been_none(make_rule):
    params, twins = [parameter([1.0, 2.0]) for _ in range(2)], [parameter([1.0, 2.0]) for _ in range(2)]
    optimizer, twin = LearnedOptimizer(params, make_rule()), LearnedOptimizer(twins, make_rule())
    for step in range(4):
        for param, other in zip(params, twins, strict=True):
            param.grad = torch.tensor([0.1 * step, float("nan") if step == 2 else 0.3])
            other.grad = None if step == 2 else param.grad.clone()
        if step == 2:
            with pytest.warns(UserWarning, match="not finite"):
                optimizer.step()
        else:
            optimizer.step()
        twin.step()
    for param, other in zip(params, twins, strict=True):
        assert torch.equal(param.detach(), other.detach())
        assert all(torch.equal(optimizer.state[param][name], value) for name, value in twin.state[other].items())


def test_the_warning_names_the_parameter_and_points_to_the_call():
    model, inputs, targets = mlp()
    optimizer = LearnedOptimizer(model.named_parameters(), SGD())
    train(model, inputs, targets, optimizer, 1)
    model[2].weight.grad[0, 0] = float("inf")
    with pytest.warns(UserWarning, match="in this step: 2.weight. ") as record:
        optimizer.step()
    assert record[0].filename == __file__


@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 6e4), (torch.bfloat16, 1e38), (torch.float32, 1e30)])
def test_finite_gradients_whose_squares_overflow_are_fed_to_the_rule(dtype, value):
    param = parameter([1.0, 1.0], [value, -value], dtype)
    optimizer = LearnedOptimizer([param], Adam(AdamConfig(lr=0.5)))
    optimizer.step()
    assert optimizer.skipped == 0
    assert optimizer.state[param]["first_moment"][0] == pytest.approx(0.1 * float(param.grad[0]), rel=1e-5)


def test_raise_reports_a_bad_gradient_before_anything_has_moved():
    params = three()
    optimizer = LearnedOptimizer(params, SGD(), nonfinite="raise")
    with pytest.raises(RuntimeError, match=r"gradients are not finite: group 0\[1\]. Nothing has been updated"):
        optimizer.step()
    assert all(param.tolist() == [1.0, 2.0] for param in params)
    assert not optimizer.state
    params[1].grad.zero_()
    optimizer.step()
    assert params[0].tolist() != [1.0, 2.0]


def test_pass_feeds_a_bad_gradient_to_the_rule():
    params = three()
    LearnedOptimizer(params, SGD(SGDConfig(1.0)), nonfinite="pass").step()
    assert params[1][1].isnan() and params[1][0] == 0.5
    assert params[0].tolist() == [0.5, 1.5]


# ---------------------------------------------------------------- gradients that no rule can read


def sparse():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 3])).sum().backward()
    return embedding.weight


def complex_valued():
    param = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    param.abs().sum().backward()
    return param


@pytest.mark.parametrize("make", [sparse, complex_valued])
def test_sparse_and_complex_gradients_are_refused_before_anything_has_moved(make):
    param = parameter([1.0], [1.0])
    with pytest.raises(RuntimeError, match="dense real gradients; got a sparse or complex one"):
        LearnedOptimizer([param, make()], SGD()).step()
    assert param.item() == 1.0
