"""Time of the LSTM kernels beside the plain reference: pytest tests/benchmarks --benchmark-only.

15,920 coordinates are one MNIST MLP 784-20-10. Divide by them (and by the steps) for the time per coordinate.
"""

import time

import pytest
import torch

from l2o import kernels
from l2o.kernels import reference

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.benchmark(timer=time.process_time, min_rounds=5, warmup=True, disable_gc=True)
N, STEPS = 15_920, 20


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 0.3 * torch.randn(shape, generator=generator)

    theta = ([draw(80, 22), draw(80, 40)], [draw(80), draw(80)], draw(1, 20), draw(1))
    network = kernels.Network(*theta, p=10.0, log_eps=0.0, scale=0.1, forget_bias=0.0)
    return draw(STEPS, N), draw(STEPS, N), draw(2, 20, N), draw(2, 20, N), network


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("module", [kernels, reference], ids=["fused", "plain"])
def test_step(benchmark, problem, module):
    grads, _, *rest = problem
    with torch.no_grad():
        updates, hidden, _ = benchmark(lambda: module.step(grads[0], *rest))
    assert updates.shape == (N,) and hidden.isfinite().all()


def test_step_in_place(benchmark, problem):
    grads, _, hidden, cell, network = problem
    state = (hidden.clone(), cell.clone())
    out = (torch.empty(N), *state)
    with torch.no_grad():
        benchmark(lambda: kernels.step(grads[0], *state, network, out=out))
    assert out[0].isfinite().all()


@pytest.mark.parametrize("module", [kernels, reference], ids=["fused", "plain"])
def test_sequence_vjp(benchmark, problem, module):
    weights, *_ = benchmark(lambda: module.sequence_vjp(*problem))
    assert weights[0].isfinite().all()


def _to_gpu(part):
    return part.cuda() if isinstance(part, torch.Tensor) else [tensor.cuda() for tensor in part]


@pytest.mark.gpu
@pytest.mark.benchmark(timer=time.perf_counter)
@pytest.mark.parametrize("n,state_dtype", [(10_000_000, torch.float32), (86_000_000, torch.bfloat16)])
def test_step_on_a_gpu(benchmark, problem, n, state_dtype):
    """The roofline in l2o/kernels/lstm_triton.py is for these two."""
    weights, biases, *output = (_to_gpu(part) for part in problem[-1][:4])
    network = kernels.Network(weights, biases, *output, *problem[-1][4:])
    grads = torch.randn(n, device="cuda")
    state = [torch.zeros(2, 20, n, device="cuda", dtype=state_dtype) for _ in range(2)]
    out = (torch.empty_like(grads), *state)

    def step():
        kernels.step(grads, *state, network, out=out)
        torch.cuda.synchronize()

    benchmark.pedantic(step, rounds=20, warmup_rounds=3)
    assert out[0].isfinite().all()
