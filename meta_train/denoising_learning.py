"""The weight λ of a denoiser, learned by gradient descent on the PSNR of its results: a bilevel problem.

    maximise over λ   mean PSNR(x(λ), truth)   subject to   x(λ) = argmin ½‖x − b‖² + λ R(x)

Tikhonov's x(λ) has a closed form, which autograd differentiates. That of total variation is found by the dual method of
`l2o.proximal.TotalVariation`, from where the last λ has left it, and differentiated as the fixed point of Condat–Vũ:
through the last steps, or implicitly. Both methods have the same solutions (x, p), x = b − ∇ᵀp. The dual variable of a
flat region is not unique, and Condat–Vũ near a solution is slow: the gradient through k steps is biased, on small
images by a fifth to a half at k = 10, but its sign is right.

Source: Kunisch & Pock 2013, SIAM J. Imaging Sci. 6(2) (the problem); Shaban et al. 2019, AISTATS (the last steps).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import l2o
from l2o.proximal import TotalVariation
from l2o.rules import CondatVu, CondatVuConfig
from l2o.solve_gradient import fixed_point_map
from tasks.denoising import Regularizer, denoising_problem, psnr, tikhonov

RULE = CondatVu(CondatVuConfig(balance=10.0))
"""Long dual steps: the strongly convex ½‖x − b‖² can do with short primal ones. Chosen by hand from 1, 3 and 10."""


@dataclass(frozen=True)
class Lower:
    """How total variation is solved and differentiated."""

    steps: int = 20
    """Of the dual method, at most; it starts from the dual variable that it is given."""
    last: int = 8
    """Steps of Condat–Vũ after that, through which the gradient goes."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if a number is below 1.
        """
        if min(self.steps, self.last) < 1:
            raise ValueError(f"steps and last must be at least 1, got {self.steps} and {self.last}")


class Denoised(NamedTuple):
    """Images, and from where the next call may start."""

    x: Tensor
    """Shape (n, height, width), with a graph to λ."""
    dual: Tensor | None
    """Shape (n, 2, height, width), detached; None for Tikhonov."""


class Point(NamedTuple):
    """A step of learning."""

    log_strength: float
    """log λ."""
    psnr: float
    """Mean over the training images, dB, before the step."""


def denoise(
    regularizer: Regularizer, noisy: Tensor, log_strength: Tensor, dual: Tensor | None, lower: Lower
) -> Denoised:
    """Return x(λ) with its graph.

    Args:
        noisy: b, shape (n, height, width).
        log_strength: log λ, shape () or (n,).
        dual: where total variation starts, as an earlier call returned it; None is 0.
    """
    if regularizer == "tikhonov":
        return Denoised(tikhonov(noisy, log_strength), None)
    x, p = start_point(noisy, log_strength, dual, lower.steps)
    end = l2o.fixed_point(
        variation_step(noisy, log_strength), (x, p), gradient="unrolled", steps=lower.last, batch_axes=1
    )
    return Denoised(end.u[0], end.u[1].detach())


@torch.no_grad()
def start_point(
    noisy: Tensor, log_strength: Tensor, dual: Tensor | None, steps: int, tolerance: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return x and p of total variation by the dual method; see `l2o.proximal.TotalVariation`."""
    found = TotalVariation(log_strength.exp(), steps=steps, tolerance=tolerance).solve(noisy, dual=dual)
    return found.x, found.dual


def variation_step(noisy: Tensor, log_strength: Tensor) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return T of (x, p), one step of Condat–Vũ for ½‖x − b‖² + λ TV(x)."""
    return fixed_point_map(RULE, denoising_problem("tv", noisy, log_strength), ("dual",), 0)


def learn_strength(
    regularizer: Regularizer,
    noisy: Tensor,
    truth: Tensor,
    log_strength: float,
    steps: int = 20,
    lr: float = 0.4,
    lower: Lower | None = None,
) -> list[Point]:
    """Learn one λ for all images by Adam, its lr falling to 0; the last point is the result.

    Args:
        noisy, truth: shape (n, height, width).
        log_strength: log λ to start from.
        lr: first step size, in units of log λ.
    """
    weight = torch.tensor(log_strength, dtype=noisy.dtype).requires_grad_()
    adam, dual, points = torch.optim.Adam([weight], lr, betas=(0.5, 0.9)), None, []
    for step in range(steps + 1):
        x, dual = denoise(regularizer, noisy, weight, dual, lower or Lower())
        quality = psnr(x, truth).mean()
        points.append(Point(weight.item(), quality.item()))
        adam.param_groups[0]["lr"] = lr * (1 - step / steps) if steps else lr
        (weight.grad,) = torch.autograd.grad(-quality, weight)
        adam.step()
    return points


def hypergradients(
    noisy: Tensor, truth: Tensor, log_strength: float, tol: float = 1e-9, max_steps: int = 5000
) -> dict[str, float]:
    """Return d(mean PSNR)/d(log λ) of total variation in every way, and by central differences; use small images.

    Args:
        noisy, truth: shape (n, height, width), float64.
        tol: residual of the fixed point, and of the linear system of the implicit gradient.
        max_steps: of the dual method, and of Condat–Vũ after it.

    Raises:
        NotConvergedError: if it is not reached.
    """
    found, width = {}, 1e-4
    limits = {"tol": tol, "max_steps": max_steps}
    value = [_exact_psnr(noisy, truth, log_strength + shift, limits) for shift in (-width, width)]
    found["central differences"] = (value[1] - value[0]) / (2 * width)
    for name, options in _modes(tol):
        weight = torch.tensor(log_strength, dtype=noisy.dtype, requires_grad=True)
        end = _solve(noisy, weight, **limits, **options)
        found[name] = torch.autograd.grad(psnr(end, truth).mean(), weight)[0].item()
    return found


def _modes(tol: float) -> Iterator[tuple[str, dict]]:
    # Where the dual variable is not unique, I − J is singular, and the solver's estimate of its error says so. As
    # ∂ℓ/∂p = 0, the right-hand side is orthogonal to the null space: there are solutions, and all give the same dℓ/dλ.
    adjoint = l2o.GMRES(tol=tol, restart=300)
    yield "implicit", {"gradient": "implicit", "adjoint": adjoint, "on_failure": "ignore"}
    for last in (10, 100, 1000):
        yield f"through the last {last} steps", {"gradient": "truncated", "last": last}


def _exact_psnr(noisy: Tensor, truth: Tensor, log_strength: float, limits: dict) -> float:
    with torch.no_grad():
        end = _solve(noisy, torch.tensor(log_strength, dtype=noisy.dtype), **limits, gradient=None)
        return psnr(end, truth).mean().item()


def _solve(noisy: Tensor, log_strength: Tensor, tol: float, max_steps: int, **options) -> Tensor:
    """The fixed point of Condat–Vũ to a tolerance, from a good guess; Anderson acceleration finds the last digits."""
    start = start_point(noisy, log_strength.detach(), None, max_steps, 1e-12)
    step, fast = variation_step(noisy, log_strength), l2o.Anderson(10)
    end = l2o.fixed_point(step, start, tol=tol, max_steps=max_steps, batch_axes=1, acceleration=fast, **options)
    if not bool(end.converged.all()):
        raise l2o.NotConvergedError(f"the lower level did not converge to {tol:.1e}: {end!r}")
    return end.u[0]
