"""Time of a second-order outer step: pytest tests/benchmarks --benchmark-only -k second_order.

16 MLPs 64-20-10 on digits, 20 inner steps of gradient descent whose step size is learned. `l2o speed` has MNIST.
"""

import time

import pytest
import torch

from meta_train.estimators import Truncated
from meta_train.speed_loops import hand_written_outer_step, our_second_order_step
from tasks import MLP

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.benchmark(timer=time.process_time, min_rounds=5, warmup=True, disable_gc=True)
FAMILY, N_TASKS = MLP("digits"), 16

METHODS = {
    "by hand": lambda: hand_written_outer_step(FAMILY, N_TASKS),
    "eager": lambda: our_second_order_step(Truncated(2), FAMILY, N_TASKS),
    "compiled": lambda: our_second_order_step(Truncated(2, compile_steps=4), FAMILY, N_TASKS),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("method", METHODS)
def test_second_order(benchmark, method):
    step = METHODS[method]()
    step()  # compiles
    assert benchmark(step) is None
