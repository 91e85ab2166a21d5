"""The coordinate-wise LSTM in Triton, forward: one step, and the steps that a tape records.

See `l2o.kernels.lstm_triton` for how the work is shared out, and `l2o.kernels.reference` for the equations.
"""

# The bodies of kernels are Triton's language, which pyright takes for Python; and triton need not be installed.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportMissingImports=false

import triton
import triton.language as tl

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
def _load_rows(at, stride, mask, ROWS: tl.constexpr, dtype: tl.constexpr):
    """Rows of coordinates as a tuple of blocks, which live in registers."""
    rows = ()
    for k in tl.static_range(ROWS):
        rows = rows + (tl.load(at + k * stride, mask, other=0.0).to(dtype),)
    return rows


@triton.jit
def four_gates(at):
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
        w_i, w_f, w_o, w_g = four_gates(weight + 4 * k)
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
        z_i, z_f, z_o, z_g = four_gates(bias + 4 * j)
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
def weight_offset(layer: tl.constexpr, F: tl.constexpr, H: tl.constexpr):
    """Where a layer's weights begin in θ = (weights, biases): [layer][unit][column][gate] and [layer][unit][gate]."""
    if layer == 0:
        return 0
    else:
        return 4 * H * (F + H + 2 * H * (layer - 1))


@triton.jit
def step_kernel(
    grads, hidden, cell, theta, output_weight, output_bias, updates, next_hidden, next_cell, n,
    LAYERS: tl.constexpr, H: tl.constexpr, F: tl.constexpr, P: tl.constexpr, FLOOR: tl.constexpr,
    LOG_EPS: tl.constexpr, SCALE: tl.constexpr, FORGET_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One step of all layers; arrays as in `l2o.kernels.step`, θ as `weight_offset` lays it out."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    stride = tl.zeros((), tl.int64) + n  # rows times n does not fit into 32 bits
    g = tl.load(grads + at, mask, other=1.0)
    x = _features(g, P, FLOOR, LOG_EPS)
    biases = theta + weight_offset(LAYERS, F, H)
    for layer in tl.static_range(LAYERS):
        first = layer * H * stride + at
        zero = tl.zeros_like(g)
        total = _layer(
            x, hidden + first, cell + first, next_hidden + first, next_cell + first, stride, updates, updates, 0,
            theta + weight_offset(layer, F, H), biases + layer * 4 * H, output_weight, mask, zero,
            F if layer == 0 else H, H, FORGET_BIAS, False,
        )  # fmt: skip
        if layer < LAYERS - 1:
            x = _load_rows(next_hidden + first, stride, mask, H, theta.dtype.element_ty)
        else:
            tl.store(updates + at, SCALE * (total + tl.load(output_bias)), mask)


@triton.jit
def record_kernel(
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
    biases = theta + weight_offset(LAYERS, F, H)
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
                theta + weight_offset(layer, F, H), biases + layer * 4 * H, output_weight, mask, tl.zeros_like(g),
                F if layer == 0 else H, H, FORGET_BIAS, True,
            )  # fmt: skip
            if layer < LAYERS - 1:
                x = _load_rows(hiddens + state + width, stride, mask, H, theta.dtype.element_ty)
