"""The true norm of a layer as an operator, and a parametrisation that holds it at or below a bound.

A convolution with zero padding is a compression of the circular convolution on a larger torus, and that one is block
diagonal under the Fourier transform. So with K̂(ω) the (out × in) matrix of transforms at frequency ω

    ‖conv‖ ≤ max_ω σ_max(K̂(ω)),     with equality for circular padding and stride 1 on the torus of the image.

`torch.nn.utils.parametrizations.spectral_norm` takes σ_max of the weight reshaped to (out, in·kh·kw) instead; the
operator's norm can be sqrt(kh·kw) times that, so it guarantees nothing.

Source: Sedghi, Gupta & Long 2019, The singular values of convolutional layers, ICLR (circular); Tsuzuku et al.
2018, NeurIPS (padding). Differs: a torus without wrap-around, so that zero padding is bounded for its image size.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NONEXPANSIVE = (nn.ReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Hardtanh, nn.LogSigmoid)
_NONEXPANSIVE += (nn.Identity, nn.Flatten, nn.Unflatten)
"""Modules whose Lipschitz constant is at most 1 whatever their options."""


def kernel_norm(weight: Tensor, size: Sequence[int], dilation: Sequence[int] | None = None, groups: int = 1) -> Tensor:
    """Return max_ω σ_max(K̂(ω)), the norm of a circular convolution on a torus, shape (), differentiable.

    Args:
        weight: shape (out, in / groups, *kernel).
        size: of the torus, one number for each axis of the kernel, at least as large as the dilated kernel.
        dilation: per axis; None is 1.

    Raises:
        ValueError: if the torus has another number of axes, or is smaller than the kernel.
    """
    axes = weight.dim() - 2
    dilation = tuple(dilation or (1,) * axes)
    extents = [step * (length - 1) + 1 for step, length in zip(dilation, weight.shape[2:], strict=True)]
    if len(size) != axes or any(have < need for have, need in zip(size, extents, strict=True)):
        raise ValueError(f"the torus must have {axes} axes and be at least {tuple(extents)}, got {tuple(size)}")
    spread = weight.new_zeros(*weight.shape[:2], *extents)
    spread[(..., *(slice(None, None, step) for step in dilation))] = weight
    transformed = torch.fft.rfftn(spread, s=list(size), dim=list(range(2, 2 + axes)))
    matrices = transformed.flatten(2).movedim(-1, 0).unflatten(1, (groups, -1))  # (frequencies, groups, out, in)
    if 1 in matrices.shape[-2:]:
        return torch.linalg.vector_norm(matrices.flatten(-2), dim=-1).amax()  # one row: no decomposition
    gram = matrices @ matrices.mH if matrices.shape[-2] < matrices.shape[-1] else matrices.mH @ matrices
    return torch.linalg.eigvalsh(gram)[..., -1].amax().clamp(min=0).sqrt()


def layer_norm_bound(module: nn.Module, size: Sequence[int] = (), weight: Tensor | None = None) -> Tensor:
    """Return an upper bound of the norm of a linear layer, shape (): exact for `nn.Linear` and circular convolutions.

    Args:
        module: `nn.Linear`, or a convolution with zero or circular padding, any stride, dilation and groups.
        size: of the images that it takes, without channels; unused for `nn.Linear`.
        weight: used instead of the module's own.

    Raises:
        TypeError: if the module is another one.
        ValueError: if the padding is neither zero nor circular, circular and too wide, or the image size does not fit.
    """
    weight = module.weight if weight is None else weight  # pyright: ignore[reportAssignmentType]
    assert isinstance(weight, Tensor)
    if isinstance(module, nn.Linear):
        return torch.linalg.matrix_norm(weight, 2)
    if not isinstance(module, _CONVOLUTIONS):
        raise TypeError(f"the norm is known for nn.Linear and nn.Conv1d to nn.Conv3d, got {type(module).__name__}")
    if len(size) != len(module.kernel_size):
        raise ValueError(f"{type(module).__name__} needs the size of its images, {len(module.kernel_size)} numbers")
    if module.padding_mode not in ("zeros", "circular"):
        raise ValueError(
            f"padding must be zeros or circular, got {module.padding_mode}: others repeat pixels and expand"
        )
    extents = [step * (length - 1) + 1 for step, length in zip(module.dilation, module.kernel_size, strict=True)]
    if module.padding_mode == "circular" and not _wraps_once(module, extents):
        raise ValueError(
            f"circular padding {module.padding} repeats outputs; use at most (extent − 1) / 2 of {extents}"
        )
    # Zero padding: on a torus of size + extent − 1 nothing wraps around. More is never wrong, and small is fast.
    wrap = module.padding_mode == "circular"
    torus = [max(n, e) if wrap else n + e - 1 for n, e in zip(size, extents, strict=True)]
    return kernel_norm(weight, torus, module.dilation, module.groups)


def _wraps_once(module: nn.Module, extents: list[int]) -> bool:
    """Whether a circular convolution gives each pixel of the torus at most once."""
    padding: Any = module.padding
    return isinstance(padding, str) or all(2 * p < extent for p, extent in zip(padding, extents, strict=True))


def operator_norm(module: nn.Module, shape: Sequence[int], iterations: int = 200) -> Tensor:
    """Return σ_max of the linear part of any module by power iteration on LᵀL, shape (), without a graph.

    It approaches the norm from below: an oracle for `layer_norm_bound`, not a guarantee.

    Args:
        module: affine: u ↦ Lu + c.
        shape: of one input, without batch axis.
    """
    weight = next(module.parameters())
    zero = torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device, requires_grad=True)
    image = module(zero)
    dual = torch.zeros_like(image, requires_grad=True)
    (pulled,) = torch.autograd.grad(image, zero, dual, create_graph=True)
    d = torch.randn(zero.shape, generator=torch.Generator(weight.device).manual_seed(0), dtype=zero.dtype)
    norm = zero.new_zeros(())
    for _ in range(iterations):
        d = d / d.norm()
        (moved,) = torch.autograd.grad(pulled, dual, d, retain_graph=True)
        norm = moved.norm()
        (d,) = torch.autograd.grad(image, zero, moved, retain_graph=True)
    return norm.detach()


class Bounded(nn.Module):
    """W ↦ W · min(1, bound / ‖W‖): a layer whose operator norm stays at most `bound`, differentiable.

    Args:
        module: the layer that has the weight; only its options are kept.
        size: of its images.
        bound: above 0.
    """

    def __init__(self, module: nn.Module, size: Sequence[int], bound: float):
        super().__init__()
        self._options, self._size, self._bound = _Options(module), tuple(size), bound

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight of the same layer with a norm of at most `bound`."""
        norm = layer_norm_bound(self._options.module, self._size, weight)
        # A hair below the bound: rounding must not put the product above it.
        slack = 1 + 100 * torch.finfo(weight.dtype).eps
        return weight * (self._bound / (norm * slack)).clamp(max=1.0)


class _Options:
    """Holds a module without making it a submodule: its weight is already a parameter elsewhere."""

    def __init__(self, module: nn.Module):
        self.module = module


def nonexpansive(module: nn.Module, size: Sequence[int] = (), bound: float = 1.0) -> nn.Module:
    """Hold the true norm of every layer at or below a bound, by `torch.nn.utils.parametrize`; return the module.

    Args:
        module: `nn.Linear`, a convolution that keeps the image size, or an `nn.Sequential` of such and of activations
            with slopes in [−1, 1]. It is changed in place; training goes on as usual, the weights keep the bound.
        size: of the images, without channels.
        bound: of each layer, above 0; c < 1 in n layers makes a contraction by cⁿ.

    Raises:
        TypeError: if a module is none of these: attention, normalisation and residual sums can expand.
        ValueError: if the bound is not positive, or as `layer_norm_bound`.
    """
    if not 0 < bound < math.inf:
        raise ValueError(f"bound must be positive and finite, got {bound}")
    if isinstance(module, nn.Sequential):
        for part in module:
            nonexpansive(part, size, bound)
    elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        layer_norm_bound(module, size)
        parametrize.register_parametrization(module, "weight", Bounded(module, size, bound))
    elif not (isinstance(module, _NONEXPANSIVE) or _gentle(module)):
        raise TypeError(f"{type(module).__name__} has no known bound; use Linear, Conv and ReLU-like layers")
    return module


def _gentle(module: nn.Module) -> bool:
    """Whether an activation with options has slopes in [−1, 1]."""
    if isinstance(module, nn.LeakyReLU):
        return abs(module.negative_slope) <= 1
    return isinstance(module, nn.ELU) and abs(module.alpha) <= 1
