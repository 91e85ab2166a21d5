"""Clauses on `step`, `zero_grad` and what may be optimised."""

import pytest
import torch
from torch import nn

from conformance.contract import Net, backward, parameter, train, values


def test_is_an_optimizer(make):
    """An optimizer is a `torch.optim.Optimizer`; schedulers, scalers and trainers check it."""
    assert isinstance(make(Net().parameters()), torch.optim.Optimizer)


def test_step_moves_parameters_with_gradients(make):
    """`step()` changes parameters that have non-zero gradients."""
    model = Net()
    before = values(model)
    train(model, make(model.parameters()), 3)
    assert values(model).isfinite().all()
    assert not torch.equal(values(model), before)


def test_step_returns_none_without_a_closure(make):
    """`step()` without a closure returns None."""
    model = Net()
    backward(model, 0)
    assert make(model.parameters()).step() is None


def test_step_calls_the_closure_with_gradients_enabled(make):
    """`step(closure)` calls the closure, with gradients enabled even where the caller has disabled them."""
    model, calls = Net(), []
    optimizer = make(model.parameters())

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        return backward(model, 0) if torch.is_grad_enabled() else torch.zeros(())

    before = values(model)
    with torch.no_grad():
        optimizer.step(closure)
    assert calls and all(calls)
    assert not torch.equal(values(model), before)


def test_step_returns_the_loss_of_the_closure(make):
    """`step(closure)` returns the loss that the closure returned."""
    model = Net()
    optimizer = make(model.parameters())
    returned = []
    loss = optimizer.step(lambda: returned.append(backward(model, 0)) or returned[-1])
    assert loss is not None
    assert float(loss) in [float(value) for value in returned]


def test_step_uses_the_gradients_of_the_closure(make):
    """`step(closure)` is `step()` after the closure's backward pass, for optimizers that evaluate it once."""
    left, right, calls = Net(), Net(), []
    optimizer, other = make(left.parameters()), make(right.parameters())
    optimizer.step(lambda: calls.append(1) or backward(left, 0))
    backward(right, 0)
    other.step()
    if len(calls) == 1:
        assert torch.equal(values(left), values(right))


def test_parameters_without_gradient_are_left_alone(make):
    """A parameter whose `grad` is None is skipped."""
    with_grad, without = parameter(3), parameter(3, grad=None)
    optimizer = make([without, with_grad])
    for _ in range(3):
        optimizer.step()
    assert torch.equal(without.detach(), torch.ones(3))
    assert not torch.equal(with_grad.detach(), torch.ones(3))


def test_a_step_without_any_gradient_does_nothing(make):
    """`step()` before the first backward pass changes nothing."""
    model = Net()
    before = values(model)
    make(model.parameters()).step()
    assert torch.equal(values(model), before)


def test_gradients_may_come_late(make):
    """A parameter may get its first gradient after steps without one."""
    early, late = parameter(3), parameter(3, grad=None)
    optimizer = make([early, late])
    optimizer.step()
    late.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(late.detach(), torch.ones(3))


def test_gradients_may_go_missing(make):
    """A parameter that had gradients and has none in this step does not move in this step."""
    one, other = parameter(3), parameter(3)
    optimizer = make([one, other])
    optimizer.step()
    one.grad, before = None, one.detach().clone()
    optimizer.step()
    assert torch.equal(one.detach(), before)


def test_frozen_parameters_are_accepted_and_left_alone(make):
    """Parameters that do not require a gradient are accepted and do not move; they may be thawed later."""
    model = Net()
    model.first.requires_grad_(False)
    optimizer, before = make(model.parameters()), model.first.detach().clone()
    train(model, optimizer, 2)
    assert torch.equal(model.first, before)
    model.first.requires_grad_(True)
    train(model, optimizer, 2)
    assert not torch.equal(model.first, before)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 3, 2), (2, 1, 3, 3), (1, 2, 1, 3, 2)], ids=str)
def test_parameters_have_any_number_of_dimensions(make, shape):
    """Scalars and tensors of up to five dimensions (3-D convolutions) are updated and keep their shape."""
    param = parameter(shape)
    optimizer = make([param])
    for _ in range(2):
        optimizer.step()
    assert param.shape == shape
    assert (param != 1).all()


def test_empty_parameters_are_accepted(make):
    """A parameter without elements is no error and does not disturb the others."""
    empty, other = parameter((0, 3)), parameter(2)
    optimizer = make([empty, other])
    for _ in range(2):
        optimizer.step()
    assert empty.shape == (0, 3)
    assert (other != 1).all()


def test_parameters_need_not_be_contiguous(make):
    """A transposed parameter moves as its contiguous copy does."""
    plain, transposed = (nn.Parameter(torch.arange(6.0).reshape(2, 3)) for _ in range(2))
    transposed.data = transposed.data.T.contiguous().T
    for param in (plain, transposed):
        param.grad = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.1, -0.1]])
        make([param]).step()
    assert not transposed.is_contiguous()
    torch.testing.assert_close(transposed.detach(), plain.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_parameters_of_every_real_dtype_are_updated(make, dtype):
    """float16, bfloat16, float32 and float64 parameters are updated and keep their dtype."""
    params = [parameter(8, 0.5, dtype), parameter((2, 3), -0.5, dtype)]
    optimizer = make(params)
    for _ in range(5):
        optimizer.step()
    assert {param.dtype for param in params} == {dtype}
    assert all(param.isfinite().all() and not torch.equal(param, torch.ones_like(param)) for param in params)


def test_dtypes_may_be_mixed(make):
    """One optimizer may hold parameters of several dtypes."""
    dtypes = [torch.bfloat16, torch.float32, torch.float64]
    params = [parameter(3, 1.0, dtype) for dtype in dtypes]
    optimizer = make(params)
    for _ in range(3):
        optimizer.step()
    assert [param.dtype for param in params] == dtypes
    assert all((param != 1).any() for param in params)


def test_step_updates_in_place(make):
    """`step()` writes into the parameter's memory, which views, tied weights and other processes may share."""
    param = parameter(4)
    view, address = param.detach().view(2, 2), param.data_ptr()
    make([param]).step()
    assert param.data_ptr() == address
    assert torch.equal(view.reshape(-1), param.detach())
    assert not torch.equal(view, torch.ones(2, 2))


def test_step_keeps_parameters_leaves_and_builds_no_graph(make):
    """`step()` builds no graph: parameters stay leaves that require gradients, the state requires none."""
    model = Net()
    optimizer = make(model.parameters())
    train(model, optimizer, 2)
    assert all(param.is_leaf and param.requires_grad for param in model.parameters())
    entries = [value for memory in optimizer.state.values() for value in memory.values()]
    assert not any(value.requires_grad for value in entries if isinstance(value, torch.Tensor))


def test_step_leaves_gradients_alone(make):
    """`step()` changes no gradient: it may be logged, or accumulated further."""
    model = Net()
    backward(model, 0)
    before = [param.grad.clone() for param in model.parameters()]
    make(model.parameters()).step()
    assert all(torch.equal(param.grad, grad) for param, grad in zip(model.parameters(), before, strict=True))


def test_zero_grad_removes_gradients(make):
    """`zero_grad()` sets gradients to None, with `set_to_none=False` to zero in place."""
    model = Net()
    optimizer = make(model.parameters())
    backward(model, 0)
    gradient = model.first.grad
    optimizer.zero_grad(set_to_none=False)
    assert model.first.grad is gradient and not gradient.any()
    optimizer.zero_grad()
    assert all(param.grad is None for param in model.parameters())


def test_accumulated_gradients_are_one_gradient(make):
    """Backward passes add up between steps: two with half the loss move parameters as one with the whole."""
    once, twice = Net(), Net()
    optimizers = make(once.parameters()), make(twice.parameters())
    for step in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(once, step)
        for param, other in zip(once.parameters(), twice.parameters(), strict=True):
            other.grad = param.grad / 2
            other.grad += param.grad / 2
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(values(once), values(twice))


def test_tied_parameters_move_once(make):
    """A parameter that a model uses twice is one parameter: it moves as if its summed gradient came from one use."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = nn.Linear(4, 4, bias=False)
            self.decode = nn.Linear(4, 4, bias=False)
            self.decode.weight = self.encode.weight
            nn.init.eye_(self.encode.weight)

    model, single = Tied(), nn.Parameter(torch.eye(4))
    optimizers = make(model.parameters()), make([single])
    inputs = torch.arange(8.0).reshape(2, 4)
    model.decode(model.encode(inputs)).square().sum().backward()
    single.grad = model.encode.weight.grad.clone()
    for optimizer in optimizers:
        optimizer.step()
    assert model.encode.weight is model.decode.weight
    assert torch.equal(model.encode.weight, single)


def test_the_same_start_gives_the_same_end(make):
    """Two runs from the same start with the same random seed agree bit for bit; optimizers share nothing."""
    left, right = Net(), Net()
    optimizer, other = make(left.parameters()), make(right.parameters())
    for step in range(4):  # interleaved, so that shared state would show
        for model, mine in ((left, optimizer), (right, other)):
            torch.manual_seed(step)
            train(model, mine, [step])
    assert torch.equal(values(left), values(right))


def refused_or_moved(optimizer, param) -> bool:
    before = param.detach().clone()
    try:
        optimizer.step()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        return bool(str(error))
    return not torch.equal(param.detach(), before)


def test_sparse_gradients_are_used_or_refused(make):
    """A sparse gradient is used or refused with an error, never ignored."""
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 3])).sum().backward()
    assert refused_or_moved(make(embedding.parameters()), embedding.weight)


def test_complex_gradients_are_used_or_refused(make):
    """A complex parameter is optimised or refused with an error, never ignored."""
    param = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    param.abs().sum().backward()
    assert refused_or_moved(make([param]), param)
