"""Small models, loops and parameters for the tests of the shell."""

import torch
from torch import nn
from torch.nn import functional as F


def mlp(seed=0, dtype=None):
    """A small MLP with its data."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
        inputs, targets = torch.randn(20, 4, dtype=dtype), torch.randint(3, (20,))
    return model, inputs, targets


def train(model, inputs, targets, optimizer, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def parameter(value, grad=None, dtype=None):
    """A parameter whose gradient is given."""
    param = nn.Parameter(torch.as_tensor(value, dtype=dtype).clone())
    param.grad = None if grad is None else torch.as_tensor(grad, dtype=param.dtype)
    return param


def assert_same(left, right):
    """Two models have the same parameters, bit for bit."""
    for one, other in zip(left.parameters(), right.parameters(), strict=True):
        assert torch.equal(one, other)
