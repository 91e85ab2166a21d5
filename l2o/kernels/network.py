"""The LSTM's weights and constants as one argument, and the checks that come before a kernel trusts its pointers."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Network(NamedTuple):
    """Weights and constants of the LSTM; the equations are those of `l2o.kernels.reference`."""

    weights: Sequence[Tensor]
    """W_l, layers of shape (4H, in + H), with in = 1 (p None) or 2 for the first layer and H for the others."""
    biases: Sequence[Tensor]
    """b_l, layers of shape (4H,)."""
    output_weight: Tensor
    """w, shape (1, H)."""
    output_bias: Tensor
    """b_out, shape (1,)."""
    p: float | None
    """Exponent of the features; None feeds the plain gradient."""
    log_eps: float
    """ε inside the logarithm, gradient units."""
    scale: float
    """Factor on the output, parameter units."""
    forget_bias: float
    """Added to the forget gate."""


class Gradients(NamedTuple):
    """Results of a kernel's `sequence_vjp`; the last three only where they were asked for."""

    weights: list[Tensor]
    biases: list[Tensor]
    output_weight: Tensor
    output_bias: Tensor
    grads: Tensor | None
    hidden: Tensor | None
    cell: Tensor | None


def check(grads: Tensor, hidden: Tensor, cell: Tensor, network: Network) -> None:
    """Check what every kernel relies on; grads may have leading axes. Takes 2 µs, which matters to small optimizees.

    Raises:
        ValueError: if a shape, dtype or device does not fit the others.
    """
    n, shape = grads.shape[-1], hidden.shape
    if len(shape) != 3 or shape[2] != n or not shape[0] or not shape[1]:
        raise ValueError(f"hidden should be (layers, H, n) = (…, …, {n}), but is {tuple(shape)}")
    layers, units, _ = shape
    weights, biases, output_weight, output_bias, p, *_ = network
    dtype, device, state_dtype = grads.dtype, grads.device, hidden.dtype
    if state_dtype is not dtype and (state_dtype is not torch.bfloat16 or dtype is not torch.float32):
        raise ValueError(f"hidden should be {dtype}, or bfloat16 beside float32 gradients, but is {state_dtype}")
    if hidden.device != device or cell.shape != shape or cell.dtype is not state_dtype or cell.device != device:
        expect("hidden", hidden, state_dtype, device, shape)
        expect("cell", cell, state_dtype, device, shape)
    if len(weights) != layers or len(biases) != layers:
        raise ValueError(
            f"the state has {layers} layers, but there are {len(weights)} weights and {len(biases)} biases"
        )
    names, shapes = _layout(layers, units, 1 if p is None else 2)
    for tensor, name, shape in zip((*weights, *biases, output_weight, output_bias), names, shapes, strict=True):
        if tensor.shape != shape or tensor.dtype is not dtype or tensor.device != device:
            expect(name, tensor, dtype, device, shape)


def expect(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device, shape: Sequence[int]) -> None:
    """Check one tensor.

    Raises:
        ValueError: if shape, dtype or device is another.
    """
    if tensor.shape != shape or tensor.dtype is not dtype or tensor.device != device:
        raise ValueError(
            f"{name} should be {tuple(shape)}, {dtype} on {device}, "
            f"but is {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
        )


def check_out(out: tuple[Tensor, Tensor, Tensor], grads: Tensor, hidden: Tensor, cell: Tensor) -> None:
    """Check the tensors that results are written into.

    Raises:
        ValueError: if one has not the dtype, device and shape of its input, or is not contiguous.
    """
    for name, tensor, like in zip(("updates", "hidden", "cell"), out, (grads, hidden, cell), strict=True):
        if tensor is not like:
            expect(f"out's {name}", tensor, like.dtype, like.device, like.shape)
        if not tensor.is_contiguous():
            raise ValueError(f"out's {name} should be contiguous, but has strides {tensor.stride()}")


def empty_gradients(grads: Tensor, hidden: Tensor, cell: Tensor, network: Network, inputs: bool) -> Gradients:
    """Room for the results of `sequence_vjp`."""
    like = (grads, hidden, cell)
    return Gradients(
        [empty(weight) for weight in network.weights],
        [empty(bias) for bias in network.biases],
        empty(network.output_weight),
        empty(network.output_bias),
        *(empty(tensor) if inputs else None for tensor in like),
    )


def empty(like: Tensor) -> Tensor:
    """Return a contiguous tensor of like's shape, dtype and device, whatever its strides."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


@functools.cache
def _layout(layers: int, units: int, features: int) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Names and shapes of (*weights, *biases, output_weight, output_bias)."""
    columns = [features + units] + [2 * units] * (layers - 1)
    names = (*(f"{kind}[{layer}]" for kind in ("weights", "biases") for layer in range(layers)),)
    shapes = (*((4 * units, width) for width in columns), *((4 * units,) for _ in columns), (1, units), (1,))
    return (*names, "output_weight", "output_bias"), shapes
