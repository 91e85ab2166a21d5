"""Variational networks: a regulariser and the time to stop its gradient flow, learned together.

    x' = −∇F(x),   F(x) = ½‖x − b‖² + R_θ(x),   x(0) = b;     min over θ and T of the mean of ½‖x(T) − x*‖²

b is a noisy crop of x*. Source: Effland, Kobler, Kunisch & Pock 2020, J. Math. Imaging Vis. 62; the gradient in T is
the adjoint formula of `l2o.gradient_flow`, that in θ backpropagation through the K steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.fields_of_experts import FieldsOfExperts, FieldsOfExpertsConfig
from l2o.gradient_flow import TimeGradient, gradient_flow, stopping_time_gradient
from tasks.image_crops import CropSource, crops
from tasks.task import Split


class Pairs(NamedTuple):
    """Crops with and without noise."""

    clean: Tensor
    """x*, shape (n, size, size), grey values from 0 to 1."""
    noisy: Tensor
    """b, the same shape."""


@dataclass(frozen=True)
class FlowConfig:
    """Options of the training."""

    source: CropSource = "embedded"
    """Where crops come from."""
    noise: float = 25 / 255
    """Standard deviation, grey values from 0 to 1."""
    steps: int = 8
    """K, Euler steps."""
    start_time: float = 0.1
    """T before training."""
    outer_steps: int = 300
    """Steps of Adam."""
    batch: int = 16
    """Crops a step."""
    size: int = 24
    """Side of a training crop, pixels."""
    lr: float = 0.01
    """Step size of θ, which falls to 0 as half a cosine, as does that of log T."""
    time_lr: float = 0.1
    """Step size of log T."""
    time_gradient: TimeGradient = "adjoint"
    """How log T gets its gradient."""


class Trained(NamedTuple):
    """A regulariser with its stopping time."""

    regularizer: FieldsOfExperts
    time: float
    """T."""
    steps: int
    """K."""


class Progress(NamedTuple):
    """One outer step."""

    psnr: float
    """Of the batch, dB."""
    time: float
    """T before the step."""


def noisy_crops(
    source: CropSource, split: Split, count: int, size: int, noise: float, generator: torch.Generator
) -> Pairs:
    """Draw crops and add Gaussian noise, in the default dtype.

    Raises:
        DataError, ValueError: see `tasks.image_crops.crops`.
    """
    clean = crops(source, split, count, size, generator).to(torch.get_default_dtype())
    return Pairs(clean, clean + noise * torch.randn(clean.shape, generator=generator))


def denoise(regularizer: FieldsOfExperts, noisy: Tensor, time: Tensor | float, steps: int, how: TimeGradient = "steps"):
    """Return x(T) of the flow that starts at the noisy crops, the shape of them."""
    return gradient_flow(lambda x: energy_gradient(regularizer, x, noisy), noisy, time, steps, how)


def energy_gradient(regularizer: FieldsOfExperts, x: Tensor, noisy: Tensor) -> Tensor:
    """Return ∇F(x) = x − b + ∇R(x)."""
    return x - noisy + regularizer.gradient(x)


def train(
    config: FlowConfig, generator: torch.Generator, regularizer: FieldsOfExperts | None = None
) -> Iterator[tuple[Trained, Progress]]:
    """Train by Adam; yield after every outer step.

    Args:
        regularizer: one that was trained and stays as it is, to learn T alone; None trains a new one with T.

    Raises:
        DataError: if the crops need a file that is missing.
    """
    learned = regularizer is None
    regularizer = regularizer or FieldsOfExperts(FieldsOfExpertsConfig())
    log_time = torch.tensor(config.start_time).log().requires_grad_()
    groups = [{"params": [log_time], "lr": config.time_lr}]
    groups += [{"params": list(regularizer.parameters()), "lr": config.lr}] if learned else []
    adam = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, config.outer_steps)
    for _ in range(config.outer_steps):
        pairs = noisy_crops(config.source, "train", config.batch, config.size, config.noise, generator)
        result = denoise(regularizer, pairs.noisy, log_time.exp(), config.steps, config.time_gradient)
        loss = 0.5 * (result - pairs.clean).square().mean()
        adam.zero_grad()
        loss.backward()
        progress = Progress(psnr(result, pairs.clean), log_time.exp().item())
        adam.step()
        schedule.step()
        yield Trained(regularizer, log_time.exp().item(), config.steps), progress


@torch.no_grad()
def psnr_by_time(trained: Trained, pairs: Pairs, times: Sequence[float]) -> list[float]:
    """Return the PSNR of the crops for every T, K unchanged, dB."""
    return [psnr(denoise(trained.regularizer, pairs.noisy, time, trained.steps), pairs.clean) for time in times]


@torch.no_grad()
def optimality(trained: Trained, pairs: Pairs) -> float:
    """Return the cosine of ∇F(x_T) and ∇ℓ(x_T) = x_T − x*, from −1 to 1: 0 at the best time to stop."""
    end = denoise(trained.regularizer, pairs.noisy, trained.time, trained.steps)
    descent, outer = energy_gradient(trained.regularizer, end, pairs.noisy), end - pairs.clean
    return -float(stopping_time_gradient(descent, outer) / (descent.norm() * outer.norm()))


def psnr(x: Tensor, clean: Tensor) -> float:
    """Return −10 log₁₀ of the mean square error of all pixels, dB for grey values from 0 to 1."""
    return float(-10 * torch.log10((x.detach() - clean).square().mean()))
