"""The Triton kernels against the reference; run by test_lstm_triton.py in a process of its own, on CPU or GPU.

By hand: TRITON_INTERPRET=1 pytest tests/kernels/triton_cases.py. Where that is set the kernels run in Triton's
interpreter on CPU tensors, which takes seconds for a network of 20 units.
"""

import os

import pytest
import torch

from l2o.kernels import lstm_triton, reference

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

SHAPES = [  # layers, H, n, K, p
    (2, 3, 130, 3, 10.0),  # n is not a multiple of the block of 128
    (1, 5, 64, 3, None),
    (3, 2, 33, 2, 2.0),
    (2, 1, 1, 2, 5.0),
    (1, 2, 0, 2, 5.0),
    (1, 2, 10, 0, 5.0),
]


def problem_on_device(make_problem, *shape, dtype=torch.float64):
    problem = make_problem(*shape, dtype=dtype)
    tensors = (problem.grads, problem.cotangents, *problem.state, *problem.weights, *problem.biases, *problem.theta[2:])
    for tensor in tensors:
        tensor.data = tensor.to(DEVICE)
    return problem


def flat(gradients):
    return [*gradients[0], *gradients[1], *gradients[2:4]]


@pytest.mark.parametrize("shape", SHAPES)
# float32: pre-activations reach 10, where float32 numbers are 1e-6 apart, and GPUs approximate e^x to 2 units.
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_step_equals_the_reference(make_problem, shape, dtype, tolerance):
    problem = problem_on_device(make_problem, *shape, dtype=dtype)
    for grads in problem.grads:
        ours = lstm_triton.step(grads, *problem.state, problem.network)
        theirs = reference.step(grads, *problem.state, problem.network)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_step_of_the_usual_size_equals_the_reference(make_problem):
    problem = problem_on_device(make_problem, 2, 20, 100, 1, 10.0, dtype=torch.float32)
    ours = lstm_triton.step(problem.grads[0], *problem.state, problem.network)
    theirs = reference.step(problem.grads[0], *problem.state, problem.network)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # see above


@pytest.mark.parametrize("shape", SHAPES)
def test_sequence_vjp_equals_autograd(make_problem, monkeypatch, shape):
    monkeypatch.setattr(lstm_triton, "_SEGMENT", 2)  # K = 3 takes two segments
    monkeypatch.setattr(lstm_triton, "_TAPE_BYTES", 1)  # chunks of 128 coordinates: n = 130 takes two
    problem = problem_on_device(make_problem, *shape)
    arguments = (problem.grads, problem.cotangents, *problem.state)
    ours = flat(lstm_triton.sequence_vjp(*arguments, problem.network))
    theirs = flat(reference.sequence_vjp(*arguments, problem.network))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_sequence_vjp_in_float32_is_accurate_and_the_same_in_every_run(make_problem):
    problem = problem_on_device(make_problem, 2, 3, 100, 3, 10.0, dtype=torch.float32)
    arguments = (problem.grads, problem.cotangents, *problem.state)
    ours, again = (flat(lstm_triton.sequence_vjp(*arguments, problem.network)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    exact = problem.to(torch.float64)
    arguments = (exact.grads, exact.cotangents, *exact.state)
    for mine, true in zip(ours, flat(reference.sequence_vjp(*arguments, exact.network)), strict=True):
        assert (mine.double() - true).norm() / true.norm() < 1e-5  # rounding errors through random weights


@pytest.mark.parametrize("p", [2.0, None])
def test_gradients_of_gradients_and_state_equal_autograd(make_problem, p):
    problem = problem_on_device(make_problem, 2, 3, 70, 3, p)
    inputs = [tensor.requires_grad_() for tensor in (problem.grads, *problem.state)]
    d_state = [torch.randn_like(problem.hidden), torch.randn_like(problem.cell)]
    memory, loss = problem.state, 0
    for grads, cotangent in zip(problem.grads, problem.cotangents, strict=True):
        updates, *memory = reference.step(grads, *memory, problem.network)
        loss = loss + (cotangent * updates).sum()
    loss = loss + sum((a * b).sum() for a, b in zip(memory, d_state, strict=True))
    expected = torch.autograd.grad(loss, inputs)
    detached = [tensor.detach() for tensor in inputs]
    arguments = (detached[0], problem.cotangents, *detached[1:], problem.network, d_state)
    ours = lstm_triton.sequence_vjp(*arguments, inputs=True)
    torch.testing.assert_close(ours[4:], expected, rtol=1e-10, atol=1e-10)


def test_bfloat16_state_is_rounded_as_in_the_reference(make_problem):
    problem = problem_on_device(make_problem, 2, 5, 200, 1, 10.0, dtype=torch.float32)
    state = [tensor.bfloat16() for tensor in problem.state]
    updates, *after = lstm_triton.step(problem.grads[0], *state, problem.network)
    expected, *rounded = reference.step(problem.grads[0], *state, problem.network)
    for mine, plain in zip(after, rounded, strict=True):
        assert mine.dtype == torch.bfloat16
        # A number beside the middle of two may be rounded the other way: one unit of 8 bits, for one in a thousand.
        torch.testing.assert_close(mine, plain, rtol=2**-7, atol=1e-6)
        assert (mine == plain).float().mean() > 0.99
    torch.testing.assert_close(updates, expected, rtol=0, atol=1e-3)  # through the hidden units of the first layer
    assert (updates - expected).abs().median() < 1e-6


def test_out_may_be_the_state_itself(make_problem):
    problem = problem_on_device(make_problem, 2, 3, 150, 1, 10.0)
    expected = lstm_triton.step(problem.grads[0], *problem.state, problem.network)
    out = (torch.empty_like(problem.grads[0]), *problem.state)
    lstm_triton.step(problem.grads[0], *problem.state, problem.network, out)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


@pytest.mark.parametrize("p", [10.0, None])
def test_nan_and_infinite_gradients_give_what_the_reference_gives(make_problem, p):
    problem = problem_on_device(make_problem, 2, 3, 40, 1, p, dtype=torch.float32)
    grads = problem.grads[0]
    grads[3], grads[5], grads[7], grads[9] = torch.nan, torch.inf, -torch.inf, 0.0
    ours = lstm_triton.step(grads, *problem.state, problem.network)
    theirs = reference.step(grads, *problem.state, problem.network)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, equal_nan=True)
    assert ours[0].isnan().nonzero().flatten().tolist() == [3]


def test_strided_tensors_are_read_right(make_problem):
    problem = problem_on_device(make_problem, 2, 3, 40, 2, 10.0)
    expected = flat(lstm_triton.sequence_vjp(problem.grads, problem.cotangents, *problem.state, problem.network))
    state = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in problem.state]
    strided = problem.network._replace(weights=[weight.T.contiguous().T for weight in problem.weights])
    ours = flat(lstm_triton.sequence_vjp(problem.grads.T.contiguous().T, problem.cotangents, *state, strided))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_errors_say_what_does_not_fit(make_problem):
    problem = problem_on_device(make_problem, 2, 3, 10, 2, 10.0)
    with pytest.raises(ValueError, match=r"hidden should be \(layers, H, n\)"):
        lstm_triton.step(problem.grads[0][:3], *problem.state, problem.network)
    with pytest.raises(ValueError, match=r"cotangents should be \(2, 10\)"):
        lstm_triton.sequence_vjp(problem.grads, problem.cotangents[:1], *problem.state, problem.network)
