"""Call the compiled LSTM kernels on tensors: shapes are checked, results allocated, pointers passed through ctypes."""

import ctypes
import functools
import struct

import torch
from torch import Tensor

from l2o.kernels.build import library
from l2o.kernels.network import Gradients, Network, check, check_out, empty, empty_gradients, expect

_SUFFIXES = {
    (torch.float32, torch.float32): "float32",
    (torch.float64, torch.float64): "float64",
    (torch.float32, torch.bfloat16): "float32_bfloat16",
}


_NOT_GIVEN = [0] * 8  # the pointers that only `sequence_vjp` has
_WORD = struct.Struct("q")
_THREADS, _GRADS, _UPDATES = (8 * place for place in (4, 10, 15))  # bytes into the struct `Arguments`


def supports(grads: Tensor) -> bool:
    """Whether the compiled kernels exist and work on tensors like this one."""
    return grads.is_cpu and grads.dtype in (torch.float32, torch.float64) and library() is not None


def step(grads: Tensor, hidden: Tensor, cell: Tensor, network: Network, out=None) -> tuple[Tensor, Tensor, Tensor]:
    """See `l2o.kernels.step`."""
    check(grads, hidden, cell, network)
    if out is not None:
        check_out(out, grads, hidden, cell)
    results = out or (empty(grads), empty(hidden), empty(cell))
    _call("step", 1, (grads, hidden, cell), network, [*(tensor.data_ptr() for tensor in results), *_NOT_GIVEN])
    return results[0], results[1], results[2]


def step_batch(
    batch: int, grads: Tensor, hidden: Tensor, cell: Tensor, network: Network, in_dims: tuple
) -> tuple[Tensor, Tensor, Tensor]:
    """`step` of a batch of networks in one call: evolution strategies have one a particle.

    Args:
        in_dims: the batch axis of (grads, hidden, cell, weights, biases, output_weight, output_bias), each None for one
            that all share; weights and biases have a list of them.

    Returns: updates and the next hidden and cell, with the batch axis first.
    """
    weights, biases, output_weight, output_bias, p, *constants = network
    given = [grads, hidden, cell, output_weight, output_bias, *weights, *biases]
    dims = [*in_dims[:3], *in_dims[5:], *in_dims[3], *in_dims[4]]
    given = [(t if dim is None else t.movedim(dim, 0)).contiguous() for t, dim in zip(given, dims, strict=True)]
    one = [tensor if dim is None else tensor[0] for tensor, dim in zip(given, dims, strict=True)]
    layers = len(weights)
    theta = one[5 : 5 + layers], one[5 + layers :], one[3], one[4]
    check(one[0], one[1], one[2], network._replace(**dict(zip(Network._fields, theta, strict=False))))
    results = [tensor.new_empty((batch, *tensor.shape)) for tensor in one[:3]]
    strides = [0 if dim is None else t.stride(0) * t.itemsize for t, dim in zip(given, dims, strict=True)]
    strides[5:5] = [tensor.stride(0) * tensor.itemsize for tensor in results]
    head = (one[0].shape[-1], 1, layers, one[1].shape[1], torch.get_num_threads(), p is not None, p or 0.0, *constants)
    pointers = [*map(Tensor.data_ptr, (*given[:5], *results)), *_NOT_GIVEN, *map(Tensor.data_ptr, given[5:])]
    packed = struct.pack(f"{len(strides)}q", *strides)
    call, structure = _prepare(library(), "step_batch", one[0].dtype, one[1].dtype, layers)
    call(structure.pack(*head, *pointers, *[0] * (2 * layers)), ctypes.c_int64(batch), packed)
    return results[0], results[1], results[2]


class Stepper:
    """See `l2o.kernels.stepper`: a step packs two more addresses and calls."""

    def __init__(self, hidden: Tensor, cell: Tensor, network: Network):
        weights, biases, output_weight, output_bias, p, *constants = network
        layers, units, n = hidden.shape
        like = torch.empty(n, dtype=output_bias.dtype)
        check(like, hidden, cell, network)
        check_out((like, hidden, cell), like, hidden, cell)
        theta = [*map(Tensor.contiguous, (output_weight, output_bias, *weights, *biases))]
        self._tensors = (hidden, cell, *theta)  # what the addresses point to stays alive
        self._expected = (like.dtype, like.device, like.shape)
        state, theta = [hidden.data_ptr(), cell.data_ptr()], [*map(Tensor.data_ptr, theta)]
        self._call, structure = _prepare(library(), "step", like.dtype, hidden.dtype, layers)
        arguments = (n, 1, layers, units, 0, p is not None, p or 0.0, *constants)
        pointers = (0, *state, *theta[:2], 0, *state, *_NOT_GIVEN, *theta[2:], *[0] * (2 * layers))
        self._arguments = bytearray(structure.pack(*arguments, *pointers))
        self._address = (ctypes.c_char * structure.size).from_buffer(self._arguments)

    def __call__(self, grads: Tensor) -> Tensor:
        """Advance the state and return the updates."""
        if (grads.dtype, grads.device, grads.shape) != self._expected:
            expect("grads", grads, *self._expected)
        grads = grads.contiguous()
        updates = torch.empty_like(grads)
        _WORD.pack_into(self._arguments, _THREADS, torch.get_num_threads())
        _WORD.pack_into(self._arguments, _GRADS, grads.data_ptr())
        _WORD.pack_into(self._arguments, _UPDATES, updates.data_ptr())
        self._call(self._address)
        return updates


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
    check(grads, hidden, cell, network)
    expect("cotangents", cotangents, grads.dtype, grads.device, grads.shape)
    given = [cotangents.contiguous()]
    for name, tensor in zip(("d_next_hidden", "d_next_cell"), state_cotangents or (), strict=False):
        expect(name, tensor, hidden.dtype, hidden.device, hidden.shape)
        given.append(tensor.to(grads.dtype).contiguous())
    state_dtype, (hidden, cell) = hidden.dtype, (tensor.to(grads.dtype) for tensor in (hidden, cell))
    result = empty_gradients(grads, hidden, cell, network, inputs)
    flat = [result.output_weight, result.output_bias, result.grads, result.hidden, result.cell]
    pointers = [0, 0, 0, *(tensor.data_ptr() for tensor in given), *[0] * (3 - len(given))]
    pointers += [0 if tensor is None else tensor.data_ptr() for tensor in flat]
    theta = [tensor.data_ptr() for tensor in (*result.weights, *result.biases)]
    _call("sequence_vjp", len(grads), (grads, hidden, cell), network, pointers, theta)
    if result.hidden is None or result.cell is None:
        return result
    return result._replace(hidden=result.hidden.to(state_dtype), cell=result.cell.to(state_dtype))


def _call(function: str, steps: int, inputs, network: Network, pointers: list[int], d_theta=()) -> None:
    """Pack the struct `Arguments` of lstm_memory.h and call; `pointers` are those from `updates` on."""
    weights, biases, output_weight, output_bias, p, log_eps, scale, forget_bias = network
    # The list keeps copies that `contiguous` makes alive.
    tensors = [*map(Tensor.contiguous, (*inputs, output_weight, output_bias, *weights, *biases))]
    addresses = [*map(Tensor.data_ptr, tensors)]
    grads, hidden = tensors[:2]
    layers, units, n = hidden.shape
    call, structure = _prepare(library(), function, grads.dtype, hidden.dtype, layers)
    arguments = structure.pack(
        *(n, steps, layers, units, torch.get_num_threads(), p is not None, p or 0.0, log_eps, scale, forget_bias),
        *(*addresses[:5], *pointers, *addresses[5:], *(d_theta or [0] * (2 * layers))),
    )
    call(arguments)


@functools.cache
def _prepare(compiled: ctypes.CDLL, function: str, dtype: torch.dtype, state_dtype: torch.dtype, layers: int):
    """Return the compiled function and the layout of its argument."""
    call = getattr(compiled, f"l2o_lstm_{function}_{_SUFFIXES[dtype, state_dtype]}")
    return call, struct.Struct(f"6q4d{16 + 4 * layers}Q")
