"""What a hypergradient costs: the implicit one against backpropagation through gradient descent, at equal accuracy.

Every method starts at W = 0 and is measured by the CPU seconds of one thread and by the distance of its hypergradient
from the exact one, ‖g − g*‖ / ‖g*‖, which comes from a dense Hessian. The classic is given what it could not know: the
extreme eigenvalues of that Hessian at the minimum, for the best step sizes.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import l2o
from meta_train.hyper_logistic import minimiser
from tasks.logistic import LogisticRegression

UNROLLED = ("unrolled", "unrolled, accelerated")


class Exact(NamedTuple):
    """The hypergradient by dense linear algebra."""

    gradient: Tensor
    """dℓ/dλ, shape (features,)."""
    weights: Tensor
    """The minimum, shape (features + 1, 1)."""
    smallest: float
    """Least eigenvalue of the Hessian there."""
    largest: float
    """Greatest eigenvalue of the Hessian there, at W = 0 or halfway, whichever is more."""


class Measured(NamedTuple):
    """One hypergradient."""

    method: str
    setting: float
    """Tolerance of the implicit gradient, or steps of the unrolled one."""
    error: float
    """‖g − g*‖ / ‖g*‖."""
    cpu_s: float
    """CPU seconds."""


def exact_hypergradient(problem: LogisticRegression, log_decay: Tensor) -> Exact:
    """Return dℓ/dλ of two classes by Newton's method and a factorised Hessian, to rounding.

        H = Xᵀ diag(p (1 − p)) X / n + diag(exp λ),   dℓ/dλ_j = −exp(λ_j) W_j (H⁻¹ ∂ℓ/∂W)_j

    Raises:
        ValueError: if there are more than two classes.
    """
    if problem.classes != 2:
        raise ValueError(f"the dense Hessian is that of 2 classes, got {problem.classes}")
    weights = minimiser(problem, log_decay)  # dense Newton steps from there, for one costs seconds
    for _ in range(5):
        step = torch.linalg.solve(_hessian(problem, weights, log_decay), problem.gradient(weights, log_decay))
        weights = weights - step
        if float(step.norm()) <= 1e-12 * float(weights.norm()):
            break
    inputs, labels = problem.valid
    upper = inputs.mT @ ((inputs @ weights).sigmoid() - labels.unsqueeze(1).double()) / len(inputs)
    hessian = _hessian(problem, weights, log_decay)
    gradient = -(problem.decays(log_decay) * weights * torch.linalg.solve(hessian, upper))[:-1, 0]
    curvatures = [torch.linalg.eigvalsh(_hessian(problem, scale * weights, log_decay)) for scale in (0.0, 0.5)]
    ends = torch.linalg.eigvalsh(hessian)
    return Exact(gradient, weights, float(ends[0]), max(float(values[-1]) for values in (*curvatures, ends)))


def implicit_hypergradient(problem: LogisticRegression, log_decay: Tensor, tol: float) -> Tensor:
    """Return dℓ/dλ by the implicit function theorem, both levels solved to a tolerance."""
    log_decay = log_decay.clone().requires_grad_()
    loss = problem.loss(minimiser(problem, log_decay, tol=tol), problem.valid)
    return torch.autograd.grad(loss, log_decay)[0]


def unrolled_hypergradient(
    problem: LogisticRegression, log_decay: Tensor, steps: int, smallest: float, largest: float, accelerated: bool
) -> Tensor:
    """Return dℓ/dλ by backpropagation through gradient descent with step size 1/L, plain or Nesterov's.

    Args:
        smallest, largest: μ and L of the lower level; the momentum is (√L − √μ) / (√L + √μ), 0 for the plain method.
    """
    log_decay = log_decay.clone().requires_grad_()
    momentum = (largest**0.5 - smallest**0.5) / (largest**0.5 + smallest**0.5) if accelerated else 0.0

    def step(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        weights, before = state
        ahead = weights + momentum * (weights - before)
        return ahead - problem.gradient(ahead, log_decay) / largest, weights

    start = (problem.zero_weights(), problem.zero_weights())
    end = l2o.fixed_point(step, start, gradient="unrolled", steps=steps)
    return torch.autograd.grad(problem.loss(end.u[0], problem.valid), log_decay)[0]


def race(
    problem: LogisticRegression,
    log_decay: Tensor,
    tolerances: tuple[float, ...],
    steps: Sequence[Sequence[int]],
) -> list[Measured]:
    """Measure the implicit hypergradient at several tolerances, and unrolling until it is as accurate.

    Args:
        tolerances: the last is that of the implicit gradient that unrolling is to equal.
        steps: how many to try, of plain and of accelerated descent; each takes the memory of 2 numbers a row.
    """
    exact = exact_hypergradient(problem, log_decay)

    def measure(method: str, setting: float, make: Callable[[], Tensor]) -> Measured:
        begun = time.process_time()
        found = make()
        taken = time.process_time() - begun
        return Measured(method, setting, float((found - exact.gradient).norm() / exact.gradient.norm()), taken)

    implicit = functools.partial(implicit_hypergradient, problem, log_decay)
    done = [measure("implicit", tol, functools.partial(implicit, tol)) for tol in tolerances]
    target = done[-1].error
    for method, counts in zip(UNROLLED, steps, strict=True):
        constants = exact.smallest, exact.largest, method != UNROLLED[0]
        for count in counts:
            unrolled = functools.partial(unrolled_hypergradient, problem, log_decay, count, *constants)
            done.append(measure(method, count, unrolled))
            if done[-1].error <= target:
                break
    return done


def time_to(rows: list[Measured], method: str, error: float) -> float | None:
    """Return the least CPU seconds in which a method was at least so accurate; None if it never was."""
    return min((row.cpu_s for row in rows if row.method == method and row.error <= error), default=None)


def _hessian(problem: LogisticRegression, weights: Tensor, log_decay: Tensor) -> Tensor:
    inputs = problem.train.inputs
    chances = (inputs @ weights).sigmoid()
    return inputs.mT @ (chances * (1 - chances) * inputs) / len(inputs) + problem.decays(log_decay).squeeze(1).diag()
