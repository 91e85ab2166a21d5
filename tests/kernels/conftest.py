"""Random LSTM problems for the kernel tests, and the switch between kernel and reference."""

import dataclasses

import pytest
import torch
from torch import Tensor

from l2o.kernels import Network, build


@dataclasses.dataclass
class Problem:
    """A sequence of gradients and cotangents, a state, weights and constants."""

    grads: Tensor
    cotangents: Tensor
    hidden: Tensor
    cell: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    output_weight: Tensor
    output_bias: Tensor
    constants: dict

    @property
    def state(self):
        return self.hidden, self.cell

    @property
    def theta(self):
        return self.weights, self.biases, self.output_weight, self.output_bias

    @property
    def network(self):
        return Network(*self.theta, **self.constants)

    def to(self, dtype) -> "Problem":
        tensors = (self.grads, self.cotangents, *self.state)
        weights, biases = ([tensor.to(dtype) for tensor in tensors] for tensors in (self.weights, self.biases))
        output = (self.output_weight.to(dtype), self.output_bias.to(dtype))
        return Problem(*(tensor.to(dtype) for tensor in tensors), weights, biases, *output, self.constants)


def make(layers, size, n, steps, p, seed=0, dtype=torch.float64) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = [1 if p is None else 2] + [size] * (layers - 1)
    problem = Problem(
        grads=draw(steps, n) * (3 * draw(steps, n) - 3).exp(),  # magnitudes on both sides of e^-p
        cotangents=draw(steps, n),
        hidden=0.5 * draw(layers, size, n),
        cell=draw(layers, size, n),
        weights=[draw(4 * size, width + size) / size**0.5 for width in inputs],
        biases=[draw(4 * size) for _ in inputs],
        output_weight=draw(1, size),
        output_bias=draw(1),
        constants={"p": p, "log_eps": 1e-7, "scale": 0.1, "forget_bias": 1.0},
    )
    return problem.to(dtype)


@pytest.fixture
def make_problem():
    return make


@pytest.fixture
def compiled():
    """Skip where the kernels cannot be built: the reference would be compared with itself."""
    if build.library() is None:
        pytest.skip("no compiled kernels")


@pytest.fixture
def fresh_library(monkeypatch):
    """Let the next call look for the kernels again, and restore the loaded ones afterwards."""
    loaded = list(build._loaded)
    build._loaded.clear()
    yield
    build._loaded[:] = loaded


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of small operations wait for one another longest where other processes use the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
