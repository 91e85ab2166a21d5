"""Weight decays of a logistic regression: one for all features by grid search, one for each by hypergradients.

    dℓ/dλ = −wᵀ ∂(∇L)/∂λ,   ∇²L w = ∂ℓ/∂W       at the W with ∇L(W; λ) = 0

ℓ is the loss on the validation rows, ∇²L w = … is solved by conjugate gradients on Hessian-vector products, and λ
descends by Adam until the loss on rows of a third kind rises: a decay for each feature can fit the noise of the
validation rows too. Source: Bengio 2000, Neural Computation 12(8); Pedregosa 2016, ICML.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

import l2o
from tasks.logistic import LogisticRegression, Rows

NEWTON = l2o.Newton(linear=l2o.CG(tol=1e-2))
"""Inexact Newton steps: the Hessian is symmetric and positive definite."""
TOL = 1e-6
"""Largest relative norm of ∇L at the minimum, and relative residual of the linear system of its derivative."""
MAX_PRODUCTS = 10_000
"""Hessian-vector products of that linear system, at most: decays of different sizes make it ill-conditioned."""
GRID = (-6.0, 2.0, 33)
"""log₁₀ of the single weight decays that the grid search tries: first, last, how many."""


class Fit(NamedTuple):
    """Hyperparameters, and the model that they make."""

    log_decay: Tensor
    """λ, shape () or (features,)."""
    weights: Tensor
    """argmin L(·; λ)."""


class Descent(NamedTuple):
    """What the descent on the validation loss has seen."""

    best: Fit
    """Where the loss on the stop rows was least."""
    valid: list[float]
    """Validation loss before each step, nats."""
    stop: list[float]
    """Loss on the stop rows before each step, nats."""
    fits: list[Fit]
    """The fit before each step."""


def minimiser(problem: LogisticRegression, log_decay: Tensor, start: Tensor | None = None, tol: float = TOL) -> Tensor:
    """Return argmin_W L(W; λ), with its implicit gradient to λ.

    Args:
        start: first guess of Newton's method; None is 0.
        tol: see `TOL`.

    Raises:
        NotConvergedError: if Newton's method did not reach the tolerance, or CG in the backward pass.
    """
    first = problem.zero_weights() if start is None else start
    adjoint = l2o.CG(tol, MAX_PRODUCTS)
    return l2o.root(lambda W: problem.gradient(W, log_decay), first, solver=NEWTON, tol=tol, adjoint=adjoint).u


@torch.no_grad()
def search_single(problem: LogisticRegression) -> Fit:
    """Return the best single weight decay of `GRID`, by the loss on the rows of validation and of stopping together."""
    chosen = joined(problem.valid, problem.stop)
    fits, weights = [], None
    for exponent in torch.linspace(*GRID, dtype=torch.float64).flip(0):  # from strong to weak: a path of warm starts
        log_decay = exponent * torch.log(torch.tensor(10.0, dtype=torch.float64))
        weights = minimiser(problem, log_decay, weights)
        fits.append(Fit(log_decay, weights))
    return min(fits, key=lambda fit: float(problem.loss(fit.weights, chosen)))


def learn_decays(
    problem: LogisticRegression, log_decay: Tensor, lr: float = 0.1, patience: int = 10, max_steps: int = 200
) -> Descent:
    """Descend on the validation loss by hypergradients.

    Args:
        log_decay: λ to start from, shape () or (features,).
        lr: Adam's step size; λ has no unit.
        patience: stop when the loss on the stop rows has not been less for so many steps.
        max_steps: most steps.

    Raises:
        NotConvergedError: if a lower level was not solved.
    """
    log_decay = log_decay.clone().requires_grad_()
    adam, weights, best = torch.optim.Adam([log_decay], lr), None, 0
    valid, stop, fits = [], [], []
    for step in range(max_steps + 1):
        solved = minimiser(problem, log_decay, weights)
        loss = problem.loss(solved, problem.valid)
        weights = solved.detach()
        fits.append(Fit(log_decay.detach().clone(), weights))
        valid.append(loss.item())
        stop.append(problem.loss(weights, problem.stop).item())
        best = step if stop[step] < stop[best] else best
        if step - best >= patience:
            break
        (log_decay.grad,) = torch.autograd.grad(loss, log_decay)
        adam.step()
    return Descent(fits[best], valid, stop, fits)


@torch.no_grad()
def refit(problem: LogisticRegression, fit: Fit) -> Fit:
    """Train once more with the same weight decays, on all rows but those of the test."""
    train = joined(problem.train, problem.valid, problem.stop)
    return Fit(fit.log_decay, minimiser(replace(problem, train=train), fit.log_decay, fit.weights))


def joined(*parts: Rows) -> Rows:
    """Return all rows as one set."""
    return Rows(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
