"""How much to regularise a polynomial fit: too little, too much, the best by a grid, and learned by hypergradients."""

from typing import NamedTuple

import torch
from torch import Tensor

import l2o
from tasks.polynomial import PolynomialRegression

TOO_LITTLE, TOO_MUCH = -18.0, 2.0
"""λ of the two failures."""
GRID = (-18.0, 4.0, 89)
"""λ that the grid search tries: first, last, how many."""


class PolynomialFit(NamedTuple):
    """A fit and its regularisation."""

    log_decay: Tensor
    """λ, shape () or (degree + 1,)."""
    weights: Tensor
    """Coefficients, shape (degree + 1,)."""


def all_fits(problem: PolynomialRegression, steps: int, lr: float = 0.1) -> dict[str, PolynomialFit]:
    """Return the fits by name: with too little, too much, the grid's and the learned regularisation.

    Args:
        steps: of Adam on the validation loss, for each of the learned ones.
        lr: its step size.
    """
    like = problem.zero_weights()
    found = {name: like.new_tensor(value) for name, value in (("too little", TOO_LITTLE), ("too much", TOO_MUCH))}
    grid = torch.linspace(*GRID, dtype=like.dtype)
    losses = torch.stack([problem.loss(problem.closed_form(log_decay), problem.valid) for log_decay in grid])
    found["grid"] = grid[losses.argmin()]
    found["learned, one"] = learn(problem, like.new_zeros(()), steps, lr)
    found["learned, one a degree"] = learn(problem, found["learned, one"].expand(problem.degree + 1), steps, lr)
    return {name: PolynomialFit(log_decay, problem.closed_form(log_decay)) for name, log_decay in found.items()}


def learn(problem: PolynomialRegression, log_decay: Tensor, steps: int, lr: float) -> Tensor:
    """Descend on the validation loss by implicit hypergradients, and return λ."""
    log_decay = log_decay.clone().requires_grad_()
    adam = torch.optim.Adam([log_decay], lr)
    for _ in range(steps):
        (log_decay.grad,) = torch.autograd.grad(validation_loss(problem, log_decay), log_decay)
        adam.step()
    return log_decay.detach()


def validation_loss(problem: PolynomialRegression, log_decay: Tensor) -> Tensor:
    """Return the validation loss at the root of the training gradient, with the implicit gradient to λ."""
    solver = lambda g, start: problem.closed_form(log_decay.detach())  # noqa: E731
    weights = l2o.root(
        lambda w: problem.gradient(w, log_decay), problem.zero_weights(), solver=solver, adjoint=l2o.CG(tol=1e-9)
    ).u
    return problem.loss(weights, problem.valid)
