"""The coordinate-wise LSTM on NVIDIA GPUs, in Triton: `step` and `sequence_vjp` as in `l2o.kernels`.

A program works on BLOCK coordinates, two of them in each thread for large n. The inputs of a layer (22 to 40 numbers a
coordinate) stay in registers; a loop runs over units, and the weights of its four gates are read by one load of 16
bytes for eight multiply-adds. tl.dot would pad 20 units to 32 (2.6 times the products, 1.6 times the exponentials) and
round the factors to TensorFloat-32. A layer reads what the layer below has stored, so that no hidden units wait in
registers, and with bfloat16 state they are rounded on the way up: so the other implementations do.

Roofline of one step, per coordinate of two layers of 20 units. Memory: 160 numbers of state and two of gradients, 648
bytes (bfloat16 state: 328). Arithmetic: 4,960 multiply-adds among 7,600 instructions, with 400 special functions. On
a GPU of 2024 (4.8 TB/s, 132 processors, each of 128 lanes and 16 special-function lanes, at 1.75 GHz):

    10 M coordinates, float32:    1.4 ms memory, 1.7 ms multiply-adds, 1.1 ms special functions, 2.6 ms instructions
    86 M coordinates, bfloat16:   5.9 ms memory, 14.4 ms multiply-adds, 9.3 ms special functions, 22 ms instructions

The counts are those of the machine code for sm_90 (160 registers a thread, none spilled); the times are computed.

`sequence_vjp` records all gates of a segment of steps of a chunk of coordinates in a tape in global memory, goes back
through it, and multiplies the recorded cotangents and inputs by cuBLAS: no atomics, one order of sums. It does 15,000
multiply-adds and moves about 4 kB per coordinate and step: 0.5 and 0.8 ns.
"""

# triton need not be installed.
# pyright: reportMissingImports=false

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from l2o.kernels.lstm_triton_backward import backward_kernel
from l2o.kernels.lstm_triton_forward import record_kernel, step_kernel
from l2o.kernels.network import Gradients, Network, check, check_out, empty, empty_gradients, expect

_TAPE_BYTES = 1 << 30  # at most, whatever n and K are
_SEGMENT = 32  # steps in the tape; of longer sequences all segments but the last are run twice


def supports(grads: Tensor) -> bool:
    """Whether the kernels work on tensors like this one."""
    return grads.is_cuda and grads.dtype in (torch.float32, torch.float64)


def step(grads: Tensor, hidden: Tensor, cell: Tensor, network: Network, out=None) -> tuple[Tensor, Tensor, Tensor]:
    """See `l2o.kernels.step`."""
    check(grads, hidden, cell, network)
    if out is not None:
        check_out(out, grads, hidden, cell)
    updates, next_hidden, next_cell = out or (empty(grads), empty(hidden), empty(cell))
    n = grads.shape[0]
    if n:
        given = (grads.contiguous(), hidden.contiguous(), cell.contiguous(), *_theta(network))
        constants = _constants(network, hidden)
        # More coordinates in a thread use a weight more often, fewer fill the processors sooner.
        block = 256 if n >= 1 << 16 else 128
        _launch(step_kernel, n, block, *given, updates, next_hidden, next_cell, n, **constants)
    return updates, next_hidden, next_cell


def sequence_vjp(
    grads: Tensor,
    cotangents: Tensor,
    hidden: Tensor,
    cell: Tensor,
    network: Network,
    state_cotangents: tuple[Tensor, Tensor] | None = None,
    inputs: bool = False,
) -> Gradients:
    """See `l2o.kernels.lstm_cpu.sequence_vjp`. The products follow torch.backends.cuda.matmul's precision settings."""
    check(grads, hidden, cell, network)
    expect("cotangents", cotangents, grads.dtype, grads.device, grads.shape)
    for name, tensor in zip(("d_next_hidden", "d_next_cell"), state_cotangents or (), strict=False):
        expect(name, tensor, hidden.dtype, hidden.device, hidden.shape)
    steps, n = grads.shape
    result = empty_gradients(grads, hidden, cell, network, inputs)
    theta = (*result.weights, *result.biases, result.output_weight, result.output_bias)
    sums = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in theta]
    tape = _Tape.of(network, hidden, grads.dtype, steps)
    for start in range(0, n, tape.chunk):
        part = slice(start, min(start + tape.chunk, n))
        state = [tensor[..., part].to(grads.dtype) for tensor in (hidden, cell)]
        d_state = [tensor[..., part].to(grads.dtype) for tensor in state_cotangents or ()]
        d_state = [tensor.contiguous() for tensor in d_state or map(torch.zeros_like, state)]
        chunk = grads[:, part].contiguous()
        d_grads = torch.empty_like(chunk) if inputs else None
        tape.run(chunk, network.scale * cotangents[:, part], state, d_state, d_grads, sums)
        for whole, piece in zip((result.grads, result.hidden, result.cell), (d_grads, *d_state), strict=True):
            if whole is not None and piece is not None:
                whole[..., part] = piece
    for tensor, total in zip(theta, sums, strict=True):
        tensor.copy_(total)
    return result


class _Tape(NamedTuple):
    """What `sequence_vjp` knows about a network, and how many coordinates and steps it records at a time."""

    theta: tuple[Tensor, Tensor, Tensor]
    constants: dict
    chunk: int
    segment: int

    @staticmethod
    def of(network: Network, hidden: Tensor, dtype: torch.dtype, steps: int) -> "_Tape":
        layers, units, n = hidden.shape
        segment = max(1, min(steps, _SEGMENT))
        numbers = layers * units * (7 * segment + 2 + 2 * (steps // segment)) + 4 * segment
        chunk = max(128, _TAPE_BYTES // (numbers * dtype.itemsize) // 128 * 128)
        return _Tape(_theta(network), _constants(network, hidden), chunk, segment)

    def run(self, grads, cotangents, state, d_state, d_grads, sums) -> None:
        """Add the weights' gradients from one chunk of coordinates to `sums`, in place.

        `state` (hidden, cell) is that before the first step; `d_state` are the cotangents after the last step, and
        become those before the first; `d_grads`, if wanted, is written.
        """
        starts = range(0, len(grads), self.segment)
        checkpoints = [state]
        for start in starts[:-1]:
            *_, cells, hiddens, _ = self.record(grads[start : start + self.segment], checkpoints[-1])
            checkpoints.append([hiddens[:, :, -1].clone(), cells[:, :, -1].clone()])
        for start, checkpoint in reversed(list(zip(starts, checkpoints, strict=False))):  # no starts: no steps
            part = slice(start, start + self.segment)
            arrays = self.record(grads[part], checkpoint)
            d_part = d_grads[part] if d_grads is not None else None
            self.backward(grads[part], cotangents[part], arrays, d_state, d_part)
            _add_products_of_sequences(cotangents[part], arrays, sums)

    def record(self, grads, state) -> tuple[Tensor, ...]:
        """Run forward; returns gates, tanh_cell, cells, hiddens and features.

        Shapes (layers, 4H, steps, m), (layers, H, steps, m), two of (layers, H, steps + 1, m), and (F, steps, m).
        """
        (steps, m), (layers, units, _) = grads.shape, state[0].shape
        gates = grads.new_empty(layers, 4 * units, steps, m)
        tanh_cell = grads.new_empty(layers, units, steps, m)
        hiddens, cells = (grads.new_empty(layers, units, steps + 1, m) for _ in state)
        hiddens[:, :, 0], cells[:, :, 0] = state
        features = grads.new_empty(self.constants["F"], steps, m)
        arrays = (gates, tanh_cell, cells, hiddens, features)
        _launch(
            record_kernel, m, 256 if m >= 1 << 16 else 128,
            grads, *self.theta[:2], *arrays, steps, m, **self.constants,
        )  # fmt: skip
        return arrays

    def backward(self, grads, cotangents, arrays, d_state, d_grads) -> None:
        """Turn the gates into the cotangents of z, and `d_state` into that before the first step."""
        gates, tanh_cell, cells, _, _ = arrays
        steps, m = grads.shape
        d_inputs = torch.empty_like(d_state[0][0])
        wanted = d_grads is not None
        _launch(
            backward_kernel, m, 128, grads, cotangents, *self.theta[:2], gates, tanh_cell, cells, *d_state, d_inputs,
            d_grads if wanted else grads, steps, m, **self.constants, D_GRADS=wanted,
        )  # fmt: skip


def _add_products_of_sequences(cotangents: Tensor, arrays: tuple[Tensor, ...], sums: list[Tensor]) -> None:
    """Add Σ dz [x; h]ᵀ, Σ dz and, for the output, Σ c h_lastᵀ and Σ c, over steps and coordinates, to `sums`."""
    gates, _, _, hiddens, features = arrays
    (layers, units, slots, m), length = hiddens.shape, cotangents.numel()
    rows = hiddens.view(layers, units, slots * m)
    for layer in range(layers):
        d_z = gates[layer].view(4 * units, length)
        inputs = rows[layer - 1, :, m:] if layer else features.view(len(features), length)
        sums[layer] += torch.cat([d_z @ inputs.T, d_z @ rows[layer, :, :length].T], dim=1)
        sums[layers + layer] += d_z.sum(1)
    sums[-2] += cotangents.view(1, length) @ rows[-1, :, m:].T
    sums[-1] += cotangents.sum()


def _theta(network: Network) -> tuple[Tensor, Tensor, Tensor]:
    """The weights as the kernels read them (see `weight_offset`), output_weight and output_bias."""
    pieces = [tensor.detach().reshape(4, -1).T for tensor in (*network.weights, *network.biases)]
    return torch.cat(pieces), network.output_weight.detach().contiguous(), network.output_bias.detach()


def _constants(network: Network, hidden: Tensor) -> dict:
    layers, units, _ = hidden.shape
    p = network.p
    return {
        **{"LAYERS": layers, "H": units, "F": 1 if p is None else 2, "P": p, "FLOOR": math.exp(-(p or 0.0))},
        **{"LOG_EPS": network.log_eps, "SCALE": network.scale, "FORGET_BIAS": network.forget_bias},
    }


def _launch(kernel, n: int, block: int, *arguments, **constants) -> None:
    with torch.cuda.device_of(arguments[0]):
        kernel[(triton.cdiv(n, block),)](*arguments, **constants, BLOCK=block, num_warps=4, num_stages=1)
