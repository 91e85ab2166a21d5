"""Steps with checks made once are the steps that `step` makes, and refuse what it refuses."""

import pytest
import torch

from l2o import kernels
from l2o.kernels import lstm_cpu

SHAPES = [(1, 1, 1, None), (2, 20, 33, 10.0), (3, 5, 130, 10.0), (2, 20, 70, None)]


def kernel_and_reference(monkeypatch, reference):
    if reference:
        monkeypatch.setattr(lstm_cpu, "library", lambda: None)


@pytest.mark.parametrize("reference", [False, True], ids=["kernel", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers, size, n, p", SHAPES)
def test_many_steps_equal_single_ones_to_the_bit(make_problem, monkeypatch, layers, size, n, p, dtype, reference):
    kernel_and_reference(monkeypatch, reference)
    problem = make_problem(layers, size, n, 4, p).to(dtype)
    hidden, cell = (tensor.clone() for tensor in problem.state)
    state = problem.state
    with torch.no_grad():
        advance = kernels.stepper(hidden, cell, problem.network)
        for grads in problem.grads:
            expected, *state = kernels.step(grads, *state, problem.network)
            assert torch.equal(advance(grads), expected)
            assert torch.equal(hidden, state[0]) and torch.equal(cell, state[1])
    assert isinstance(advance, lstm_cpu.Stepper) is not reference


def test_bfloat16_state_is_advanced_as_by_single_steps(make_problem):
    problem = make_problem(2, 20, 50, 3, 10.0).to(torch.float32)
    hidden, cell = state = [tensor.to(torch.bfloat16) for tensor in problem.state]
    hidden, cell = hidden.clone(), cell.clone()
    with torch.no_grad():
        advance = kernels.stepper(hidden, cell, problem.network)
        for grads in problem.grads:
            expected, *state = kernels.step(grads, *state, problem.network)
            assert torch.equal(advance(grads), expected)
            assert torch.equal(hidden, state[0]) and torch.equal(cell, state[1])


def test_strided_gradients_and_weights_that_nothing_else_holds_are_read_right(make_problem):
    problem = make_problem(2, 6, 40, 1, 10.0)
    grads = torch.stack([problem.grads[0], problem.grads[0]], 1)[:, 0]
    strided = [torch.stack([weight, weight], 2)[..., 0] for weight in problem.weights]
    hidden, cell = (tensor.clone() for tensor in problem.state)
    with torch.no_grad():
        advance = kernels.stepper(hidden, cell, problem.network._replace(weights=strided))
        expected, *_ = kernels.step(problem.grads[0], *problem.state, problem.network)
        del strided
        rubbish = [torch.full((24, 12), float("nan"), dtype=torch.float64) for _ in range(20)]
        assert torch.equal(advance(grads), expected)
    assert not grads.is_contiguous() and len(rubbish) == 20


def test_what_does_not_fit_is_refused(make_problem):
    problem = make_problem(2, 6, 40, 1, 10.0)
    hidden, cell = (tensor.clone() for tensor in problem.state)
    with torch.no_grad():
        advance = kernels.stepper(hidden, cell, problem.network)
        for grads in (problem.grads[0, :-1], problem.grads[0].float(), problem.grads):
            with pytest.raises(ValueError, match="grads should be .40,., torch.float64"):
                advance(grads)
        with pytest.raises(ValueError, match="cell should be"):
            kernels.stepper(hidden, cell[:, :-1], problem.network)
        with pytest.raises(ValueError, match="out's hidden should be contiguous"):
            kernels.stepper(hidden.mT.contiguous().mT, cell, problem.network)
        with pytest.raises(ValueError, match=r"weights\[0\] should be"):
            kernels.stepper(hidden, cell, problem.network._replace(weights=problem.weights[::-1]))


def test_a_loop_under_autograd_is_refused(make_problem):
    problem = make_problem(2, 6, 40, 1, 10.0)
    problem.output_bias.requires_grad_()
    advance = kernels.stepper(*problem.state, problem.network)
    with pytest.raises(ValueError, match="loops without autograd"):
        advance(problem.grads[0])
