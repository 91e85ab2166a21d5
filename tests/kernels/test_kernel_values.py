"""The fused LSTM against the plain reference, torch.nn.LSTMCell, and autograd."""

import pytest
import torch

from l2o import kernels
from l2o.kernels import reference

pytestmark = pytest.mark.usefixtures("compiled")

BFLOAT16_ERROR = 0.01  # of the updates of 50 steps, relative, through random weights

SHAPES = [  # layers, H, n, K, p
    (2, 20, 100, 7, 10.0),
    (1, 20, 64, 3, 5.0),
    (3, 7, 33, 5, None),
    (2, 20, 1, 2, 10.0),
    (2, 1, 50, 4, 10.0),
    (1, 5, 0, 3, None),
    (2, 20, 129, 1, 10.0),
    (2, 33, 300, 6, 2.0),
    (1, 3, 70, 0, 2.0),
]


def flat(gradients):
    weights, biases, output_weight, output_bias = gradients
    return [*weights, *biases, output_weight, output_bias]


@pytest.mark.parametrize("shape", SHAPES)
def test_step_equals_the_reference_in_float64(make_problem, shape):
    problem = make_problem(*shape)
    for grads in problem.grads:
        ours = kernels.step(grads, *problem.state, problem.network)
        theirs = reference.step(grads, *problem.state, problem.network)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_step_is_as_accurate_as_the_reference_in_float32(make_problem, shape):
    problem = make_problem(*shape)
    single = problem.to(torch.float32)
    for grads, exact_grads in zip(single.grads, problem.to(torch.float32).to(torch.float64).grads, strict=True):
        ours = kernels.step(grads, *single.state, single.network)
        exact = single.to(torch.float64)
        exact = reference.step(exact_grads, *exact.state, exact.network)
        for result, true in zip(ours, exact, strict=True):
            # Pre-activations reach 10, where float32 numbers are 1e-6 apart.
            torch.testing.assert_close(result.double(), true, rtol=0, atol=4e-6)


def test_step_equals_stacked_lstm_cells(make_problem):
    problem = make_problem(2, 20, 100, 1, None)
    problem.constants.update(forget_bias=0.0, scale=1.0)
    inputs = problem.grads[0][:, None]
    # torch orders the gates i, f, g, o; the kernel i, f, o, g.
    order = torch.arange(80).reshape(4, 20)[[0, 1, 3, 2]].flatten()
    for layer, (weight, bias) in enumerate(zip(problem.weights, problem.biases, strict=True)):
        cell = torch.nn.LSTMCell(inputs.shape[1], 20, dtype=torch.float64).requires_grad_(False)
        cell.weight_ih.copy_(weight[order, : inputs.shape[1]])
        cell.weight_hh.copy_(weight[order, inputs.shape[1] :])
        cell.bias_ih.copy_(bias[order])
        cell.bias_hh.zero_()
        inputs, memory = cell(inputs, (problem.hidden[layer].T, problem.cell[layer].T))
    updates, hidden, cells = kernels.step(problem.grads[0], *problem.state, problem.network)
    torch.testing.assert_close(hidden[1], inputs.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(cells[1], memory.T, rtol=0, atol=1e-12)
    expected = (inputs @ problem.output_weight.T)[:, 0] + problem.output_bias
    torch.testing.assert_close(updates, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_sequence_vjp_equals_autograd_in_float64(make_problem, shape):
    problem = make_problem(*shape)
    sequences = (problem.grads, problem.cotangents)
    ours = flat(kernels.sequence_vjp(*sequences, *problem.state, problem.network))
    theirs = flat(reference.sequence_vjp(*sequences, *problem.state, problem.network, chunk=60))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_sequence_vjp_of_many_segments_equals_autograd(make_problem):
    problem = make_problem(2, 64, 3, 230, 10.0)  # the tape holds about 72 steps: states are kept and steps replayed
    sequences = (problem.grads, problem.cotangents)
    ours = flat(kernels.sequence_vjp(*sequences, *problem.state, problem.network))
    theirs = flat(reference.sequence_vjp(*sequences, *problem.state, problem.network))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_sequence_vjp_in_float32_is_accurate(make_problem):
    single = make_problem(2, 20, 5000, 20, 10.0, dtype=torch.float32)
    exact = single.to(torch.float64)
    ours, true = (flat(kernels.sequence_vjp(p.grads, p.cotangents, *p.state, p.network)) for p in (single, exact))
    for result, expected in zip(ours, true, strict=True):
        error = (result.double() - expected).norm() / expected.norm()
        assert error < 1e-5  # 20 steps of rounding errors through random weights; autograd in float32: 4e-6


def test_sequence_vjp_is_the_same_bit_for_bit_in_every_run_and_for_every_number_of_threads(make_problem):
    problem = make_problem(2, 20, 3001, 5, 10.0, dtype=torch.float32)
    results = []
    for count in (1, 2, 3, 1, 2):
        torch.set_num_threads(count)
        arguments = (problem.grads, problem.cotangents, *problem.state, problem.network)
        step = kernels.step(problem.grads[0], *problem.state, problem.network)
        results.append([*flat(kernels.sequence_vjp(*arguments)), *step])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("p", [10.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_and_infinite_gradients_give_what_the_reference_gives(make_problem, p, dtype):
    problem = make_problem(2, 20, 40, 1, p, dtype=dtype)
    grads = problem.grads[0]
    grads[3], grads[5], grads[7], grads[9] = torch.nan, torch.inf, -torch.inf, 0.0
    ours = kernels.step(grads, *problem.state, problem.network)
    theirs = reference.step(grads, *problem.state, problem.network)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, equal_nan=True)
    assert ours[0].isnan().nonzero().flatten().tolist() == [3]
    arguments = (problem.grads.nan_to_num(posinf=1.0, neginf=-1.0, nan=torch.nan), problem.cotangents, *problem.state)
    ours, theirs = (flat(m.sequence_vjp(*arguments, problem.network)) for m in (kernels, reference))
    for mine, plain in zip(ours, theirs, strict=True):
        assert torch.equal(mine.isnan(), plain.isnan())
    assert ours[0].isnan().all()


@pytest.mark.parametrize("p", [10.0, 80.0, 100.0])
def test_features_reach_subnormal_gradients(make_problem, p):
    problem = make_problem(1, 4, 64, 1, p, dtype=torch.float32)
    problem.constants["log_eps"] = 0.0
    grads = torch.logspace(-45, 38, 64).float()
    ours = kernels.step(grads, *problem.state, problem.network)
    theirs = reference.step(grads, *problem.state, problem.network)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)  # log|g| / p near 9 is rounded by 5e-7


def test_strided_and_unaligned_tensors_are_read_right(make_problem):
    problem = make_problem(2, 7, 101, 3, 10.0)
    expected = kernels.step(problem.grads[0], *problem.state, problem.network)
    state = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in problem.state]
    weights = [weight.T.contiguous().T for weight in problem.weights]
    grads = torch.cat([problem.grads[0][:1], problem.grads[0]])[1:]
    ours = kernels.step(grads, *state, problem.network._replace(weights=weights))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_out_may_be_the_state_itself(make_problem):
    problem = make_problem(2, 20, 700, 1, 10.0)
    expected = kernels.step(problem.grads[0], *problem.state, problem.network)
    out = (torch.empty_like(problem.grads[0]), *problem.state)
    kernels.step(problem.grads[0], *problem.state, problem.network, out=out)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


def test_errors_say_what_does_not_fit(make_problem):
    problem = make_problem(2, 5, 10, 2, 10.0)
    grads, (hidden, cell), network = problem.grads[0], problem.state, problem.network
    with pytest.raises(ValueError, match=r"hidden should be \(layers, H, n\)"):
        kernels.step(grads[:3], hidden, cell, network)
    with pytest.raises(ValueError, match=r"cell should be \(2, 5, 10\), torch.float64 .* torch.float32"):
        kernels.step(grads, hidden, cell.float(), network)
    with pytest.raises(ValueError, match=r"hidden should be torch.float64, or bfloat16 beside float32"):
        kernels.step(grads, hidden.bfloat16(), cell.bfloat16(), network)
    with pytest.raises(ValueError, match=r"2 layers, but there are 1 weights"):
        kernels.step(grads, hidden, cell, network._replace(weights=network.weights[:1]))
    with pytest.raises(ValueError, match=r"weights\[0\] should be \(20, 6\)"):
        kernels.step(grads, hidden, cell, network._replace(p=None))
    with pytest.raises(ValueError, match=r"cotangents should be \(2, 10\)"):
        kernels.sequence_vjp(problem.grads, problem.cotangents[:1], hidden, cell, network)
    out = (torch.empty(20, dtype=torch.float64)[::2], hidden, cell)
    with pytest.raises(ValueError, match=r"out's updates should be contiguous"):
        kernels.step(grads, hidden, cell, network, out=out)
    with pytest.raises(ValueError, match=r"out= is for loops without autograd"):
        kernels.step(grads.requires_grad_(), hidden, cell, network, out=(grads, hidden, cell))


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_state_is_rounded_as_in_the_reference(make_problem, shape):
    problem = make_problem(*shape, dtype=torch.float32)
    state = [tensor.bfloat16() for tensor in problem.state]
    for grads in problem.grads:
        updates, *after = kernels.step(grads, *state, problem.network)
        expected, *rounded = reference.step(grads, *state, problem.network)
        assert updates.dtype == torch.float32
        for mine, plain in zip(after, rounded, strict=True):
            assert mine.dtype == torch.bfloat16
            # A number beside the middle of two may be rounded the other way (one unit of 8 bits), and the next layer
            # reads it: that happens to about one in 10,000.
            torch.testing.assert_close(mine, plain, rtol=2**-6, atol=1e-3)
            assert (mine != plain).sum() <= 2 + mine.numel() // 500
        torch.testing.assert_close(updates, expected, rtol=0, atol=1e-3)  # through such a number


def test_bfloat16_state_rounds_to_nearest_even_and_keeps_nan(make_problem):
    problem = make_problem(2, 20, 1000, 1, 10.0, dtype=torch.float32)
    problem.grads[0][3] = torch.nan
    state = [tensor.bfloat16() for tensor in problem.state]
    wide = [tensor.float() for tensor in state]
    _, *exact = kernels.step(problem.grads[0], *wide, problem.network)
    out = (torch.empty_like(problem.grads[0]), *state)
    updates, *after = kernels.step(problem.grads[0], *state, problem.network, out=out)
    assert after[0] is state[0] and after[1] is state[1]
    for mine, true in zip(after, exact, strict=True):  # the first layer has no rounded inputs
        assert torch.equal(mine[0].nan_to_num(7.0), true[0].bfloat16().nan_to_num(7.0))
        assert mine[:, :, 3].isnan().all() and mine.isnan().sum() == 40
    assert updates.isnan().sum() == 1


def test_error_of_bfloat16_state_over_many_steps(make_problem):
    problem = make_problem(2, 20, 500, 50, 10.0, dtype=torch.float32)
    states = {dtype: [tensor.to(dtype) for tensor in problem.state] for dtype in (torch.float32, torch.bfloat16)}
    error = total = 0.0
    for grads in problem.grads:
        updates = {}
        for dtype, state in states.items():
            updates[dtype], *states[dtype] = kernels.step(grads, *state, problem.network)
        error += (updates[torch.bfloat16] - updates[torch.float32]).square().sum().item()
        total += updates[torch.float32].square().sum().item()
    assert 1e-4 < (error / total) ** 0.5 < BFLOAT16_ERROR


def test_sequence_vjp_takes_bfloat16_state(make_problem):
    problem = make_problem(2, 5, 70, 3, 10.0, dtype=torch.float32)
    state = [tensor.bfloat16() for tensor in problem.state]
    sequences = (problem.grads, problem.cotangents)
    for module in (kernels, reference):
        ours = module.sequence_vjp(*sequences, *state, problem.network)
        theirs = module.sequence_vjp(*sequences, *(x.float() for x in state), problem.network)
        assert all(torch.equal(a, b) for a, b in zip(flat(ours), flat(theirs), strict=True))
