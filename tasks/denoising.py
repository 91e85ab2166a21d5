"""Denoising with one weight: a noisy image b, and what is smooth or piecewise smooth near it.

    minimise over x   ½‖x − b‖² + λ‖∇x‖²      Tikhonov: x = (I + 2λ∇ᵀ∇)⁻¹ b, by the discrete cosine transform
    minimise over x   ½‖x − b‖² + λ TV(x)     total variation, isotropic: Σ over pixels of ‖(∇x)_pixel‖₂

Pixels are in [0, 1], noise is white and Gaussian, differences are forward, none across the border. λ is given by its
logarithm, through which it is learned. Source: Rudin, Osher & Fatemi 1992, Physica D 60; Kunisch & Pock 2013, A bilevel
optimization approach for parameter learning in variational models, SIAM J. Imaging Sci. 6(2).
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from l2o.problem import Composite, Problem
from l2o.proximal import L21, Diagonal, Gradient, SquaredL2

Regularizer = Literal["tikhonov", "tv"]


def denoising_problem(regularizer: Regularizer, noisy: Tensor, log_strength: Tensor) -> Problem:
    """Return ½‖x − b‖² + h(∇x) for rules that split it, such as Condat–Vũ; all images at once.

    Args:
        regularizer: h = λ‖·‖² (tikhonov) or λ‖·‖₂,₁, a pixel being a group (tv).
        noisy: b, shape (batch…, height, width).
        log_strength: log λ, shape () or the batch axes; gradients reach it.

    Raises:
        ValueError: if there is no such regularizer, or the images have fewer than two axes.
    """
    if regularizer not in get_args(Regularizer):
        raise ValueError(f"the regularizer must be one of {', '.join(get_args(Regularizer))}, got {regularizer!r}")
    shape = _size(noisy)
    strength = log_strength.exp()
    function = SquaredL2(2 * strength, ndim=3) if regularizer == "tikhonov" else L21(strength, axis=-3, ndim=3)
    identity = Diagonal(torch.ones(shape, dtype=noisy.dtype, device=noisy.device), ndim=2)
    return Problem(identity, noisy, SquaredL2(0.0, ndim=2), Composite(function, Gradient(shape)))


def tikhonov(noisy: Tensor, log_strength: Tensor) -> Tensor:
    """Return argmin ½‖x − b‖² + λ‖∇x‖² in closed form, the shape of b.

        x = ρ (∇ᵀ∇ + ρI)⁻¹ b,   ρ = 1 / 2λ

    Args:
        noisy: b, shape (batch…, height, width).
        log_strength: log λ, shape () or the batch axes; gradients reach it.

    Raises:
        ValueError: if the images have fewer than two axes.
    """
    rho = 0.5 * (-log_strength).exp()
    scale = rho.reshape(rho.shape + (1, 1)) if rho.dim() else rho
    return scale * Gradient(_size(noisy)).solver(rho)(noisy)


def add_noise(images: Tensor, sigma: float | Tensor, generator: torch.Generator) -> Tensor:
    """Return images + σ ε, ε standard normal; not clipped.

    Args:
        images: shape (batch…, height, width).
        sigma: standard deviation in units of the grey scale from 0 to 1, a number or one an image.

    Raises:
        ValueError: if σ is a number that is negative or not finite.
    """
    if not isinstance(sigma, Tensor):
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"sigma must be finite and at least 0, got {sigma}")
        sigma = images.new_tensor(sigma)
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype, device=generator.device)
    return images + sigma.to(images.dtype).reshape(sigma.shape + (1,) * (2 if sigma.dim() else 0)) * noise


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Return −10 log₁₀ of each image's mean squared error, in dB, the shape of the batch axes; pixels in [0, 1]."""
    return -10 * (images - truth).square().mean((-2, -1)).log10()


def crops(images: Sequence[Tensor], count: int, size: int, generator: torch.Generator) -> Tensor:
    """Return square parts of images, drawn at random, shape (count, size, size).

    As long as there are images left, each crop is of another one.

    Raises:
        ValueError: if there is no image, or one is smaller than a crop.
    """
    if not images or size > min(min(image.shape) for image in images):
        raise ValueError(f"crops of {size}×{size} pixels need images at least as large, got {_sizes(images)}")
    order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(-(-count // len(images)))])
    found = []
    for index in order[:count].tolist():
        image = images[index]
        y, x = (int(torch.randint(side - size + 1, (), generator=generator)) for side in image.shape)
        found.append(image[y : y + size, x : x + size])
    return torch.stack(found)


def _size(noisy: Tensor) -> tuple[int, ...]:
    if noisy.dim() < 2:
        raise ValueError(f"images must have the shape (batch…, height, width), got {tuple(noisy.shape)}")
    return tuple(noisy.shape[-2:])


def _sizes(images: Sequence[Tensor]) -> str:
    sizes = sorted({(image.shape[0], image.shape[1]) for image in images})
    return ", ".join(f"{height}×{width}" for height, width in sizes) or "none"
