"""The registered operator: derivatives, vmap, fake tensors and torch.compile."""

import pytest
import torch
from torch.func import grad, jvp, vmap

from l2o import kernels
from l2o.kernels import Network, lstm_operator, reference

pytestmark = pytest.mark.usefixtures("compiled")

# Away from 0, from the kinks at |g| = e^-2 = 0.135, and on both sides of them.
GRADS = torch.tensor([0.03, -0.2, 0.9, -0.5, 1e-3], dtype=torch.float64)


@pytest.fixture
def problem(make_problem):
    problem = make_problem(2, 3, 5, 1, 2.0)
    problem.grads = GRADS.clone()
    return problem


def over(problem, function=kernels.step):
    """Return (grads, hidden, cell, w1, w2, b1, b2, w, b) -> results, and these tensors."""
    tensors = [problem.grads, *problem.state, *problem.weights, *problem.biases, *problem.theta[2:]]

    def run(grads, hidden, cell, w1, w2, b1, b2, output_weight, output_bias):
        network = Network([w1, w2], [b1, b2], output_weight, output_bias, **problem.constants)
        return function(grads, hidden, cell, network)

    return run, tensors


def test_first_and_second_derivatives_equal_central_differences(problem):
    run, tensors = over(problem)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


def test_operators_pass_opcheck(problem):
    arguments = (problem.grads, *problem.state, *problem.network)
    torch.library.opcheck(torch.ops.l2o.lstm_step.default, arguments)
    torch.library.opcheck(torch.ops.l2o.lstm_step_backward.default, (GRADS, *problem.state, *arguments))
    for tensor in (problem.grads, *problem.state, *problem.weights, *problem.biases, *problem.theta[2:]):
        tensor.requires_grad_()
    torch.library.opcheck(torch.ops.l2o.lstm_step.default, arguments)


def test_operators_pass_opcheck_with_bfloat16_state(make_problem):
    problem = make_problem(2, 3, 5, 1, 2.0, dtype=torch.float32)
    state = [tensor.bfloat16().requires_grad_() for tensor in problem.state]
    for tensor in (problem.grads, *problem.weights, *problem.biases, *problem.theta[2:]):
        tensor.requires_grad_()
    arguments = (problem.grads[0].detach().requires_grad_(), *state, *problem.network)
    torch.library.opcheck(torch.ops.l2o.lstm_step.default, arguments)


def test_derivatives_with_bfloat16_state_are_near_those_of_the_reference(make_problem):
    problem = make_problem(2, 3, 300, 1, 2.0, dtype=torch.float32)
    problem.grads = problem.grads[0]
    problem.hidden, problem.cell = problem.hidden.bfloat16(), problem.cell.bfloat16()
    results = []
    for function in (kernels.step, reference.step):
        run, tensors = over(problem, function)
        tensors = [tensor.detach().requires_grad_() for tensor in tensors]
        loss = sum(result.float().square().sum() for result in run(*tensors))
        results.append(torch.autograd.grad(loss, tensors))
    for mine, plain in zip(*results, strict=True):
        assert mine.dtype == plain.dtype
        # The kernel's replay does not round between the layers; the reference rounds cotangents there too.
        assert (mine.float() - plain.float()).norm() / plain.float().norm() < 1e-2


# The batch axis of (grads, hidden, cell, w1, w2, b1, b2, w, b).
AXES = {
    "coordinates": (0, 1, 1, None, None, None, None, None, None),
    "grads only": (1, None, None, None, None, None, None, None, None),
    "state only": (None, 3, 0, None, None, None, None, None, None),
    "weights": (None, None, None, 0, None, 1, None, None, None),
    "everything": (0, 2, 0, 0, 2, 1, 0, 0, 1),
}


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES.keys())
def test_vmap_equals_a_loop(problem, axes):
    run, tensors = over(problem)
    batched = [
        tensor if axis is None else torch.stack([tensor, 0.5 * tensor, -tensor], dim=axis)
        for tensor, axis in zip(tensors, axes, strict=True)
    ]
    ours = vmap(run, in_dims=axes)(*batched)
    for index in range(3):
        one = [x if axis is None else x.select(axis, index) for x, axis in zip(batched, axes, strict=True)]
        for batch, single in zip(ours, run(*one), strict=True):
            torch.testing.assert_close(batch[index], single, rtol=0, atol=1e-14)


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layers, p", [(1, None), (3, 10.0)])
def test_networks_of_particles_are_stepped_in_one_call(make_problem, monkeypatch, layers, p, state):
    """Bit for bit a loop over the kernel, and the reference up to rounding; with and without a shared state."""
    dtype = torch.float64 if state is torch.float64 else torch.float32
    # bfloat16's last bit may fall to the other side, at cells of up to 8
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-3, torch.bfloat16: 5e-2}[state]
    problems = [make_problem(layers, 5, 70, 1, p, seed, dtype) for seed in range(4)]
    monkeypatch.setattr(lstm_operator, "_vmap_loop", None)  # where the kernel is called directly, nothing loops

    def stack(pick):
        return torch.stack([pick(problem) for problem in problems])

    grads, hidden, cell = stack(lambda q: q.grads[0]), stack(lambda q: q.hidden.to(state)), problems[0].cell.to(state)
    theta = [
        [stack(lambda q, k=k, name=name: getattr(q, name)[k]) for k in range(layers)] for name in ("weights", "biases")
    ]
    theta += [stack(lambda q: q.output_weight), stack(lambda q: q.output_bias)]

    def run(grads, hidden, *theta):
        return kernels.step(grads, hidden, cell, Network(*theta, **problems[0].constants))

    found = vmap(run)(grads, hidden, *theta)
    for index, problem in enumerate(problems):
        arguments = (problem.grads[0], hidden[index], cell, problem.network)
        for batch, single, plain in zip(found, kernels.step(*arguments), reference.step(*arguments), strict=True):
            assert torch.equal(batch[index], single)
            assert (batch[index] - plain).abs().max() < tolerance


def test_derivatives_compose_with_vmap_in_either_order(problem):
    def loss(function):
        run, tensors = over(problem, function)
        return lambda w1, grads: run(grads, *tensors[1:3], w1, *tensors[4:])[0].square().sum()

    weight, batch = problem.weights[0], torch.stack([GRADS, -GRADS, 0.1 * GRADS])
    expected = torch.stack([grad(loss(reference.step))(weight, grads) for grads in batch])
    ours = vmap(grad(loss(kernels.step)), in_dims=(None, 0))(weight, batch)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)

    def total(weight):
        return vmap(loss(kernels.step), in_dims=(None, 0))(weight, batch).sum()

    torch.testing.assert_close(grad(total)(weight), expected.sum(0), rtol=1e-12, atol=1e-12)
    leaf = weight.clone().requires_grad_()
    total(leaf).backward()  # the operator's own backward, under its vmap rule
    torch.testing.assert_close(leaf.grad, expected.sum(0), rtol=1e-12, atol=1e-12)


# torch loads its own forward-mode decompositions through the deprecated torch.jit.script.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forward_mode_derivatives_are_those_of_the_reference(problem):
    def directional(function):
        run, tensors = over(problem, function)
        return jvp(lambda grads: run(grads, *tensors[1:])[0], (GRADS,), (torch.ones_like(GRADS),))

    torch.testing.assert_close(directional(kernels.step), directional(reference.step), rtol=1e-12, atol=1e-12)


# On some versions inductor's imports warn about deprecated modules of torch itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_compile_keeps_the_operator_whole(problem):
    run, tensors = over(problem)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(run(*tensors)[0].sum(), tensors)
    ours = torch.autograd.grad(compiled(*tensors)[0].sum(), tensors)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)

    def inner(grads):
        return run(grads, *(tensor.detach() for tensor in tensors[1:]))[0].square().sum()

    batch = torch.stack([GRADS, -GRADS])
    ours = torch.compile(vmap(grad(inner)), backend="aot_eager", fullgraph=True)(batch)
    torch.testing.assert_close(ours, vmap(grad(inner))(batch), rtol=0, atol=1e-12)
