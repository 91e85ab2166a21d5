"""The coordinate-wise LSTM on NVIDIA GPUs, in Triton: `step` and `sequence_vjp` as in `l2o.kernels`.

A program works on BLOCK coordinates, two of them in each thread for large n. The inputs of a layer (22 to 40 numbers a
coordinate) stay in registers; a loop runs over units, and the weights of its four gates are read by one load of 16
bytes for eight multiply-adds. tl.dot would pad 20 units to 32 (2.6 times the products, 1.6 times the exponentials) and
round the factors to TensorFloat-32. A layer reads what the layer below has stored, so that no hidden units wait in
registers, and with bfloat16 state they are rounded on the way up: so the other implementations do.

Roofline of one step, per coordinate of two layers of 20 units. Memory: 160 numbers of state and two of gradients, 648
bytes (bfloat16 state: 328). Arithmetic: 4,960 multiply-adds among 7,600 instructions, with 400 special functions. On
an H200 (4.8 TB/s, 132 processors, each of 128 lanes and 16 special-function lanes, at 1.75 GHz):

    10 M coordinates, float32:    1.4 ms memory, 1.7 ms multiply-adds, 1.1 ms special functions, 2.6 ms instructions
    86 M coordinates, bfloat16:   5.9 ms memory, 14.4 ms multiply-adds, 9.3 ms special functions, 22 ms instructions

The counts are those of the machine code for sm_90 (160 registers a thread, none spilled); the times are computed.

`sequence_vjp` records all gates of a segment of steps of a chunk of coordinates in a tape in global memory, goes back
through it, and multiplies the recorded cotangents and inputs by cuBLAS: no atomics, one order of sums. It does 15,000
multiply-adds and moves about 4 kB per coordinate and step: 0.5 and 0.8 ns.
"""

# The bodies of kernels are Triton's language, which pyright takes for Python; and triton need not be installed.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportMissingImports=false

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from l2o.kernels.network import Gradients, Network, check, check_out, empty, empty_gradients, expect

_TAPE_BYTES = 1 << 30  # at most, whatever n and K are
_SEGMENT = 32  # steps in the tape; of longer sequences all segments but the last are run twice


def supports(grads: Tensor) -> bool:
    """Whether the kernels work on tensors like this one."""
    return grads.is_cuda and grads.dtype in (torch.float32, torch.float64)


_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1 was set before the first import


@triton.jit
def _sigmoid(x):
    if x.dtype == tl.float32 and not _INTERPRETED:
        # exp and division take 13 instructions, most of them for subnormal numbers, which 1 + e^-x swallows.
        return tl.inline_asm_elementwise(
            "{ .reg .f32 e; ex2.approx.ftz.f32 e, $1; add.f32 e, e, 0f3F800000; rcp.approx.ftz.f32 $0, e; }",
            "=f,f",
            [x * -1.4426950408889634],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    else:
        return 1 / (1 + tl.exp(-x))


@triton.jit
def _stored(x, dtype: tl.constexpr):
    """Convert to the state's type, to nearest even: GPUs do that by themselves, while the interpreter truncates."""
    if dtype == tl.bfloat16 and _INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _features(g, P: tl.constexpr, FLOOR: tl.constexpr, LOG_EPS: tl.constexpr):
    """The gradient, or (log(max(|g| + ε, e^-p)) / p, clamp(g / e^-p, −1, 1)). Comparisons with NaN are false."""
    if P is None:
        return (g,)
    else:
        size = tl.abs(g) + LOG_EPS
        size = tl.where(size < FLOOR, FLOOR, size)
        ratio = g / FLOOR
        ratio = tl.where(ratio > 1, 1.0, tl.where(ratio < -1, -1.0, ratio))
        return (tl.log(size) / P, ratio)


@triton.jit
def _features_backward(g, d_features, P: tl.constexpr, FLOOR: tl.constexpr, LOG_EPS: tl.constexpr):
    if P is None:
        return d_features[0]
    else:
        size = tl.abs(g) + LOG_EPS
        slope = tl.where(g == 0, 0.0, tl.where(g < 0, -1.0, 1.0)) * d_features[0] / (P * size)
        ratio = g / FLOOR
        linear = tl.where((ratio < -1) | (ratio > 1), 0.0, d_features[1] / FLOOR)
        return tl.where(size < FLOOR, 0.0, slope) + linear


@triton.jit
def _load_rows(at, stride, mask, ROWS: tl.constexpr, dtype: tl.constexpr):
    """Rows of coordinates as a tuple of blocks, which live in registers."""
    rows = ()
    for k in tl.static_range(ROWS):
        rows = rows + (tl.load(at + k * stride, mask, other=0.0).to(dtype),)
    return rows


@triton.jit
def _four_gates(at):
    """Four numbers that lie together, by one load of 16 bytes, as scalars."""
    even, odd = tl.split(tl.reshape(tl.load(at + tl.arange(0, 4)), (2, 2)))
    i, o = tl.split(even)
    f, g = tl.split(odd)
    return i, f, o, g


@triton.jit
def _add_products(z, weight, rows, ROWS: tl.constexpr):
    """z[gate] + Σ_k weight[k, gate] · rows[k]."""
    i, f, o, g = z
    for k in tl.static_range(ROWS):
        w_i, w_f, w_o, w_g = _four_gates(weight + 4 * k)
        i += w_i * rows[k]
        f += w_f * rows[k]
        o += w_o * rows[k]
        g += w_g * rows[k]
    return i, f, o, g


@triton.jit
def _layer(
    x, hidden, cell, next_hidden, next_cell, stride,  # pointers to the coordinates of the layer's first row
    gates, tanh_cell, tape_stride,  # written where RECORD
    weight, bias, output_weight, mask, total,
    X: tl.constexpr, H: tl.constexpr, FORGET_BIAS: tl.constexpr, RECORD: tl.constexpr,
):  # fmt: skip
    """One step of one layer, h' = σ(o) tanh(σ(f) c + σ(i) tanh(g)); returns total + w h'."""
    dtype: tl.constexpr = weight.dtype.element_ty
    h = _load_rows(hidden, stride, mask, H, dtype)
    tl.debug_barrier()  # hidden may be overwritten from here on
    for j in range(H):
        row = weight + 4 * j * (X + H)
        z_i, z_f, z_o, z_g = _four_gates(bias + 4 * j)
        z = _add_products((z_i, z_f + FORGET_BIAS, z_o, z_g), row, x, X)
        z = _add_products(z, row + 4 * X, h, H)
        i, f, o, g = _sigmoid(z[0]), _sigmoid(z[1]), _sigmoid(z[2]), 2 * _sigmoid(2 * z[3]) - 1
        c = f * tl.load(cell + j * stride, mask, other=0.0).to(dtype) + i * g
        tanh_c = 2 * _sigmoid(2 * c) - 1
        tl.store(next_cell + j * stride, _stored(c, next_cell.dtype.element_ty), mask)
        tl.store(next_hidden + j * stride, _stored(o * tanh_c, next_cell.dtype.element_ty), mask)
        total += tl.load(output_weight + j) * (o * tanh_c)
        if RECORD:
            tl.store(gates + j * tape_stride, i, mask)
            tl.store(gates + (H + j) * tape_stride, f, mask)
            tl.store(gates + (2 * H + j) * tape_stride, o, mask)
            tl.store(gates + (3 * H + j) * tape_stride, g, mask)
            tl.store(tanh_cell + j * tape_stride, tanh_c, mask)
    tl.debug_barrier()  # other threads may read what this one has stored
    return total


@triton.jit
def _weight_offset(layer: tl.constexpr, F: tl.constexpr, H: tl.constexpr):
    """Where a layer's weights begin in θ = (weights, biases): [layer][unit][column][gate] and [layer][unit][gate]."""
    if layer == 0:
        return 0
    else:
        return 4 * H * (F + H + 2 * H * (layer - 1))


@triton.jit
def _step_kernel(
    grads, hidden, cell, theta, output_weight, output_bias, updates, next_hidden, next_cell, n,
    LAYERS: tl.constexpr, H: tl.constexpr, F: tl.constexpr, P: tl.constexpr, FLOOR: tl.constexpr,
    LOG_EPS: tl.constexpr, SCALE: tl.constexpr, FORGET_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    stride = tl.zeros((), tl.int64) + n  # rows times n does not fit into 32 bits
    g = tl.load(grads + at, mask, other=1.0)
    x = _features(g, P, FLOOR, LOG_EPS)
    biases = theta + _weight_offset(LAYERS, F, H)
    for layer in tl.static_range(LAYERS):
        first = layer * H * stride + at
        zero = tl.zeros_like(g)
        total = _layer(
            x, hidden + first, cell + first, next_hidden + first, next_cell + first, stride, updates, updates, 0,
            theta + _weight_offset(layer, F, H), biases + layer * 4 * H, output_weight, mask, zero,
            F if layer == 0 else H, H, FORGET_BIAS, False,
        )  # fmt: skip
        if layer < LAYERS - 1:
            x = _load_rows(next_hidden + first, stride, mask, H, theta.dtype.element_ty)
        else:
            tl.store(updates + at, SCALE * (total + tl.load(output_bias)), mask)


@triton.jit
def _record_kernel(
    grads, theta, output_weight, gates, tanh_cell, cells, hiddens, features, steps, m,
    LAYERS: tl.constexpr, H: tl.constexpr, F: tl.constexpr, P: tl.constexpr, FLOOR: tl.constexpr,
    LOG_EPS: tl.constexpr, SCALE: tl.constexpr, FORGET_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill the tape from its first state on; see `_Tape` for the arrays."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < m
    width = tl.zeros((), tl.int64) + m
    tape_stride = steps * width
    stride = tape_stride + width
    biases = theta + _weight_offset(LAYERS, F, H)
    for t in range(steps):
        g = tl.load(grads + t * width + at, mask, other=1.0)
        x = _features(g, P, FLOOR, LOG_EPS)
        now = t * width + at
        for k in tl.static_range(F):
            tl.store(features + k * tape_stride + now, x[k], mask)
        for layer in tl.static_range(LAYERS):
            state = layer * H * stride + now
            tape = layer * H * tape_stride + now
            _layer(
                x, hiddens + state, cells + state, hiddens + state + width, cells + state + width, stride,
                gates + 4 * layer * H * tape_stride + now, tanh_cell + tape, tape_stride,
                theta + _weight_offset(layer, F, H), biases + layer * 4 * H, output_weight, mask, tl.zeros_like(g),
                F if layer == 0 else H, H, FORGET_BIAS, True,
            )  # fmt: skip
            if layer < LAYERS - 1:
                x = _load_rows(hiddens + state + width, stride, mask, H, theta.dtype.element_ty)


@triton.jit
def _add_transposed(sums, weight, i, f, o, g, ROWS: tl.constexpr):
    """sums[k] + Σ_gate weight[k, gate] · dz[gate]."""
    result = ()
    for k in tl.static_range(ROWS):
        w_i, w_f, w_o, w_g = _four_gates(weight + 4 * k)
        result = result + (sums[k] + w_i * i + w_f * f + w_o * o + w_g * g,)
    return result


@triton.jit
def _zeros(like, COUNT: tl.constexpr):
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.zeros_like(like),)
    return rows


@triton.jit
def _layer_backward(
    gates, tanh_cell, tape_stride, cell, cell_stride, d_hidden, d_cell, d_inputs, width,
    weight, output_weight, cotangent, mask,
    X: tl.constexpr, H: tl.constexpr, TOP: tl.constexpr, WITH_INPUTS: tl.constexpr,
):  # fmt: skip
    """Replace the recorded gates by the cotangents of z, d_hidden and d_cell by those of h and c; returns x's.

    The cotangent of h' is d_hidden plus what comes from above: w · cotangent in the top layer, else d_inputs.
    """
    d_h = _zeros(cotangent, H)
    d_x = _zeros(cotangent, X if WITH_INPUTS else 0)
    for j in range(H):
        i = tl.load(gates + j * tape_stride, mask, other=0.0)
        f = tl.load(gates + (H + j) * tape_stride, mask, other=0.0)
        o = tl.load(gates + (2 * H + j) * tape_stride, mask, other=0.0)
        g = tl.load(gates + (3 * H + j) * tape_stride, mask, other=0.0)
        tanh_c = tl.load(tanh_cell + j * tape_stride, mask, other=0.0)
        c = tl.load(cell + j * cell_stride, mask, other=0.0)
        dh = tl.load(d_hidden + j * width, mask, other=0.0)
        if TOP:
            dh += tl.load(output_weight + j) * cotangent
        else:
            dh += tl.load(d_inputs + j * width, mask, other=0.0)
        dc = tl.load(d_cell + j * width, mask, other=0.0) + dh * o * (1 - tanh_c * tanh_c)
        tl.store(d_cell + j * width, dc * f, mask)
        di, df = dc * g * i * (1 - i), dc * c * f * (1 - f)
        do, dg = dh * tanh_c * o * (1 - o), dc * i * (1 - g * g)
        tl.store(gates + j * tape_stride, di, mask)
        tl.store(gates + (H + j) * tape_stride, df, mask)
        tl.store(gates + (2 * H + j) * tape_stride, do, mask)
        tl.store(gates + (3 * H + j) * tape_stride, dg, mask)
        row = weight + 4 * j * (X + H)
        d_h = _add_transposed(d_h, row + 4 * X, di, df, do, dg, H)
        if WITH_INPUTS:
            d_x = _add_transposed(d_x, row, di, df, do, dg, X)
    tl.debug_barrier()  # all of d_hidden and d_inputs has been read
    for k in tl.static_range(H):
        tl.store(d_hidden + k * width, d_h[k], mask)
    return d_x


@triton.jit
def _backward_kernel(
    grads, cotangents, theta, output_weight, gates, tanh_cell, cells, d_hidden, d_cell, d_inputs,
    d_grads, steps, m,
    LAYERS: tl.constexpr, H: tl.constexpr, F: tl.constexpr, P: tl.constexpr, FLOOR: tl.constexpr,
    LOG_EPS: tl.constexpr, SCALE: tl.constexpr, FORGET_BIAS: tl.constexpr, BLOCK: tl.constexpr,
    D_GRADS: tl.constexpr,
):  # fmt: skip
    """Back through the tape: gates become cotangents of z; d_hidden and d_cell (layers, H, m) those of the first state.

    `cotangents` are scale · c_t, shape (steps, m); d_inputs is room for (H, m).
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < m
    width = tl.zeros((), tl.int64) + m
    tape_stride = steps * width
    stride = tape_stride + width
    for back in range(steps):
        t = steps - 1 - back
        now = t * width + at
        cotangent = tl.load(cotangents + now, mask, other=0.0)
        for layer in tl.static_range(LAYERS - 1, -1, -1):
            state = layer * H * width + at
            d_x = _layer_backward(
                gates + 4 * layer * H * tape_stride + now, tanh_cell + layer * H * tape_stride + now, tape_stride,
                cells + layer * H * stride + now, stride, d_hidden + state, d_cell + state, d_inputs + at, width,
                theta + _weight_offset(layer, F, H), output_weight, cotangent, mask,
                F if layer == 0 else H, H, layer == LAYERS - 1, layer > 0 or D_GRADS,
            )  # fmt: skip
            if layer > 0:
                for k in tl.static_range(H):
                    tl.store(d_inputs + k * width + at, d_x[k], mask)
            elif D_GRADS:
                g = tl.load(grads + t * width + at, mask, other=1.0)
                tl.store(d_grads + now, _features_backward(g, d_x, P, FLOOR, LOG_EPS), mask)
            tl.debug_barrier()  # other threads may read what this one has stored


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
        _launch(_step_kernel, n, block, *given, updates, next_hidden, next_cell, n, **constants)
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
            _record_kernel, m, 256 if m >= 1 << 16 else 128,
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
            _backward_kernel, m, 128, grads, cotangents, *self.theta[:2], gates, tanh_cell, cells, *d_state, d_inputs,
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
    """The weights as the kernels read them (see `_weight_offset`), output_weight and output_bias."""
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
