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
    """Weights and constants of the LSTM, in the order of the arguments of `l2o.kernels.step`."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    output_weight: Tensor
    output_bias: Tensor
    p: float | None
    log_eps: float
    scale: float
    forget_bias: float


class Gradients(NamedTuple):
    """Results of `sequence_vjp`."""

    weights: list[Tensor]
    biases: list[Tensor]
    output_weight: Tensor
    output_bias: Tensor
    grads: Tensor | None
    hidden: Tensor | None
    cell: Tensor | None


def supports(grads: Tensor) -> bool:
    """Whether the compiled kernels can work on tensors like this one."""
    return grads.device.type == "cpu" and grads.dtype in _DTYPES and library() is not None


def step(grads: Tensor, hidden: Tensor, cell: Tensor, network: Network, out=None) -> tuple[Tensor, Tensor, Tensor]:
    """See `l2o.kernels.step`."""
    grads, hidden, cell = grads.contiguous(), hidden.contiguous(), cell.contiguous()
    results = out or (torch.empty_like(grads), torch.empty_like(hidden), torch.empty_like(cell))
    _call(
        "step", grads[None], hidden, cell, network, zip(("updates", "next_hidden", "next_cell"), results, strict=True)
    )
    return results


def sequence_vjp(
    grads: Tensor,
    cotangents: Tensor,
    hidden: Tensor,
    cell: Tensor,
    network: Network,
    d_next_hidden: Tensor | None = None,
    d_next_cell: Tensor | None = None,
    inputs: bool = False,
) -> Gradients:
    """See `l2o.kernels.sequence_vjp`; with `inputs`, also the gradients of grads, hidden and cell.

    Args:
        d_next_hidden, d_next_cell: cotangents of the state after the last step, shape (layers, H, n).
    """
    given = {"cotangents": cotangents, "d_next_hidden": d_next_hidden, "d_next_cell": d_next_cell}
    given = {name: tensor.contiguous() for name, tensor in given.items() if tensor is not None}
    for name, tensor in given.items():
        _check(name, tensor, grads if name == "cotangents" else hidden)
    result = Gradients(
        [torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in network.weights],
        [torch.empty_like(bias, memory_format=torch.contiguous_format) for bias in network.biases],
        torch.empty_like(network.output_weight, memory_format=torch.contiguous_format),
        torch.empty_like(network.output_bias),
        *(
            torch.empty_like(x, memory_format=torch.contiguous_format) if inputs else None
            for x in (grads, hidden, cell)
        ),
    )
    given |= {f"d_{name}": tensor for name, tensor in result._asdict().items() if tensor is not None}
    _call("sequence_vjp", grads.contiguous(), hidden.contiguous(), cell.contiguous(), network, given.items())
    return result


def _call(function, grads, hidden, cell, network, others) -> None:
    """Check all shapes, since C++ trusts them, and call."""
    steps, n = grads.shape
    layers, units, _ = hidden.shape
    features = 1 if network.p is None else 2
    weights = [weight.contiguous() for weight in network.weights]
    biases = [bias.contiguous() for bias in network.biases]
    output_weight = network.output_weight.contiguous()
    _expect("hidden", hidden, grads, (layers, units, n))
    _expect("cell", cell, grads, (layers, units, n))
    if len(weights) != layers or len(biases) != layers:
        raise ValueError(f"{layers=} by the state, but {len(weights)} weights and {len(biases)} biases were given")
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        _expect(f"weights[{layer}]", weight, grads, (4 * units, (units if layer else features) + units))
        _expect(f"biases[{layer}]", bias, grads, (4 * units,))
    _expect("output_weight", output_weight, grads, (1, units))
    _expect("output_bias", network.output_bias, grads, (1,))
    arguments = _Arguments(
        n,
        steps,
        layers,
        units,
        torch.get_num_threads(),
        network.p is not None,
        network.p or 0.0,
        network.log_eps,
        network.scale,
        network.forget_bias,
        grads.data_ptr(),
        hidden.data_ptr(),
        cell.data_ptr(),
        _array(weights),
        _array(biases),
        output_weight.data_ptr(),
        network.output_bias.data_ptr(),
    )
    for name, value in others:
        setattr(arguments, name, value.data_ptr() if isinstance(value, Tensor) else _array(value))
    getattr(library(), f"l2o_lstm_{function}_{_DTYPES[grads.dtype]}")(ctypes.byref(arguments))


def _expect(name, tensor, like, shape) -> None:
    if tensor.shape != shape or tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name} should be {shape}, {like.dtype} on {like.device}, "
            f"but is {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
        )


def _check(name, tensor, like) -> None:
    _expect(name, tensor, like, tuple(like.shape))


def _array(tensors):
    """Return a pointer to an array of data pointers; ctypes keeps it alive with the structure that holds it."""
    return ctypes.cast((ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors)), ctypes.c_void_p)
