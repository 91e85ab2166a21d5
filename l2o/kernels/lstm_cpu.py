"""Call the compiled LSTM kernels on tensors: shapes are checked, results allocated, pointers passed through ctypes."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from l2o.kernels.build import library

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_POINTERS = "grads hidden cell weights biases output_weight output_bias updates next_hidden next_cell cotangents"
_POINTERS += " d_next_hidden d_next_cell d_weights d_biases d_output_weight d_output_bias d_grads d_hidden d_cell"


class _Arguments(ctypes.Structure):
    """The struct of the same name in lstm_cpu.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in "n steps layers units threads logarithm".split()),
        *((name, ctypes.c_double) for name in "p log_eps scale forget_bias".split()),
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
    ]


class Network(NamedTuple):
    """Weights and constants of the LSTM, as in `l2o.kernels.step`."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    output_weight: Tensor
    output_bias: Tensor
    p: float | None
    log_eps: float
    scale: float
    forget_bias: float


class Gradients(NamedTuple):
    """Results of `sequence_vjp`; the last three only where they were asked for."""

    weights: list[Tensor]
    biases: list[Tensor]
    output_weight: Tensor
    output_bias: Tensor
    grads: Tensor | None
    hidden: Tensor | None
    cell: Tensor | None


def supports(grads: Tensor) -> bool:
    """Whether the compiled kernels exist and work on tensors like this one."""
    return grads.device.type == "cpu" and grads.dtype in _DTYPES and library() is not None


def step(grads: Tensor, hidden: Tensor, cell: Tensor, network: Network, out=None) -> tuple[Tensor, Tensor, Tensor]:
    """See `l2o.kernels.step`."""
    grads, hidden, cell = grads.contiguous(), hidden.contiguous(), cell.contiguous()
    results = out or (torch.empty_like(grads), torch.empty_like(hidden), torch.empty_like(cell))
    for name, tensor, like in zip(("updates", "hidden", "cell"), out or (), (grads, hidden, cell), strict=False):
        _expect(f"out's {name}", tensor, like, like.shape)
        if not tensor.is_contiguous():
            raise ValueError(f"out's {name} should be contiguous, but has strides {tensor.stride()}")
    others = dict(zip(("updates", "next_hidden", "next_cell"), results, strict=True))
    _call("step", grads[None], hidden, cell, network, others)
    return results[0], results[1], results[2]


def sequence_vjp(
    grads: Tensor,
    cotangents: Tensor,
    hidden: Tensor,
    cell: Tensor,
    network: Network,
    state_cotangents: tuple[Tensor, Tensor] | None = None,
    inputs: bool = False,
) -> Gradients:
    """See `l2o.kernels.sequence_vjp`.

    Args:
        state_cotangents: of hidden and cell after the last step, shape (layers, H, n) each; None is zero.
        inputs: also return the gradients of grads, hidden and cell.
    """
    _expect("cotangents", cotangents, grads, grads.shape)
    given = {"cotangents": cotangents.contiguous()}
    for name, tensor in zip(("d_next_hidden", "d_next_cell"), state_cotangents or (), strict=False):
        _expect(name, tensor, grads, hidden.shape)
        given[name] = tensor.contiguous()
    result = Gradients(
        [_empty_like(weight) for weight in network.weights],
        [_empty_like(bias) for bias in network.biases],
        _empty_like(network.output_weight),
        _empty_like(network.output_bias),
        *(_empty_like(tensor) if inputs else None for tensor in (grads, hidden, cell)),
    )
    given |= {f"d_{name}": tensor for name, tensor in result._asdict().items() if tensor is not None}
    _call("sequence_vjp", grads.contiguous(), hidden.contiguous(), cell.contiguous(), network, given)
    return result


def _call(function: str, grads: Tensor, hidden: Tensor, cell: Tensor, network: Network, others: dict) -> None:
    """Check all shapes, since C++ trusts them, and call."""
    weights, biases, output_weight = _checked(grads, hidden, cell, network)
    logarithm, p = network.p is not None, network.p or 0.0
    arrays = [(ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors)) for tensors in (weights, biases)]
    arguments = _Arguments(
        *(grads.shape[1], grads.shape[0], *hidden.shape[:2], torch.get_num_threads(), logarithm),
        *(p, network.log_eps, network.scale, network.forget_bias),
        *(grads.data_ptr(), hidden.data_ptr(), cell.data_ptr(), *map(ctypes.addressof, arrays)),
        *(output_weight.data_ptr(), network.output_bias.data_ptr()),
    )
    for name, value in others.items():
        if isinstance(value, list):
            arrays.append((ctypes.c_void_p * len(value))(*(tensor.data_ptr() for tensor in value)))
            setattr(arguments, name, ctypes.addressof(arrays[-1]))
        else:
            setattr(arguments, name, value.data_ptr())
    getattr(library(), f"l2o_lstm_{function}_{_DTYPES[grads.dtype]}")(ctypes.byref(arguments))


def _checked(grads: Tensor, hidden: Tensor, cell: Tensor, network: Network):
    """Return contiguous weights, biases and output weight.

    Raises:
        ValueError: if a shape, dtype or device does not fit the others.
    """
    if hidden.dim() != 3 or hidden.shape[2] != grads.shape[1] or not hidden.shape[0] or not hidden.shape[1]:
        raise ValueError(f"hidden should be (layers, H, n) = (…, …, {grads.shape[1]}), but is {tuple(hidden.shape)}")
    layers, units, _ = hidden.shape
    _expect("hidden", hidden, grads, hidden.shape)
    _expect("cell", cell, grads, hidden.shape)
    if len(network.weights) != layers or len(network.biases) != layers:
        raise ValueError(
            f"the state has {layers} layers, but there are {len(network.weights)} weights and "
            f"{len(network.biases)} biases"
        )
    inputs = 1 if network.p is None else 2
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        _expect(f"weights[{layer}]", weight, grads, (4 * units, inputs + units))
        _expect(f"biases[{layer}]", bias, grads, (4 * units,))
        inputs = units
    _expect("output_weight", network.output_weight, grads, (1, units))
    _expect("output_bias", network.output_bias, grads, (1,))
    weights = [weight.contiguous() for weight in network.weights]
    return weights, [bias.contiguous() for bias in network.biases], network.output_weight.contiguous()


def _expect(name: str, tensor: Tensor, like: Tensor, shape: Sequence[int]) -> None:
    if tensor.shape != shape or tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name} should be {tuple(shape)}, {like.dtype} on {like.device}, "
            f"but is {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
        )


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
