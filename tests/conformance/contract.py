"""What the clauses share: a small model with data, training, and comparison."""

import io

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """A classifier with matrices and vectors."""

    def __init__(self, dtype=torch.float32, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(6, 4, generator=generator).to(dtype) / 2)
        self.bias = nn.Parameter(torch.zeros(6, dtype=dtype))
        self.second = nn.Parameter(torch.randn(3, 6, generator=generator).to(dtype) / 2)
        self.offset = nn.Parameter(torch.zeros(3, dtype=dtype))

    def forward(self, inputs):
        return torch.tanh(inputs @ self.first.T + self.bias) @ self.second.T + self.offset


def batch(step, dtype=torch.float32, size=16):
    """The minibatch of a step."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(size, 4, generator=generator).to(dtype), torch.randint(3, (size,), generator=generator)


def backward(model, step, scale=None):
    """Leave the gradients of a step's minibatch, of the loss or of a multiple; return the loss."""
    inputs, targets = batch(step, next(model.parameters()).dtype)
    loss = F.cross_entropy(model(inputs), targets)
    (loss if scale is None else scale(loss)).backward()
    return loss.detach()


def train(model, optimizer, steps, advance=None):
    """Train on the minibatches of these steps, as range or number; return the losses."""
    losses = []
    for step in range(steps) if isinstance(steps, int) else steps:
        optimizer.zero_grad()
        losses.append(float(backward(model, step)))
        optimizer.step()
        if advance is not None:
            advance()
    return losses


def values(model_or_params):
    """All numbers of a model, as one vector that later steps do not change."""
    params = model_or_params.parameters() if isinstance(model_or_params, nn.Module) else model_or_params
    return torch.cat([param.detach().reshape(-1).clone() for param in params])


def parameter(shape, grad=1.0, dtype=torch.float32):
    """A parameter of ones with a constant gradient; None leaves it without."""
    param = nn.Parameter(torch.ones(shape, dtype=dtype))
    param.grad = None if grad is None else torch.full_like(param, grad)
    return param


def through_a_file(thing):
    """Save and load without unpickling code."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
